"""HallusionBench: equal to the official functions; every rule by hand; a small model is asked."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from listwise_preference.files import read_records
from listwise_preference.scoring import hallusionbench
from listwise_preference.scoring.hallusionbench import Judged, Verdict, failure, metrics

from .asking import generate_responses
from .conftest import SAMPLE
from .scoring_data import Score, chat_server

DATA = Path(__file__).parent / "data" / "hallusionbench"


@pytest.fixture
def official(tmp_path: Path) -> tuple[Path, Path]:
    """The questions and the judged responses."""
    for name in ("HallusionBench", "answers_judged"):
        (tmp_path / f"{name}.json").write_bytes(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))
    return tmp_path / "HallusionBench.json", tmp_path / "answers_judged.json"


def test_official_output(score: Score, official: tuple[Path, Path], tmp_path: Path) -> None:
    questions, answers = official
    written = tmp_path / "scores.json"
    assert score("hallusionbench", answers, "--data", questions, "--output", written).status == 0
    result = json.loads(written.read_text())
    for subset, expected in json.loads((DATA / "official.json").read_text())["scores"].items():
        ours = result[subset]
        for kind in ("question", "pair", "figure", "easy", "hard"):
            share = 100 * expected[kind]["correct"] / expected[kind]["total"]
            assert ours[f"{kind}_accuracy"] == pytest.approx(share, abs=1e-9), (subset, kind)
        assert ours["yes_bias"] == pytest.approx(expected["yes_ratio"]["diff"], abs=1e-9)
        assert ours["false_positive_ratio"] == pytest.approx(expected["yes_ratio"]["fp"], abs=1e-9)
        assert ours["consistency"] == {key: expected["figure"][key] for key in ("correct", "inconsistent", "wrong")}
        by_question = {"language": "LH_cg", "visual": "VI_cg", "mixed": "Mix_cg"}
        assert ours["failures"] == {ours_: expected["pair"][key] for ours_, key in by_question.items()}
    assert result["protocol"] == {
        "rules": "HallusionBench evaluation.py",
        "reading": "judge",
        "text_only_questions": True,
        "judge": "verdicts in the responses file",
    }
    assert [one["judge"] for one in result["judged"]] == [one["judge"] for one in read_records(answers)]
    assert list(result["parts"])[:2] == ["VD/figure", "VD/illusion"]


def test_951_questions_are_a_choice_and_named(score: Score, official: tuple[Path, Path]) -> None:
    """Of 1,129 questions 178 have no image. Their responses may stay in the file."""
    questions, answers = official
    run = score("hallusionbench", answers, "--data", questions, "--no-text_only_questions")
    assert run.result["counts"]["answers"] == 951
    assert run.result["protocol"]["text_only_questions"] is False
    # Figures never count text-only questions; VS failures go by the response to figure 0, which is left out.
    assert run.result["all"]["figure_accuracy"] == pytest.approx(100 * 98 / 346)
    assert run.result["VS"]["failures"] == {"language": None, "visual": None, "mixed": None}
    assert run.result["VD"]["failures"] == {"language": 0, "visual": 174, "mixed": 36}
    assert "cannot be put down to a cause" in run.out


def question(category: str, figure: str, visual_input: str, number: str = "0", answer: str = "1") -> dict[str, str]:
    return {
        "category": category, "subcategory": "map", "set_id": "3", "figure_id": figure, "question_id": number,
        "visual_input": visual_input, "question": "Is it?", "gt_answer": answer, "gt_answer_details": "It is.",
        "filename": f"./{category}/map/3_{figure}.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("category", "figure", "visual_input", "original", "verdict", "same", "reason"),
    [
        ("VD", "0", "1", "unclear", "unclear", None, "visual"),  # the image as it is was not seen
        ("VD", "1", "2", "correct", "incorrect", True, "mixed"),  # the same was said of the changed image
        ("VD", "1", "2", "correct", "incorrect", False, "visual"),
        ("VD", "1", "2", "incorrect", "incorrect", True, "visual"),
        ("VS", "0", "0", "incorrect", "incorrect", None, "language"),  # made up without an image
        ("VS", "0", "0", "unclear", "unclear", None, None),  # rightly not known
        ("VS", "1", "1", "incorrect", "incorrect", True, "language"),  # made up, and the image changed nothing
        ("VS", "1", "1", "incorrect", "incorrect", False, "mixed"),
        ("VS", "1", "1", "incorrect", "unclear", None, "mixed"),
        ("VS", "1", "1", "unclear", "incorrect", True, "visual"),
        ("VS", "1", "1", "correct", "incorrect", True, "visual"),
        ("VS", "2", "2", "correct", "incorrect", True, "language"),  # said what is so, not what the image shows
        ("VS", "2", "2", "correct", "incorrect", False, "visual"),
        ("VS", "2", "2", "correct", "incorrect", None, "unknown"),
        ("VS", "1", "1", None, "incorrect", True, "unknown"),
        ("VS", "1", "1", "correct", "correct", True, None),
    ],
)
def test_what_a_wrong_response_is_put_down_to(
    category: str,
    figure: str,
    visual_input: str,
    original: Any,
    verdict: Verdict,
    same: bool | None,
    reason: str | None,
) -> None:
    assert failure(Judged(question(category, figure, visual_input), verdict, same), original) == reason


def test_numbers_by_hand() -> None:
    """One VD set: two questions on the image and on a changed one. One response of four is wrong: a no was expected.

    Of two pairs one is right, of two figures one; on the changed image (hard) one of two, on the other both. It was a
    yes that should have been a no: of 4 questions 2 want yes and 3 were answered yes.
    """
    responses: list[tuple[str, str, str, Verdict]] = [
        ("0", "1", "0", "correct"), ("0", "0", "1", "correct"),
        ("1", "0", "0", "incorrect"), ("1", "1", "1", "correct"),
    ]  # figure, right answer, question  # fmt: skip
    judged = [
        Judged(question("VD", figure, str(1 + int(figure)), number, answer), verdict, False)
        for figure, answer, number, verdict in responses
    ]
    counted = hallusionbench.count(judged)
    assert list(counted) == ["VD/map 3"]
    numbers = metrics(counted["VD/map 3"])
    assert numbers["all"] == numbers["VD"] == numbers["parts"]["VD/map"]
    assert numbers["all"] == {
        "question_accuracy": 75.0, "pair_accuracy": 50.0, "figure_accuracy": 50.0, "easy_accuracy": 100.0,
        "hard_accuracy": 50.0, "yes_bias": 0.25, "false_positive_ratio": 1.0,
        "consistency": {"correct": 1, "inconsistent": 1, "wrong": 0},
        "failures": {"language": 0, "visual": 1, "mixed": 0},
    }  # fmt: skip


FEW = [
    question("VS", "0", "0") | {"filename": None},
    question("VS", "1", "1") | {"filename": "./VS/map/3_1.png"},
    question("VS", "2", "2", answer="0") | {"filename": "./VS/map/3_2.png"},
]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three questions, and their images below ``images``."""
    for name, image in (("3_1", "cat"), ("3_2", "coffee")):
        to = tmp_path / "images" / "VS" / "map" / f"{name}.png"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes((SAMPLE / "images" / f"{image}.jpg").read_bytes())
    (tmp_path / "few.json").write_text(json.dumps(FEW))
    return tmp_path / "few.json"


def answered(tmp_path: Path, *texts: str, **more: Any) -> Path:
    file = tmp_path / "responses.json"
    file.write_text(json.dumps([one | {"model_prediction": text} | more for one, text in zip(FEW, texts, strict=True)]))
    return file


def test_plain_reading(score: Score, few: Path, tmp_path: Path) -> None:
    """Yes without an image and with one, right; yes of the changed image, wrong, and the same as without: language."""
    file = answered(tmp_path, "Yes.", "Yes, it is.", "I say yes")
    result = score("hallusionbench", file, "--data", few).result
    assert result["protocol"]["reading"] == "yes_no"
    assert result["counts"] == {"answers": 3, "correct": 2, "incorrect": 1, "unclear": 0, "pictures": 1}
    assert result["all"]["failures"] == {"language": 1, "visual": 0, "mixed": 0}
    assert any("published numbers are by a judge" in note for note in result["notes"])
    unclear = score("hallusionbench", answered(tmp_path, "Hm", "Yes", "No"), "--data", few).result
    assert unclear["all"]["question_accuracy"] == 100  # unclear is right without an image
    assert unclear["counts"]["unclear"] == 1


def test_a_judge_is_asked_in_the_official_words(score: Score, few: Path, tmp_path: Path) -> None:
    file = answered(tmp_path, "It is.", "It is, {question}.", "Still it is.")

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        prompt = request["messages"][0]["content"]
        if "response1:" in prompt:
            return 200, "They are the same."
        return 200, "Incorrect." if "answer:Still" in prompt else "This is correct"

    with chat_server(answer) as (address, requests):
        run = score("hallusionbench", file, "--data", few, "--judge_base_url", address, "--judge_model", "wise",
                    "--judge_cache", tmp_path / "cache", "--output", tmp_path / "scores.json")  # fmt: skip
    assert run.result["protocol"]["judge"] == "wise"
    assert run.result["all"]["failures"] == {"language": 1, "visual": 0, "mixed": 0}
    assert json.loads((tmp_path / "scores.json").read_text())["judged"][2] == {
        "category": "VS", "subcategory": "map", "set_id": "3", "figure_id": "2", "question_id": "0",
        "judge": "incorrect", "same": True,
    }  # fmt: skip
    prompts = [request["messages"][0]["content"] for request in requests]
    assert len(prompts) == 4  # whether it is the same is asked only of the wrong response
    assert prompts[1].startswith("Imagine you are an intelligent teacher. Thoroughly read the question, reference")
    assert "\nPrediction answer:It is, {question}.\nOutput:" in "".join(prompts)
    assert prompts[3].endswith("\n\n response1:Still it is.\nresponse2: It is.\nOutput:")


def test_a_broken_file_is_named(score: Score, few: Path, tmp_path: Path) -> None:
    rows: list[Any] = [FEW[0] | {"response": "Yes"}, FEW[0] | {"response": "No"}, FEW[1] | {"response": 1},
                       FEW[2] | {"set_id": "9", "response": "Yes"}]  # fmt: skip
    file = tmp_path / "responses.json"
    file.write_text(json.dumps(rows))
    run = score("hallusionbench", file, "--data", few)
    assert run.status == 2 and run.err.count("not scored, because") == 1
    for sentence in (
        "2 of 3 questions have no response; the first is category VS, subcategory map, set_id 3, figure_id 1",
        "no question has the category, subcategory, set_id, figure_id, question_id of record 4",
        'no text under "response" or "model_prediction" in record 3',
        "a question is answered again in record 2",
    ):
        assert sentence in run.err
    assert score("hallusionbench", file, "--data", few, "--partial").result["counts"]["answers"] == 1
    file = answered(tmp_path, "Yes", "Yes", "Yes", judge="maybe")
    assert (
        '"judge" is not correct, incorrect or unclear in record 1-3' in score("hallusionbench", file, "--data", few).err
    )
    assert "not HallusionBench.json" in score("hallusionbench", file, "--data", SAMPLE / "pairs.json").err


@pytest.mark.parametrize("family", ["idefics2", "llava"])
def test_a_small_model_is_asked_and_scored(
    score: Score, few: Path, tmp_path: Path, small_checkpoints: dict[str, Path], family: str
) -> None:
    images, checkpoint = tmp_path / "images", small_checkpoints[family]
    responses = generate_responses(checkpoint, "hallusionbench", few, images, tmp_path / "all.json")
    assert [{**one, "model_prediction": ""} for one in read_records(responses)] == [
        {**one, "model_prediction": ""} for one in FEW
    ]
    scores = tmp_path / "small" / "scores" / "hallusionbench.json"
    result = score("hallusionbench", responses, "--data", few, "--output", scores, "--bootstrap", 20).result
    assert result["counts"]["answers"] == 3
    page = tmp_path / "table.html"
    score("table", scores, "--output", page)
    assert "<th>small</th>" in page.read_text() and "text_only_questions True" in page.read_text()

    without = generate_responses(
        checkpoint, "hallusionbench", few, images, tmp_path / "951.json", "--no-text_only_questions"
    )
    assert read_records(without) == read_records(responses)[1:]
    assert score("hallusionbench", without, "--data", few, "--no-text_only_questions").result["counts"]["answers"] == 2
    assert "1 of 3 questions have no response" in score("hallusionbench", without, "--data", few).err
