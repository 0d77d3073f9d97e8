"""Results of long runs that can be stopped at any moment and resumed: responses, image lists, reference values.

Finished items are appended to files in a folder, one JSON line each, one file per process, flushed at once. While an
output file is made it has such a folder beside it, ``OUTPUT.parts/``, with ``run.json``, which holds all that decides
the result. The same command resumes there; a command that would give another result is refused. At the end OUTPUT
replaces the folder.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import Record, cut_partial_line, held_alone, json_line, parse_json, read_json, write_json

logger = logging.getLogger("listwise_preference")

WAYS_ON = "Name another --output, or start again with --restart."


def one_run(output: Path) -> contextlib.AbstractContextManager[None]:
    """Hold an output for this run alone, so that the same command started twice does not work on it twice.

    Raises:
        DataError: another run is at work on it, or its folder cannot be written.
    """
    refusal = f"{output}: another run is at work on it; wait for it, or name another --output"
    return held_alone(output.with_name(f".{output.name}.lock"), refusal)


class ResumableStore:
    """Finished items by key, in a folder of files of JSON lines.

    A partial or damaged line is ignored, and its item is computed again.

    Args:
        folder: created with the first item.
        key: the field that identifies an item, a whole number or a text.
        process: name of the file that this process appends to, different for each process.
    """

    def __init__(self, folder: Path, key: str, process: int | str = 0) -> None:
        self.folder = folder
        self.file = folder / f"{process}.jsonl"
        self._key = key
        self._has_appended = False

    def items_by_process(self) -> list[list[Record]]:
        """The finished items of each file, in the order they were appended in."""
        return [list(self._items(file)) for file in sorted(self.folder.glob("*.jsonl"))]

    def items(self) -> dict[Any, Record]:
        """The finished items of all processes by key."""
        return {item[self._key]: item for items in self.items_by_process() for item in items}

    def append(self, items: Iterable[Record]) -> None:
        """Add finished items and flush them.

        Raises:
            DataError: the disk takes no more; what was added before stays.
        """
        try:
            if not self._has_appended:
                self.folder.mkdir(parents=True, exist_ok=True)
                cut_partial_line(self.file)
                self._has_appended = True
            # A model can write half a surrogate pair; the file stays UTF-8.
            with self.file.open("a", encoding="utf-8", errors="replace") as stream:
                stream.write("".join(map(json_line, items)))
        except OSError as error:
            kept = "what was finished before is kept, and the same command goes on once there is space"
            full = DataError(f"{self.file}: cannot be written: {error.strerror or error}; {kept}")
            full.of_one_process = True
            raise full from error

    def _items(self, file: Path) -> Iterator[Record]:
        for line in file.read_bytes().split(b"\n")[:-1]:
            try:
                item = parse_json(line.decode("utf-8"), file)
            except (ValueError, DataError):
                continue
            if isinstance(item, dict) and isinstance(item.get(self._key), int | str):
                yield item


class ResumableOutput(ResumableStore):
    """An output file and, until it is complete, the folder of its finished items, numbered from 1.

    An older OUTPUT is kept until the new one replaces it; an OUTPUT of unknown origin is never replaced. Subclasses
    return from :meth:`made` what decided the existing OUTPUT.
    """

    def __init__(self, output: Path, process: int = 0) -> None:
        super().__init__(output.with_name(f"{output.name}.parts"), "number", process)
        self.output = output
        self._run_file = self.folder / "run.json"

    def made(self) -> Mapping[str, Any] | None:
        """The run that made the existing OUTPUT, None where nothing records it."""
        raise NotImplementedError

    @property
    def replaces(self) -> bool:
        """Whether the run in progress was begun by --restart, so that an existing OUTPUT is not its result."""
        begun = self._begun()
        return bool(begun.get("replaces", begun.get("afresh")))  # "afresh" in folders of earlier versions

    def check(self) -> None:
        """Refuse an output path that something else occupies.

        Raises:
            DataError: names what is there.
        """
        if self.output.is_dir():
            raise DataError(f"--output {self.output} is a folder; name a file in it, e.g. {self.output / 'output'}")
        if self.output.exists() and self.made() is None:
            raise DataError(
                f"{self.output} exists, and nothing records what made it, so it is neither resumed nor replaced."
                " Name another --output, or move the file away."
            )
        if self.folder.exists():
            names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else {""}
            if self._run_file.name not in names and any(not name.startswith(self._run_file.name) for name in names):
                raise DataError(f"{self.folder} exists and was not made by this program; name another --output")

    def begin(self, run: Mapping[str, Any], *, restart: bool, versions: Mapping[str, str] | None = None) -> bool:
        """Begin or resume a run; returns whether OUTPUT is its complete result already. Called once, by one process,
        first.

        Args:
            run: all that decides the result.
            restart: ignore what was finished before.
            versions: of libraries that may change the last bits of a number; a warning names those that changed.

        Raises:
            DataError: the path is occupied, or holds another run's result and ``restart`` is not set.
        """
        self.check()
        replaces = restart
        if restart:
            self._remove_parts()
        elif any(self.items_by_process()):
            begun = self._begun()
            self._refuse_other(begun.get("run"), run)
            replaces = self.replaces
            if others := _differences(begun.get("versions", {}), versions or {}):
                logger.warning(f"{self.output} is resumed under other versions: {'; '.join(others)}")
        elif self.output.exists():
            self._refuse_other(self.made(), run)
        write_json(self._run_file, {"run": run, "versions": versions, "replaces": replaces})
        return self.output.exists() and not replaces

    def discard(self) -> None:
        """Remove the parts once OUTPUT is written. Called once, by one process, at the end."""
        self._remove_parts()

    def _remove_parts(self) -> None:
        """Under another name, so that a stop in the middle leaves no folder whose run is not known."""
        gone = self.folder.with_name(f"{self.folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        if self.folder.is_dir():
            self.folder.rename(gone)
            shutil.rmtree(gone)

    def _begun(self) -> Record:
        begun = read_json(self._run_file) if self._run_file.exists() else {}
        return {name: value for name, value in begun.items() if value is not None} if isinstance(begun, dict) else {}

    def _refuse_other(self, made: Any, run: Mapping[str, Any]) -> None:
        if lines := _differences(made, json.loads(json.dumps(run))):
            what = "\n".join(f"  {line}" for line in lines)
            raise DataError(f"{self.output} was made with other options or from other inputs:\n{what}\n{WAYS_ON}")


def _differences(earlier: Any, now: Mapping[str, Any]) -> list[str]:
    """As :func:`differences`; what is no mapping was changed by someone, and records nothing."""
    return differences(earlier if isinstance(earlier, dict) else {}, now)


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each entry that differs, also inside entries that are mappings themselves."""
    lines = []
    for name in sorted({*earlier, *now}):
        before, after = earlier.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after)
        elif before != after:
            lines.append(f"{name} was {before!r} and is {after!r}")
    return lines
