"""What a benchmark is to the programs: how its questions are asked, its responses counted, its numbers shown.

A new one is a module with one :class:`Benchmark`, and its line in ``benchmarks.py``: ``generate.py`` then asks it,
``score.py`` has it as a command with its options, and ``score.py compare`` shows its columns.
"""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from listwise_preference.cli import Parser
from listwise_preference.files import Record, read_records
from listwise_preference.scoring.answers import Problems
from listwise_preference.scoring.result import Result


@dataclass(frozen=True)
class QuestionFormat:
    """A benchmark's questions file, and the responses file that its official program reads.

    Attributes:
        files: names of the official questions files, for the help text.
        source: where they and their images come from, for a user who has none.
        read: question, image (None: it is asked without one), and whether yes or no is asked for, of a record; the
            folder is the one that image names are relative to. Raises BadRecord.
        write: the official record of the response to a question's record.
        json_lines: the official responses file is JSON lines, else a JSON list.
        decided: whether a yes/no response that begins like this is scored the same whatever follows; it can then
            end early. None: never.
        records: the records of a questions file; another function where the benchmark has them in another form.
    """

    files: str
    read: Callable[[Record, Path], tuple[str, Path | None, bool]]
    write: Callable[[Record, str], Record]
    json_lines: bool = False
    decided: Callable[[str], bool] | None = None
    records: Callable[[Path], list[Record]] = read_records
    source: str = ""


class BadRecord(Exception):
    """What is wrong with one record of a questions file."""


def required_text(record: Record, key: str) -> str:
    """The text under a key; raises BadRecord where there is none."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(f'no text under "{key}"')
    return value


def first_found(paths: Sequence[Path]) -> Path:
    """The first path that is a file, or the first of all."""
    return next((path for path in paths if os.path.isfile(path)), paths[0])  # noqa: PTH113 - which takes any name


@dataclass(frozen=True)
class Column:
    """One metric: its heading, its key in a result, and how it is shown."""

    heading: str
    key: str
    scale: float = 1.0
    digits: int = 1
    better: Literal["higher", "lower", "neither"] = "higher"


@dataclass(frozen=True)
class Scored:
    """A benchmark's numbers for a responses file.

    Attributes:
        numbers: the metrics, and the other entries on the result's top level.
        images: each image's own counts, from which intervals are drawn.
        metrics: the metrics from sums of such counts, for the intervals.
        counts: how many responses there are, and of what kinds.
        protocol: the choices that can change a number.
        problems: what is wrong with the responses file; scored all the same because of --partial.
        notes: what a reader of the numbers must know.
        only_in_file: what is too long to print, such as each response's own record.
        write_more: writes what else was asked for, given the result and the notes.
    """

    numbers: Result
    images: Mapping[str, Mapping[str, int]]
    metrics: Callable[[Mapping[str, float]], Mapping[str, Any]]
    counts: Mapping[str, int]
    protocol: Result
    problems: Problems = field(default_factory=Problems)
    notes: Sequence[str] = ()
    only_in_file: Mapping[str, Any] = field(default_factory=dict)
    write_more: Callable[[Result, Sequence[str]], None] | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as the user types it.
        help: one line for ``score.py --help``.
        add_options: adds its own options to those of every benchmark (responses file, --output, --partial, ...).
        score: counts the responses file ``args.answers``; raises DataError on an error that the user can correct.
        table: the result for people to read.
        columns: of ``score.py compare``.
        questions: how generate.py asks it; None where it has no questions of its own.
        metrics: as ``Scored.metrics``, for the counts that a scores file keeps of each image: ``score.py table`` tests
            with them whether two runs differ. None: it does not.
    """

    name: str
    help: str
    add_options: Callable[[Parser], None]
    score: Callable[[Namespace], Scored]
    table: Callable[[Result], str]
    columns: Sequence[Column]
    questions: QuestionFormat | None = None
    metrics: Callable[[Mapping[str, float]], Mapping[str, Any]] | None = None


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a right-aligned text."""
    return "undefined" if value is None else f"{100 * value:6.{digits}f} %"


def sum_by_image(counted: Iterable[tuple[str, Mapping[str, int]]]) -> dict[str, Counter[str]]:
    """The sums of each image's counts, from (image, counts) of each response."""
    images: dict[str, Counter[str]] = {}
    for image, counts in counted:
        images.setdefault(image, Counter()).update(counts)
    return images
