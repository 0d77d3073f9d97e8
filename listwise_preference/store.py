"""Work that can be stopped at any moment and continued by the same command: answers, image lists, reference values.

Finished items stand in a folder, one JSON line each, flushed as they are appended, in one file per process. An output
file has such a folder beside it while it is made, ``OUTPUT.parts/``, with ``run.json``: what decides the result. The
same command continues there, one that would give another result is refused, and at the end OUTPUT takes the folder's
place in one move.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import Record, cut_partial_line, json_line, read_json, write_json

logger = logging.getLogger("listwise_preference")

WAYS_ON = "Name another --output, or begin again with --restart."


class ResumableStore:
    """Finished items by key, in a folder of files of JSON lines.

    A line that is no whole item, since a stop or a damaged disk left it so, counts as not there: what it was for is
    computed again.

    Args:
        folder: made with the first item.
        key: the field of an item that says which one it is, a whole number or a text.
        process: name of the file that this process appends to; no two processes may have the same.
    """

    def __init__(self, folder: Path, key: str, process: int | str = 0) -> None:
        self.folder = folder
        self.file = folder / f"{process}.jsonl"
        self._key = key
        self._has_appended = False

    def items_by_process(self) -> list[list[Record]]:
        """The finished items, those of each file in the order they were appended in."""
        return [list(self._items(file)) for file in sorted(self.folder.glob("*.jsonl"))]

    def items(self) -> dict[Any, Record]:
        """The finished items of all processes by key."""
        return {item[self._key]: item for items in self.items_by_process() for item in items}

    def append(self, items: Iterable[Record]) -> None:
        """Add finished items and flush them."""
        if not self._has_appended:
            self.folder.mkdir(parents=True, exist_ok=True)
            cut_partial_line(self.file)
            self._has_appended = True
        # A model can write half a surrogate pair; the file stays UTF-8.
        with self.file.open("a", encoding="utf-8", errors="replace") as stream:
            stream.write("".join(map(json_line, items)))

    def _items(self, file: Path) -> Iterator[Record]:
        for line in file.read_bytes().split(b"\n")[:-1]:
            try:
                item = json.loads(line)
            except ValueError:
                continue
            if isinstance(item, dict) and isinstance(item.get(self._key), int | str):
                yield item


class ResumableOutput(ResumableStore):
    """An output file and, until it is whole, the folder of its finished items, numbered from 1.

    An older OUTPUT stays until the new one takes its place; one of unknown origin is never replaced. Subclasses say by
    :meth:`made` what decided the OUTPUT that stands.
    """

    def __init__(self, output: Path, process: int = 0) -> None:
        super().__init__(output.with_name(f"{output.name}.parts"), "number", process)
        self.output = output
        self._run_file = self.folder / "run.json"

    def made(self) -> Mapping[str, Any] | None:
        """The run that made OUTPUT as it stands, None where nothing says so."""
        raise NotImplementedError

    @property
    def replaces(self) -> bool:
        """Whether the run in progress was begun by --restart, so that an OUTPUT that stands is not its result."""
        begun = self._begun()
        return bool(begun.get("replaces", begun.get("afresh")))  # "afresh" in folders of earlier versions

    def check(self) -> None:
        """Refuse an output whose place is taken by others.

        Raises:
            DataError: says by what.
        """
        if self.output.is_dir():
            raise DataError(f"--output {self.output} is a folder; name a file in it, e.g. {self.output / 'output'}")
        if self.output.exists() and self.made() is None:
            raise DataError(
                f"{self.output} is there, and nothing says what made it, so that it is neither continued nor replaced."
                " Name another --output, or move the file away."
            )
        if self.folder.exists():
            names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else {""}
            if self._run_file.name not in names and any(not name.startswith(self._run_file.name) for name in names):
                raise DataError(f"{self.folder} is there and not this program's; name another --output")

    def begin(self, run: Mapping[str, Any], *, restart: bool, versions: Mapping[str, str] | None = None) -> bool:
        """Begin or continue a run; whether OUTPUT is its whole result already. One process calls it, first of all.

        Args:
            run: all that decides the result.
            restart: leave out of account what was finished before.
            versions: of libraries that may change the last bits of a number; others than before are warned of.

        Raises:
            DataError: the place is taken, or what stands there is of another run and ``restart`` is not set.
        """
        self.check()
        replaces = restart
        if restart:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif any(self.items_by_process()):
            begun = self._begun()
            self._refuse_other(begun.get("run"), run)
            replaces = self.replaces
            if others := differences(begun.get("versions") or {}, versions or {}):
                logger.warning(f"{self.output} is continued under other versions: {'; '.join(others)}")
        elif self.output.exists():
            self._refuse_other(self.made(), run)
        write_json(self._run_file, {"run": run, "versions": versions, "replaces": replaces})
        return self.output.exists() and not replaces

    def discard(self) -> None:
        """Remove the parts, once OUTPUT is written. One process calls it, at the end."""
        shutil.rmtree(self.folder)

    def _begun(self) -> Record:
        begun = read_json(self._run_file) if self._run_file.exists() else {}
        return begun if isinstance(begun, dict) else {}

    def _refuse_other(self, made: Any, run: Mapping[str, Any]) -> None:
        if lines := differences(made if isinstance(made, dict) else {}, json.loads(json.dumps(run))):
            what = "\n".join(f"  {line}" for line in lines)
            raise DataError(f"{self.output} was made with other options or from other inputs:\n{what}\n{WAYS_ON}")


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each entry that is not the same, also in entries that are mappings themselves."""
    lines = []
    for name in sorted({*earlier, *now}):
        before, after = earlier.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after)
        elif before != after:
            lines.append(f"{name} was {before!r} and is {after!r}")
    return lines
