"""DASH-B: its numbers by hand on files of its form, its reading and ours."""

import json
from pathlib import Path

import pytest

from listwise_preference.files import read_records
from listwise_preference.scoring.answers import contained_yes_or_no

from .asking import generate_responses
from .conftest import SAMPLE
from .scoring_data import Score

NEGATIVE = {"coco": {"tie": ["1.png", "2.png"]}, "openimages_common": {"Cello": ["3.png"]}}
POSITIVE = {"coco": {"tie": ["1.jpg", "2.jpg"]}, "openimages_common": {"Cello": ["1.jpg"]}}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "dash_benchmark_neg.json").write_text(json.dumps(NEGATIVE))
    (tmp_path / "dash_benchmark_pos.json").write_text(json.dumps(POSITIVE))
    return tmp_path / "dash_benchmark_neg.json"


def responses(tmp_path: Path, *texts: str) -> Path:
    asked = [("tie", "no", "1.png"), ("tie", "no", "2.png"), ("Cello", "no", "3.png"),
             ("tie", "yes", "1.jpg"), ("tie", "yes", "2.jpg"), ("Cello", "yes", "1.jpg")]  # fmt: skip
    rows = [
        {"img_id": image, "object_name": name, "gt": right, "response": text}
        for (name, right, image), text in zip(asked, texts, strict=False)
    ]
    file = tmp_path / "responses.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "Yes"),
        ("No, his eyes are closed.", "Yes"),  # eyes
        ("No. Or rather yes", "Yes"),
        ("I cannot tell", "No"),  # cannot
        ("A man in the snow", "No"),  # snow
        ("A tie", None),
        ("", None),
    ],
)
def test_the_official_reading(text: str, read: str | None) -> None:
    assert contained_yes_or_no(text) == read


def test_both_readings_by_hand(score: Score, lists: Path, tmp_path: Path) -> None:
    """No, a no with "eyes" in it and yes where no is right; yes, "cannot" and a tie where yes is right.

    Official: TNR 1/3, TPR 1/3. By the first word the eyes are a no: TNR 2/3, and harmonic mean 2 * 2/9 / 1 = 4/9.
    """
    file = responses(tmp_path, "no", "No, his eyes are closed.", "yes", "Yes", "I cannot tell", "A tie")
    run = score("dash-b", file, "--questions", lists)
    rates = {key: run.result[key] for key in ("accuracy", "tnr", "tpr", "harmonic_mean")}
    assert rates == pytest.approx(dict.fromkeys(rates, 1 / 3))
    assert run.result["first_word"] == pytest.approx(
        {"accuracy": 1 / 2, "tnr": 2 / 3, "tpr": 1 / 3, "harmonic_mean": 4 / 9}
    )
    assert run.result["per_object"]["tie"]["tnr"] == 1 / 2
    assert run.result["per_object"]["tie"]["first_word"]["tnr"] == 1
    assert run.result["per_object"]["Cello"] == {
        "accuracy": 0, "tnr": 0, "tpr": 0, "harmonic_mean": None,
        "first_word": {"accuracy": 0, "tnr": 0, "tpr": 0, "harmonic_mean": None},
    }  # fmt: skip
    assert run.result["counts"] == {"answers": 6, "read_differently": 3, "unreadable": 1, "pictures": 6}
    assert "the first is 'No, his eyes are closed.'" in run.out


def test_broken_files_are_named(score: Score, lists: Path, tmp_path: Path) -> None:
    file = responses(tmp_path, "no", "no")
    assert "4 of 6 questions have no response; the first is object_name Cello, gt no" in (
        score("dash-b", file, "--questions", lists).err
    )
    assert "responses to 2 questions, and DASH-B has 2,682" in score("dash-b", file).err
    assert score("dash-b", file, "--partial").result["tnr"] == 1
    (tmp_path / "other.json").write_text('[{"id": 1, "response": "no"}]')
    assert (
        "not DASH-B responses: no object_name, gt, img_id in record 1" in score("dash-b", tmp_path / "other.json").err
    )
    assert "give dash_benchmark_neg.json" in score("dash-b", file, "--questions", tmp_path / "other.json").err
    lists.write_text('{"coco": ["1.png"]}')
    assert "not a list of DASH-B" in score("dash-b", file, "--questions", lists).err


def test_a_small_model_is_asked_and_scored(
    score: Score, lists: Path, tmp_path: Path, small_checkpoints: dict[str, Path]
) -> None:
    for part, content in (("neg", NEGATIVE), ("pos", POSITIVE)):
        for dataset, objects in content.items():
            for name, images in objects.items():
                folder = tmp_path / "images" / part / dataset / name
                folder.mkdir(parents=True)
                for image in images:
                    (folder / image).write_bytes((SAMPLE / "images" / "cat.jpg").read_bytes())
    output = tmp_path / "answers.json"
    generate_responses(small_checkpoints["llava"], "dash-b", lists, tmp_path / "images", output)
    rows = read_records(output)
    assert [list(row) for row in rows] == [["img_id", "object_name", "gt", "response", "answer"]] * 6  # as official
    scores = tmp_path / "small" / "scores" / "dash-b.json"
    result = score("dash-b", output, "--questions", lists, "--output", scores).result
    right = sum(row["answer"] == row["gt"] for row in rows)
    assert result["accuracy"] == right / 6
    assert "Can you see a {} in this image?" in score("table", scores).out
