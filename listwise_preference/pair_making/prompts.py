"""The images and prompts that a model responds to, several times each, and the file of its responses. Needs no torch.

A prompts file has {"img_path", "prompt"} a record, in JSON or any of the kinds and forms that pairs may have; what
responses it has are not read. "image" and "question" or "query" are other names of the keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from listwise_preference.data.pairs import read_candidate
from listwise_preference.data.sources import read_file_rows
from listwise_preference.data.validation import Candidate, report
from listwise_preference.errors import DataError
from listwise_preference.files import Record
from listwise_preference.scoring.interface import QuestionFormat

_TWICE = "id used twice"


@dataclass(frozen=True)
class Prompt:
    """One image with a prompt; ``img_path`` is as in the file, ``number`` counts the prompts that are asked, from 1."""

    number: int
    id: str | int
    img_path: str
    path: Path
    text: str


@dataclass(frozen=True)
class Prompts:
    """What is asked, in the file's order; ``repeated`` records ask what an earlier one does, ``bad`` ones are left out;
    ``report`` is empty when there are none."""

    prompts: tuple[Prompt, ...]
    repeated: int
    bad: int
    report: str


def read_prompts(file: Path, image_root: Path, on_bad_record: str, special_tokens: tuple[str, ...]) -> Prompts:
    """Read and check every record; no image is opened.

    Raises:
        DataError: the file cannot be read, no record is good, or one is bad and ``on_bad_record`` is "stop".
    """
    if not image_root.is_dir():
        raise DataError(f"{image_root}: no such folder; set --image_root to the folder the images are under")
    candidates = [Candidate(replace(row, value=_with_responses(row.value))) for row in read_file_rows(file)]
    ids: set[str] = set()
    good: dict[tuple[Path, str], Prompt] = {}
    repeated = 0
    for candidate in candidates:
        read_candidate(candidate, image_root, special_tokens)
        if str(candidate.id) in ids and not candidate.problems:
            candidate.problems += ((_TWICE, f"{candidate.row.where}: id {candidate.id}"),)
        ids.add(str(candidate.id))
        if candidate.problems:
            continue
        assert candidate.id is not None and candidate.path is not None
        assert candidate.img_path is not None and candidate.texts is not None
        text = candidate.texts[0]
        if (candidate.path, text) in good:
            repeated += 1
        else:
            good[candidate.path, text] = Prompt(len(good) + 1, candidate.id, candidate.img_path, candidate.path, text)
    bad = [candidate for candidate in candidates if candidate.problems]
    said = report(bad, file, len(candidates)) if bad else ""
    if bad and (on_bad_record == "stop" or not good):
        left = f"\n--on_bad_record drop asks the other {len(good)}." if good else ""
        raise DataError(said + left)
    if not good:
        raise DataError(f"{file}: no record in it")
    return Prompts(tuple(good.values()), repeated, len(bad), said)


def _with_responses(value: object) -> object:
    """A record of image and prompt as one of a pair, whose reader knows all forms of both."""
    if not isinstance(value, dict) or {"chosen", "rejected"} & value.keys():
        return value
    if "query" in value and "prompt" not in value:
        value = {**value, "prompt": value["query"]}
    if {"prompt", "question"} & value.keys():
        return {
            **{key: value[key] for key in value if key not in ("completions", "query")},
            "chosen": "a",
            "rejected": "b",
        }
    return value


def question_format(prompts: Sequence[Prompt], draws: int) -> QuestionFormat:
    """The prompts as questions, each as often as responses are drawn: question ``(prompt - 1) * draws + draw``."""
    by_number = {prompt.number: prompt for prompt in prompts}

    def read(record: Record, image_root: Path) -> tuple[str, Path | None, bool]:
        prompt = by_number[record["number"]]
        return prompt.text, prompt.path, False

    def write(record: Record, response: str) -> Record:
        prompt = by_number[record["number"]]
        return {
            "prompt_number": prompt.number,
            "prompt_id": prompt.id,
            "draw": record["draw"],
            "img_path": prompt.img_path,
            "prompt": prompt.text,
            "response": response,
        }

    records = [{"number": prompt.number, "draw": draw} for prompt in prompts for draw in range(1, draws + 1)]
    return QuestionFormat("prompts", read, write, json_lines=True, records=lambda file: records)


def place_of(question: int, draws: int) -> tuple[int, int]:
    """(number of the prompt, draw) of a question's number."""
    prompt, draw = divmod(question - 1, draws)
    return prompt + 1, draw + 1
