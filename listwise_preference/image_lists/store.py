"""What is done so far, so that a run can be stopped at any moment and continued.

While a run works, finished records stand in OUTPUT.parts/, one JSONL file per process, each line flushed when its
record is finished, beside ``run.json``: the options and inputs that decide the result. At the end they become OUTPUT,
in input order and in one move; its summary then holds what ``run.json`` held.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from listwise_preference.pairs import DataError
from listwise_preference.safe_files import cut_torn_line, whole_lines, write_whole

Line = dict[str, Any]
Run = Mapping[str, Any]


class ListStore:
    """The lines of one output file, by record number.

    Args:
        output: the image lists file.
        process: index of this process among those that share the work; each appends to a file of its own.
    """

    def __init__(self, output: Path, process: int = 0) -> None:
        self.output = output
        self.summary = output.with_name(f"{output.stem}.summary.json")
        self.histogram = output.with_name(f"{output.stem}.box_share.png")
        self.parts = output.with_name(f"{output.name}.parts")
        self._part = self.parts / f"{process}.jsonl"

    def begin(self, run: Run, *, restart: bool) -> None:
        """Make the folder of parts, or find the one of an interrupted run. One process does this, before any appends.

        Raises:
            DataError: what is there was made with other options or from other inputs, and ``restart`` is not set.
        """
        if restart:
            shutil.rmtree(self.parts, ignore_errors=True)
            self.output.unlink(missing_ok=True)
        run_file = self.parts / "run.json"
        if run_file.exists() and self.lines():
            self._refuse_other(run_file, run)
        elif self.output.exists():
            if not self.summary.exists():
                raise DataError(f"{self.output} is there, and nothing says how it was made. {_WAYS_OUT}")
            self._refuse_other(self.summary, run)
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_whole(run_file, json.dumps({"run": run}, indent=2) + "\n")
        except OSError as error:
            raise DataError(f"--output {self.output}: {error.strerror}: {error.filename}") from None

    def repair(self) -> None:
        """Cut off what an interruption left of a last line of this process's file."""
        cut_torn_line(self._part)

    def lines(self) -> dict[int, Line]:
        """All finished records, of the output as it stands and of all whole lines of the parts, which go first."""
        lines: dict[int, Line] = {}
        if self.output.exists():
            lines = dict(enumerate(whole_lines(self.output), start=1))
        for part in sorted(self.parts.glob("*.jsonl")):
            lines |= {value["number"]: value["line"] for value in whole_lines(part)}
        return lines

    def append(self, number: int, line: Line) -> None:
        """Add one finished record and flush it."""
        with self._part.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"number": number, "line": line}, ensure_ascii=False) + "\n")

    def finish(self, lines: Sequence[Line], run: Run, summary: Mapping[str, Any]) -> None:
        """Write summary and output, each whole or not at all, and drop the parts. One process does this, at the end."""
        write_whole(self.summary, json.dumps({**summary, "run": run}, indent=2, ensure_ascii=False) + "\n")
        write_whole(self.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        shutil.rmtree(self.parts)

    def _refuse_other(self, file: Path, run: Run) -> None:
        try:
            made = json.loads(file.read_text(encoding="utf-8"))["run"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{file} cannot be read, so that nothing says how {self.output} was made. {_WAYS_OUT}"
            ) from None
        given = json.loads(json.dumps(run))
        changed = [name for name in sorted({*made, *given}) if made.get(name) != given.get(name)]
        if changed:
            what = "; ".join(f"{name} was {made.get(name)!r} and is {given.get(name)!r}" for name in changed)
            raise DataError(f"{self.output} was begun with other options or inputs: {what}. {_WAYS_OUT}")


_WAYS_OUT = "Name another --output, or begin again with --restart."
