"""MMHal-Bench: 96 answers, each rated 0 to 6 by a judge, counted as the benchmark's own program counts.

The rating is read as that program reads it: the texts "rating: 0" ... "rating: 6" are looked for in the
reply, any case, and a reply with none or several of them is unparsed and scores 0. A rating below 3 says that
the answer hallucinates.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed
from listwise_preference.scoring.answers import Problems
from listwise_preference.scoring.judge import Judge, fill, read_template
from listwise_preference.scoring.words import DATA

QUESTIONS = 96
FIELDS = ("image_content", "question", "gt_answer", "model_answer")
OUR_PROMPT = DATA / "mmhal_judge_prompt.txt"


def join_template(records: Sequence[Record], template: Sequence[Record] | None) -> list[Record]:
    """Answers in the template's form, from records in that form or from answers in the template's order.

    Plain answers hold their text under "text", "answer" or "response"; "Assistant:" is taken off as the
    benchmark's own converter does. DataError where they come without the template.
    """
    if all("gt_answer" in record for record in records):
        return list(records)
    if template is None:
        raise DataError(
            "the answers are not in the form of MMHal-Bench's template (question, gt_answer, ...): "
            "give the template file with --questions"
        )
    if len(records) != len(template):
        raise DataError(f"{len(records)} answers for the {len(template)} questions of the template")
    joined = []
    for number, (record, question) in enumerate(zip(records, template, strict=True), start=1):
        keys = ("model_answer", "text", "answer", "response")
        text = next((record[key] for key in keys if isinstance(record.get(key), str)), None)
        if text is None:
            raise DataError(f'record {number}: no text under "text", "answer" or "response"')
        joined.append({**question, "model_answer": text.replace("Assistant:", "").strip()})
    return joined


def check(records: Sequence[Record]) -> tuple[list[Record], Problems]:
    """The answers that can be judged, and what is wrong with the file."""
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
        sentences.append("no record in it is a MMHal-Bench answer")
    return usable, Problems(tuple(sentences))


def prompts(records: Sequence[Record], template_path: Path) -> list[str]:
    """The judge's prompt for each answer, from a template with the four fields or with four bare ``{}``."""
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


def judge_answers(records: Sequence[Record], template_path: Path, judge: Judge) -> list[str]:
    """The judge's reply to each answer."""
    return judge.replies([[{"role": "user", "content": text}] for text in prompts(records, template_path)])


def count_answer(record: Record, reply: str) -> dict[str, int]:
    """What one judged answer adds to the sums."""
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


def count_images(records: Sequence[Record], replies: Sequence[str]) -> dict[str, Counter[str]]:
    """The sums of each image's answers."""
    images: dict[str, Counter[str]] = {}
    for number, (record, reply) in enumerate(zip(records, replies, strict=True)):
        image = str(record.get("image_id") or record.get("image_src") or number)
        images.setdefault(image, Counter()).update(count_answer(record, reply))
    return images


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


def table(result: Mapping[str, Any]) -> str:
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
