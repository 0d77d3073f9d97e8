"""The responses of a run on disk, so that it can be stopped at any moment and resumed.

During a run, finished responses are in ``OUTPUT.parts/`` (see ``listwise_preference.store``). At its end OUTPUT
holds them in the benchmark's own form, and ``OUTPUT.run.json`` the model, adapter, questions and settings that made
them; what OUTPUT held before a --restart is kept as ``OUTPUT.old``.
"""

import glob
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from listwise_preference.errors import DataError
from listwise_preference.files import Record, read_json, write_json
from listwise_preference.generation.questions import Question, Questions, write_responses
from listwise_preference.scoring.interface import QuestionFormat
from listwise_preference.store import WAYS_ON, ResumableOutput

if TYPE_CHECKING:
    from listwise_preference.generation.engine import Response

logger = logging.getLogger("listwise_preference")


class ResponseFiles(ResumableOutput):
    """The responses file of a run and the files beside it."""

    def __init__(self, output: Path, process: int = 0) -> None:
        super().__init__(output, process)
        self.record = output.with_name(f"{output.name}.run.json")
        self._run: Mapping[str, Any] = {}

    def made(self) -> Mapping[str, Any] | None:
        """What decided the existing responses, from ``OUTPUT.run.json``."""
        record = read_json(self.record) if self.record.exists() else None
        return record.get("decides") if isinstance(record, dict) else None

    def begin(self, run: Mapping[str, Any], *, restart: bool, versions: Mapping[str, str] | None = None) -> bool:
        """Begin or resume a run whose record says under ``decides`` what decides the responses; returns whether OUTPUT
        is complete already.

        Raises:
            DataError: responses of another run, or of an unfinished one of an earlier version, are there.
        """
        earlier = sorted(self.output.parent.glob(f"{glob.escape(self.output.name)}.partial*.jsonl"))
        if earlier and not restart:
            raise DataError(
                f"{earlier[0]} is of an unfinished run of an earlier version of this program, which this one cannot"
                f" continue. {WAYS_ON}"
            )
        is_whole = super().begin(run["decides"], restart=restart, versions=run["versions"])
        for file in earlier:
            file.unlink()
        if is_whole:
            self.discard()
        self._run = run
        return is_whole

    def add(self, responses: Iterable["Response"]) -> None:
        """Append responses and flush them."""
        self.append({"number": one.question.number, "answer": one.text, "cut": one.cut} for one in responses)

    def finish(self, form: QuestionFormat, asked: Questions) -> None:
        """Write OUTPUT and ``OUTPUT.run.json`` and remove the parts. Called by the process that called
        :meth:`begin`."""
        items = self.items()
        cut = {kind: _count_cut(asked.questions, items, kind == "yes_no") for kind in ("free_text", "yes_no")}
        numbers = [question.number for question in asked.questions if items[question.number]["cut"]]
        write_json(self.record, {**self._run, "answers_cut": cut, "numbers_cut": numbers})
        if self.output.exists():
            self.output.replace(self.output.with_name(f"{self.output.name}.old"))
        write_responses(form, ((one, items[one.number]["answer"]) for one in asked.questions), self.output)
        self.discard()
        for kind, option in (("free_text", "--max_new_tokens"), ("yes_no", "--max_new_tokens_yes_no")):
            if cut[kind]:
                logger.warning(f"{cut[kind]:,} responses had no end token when they reached {option}")
        logger.info(f"wrote {len(asked.questions):,} responses to {self.output}")


def _count_cut(questions: Iterable[Question], items: Mapping[int, Record], yes_no: bool) -> int:
    return sum(bool(items[question.number]["cut"]) for question in questions if question.yes_no == yes_no)
