"""What docs/security.md promises of strangers' files: paths, images inside records, formats, links, pipes, pages."""

import base64
import importlib
import io
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from listwise_preference.data.convert import convert
from listwise_preference.data.own_questions import read_own_questions
from listwise_preference.data.pairs import ImageOnly, load_records
from listwise_preference.data.ranked_images import FORMATS, image_kind, open_image, transposed_size
from listwise_preference.errors import DataError, ImageError, UserError
from listwise_preference.files import read_json, read_records, read_text
from listwise_preference.generation.questions import read_questions
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.models.adapters import check_folders
from listwise_preference.pages.page import Page
from listwise_preference.scoring import table
from listwise_preference.scoring.amber_page import report
from listwise_preference.scoring.amber_rules import load_amber
from listwise_preference.scoring.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
PAIR = {"prompt": "What is it?", "chosen": "A dog.", "rejected": "A cat."}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a.png and sub/b.png, and beside it one with secret.png."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("root/a.png", "root/sub/b.png", "other/secret.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    return folder


def written(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


# ---- paths ----


def asked_of(benchmark: str, question: dict[str, Any]) -> Callable[[Path, Path], Any]:
    form = BENCHMARKS[benchmark].questions
    assert form is not None

    def read(root: Path, image: Path) -> Any:
        path = str(image)
        record = {key: path if value == "IMAGE" else value for key, value in question.items()}
        return read_questions(form, written(root.parent / "q.json", [record]), root).questions[0].image

    return read


QUESTIONS = {
    "amber": asked_of("amber", {"id": 1, "image": "IMAGE", "query": "Describe this image."}),
    "pope": asked_of("pope", {"question_id": 1, "image": "IMAGE", "text": "Is there a dog?", "label": "yes"}),
    "beaf": asked_of("beaf", {"id": 0, "image": "IMAGE", "question": "Is there a dog in the image?", "orig_img": True,
                              "removed_q": True, "gt": "yes"}),
    "object-halbench": asked_of("object-halbench", {"question": "What?", "image_id": 1, "image": "IMAGE"}),
    "hallusionbench": asked_of("hallusionbench", {
        "category": "VD", "subcategory": "chart", "set_id": "0", "figure_id": "1", "question_id": "0",
        "visual_input": "1", "gt_answer": "1", "question": "Is it?", "filename": "IMAGE", "gt_answer_details": ""}),
    "of one's own": lambda root, image: read_own_questions(
        written(root.parent / "q.json", [{"image": str(image), "question": "What?"}]), root)[0].image,
}  # fmt: skip


@pytest.mark.parametrize("form", QUESTIONS)
def test_an_image_of_a_question_lies_under_the_root(root: Path, form: str) -> None:
    """Inside it is found; by ``..`` and by an absolute path out of the root it is refused, though it is there."""
    assert transposed_size(QUESTIONS[form](root, Path("sub/../a.png"))) == (8, 6)
    for out in (Path("../other/secret.png"), Path("sub/../../other/secret.png"), root.parent / "other" / "secret.png"):
        with pytest.raises(DataError, match=r"secret.png is not under|no image"):
            QUESTIONS[form](root, out)


def test_a_link_under_the_root_is_followed_wherever_it_leads(root: Path) -> None:
    """As docs/security.md says: to a file and to a folder, for pairs and for questions."""
    (root / "file.png").symlink_to(root.parent / "other" / "secret.png")
    (root / "folder").symlink_to(root.parent / "other")
    names = ["file.png", "folder/secret.png"]
    pairs = written(root.parent / "p.json", [PAIR | {"img_path": name} for name in names])
    assert [record.pair.img_path for record in load_records(pairs, root, ImageOnly()).records] == names
    for name in names:
        assert QUESTIONS["pope"](root, Path(name)) == root / name
        assert QUESTIONS["of one's own"](root, Path(name)) == root / name
    with pytest.raises(DataError, match="is not under"):  # by its name it has left the folder again
        QUESTIONS["pope"](root, Path("folder/../../other/secret.png"))


def test_the_report_on_amber_shows_no_image_from_elsewhere(root: Path, tmp_path: Path) -> None:
    for name in ("../other/secret.png", str(tmp_path / "other" / "secret.png")):
        with pytest.raises(ImageError, match=r"secret.png leads out of the folder of images"):
            report._draw_small(tmp_path, root, name, tmp_path / "small.jpg")
    assert report._draw_small(tmp_path, root, "sub/../a.png", tmp_path / "small.jpg")["width"] == 8


def test_ambers_ids_are_whole_numbers(tmp_path: Path) -> None:
    """A text among numbers could not be put in order, where ids that are missing are listed."""
    for id_ in ("12", "9" * 300, 1.5, True, None):
        written(tmp_path / "annotations.json", [{"id": id_, "type": "generative", "truth": [], "hallu": []}])
        with pytest.raises(DataError, match="is no whole number"):
            load_amber(tmp_path)


# ---- images inside records ----


def png() -> bytes:
    """More bytes than a file's name has letters."""
    content = io.BytesIO()
    Image.frombytes("RGB", (16, 16), random.Random(0).randbytes(768)).save(content, "PNG")
    return content.getvalue()


def test_an_image_inside_a_pair_is_written_by_a_name_of_ours(root: Path) -> None:
    """The name that the record gives it decides nothing; what is no image, or no format of ours, is not written."""
    before = files_below(root.parent)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    named = ["../../evil.png", "/tmp/evil.png", "sub/b.png", "x\x00y"]
    rows = [PAIR | {"image": {"bytes": base64.b64encode(png()).decode(), "path": name}} for name in named]
    rows += [
        PAIR | {"image": {"bytes": base64.b64encode(content).decode()}} for content in (b"#!/bin/sh\n", eps, b"<svg/>")
    ]
    file = written(root / "p.json", rows)
    result = convert([file], root, root / "inside")
    assert len(result.pairs) == len(named) and len(result.bad) == 3
    (name,) = {pair["img_path"] for pair in result.pairs}
    assert name.startswith("inside/") and (root / name).read_bytes() == png()
    assert files_below(root.parent) - before == {"root/p.json", f"root/{name}"}


def test_an_image_inside_a_question_is_written_by_its_coco_number(root: Path) -> None:
    inline, noise = base64.b64encode(png()).decode(), base64.b64encode(bytes(range(256)) * 2).decode()
    form = BENCHMARKS["object-halbench"].questions
    assert form is not None
    for number in ("../../7", "/tmp/x/7.png", 7):
        file = written(root.parent / "q.json", [{"question": "What?", "image_id": number, "image": inline}])
        assert read_questions(form, file, root).questions[0].image == root / "000000000007.jpg"
        (root / "000000000007.jpg").unlink()
    for wrong, says in ((noise, "base64 of something that is no image"), ("../" * 200, "neither a file name nor")):
        before = files_below(root.parent)
        file = written(root.parent / "q.json", [{"question": "What?", "image_id": 8, "image": wrong}])
        with pytest.raises(DataError, match=says):
            read_questions(form, file, root)
        assert files_below(root.parent) == before


# ---- what a file is ----


def eps(file: Path) -> None:
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")


def by_pillow(kind: str) -> Callable[[Path], None]:
    return lambda file: Image.new("RGB", (8, 6)).save(file, kind)


@pytest.mark.parametrize(
    "write", [eps, *map(by_pillow, ("EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS"))],
    ids=["eps", "Pillow's EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS"])  # fmt: skip
def test_images_of_other_formats_are_refused_whatever_their_name(root: Path, write: Callable[[Path], None]) -> None:
    """Pillow would take them, EPS by starting Ghostscript."""
    file = root / "a.png"
    write(file)
    for read in (open_image, transposed_size):
        with pytest.raises(ImageError, match="not an image in a format that is read: JPEG, PNG, WEBP, GIF"):
            read(file)
    assert image_kind(file.read_bytes()) is None


@pytest.mark.parametrize("kind", FORMATS)
def test_the_formats_that_are_named_are_read(root: Path, kind: str) -> None:
    file = root / "a.image"
    Image.new("RGB", (16, 16), (255, 0, 0)).save(file, kind)
    assert transposed_size(file) == open_image(file).size == (16, 16) and image_kind(file.read_bytes()) == kind


def test_a_pipe_is_refused_by_every_reader(root: Path) -> None:
    """Nobody writes into it: whoever opened it would wait for good."""
    pipe = root / "pipe.json"
    os.mkfifo(pipe)
    os.mkfifo(root / "pipe.png")
    (root / "adapter").mkdir()
    os.mkfifo(root / "adapter" / "adapter_config.json")
    pairs = written(root / "p.json", [PAIR | {"img_path": "pipe.png"}])
    pope = BENCHMARKS["pope"].questions
    assert pope is not None
    readers: list[Callable[[], object]] = [
        lambda: read_json(pipe),
        lambda: read_records(pipe),
        lambda: read_text(pipe),
        lambda: load_records(pipe, root, ImageOnly()),
        lambda: load_records(pairs, root, ImageOnly()),
        lambda: convert([pipe], root, root / "inside"),
        lambda: Annotations(pipe),
        lambda: read_questions(pope, pipe, root),
        lambda: read_own_questions(pipe, root),
        lambda: QUESTIONS["pope"](root, Path("pipe.png")),
        lambda: QUESTIONS["of one's own"](root, Path("pipe.png")),
        lambda: table.collect([pipe], ["a"]),
    ]
    for read in readers:
        with pytest.raises(UserError, match="not a file that ends, but a pipe or device"):
            read()
    with pytest.raises(UserError, match="holds no adapter"):
        check_folders(".", root / "adapter")


VOC = "<annotation><filename>{}</filename><object><name>dog</name></object></annotation>"
CVAT = '<annotations><image id="0" name="{}" width="8" height="6"/></annotations>'


@pytest.mark.parametrize("form", [VOC, CVAT], ids=["VOC", "CVAT"])
@pytest.mark.parametrize(
    "entities",
    ['<!ENTITY x SYSTEM "file:///etc/hostname">', '<!ENTITY a "ha"><!ENTITY x "&a;&a;&a;&a;">'],
    ids=["a file", "one in another"],
)
def test_xml_with_entities_of_its_own_is_refused(tmp_path: Path, form: str, entities: str) -> None:
    file = tmp_path / "a.xml"
    file.write_text(f"<!DOCTYPE annotation [{entities}]>{form.format('&x;')}")
    with pytest.raises(DataError, match=r"a.xml: entities of its own \(<!ENTITY\) are not read"):
        Annotations(file)
    file.write_text(form.format("a&amp;b.png"))  # XML's own five are
    Annotations(file, ["a&b.png"], {"a&b.png": (8, 6)})


# ---- pages ----


def test_every_page_that_is_written_carries_a_policy(tmp_path: Path) -> None:
    """What the programs' sources begin a page in is found, and every kind of page that they make of it is written."""
    sources = [*(ROOT / "listwise_preference").rglob("*"), *(ROOT / "benchmarks").rglob("*"), *ROOT.glob("*.py")]
    texts = {
        file: file.read_text("utf-8") for file in sources if file.suffix in (".py", ".html", ".js", ".svg", ".txt")
    }
    assert {file.name for file, text in texts.items() if "<html" in text.lower()} == {"page.html", "table.py"}
    pages = [file for file, text in texts.items() if re.search(r"^\w+ = Page\(", text, re.MULTILINE)]
    assert len(pages) >= 5
    for file in pages:
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        (page,) = [value for value in vars(module).values() if isinstance(value, Page)]
        page.start(tmp_path / page.name)
        head = (tmp_path / page.name / "index.html").read_text("utf-8").partition("</head>")[0]
        policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', head)
        server = "connect-src 'self'; " if page.asks else ""
        assert policy == [
            "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
            f"{server}base-uri 'none'; form-action 'none'"
        ]
        assert head.index("Content-Security-Policy") < head.index("<script")


def test_the_page_of_a_table_has_its_policy_before_a_strangers_name(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    scores = {"benchmark": "pope", "accuracy": 0.5, "f1": 0.5, "counts": {"answers": 2}, "protocol": {"rules": "POPE"},
              "answers": {"file": "a.json", "sha256": "0" * 64}, "versions": {}}  # fmt: skip
    runs, _ = table.collect([written(tmp_path / "s.json", scores)], [name])
    page = table.page(table.build(runs, [], 0, 0))
    assert page.index("Content-Security-Policy") < page.index("&lt;script&gt;") and "<script" not in page
