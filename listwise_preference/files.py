"""Files, read and written in one way everywhere.

Reading: JSON, and records as a JSON list or as JSON lines, with one :class:`DataError` that names file and line.
Writing: whole or not at all. Work that takes long writes through ``store``.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from listwise_preference.errors import DataError

logger = logging.getLogger("listwise_preference")

Record = dict[str, Any]

DEEPEST, MOST_DIGITS = 100, 100  # levels of nesting, and digits of a number, of what is read
LARGEST_YAML = 1_000_000  # characters
_MANY_DIGITS = re.compile(rf"[0-9]{{{MOST_DIGITS + 1}}}")

LISTED = 20  # how many numbers, or runs of numbers, one message names


# ---- reading ----


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON value of a file, or of another source.

    Attributes:
        number: from 1, over all sources that are read together.
        in_file: the same in its own file.
        line: where lines are counted.
    """

    number: int
    file: Path | str
    value: Any
    in_file: int
    line: int | None = None

    @property
    def where(self) -> str:
        """Its place, for a message."""
        return f"{self.file}: record {self.in_file}" + ("" if self.line is None else f" (line {self.line})")


def read_text(file: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        DataError: the file is missing, cannot be read or is not UTF-8.
    """
    _check_is_file(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def first_bytes(file: Path, count: int) -> bytes:
    """The beginning of a file, by which its kind is told; nothing where it is none, or cannot be read.

    A named pipe is not opened: it would be waited for.
    """
    try:
        if file.is_file():
            with file.open("rb") as stream:
                return stream.read(count)
    except (OSError, ValueError):
        pass  # whoever reads the whole file says what is wrong
    return b""


def _check_is_file(file: Path) -> None:
    """Opened, a named pipe would wait for a writer; raises DataError."""
    try:
        if not file.is_file():
            if file.exists():
                raise DataError(
                    f"{file}: {'a folder' if file.is_dir() else 'not a file that ends, but a pipe or device'}"
                )
            os.stat(file)  # which says why it is not there  # noqa: PTH116
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:  # a name that no file can have
        raise DataError(f"{str(file)!r}: cannot be read: {error}") from error


def _unreadable(file: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{file}: no such file")
    return DataError(f"{file}: cannot be read: {error.strerror}")


def parse_json(text: str, file: Path | str, first_line: int = 1) -> Any:
    """The value of a JSON text that begins on ``first_line`` of ``file``.

    What JSON allows and nothing here can mean is refused, so that no reader has to think of it: more than 100 levels
    of nesting, and numbers of more than 100 digits.

    Raises:
        DataError: with line and column where it is not JSON.
    """
    try:
        value = json.loads(text, parse_int=_whole_number if _MANY_DIGITS.search(text) else None)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{file}: line {line}, column {error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{file}: line {first_line}: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{file}: line {first_line}: {error}") from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise DataError(f"{file}: line {first_line}: nested too deeply: more than {DEEPEST} levels")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits; at most {MOST_DIGITS} are read")
    return int(digits)


def _is_deep(value: Any) -> bool:
    """Whether lists and mappings are nested more than DEEPEST levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        if not level:
            return False
        level = [
            child
            for one in level
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list)
        ]
    return bool(level)


@contextlib.contextmanager
def expecting(form: str, file: Path | str) -> Iterator[None]:
    """For a reader that takes a file's form as given: where it is another one, one message names the file and the form.

    Raises:
        DataError: what the file holds is missing something, or of another type.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise DataError(f"{file}: not {form} ({type(error).__name__}: {error})") from error


def below(root: Path, path: str) -> Path | None:
    """The path under ``root``; None where it leads out of it.

    By names alone, so that a link inside the root may lead to another disk.
    """
    # Text, not Path: this is done a million times.
    whole = os.path.normpath(os.path.join(root, path))  # noqa: PTH118
    if "\\" in path and not os.path.exists(whole):  # noqa: PTH110
        whole = os.path.normpath(os.path.join(root, path.replace("\\", "/")))  # noqa: PTH118
    above = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118 - resolve() would follow links
    if not os.path.join(os.path.abspath(whole), "").startswith(above):  # noqa: PTH100, PTH118
        return None
    return find_file(Path(whole))


def parse_yaml(text: str, file: Path | str) -> Any:
    """The value of a YAML text of options or names: no tags that make objects, and bounded as JSON is.

    Raises:
        DataError: where it is not YAML, has aliases, or is larger than a million characters.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases: a few lines of them unfold to any size."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: aliases (*name) are not read")
            return super().compose_node(parent, index)

    if len(text) > LARGEST_YAML:
        raise DataError(f"{file}: {len(text):,} characters; YAML is read up to {LARGEST_YAML:,}")
    try:
        value = yaml.load(text, Loader=Loader)
    except RecursionError:
        raise DataError(f"{file}: nested too deeply") from None
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    except Exception as error:  # of the values: dates that are none, numbers of too many digits, keys that are lists
        raise DataError(f"{file}: not YAML that can be read: {error}") from None
    if _is_deep(value):
        raise DataError(f"{file}: nested too deeply: more than {DEEPEST} levels")
    _refuse_many_digits(value, file)
    return value


def _refuse_many_digits(value: Any, file: Path | str) -> None:
    """YAML spells whole numbers in several ways, so that only the value shows them."""
    if isinstance(value, dict | list):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_many_digits(one, file)
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise DataError(f"{file}: a number of more than {MOST_DIGITS} digits")


def read_json(file: Path) -> Any:
    """The value in a JSON file; raises DataError where it cannot be read."""
    return parse_json(read_text(file), file)


def read_rows(file: Path) -> list[Row]:
    """The values of a JSON list, or of JSON lines, told apart by content.

    Raises:
        DataError: the file cannot be read, is neither, or is empty.
    """
    return list(iterate_json_rows(file))


def iterate_json_rows(file: Path) -> Iterator[Row]:
    """As :func:`read_rows`; of JSON lines one is in memory at a time."""
    first = next((line for _, line in _lines(file)), None)
    if first is None:
        raise DataError(f"{file}: the file is empty")
    if first.lstrip().startswith("[") or (file.suffix == ".json" and not _is_json_object(first)):
        values = parse_json(read_text(file), file)
        if not isinstance(values, list):
            raise DataError(f"{file}: not a list of records; write [record, record, ...] or one record a line")
        if not values:
            raise DataError(f"{file}: no records in it: the list is empty")
        yield from (Row(n, file, value, n) for n, value in enumerate(values, start=1))
        return
    for n, (number, line) in enumerate(_lines(file), start=1):
        yield Row(n, file, parse_json(line, file, first_line=number), n, number)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; raises DataError as :func:`read_text`."""
    _check_is_file(file)
    at = 0
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                at += len(line)
                if text.strip():
                    yield number, text.removesuffix("\n")
    except OSError as error:
        raise _unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {at + error.start}; save it as UTF-8") from error


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
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
            # Half a surrogate pair, which JSON can spell, becomes a question mark: no work is lost for it.
            stream.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
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


@contextlib.contextmanager
def held_alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which is removed at the end, with the folders made for it that are still empty.

    The lock is the operating system's, so that a process that dies leaves none behind. The file has a few bytes, which
    show that the disk takes some.

    Raises:
        DataError: another process holds it, with ``refusal``; or the place cannot be written.
    """
    made = [folder for folder in lock.parents if not folder.exists()]
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = _locked(lock)
    except BlockingIOError:
        raise DataError(refusal) from None
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise DataError(f"{lock.parent}: cannot be written: {reason}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        stream.close()
        for folder in made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _locked(lock: Path) -> IO[bytes]:
    """The open file; raises BlockingIOError where another process holds it."""
    while True:
        stream = lock.open("ab")
        try:
            _lock(stream)
            if os.fstat(stream.fileno()).st_ino == lock.stat().st_ino:
                stream.truncate(0)
                stream.write(b"\0" * 4096)
                stream.flush()
                return stream
            stream.close()
        except FileNotFoundError:  # the process before has just removed this one
            stream.close()
        except BlockingIOError:
            stream.close()
            raise
        except OSError:
            with contextlib.suppress(OSError):
                lock.unlink()
                stream.close()
            raise


def _lock(stream: IO[bytes]) -> None:
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError) as error:  # Windows; a file system without locks
        logger.warning(f"{stream.name} cannot be locked ({error}): do not start this run twice")


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
