"""Records that lie on the disk: as they would be in memory, for one process and for several."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from listwise_preference.data.pairs import (
    BoxLists,
    Crops,
    Folders,
    ImageOnly,
    ImageSource,
    Pair,
    Record,
    load_records,
    open_records,
)
from listwise_preference.data.ranked_images import Box, Drawing, ImageAndCrop, ImageFiles, MaskedBox, RankedImages
from listwise_preference.data.stored import StoredRows, some
from listwise_preference.errors import DataError, Stopped
from listwise_preference.training.one_machine import filled_once

TEXTS = ["A dog.", "\u2028 zwei\nZeilen\r", "猫 🙂", 'a "quoted" \\ path', "\x00\x7f", "ﬂat", "é é", "x" * 3_000]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("root", "worse"):
        (tmp_path / folder).mkdir()
        for number in range(20):
            Image.new("RGB", (40, 30), (number, number, folder == "root")).save(tmp_path / folder / f"{number}é.png")
    return tmp_path / "root"


def written(root: Path, draw: random.Random) -> tuple[list[Pair], list[Box]]:
    """Pairs of any texts and a box for each, in p.json and l.jsonl beside the root; and the same in memory."""
    pairs = [
        Pair(number if number % 3 else f"Ź{number}", f"{draw.randrange(20)}é.png", "What?",
             f"{draw.choice(TEXTS)}{number}", f"{draw.choice(TEXTS)}!")
        for number in range(200)
    ]  # fmt: skip
    boxes = [Box(left, 2, left + draw.randint(1, 9), 29) for left in (draw.randrange(30) for _ in pairs)]
    keys = ("id", "img_path", "prompt", "chosen", "rejected")
    rows = [
        dict(zip(keys, (pair.id, pair.img_path, pair.prompt, pair.chosen, pair.rejected), strict=True))
        for pair in pairs
    ]
    lists = [
        {"id": pair.id, "box": [box.left, box.top, box.right, box.bottom]}
        for pair, box in zip(pairs, boxes, strict=True)
    ]
    draw.shuffle(lists)
    (root.parent / "p.json").write_text(json.dumps(rows), encoding="utf-8")
    (root.parent / "l.jsonl").write_text("\n".join(map(json.dumps, lists)), encoding="utf-8")
    return pairs, boxes


def images_in_memory(source: ImageSource, root: Path, pair: Pair, box: Box) -> RankedImages:
    path = root / pair.img_path
    match source:
        case ImageOnly():
            return ImageFiles((path,))
        case Folders():
            return ImageFiles((path, root.parent / "worse" / pair.img_path))
        case Crops():
            return ImageAndCrop(path, f"7/{pair.id}")
        case BoxLists():
            return MaskedBox(path, box, Drawing(3))


SOURCES: dict[str, Callable[[Path], ImageSource]] = {
    "image": lambda root: ImageOnly(),
    "folders": lambda root: Folders((root, root.parent / "worse")),
    "crops": lambda root: Crops(7),
    "boxes": lambda root: BoxLists(root.parent / "l.jsonl", Drawing(3)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_records_on_the_disk_are_those_of_the_plain_way_in_memory(root: Path, name: str) -> None:
    pairs, boxes = written(root, random.Random(name))
    source = SOURCES[name](root)
    plain = [Record(pair, images_in_memory(source, root, pair, box)) for pair, box in zip(pairs, boxes, strict=True)]
    records = load_records(root.parent / "p.json", root, source, rows=root.parent / "rows").records
    assert list(records) == plain and (len(records), records[-1], records[3]) == (200, plain[-1], plain[3])
    with pytest.raises(IndexError):
        records[200]
    assert list(records[5:60:7]) == plain[5:60:7] and list(records[::-1]) == plain[::-1]
    for chosen in ([4, 2, 199], []):
        assert list(some(records, chosen)) == list(some(plain, chosen)) == [plain[index] for index in chosen]
    # Another process opens a part of them, and the file may be gone then.
    part = records.take(range(50, 0, -1))
    part.save(root.parent / "index")
    opened = open_records(root.parent / "index", source)
    (root.parent / "rows").unlink()
    assert list(opened) == plain[50:0:-1] and list(records) == plain


def test_what_a_process_that_is_started_anew_gets_needs_no_file(root: Path) -> None:
    """As --dataloader_multiprocessing_context spawn sends it."""
    written(root, random.Random(0))
    records = load_records(root.parent / "p.json", root, SOURCES["boxes"](root)).records
    assert list(pickle.loads(pickle.dumps(records[3:]))) == list(records)[3:]


def test_no_records_are_saved_and_opened(tmp_path: Path) -> None:
    StoredRows.none().save(tmp_path / "index")
    assert list(open_records(tmp_path / "index", ImageOnly())) == []


# ---- the processes of a machine ----


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``launched(rank)``: this process is that one of two."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name, value in {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    return lambda rank: monkeypatch.setenv("LOCAL_RANK", str(rank))


def fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def not_again(folder: Path) -> None:
    raise AssertionError("filled twice")


def test_one_process_fills_the_folder_and_the_others_find_it_whole(
    tmp_path: Path, launched: Callable[[int], None]
) -> None:
    stale = tmp_path / f"lpoi-{os.getuid()}-host-29500-0"
    stale.mkdir()
    for name in ("complete", "lock", "old"):
        (stale / name).touch()  # of a run that was killed: nobody holds its lock
    launched(0)
    with filled_once(fill) as first:
        assert first == stale and not (first / "old").exists() and first.stat().st_mode & 0o77 == 0
        launched(1)
        with filled_once(not_again) as folder:
            assert folder == first and (folder / "file").read_text() == "whole"
    assert not stale.exists()


def test_those_that_wait_end_with_the_one_that_fills(
    tmp_path: Path, launched: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> None:
        raise DataError("record 3 is bad")

    launched(0)
    with pytest.raises(DataError, match="record 3"), filled_once(fails):
        pass
    assert list(tmp_path.iterdir()) == []
    launched(1)
    monkeypatch.setattr("listwise_preference.training.one_machine._PATIENCE", 0.0)
    with pytest.raises(Stopped, match="the process that reads the data"), filled_once(not_again):
        pass


def test_a_process_alone_leaves_nothing_even_where_it_is_killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records' file has no name from its beginning."""
    written(root, random.Random(0))
    monkeypatch.setattr("tempfile.tempdir", str(root.parent / "worse"))
    before = sorted((root.parent / "worse").iterdir())
    records = load_records(root.parent / "p.json", root, ImageOnly()).records
    assert len(records) == 200 and sorted((root.parent / "worse").iterdir()) == before
