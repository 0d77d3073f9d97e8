"""AMBER as a benchmark of the programs: its questions, options, table and page; the rules are amber_rules.py."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from listwise_preference.cli import Parser
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_records
from listwise_preference.scoring.amber_page.report import start_report, write_report
from listwise_preference.scoring.amber_rules import (
    ATTRIBUTES,
    AmberScores,
    check,
    judge_answers,
    load_amber,
    metrics,
    metrics_of_sums,
    score_answers,
)
from listwise_preference.scoring.answers import (
    YesNoRule,
    first_word_decided,
)
from listwise_preference.scoring.interface import (
    BadRecord,
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    required_text,
)
from listwise_preference.scoring.result import Result
from listwise_preference.scoring.similarity import OFFICIAL_MODEL, Similarity, load_similarity
from listwise_preference.scoring.words import load_lemmas


def table(result: Result) -> str:
    """The result for people to read."""
    lines = []
    if result["generative"]:
        lines += ["Descriptions      CHAIR   Cover     Hal     Cog"]
        numbers = "".join(f"{result['generative'][name]:8.1f}" for name in ("chair", "cover", "hal", "cog"))
        lines += [f"{'':15}{numbers}", ""]
    if result["discriminative"]:
        lines += ["Yes/no         Accuracy  Precision  Recall      F1"]
        for kind in ("discriminative", "existence", "attribute", *ATTRIBUTES, "relation"):
            if row := result[kind]:
                indent = "  " if kind in ATTRIBUTES else ""
                label = "all" if kind == "discriminative" else kind
                lines.append(
                    f"{indent + label:15}{row['accuracy']:8.1f}{row['precision']:11.1f}"
                    f"{row['recall']:8.1f}{row['f1']:8.1f}"
                )
        lines.append("")
    return "\n".join(lines).rstrip()


# ---- for the programs ----


DESCRIPTIONS = 1004  # AMBER's, by id from 1


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    if type(record.get("id")) is not int:
        raise BadRecord('no whole number under "id"')
    query = required_text(record, "query")
    # AMBER's ids 1 to 1,004 are its descriptions, whatever they are asked by; all others want yes or no. Questions of
    # one's own in AMBER's form may be numbered otherwise: one that begins as AMBER's do wants yes or no.
    yes_no = record["id"] > DESCRIPTIONS or query.split()[0] in ("Is", "Are", "Does")
    return query, image_root / required_text(record, "image"), yes_no


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="clone of github.com/junyangwang0410/AMBER")
    alike = f"which words are alike (default: shipped table; official: {OFFICIAL_MODEL})"
    add("--similarity", metavar="FILE|SPACY_MODEL", help=alike)
    add("--save_similarity", type=Path, metavar="FILE", help="keep the table made with a spaCy model")
    add("--lemmas", metavar="FILE|wordnet", help="default: shipped table")
    rules = "word: first whole word yes or no in the first sentence; exact: only Yes and No, as AMBER's program alone; "
    rules += "release: the released LPOI code's rule, for comparison, not to be trusted"
    add("--yes_no", choices=get_args(YesNoRule), default="word", help=rules)
    add("--report", type=Path, metavar="DIR", help="write a page to look at the responses")
    add("--image_root", type=Path, metavar="DIR", help="AMBER's images, to show them on the page")


def _score(args: Namespace) -> Scored:
    if args.image_root and not args.report:
        raise DataError("--image_root is for the images of the page: it needs --report DIR")
    if args.image_root and not args.image_root.is_dir():
        raise DataError(f"{args.image_root}: no such folder; give the one with AMBER_1.jpg and so on")
    data = load_amber(args.data)
    answers, problems = check(read_records(args.answers), data)
    problems.refuse_unless(args.partial and bool(answers), args.answers)
    if args.bootstrap and any(data.questions[answer.id].image is None for answer in answers):
        raise DataError(f"{args.data}: --bootstrap draws images and needs data/query/query_all.json to know them")
    if args.report:
        start_report(args.report)
    similarity = load_similarity(args.similarity, data.vocabulary, args.save_similarity)
    lemmas = load_lemmas(args.lemmas, "lemma_forms.json")
    judged = list(judge_answers(answers, data, similarity, lemmas, args.yes_no))
    scores = score_answers(judged)
    numbers = metrics(scores.counters)
    descriptions = sum(one.description is not None for one in judged)

    def write_page(result: Result, notes: Sequence[str]) -> None:
        page = write_report(args.report, judged, result, notes, args.image_root)
        print(f"Open {page} in a browser", file=sys.stderr)

    return Scored(
        {**numbers, "counters": scores.counters},
        scores.images,
        metrics_of_sums,
        counts={
            "answers": len(answers),
            "descriptions": descriptions,
            "yes_no": len(answers) - descriptions,
            "reread": scores.reread,
            "unreadable": len(scores.unreadable),
        },
        protocol={
            "rules": "AMBER inference.py",
            "yes_no": args.yes_no,
            "similarity": similarity.describe(),
            "lemmas": lemmas.source,
        },
        problems=problems,
        notes=_notes(args.yes_no, similarity if descriptions else None, scores, numbers),
        write_more=write_page if args.report else None,
    )


def _notes(rule: YesNoRule, similarity: Similarity | None, scores: AmberScores, numbers: Record) -> list[str]:
    notes = []
    if similarity and not similarity.official:
        notes.append(
            f"similar words by {similarity.describe()['source']} ({similarity.source}); AMBER's own program "
            f"uses {OFFICIAL_MODEL}, and its CHAIR, Cover, Hal and Cog may differ a little."
        )
    if scores.unreadable:
        notes.append(
            f"unreadable yes/no responses, neither yes nor no and counted as wrong: {len(scores.unreadable)} "
            f"(ids {listed(scores.unreadable)})"
        )
    if rule == "word" and scores.reread:
        notes.append(
            f"responses that are not exactly Yes or No and were read by their first yes or no: {scores.reread}"
            "; AMBER's own program counts such responses as wrong, as --yes_no exact does."
        )
    if rule == "release":
        notes.append(
            "yes and no were read by the released code's rule, which is not to be trusted: it finds no in "
            "words such as snow, in the question too. Use it only to compare with that code's numbers."
        )
    if numbers["discriminative"]:
        absent = [kind for kind in ("existence", "attribute", "relation") if not numbers[kind]]
        if absent:
            notes.append(f"no {' and no '.join(absent)} responses in the file: the row 'all' is without them.")
    return notes


AMBER = Benchmark(
    name="amber",
    help="AMBER: descriptions and yes/no questions",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("CHAIR", "generative.chair", better="lower"),
        Column("Cover", "generative.cover"),
        Column("Hal", "generative.hal", better="lower"),
        Column("Cog", "generative.cog", better="lower"),
        Column("accuracy", "discriminative.accuracy"),
        Column("F1", "discriminative.f1"),
        Column("existence F1", "existence.f1"),
        Column("attribute F1", "attribute.f1"),
        Column("relation F1", "relation.f1"),
    ),
    questions=QuestionFormat(
        "query_all.json or another of AMBER's",
        _read_question,
        lambda record, response: {"id": record["id"], "response": response},
        decided=first_word_decided,
        source="git clone https://github.com/junyangwang0410/AMBER data/AMBER; its README links to the images, for"
        " data/AMBER/image",
    ),
    metrics=metrics_of_sums,
)
