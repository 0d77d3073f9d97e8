"""What is done so far, so that a run can be stopped at any moment and continued.

While a run works, finished records stand in OUTPUT.parts/, one JSONL file per process, each line flushed when its
record is finished, beside ``run.json``: the options and inputs that decide the result. At the end they become OUTPUT,
in input order and in one move; its summary then holds what ``run.json`` held. Only files that this program made are
ever replaced, and an older OUTPUT stays until the new one takes its place.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import cut_partial_line, write_atomic

Line = dict[str, Any]
Run = Mapping[str, Any]


class ListStore:
    """The lines of one output file, by record number.

    Args:
        output: the image lists file.
        ids: of all records, in input order.
        process: index of this process among those that share the work; each appends to a file of its own.
    """

    def __init__(self, output: Path, ids: Sequence[str | int], process: int = 0) -> None:
        self.output = output
        self.ids = ids
        self.parts = output.with_name(f"{output.name}.parts")
        self._part = self.parts / f"{process}.jsonl"

    @property
    def summary(self) -> Path:
        """``summary.json`` beside the output; OUTPUT's stem stands before it where that one is another file's."""
        named = self.output.with_name(f"{self.output.stem}.summary.json")
        plain = self.output.with_name("summary.json")
        is_free = not plain.exists() and not plain.with_name("box_share.png").exists()
        return plain if not self._is_mine(named) and (is_free or self._is_mine(plain)) else named

    @property
    def histogram(self) -> Path:
        """``box_share.png``, named as the summary is."""
        return self.output.with_name(f"{self.summary.name.removesuffix('summary.json')}box_share.png")

    def check(self) -> None:
        """Refuse an output that cannot be written, or whose place is taken by files of others.

        Raises:
            DataError: says which.
        """
        if self.output.is_dir():
            raise DataError(
                f"--output {self.output} is a folder; name a file in it, e.g. {self.output / 'lists.jsonl'}"
            )
        if self.summary.exists() and not self._is_mine(self.summary) and not self.output.exists():
            raise DataError(f"{self.summary} is there and not this program's; name another --output")
        if self.parts.exists():
            found = {path.name for path in self.parts.iterdir()} if self.parts.is_dir() else {""}
            if not found <= {"run.json.unfinished"} and "run.json" not in found:
                raise DataError(f"{self.parts} is there and not this program's; name another --output")

    def begin(self, run: Run, *, restart: bool) -> None:
        """Make the folder of parts, or find the one of an interrupted run. One process does this, before any appends.

        Raises:
            DataError: what is there was made with other options or from other inputs, and ``restart`` is not set, or
                was not made by this program.
        """
        self.check()
        run_file = self.parts / "run.json"
        # A run that began again does not look at the older output, also when it is continued.
        afresh = restart
        if restart:
            if self.output.exists() and not self._is_mine(self.summary):
                raise DataError(
                    f"{self.output} is there, and no summary says that this program made it: --restart does not replace"
                    " it. Name another --output, or move the file away."
                )
            shutil.rmtree(self.parts, ignore_errors=True)
        elif run_file.exists() and self._has_lines():
            self._refuse_other(run_file, run)
            afresh = self._began_afresh()
        elif self.output.exists():
            if not self._is_mine(self.summary):
                raise DataError(f"{self.output} is there, and nothing says how it was made. Name another --output.")
            self._refuse_other(self.summary, run)
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_atomic(run_file, json.dumps({"run": run, "afresh": afresh}, indent=2) + "\n")
        except OSError as error:
            raise DataError(f"--output {self.output}: {error.strerror}: {error.filename}") from None

    def repair(self) -> None:
        """Cut off what an interruption left of a last line of this process's file."""
        cut_partial_line(self._part)

    def lines(self) -> dict[int, Line]:
        """All finished records, of the output as it stands and of all whole lines of the parts, which go first.

        Raises:
            DataError: a line is damaged, or belongs to another record.
        """
        lines: dict[int, Line] = {}
        if self.output.exists() and not self._began_afresh():
            rows = _read(self.output).split("\n")
            if len(rows) != len(self.ids) + 1 or rows[-1]:
                raise DataError(
                    f"{self.output}: {len(rows) - (not rows[-1])} lines for {len(self.ids)} records: it was changed"
                    f" since it was made. {_RESTORE}"
                )
            for number, row in enumerate(rows[:-1], start=1):
                where = f"{self.output}: line {number}"
                lines[number] = self._checked(_parsed(row, where), where, number)
        for part in sorted(self.parts.glob("*.jsonl")):
            # What follows the last newline is torn.
            for number, row in enumerate(_read(part).split("\n")[:-1], start=1):
                where = f"{part}: line {number}"
                value = _parsed(row, where)
                place, line = value.get("number"), value.get("line")
                if not isinstance(place, int) or not 1 <= place <= len(self.ids) or not isinstance(line, dict):
                    raise DataError(f"{where} is damaged. {_RESTORE}")
                lines[place] = self._checked(line, where, place)
        return lines

    def append(self, number: int, line: Line, seconds: float) -> None:
        """Add one finished record and flush it; ``seconds`` since the one before."""
        row = {"number": number, "seconds": round(seconds, 6), "line": line}
        with self._part.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def measured(self) -> tuple[int, float]:
        """Records in the parts, and the seconds that they took, those of the busiest process."""
        parts = [
            [_parsed(row, str(part)).get("seconds", 0.0) for row in _read(part).split("\n")[:-1]]
            for part in self.parts.glob("*.jsonl")
        ]
        return sum(map(len, parts)), max(map(sum, parts), default=0.0)

    def made(self) -> Mapping[str, Any]:
        """The summary of the output as it stands, empty when there is none or a new one is begun."""
        if not self.output.exists() or self._began_afresh() or not self._is_mine(self.summary):
            return {}
        content: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return content

    def finish(self, lines: Sequence[Line], run: Run, summary: Mapping[str, Any]) -> None:
        """Write summary and output, each whole or not at all, and drop the parts. One process does this, at the end."""
        content = {"output": self.output.name, **summary, "run": run}
        write_atomic(self.summary, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_atomic(self.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        shutil.rmtree(self.parts)

    def _has_lines(self) -> bool:
        return any(b"\n" in part.read_bytes() for part in self.parts.glob("*.jsonl"))

    def _began_afresh(self) -> bool:
        try:
            return json.loads((self.parts / "run.json").read_text(encoding="utf-8")).get("afresh") is True
        except (OSError, ValueError, AttributeError):
            return False

    def _is_mine(self, summary: Path) -> bool:
        """Whether the file is the summary of this output, as this program writes it."""
        try:
            content = json.loads(summary.read_text(encoding="utf-8"))
            return content["output"] == self.output.name and isinstance(content["run"], dict)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _checked(self, line: Line, where: str, number: int) -> Line:
        if line.get("id") != self.ids[number - 1] or "verdict" not in line:
            raise DataError(
                f"{where} is of record {line.get('id')!r}, where the pairs have {self.ids[number - 1]!r}. {_RESTORE}"
            )
        return line

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
_RESTORE = "Put the file back as it was, name another --output, or begin again with --restart."


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is damaged: not UTF-8 at byte {error.start}. {_RESTORE}") from None


def _parsed(row: str, where: str) -> Line:
    try:
        value = json.loads(row)
    except ValueError:
        raise DataError(f"{where} is damaged: not JSON. {_RESTORE}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is damaged: no record. {_RESTORE}")
    return value
