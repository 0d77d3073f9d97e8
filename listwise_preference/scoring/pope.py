"""POPE: "is there a ... in the image?", counted as evaluate.py of github.com/AoiDragon/POPE counts.

Responses and questions are paired by their order. A first sentence with the word No, no or not is "no";
everything else, an empty response too, is "yes", which is the positive class.

RePOPE (github.com/YanNeu/RePOPE) has the same questions with corrected labels, without those that cannot be answered.
"""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from listwise_preference.cli import Parser
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_records
from listwise_preference.scoring.answers import Problems, first_of_each, first_text, first_yes_or_no, read_label
from listwise_preference.scoring.interface import (
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    percent,
    required_text,
    sum_by_image,
)
from listwise_preference.scoring.result import Result

ANSWER_KEYS = ("answer", "response", "text")
CELLS = ("TP", "FP", "TN", "FN")


def says_yes(text: str) -> bool:
    """The official reading: up to the first full stop, without commas, split at single spaces."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def decided(beginning: str) -> bool:
    """Whether that reading, of a text that begins like this, can no longer change."""
    return "." in beginning or not (says_yes(beginning) or says_yes(beginning + "a"))


def read_questions(path: Path) -> list[Record]:
    """POPE's questions, or others of their form, with labels yes and no.

    Raises:
        DataError: a question has no label, or one that is neither.
    """
    questions = read_records(path)
    if unlabelled := [number for number, question in enumerate(questions, start=1) if "label" not in question]:
        raise DataError(f"{path}: not POPE's questions: no label in question {listed(unlabelled)}")
    labels = [read_label(question["label"]) for question in questions]
    if wrong := [number for number, label in enumerate(labels, start=1) if label is None]:
        first = json.dumps(questions[wrong[0] - 1]["label"])
        raise DataError(
            f"{path}: the label of question {listed(wrong)} is neither yes nor no, true nor false, 1 nor 0;"
            f" the first is {first}"
        )
    return [{**question, "label": label} for question, label in zip(questions, labels, strict=True)]


def check(records: Sequence[Record], questions: Sequence[Record]) -> tuple[list[tuple[Record, Record]], Problems]:
    """(response, question) pairs that can be scored, and what is wrong with the two files.

    A record that repeats its question's text or id is checked against the question at its place.
    """
    sentences = []
    without_id = any(record.get("question_id") is None for record in records)
    said, asked = list(map(_id, records)), Counter(map(_id, questions))
    if all(count == 1 for count in asked.values()) and not without_id:
        records, again = first_of_each(records, [f"question_id {one}" for one in said])
        if again:
            sentences.append(again)
    at_their_place: list[Record | None] = list(questions[: len(records)])
    if len(records) != len(questions):
        sentences.append(f"{len(records)} responses for {len(questions)} questions")
        if without_id or any(asked[id_] > 1 for id_ in said):
            # Behind a gap every response would be compared with its neighbour's question.
            sentences.append("no question_id in the responses that would say which are missing")
            return [], Problems(tuple(sentences), len(questions), len(questions))
        by_id = {_id(question): question for question in questions}
        at_their_place = [by_id.get(_id(record)) for record in records]
    textless, strange, pairs = [], [], []
    for number, (record, question) in enumerate(zip(records, at_their_place, strict=True), start=1):
        says_id = record.get("question_id")
        says_text = record.get("question")
        if first_text(record, ANSWER_KEYS) is None:
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
        sentences.append(f"responses to another question than the one at their place: record {listed(strange)}")
    if not pairs:
        sentences.append("no response in it belongs to these questions")
    return pairs, Problems(tuple(sentences), len(questions) - len(pairs), len(questions))


def _id(record: Record) -> str:
    """As text: 7 and "7" are two."""
    return json.dumps(record.get("question_id"))


def relabel(
    pairs: Sequence[tuple[Record, Record]], questions: Sequence[Record], corrected: Sequence[Record]
) -> list[tuple[Record, Record]]:
    """The (response, question) pairs whose question has a corrected label, with that label.

    Raises DataError where the corrected questions are not among these.
    """
    by_id = {_id(question): question for question in questions}
    strange = [
        number
        for number, one in enumerate(corrected, start=1)
        if "label" not in one or any(one.get(key) != by_id.get(_id(one), {}).get(key) for key in ("image", "text"))
    ]
    if strange:
        raise DataError(
            "--relabelled is of other questions than --questions (random, popular and adversarial have a file each): "
            f"record {listed(strange)}"
        )
    labels = {_id(one): one["label"] for one in corrected}
    return [
        (record, {**question, "label": labels[_id(question)]}) for record, question in pairs if _id(question) in labels
    ]


def count(record: Record, question: Record) -> str:
    """The official cell of one response: TP, FP, TN or FN."""
    yes = says_yes(first_text(record, ANSWER_KEYS) or "")
    if question["label"] == "no":
        return "FP" if yes else "TN"
    return "TP" if yes else "FN"


def metrics(cells: Mapping[str, float]) -> dict[str, float | None]:
    """Unrounded shares, as the official program prints them; None where it would divide by zero."""
    tp, fp, tn, fn = (cells.get(name, 0) for name in CELLS)
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


def _metrics_of_both(sums: Mapping[str, float]) -> Record:
    """The metrics, and under "relabelled" those on corrected labels where the sums have any."""
    corrected = {name: sums.get(f"relabelled {name}", 0) for name in CELLS}
    return {**metrics(sums), **({"relabelled": metrics(corrected)} if any(corrected.values()) else {})}


def table(result: Result) -> str:
    """The result for people to read."""
    lines = ["    TP     FP     TN     FN", "".join(f"{result['counters'][name]:6d} " for name in CELLS)]
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    lines += [f"{name:10} {percent(result[name], 2)}" for name in names]
    if corrected := result.get("relabelled"):
        asked, changed, left_out = (corrected[name] for name in ("questions", "changed", "left_out"))
        lines += ["", f"On corrected labels: {asked} questions, {changed} with another label, {left_out} left out"]
        lines += table(corrected).split("\n")
    return "\n".join(lines)


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    return required_text(record, "text"), image_root / required_text(record, "image"), True


def _write_answer(record: Record, response: str) -> Record:
    known = {"question_id": record["question_id"]} if "question_id" in record else {}
    return {**known, "question": record["text"], "answer": response}


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--questions",
        type=Path,
        required=True,
        help="coco_pope_random.json, _popular or _adversarial; or A-OKVQA's, GQA's",
    )
    corrected = "the same questions with corrected labels, coco_repope_random.json and so on: scored on these as well"
    add("--relabelled", type=Path, metavar="FILE", help=corrected)


def _score(args: Namespace) -> Scored:
    questions = read_questions(args.questions)
    pairs, problems = check(read_records(args.answers), questions)
    problems.refuse_unless(args.partial and bool(pairs), args.answers)
    corrected = relabel(pairs, questions, read_questions(args.relabelled)) if args.relabelled else []
    images = sum_by_image(
        (str(question.get("image", question.get("question_id"))), {f"{labels}{count(record, question)}": 1})
        for labels, scored in (("", pairs), ("relabelled ", corrected))
        for record, question in scored
    )
    cells: Counter[str] = sum(images.values(), Counter())
    numbers = {**_metrics_of_both(cells), "counters": {name: cells[name] for name in CELLS}}
    protocol: Result = {"rules": "POPE evaluate.py", "questions": args.questions.name}
    if corrected:
        labels = {question["question_id"]: question["label"] for _, question in corrected}
        numbers["relabelled"] |= {
            "counters": {name: cells[f"relabelled {name}"] for name in CELLS},
            "questions": len(corrected),
            "changed": sum(labels.get(one.get("question_id"), one["label"]) != one["label"] for _, one in pairs),
            "left_out": len(pairs) - len(corrected),
        }
        protocol["relabelled"] = args.relabelled.name
    texts = [first_text(record, ANSWER_KEYS) or "" for record, _ in pairs]
    notes = []
    if otherwise := [text for text in texts if first_yes_or_no(text) == ("No" if says_yes(text) else "Yes")]:
        notes.append(
            f"{len(otherwise)} responses say first what is not counted: POPE's rule looks for No, no or not between"
            f" spaces (the first is {otherwise[0][:80]!r})."
        )
    if empty := sum(not text.strip() for text in texts):
        notes.append(f"{empty} responses are empty, which is yes by POPE's rule.")
    return Scored(
        numbers,
        images,
        _metrics_of_both,
        counts={"answers": len(pairs), "read_differently": len(otherwise)},
        protocol=protocol,
        problems=problems,
        notes=notes,
    )


POPE = Benchmark(
    name="pope",
    help="POPE: is there a ... in the image?",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("accuracy", "accuracy", scale=100),
        Column("precision", "precision", scale=100),
        Column("recall", "recall", scale=100),
        Column("F1", "f1", scale=100),
        Column("yes ratio", "yes_ratio", scale=100, better="neither"),
        Column("accuracy relabelled", "relabelled.accuracy", scale=100),
        Column("F1 relabelled", "relabelled.f1", scale=100),
    ),
    questions=QuestionFormat(
        "coco_pope_random.json",
        _read_question,
        _write_answer,
        json_lines=True,
        decided=decided,
        source="github.com/AoiDragon/POPE has the questions; the images are COCO's val2014",
    ),
    metrics=_metrics_of_both,
)
