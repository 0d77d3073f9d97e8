"""What a run shows while it trains: a progress bar, and one line a log step.

All values are in trainer_state.json and in the loggers of ``--report_to``.
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

_HEADER_EVERY = 20  # lines: about a screen


class ProgressBar(ProgressCallback):
    """The Trainer's bar, without its print of all values."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Nothing: :class:`StepLines` prints."""


class StepLines(TrainerCallback):
    """One aligned line a log step, and one an evaluation, marked so."""

    def __init__(self) -> None:
        self._lines = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._begin = self._last = (time.monotonic(), state.global_step, state.epoch or 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Print the line."""
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            now = (time.monotonic(), state.global_step, state.epoch)
            # An epoch's share of the data, so that a last, smaller batch counts as what it is.
            records = (now[2] - self._last[2]) * len(others["train_dataloader"].dataset)
            per_second = records / max(now[0] - self._last[0], 1e-9)
            per_step = (now[0] - self._begin[0]) / max(now[1] - self._begin[1], 1)
            left = timedelta(seconds=round((state.max_steps - now[1]) * per_step))
            self._last = now
            self._print(state, logs, f"{state.global_step}/{state.max_steps}", f"{per_second:.1f}", str(left))
        elif "eval_loss" in logs:
            values = {name.removeprefix("eval_"): value for name, value in logs.items()}
            self._print(state, values, "evaluation", f"{values.get('samples_per_second', 0.0):.1f}", "")
        elif "train_runtime" in logs:
            tqdm.write(f"trained {state.global_step} steps in {timedelta(seconds=round(logs['train_runtime']))}")

    def _print(self, state: Any, logs: Mapping[str, float], step: str, per_second: str, left: str) -> None:
        columns = {"step": f"{step:>10}", "epoch": f"{state.epoch or 0.0:6.2f}", "loss": f"{logs['loss']:8.4f}"}
        columns |= {name[5:]: f"{value:8.4f}" for name, value in logs.items() if name.startswith("loss_")}
        if "rewards/margins" in logs:
            columns["margin"] = f"{logs['rewards/margins']:+z8.3f}"
        if levels := [value for name, value in logs.items() if name.startswith("rewards_image/level_")]:
            columns["list acc"] = f"{logs['list/adjacent_accuracy']:8.3f}"
            columns |= {"first": f"{levels[0]:+z8.3f}", "last": f"{levels[-1]:+z8.3f}"}
        columns |= {"records/s": per_second, "left": f"{left:>8}"}
        widths = {name: max(len(name), len(text)) for name, text in columns.items()}
        if self._lines % _HEADER_EVERY == 0:
            tqdm.write("  ".join(f"{name:>{widths[name]}}" for name in columns))
        self._lines += 1
        tqdm.write("  ".join(f"{text:>{widths[name]}}" for name, text in columns.items()).rstrip())
