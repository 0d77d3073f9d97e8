"""BEAF: the same questions before and after an object was removed from the image.

Source of the rules: beaf_metric.py of github.com/postech-ami/BEAF at f71c4d2; the metrics are those of its paper
(arXiv 2407.13442). Of the questions on a removed object, TU (true understanding) are right before and after, IG
(ignorance) wrong both times, SB (stubbornness) answered alike, with yes or with no. Of the others, ID (indecision) are
right once and wrong once. Its reading is DASH-B's (``answers.contained_yes_or_no``); a response with neither yes nor no
is wrong here, while the official program reads it as the response before it.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from listwise_preference.cli import Parser
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_records
from listwise_preference.scoring.answers import contained_yes_or_no, first_text, first_yes_or_no, match
from listwise_preference.scoring.interface import (
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    first_found,
    required_text,
    sum_by_image,
)
from listwise_preference.scoring.result import Result

TEXT_KEYS = ("answer", "response")
READINGS = {"contained": contained_yes_or_no, "first_word": first_yes_or_no}
# By the cells before and after.
CHANGES = {"TP TN": "TU", "FN FP": "IG", "TP FP": "SB+", "FN TN": "SB-"}


def read_questions(path: Path) -> list[Record]:
    """The records of beaf_qna.json; DataError where it is something else."""
    questions = read_records(path)
    wrong = [
        number
        for number, one in enumerate(questions, start=1)
        if type(one.get("id")) is not int
        or not all(isinstance(one.get(key), str) for key in ("image", "question"))
        or not all(isinstance(one.get(key), bool) for key in ("orig_img", "removed_q"))
        or one.get("gt") not in ("yes", "no")
    ]
    if wrong:
        needed = "id, image, question, orig_img, removed_q, gt"
        raise DataError(f"{path}: not beaf_qna.json: one of {needed} is missing or of another kind in {listed(wrong)}")
    return questions


def image_before(question: Record) -> str:
    """The image that nothing was removed from: ``x.jpg`` of ``x_03.png``."""
    image: str = question["image"]
    return image if question["orig_img"] else f"{image[:-7]}.jpg"


def cell(text: str, expected: str, reading: str) -> str:
    """TP, FP, TN or FN of a response by one of READINGS."""
    right = (READINGS[reading](text) or "").lower() == expected
    return {"yes": "TP" if right else "FN", "no": "TN" if right else "FP"}[expected]


def count(pairs: Sequence[tuple[Record, Record]], questions: Sequence[Record]) -> dict[str, Counter[str]]:
    """The counts of each image together with those made from it, by both readings.

    A question whose counterpart before the change has no response is counted as a question, but not as a change.
    Raises DataError where the questions have no counterpart.
    """
    asked = {(one["image"], one["question"]) for one in questions}
    lone = [one["id"] for one in questions if (image_before(one), one["question"]) not in asked]
    if lone:
        raise DataError(f"BEAF's questions: the same is not asked before the change for id {listed(lone)}")
    images: dict[str, Counter[str]] = {}
    for reading in READINGS:
        cells = {
            (question["image"], question["question"]): cell(
                first_text(record, TEXT_KEYS) or "", question["gt"], reading
            )
            for record, question in pairs
        }

        def counted(question: Record, cells: Mapping[tuple[str, str], str] = cells) -> list[str]:
            after = cells[question["image"], question["question"]]
            before = cells.get((image_before(question), question["question"]))
            if question["orig_img"] or before is None:
                return [after]
            if question["removed_q"]:
                # Where another object was removed, this one is still there: no change, and not counted as one.
                return [after, CHANGES[f"{before} {after}"]] if f"{before} {after}" in CHANGES else [after]
            return [after, "unchanged", *(["ID"] if before[0] != after[0] else [])]

        by_image = sum_by_image(
            (image_before(question), Counter(f"{reading} {name}" for name in counted(question)))
            for _, question in pairs
        )
        for image, counts in by_image.items():
            images.setdefault(image, Counter()).update(counts)
    return images


def metrics(sums: Mapping[str, float]) -> Record:
    """The official numbers in per cent, and the same by the first whole word; None where there is nothing to divide."""
    official, ours = (_numbers(sums, reading) for reading in READINGS)
    return {**official, "first_word": ours}


def _numbers(sums: Mapping[str, float], reading: str) -> dict[str, float | None]:
    def of(*names: str) -> float:
        return sum(sums.get(f"{reading} {name}", 0) for name in names)

    def share(some: float, every: float) -> float | None:
        return 100 * some / every if every else None

    precision, recall = share(of("TP"), of("TP", "FP")), share(of("TP"), of("TP", "FN"))
    changes = of(*CHANGES.values())
    tu, indecision = share(of("TU"), changes), share(of("ID"), of("unchanged"))
    steady = None if indecision is None else 100 - indecision
    return {
        "tu": tu,
        "ig": share(of("IG"), changes),
        "sb": share(of("SB+", "SB-"), changes),
        "sb_positive": share(of("SB+"), changes),
        "sb_negative": share(of("SB-"), changes),
        "id": indecision,
        "f1_tu_id": 2 * tu * steady / (tu + steady) if tu and steady else None,
        "accuracy": share(of("TP", "TN"), of("TP", "FP", "TN", "FN")),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision and recall else None,
    }


_SHOWN = {
    "tu": "TU",
    "ig": "IG",
    "sb_positive": "SB+",
    "sb_negative": "SB-",
    "id": "ID",
    "f1_tu_id": "F1 of TU, 100-ID",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


def table(result: Result) -> str:
    """The result for people to read, in per cent."""
    lines = [f"{'':18}{'official':>12}{'first word':>12}"]
    for key, title in _SHOWN.items():
        cells = (row[key] for row in (result, result["first_word"]))
        lines.append(f"{title:18}" + "".join(f"{'undefined' if one is None else f'{one:.2f}':>12}" for one in cells))
    return "\n".join(lines)


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    name = required_text(record, "image")
    return required_text(record, "question"), first_found([image_root / name, image_root / "images" / name]), True


def _add_options(parser: Parser) -> None:
    parser.add_argument("--questions", type=Path, required=True, help="beaf_qna.json")


def _score(args: Namespace) -> Scored:
    questions = read_questions(args.questions)
    pairs, problems = match(read_records(args.answers), questions, ("id",), TEXT_KEYS)
    problems.refuse_unless(args.partial and bool(pairs), args.answers)
    images = count(pairs, questions)
    sums: Counter[str] = sum(images.values(), Counter())
    read = [[reading(first_text(record, TEXT_KEYS) or "") for reading in READINGS.values()] for record, _ in pairs]
    differently = sum((contained or "") != word for contained, word in read if contained or word in ("Yes", "No"))
    unreadable = [question["id"] for (_, question), (contained, _) in zip(pairs, read, strict=True) if not contained]
    notes = []
    if unreadable:
        notes.append(
            f"responses with neither yes nor no, counted as wrong: {len(unreadable)} (ids {listed(unreadable)}); the "
            "official program reads each as the response before it."
        )
    return Scored(
        metrics(sums),
        images,
        metrics,
        counts={
            "answers": len(pairs),
            "removals": sum(sums[f"contained {name}"] for name in CHANGES.values()),
            "read_differently": differently,
            "unreadable": len(unreadable),
        },
        protocol={"rules": "BEAF beaf_metric.py"},
        problems=problems,
        notes=notes,
    )


BEAF = Benchmark(
    name="beaf",
    help="BEAF: is it still there, after it was removed from the image?",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("TU", "tu"),
        Column("IG", "ig", better="lower"),
        Column("SB+", "sb_positive", better="lower"),
        Column("SB-", "sb_negative", better="lower"),
        Column("ID", "id", better="lower"),
        Column("F1 of TU, 100-ID", "f1_tu_id"),
    ),
    questions=QuestionFormat(
        "beaf_qna.json",
        _read_question,
        lambda record, response: {"id": record["id"], "answer": response},
        source="github.com/postech-ami/BEAF has questions and images",
    ),
    metrics=metrics,
)
