"""MMHal-Bench: 96 responses, each rated 0 to 6 by a judge, counted as the benchmark's own program counts.

The rating is read as that program reads it: the texts "rating: 0" ... "rating: 6" are looked for in the
reply, any case, and a reply with none or several of them is unparsed and scores 0. A rating below 3 says that
the response hallucinates.
"""

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from listwise_preference.cli import Parser
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_records
from listwise_preference.scoring.answers import Problems, first_of_each, first_text
from listwise_preference.scoring.interface import (
    BadRecord,
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    first_found,
    required_text,
    sum_by_image,
)
from listwise_preference.scoring.judge import API_KEY_VARIABLE, add_judge_options, fill, judge_of, read_template
from listwise_preference.scoring.result import Result, file_identity
from listwise_preference.scoring.words import DATA

QUESTIONS = 96
FIELDS = ("image_content", "question", "gt_answer", "model_answer")
OUR_PROMPT = DATA / "mmhal_judge_prompt.txt"


def join_template(records: Sequence[Record], template: Sequence[Record] | None) -> list[Record]:
    """Responses in the template's form, from records in that form or from responses in the template's order.

    Responses alone hold their text under "text", "answer" or "response"; "Assistant:" is taken off as the
    benchmark's own converter does. DataError where they come without the template.
    """
    if all("gt_answer" in record for record in records):
        return list(records)
    if template is None:
        raise DataError(
            "the responses are not in the form of MMHal-Bench's template (question, gt_answer, ...): "
            "give the template file with --questions"
        )
    if len(records) != len(template):
        raise DataError(f"{len(records)} responses for the {len(template)} questions of the template")
    joined = []
    for number, (record, question) in enumerate(zip(records, template, strict=True), start=1):
        text = first_text(record, ("model_answer", "text", "answer", "response"))
        if text is None:
            raise DataError(f'record {number}: no text under "text", "answer" or "response"')
        joined.append({**question, "model_answer": text.replace("Assistant:", "").strip()})
    return joined


def check(records: Sequence[Record]) -> tuple[list[Record], Problems]:
    """The responses that can be judged, and what is wrong with the file."""
    sentences, usable, wrong = [], [], []
    for number, record in enumerate(records, start=1):
        content = record.get("image_content")
        whole = isinstance(content, list) and all(
            isinstance(record.get(name), str) for name in ("question_type", *FIELDS[1:])
        )
        if whole:
            usable.append(record)
        else:
            wrong.append(number)
    asked = [f"{one.get('image_id') or one.get('image_src') or 'image'}: {one['question']}" for one in usable]
    usable, again = first_of_each(usable, asked)
    if again:
        sentences.append(again)
    if len(records) != QUESTIONS:
        sentences.append(f"{len(records)} records, and MMHal-Bench has {QUESTIONS}")
    if wrong:
        sentences.append(
            "question_type, image_content, question, gt_answer or model_answer missing or not text: "
            f"record {listed(wrong)}"
        )
    if usable and not any(record["model_answer"] for record in usable):
        sentences.append("every model_answer is empty: this is the template itself")
    if not usable:
        sentences.append("no record in it is a MMHal-Bench response")
    return usable, Problems(tuple(sentences), max(0, QUESTIONS - len(usable)), QUESTIONS)


def prompts(records: Sequence[Record], template_path: Path) -> list[str]:
    """The judge's prompt for each response, from a template with the four fields or with four bare ``{}``."""
    template = read_template(template_path, FIELDS)
    return [
        fill(
            template,
            {
                **{name: record[name] for name in FIELDS[1:]},
                "image_content": ", ".join(record["image_content"]),
            },
        )
        for record in records
    ]


def rating_in(reply: str) -> int | None:
    """The one rating in a judge's reply, or None where it has none or several."""
    found = [rating for rating in range(7) if f"rating: {rating}" in reply.lower()]
    return found[0] if len(found) == 1 else None


def count_answer(record: Record, reply: str) -> dict[str, int]:
    """What one judged response adds to the sums."""
    rating = rating_in(reply)
    score = rating or 0
    return {
        "answers": 1,
        "score": score,
        "hallucinated": int(score < 3),
        "informative": score - 3 if score >= 3 else score,
        "unparsed": int(rating is None),
        f"answers of {record['question_type']}": 1,
        f"score of {record['question_type']}": score,
    }


def metrics(sums: Mapping[str, float], question_types: Sequence[str]) -> Record:
    """Mean score, hallucination rate, informativeness (percent), mean score of each type; unrounded."""

    def mean(of: str, over: str = "answers") -> float | None:
        return sums.get(of, 0) / sums[over] if sums.get(over) else None

    informative = mean("informative")
    return {
        "score": mean("score"),
        "hallucination_rate": mean("hallucinated"),
        "informativeness": None if informative is None else informative / 3 * 100,
        "question_types": {kind: mean(f"score of {kind}", f"answers of {kind}") for kind in question_types},
    }


def table(result: Result) -> str:
    """The result for people to read, with the official program's rounding."""
    lines = [
        f"Average score       {result['score']:.2f}",
        f"Hallucination rate  {result['hallucination_rate']:.3f}",
        f"Informativeness     {result['informativeness']:.2f}",
        "",
        "Average score of each question type",
    ]
    lines += [f"  {kind:14} {score:.2f}" for kind, score in result["question_types"].items()]
    if unparsed := result["counts"]["unparsed"]:
        lines += ["", f"{unparsed} replies without exactly one rating, scored 0 as in the official program"]
    return "\n".join(lines)


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    question = required_text(record, "question")
    # The benchmark's download keeps the names that the images have at their source.
    names = [str(record[key]).rsplit("/", 1)[-1] for key in ("image_path", "image_src") if record.get(key)]
    if record.get("image_id"):
        names.append(f"{record['image_id']}.jpg")
    if not names:
        raise BadRecord('no "image_src" and no "image_id"')
    return question, first_found([image_root / below / name for below in ("", "images") for name in names]), False


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--judge_base_url", required=True, help=f"OpenAI-compatible endpoint; its key is read from {API_KEY_VARIABLE}")
    add("--judge_model", required=True, help="model that rates, by its name there")
    fields = "{image_content}, {question}, {gt_answer} and {model_answer}, or four {}"
    add("--judge_prompt", type=Path, help=f"file with the prompt, a template with {fields}; default: ours")
    add("--questions", type=Path, help="the benchmark's answer template, where the responses are not in its form")
    add_judge_options(parser)


def _score(args: Namespace) -> Scored:
    template = read_records(args.questions) if args.questions else None
    records, problems = check(join_template(read_records(args.answers), template))
    problems.refuse_unless(args.partial and bool(records), args.answers)
    prompt = args.judge_prompt or OUR_PROMPT
    judge = judge_of(args, args.judge_base_url, args.judge_model)
    replies = judge.replies(prompts(records, prompt))
    print(f"Judge: {json.dumps(judge.describe())}", file=sys.stderr)
    images = sum_by_image(
        (str(record.get("image_id") or record.get("image_src") or number), count_answer(record, reply))
        for number, (record, reply) in enumerate(zip(records, replies, strict=True))
    )
    sums: Counter[str] = sum(images.values(), Counter())
    types = list(dict.fromkeys(record["question_type"] for record in records))
    notes = []
    if not args.judge_prompt:
        notes.append("judged with our prompt; published numbers use the official one (--judge_prompt FILE).")
    if empty := sum(not record["model_answer"] for record in records):
        notes.append(f"{empty} responses are empty and were judged as they are.")
    whose = "given by --judge_prompt" if args.judge_prompt else "ours"
    return Scored(
        metrics(sums, types),
        images,
        lambda drawn: metrics(drawn, types),
        counts={"answers": len(records), "unparsed": sums["unparsed"]},
        protocol={"judge": judge.model, "temperature": 0.0, "prompt": {"whose": whose, **file_identity(prompt)}},
        problems=problems,
        notes=notes,
        only_in_file={
            "judged": [
                {**record, "judge_reply": reply, "rating": rating_in(reply)}
                for record, reply in zip(records, replies, strict=True)
            ]
        },
    )


MMHAL = Benchmark(
    name="mmhal",
    help="MMHal-Bench: 96 responses rated by a judge",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("score", "score", digits=2),
        Column("hal. rate", "hallucination_rate", digits=2, better="lower"),
    ),
    questions=QuestionFormat(
        "mmhal-bench_answer_template.json",
        _read_question,
        lambda record, response: {**record, "model_answer": response},
        source="huggingface.co/datasets/Shengcao1006/MMHal-Bench has questions and images",
    ),
    metrics=lambda sums: metrics(sums, [name[9:] for name in sums if name.startswith("score of ")]),
)
