"""The lists of one output file: finished lines in ``OUTPUT.parts/`` while they are made, then OUTPUT and its summary.

``summary.json`` holds what decided the lines, so that the same command, also with another --exclude, computes nothing
again.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import Record, json_line, parse_json, read_json, read_text, write_atomic, write_json
from listwise_preference.store import WAYS_ON, ResumableOutput


class ListStore(ResumableOutput):
    """The lines of one output file, by record number.

    Args:
        output: the image lists file.
        ids: of all records, in input order.
        process: index of this process among those that share the work.
    """

    def __init__(self, output: Path, ids: Sequence[str | int], process: int = 0) -> None:
        super().__init__(output, process)
        self.ids = ids

    @property
    def summary(self) -> Path:
        """``summary.json`` beside the output; with OUTPUT's stem in front where that name belongs to another
        output."""
        named = self.output.with_name(f"{self.output.stem}.summary.json")
        plain = self.output.with_name("summary.json")
        is_free = not plain.exists() and not plain.with_name("box_share.png").exists()
        return plain if not self._read(named) and (is_free or self._read(plain)) else named

    @property
    def histogram(self) -> Path:
        """``box_share.png``, named as the summary is."""
        return self.output.with_name(f"{self.summary.name.removesuffix('summary.json')}box_share.png")

    def _read(self, summary: Path) -> Record:
        """The content of a summary of this output; empty if it is none, or another's."""
        try:
            content = read_json(summary)
            return content if content["output"] == self.output.name and isinstance(content["run"], dict) else {}
        except (DataError, KeyError, TypeError):
            return {}

    def made(self) -> Mapping[str, Any] | None:
        """What decided the lines of OUTPUT, as the summary says."""
        return self._read(self.summary).get("run")

    def check(self) -> None:
        """As in the base class; the summary's place must be free as well."""
        super().check()
        if self.summary.exists() and not self._read(self.summary):
            raise DataError(f"{self.summary} exists and was not made by this program; name another --output")

    def lines(self) -> dict[int, Record]:
        """All finished records; those in the parts take precedence over those of the existing output.

        Raises:
            DataError: the output was changed since it was made.
        """
        lines: dict[int, Record] = {}
        if self.output.exists() and not self.replaces:
            *rows, rest = read_text(self.output).split("\n")
            if len(rows) != len(self.ids) or rest:
                raise self._changed(f"{len(rows) + bool(rest)} lines for {len(self.ids)} records")
            for number, row in enumerate(rows, start=1):
                try:
                    lines[number] = parse_json(row, self.output, number)
                except DataError:
                    raise self._changed(f"line {number} is not JSON") from None
                if not self._is_of(number, lines[number]):
                    raise self._changed(f"line {number} is not that of record {self.ids[number - 1]}")
        for number, item in self.items().items():
            if self._is_of(number, item.get("line")):
                lines[number] = item["line"]
        return lines

    def add(self, number: int, line: Record, seconds: float) -> None:
        """Append a finished record and flush it; ``seconds`` since the one before."""
        self.append([{"number": number, "seconds": round(seconds, 6), "line": line}])

    def measured(self) -> tuple[int, float]:
        """Records in the parts, and the seconds that they took, those of the busiest process."""
        parts = [[_seconds(item.get("seconds")) for item in items] for items in self.items_by_process()]
        return sum(map(len, parts)), max(map(sum, parts), default=0.0)

    def earlier_speed(self) -> Record:
        """``speed`` in the summary of the existing output, empty when there is none or a new one is begun."""
        if not self.output.exists() or self.replaces:
            return {}
        speed = self._read(self.summary).get("speed")
        if not isinstance(speed, dict):
            return {}
        records = speed.get("records_computed")
        return speed | {
            "records_computed": records if type(records) is int else 0,
            "seconds": _seconds(speed.get("seconds")),
        }

    def finish(self, lines: Sequence[Record], run: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write summary and output, each whole or not at all, and remove the parts. One process calls it."""
        write_json(self.summary, {"output": self.output.name, **summary, "run": run})
        write_atomic(self.output, "".join(map(json_line, lines)))
        self.discard()

    def _is_of(self, number: int, line: Any) -> bool:
        is_known = number in range(1, len(self.ids) + 1)
        return is_known and isinstance(line, dict) and line.get("id") == self.ids[number - 1] and "verdict" in line

    def _changed(self, what: str) -> DataError:
        return DataError(f"{self.output}: {what}: it was changed since it was made. Restore it, or: {WAYS_ON}")


def _seconds(value: Any) -> float:
    """Nothing where it is no time: it decides nothing."""
    return float(value) if type(value) in (int, float) and 0 <= value < math.inf else 0.0
