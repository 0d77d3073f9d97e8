"""Pairs in the forms of other programs and data sets: each record below is in the shape that the program documents."""

import base64
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from listwise_preference.data import convert as program
from listwise_preference.data.pairs import ImageOnly, Pair, load_records
from listwise_preference.data.ranked_images import Box
from listwise_preference.data.sources import check_builder, find_sources, iterate_rows
from listwise_preference.errors import DataError
from listwise_preference.image_lists.export import EXPORTS, Usable

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

Record = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root with a.png and b.png."""
    folder = tmp_path / "root"
    folder.mkdir()
    for name, colour in (("a", "green"), ("b", "red")):
        Image.new("RGB", (20, 10), colour).save(folder / f"{name}.png")
    return folder


def write_lines(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def user(text: str = "<image>\nWhat is it?") -> Record:
    return {"role": "user", "content": text}


def says(text: str) -> Record:
    return {"role": "assistant", "content": text}


def human(text: str = "What is it?<image>") -> Record:
    return {"from": "human", "value": text}


def gpt(text: str) -> Record:
    return {"from": "gpt", "value": text}


ONE: Record = {"images": ["a.png"]}
FORMS: dict[str, Record] = {
    "LLaMA-Factory, ShareGPT": ONE | {"conversations": [human()], "chosen": gpt("A cat."), "rejected": gpt("A dog.")},
    "LLaMA-Factory, ShareGPT in OpenAI's spelling": ONE
    | {"messages": [user()], "chosen": says("A cat."), "rejected": says("A dog."), "system": ""},
    "LLaMA-Factory, Alpaca": ONE
    | {"instruction": "<image>What is it?", "input": "", "chosen": "A cat.", "rejected": "A dog.", "history": []},
    "ms-swift, rejected_response": ONE | {"messages": [user(), says("A cat.")], "rejected_response": "A dog."},
    "ms-swift, rejected_messages": ONE
    | {
        "messages": [user(), says("A cat.")],
        "rejected_messages": [user(), says("A dog.")],
        "rejected_images": ["a.png"],
    },
    "RLHF-V": {
        "ds_name": "RLHF-V",
        "image": {"bytes": None, "path": "a.png"},
        "text": json.dumps({"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}),
    },
    "RLAIF-V": {"image": "a.png", "question": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "idx": 3},
    "LLaVA-RLHF, the second is better": {
        "image": "a.png",
        "conversations": [human()],
        "output_1": {"from": "llm", "value": "A dog."},
        "output_2": {"from": "llm", "value": "A cat."},
        "preference": 2,
    },
    "POVID": {
        "image": "a.png",
        "conversations": [human(), gpt("A cat.")],
        "rejected_conversations": [human(), gpt("A dog.")],
    },
    "several rejected, the first": {
        "image": "a.png",
        "prompt": "What is it?",
        "chosen": "A cat.",
        "rejected": ["A dog.", "A cow."],
    },
    "ms-swift, query and response": ONE
    | {"query": "<image>What is it?", "response": "A cat.", "rejected_response": "A dog.", "history": []},
    "MMPR": {"image": "a.png", "question": "<image>\nWhat is it?", "chosen": "A cat.", "rejected": "A dog."},
    "TRL, a mark in the message": ONE
    | {"prompt": [user()], "chosen": [says("A cat.")], "rejected": [user(), says("A dog.")]},
    "image folder": {"file_name": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
}
EXPECTED = ("What is it?", "A cat.", "A dog.")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(tmp_path: Path, root: Path, form: str) -> None:
    file = write_lines(tmp_path / "p.jsonl", FORMS[form])
    (record,) = load_records(file, root, ImageOnly(), placeholders=("<image>",)).records
    assert record.pair == Pair(1, "a.png", *EXPECTED)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ONE | {"messages": [user("Hi"), says("Hi."), user(), says("A cat.")], "rejected_response": "A dog."},
         '"messages" has 4 messages (user, assistant, user, assistant), expected one message of the user'),
        (ONE | {"messages": [{"role": "system", "content": "Be good."}, user(), says("A")], "rejected_response": "B"},
         '"messages" has 3 messages (system, user, assistant)'),
        (ONE | {"conversations": [human()], "chosen": gpt("A"), "rejected": gpt("B"), "system": "Be good."},
         '"system" is "Be good."'),
        (ONE | {"conversations": [human("<image><image>Which?")], "chosen": gpt("A"), "rejected": gpt("B")},
         "the prompt has 2 marks <image>"),
        (ONE | {"conversations": [human("See <image> here?")], "chosen": gpt("A"), "rejected": gpt("B")},
         "<image> stands inside the prompt"),
        ({"images": ["a.png", "b.png"], "messages": [user(), says("A")], "rejected_response": "B"},
         '"images" is ["a.png", "b.png"], not the path of one image'),
        (ONE | {"messages": [user(), says("A")], "rejected_images": ["b.png"]},
         '"rejected_images" is another image than "images"'),
        (FORMS["LLaVA-RLHF, the second is better"] | {"preference": 0}, '"preference" is 0, neither 1 nor 2'),
        (FORMS["POVID"] | {"rejected_conversations": [human("Who?"), gpt("B")]}, "are different"),
        (FORMS["LLaMA-Factory, Alpaca"] | {"history": [["a", "b"]]}, '"history" has earlier turns'),
        (FORMS["ms-swift, query and response"] | {"history": [["a", "b"]]}, '"history" has earlier turns'),
        (FORMS["RLAIF-V"] | {"image": "https://example.com/a.png"}, "is https://example.com/a.png; download the image"),
        (FORMS["RLAIF-V"] | {"image": "data:image/png;base64,not base64"}, "is not base64 of an image"),
    ],
)  # fmt: skip
def test_what_the_method_cannot_use_is_refused_with_the_reason(
    tmp_path: Path, root: Path, value: Record, message: str
) -> None:
    with pytest.raises(DataError) as refused:
        load_records(write_lines(tmp_path / "p.jsonl", value), root, ImageOnly())
    assert message in str(refused.value)


@pytest.mark.parametrize("program", ["trl", "ms-swift", "llama-factory"])
def test_what_is_exported_for_a_program_is_read_again(tmp_path: Path, root: Path, program: str) -> None:
    """The programs themselves train on these rows (tests/external); image pairs are no pairs of responses."""
    usable = Usable(Pair("x", "a.png", *EXPECTED), root / "a.png", Box(0, 0, 9, 9))
    rows = EXPORTS[program].rows(usable, [str(root / "a.png"), str(root / "b.png")])
    result = load_records(write_lines(tmp_path / "p.jsonl", *rows), root, ImageOnly(), on_bad_record="drop")
    assert [record.pair for record in result.records] == [Pair(1, str(root / "a.png"), *EXPECTED)]
    assert result.dropped == len(rows) - 1 == (program == "ms-swift")


# Responses with ratings


def rated(*responses: tuple[str, str], **more: Any) -> Record:
    """VLFeedback's row: a record of lists, ratings as text under their aspect."""
    annotations = [{"Helpfulness": {"Rating": one, "Rationale": ""}} for _, one in responses]
    texts = [text for text, _ in responses]
    completions = {"annotations": annotations, "response": texts, "model": ["m"] * len(texts)}
    return {"prompt": "What is it?", "image": "a.png", "completions": completions} | more


def converted(files: Sequence[Path], root: Path, limit: int = 1) -> program.Converted:
    return program.convert(files, root, root / "unpacked", limit=limit)


def test_the_best_against_the_worst_and_ties_and_single_ones_are_counted(tmp_path: Path, root: Path) -> None:
    """Ratings 4, 1, 3, N/A: the pairs are 4-1 (3 apart), then 3-1 (2), then 4-3 (1)."""
    four = rated(("four", "4"), ("one", "1"), ("three", "3"), ("none", "N/A"))
    tie, single = rated(("x", "2"), ("y", "2")), rated(("x", "2"), ("y", "N/A"))
    file = write_lines(tmp_path / "p.jsonl", four, tie, single)
    one, many = converted([file], root), converted([file], root, limit=5)
    assert [(pair["chosen"], pair["rejected"]) for pair in one.pairs] == [("four", "one")]
    assert one.left_out == {"responses without a rating": 1, "responses in no pair": 1}
    expected = [("four", "one"), ("three", "one"), ("four", "three")]
    assert [(pair["chosen"], pair["rejected"]) for pair in many.pairs] == expected
    assert [pair["id"] for pair in many.pairs] == [1, "1-2", "1-3"]
    assert [reason for bad in many.bad for reason, _ in bad.problems] == ["no preference"] * 2
    assert "all 2 responses are rated 2" in many.bad[0].problems[0][1]
    assert "1 of 2 responses have a rating" in many.bad[1].problems[0][1]


def test_a_rating_is_the_mean_of_its_aspects_or_the_score(tmp_path: Path, root: Path) -> None:
    """Means 3.5 and 3; a list of records in place of a record of lists."""
    aspects = [({"a": {"Rating": "5"}, "b": {"Rating": "2"}}, "first"), ({"a": {"Rating": 3}, "b": {"Rating": 3}}, "x")]
    means = [{"annotations": given, "response": text} for given, text in aspects]
    scores = [{"score": 0.1, "response": "x"}, {"score": 0.7, "response": "first"}]
    rows = [{"prompt": "p", "image": "a.png", "completions": one} for one in (means, scores)]
    pairs = converted([write_lines(tmp_path / "p.jsonl", *rows)], root).pairs
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("first", "x")] * 2


# Kinds of files


def test_texts_that_look_like_other_things_stay_texts(tmp_path: Path, root: Path) -> None:
    """In JSON lines and CSV; and a list of messages that first appears behind 10 MB."""
    texts = {"image": "a.png", "question": "007", "chosen": "null", "rejected": "1e5"}
    lines = write_lines(tmp_path / "p.jsonl", texts, texts | {"question": 7})
    table = tmp_path / "p.csv"
    table.write_bytes(
        b'\xef\xbb\xbfimage;question;chosen;rejected\r\na.png;007;null;1e5\r\n\r\na.png;"a\nb";[1];"{}"\r\n'
    )
    first = Pair(1, "a.png", "007", "null", "1e5")
    loaded = load_records(lines, root, ImageOnly(), on_bad_record="drop")
    assert [record.pair for record in loaded.records] == [first] and '"question" is 7, not text' in loaded.report
    pairs = [record.pair for record in load_records(table, root, ImageOnly()).records]
    assert pairs == [first, Pair(2, "a.png", "a\nb", "[1]", "{}")]

    long = FORMS["ms-swift, rejected_response"] | {"note": "x" * 1000}
    late = long | {"rejected_messages": FORMS["ms-swift, rejected_messages"]["rejected_messages"]}
    del late["rejected_response"]
    file = write_lines(tmp_path / "long.jsonl", *[long | {"rejected_messages": None}] * 11_000, late)
    assert file.stat().st_size > 10 * 2**20
    assert [row.value for row in iterate_rows(file)][-1] == late


def test_a_table_holds_messages_as_json_and_says_which_line_is_ragged(tmp_path: Path, root: Path) -> None:
    value = FORMS["ms-swift, rejected_response"]
    table = tmp_path / "p.tsv"
    cells = [json.dumps(value[key]).replace('"', '""') for key in ("messages", "images")]
    head = "messages\timages\trejected_response"
    table.write_text(f'{head}\n"{cells[0]}"\t"{cells[1]}"\tA dog.\n', encoding="utf-8")
    assert [one.pair for one in load_records(table, root, ImageOnly()).records] == [Pair(1, "a.png", *EXPECTED)]
    for text, message in {
        f"{head}\na\tb\nc": "line 2: 2 cells where the first line names 3 columns",
        "no table": "does not name columns",
        f"{head}\n": "no records in it",
        "PK\3\4": "packed by zip; unpack it first",
    }.items():
        table.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            load_records(table, root, ImageOnly())
    for several in (tmp_path, tmp_path / "*.tsv"):
        with pytest.raises(DataError, match="one file is read here; make one of several: python -m"):
            load_records(several, root, ImageOnly())


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(stream, "PNG")
    return stream.getvalue()


def parquet_rows() -> list[Record]:
    """RLAIF-V's columns: the image is a record of bytes and the name it had."""
    texts = {"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    return [{"image": {"bytes": png(one), "path": "x.jpg"}, **texts} for one in ("blue", "red", "blue")]


def test_images_inside_records_are_unpacked_once_each(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "p.data"  # told by its content, not by its name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(parquet_rows()), file)
    with pytest.raises(DataError, match="image inside the record: 3 records; unpack the images: python -m"):
        load_records(file, tmp_path, ImageOnly())
    encoded = write_lines(
        tmp_path / "p.jsonl",
        FORMS["RLAIF-V"] | {"image": f"data:image/png;base64,{base64.b64encode(png('red')).decode()}"},
        FORMS["RLAIF-V"] | {"image": base64.b64encode(png("red")).decode()},
        FORMS["RLAIF-V"] | {"image": "data:image/png;base64,AAAA"},
    )
    result = program.convert([file, encoded], tmp_path, tmp_path / "out" / "images")
    blue, red, again, also_red, bare = [pair["img_path"] for pair in result.pairs]
    assert blue == again != red == also_red == bare and blue.startswith("out/images/") and blue.endswith(".png")
    with Image.open(tmp_path / blue) as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
    assert len(result.unpacked) == 2 and "the image in the record" in result.bad[0].problems[0][1]
    with pytest.raises(DataError, match="not under --image_root"):
        program.convert([file], tmp_path / "out", tmp_path / "images")


def test_a_folder_of_datasets_and_json_read_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    features = datasets.Features({name: datasets.Value("string") for name in ("question", "chosen", "rejected")})
    features["images"] = datasets.List(datasets.Image())
    rows = [row | {"images": [row["image"]]} for row in parquet_rows()]
    for row in rows:
        del row["image"]
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(train=saved).save_to_disk(str(tmp_path / "saved"))
    (folder,) = find_sources([str(tmp_path / "saved")])
    result = program.convert([folder], tmp_path, tmp_path / "images")
    assert len(result.pairs) == 3 and len(result.unpacked) == 2
    with pytest.raises(DataError, match="no split test; --split takes one of train"):
        list(iterate_rows(folder, "test"))

    lines = write_lines(tmp_path / "p.jsonl", *({"chosen": text} for text in ("007", "null")))
    read = datasets.load_dataset("json", data_files=str(lines), split="train", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="consists of json files; `datasets` changes texts"):
        check_builder(read, "owner/name")
    assert "when it read them" not in caplog.text
    read.save_to_disk(str(tmp_path / "of json"))
    list(iterate_rows(tmp_path / "of json"))
    assert "of json was made of json files; `datasets` changed texts" in caplog.text

    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match="pip install datasets"):
        list(iterate_rows("owner/name"))


def test_many_files_by_name_and_ids_that_repeat(tmp_path: Path, root: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("1.jsonl", "2.jsonl", "3.txt"):
        write_lines(tmp_path / "data" / name, FORMS["RLAIF-V"] | {"id": "x"}, FORMS["RLAIF-V"])
    by_sign = find_sources([str(tmp_path / "data" / "*.jsonl")])
    assert by_sign == find_sources([str(tmp_path / "data")]) == [tmp_path / "data" / f"{n}.jsonl" for n in (1, 2)]
    result = converted([Path(str(one)) for one in by_sign], root)
    assert [pair["id"] for pair in result.pairs] == ["x", 2, "x-2", 4] and result.renamed == 1
    metadata = root / "train" / "metadata.jsonl"  # of an image folder, whose names are relative to this file
    metadata.parent.mkdir()
    write_lines(metadata, FORMS["image folder"] | {"file_name": "c.png"}).with_name("c.png").write_bytes(png("green"))
    assert [pair["img_path"] for pair in converted([metadata], root).pairs] == ["train/c.png"]
    metadata.unlink()
    for wrong in ("no.json", "no*.json", str(root)):
        with pytest.raises(DataError, match=r"no such file|no file has such a name|file in this folder"):
            find_sources([wrong])


# The program


def test_the_program_writes_pairs_and_a_page_of_the_first(
    tmp_path: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    context: "BrowserContext",
) -> None:
    same = FORMS["RLAIF-V"] | {"rejected": "A cat."}
    file = write_lines(tmp_path / "p.jsonl", *FORMS.values(), same, FORMS["RLAIF-V"] | {"image": "no.png"})
    to = tmp_path / "out" / "pairs.jsonl"
    program.main([str(file), "--to", str(to), "--image_root", str(root), "--pairs_per_image", "2", "--page_pairs", "5"])
    loaded = load_records(to, root, ImageOnly(), placeholders=("<image>",)).records
    assert len(loaded) == len(FORMS) + 1  # two of the record with two rejected responses
    assert {record.pair.rejected for record in loaded} == {"A dog.", "A cow."}
    assert "  rejected A dog." in capsys.readouterr().out
    assert "chosen and rejected are the same text" in caplog.text and "no image" in caplog.text

    page = context.new_page()
    page.goto((tmp_path / "out" / "pairs_page" / "index.html").as_uri())
    assert page.locator("article.pair").count() == 5
    assert page.locator("#counts").inner_text().startswith("the first 5 of 15 pairs from 16 records")
    assert page.locator(".left-out li").count() == 2
    widths = page.locator("article img").evaluate_all("images => images.map(image => image.getAttribute('width'))")
    assert widths == ["20"] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p.jsonl", "--to", "p.jsonl"], "is one of the files to read"),
        (["bad.jsonl", "--to", "o.jsonl"], "no pair in it"),
        (["p.jsonl", "--to", "o.jsonl", "--image_root", "none"], "none: no such folder"),
        (["p.jsonl", "--to", "o.jsonl", "--page", "."], "holds other files"),
    ],
)
def test_nothing_is_written_where_something_is_wrong(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "p.jsonl", FORMS["RLAIF-V"] | {"image": "root/a.png"})
    write_lines(tmp_path / "bad.jsonl", {"image": "root/a.png"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        program.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
