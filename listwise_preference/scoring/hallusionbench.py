"""HallusionBench: yes/no questions in sets, asked again after the image was changed, counted as its program counts.

Source of the rules: utils.py and evaluation.py of github.com/tianyi-lab/HallusionBench at 744007c. A response is
correct, incorrect or unclear. A judge says so ("judge", the official way), or the first whole word yes or no does
("yes_no"), and a response with neither is unclear.

VD questions need their image. VS questions can be asked without one; figure 0 is that, and unclear is right there.
Figure 0 of a VD set is the image as it was, and visual input 2 is a changed one, of either kind.
"""

import json
import sys
from argparse import BooleanOptionalAction, Namespace
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from listwise_preference.cli import Parser
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_records
from listwise_preference.scoring.answers import Problems, first_text, first_yes_or_no, match
from listwise_preference.scoring.interface import (
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    first_found,
    required_text,
)
from listwise_preference.scoring.judge import API_KEY_VARIABLE, Judge, add_judge_options, fill, judge_of, read_template
from listwise_preference.scoring.result import Result
from listwise_preference.scoring.words import DATA

Verdict = Literal["correct", "incorrect", "unclear"]

IDENTITY = ("category", "subcategory", "set_id", "figure_id", "question_id")
TEXT_KEYS = ("response", "model_prediction")
ACCURACIES = ("question", "pair", "figure", "easy", "hard")
SUBSETS = ("all", "VD", "VS")
FAILURES = ("language", "visual", "mixed")
TEXT_ONLY = 178  # of the 1,129 questions
# As words, and as the official program's files have them.
VERDICTS: Mapping[str, Verdict] = {
    "correct": "correct",
    "incorrect": "incorrect",
    "unclear": "unclear",
    "1": "correct",
    "0": "incorrect",
    "2": "unclear",
}
SAME = {"same": True, "different": False, "1": True, "0": False}


@dataclass(frozen=True)
class Judged:
    """One response: its question's record, the verdict, and whether it says the same as that to figure 0."""

    question: Record
    verdict: Verdict
    same: bool | None

    @property
    def pair(self) -> tuple[str, ...]:
        """What the same question on the other figures of its set has too."""
        return tuple(self.question[name] for name in IDENTITY if name != "figure_id")

    @property
    def figure(self) -> tuple[str, ...]:
        """What the other questions on the same figure have too."""
        return tuple(self.question[name] for name in IDENTITY[:4])

    @property
    def is_original(self) -> bool:
        """Asked on figure 0."""
        return self.question["figure_id"] == "0"

    @property
    def is_right(self) -> bool:
        """Counts as right. To know that one cannot know without an image is right."""
        return self.verdict == "correct" or (
            self.verdict == "unclear" and self.is_original and self.question["category"] == "VS"
        )


def read_questions(path: Path) -> list[Record]:
    """The records of HallusionBench.json; DataError where it is something else."""
    questions = read_records(path)
    needed = (*IDENTITY, "visual_input", "gt_answer", "question")
    if wrong := [n for n, one in enumerate(questions, 1) if not all(isinstance(one.get(key), str) for key in needed)]:
        raise DataError(f"{path}: not HallusionBench.json: no text under one of {', '.join(needed)} in {listed(wrong)}")
    if wrong := [number for number, one in enumerate(questions, 1) if one["gt_answer"] not in ("0", "1")]:
        raise DataError(f'{path}: "gt_answer" is neither "1" (yes) nor "0" (no) in {listed(wrong)}')
    return questions


def is_text_only(question: Record) -> bool:
    """Asked without an image."""
    return question["visual_input"] == "0"


# ---- verdicts ----


def read_yes_no(pairs: Sequence[tuple[Record, Record]]) -> list[Judged]:
    """Each response by its first whole word yes or no; the same is the same word."""
    words = [first_yes_or_no(first_text(record, TEXT_KEYS) or "") for record, _ in pairs]
    verdicts: list[Verdict] = [
        "unclear" if word not in ("Yes", "No") else "correct" if (word == "Yes") == (right == "1") else "incorrect"
        for word, right in zip(words, (question["gt_answer"] for _, question in pairs), strict=True)
    ]
    judged = [Judged(question, verdict, None) for (_, question), verdict in zip(pairs, verdicts, strict=True)]
    original = {one.pair: word for one, word in zip(judged, words, strict=True) if one.is_original}
    return [
        Judged(one.question, one.verdict, word == original.get(one.pair))
        for one, word in zip(judged, words, strict=True)
    ]


def read_verdicts(pairs: Sequence[tuple[Record, Record]]) -> tuple[list[Judged], Problems]:
    """The verdicts that a responses file has, and which it lacks."""
    judged, without = [], []
    for number, (record, question) in enumerate(pairs, start=1):
        verdict = VERDICTS.get(str(record.get("judge")))
        if verdict is None:
            without.append(number)
        else:
            judged.append(Judged(question, verdict, SAME.get(str(record.get("same")))))
    if not without:
        return judged, Problems()
    return judged, Problems((f'"judge" is not correct, incorrect or unclear in record {listed(without)}',))


def ask_verdicts(pairs: Sequence[tuple[Record, Record]], judge: Judge) -> list[Judged]:
    """A judge's verdicts, asked in the official program's words and read as it reads them."""
    texts = [first_text(record, TEXT_KEYS) or "" for record, _ in pairs]
    template = read_template(
        DATA / "hallusionbench_judge_prompt.txt", ("question", "gt_answer_details", "model_prediction")
    )
    replies = judge.replies(
        [
            fill(template, {**_strings(question, "question", "gt_answer_details"), "model_prediction": text})
            for (_, question), text in zip(pairs, texts, strict=True)
        ]
    )
    judged = [Judged(one, _verdict_in(reply), None) for (_, one), reply in zip(pairs, replies, strict=True)]
    original = {one.pair: text for one, text in zip(judged, texts, strict=True) if one.is_original}
    # Only of these does it matter whether the response is the same as the original's.
    asked = [
        place
        for place, one in enumerate(judged)
        if one.verdict == "incorrect" and not one.is_original and one.pair in original
    ]
    template = read_template(DATA / "hallusionbench_same_prompt.txt", ("response", "original_response"))
    replies = judge.replies(
        [
            fill(template, {"response": texts[place], "original_response": original[judged[place].pair]})
            for place in asked
        ]
    )
    for place, reply in zip(asked, replies, strict=True):
        judged[place] = Judged(judged[place].question, judged[place].verdict, "same" in reply.lower())
    return judged


def _strings(record: Record, *keys: str) -> dict[str, str]:
    return {key: str(record.get(key, "")) for key in keys}


def _verdict_in(reply: str) -> Verdict:
    lowered = reply.lower()
    return "incorrect" if "incorrect" in lowered else "correct" if "correct" in lowered else "unclear"


# ---- counting ----


def failure(one: Judged, original: Verdict | None) -> str | None:
    """What a wrong response is put down to; ``original`` is the verdict on the same question to figure 0.

    "unknown" where that, or whether both say the same, would be needed and is not known.
    """
    if one.is_right:
        return None
    is_visual, incorrect = one.question["category"] == "VD", one.verdict == "incorrect"
    if one.is_original:
        return "visual" if is_visual else "language"
    if original is None and not is_visual:
        return "unknown"
    # Said with the original image, or with none, as well as with this one: the image was not looked at.
    matters = incorrect and (
        original == "correct"
        if is_visual
        else original == "incorrect" or (original == "correct" and one.question["visual_input"] == "2")
    )
    if matters and one.same is None:
        return "unknown"
    if is_visual:
        return "mixed" if matters and one.same else "visual"
    if matters and one.same:
        return "language"
    return "mixed" if original == "incorrect" else "visual"


def count(judged: Sequence[Judged]) -> dict[str, Counter[str]]:
    """The counts of each set, by category, subcategory and number. No question, pair or figure is in two sets."""
    originals = {one.pair: one.verdict for one in judged if one.is_original}
    sets: dict[tuple[str, ...], list[Judged]] = defaultdict(list)
    for one in judged:
        sets[one.figure[:3]].append(one)
    counted = {}
    for key, members in sets.items():
        counts: Counter[str] = Counter()
        groups: dict[tuple[str, tuple[str, ...]], list[bool]] = defaultdict(list)
        for one in members:
            right_is_yes = one.question["gt_answer"] == "1"
            counts["yes expected"] += right_is_yes
            counts["yes said"] += right_is_yes == one.is_right
            counts["wrong"] += not one.is_right
            counts["false positive"] += not one.is_right and not right_is_yes
            if reason := failure(one, originals.get(one.pair)):
                counts[reason] += 1
            groups["question", (*one.pair, one.question["figure_id"])].append(one.is_right)
            groups["pair", one.pair].append(one.is_right)
            groups["hard" if one.question["visual_input"] == "2" else "easy", one.pair].append(one.is_right)
            if not is_text_only(one.question):
                groups["figure", one.figure].append(one.is_right)
        for (kind, _), right in groups.items():
            counts[f"{kind} all"] += 1
            counts[f"{kind} right"] += all(right)
            counts[f"{kind} none"] += not any(right)
        part = "/".join(key[:2])
        counted[" ".join((part, key[2]))] = Counter({f"{part} {name}": value for name, value in counts.items()})
    return counted


def metrics(sums: Mapping[str, float]) -> Record:
    """The official numbers of all questions, of VD and of VS, and of their parts; None where nothing was counted."""
    by_part: dict[str, Counter[str]] = defaultdict(Counter)
    for key, value in sums.items():
        part, _, name = key.partition(" ")
        for subset in ("all", part[:2], part):
            by_part[subset][name] += value  # type: ignore[assignment]
    numbers = {part: _numbers(counts) for part, counts in sorted(by_part.items())}
    subsets: Record = {name: numbers.pop(name) for name in SUBSETS if name in numbers}
    return {**subsets, "parts": numbers}


def _for_intervals(sums: Mapping[str, float]) -> Record:
    """The rates of all questions, of VD and of VS: what intervals are given for."""
    return {
        subset: {name: value for name, value in numbers.items() if name not in ("consistency", "failures")}
        for subset, numbers in metrics(sums).items()
        if subset != "parts"
    }


def _numbers(counts: Mapping[str, float]) -> Record:
    def share(some: str, every: str) -> float | None:
        return counts[some] / counts[every] if counts[every] else None

    accuracies = {kind: share(f"{kind} right", f"{kind} all") for kind in ACCURACIES}
    questions, right, wrong = counts["question all"], counts["figure right"], counts["figure none"]
    return {
        **{f"{kind}_accuracy": None if value is None else 100 * value for kind, value in accuracies.items()},
        "yes_bias": counts["yes said"] / questions - counts["yes expected"] / questions if questions else None,
        "false_positive_ratio": share("false positive", "wrong"),
        "consistency": {"correct": right, "inconsistent": counts["figure all"] - right - wrong, "wrong": wrong},
        "failures": {kind: None if counts["unknown"] else counts[kind] for kind in FAILURES},
    }


def table(result: Result) -> str:
    """The result for people to read."""
    lines = [f"{'':12}{''.join(f'{kind:>10}' for kind in ACCURACIES)}   yes bias   FP ratio   accuracy in %"]
    rows = [(name, result[name]) for name in SUBSETS if name in result]
    for name, row in (*rows, *result["parts"].items()):
        cells = [row[f"{kind}_accuracy"] for kind in ACCURACIES]
        texts = "".join(f"{'-':>10}" if cell is None else f"{cell:10.2f}" for cell in cells)
        bias, ratio = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("yes_bias", "false_positive_ratio"))
        lines.append(f"{name:12}{texts}{bias:>11}{ratio:>11}")
    for title, key in (("Figures", "consistency"), ("Failures", "failures")):
        counts = result["all"][key]
        if None not in counts.values() and (total := sum(counts.values())):
            shares = ", ".join(f"{name} {value:.0f} ({100 * value / total:.1f} %)" for name, value in counts.items())
            lines.append(f"{title}: {shares}")
    return "\n".join(lines)


# ---- for the programs ----


def _read_question(record: Record, image_root: Path) -> tuple[str, Path | None, bool]:
    question = required_text(record, "question")
    if str(record.get("visual_input")) == "0":
        return question, None, False  # a judge reads all of the response: free text
    name = Path(required_text(record, "filename"))
    return question, first_found([image_root / name, image_root / "hallusion_bench" / name]), False


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="HallusionBench.json")
    reading = (
        "judge: the verdicts in the responses file, or those of --judge_model; yes_no: the first whole word yes or"
    )
    reading += " no (default: judge where there are verdicts or a judge is named)"
    add("--reading", choices=("judge", "yes_no"), help=reading)
    text_only = f"count the {TEXT_ONLY} questions without an image, as the official program does; published numbers of"
    text_only += " 951 questions are without them"
    add("--text_only_questions", action=BooleanOptionalAction, default=True, help=text_only)
    add("--judge_base_url", help=f"OpenAI-compatible endpoint of a judge; its key is read from {API_KEY_VARIABLE}")
    add("--judge_model", help="model that judges, by its name there")
    add_judge_options(parser)


def _score(args: Namespace) -> Scored:
    questions = read_questions(args.data)
    records = read_records(args.answers)
    if not args.text_only_questions:
        left_out = {tuple(one[name] for name in IDENTITY) for one in questions if is_text_only(one)}
        questions = [one for one in questions if not is_text_only(one)]
        records = [one for one in records if tuple(str(one.get(name)) for name in IDENTITY) not in left_out]
    pairs, problems = match(records, questions, IDENTITY, TEXT_KEYS)
    problems.refuse_unless(args.partial and bool(pairs), args.answers)
    has_verdicts = any("judge" in record for record, _ in pairs)
    reading = args.reading or ("judge" if has_verdicts or args.judge_model else "yes_no")
    protocol: Result = {"rules": "HallusionBench evaluation.py", "reading": reading}
    protocol["text_only_questions"] = args.text_only_questions
    if reading == "yes_no":
        judged = read_yes_no(pairs)
    elif args.judge_model:
        if not args.judge_base_url:
            raise DataError("--judge_model needs --judge_base_url, where the judge is")
        judge = judge_of(args, args.judge_base_url, args.judge_model)
        judged = ask_verdicts(pairs, judge)
        print(f"Judge: {json.dumps(judge.describe())}", file=sys.stderr)
        protocol["judge"] = judge.model
    else:
        judged, unjudged = read_verdicts(pairs)
        for sentence in unjudged.sentences:
            problems = problems.and_also(sentence)
        problems.refuse_unless(args.partial and bool(judged), args.answers)
        protocol["judge"] = "verdicts in the responses file"
    sets = count(judged)
    sums: Counter[str] = sum(sets.values(), Counter())
    verdicts = Counter(one.verdict for one in judged)
    notes = [f"intervals, where asked for, resample the {len(sets)} sets: the images of a set are alike."]
    if reading == "yes_no":
        notes.append(
            "read by the first whole word yes or no; published numbers are by a judge. "
            f"Unclear, neither yes nor no: {verdicts['unclear']}"
        )
    if unknown := sum(value for name, value in sums.items() if name.endswith(" unknown")):
        notes.append(
            f"{unknown} wrong responses cannot be put down to a cause, and failures are not given where they are: it"
            ' takes the response to figure 0, and whether both say the same ("same").'
        )
    return Scored(
        metrics(sums),
        sets,
        _for_intervals,
        counts={"answers": len(judged), **{name: verdicts[name] for name in ("correct", "incorrect", "unclear")}},
        protocol=protocol,
        problems=problems,
        notes=notes,
        only_in_file={
            "judged": [
                {**{name: one.question[name] for name in IDENTITY}, "judge": one.verdict, "same": one.same}
                for one in judged
            ]
        },
    )


HALLUSIONBENCH = Benchmark(
    name="hallusionbench",
    help="HallusionBench: yes/no questions on images and on changed images",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("question acc.", "all.question_accuracy", digits=2),
        Column("pair acc.", "all.pair_accuracy", digits=2),
        Column("figure acc.", "all.figure_accuracy", digits=2),
        Column("easy", "all.easy_accuracy", digits=2),
        Column("hard", "all.hard_accuracy", digits=2),
        Column("yes bias", "all.yes_bias", digits=2, better="neither"),
    ),
    questions=QuestionFormat(
        "HallusionBench.json",
        _read_question,
        lambda record, response: {**record, "model_prediction": response},
        source="github.com/tianyi-lab/HallusionBench has questions and images",
    ),
    metrics=_for_intervals,
)
