"""Responses files: read and check them before anything is counted, and read yes and no out of free text."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from listwise_preference.errors import DataError
from listwise_preference.files import LISTED, Record, listed

Item = TypeVar("Item")
YesNoRule = Literal["word", "exact", "release"]


@dataclass(frozen=True)
class Answer:
    """One response: the id of its question and its text."""

    id: int
    response: str


@dataclass(frozen=True)
class Problems:
    """What is wrong with a responses file, one sentence per kind; empty when nothing is.

    Attributes:
        missing: responses that are not there, or cannot be used, of those that are ``wanted``; they are in no number.
        wanted: 0 where that is not known.
    """

    sentences: tuple[str, ...] = ()
    missing: int = 0
    wanted: int = 0

    def and_also(self, sentence: str) -> "Problems":
        """These, and one more."""
        return replace(self, sentences=(*self.sentences, sentence))

    def refuse_unless(self, partial: bool, path: Path) -> None:
        """Raise DataError with all sentences, unless the caller asked to score what is there."""
        if self.sentences and not partial:
            listed = "\n".join(f"  - {sentence}" for sentence in self.sentences)
            raise DataError(
                f"{path}: not scored, because\n{listed}\n"
                "Correct the file, or add --partial to score what is there; the result is then marked partial."
            )


def first_text(record: Record, keys: Sequence[str]) -> str | None:
    """The text under the first of ``keys`` that has one: responses files name it differently."""
    return next((record[key] for key in keys if isinstance(record.get(key), str)), None)


def check_answers(records: Sequence[Record], sections: Mapping[str, Sequence[int]]) -> tuple[list[Answer], Problems]:
    """Responses that can be scored, in file order, and what is wrong with the file.

    ``sections`` are the parts of a benchmark that may be answered alone (AMBER: descriptions, existence,
    ...), each with its ids. A section counts as asked when at least one of its ids is answered, and then
    wants all of them. Records of the wrong type and with unknown ids are left out of the answers; repeated
    ids stay in, as the official programs score every record of a file.
    """
    known = {id_ for ids in sections.values() for id_ in ids}
    answers: list[Answer] = []
    wrong: list[str] = []
    unknown: list[int] = []
    for number, record in enumerate(records, start=1):
        id_, response = record.get("id"), record.get("response")
        if type(id_) is not int:
            wrong.append(
                f'record {number} has no "id"'
                if "id" not in record
                else f'record {number}: "id" is {json.dumps(id_)}, not a whole number'
            )
        elif not isinstance(response, str):
            wrong.append(
                f'id {id_} has no "response"'
                if "response" not in record
                else f'id {id_}: "response" is not text but {type(response).__name__}'
            )
        elif id_ not in known:
            unknown.append(id_)
        else:
            answers.append(Answer(id_, response))

    times = Counter(answer.id for answer in answers)
    sentences = []
    all_missing = wanted = 0
    for name, ids in sections.items():
        missing = [id_ for id_ in ids if id_ not in times]
        if len(missing) < len(ids):
            wanted += len(ids)
            all_missing += len(missing)
        if missing and len(missing) < len(ids):
            sentences.append(f"{len(missing)} of {len(ids)} {name} ids are missing: {listed(missing)}")
    if repeated := [id_ for id_, count in times.items() if count > 1]:
        sentences.append(
            f"ids repeated: {listed(repeated)} (with --partial every copy counts, as in the official program)"
        )
    if unknown:
        sentences.append(f"ids unknown: {listed(unknown)} (known are {listed(known)})")
    if wrong:
        more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        sentences.append("of the wrong type: " + "; ".join(wrong[:LISTED]) + more)
    if not answers:
        sentences.append("no response in it belongs to this benchmark")
    return answers, Problems(tuple(sentences), all_missing, wanted)


def match(
    records: Sequence[Record], questions: Sequence[Record], fields: Sequence[str], text_keys: Sequence[str]
) -> tuple[list[tuple[Record, Record]], Problems]:
    """(response, question) pairs that can be scored, in file order, and what is wrong with the responses file.

    A response belongs to the question with the same values under ``fields``. Of several to one question the first
    counts.
    """

    def key(record: Record) -> tuple[str, ...]:
        return tuple(str(record.get(name)) for name in fields)

    known = {key(question): question for question in questions}
    found: dict[tuple[str, ...], tuple[Record, Record]] = {}
    textless, unknown = [], []
    repeated: list[str] = []
    for number, record in enumerate(records, start=1):
        if key(record) not in known:
            unknown.append(number)
        elif first_text(record, text_keys) is None:
            textless.append(number)
        elif key(record) in found:
            repeated.append(f"{number} ({', '.join(key(record))})")
        else:
            found[key(record)] = (record, known[key(record)])
    sentences = []
    if missing := [one for one in known if one not in found]:
        first = ", ".join(f"{name} {value}" for name, value in zip(fields, missing[0], strict=True))
        sentences.append(f"{len(missing)} of {len(known)} questions have no response; the first is {first}")
    if unknown:
        sentences.append(f"no question has the {', '.join(fields)} of record {listed(unknown)}")
    if textless:
        sentences.append(f"no text under {' or '.join(map(json.dumps, text_keys))} in record {listed(textless)}")
    if repeated:
        shown = ", ".join(repeated[:LISTED]) + ", ..." * (len(repeated) > LISTED)
        sentences.append(f"a question is answered again in record {shown}; with --partial the first counts")
    if not found:
        sentences.append("no response in it belongs to these questions")
    return list(found.values()), Problems(tuple(sentences), len(missing), len(known))


def read_label(value: object) -> str | None:
    """``yes`` or ``no`` of a label written as yes, true or 1, no, false or 0, in any case; else None."""
    written = str(value).strip().lower()
    return "yes" if written in ("yes", "true", "1") else "no" if written in ("no", "false", "0") else None


def first_of_each(records: Sequence[Item], keys: Sequence[str]) -> tuple[list[Item], str | None]:
    """The first record of each key, and a sentence on those that are given again, if any."""
    firsts: dict[str, Item] = {}
    repeated = []
    for key, record in zip(keys, records, strict=True):
        if key in firsts:
            repeated.append(key)
        firsts.setdefault(key, record)
    if not repeated:
        return list(records), None
    shown = ", ".join(list(dict.fromkeys(repeated))[:LISTED]) + ", ..." * (len(set(repeated)) > LISTED)
    return list(firsts.values()), f"{len(repeated)} responses given again: {shown}; with --partial the first counts"


# A full stop inside a number or a name does not end a sentence.
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_YES_OR_NO = re.compile(r"(?<![\w-])(yes|no)(?!\w|-\w)", re.IGNORECASE)


def first_yes_or_no(text: str) -> str:
    """``Yes`` or ``No``: the first whole word yes or no, any case, in the first sentence; else the text."""
    first_sentence = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    found = _YES_OR_NO.search(first_sentence)
    return found.group().capitalize() if found else text


def contained_yes_or_no(text: str) -> str | None:
    """``Yes`` where "yes" is anywhere in the text, inside words too, else ``No`` where "no" is, else None.

    DASH-B and BEAF read so. "No, his eyes are closed" is Yes, and "I cannot tell" is No.
    """
    lowered = text.lower()
    return "Yes" if "yes" in lowered else "No" if "no" in lowered else None


def first_word_decided(beginning: str) -> bool:
    """Whether :func:`first_yes_or_no` of a text that begins like this is settled: the word, and what ends it."""
    text = beginning.rstrip("\ufffd").rstrip()  # the sign of a character that has not all its bytes yet
    read = first_yes_or_no(text)
    return read in ("Yes", "No") and first_yes_or_no(text + "a") == read and first_yes_or_no(text + "-a") == read


def release_yes_or_no(decoded: str) -> str:
    """The released code's rule, for comparison only: "no" anywhere in the decoded text, inside words too.

    That code decodes the prompt together with the response, so ``decoded`` is both; 114 of AMBER's questions
    hold "no" in words such as snow, and their responses are all read as No.
    """
    if any(word in decoded for word in ("NO", "No", "no")):
        return "No"
    if any(word in decoded for word in ("YES", "Yes", "yes")):
        return "Yes"
    return decoded
