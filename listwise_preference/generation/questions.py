"""A benchmark's questions and images in, its official form of responses file out. Needs no torch.

The form of a benchmark's files is in its module in ``listwise_preference.scoring``.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from listwise_preference.data.ranked_images import open_image
from listwise_preference.data.validation import shown
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record, below, find_file, json_line, write_atomic
from listwise_preference.scoring.interface import BadRecord, QuestionFormat

# Opening an image waits for the disk and lets other threads run while it decodes.
_THREADS = 8


@dataclass(frozen=True)
class Question:
    """One question on one image, or on none; ``number`` is its place in the file, from 1; ``record`` is its record
    there."""

    number: int
    text: str
    image: Path | None
    yes_no: bool
    record: Record


@dataclass(frozen=True)
class Questions:
    """The usable questions in the file's order, and what is wrong with each of the rest."""

    questions: tuple[Question, ...]
    dropped: tuple[str, ...]


def read_questions(
    form: QuestionFormat,
    file: Path,
    image_root: Path,
    on_bad_record: Literal["stop", "drop"] = "stop",
    text_only: bool = True,
) -> Questions:
    """All questions of a file, each checked, and each distinct image decoded once to see that it can be.

    Those without an image are left out unless ``text_only``.

    Raises:
        DataError: the file cannot be read; records or images are bad and ``on_bad_record`` is "stop", with a
            message that names them all; or no question is left.
    """
    records = form.records(file)
    read: list[Question] = []
    problems: list[str] = []
    left_out = 0
    for number, record in enumerate(records, start=1):
        try:
            text, image, yes_no = form.read(record, image_root)
            _check(record, image, image_root)
        except BadRecord as bad:
            problems.append(f"record {number}: {bad}")
        else:
            if image is None and not text_only:
                left_out += 1
            else:
                read.append(Question(number, text, image and find_file(image), yes_no, record))
    ids = Counter(question.record.get("id") for question in read if "id" in question.record)
    repeated = sorted(str(id_) for id_, count in ids.items() if count > 1)
    if repeated:
        raise DataError(f"{file}: ids used more than once: {', '.join(repeated)}")

    broken = _broken_images({question.image for question in read if question.image is not None})
    asked = Counter(question.image for question in read)
    problems += [f"{what} ({_questions(asked[image])})" for image, what in sorted(broken.items())]
    questions = tuple(question for question in read if question.image not in broken)
    if problems and (on_bad_record == "stop" or not questions):
        wanted = len(records) - left_out
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(
            f"{file}: {_questions(wanted - len(questions))} of {wanted} cannot be asked:\n{listed}\n"
            + (
                f"Check --image_root ({image_root}); --on_bad_record drop asks the other {len(questions)}."
                if questions
                else f"No question is left; check --image_root ({image_root})."
            )
        )
    return Questions(questions, tuple(problems))


def _check(record: Record, image: Path | None, image_root: Path) -> None:
    """What no benchmark's own reader looks at; raises BadRecord."""
    if isinstance(record.get("id"), list | dict):
        raise BadRecord(f'"id" is {shown(record["id"])}, neither a number nor text')
    if image is not None and below(image_root, os.path.relpath(image, image_root)) is None:
        raise BadRecord(f"{image} is not under --image_root {image_root}")


def _questions(count: int) -> str:
    return f"{count} question" if count == 1 else f"{count} questions"


def _broken_images(images: Iterable[Path]) -> dict[Path, str]:
    """What is wrong with each image that cannot be opened."""

    def fault(image: Path) -> str | None:
        try:
            open_image(image)
        except ImageError as error:
            return str(error)
        return None

    ordered = sorted(images)
    with ThreadPoolExecutor(_THREADS) as pool:
        bar = tqdm(pool.map(fault, ordered), total=len(ordered), desc="checking images", unit="file", disable=None)
        return {image: what for image, what in zip(ordered, bar, strict=True) if what is not None}


def write_responses(form: QuestionFormat, responses: Iterable[tuple[Question, str]], file: Path) -> None:
    """The official responses file, in the questions' order, atomically."""
    records = [form.write(question.record, response) for question, response in responses]
    lines = "".join(map(json_line, records))
    text = lines if form.json_lines else json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    # A model can write half a surrogate pair; the file must stay UTF-8.
    write_atomic(file, text.encode("utf-8", "replace"))
