import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from listwise_preference.scoring import pope

from .asking import generate_responses
from .conftest import SAMPLE
from .scoring_data import Score, read_data


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes, there is.", True),
        ("No, there is not.", False),
        ("There is one. No doubt.", True),  # only the first sentence is read
        ("NO", True),  # the official rule knows No, no and not
        ("no\nreally", True),  # and splits at spaces alone
        ("There is not any", False),
        ("", True),
    ],
)
def test_official_reading(text: str, yes: bool) -> None:
    assert pope.says_yes(text) is yes


def test_metrics_by_hand() -> None:
    # precision 3/4, recall 3/5: F1 = 2 * 0.75 * 0.6 / 1.35
    numbers = pope.metrics({"TP": 3, "FP": 1, "TN": 4, "FN": 2})
    assert numbers == pytest.approx({"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "f1": 2 / 3, "yes_ratio": 0.4})


def test_no_yes_at_all_leaves_precision_undefined() -> None:
    numbers = pope.metrics({"TN": 2, "FN": 1})
    assert (numbers["precision"], numbers["f1"]) == (None, None)
    assert numbers["recall"] == 0


@pytest.mark.parametrize("setting", ["random", "popular"])
def test_official_output(score: Score, benchmark_files: Path, setting: str) -> None:
    folder = benchmark_files / "pope"
    result = score(
        "pope", folder / f"answers_{setting}.jsonl", "--questions", folder / f"coco_pope_{setting}.json"
    ).result
    cells = "\t".join(str(result["counters"][name]) for name in ("TP", "FP", "TN", "FN"))
    printed = (
        f"TP\tFP\tTN\tFN\t\n{cells}\nAccuracy: {result['accuracy']}\nPrecision: {result['precision']}\n"
        f"Recall: {result['recall']}\nF1 score: {result['f1']}\nYes ratio: {result['yes_ratio']}\n"
    )
    assert printed == read_data("official/pope_official.json")[setting]


QUESTIONS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
]


def test_answers_to_other_questions_are_refused(score: Score, tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions.json", tmp_path / "answers.jsonl"
    questions.write_text("\n".join(map(json.dumps, QUESTIONS)))
    rows = [{"question": "Is there a cat in the image?", "answer": "no"}, {"question_id": 2, "answer": "no"}]
    answers.write_text("\n".join(map(json.dumps, rows)))
    run = score("pope", answers, "--questions", questions)
    assert run.status == 2
    assert "another question than the one at their place: record 1" in run.err
    result = score("pope", answers, "--questions", questions, "--partial").result
    assert result["partial"] is True
    assert result["counters"] == {"TP": 0, "FP": 0, "TN": 1, "FN": 0}

    answers.write_text(json.dumps(rows[1]))
    assert "1 responses for 2 questions" in score("pope", answers, "--questions", questions).err


def test_a_missing_answer_moves_no_other(score: Score, tmp_path: Path) -> None:
    """Of three answers the middle one is missing: those with ids keep their questions, those without are refused."""
    third = {"question_id": 3, "image": "b.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    questions, answers = tmp_path / "questions.json", tmp_path / "answers.jsonl"
    questions.write_text("\n".join(map(json.dumps, [*QUESTIONS, third])))
    answers.write_text('{"question_id": 1, "answer": "yes"}\n{"question_id": 3, "answer": "no"}\n')
    result = score("pope", answers, "--questions", questions, "--partial").result
    assert result["counters"] == {"TP": 1, "FP": 0, "TN": 0, "FN": 1}
    answers.write_text('{"answer": "yes"}\n{"answer": "no"}\n')
    run = score("pope", answers, "--questions", questions, "--partial")
    assert run.status == 2
    assert "no question_id in the responses that would say which are missing" in run.err


def twelve(yes: object = "yes", no: object = "no") -> list[dict[str, object]]:
    return [
        {"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a thing {n} in it?", "label": (no, yes)[n % 2]}
        for n in range(1, 13)
    ]


RIGHT = [{"question_id": n, "answer": ("No", "Yes")[n % 2]} for n in range(1, 13)]


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("yes", "no"),
    [("yes", "no"), ("Yes", "No"), ("YES ", " no\n"), (1, 0), ("1", "0"), (True, False), ("True", "false")],
)
def test_labels_may_be_written_otherwise(score: Score, tmp_path: Path, yes: object, no: object) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", twelve(yes, no))
    result = score("pope", write_lines(tmp_path / "answers.jsonl", RIGHT), "--questions", questions).result
    assert (result["accuracy"], result["counters"]) == (1, {"TP": 6, "FP": 0, "TN": 6, "FN": 0})


@pytest.mark.parametrize("label", ["", "maybe", None, 2, "ja"])
def test_other_labels_are_refused(score: Score, tmp_path: Path, label: object) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", twelve(no=label))
    run = score("pope", write_lines(tmp_path / "answers.jsonl", RIGHT), "--questions", questions)
    assert run.status == 2
    assert "label of question 2, 4, 6" in run.err and f"the first is {json.dumps(label)}" in run.err


def test_what_is_missing_is_told_apart_from_what_is_wrong(score: Score, tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", twelve())
    run = score(
        "pope", write_lines(tmp_path / "a.jsonl", [*RIGHT[:5], *RIGHT[6:]]), "--questions", questions, "--partial"
    )
    assert run.result["accuracy"] == 1
    assert run.result["missing"] == {"answers": 1, "of": 12, "share": 1 / 12}
    assert "1 of 12 responses (8.3 %) are missing, and no number counts them as wrong" in run.out
    assert "missing" not in score("pope", write_lines(tmp_path / "a.jsonl", RIGHT), "--questions", questions).result


def test_responses_given_twice_are_refused_with_their_ids(score: Score, tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", twelve())
    wrong = {"question_id": 3, "answer": "No"}
    for rows, missing in (([*RIGHT, wrong], 0), ([*RIGHT[:5], wrong, *RIGHT[6:]], 1)):
        answers = write_lines(tmp_path / "answers.jsonl", rows)
        run = score("pope", answers, "--questions", questions)
        assert run.status == 2 and "1 responses given again: question_id 3;" in run.err
        partial = score("pope", answers, "--questions", questions, "--partial").result
        assert (partial["accuracy"], partial["missing"]["answers"]) == (1, missing)


def test_responses_that_the_official_rule_reads_otherwise_are_counted_in_a_note(score: Score, tmp_path: Path) -> None:
    """ "No!", "**No**" and "NO." are yes by that rule, "Yes, no doubt" is no; an empty one is yes."""
    said = ["No!", "**No**", "NO.", "Yes, no doubt", "", *["Yes"] * 7]
    answers = [{"question_id": n, "answer": text} for n, text in enumerate(said, start=1)]
    questions = write_lines(tmp_path / "questions.jsonl", twelve())
    run = score("pope", write_lines(tmp_path / "answers.jsonl", answers), "--questions", questions)
    assert run.result["yes_ratio"] == pytest.approx(11 / 12)
    assert run.result["counts"]["read_differently"] == 4
    assert "4 responses say first what is not counted" in run.out and "the first is 'No!'" in run.out
    assert "1 responses are empty, which is yes" in run.out


# ---- corrected labels ----

FOUR = [
    *QUESTIONS,
    {"question_id": 3, "image": "b.jpg", "text": "Is there a dog in the image?", "label": "no"},
    {"question_id": 4, "image": "b.jpg", "text": "Is there a cat in the image?", "label": "yes"},
]


def test_both_labels_are_scored_and_neither_is_partial(score: Score, tmp_path: Path) -> None:
    """A perfect response file by the old labels: yes, no, no, yes. Corrected, 1 is a no, 3 a yes, and 4 is left out.

    On the three that remain: one false positive, one true negative, one false negative.
    """
    questions, corrected, answers = (tmp_path / name for name in ("pope.json", "repope.json", "answers.jsonl"))
    questions.write_text("\n".join(map(json.dumps, FOUR)))
    answers.write_text("\n".join(json.dumps({"question": one["text"], "answer": one["label"]}) for one in FOUR))
    rows = [FOUR[0] | {"label": "no"}, FOUR[1], FOUR[2] | {"label": "yes"}]
    corrected.write_text("\n".join(map(json.dumps, rows)))
    run = score("pope", answers, "--questions", questions, "--relabelled", corrected, "--bootstrap", 10)
    assert run.result["partial"] is False
    assert run.result["f1"] == 1
    again = run.result["relabelled"]
    assert again["counters"] == {"TP": 0, "FP": 1, "TN": 1, "FN": 1}
    assert (again["questions"], again["changed"], again["left_out"]) == (3, 2, 1)
    assert again["accuracy"] == pytest.approx(1 / 3)
    assert "On corrected labels: 3 questions, 2 with another label, 1 left out" in run.out
    corrected.write_text(json.dumps(FOUR[0] | {"image": "c.jpg"}))
    wrong = score("pope", answers, "--questions", questions, "--relabelled", corrected)
    assert "--relabelled is of other questions than --questions" in wrong.err and wrong.err.endswith("record 1\n")


# ---- over A-OKVQA and GQA ----


@pytest.mark.parametrize(
    ("name", "image"),
    [("aokvqa_pope_seem_random", "COCO_val2014_000000461751.jpg"), ("gqa_pope_seem_random", "2354786.jpg")],
)
def test_other_image_sets_are_asked_and_scored_alike(
    score: Score, tmp_path: Path, small_checkpoints: dict[str, Path], name: str, image: str
) -> None:
    """Their files have the same form; the images are COCO's and GQA's."""
    (tmp_path / image).write_bytes((SAMPLE / "images" / "cat.jpg").read_bytes())
    questions = tmp_path / f"{name}.json"
    rows = [one | {"image": image} for one in QUESTIONS]
    questions.write_text("\n".join(map(json.dumps, rows)))
    answers = generate_responses(small_checkpoints["llava"], "pope", questions, tmp_path, tmp_path / "answers.jsonl")
    scores = tmp_path / "small" / "scores" / "pope.json"
    result = score("pope", answers, "--questions", questions, "--output", scores).result
    assert sum(result["counters"].values()) == 2
    assert result["protocol"]["questions"] == f"{name}.json"
    assert f"pope {name} (1): accuracy" in score("table", scores).out
