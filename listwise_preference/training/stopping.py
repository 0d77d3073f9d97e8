"""Stopping a run so that it can go on: Ctrl-C, SIGTERM, a limit of minutes, the end of a Slurm job.

In training each of them asks for a checkpoint at the end of the step; before and after, where there is nothing to save,
a signal ends the program at once. Where one of several processes fails, the others would wait for it in the middle of
their step: it leaves a mark in the output folder, by which they end at once too. Imports no torch.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from listwise_preference.cli import is_main_process
from listwise_preference.errors import Stopped
from listwise_preference.training.checkpoints import process_count
from listwise_preference.training.options import Arguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher hands a Ctrl-C on that the terminal has sent already: the same one, a moment later.
_SAME_SIGNAL = 1.0  # seconds
_MARGIN = 60.0  # seconds, beside the time of a few steps, to write a checkpoint before a Slurm job's end


class StopRequests:
    """Answers the signals and watches the clock while it is entered.

    Attributes:
        in_training: whether the step in progress shall be finished first.
        why: what asked for the end, once something has.
        status: the program's exit status then.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.in_training = False
        self.why: str | None = None
        self.status = 128 + signal.SIGTERM
        self._arguments = arguments
        self._at = 0.0
        self._process = os.getpid()
        self._mark = Path(str(arguments.training.output_dir)).expanduser() / ".failed"
        self._handlers: dict[signal.Signals, Any] = {}
        minutes, slurm_end = arguments.run.save_at_minutes, os.environ.get("SLURM_JOB_END_TIME")
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self._slurm_deadline = time.monotonic() + float(slurm_end) - time.time() if slurm_end else None
        self._longest_step = 0.0
        self._last_step = time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._handlers = {number: signal.signal(number, self._answer) for number in _SIGNALS}
            if process_count() > 1:
                self._watch()
        return self

    def _watch(self) -> None:
        """End with the other processes: a launcher's SIGTERM is not answered while this one waits for a dead one."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

        def wait() -> None:
            while signal.SIGTERM not in os.read(reading, 64):
                pass
            if self.another_failed():
                os._exit(128 + signal.SIGTERM)

        threading.Thread(target=wait, daemon=True).start()

    def another_failed(self) -> bool:
        """Whether another process has left its mark."""
        return process_count() > 1 and self._mark.exists()

    def mark_failure(self) -> None:
        """Tell the other processes that this one cannot go on."""
        if process_count() > 1:
            with contextlib.suppress(OSError):
                self._mark.touch()

    def clear_mark(self) -> None:
        """Remove what an earlier run left."""
        self._mark.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that loads records has inherited this
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if not self.in_training:
            raise Stopped(f"stopped; {self.way_on()}", 128 + number)
        now = time.monotonic()
        if self.why is None:
            self.why, self.status, self._at = signal.Signals(number).name, 128 + number, now
            self._say("stopping at the end of this step; Ctrl-C again ends at once")
        elif number == signal.SIGINT and now > self._at + _SAME_SIGNAL:
            self._say("ended at once")
            os._exit(128 + number)

    def _say(self, message: str) -> None:
        # Not print(): a signal may come in the middle of one.
        if is_main_process():
            os.write(2, f"\n{message}\n".encode())

    def step_ended(self) -> None:
        """Look at the clock at the end of a training step."""
        now = time.monotonic()
        self._longest_step, self._last_step = max(self._longest_step, now - self._last_step), now
        if self.why is not None:
            return
        if self._deadline is not None and now >= self._deadline:
            self.why = "--save_at_minutes"
        elif self._slurm_deadline is not None and now + 3 * self._longest_step + _MARGIN >= self._slurm_deadline:
            self.why = "the end of the Slurm job"

    def way_on(self) -> str:
        """The command that goes on, as a text for the user."""
        run, option = self._arguments.run, (self._arguments.training.resume_from_checkpoint or "false").lower()
        more = [] if option in ("auto", "true") else ["--resume_from_checkpoint", "auto"]
        if run.overwrite_output_dir:
            more += ["--overwrite_output_dir", "false"]
        if "LOCAL_RANK" in os.environ:  # the launcher's own command is not known here
            return " ".join(["go on with the same launch command", *(["and", *more] if more else [])])
        return f"go on with: {shlex.join([*sys.orig_argv, *more])}"
