"""BEAF: its numbers by hand on a file of its form; a small model asked before and after; its images for the probe."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from listwise_preference.files import read_records

from .asking import generate_responses
from .scoring_data import Score


def asked(image: str, name: str, right: str, removed: bool) -> dict[str, Any]:
    question = f"Is there a {name} in the image?"
    return {"image": image, "question": question, "orig_img": image.endswith(".jpg"), "removed_q": removed, "gt": right}


# A train and a truck are removed, one in each changed image; a car stays and a spoon never was there.
QUESTIONS = [
    {"id": number, **one}
    for number, one in enumerate(
        [
            asked("x.jpg", "train", "yes", True), asked("x.jpg", "truck", "yes", True),
            asked("x.jpg", "car", "yes", False), asked("x.jpg", "spoon", "no", False),
            asked("x_00.png", "train", "no", True), asked("x_00.png", "truck", "yes", True),
            asked("x_00.png", "car", "yes", False), asked("x_00.png", "spoon", "no", False),
            asked("x_01.png", "train", "yes", True), asked("x_01.png", "truck", "no", True),
            asked("x_01.png", "car", "yes", False), asked("x_01.png", "spoon", "no", False),
        ]
    )
]  # fmt: skip
SIZE = (48, 40)
PLACES = {"train": (4, 4, 16, 12), "truck": (24, 6, 36, 18), "car": (8, 24, 20, 34)}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The questions, their images and COCO annotations."""
    (tmp_path / "beaf_qna.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "images").mkdir()
    for name, gone in (("x.jpg", ""), ("x_00.png", "train"), ("x_01.png", "truck")):
        image = Image.new("RGB", SIZE, "green")
        for thing, place in PLACES.items():
            if thing != gone:
                ImageDraw.Draw(image).rectangle(place, fill="white")
        image.save(tmp_path / "images" / name)
    categories = [{"id": number, "name": name} for number, name in enumerate(PLACES)]
    annotations = [
        {"image_id": 7, "category_id": number, "bbox": [left, top, right - left, bottom - top]}
        for number, (left, top, right, bottom) in enumerate(PLACES.values())
    ]
    annotations.append({"image_id": 7, "category_id": 0, "bbox": [30, 30, 4, 4]})  # another train
    images = [{"id": 7, "file_name": "x.jpg", "width": SIZE[0], "height": SIZE[1]}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def responses(world: Path, texts: str) -> Path:
    """One letter for each question: y, n, or - for neither."""
    words = {"y": "Yes.", "n": "No.", "-": "A green image"}
    file = world / "responses.json"
    file.write_text(json.dumps([{"id": number, "answer": words[one]} for number, one in enumerate(texts)]))
    return file


def test_numbers_by_hand(score: Score, world: Path) -> None:
    """Of two removals the train's is understood and the truck is still seen: TU 50, SB+ 50.

    The car is seen before, not seen in the first changed image, seen in the second; the spoon is never seen: of four
    unchanged questions one is right once and wrong once, ID 25. That the truck is there where the train was removed is
    a question like any other, and no change. Of 12 questions the truck (9) and the car (6) are wrong: accuracy 10/12.
    """
    file = responses(world, "yyyn" + "nynn" + "yyyn")
    run = score("beaf", file, "--questions", world / "beaf_qna.json")
    result = run.result
    assert {key: result[key] for key in ("tu", "ig", "sb", "sb_positive", "sb_negative", "id")} == {
        "tu": 50, "ig": 0, "sb": 50, "sb_positive": 50, "sb_negative": 0, "id": 25,
    }  # fmt: skip
    assert result["f1_tu_id"] == pytest.approx(2 * 50 * 75 / 125)
    assert result["accuracy"] == pytest.approx(100 * 10 / 12)
    assert result["first_word"]["tu"] == 50
    assert result["counts"] == {
        "answers": 12, "removals": 2, "read_differently": 0, "unreadable": 0, "pictures": 1,
    }  # fmt: skip
    all_no = score("beaf", responses(world, "n" * 12), "--questions", world / "beaf_qna.json").result
    assert (all_no["tu"], all_no["sb_negative"], all_no["id"], all_no["precision"]) == (0, 100, 0, None)
    turned = score("beaf", responses(world, "nnyn" + "yyyn" + "yyyn"), "--questions", world / "beaf_qna.json").result
    assert turned["ig"] == 100


def test_neither_yes_nor_no_is_wrong_and_named(score: Score, world: Path) -> None:
    """The official program would take the response before it: a yes to the train in its place."""
    run = score("beaf", responses(world, "yyyn" + "-yyn" + "ynyn"), "--questions", world / "beaf_qna.json")
    assert (run.result["tu"], run.result["sb_positive"]) == (50, 50)
    assert "neither yes nor no, counted as wrong: 1 (ids 4)" in run.out


def test_broken_files_are_named(score: Score, world: Path) -> None:
    file, questions = responses(world, "yy"), world / "beaf_qna.json"
    assert "10 of 12 questions have no response; the first is id 2" in score("beaf", file, "--questions", questions).err
    partial = score("beaf", file, "--questions", questions, "--partial").result
    assert (partial["tu"], partial["recall"]) == (None, 100)
    questions.write_text(json.dumps(QUESTIONS[4:]))
    every = responses(world, "y" * 12)
    assert "the same is not asked before the change for id 4-11" in (
        score("beaf", every, "--questions", questions, "--partial").err
    )
    questions.write_text('[{"id": 1, "image": "x.jpg"}]')
    assert "not beaf_qna.json" in score("beaf", file, "--questions", questions).err


def test_a_small_model_is_asked_and_scored(score: Score, world: Path, small_checkpoints: dict[str, Path]) -> None:
    questions, output = world / "beaf_qna.json", world / "answers.json"
    generate_responses(small_checkpoints["llava"], "beaf", questions, world, output)
    assert [list(row) for row in read_records(output)] == [["id", "answer"]] * 12
    scores = world / "small" / "scores" / "beaf.json"
    result = score("beaf", output, "--questions", questions, "--output", scores).result
    # Each removal is one of the four, by either reading, unless before and after are both unreadable.
    for read in (result, result["first_word"]):
        assert read["tu"] + read["ig"] + read["sb"] == 100
    assert "| small" in score("table", scores).out


def test_its_images_feed_the_probe(score: Score, world: Path, small_checkpoints: dict[str, Path]) -> None:
    out = world / "out"
    made = score("beaf-pairs", world / "beaf_qna.json", "--image_root", world,
                 "--coco_annotations", world / "instances.json", "--output", out)  # fmt: skip
    assert "2 pairs, their boxes and images written to" in made.out
    assert read_records(out / "pairs.json")[0] == {
        "id": "x_00", "img_path": "00/x.jpg", "prompt": "Is there a train in the image?",
        "chosen": "Yes, there is a train in the image.", "rejected": "No, there is no train in the image.",
    }  # fmt: skip
    lists = read_records(out / "image_lists.jsonl")
    assert [one["box"] for one in lists] == [[4, 4, 34, 34], [24, 6, 36, 18]]  # both trains in one box
    assert (out / "after" / "01" / "x.jpg").read_bytes() == (world / "images" / "x_01.png").read_bytes()
    run = score("awareness", "--pairs", out / "pairs.json", "--image_root", out / "before",
                "--image_lists", out / "image_lists.jsonl", "--removed_root", out / "after", "--bootstrap", 20,
                "--model_name_or_path", small_checkpoints["llava"], "--adapter", "none",
                "--dtype", "float32")  # fmt: skip
    assert "removed" in run.result["changes"]["policy"]
    (world / "images" / "x_01.png").unlink()
    assert "1 of 2 removals cannot be used:\n  id 9: no image" in (
        score("beaf-pairs", world / "beaf_qna.json", "--image_root", world,
              "--coco_annotations", world / "instances.json", "--output", out).err
    )  # fmt: skip


def test_an_image_name_that_leads_out_of_its_folder_is_refused(score: Score, world: Path) -> None:
    """Images are there by that name; written by it, the pair's would replace one above the output folder."""
    text = (world / "beaf_qna.json").read_text().replace('"image": "x', '"image": "../../../x')
    (world / "beaf_qna.json").write_text(text)
    root = world / "a" / "b" / "c"
    root.mkdir(parents=True)
    for image in (world / "images").iterdir():
        (world / image.name).write_bytes(image.read_bytes())
    before = {file: file.read_bytes() for file in world.iterdir() if file.is_file()}
    run = score("beaf-pairs", world / "beaf_qna.json", "--image_root", root,
                "--coco_annotations", world / "instances.json", "--output", world / "out")  # fmt: skip
    assert "../../../x_00.png leads out of its folder" in run.err and run.status == 2
    assert {file: file.read_bytes() for file in world.iterdir() if file.is_file()} == before
