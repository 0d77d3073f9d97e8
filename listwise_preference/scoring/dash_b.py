"""DASH-B: "can you see a ... in this image?", on images that make models see an object that is not there.

Source of the rules: src/eval_utils.py and src/data/dash_b.py of github.com/YanNeu/DASH-B at 1538d01. Its reading takes
a response with "yes" anywhere in it, inside words too, for yes, and else one with "no" anywhere for no. The same
numbers by the first whole word yes or no stand beside it. A response that is neither is wrong.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from listwise_preference.cli import Parser
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_json, read_records
from listwise_preference.scoring.answers import Problems, contained_yes_or_no, first_yes_or_no, match
from listwise_preference.scoring.interface import Benchmark, Column, QuestionFormat, Scored, percent, sum_by_image
from listwise_preference.scoring.result import Result

QUESTIONS = 2682
IDENTITY = ("object_name", "gt", "img_id")
PROMPT = "Can you see a {} in this image? Please answer only with yes or no."  # the official prompt_id 4
READINGS = {"contained": contained_yes_or_no, "first_word": first_yes_or_no}


def read_lists(path: Path) -> list[Record]:
    """The questions of the official lists, in the official order; ``path`` is one of the two, the other is beside it.

    Raises:
        DataError: one of them is missing or of another form.
    """
    questions = []
    for part, expected in (("neg", "no"), ("pos", "yes")):
        name = path.name.replace("_neg", f"_{part}").replace("_pos", f"_{part}")
        file = path.with_name(name)
        if f"_{part}" not in name:
            raise DataError(f"{path}: give dash_benchmark_neg.json, with dash_benchmark_pos.json beside it")
        lists = read_json(file)
        if not isinstance(lists, dict) or not all(_is_lists(objects) for objects in lists.values()):
            raise DataError(
                f'{file}: not a list of DASH-B, which is {{"coco": {{"backpack": ["1.png", ...], ...}}, ...}}'
            )
        questions += [
            {
                "img_id": image,
                "object_name": object_name,
                "gt": expected,
                "image": f"{part}/{dataset}/{object_name}/{image}",
            }
            for dataset, objects in lists.items()
            for object_name, images in objects.items()
            for image in images
        ]
    return questions


def _is_lists(objects: Any) -> bool:
    return isinstance(objects, dict) and all(
        isinstance(images, list) and all(isinstance(image, str) for image in images) for images in objects.values()
    )


def check(records: list[Record], lists: Path | None) -> tuple[list[Record], Problems]:
    """The responses that can be scored, and what is wrong with the file, by the lists where they are given."""
    if lists is None:
        # The official responses file says itself what was asked and what is right.
        wrong = [
            number
            for number, record in enumerate(records, start=1)
            if record.get("gt") not in ("yes", "no") or not all(isinstance(record.get(name), str) for name in IDENTITY)
        ]
        if wrong:
            raise DataError(f"not DASH-B responses: no {', '.join(IDENTITY)} in record {listed(wrong)}")
    pairs, problems = match(records, records if lists is None else read_lists(lists), IDENTITY, ("response",))
    if lists is None and len(pairs) != QUESTIONS:
        problems = problems.and_also(f"responses to {len(pairs)} questions, and DASH-B has {QUESTIONS:,}")
    return [{**question, "response": record["response"]} for record, question in pairs], problems


def count(record: Record) -> dict[str, int]:
    """The counts of one response by both readings."""
    sign = "positive" if record["gt"] == "yes" else "negative"
    counts = {f"{sign}s": 1}
    for name, read in READINGS.items():
        counts[f"{name} true {sign}s"] = int((read(record["response"]) or "").lower() == record["gt"])
    return counts


def metrics(sums: Mapping[str, float]) -> Record:
    """The official numbers, and the same by the first whole word; None where the official program divides by zero."""
    official, ours = (_rates(sums, name) for name in READINGS)
    return {**official, "first_word": ours}


def _rates(sums: Mapping[str, float], reading: str) -> dict[str, float | None]:
    positives, negatives = sums.get("positives", 0), sums.get("negatives", 0)
    true_positives = sums.get(f"{reading} true positives", 0)
    true_negatives = sums.get(f"{reading} true negatives", 0)
    tpr = true_positives / positives if positives else None
    tnr = true_negatives / negatives if negatives else None
    return {
        "accuracy": (true_positives + true_negatives) / (positives + negatives) if positives + negatives else None,
        "tnr": tnr,
        "tpr": tpr,
        "harmonic_mean": 2 * tpr * tnr / (tpr + tnr) if tpr is not None and tnr is not None and tpr + tnr else None,
    }


def table(result: Result) -> str:
    """The result for people to read: all objects, then those with the most hallucinations."""
    names = ("accuracy", "tnr", "tpr", "harmonic_mean")

    def line(title: str, row: Result) -> str:
        return f"{title:28}{''.join(f'{percent(row[name], 2):>14}' for name in names)}"

    lines = [f"{'':28}{''.join(f'{name:>14}' for name in ('ACC', 'TNR', 'TPR', 'harmonic mean'))}"]
    lines += [line("official reading", result), line("first whole word", result["first_word"])]
    worst = sorted(result["per_object"].items(), key=lambda item: (item[1]["tnr"] is None, item[1]["tnr"]))[:5]
    return "\n".join([*lines, "lowest TNR (all objects: --output)", *(line(f"  {name}", row) for name, row in worst)])


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    return PROMPT.format(record["object_name"]), image_root / record["image"], True


def _write_response(record: Record, response: str) -> Record:
    read = contained_yes_or_no(response)
    return {**{name: record[name] for name in ("img_id", "object_name", "gt")}, "response": response,
            "answer": read and read.lower()}  # fmt: skip


def _add_options(parser: Parser) -> None:
    lists = "dash_benchmark_neg.json, with dash_benchmark_pos.json beside it: checks that all of it is answered"
    parser.add_argument("--questions", type=Path, help=lists)


def _score(args: Namespace) -> Scored:
    records, problems = check(read_records(args.answers), args.questions)
    problems.refuse_unless(args.partial and bool(records), args.answers)
    images = sum_by_image(("/".join(record[name] for name in IDENTITY), count(record)) for record in records)
    by_object = sum_by_image((record["object_name"], count(record)) for record in records)
    sums: Counter[str] = sum(images.values(), Counter())
    read = [[reading(record["response"]) for reading in READINGS.values()] for record in records]
    differently = [number for number, (contained, word) in enumerate(read, start=1) if (contained or "") != word]
    unreadable = sum(contained is None for contained, _ in read)
    notes = []
    if differently:
        notes.append(
            f"responses that the official reading and the first whole word read differently: {len(differently)}"
            f" (the first is {records[differently[0] - 1]['response'][:80]!r})"
        )
    return Scored(
        {**metrics(sums), "per_object": {name: metrics(counts) for name, counts in sorted(by_object.items())}},
        images,
        metrics,
        counts={"answers": len(records), "read_differently": len(differently), "unreadable": unreadable},
        protocol={"rules": "DASH-B eval_utils.py", "prompt": PROMPT},
        problems=problems,
        notes=notes,
    )


DASH_B = Benchmark(
    name="dash-b",
    help="DASH-B: can you see a ... in this image? on images that make models see it",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("ACC", "accuracy", scale=100),
        Column("TNR", "tnr", scale=100),
        Column("TPR", "tpr", scale=100),
        Column("harm. mean", "harmonic_mean", scale=100),
    ),
    # No early stop: a yes anywhere in the response counts.
    questions=QuestionFormat(
        "dash_benchmark_neg.json",
        _read_question,
        _write_response,
        records=read_lists,
        source="github.com/YanNeu/DASH-B has its lists and images",
    ),
    metrics=metrics,
)
