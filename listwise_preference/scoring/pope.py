"""POPE: "is there a ... in the image?", counted as evaluate.py of github.com/AoiDragon/POPE counts.

Answers and questions are paired by their order. A first sentence with the word No, no or not is "no";
everything else, an empty answer too, is "yes", which is the positive class.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed
from listwise_preference.scoring.answers import Problems

ANSWER_KEYS = ("answer", "response", "text")


def says_yes(text: str) -> bool:
    """The official reading: up to the first full stop, without commas, split at single spaces."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def answer_text(record: Record) -> str | None:
    """The answer in a record, whichever of its usual names it has."""
    return next((record[key] for key in ANSWER_KEYS if isinstance(record.get(key), str)), None)


def check(records: Sequence[Record], questions: Sequence[Record]) -> tuple[list[tuple[Record, Record]], Problems]:
    """(answer, question) pairs that can be scored, and what is wrong with the two files.

    A record that repeats its question's text or id is checked against the question at its place.
    """
    unlabelled = [number for number, question in enumerate(questions, start=1) if "label" not in question]
    if unlabelled:
        raise DataError(f"not POPE's questions: no label in question {listed(unlabelled)}")
    sentences = []
    at_their_place: list[Record | None] = list(questions[: len(records)])
    if len(records) != len(questions):
        sentences.append(f"{len(records)} answers for {len(questions)} questions")
        if any("question_id" not in record for record in records):
            # Behind a gap every answer would be held against its neighbour's question.
            sentences.append("no question_id in the answers that would say which are missing")
            return [], Problems(tuple(sentences))
        by_id = {question.get("question_id"): question for question in questions}
        at_their_place = [by_id.get(record["question_id"]) for record in records]
    textless, strange, pairs = [], [], []
    for number, (record, question) in enumerate(zip(records, at_their_place, strict=True), start=1):
        says_id = record.get("question_id")
        says_text = record.get("question")
        if answer_text(record) is None:
            textless.append(number)
        elif (
            question is None
            or (says_id is not None and says_id != question.get("question_id"))
            or (isinstance(says_text, str) and isinstance(question.get("text"), str) and says_text != question["text"])
        ):
            strange.append(number)
        else:
            pairs.append((record, question))
    if textless:
        sentences.append(f'no text under "answer" in record {listed(textless)}')
    if strange:
        sentences.append(f"answers to another question than the one at their place: record {listed(strange)}")
    if not pairs:
        sentences.append("no answer in it belongs to these questions")
    return pairs, Problems(tuple(sentences))


def count(record: Record, question: Record) -> str:
    """The official cell of one answer: TP, FP, TN or FN."""
    yes = says_yes(answer_text(record) or "")
    if question["label"] == "no":
        return "FP" if yes else "TN"
    return "TP" if yes else "FN"


def count_images(pairs: Sequence[tuple[Record, Record]]) -> dict[str, Counter[str]]:
    """Cells of each image's answers."""
    images: dict[str, Counter[str]] = {}
    for record, question in pairs:
        image = str(question.get("image", question.get("question_id")))
        images.setdefault(image, Counter())[count(record, question)] += 1
    return images


def metrics(cells: Mapping[str, float]) -> dict[str, float | None]:
    """Unrounded shares, as the official program prints them; None where it would divide by zero."""
    tp, fp, tn, fn = (cells.get(name, 0) for name in ("TP", "FP", "TN", "FN"))
    precision = tp / (tp + fp) if tp + fp else None
    recall = tp / (tp + fn) if tp + fn else None
    f1 = 2 * precision * recall / (precision + recall) if precision and recall else None
    answers = tp + fp + tn + fn
    return {
        "accuracy": (tp + tn) / answers if answers else None,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": (tp + fp) / answers if answers else None,
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for people to read."""
    cells = result["counters"]
    lines = [
        "    TP     FP     TN     FN",
        "".join(f"{cells[name]:6d} " for name in ("TP", "FP", "TN", "FN")),
    ]
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        value = result[name]
        lines.append(f"{name:10} " + ("undefined" if value is None else f"{100 * value:6.2f} %"))
    return "\n".join(lines)
