import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from listwise_preference.data.pairs import BoxLists, Crops, Folders, ImageOnly, Pair, Record, load_records
from listwise_preference.data.ranked_images import Box, Drawing, ImageAndCrop, ImageFiles, MaskedBox
from listwise_preference.errors import DataError
from listwise_preference.files import find_file

FIVE = Drawing()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root with a.png, b.png and c.png, 20 x 10 pixels each."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name in "abc":
        Image.new("RGB", (20, 10), "green").save(folder / f"{name}.png")
    return folder


def pair(img_path: str = "a.png", **changes: Any) -> dict[str, Any]:
    """A good record with some keys changed; a change to None takes the key away."""
    record = {
        "img_path": img_path,
        "prompt": "What is it?",
        "chosen": "A cat.",
        "rejected": "A dog.",
    } | changes
    return {key: value for key, value in record.items() if value is not None}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_records(*arguments, **options)
    return str(caught.value)


# Files


def test_json_and_jsonl_give_the_same_records(tmp_path: Path, root: Path) -> None:
    values = [pair("a.png", chosen="Zwei\u2028Zeilen"), pair("./b.png", id="x", source="ignored")]
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    texts = {
        "list.json": json.dumps(values, indent=2),
        "lines.jsonl": "\n".join(lines),
        "lines.json": "\n".join(lines),  # content goes before the file's ending
        "list.jsonl": json.dumps(values),
        "blank.jsonl": f"\n{lines[0]}\r\n  \n\n{lines[1]}\n\n",
        "bom.json": "\ufeff" + json.dumps(values),
        "bom.jsonl": "\ufeff" + "\n".join(lines),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        loaded = load_records(tmp_path / name, root, ImageOnly())
        assert tuple(loaded.records) == (
            Record(Pair(1, "a.png", "What is it?", "Zwei\u2028Zeilen", "A dog."), ImageFiles((root / "a.png",))),
            Record(Pair("x", "./b.png", "What is it?", "A cat.", "A dog."), ImageFiles((root / "b.png",))),
        )
        assert (loaded.dropped, loaded.without_box, loaded.report) == (0, 0, "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"", "the file is empty"),
        ("p.jsonl", b" \n\n", "the file is empty"),
        ("p.json", b"[]", "the list is empty"),
        ("p.json", b'{\n "a": 1\n}', "not a list of records"),
        ("p.json", b'"text"', "not a list of records"),
        ("p.json", b'[\n  {"a": 1},\n  {"a" 2}\n]', "line 3, column 8: not valid JSON: Expecting ':'"),
        ("p.jsonl", b'{"a": 1}\n\n{"a": }\n', "line 3, column 7: not valid JSON: Expecting value"),
        ("p.jsonl", b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        ("p.json", b"[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_at_all(tmp_path: Path, root: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for mode in ("stop", "drop"):
        refused = refusal(path, root, ImageOnly(), on_bad_record=mode)
        assert refused.startswith(f"{path}: ") and message in refused and "\n" not in refused


def test_a_path_of_another_system_finds_its_image(tmp_path: Path) -> None:
    """Composed letters in the pairs and decomposed ones on disk, the other way round, and backslashes.

    Where two files have the same letters, neither is taken.
    """
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = [f"{decomposed}/{decomposed}.png", f"x/{composed}.png", "x/plain.png"]
    two = [f"{composed}\u0323.png", "cafe\u0323\u0301.png"]
    for file in (tmp_path / name for name in (*names, *two)):
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(file)
    written = [f"{composed}/{composed}.png", f"x/{decomposed}.png", "x\\plain.png"]
    pairs = write_json(tmp_path / "pairs.json", [pair(img_path=name, id=name) for name in written])
    boxes = [{"id": name, "img_path": there, "box": [0, 0, 9, 9]} for name, there in zip(written, names, strict=True)]
    lists = write_json(tmp_path / "lists.json", boxes)
    found = load_records(pairs, tmp_path, BoxLists(lists, FIVE))
    assert [file for record in found.records for file in record.images.files()] == [tmp_path / name for name in names]
    for missing in (tmp_path / f"{decomposed}\u0323.png", tmp_path / "\u00e9" / ("\u00e9" * 300)):
        assert find_file(missing) == missing


def test_absolute_and_relative_names_of_an_image_match(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pairs and in lists, either way round and with ./ and doubled slashes, the root being absolute or relative."""
    monkeypatch.chdir(tmp_path)
    names = ["a.png", str(root / "b.png"), "./c.png"]
    listed = [str(root / "a.png"), ".//b.png", f"{root}//./c.png"]
    pairs = write_json(tmp_path / "p.json", [pair(name) for name in names])
    lists = write_lines(
        tmp_path / "l.jsonl", *({"img_path": name, "box": [0, 0, 3, number]} for number, name in enumerate(listed, 1))
    )
    for image_root in (root, root.relative_to(tmp_path)):
        loaded = load_records(pairs, image_root, BoxLists(lists, FIVE)).records
        assert [one.images.box.bottom for one in loaded if isinstance(one.images, MaskedBox)] == [1, 2, 3]


@pytest.mark.parametrize("address", ["https://host/a.png", "hf://datasets/some/set/a.png", "s3://bucket/a.png"])
def test_an_image_that_is_elsewhere_is_refused_with_what_to_do(tmp_path: Path, root: Path, address: str) -> None:
    pairs = write_json(tmp_path / "p.json", [pair(address)])
    with pytest.raises(DataError, match=f"is {address}; download the image, and name the file below --image_root"):
        load_records(pairs, root, ImageOnly())


def test_missing_files_and_folders(tmp_path: Path, root: Path) -> None:
    good = write_json(tmp_path / "p.json", [pair()])
    assert refusal(tmp_path / "no.json", root, ImageOnly()).startswith(f"{tmp_path}/no.json: no such file")
    assert "set --image_root" in refusal(good, tmp_path / "no", ImageOnly())
    assert "lists.jsonl: no such file" in refusal(good, root, BoxLists(tmp_path / "lists.jsonl", FIVE))
    assert "at least 2 folders" in refusal(good, root, Folders((root,)))
    assert f"no folder {tmp_path}/no" in refusal(good, root, Folders((root, tmp_path / "no")))
    assert "a folder is given twice" in refusal(good, root, Folders((root, root / ".." / "root")))


# Records that teach nothing


def test_two_equal_responses_are_a_bad_record_where_they_are_compared(tmp_path: Path, root: Path) -> None:
    """Blanks around a response are no difference; where only chosen responses are used there is nothing wrong."""
    values = [pair(), pair("b.png", id="same", rejected="A cat."), pair("c.png", id="blank", rejected=" A cat.\n")]
    file = write_json(tmp_path / "p.json", values)
    said = refusal(file, root, ImageOnly(), compares_responses=True)
    assert (
        "chosen and rejected alike: 2 records" in said
        and 'record 2: chosen and rejected are the same text: "A cat."' in said
    )
    dropped = load_records(file, root, ImageOnly(), on_bad_record="drop", compares_responses=True)
    assert [record.pair.img_path for record in dropped.records] == ["a.png"] and dropped.dropped == 2
    assert len(load_records(file, root, ImageOnly()).records) == 3


def test_ranked_images_that_are_one_image_are_a_bad_record(tmp_path: Path, root: Path) -> None:
    worse = tmp_path / "worse"
    worse.mkdir()
    (worse / "a.png").write_bytes((root / "a.png").read_bytes())
    Image.new("RGB", (20, 10), "black").save(worse / "b.png")
    file = write_json(tmp_path / "p.json", [pair("a.png"), pair("b.png")])
    said = refusal(file, root, Folders((root, worse)))
    assert "ranked images alike: 1 record;" in said and f"{root / 'a.png'} and {worse / 'a.png'} are the same" in said


# Forms of a record


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


IMAGE = {"type": "image"}
USER = message("user", [IMAGE, {"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}])
CAT, DOG = message("assistant", "A cat."), message("assistant", [{"type": "text", "text": "A dog."}])


@pytest.mark.parametrize(
    "value",
    [
        pair(),
        pair(img_path=None, image="a.png"),
        pair(img_path=None, images=["a.png"]),
        pair(image="a.png", images=["a.png"]),
        pair(prompt=None, question="What is it?"),
        pair(prompt=[message("user", "What is it?")], chosen=[CAT], rejected=[DOG]),
        pair(prompt=[USER], chosen=[CAT], rejected=[DOG]),
        pair(prompt=None, chosen=[USER, CAT], rejected=[USER, DOG]),
        pair(chosen=[USER, CAT], rejected=[USER, DOG]),
    ],
)
def test_every_form_of_a_record_is_the_same_pair(tmp_path: Path, root: Path, value: dict[str, Any]) -> None:
    (record,) = load_records(write_json(tmp_path / "p.json", [value]), root, ImageOnly()).records
    assert record.pair == Pair(1, "a.png", "What is it?", "A cat.", "A dog.")


BAD_RECORDS = [
    (["a"], "not a record", '["a"] is not an object'),
    (None, "not a record", "null is not an object"),
    (pair(id=1.5), "unusable id", "id 1.5 is not a string or a whole number"),
    (pair(id=True), "unusable id", "id true is not"),
    (pair(id=" "), "unusable id", 'id " " is not'),
    (pair(id="good"), "id used twice", "id good is also that of record 1"),
    (pair(img_path=None), "image path missing or unclear", 'no "img_path"'),
    (pair(img_path=7), "image path missing or unclear", '"img_path" is 7, not the path of one image'),
    (pair(img_path=None, images=["a.png", "b.png"]), "image path missing or unclear",
     '"images" is ["a.png", "b.png"], not the path of one image'),
    (pair(image="b.png"), "image path missing or unclear",
     '"img_path" "a.png" and "image" "b.png" are different images'),
    (pair("../a.png"), "image outside the image root", "../a.png is not under"),
    (pair("b/../../root2/a.png"), "image outside the image root", "b/../../root2/a.png is not under"),
    (pair("/etc/a.png"), "image outside the image root", "/etc/a.png is not under"),
    (pair(prompt=None), "text missing or unusable", 'no "prompt"'),
    (pair(chosen=None), "text missing or unusable", 'no "chosen"'),
    (pair(rejected=3), "text missing or unusable", '"rejected" is 3, not text'),
    (pair(rejected=" \n"), "text missing or unusable", '"rejected" is blank'),
    (pair(chosen="half \ud83d"), "text missing or unusable", r'"chosen" holds \ud83d, half of a character'),
    (pair(question="Why?"), "text missing or unusable", "prompt and question are different prompts"),
    (pair(prompt=[message("system", "Be good."), USER], chosen=[CAT], rejected=[DOG]),
     "conversation of another form", '"prompt" has 2 messages, expected one of the user'),
    (pair(prompt=[message("system", "Be good.")]), "conversation of another form",
     '"prompt" holds a "system" message where one of "user" is expected'),
    (pair(chosen=[USER, CAT, USER, CAT]), "conversation of another form", '"chosen" has 4 messages'),
    (pair(chosen=[]), "conversation of another form", '"chosen" has 0 messages'),
    (pair(chosen=[7]), "conversation of another form", "not a message with"),
    (pair(chosen=[message("assistant", [IMAGE])]), "conversation of another form", '"chosen" has 1 images'),
    (pair(prompt=[message("user", [IMAGE, IMAGE])]), "conversation of another form", '"prompt" has 2 images'),
    (pair(prompt=[message("user", [{"type": "video"}])]), "conversation of another form",
     '"prompt" holds {"type": "video"}, neither a text part nor an image part'),
    (pair(prompt=None, chosen=[USER, CAT], rejected=[message("user", "Why?"), DOG]),
     "text missing or unusable",
     "the user message of chosen and the user message of rejected are different prompts"),
    (pair(prompt="Look: <image> What?"), "special token in the text", '"prompt" contains <image>'),
    (pair(rejected="<image>"), "special token in the text", '"rejected" contains <image>'),
    (pair("no.png"), "image missing", "no image "),
    (pair("nul\0.png"), "image path missing or unclear", "which no file can be called"),
    (pair("\ud83d.png"), "image path missing or unclear", "which no file can be called"),
    (pair("folder"), "image unreadable", "folder: Is a directory"),
    (pair("empty.png"), "image unreadable", "empty.png: the file is empty"),
    (pair("text.png"), "image unreadable", "text.png: not an image in a format that is read"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "reason", "what"), BAD_RECORDS)
def test_every_kind_of_bad_record_has_its_message(
    tmp_path: Path, root: Path, value: Any, reason: str, what: str
) -> None:
    (root / "folder").mkdir()
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("hello")
    path = write_lines(tmp_path / "p.jsonl", pair(id="good"), value, pair("b.png", id="last"))
    refused = refusal(path, root, ImageOnly(), placeholders=("<image>",))
    first, heading, example, end = refused.split("\n")
    assert first == f"{path}: 1 of 3 records cannot be used."
    assert heading.startswith(f"{reason}: 1 record; ")
    assert example.startswith(f"  {path}: record 2 (line 2): ") and what in example
    assert end == "--on_bad_record drop leaves these records out and uses the other 2."

    loaded = load_records(path, root, ImageOnly(), placeholders=("<image>",), on_bad_record="drop")
    assert [record.pair.id for record in loaded.records] == ["good", "last"]
    assert (loaded.dropped, loaded.without_box) == (1, 0)
    assert example in loaded.report
    loaded.report.encode("utf-8")  # raises on half a character


def test_one_report_counts_all_reasons_and_shows_three_of_each(tmp_path: Path, root: Path) -> None:
    values = [pair(f"no{k}.png") for k in range(5)] + [pair("no.png", chosen=""), pair("b.png")]
    path = write_json(tmp_path / "p.json", values)
    loaded = load_records(path, root, ImageOnly(), on_bad_record="drop")
    assert loaded.report.split("\n") == [
        f"{path}: 6 of 7 records cannot be used.",
        'text missing or unusable: 1 record; give "prompt", "chosen" and "rejected" as text that is not blank',
        f'  {path}: record 6: "chosen" is blank',
        "image missing: 6 records; check --image_root and the path, or fetch the image",
        *(f"  {path}: record {k + 1}: no image {root}/no{k}.png" for k in range(3)),
        "Left out (--on_bad_record drop); records used: 1.",
    ]
    assert loaded.dropped == 6 and loaded.records[0].pair.id == 7


def test_nothing_left_is_an_error_even_when_dropping(tmp_path: Path, root: Path) -> None:
    path = write_json(tmp_path / "p.json", [pair("no.png")])
    refused = refusal(path, root, ImageOnly(), on_bad_record="drop")
    assert refused.endswith("no record is left: of 1, 1 are bad and 0 have no box.")
    assert "no image" in refused


def test_ids_are_compared_as_text(tmp_path: Path, root: Path) -> None:
    path = write_json(tmp_path / "p.json", [pair(id="2"), pair(), pair(id=3), pair(id="3")])
    loaded = load_records(path, root, ImageOnly(), on_bad_record="drop")
    # Record 2 has no id and so the number 2, which record 1 has already.
    assert [record.pair.id for record in loaded.records] == ["2", 3]


def test_paths_may_lead_through_links_and_be_absolute_below_the_root(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(root)
    names = ["images/a.png", f"{data}/images/a.png", "images/x/../a.png"]
    path = write_json(tmp_path / "p.json", [pair(name) for name in names])
    monkeypatch.chdir(data)
    for image_root in (data, Path()):
        assert len(load_records(path, image_root, ImageOnly()).records) == 3


# Folders


def test_the_layout_of_the_release(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [Path("data/ours_cmask_until_list5") / f"ours_cmask_until{share}" for share in (25, 50, 75, 100)]
    folders = (Path("data/images"), *shares)
    for level, folder in enumerate(folders):
        (tmp_path / folder / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4), (level, 0, 0)).save(tmp_path / folder / "a" / "x.png")
    monkeypatch.chdir(tmp_path)
    write_json(Path("p.json"), [pair("data/images/a/x.png")])
    for image_root in (Path(), tmp_path):
        (record,) = load_records(Path("p.json"), image_root, Folders(folders)).records
        assert [image.getpixel((0, 0))[0] for image in record.images.load()] == [0, 1, 2, 3, 4]
    assert load_records(Path("p.json"), Path(), Folders(folders)).records[0].images == ImageFiles(
        tuple(folder / "a/x.png" for folder in folders)
    )


def test_ranked_images_that_are_missing_unreadable_or_elsewhere(tmp_path: Path, root: Path) -> None:
    worse, worst = tmp_path / "worse", tmp_path / "worst"
    (root / "best").mkdir()
    for folder, colour in ((root / "best", "green"), (worse, "grey"), (worst, "black")):
        folder.mkdir(exist_ok=True)
        for name in ("good", "other", "broken"):
            Image.new("RGB", (4, 4), colour).save(folder / f"{name}.png")
    (worst / "other.png").rename(worst / "other.jpg")
    (worse / "broken.png").write_bytes(b"")
    names = ["best/good.png", "best/other.png", "best/broken.png", "a.png"]
    path = write_json(tmp_path / "p.json", [pair(name) for name in names])
    source = Folders((root / "best", worse, worst))
    loaded = load_records(path, root, source, on_bad_record="drop")
    assert [record.pair.img_path for record in loaded.records] == ["best/good.png"]
    assert "ranked image missing: 1 record; every folder" in loaded.report
    assert f"record 2: no image {worst}/other.png" in loaded.report
    assert f"record 3: {worse}/broken.png: the file is empty" in loaded.report
    assert f"record 4: {root}/a.png is not in {root}/best" in loaded.report


# Image lists


def line(record_id: Any, img_path: str | None, box: Any, **more: Any) -> dict[str, Any]:
    return {"id": record_id, "img_path": img_path, "box": box, "phrase": "cat", "score": 0.5} | more


def test_lists_match_by_id_in_any_order(tmp_path: Path, root: Path) -> None:
    path = write_json(tmp_path / "p.json", [pair("a.png", id=7), pair("b.png", id="x"), pair("c.png")])
    lists = write_lines(
        tmp_path / "l.jsonl",
        line("unused", "z.png", [0, 0, 1, 1]),
        line(3, "c.png", [0, 0, 3, 3]),  # a record without an id goes by its number
        line("x", "./b.png", [0.0, 0.0, 20.0, 10.0], verdict="verified"),
        line("7", None, [1, 2, 3, 4], verdict="unverified"),
    )
    loaded = load_records(path, root, BoxLists(lists, FIVE))
    boxes = (Box(1, 2, 3, 4), Box(0, 0, 20, 10), Box(0, 0, 3, 3))
    files = ("a.png", "b.png", "c.png")
    assert tuple(record.images for record in loaded.records) == tuple(
        MaskedBox(root / name, box, FIVE) for name, box in zip(files, boxes, strict=True)
    )


def test_lists_match_by_position_when_no_pair_has_an_id(tmp_path: Path, root: Path) -> None:
    path = write_json(tmp_path / "p.json", [pair("a.png"), pair("a.png")])
    lists = tmp_path / "l.jsonl"
    # Both lines bear ids of another numbering: the place counts.
    write_lines(lists, line(2, "a.png", [0, 0, 1, 1]), line(1, "a.png", [0, 0, 2, 2]))
    loaded = load_records(path, root, BoxLists(lists, FIVE))
    assert [record.images.box.right for record in loaded.records] == [1, 2]

    write_lines(lists, line(1, "a.png", [0, 0, 1, 1]))
    refused = refusal(path, root, BoxLists(lists, FIVE), on_bad_record="drop")
    assert "1 lines for the 2 records" in refused and 'Give every record of both files an "id"' in refused
    write_lines(lists, line(1, "a.png", [0, 0, 1, 1]), line(2, "b.png", [0, 0, 1, 1]))
    refused = refusal(path, root, BoxLists(lists, FIVE), on_bad_record="drop")
    assert 'record 2 (line 2): img_path is "b.png", but record 2 of' in refused
    assert 'Give every record of both files an "id"' in refused


def test_records_without_a_box_are_left_out_and_counted(tmp_path: Path, root: Path) -> None:
    # The fourth image cannot be read, which is why its line has no box: not a second complaint.
    names = ["a.png", "b.png", "c.png", "no.png", "no.png"]
    path = write_json(tmp_path / "p.json", [pair(name) for name in names])
    verdicts = ["verified", "no_object", "not_hideable", "error", "verified"]
    boxes = [[0, 0, 5, 5], None, [0, 0, 5, 5], None, [0, 0, 5, 5]]
    lines = [line(k, name, box, verdict=verdict)
             for k, (name, box, verdict) in enumerate(zip(names, boxes, verdicts, strict=True))]  # fmt: skip
    lists = write_lines(tmp_path / "l.jsonl", *lines)
    loaded = load_records(path, root, BoxLists(lists, FIVE), on_bad_record="drop")
    assert [record.pair.id for record in loaded.records] == [1]
    assert (loaded.dropped, loaded.without_box) == (1, 3)
    assert "record 5: no image" in loaded.report and "record 4" not in loaded.report

    write_lines(lists, *(line(k, name, None) for k, name in enumerate(names)))
    assert "0 are bad and 5 have no box" in refusal(path, root, BoxLists(lists, FIVE))


@pytest.mark.parametrize(
    ("values", "reason", "what"),
    [
        ([], "no image list", "l.jsonl has no line with id x"),
        ([line("x", "a.png", [0, 0, 1, 1])] * 2, "unusable image list", "more than once: records 2 and 3"),
        ([line("x", "b.png", [0, 0, 1, 1])], "unusable image list",
         'img_path is "b.png", the pair with this id has "a.png"'),
        ([{"id": "x", "img_path": "a.png"}], "unusable image list", 'no "box"'),
        ([line("x", "a.png", [0, 0, 1])], "unusable box", "box [0, 0, 1] is not a list of four numbers"),
        ([line("x", "a.png", "all")], "unusable box", 'box "all" is not a list of four numbers'),
        ([line("x", "a.png", [0, 0, 1, "1"])], "unusable box", 'holds "1", not a finite number'),
        ([line("x", "a.png", [0, 0, 1, True])], "unusable box", "holds true, not a finite number"),
        ([line("x", "a.png", [0, 0, 1, float("inf")])], "unusable box", "holds Infinity, not a finite"),
        ([line("x", "a.png", [0, 0, 1, float("nan")])], "unusable box", "holds NaN, not a finite number"),
        ([line("x", "a.png", [0, 0, 1, 10**99])], "unusable box", "reaches past the image"),
        ([line("x", "a.png", [0, 0, 1, 1.5])], "unusable box", "holds 1.5, not whole pixels"),
        ([line("x", "a.png", [3, 0, 3, 5])], "unusable box", "box [3, 0, 3, 5] holds no pixel: 0 x 5"),
        ([line("x", "a.png", [-1, 0, 3, 5])], "unusable box", "reaches past the image, 20 x 10 pixels"),
        ([line("x", "a.png", [0, 0, 21, 5])], "unusable box", "reaches past the image, 20 x 10 pixels"),
        ([line("x", "a.png", [0, 0, 5, 11])], "unusable box", "reaches past the image, 20 x 10 pixels"),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)  # fmt: skip
def test_every_kind_of_bad_line_has_its_message(
    tmp_path: Path, root: Path, values: list[Any], reason: str, what: str
) -> None:
    path = write_json(tmp_path / "p.json", [pair(id="y"), pair(id="x")])
    lists = write_lines(tmp_path / "l.jsonl", line("y", "a.png", [0, 0, 20, 10]), *values)
    loaded = load_records(path, root, BoxLists(lists, FIVE), on_bad_record="drop")
    _, heading, example, _ = loaded.report.split("\n")
    assert heading.startswith(f"{reason}: 1 record; ") and what in example
    assert ("l.jsonl: record 2 (line 2)" in example) == (len(values) == 1)
    assert [record.pair.id for record in loaded.records] == ["y"] and loaded.dropped == 1


def test_a_box_may_use_the_height_of_the_upright_image(tmp_path: Path, root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored 20 x 10, upright 10 x 20
    Image.new("RGB", (20, 10)).save(root / "a.jpg", exif=exif)
    path = write_json(tmp_path / "p.json", [pair("a.jpg"), pair("a.jpg")])
    boxes = [[0, 0, 10, 20], [0, 0, 20, 10]]
    lists = write_lines(tmp_path / "l.jsonl", *(line(k, "a.jpg", box) for k, box in enumerate(boxes)))
    loaded = load_records(path, root, BoxLists(lists, FIVE), on_bad_record="drop")
    assert [record.pair.id for record in loaded.records] == [1] and loaded.dropped == 1
    assert loaded.records[0].images.load()[4].size == (10, 20)


def test_a_bad_text_and_a_bad_box_of_one_record_are_both_reported(tmp_path: Path, root: Path) -> None:
    path = write_json(tmp_path / "p.json", [pair(id="x", chosen=" ")])
    lists = write_lines(tmp_path / "l.jsonl", line("x", "a.png", [0, 0, 99, 5]))
    refused = refusal(path, root, BoxLists(lists, FIVE))
    assert '"chosen" is blank' in refused and "reaches past the image" in refused


# Crops, and many records


def test_crops_depend_on_seed_and_id(tmp_path: Path, root: Path) -> None:
    path = write_json(tmp_path / "p.json", [pair(), pair(id="x")])
    loaded = load_records(path, root, Crops(seed=7))
    assert [record.images for record in loaded.records] == [
        ImageAndCrop(root / "a.png", "7/1"),
        ImageAndCrop(root / "a.png", "7/x"),
    ]


def test_thousands_of_records_are_checked_in_seconds_and_stay_in_order(tmp_path: Path, root: Path) -> None:
    image = (root / "a.png").read_bytes()
    names = [f"{k:04}.png" for k in range(2000)][::-1]
    for name in names:
        (root / name).write_bytes(image)
    path = write_lines(tmp_path / "p.jsonl", *(pair(name) for name in names))
    start = time.perf_counter()
    loaded = load_records(path, root, ImageOnly())
    assert time.perf_counter() - start < 10
    assert [record.pair.img_path for record in loaded.records] == names
