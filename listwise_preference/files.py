"""Files, read and written in one way everywhere.

Reading: JSON, and records as a JSON list or as JSON lines, with one :class:`DataError` that names file and line.
Writing: whole or not at all. Work that takes long writes through ``store``.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError

Record = dict[str, Any]

LISTED = 20  # how many numbers, or runs of numbers, one message names


# ---- reading ----


@dataclass(frozen=True)
class Row:
    """One JSON value of a file: its number, from 1, and its place, for a message."""

    number: int
    where: str
    value: Any


def read_text(file: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        DataError: the file is missing, cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def parse_json(text: str, file: Path, first_line: int = 1) -> Any:
    """The value of a JSON text that begins on ``first_line`` of ``file``.

    Raises:
        DataError: with line and column where it is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{file}: line {line}, column {error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{file}: line {first_line}: nested too deeply") from None


def read_json(file: Path) -> Any:
    """The value in a JSON file; raises DataError where it cannot be read."""
    return parse_json(read_text(file), file)


def read_rows(file: Path) -> list[Row]:
    """The values of a JSON list, or of JSON lines, told apart by content.

    Raises:
        DataError: the file cannot be read, is neither, or is empty.
    """
    text = read_text(file)
    if not text.strip():
        raise DataError(f"{file}: the file is empty")
    if text.lstrip().startswith("[") or (file.suffix == ".json" and not _is_json_lines(text)):
        values = parse_json(text, file)
        if not isinstance(values, list):
            raise DataError(f"{file}: not a list of records; write [record, record, ...] or one record a line")
        if not values:
            raise DataError(f"{file}: no records in it: the list is empty")
        return [Row(n, f"{file}: record {n}", value) for n, value in enumerate(values, start=1)]
    # Not splitlines(): JSON strings may hold the other characters that it splits at.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [
        Row(n, f"{file}: record {n} (line {number})", parse_json(line, file, first_line=number))
        for n, (number, line) in enumerate(lines, start=1)
    ]


def _is_json_lines(text: str) -> bool:
    """Whether the first line that is not blank is a JSON object by itself."""
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def read_records(file: Path) -> list[Record]:
    """The objects of a JSON list or of JSON lines.

    Raises:
        DataError: as :func:`read_rows`, or a record is no object.
    """
    rows = read_rows(file)
    if wrong := [row.number for row in rows if not isinstance(row.value, dict)]:
        raise DataError(f"{file}: not a JSON object: record {listed(wrong)}")
    return [row.value for row in rows]


def listed(numbers: Iterable[int]) -> str:
    """Numbers for a message, runs shortened: ``1-4, 9, 12-13``; no more than LISTED runs."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:LISTED]]
    if len(runs) > LISTED:
        left = sum(last - first + 1 for first, last in runs[LISTED:])
        shown.append(f"and {left} more")
    return ", ".join(shown)


def path_key(path: str, root: Path | None = None) -> str:
    """Equal for ways to write one path: with ``./``, with backslashes, with composed or decomposed letters.

    With a ``root``, absolute paths below it are as those that are relative to it.
    """
    key = os.path.normpath(unicodedata.normalize("NFC", path).replace("\\", "/")).replace(os.sep, "/")
    if root is None or not os.path.isabs(key):  # noqa: PTH117 - thousands of times
        return key
    return key.removeprefix(path_key(os.path.abspath(root)).rstrip("/") + "/")  # noqa: PTH100


def find_file(path: Path) -> Path:
    """The path, or where it is missing the one there that has the same letters, composed or decomposed otherwise.

    Archives and disks of other systems write "é" as one character or as two.
    """
    # Not Path.exists(), which raises on names that are too long.
    if str(path).isascii() or os.path.exists(path) or path.parent == path:  # noqa: PTH110
        return path
    folder = find_file(path.parent)
    try:
        same = _names(folder, folder.stat().st_mtime_ns).get(path_key(path.name), [])
    except (OSError, ValueError):  # no such folder, or none that can be looked into
        return path
    return folder / same[0] if len(same) == 1 else path


@functools.lru_cache(maxsize=64)
def _names(folder: Path, changed: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for one in folder.iterdir():
        names.setdefault(path_key(one.name), []).append(one.name)
    return names


def sha256_of(files: Sequence[Path]) -> str:
    """Of one file what ``sha256sum`` prints; of several one hash over theirs, in the order given."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


# ---- writing ----


def write_atomic(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, also when the power fails; its folder is made where it is missing.

    Raises:
        DataError: the place cannot be written.
    """
    partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
        sync(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise DataError(f"{file}: cannot be written: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before anything that relies on it."""
    if os.name == "nt":  # opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def write_json(file: Path, value: Any) -> None:
    """Indented JSON that people can read in any language, whole or not at all."""
    write_atomic(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_line(value: Any) -> str:
    """One line of JSON lines."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def cut_partial_line(file: Path) -> None:
    """Cut off what an interruption left of a last line, so that the next one starts clean."""
    if file.exists():
        with file.open("r+b") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
