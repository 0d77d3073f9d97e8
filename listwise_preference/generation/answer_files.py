"""The answers of a run on the disk, so that it can be stopped at any moment and continued.

Beside ``<output>`` stand, while a run works, ``<output>.partial.jsonl`` (a line an answer, flushed batch by batch;
further processes write ``<output>.partial-1.jsonl`` ...) and, from its start on and for good, ``<output>.run.json``:
the model, adapter, questions and settings that made the answers, which a rerun must share to continue.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from listwise_preference.errors import DataError
from listwise_preference.files import complete_lines, cut_partial_line, write_atomic
from listwise_preference.generation.questions import Benchmark, Question, Questions, write_answers

if TYPE_CHECKING:
    from listwise_preference.generation.engine import Answer

logger = logging.getLogger("listwise_preference")


class AnswerFiles:
    """The answers file of a run and what stands beside it."""

    def __init__(self, output: Path, process_index: int = 0) -> None:
        self.output = output
        self.record = output.with_name(f"{output.name}.run.json")
        number = f"-{process_index}" if process_index else ""
        self.partial = output.with_name(f"{output.name}.partial{number}.jsonl")

    def _partials(self) -> list[Path]:
        """The partial files of all processes, of earlier runs with more of them too."""
        start = f"{self.output.name}.partial"
        folder = self.output.parent
        names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        return [folder / name for name in names if name.startswith(start) and name.endswith(".jsonl")]

    def begin(self, run: dict[str, Any], restart: bool) -> bool:
        """Start or continue a run; whether it is finished already.

        Raises:
            DataError: answers of another run are in the way.
        """
        answers = [file for file in (self.output, *self._partials()) if file.exists()]
        if answers and not restart:
            if not self.record.exists():
                raise DataError(
                    f"{answers[0]} is there without {self.record}, so nobody knows what made it."
                    " Give another --output, or begin again with --restart"
                )
            earlier = json.loads(self.record.read_text(encoding="utf-8"))
            if changed := _differences(earlier.get("decides", {}), run["decides"]):
                raise DataError(
                    f"{answers[0]} holds answers of another run; what differs:\n"
                    + "\n".join(f"  {line}" for line in changed)
                    + "\nGive another --output, or begin again with --restart"
                )
            if earlier["versions"] != run["versions"]:
                logger.warning(f"continuing under other versions than before: {earlier['versions']}")
            if self.output.exists():
                self._remove_partials()
                return True
        else:
            if self.output.exists():  # the model may turn out not to load: nothing is lost by trying
                self.output.replace(self.output.with_name(f"{self.output.name}.old"))
            self._remove_partials()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._write_record(run)
        return False

    def _remove_partials(self) -> None:
        for file in self._partials():
            file.unlink()

    def _write_record(self, run: Mapping[str, Any]) -> None:
        write_atomic(self.record, json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def repair(self) -> None:
        """Take off a last line that an interruption has torn, so that the next one starts clean."""
        cut_partial_line(self.partial)

    def read(self) -> dict[int, dict[str, Any]]:
        """Every whole line of every process, by question number."""
        return {line["number"]: line for file in self._partials() for line in complete_lines(file)}

    def append(self, answers: Iterable["Answer"]) -> None:
        """Write answers and flush them."""
        with self.partial.open("a", encoding="utf-8", errors="replace") as stream:
            for answer in answers:
                line = {"number": answer.question.number, "answer": answer.text, "cut": answer.cut}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def finish(self, benchmark: Benchmark, asked: Questions) -> None:
        """The official file from the partial ones, which then go."""
        lines = self.read()
        write_answers(
            benchmark,
            ((question, lines[question.number]["answer"]) for question in asked.questions),
            self.output,
        )
        run = json.loads(self.record.read_text(encoding="utf-8"))
        cut = {kind: _count_cut(asked.questions, lines, kind == "yes_no") for kind in ("free_text", "yes_no")}
        self._write_record(run | {"answers_cut": cut})
        self._remove_partials()
        for kind, option in (("free_text", "--max_new_tokens"), ("yes_no", "--max_new_tokens_yes_no")):
            if cut[kind]:
                logger.warning(f"{cut[kind]:,} answers had not ended when they reached {option}")
        logger.info(f"wrote {len(asked.questions):,} answers to {self.output}")


def _count_cut(questions: Iterable[Question], lines: Mapping[int, Mapping[str, Any]], yes_no: bool) -> int:
    return sum(bool(lines[question.number]["cut"]) for question in questions if question.yes_no == yes_no)


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted({*earlier, *now}):
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after)
        elif before != after:
            lines.append(f"{key}: {before} then, {after} now")
    return lines
