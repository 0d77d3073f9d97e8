"""A benchmark's questions and images in, its official form of answers file out. Needs no torch.

| benchmark | questions | answers |
|---|---|---|
| amber | any of AMBER's query files, ``[{"id", "image", "query"}]`` | ``[{"id", "response"}]`` |
| object-halbench | lines of ``{"image_id", "question"}`` and an optional ``"image"``: a file name, or the image itself in base64 as in ``obj_halbench_300_with_image.jsonl`` | lines of ``{"image_id", "question", "answer"}`` |
| mmhal | the answer template | the template with ``model_answer`` filled in |
| pope | lines of ``{"question_id", "image", "text", "label"}`` | lines of ``{"question_id", "question", "answer"}`` |
"""  # noqa: E501 - a table

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record, read_records, write_atomic
from listwise_preference.scoring.answers import first_yes_or_no
from listwise_preference.scoring.pope import says_yes

# Opening an image waits for the disk and lets other threads run while it decodes.
_THREADS = 8
# Longer than any file name: what stands under "image" is then the image itself.
_INLINE_PICTURE = 300


@dataclass(frozen=True)
class Question:
    """One question on one image; ``number`` is its place in the file, from 1; ``record`` is what stands there."""

    number: int
    text: str
    image: Path
    yes_no: bool
    record: Record


@dataclass(frozen=True)
class Questions:
    """The usable questions in the file's order, and what is wrong with each of the rest."""

    questions: tuple[Question, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark's forms.

    Attributes:
        read: (text, image, whether yes or no is asked for) of a record; raises _Bad.
        write: the official record of a question's answer.
        json_lines: the official file is JSON lines, else a JSON list.
        decided: whether a yes/no answer that begins like this is scored the same whatever follows.
    """

    read: Callable[[Record, Path], tuple[str, Path, bool]]
    write: Callable[[Record, str], Record]
    json_lines: bool
    decided: Callable[[str], bool]


class _Bad(Exception):
    """What is wrong with one record."""


# ---- when a yes/no answer is decided ----


def word_decided(beginning: str) -> bool:
    """Whether the first whole word yes or no of the first sentence is there, and ended by what follows it."""
    text = beginning.rstrip("\ufffd").rstrip()  # the sign of a character that has not all its bytes yet
    read = first_yes_or_no(text)
    return read in ("Yes", "No") and first_yes_or_no(text + "a") == read and first_yes_or_no(text + "-a") == read


def pope_decided(beginning: str) -> bool:
    """Whether POPE's own rule, which reads up to the first full stop, can no longer change its mind."""
    return "." in beginning or not (says_yes(beginning) or says_yes(beginning + "a"))


def _never(beginning: str) -> bool:
    return False


# ---- the forms ----


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Bad(f'no text under "{key}"')
    return value


def _read_amber(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    if type(record.get("id")) is not int:
        raise _Bad('no whole number under "id"')
    query = _text(record, "query")
    # All 1,004 descriptions of AMBER are asked for by "Describe this image."; every other query wants yes or no.
    return query, image_root / _text(record, "image"), not query.lower().startswith("describe")


def _write_amber(record: Record, answer: str) -> Record:
    return {"id": record["id"], "response": answer}


def _read_pope(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    return _text(record, "text"), image_root / _text(record, "image"), True


def _write_pope(record: Record, answer: str) -> Record:
    known = {"question_id": record["question_id"]} if "question_id" in record else {}
    return {**known, "question": record["text"], "answer": answer}


def _read_mmhal(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    question = _text(record, "question")
    # The benchmark's download keeps the names that the images have at their source.
    names = [str(record[key]).rsplit("/", 1)[-1] for key in ("image_path", "image_src") if record.get(key)]
    if record.get("image_id"):
        names.append(f"{record['image_id']}.jpg")
    if not names:
        raise _Bad('no "image_src" and no "image_id"')
    return question, _first_found([image_root / below / name for below in ("", "images") for name in names]), False


def _write_mmhal(record: Record, answer: str) -> Record:
    return {**record, "model_answer": answer}


def _read_object_halbench(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    question, image_id, image = _text(record, "question"), _coco_id(record), record.get("image")
    if not isinstance(image, str):
        names = [f"{prefix}{image_id:012d}.jpg" for prefix in ("COCO_val2014_", "COCO_train2014_", "")]
        return question, _first_found([image_root / name for name in names]), False
    if len(image) <= _INLINE_PICTURE:
        return question, image_root / image, False
    return question, _unpack(image, image_root / f"{image_id:012d}.jpg"), False


def _write_object_halbench(record: Record, answer: str) -> Record:
    return {"image_id": _coco_id(record), "question": record["question"], "answer": answer}


def _coco_id(record: Mapping[str, Any]) -> int:
    """The COCO id under "image_id", or in the file name under "image"."""
    for value in (record.get("image_id"), record.get("image")):
        if type(value) is int:
            return value
        found = re.search(r"(\d+)(\.\w+)?$", value) if isinstance(value, str) and len(value) < _INLINE_PICTURE else None
        if found:
            return int(found[1])
    raise _Bad('no COCO id under "image_id"')


def _first_found(paths: Sequence[Path]) -> Path:
    return next((path for path in paths if path.is_file()), paths[0])


def _unpack(image: str, path: Path) -> Path:
    """Write an image that the questions file holds to ``path``, unless it is there."""
    if path.is_file():
        return path
    try:
        content = base64.b64decode(image, validate=True)
    except binascii.Error as error:
        raise _Bad(f'"image" is neither a file name nor an image in base64: {error}') from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


BENCHMARKS = {
    "amber": Benchmark(_read_amber, _write_amber, False, word_decided),
    "object-halbench": Benchmark(_read_object_halbench, _write_object_halbench, True, _never),
    "mmhal": Benchmark(_read_mmhal, _write_mmhal, False, _never),
    "pope": Benchmark(_read_pope, _write_pope, True, pope_decided),
}


# ---- in and out ----


def read_questions(
    benchmark: Benchmark, file: Path, image_root: Path, on_bad_record: Literal["stop", "drop"] = "stop"
) -> Questions:
    """All questions of a file, each checked, and each distinct image decoded once to see that it can be.

    Raises:
        DataError: the file cannot be read; records or images are bad and ``on_bad_record`` is "stop", with a
            message that names them all; or no question is left.
    """
    records = read_records(file)
    read: list[Question] = []
    problems: list[str] = []
    for number, record in enumerate(records, start=1):
        try:
            text, image, yes_no = benchmark.read(record, image_root)
        except _Bad as bad:
            problems.append(f"record {number}: {bad}")
        else:
            read.append(Question(number, text, image, yes_no, record))
    ids = Counter(question.record.get("id") for question in read if "id" in question.record)
    repeated = sorted(str(id_) for id_, count in ids.items() if count > 1)
    if repeated:
        raise DataError(f"{file}: ids used more than once: {', '.join(repeated)}")

    broken = _broken_images({question.image for question in read})
    asked = Counter(question.image for question in read)
    problems += [f"{what} ({_questions(asked[image])})" for image, what in sorted(broken.items())]
    questions = tuple(question for question in read if question.image not in broken)
    if problems and (on_bad_record == "stop" or not questions):
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(
            f"{file}: {_questions(len(records) - len(questions))} of {len(records)} cannot be asked:\n{listed}\n"
            + (
                f"Check --image_root ({image_root}); --on_bad_record drop answers the other {len(questions)}."
                if questions
                else f"No question is left; check --image_root ({image_root})."
            )
        )
    return Questions(questions, tuple(problems))


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


def write_answers(benchmark: Benchmark, answers: Iterable[tuple[Question, str]], file: Path) -> None:
    """The official answers file, in the questions' order, at once or not at all."""
    records = [benchmark.write(question.record, answer) for question, answer in answers]
    if benchmark.json_lines:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    # A model can write half a surrogate pair; the file must stay UTF-8.
    write_atomic(file, text.encode("utf-8", "replace"))
