"""A training run that is asked to stop, that meets numbers which are none, or whose disk is full: nothing is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from listwise_preference.errors import ModelError
from listwise_preference.models.adapters import load_adapter
from listwise_preference.models.loading import load_base_model
from listwise_preference.training.checkpoints import damage
from listwise_preference.training.command import main
from listwise_preference.training.console import StepLines
from listwise_preference.training.losses import TERMS, LossTerm, Rewards

from .conftest import ROOT, SAMPLE, sample_pairs
from .test_train import logged

Train = Callable[..., Path]


def recipe(model: Path, pairs: Path, output: Path) -> dict[str, Any]:
    """Four steps of two records."""
    return {
        "model_name_or_path": str(model),
        "dtype": "float32",
        "output_dir": str(output),
        "pairs": str(pairs),
        "image_root": str(SAMPLE),
        "image_lists": str(SAMPLE / "image_lists.jsonl"),
        "list_size": 2,
        "do_train": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "resume_from_checkpoint": "auto",
    }


@pytest.fixture
def train(small_checkpoints: dict[str, Path], tmp_path: Path, few_pairs: Path) -> Train:
    def run(name: str, *options: str) -> Path:
        main(recipe(small_checkpoints["idefics2"], few_pairs, tmp_path / name), list(options))
        return tmp_path / name

    return run


# ---- asked to stop ----


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint_from_which_it_goes_on(
    train: Train, number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes when step 2 is logged: step 3 is finished and saved, and the same command does step 4."""
    log = StepLines.on_log

    def log_and_signal(self: StepLines, args: Any, state: Any, control: Any, **others: Any) -> None:
        log(self, args, state, control, **others)
        if state.global_step == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepLines, "on_log", log_and_signal)
        with pytest.raises(SystemExit) as stopped:
            train("run", "--save_only_model")
    assert stopped.value.code == status and signal.getsignal(number) == before
    folder = train("whole").parent / "run"
    assert damage(folder / "checkpoint-3") == [] and not (folder / "final").exists()
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after step 3; go on with: " in said and "Traceback" not in said

    train("run")
    assert logged(folder) == pytest.approx(logged(folder.parent / "whole"), abs=1e-6)
    stopped_and_gone_on, whole = (
        load_file(folder.parent / name / "final" / "adapter_model.safetensors") for name in ("run", "whole")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(stopped_and_gone_on[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("minutes", "why"), [(1e-9, "--save_at_minutes"), (None, "the end of the Slurm job")])
def test_a_limit_of_time_ends_the_run_with_a_checkpoint(
    train: Train,
    tmp_path: Path,
    minutes: float | None,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A limit that is over already: the first step is the last."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4e9" if minutes else "1e9")  # in 2096, in 2001
    with pytest.raises(SystemExit) as stopped:
        train("run", *(["--save_at_minutes", str(minutes)] if minutes else []))
    assert stopped.value.code == 143
    assert f"stopped by {why} after step 1; go on with: " in capsys.readouterr().err
    assert damage(tmp_path / "run" / "checkpoint-1") == []


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path) -> None:
    settings = recipe(small_checkpoints["idefics2"], few_pairs, tmp_path / "run")
    code = (
        "import os, signal, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from listwise_preference.training.command import main\n"
        "from listwise_preference.training.console import StepLines\n"
        "def interrupt_twice(*_, **__):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(1.5)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "StepLines.on_log = interrupt_twice\n"
        f"main({settings!r}, [])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130
    assert "Ctrl-C again ends at once" in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("checkpoint-*"))


# ---- a full disk ----


def test_a_disk_that_fills_leaves_the_last_whole_checkpoint_and_no_half_one(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may be longer than the adapter is: the optimizer's state, twice as long, cannot be written."""
    folder = train("run", "--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1")
    adapter, moments = (folder / "checkpoint-1" / name for name in ("adapter_model.safetensors", "optimizer.pt"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = (adapter.stat().st_size + moments.stat().st_size) // 2
    longer = ("--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--allow_changed", "max_steps")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            train("run", *longer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint-2 cannot be written: " in said and "the same command goes on" in said
    assert damage(folder / "checkpoint-1") == [] and not (folder / "checkpoint-2").exists()
    train("run", *longer)
    assert damage(folder / "final") == [] and len(logged(folder)) == 2


def test_a_disk_that_holds_no_checkpoint_is_refused_before_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter, and a checkpoint with two moments more: 4 x 4 bytes a parameter, of which one byte is missing."""
    final = train("run", "--max_steps", "1") / "final"
    needed = 16 * sum(tensor.numel() for tensor in load_file(final / "adapter_model.safetensors").values())
    more = ("--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(SystemExit):
        train("small", *more)
    assert "MB are free and the adapter with one checkpoint needs" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    train("small", *more)


# ---- numbers that are none ----


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_records(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step is good, and its update of 1e30 makes everything after it nan."""
    with pytest.raises(SystemExit) as stopped:
        train("run", "--learning_rate", "1e30", "--lr_scheduler_type", "constant")
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 2: a loss or log-probability is no finite number; records " in said
    assert sum(pair["id"] in said for pair in sample_pairs(8)) == 2
    assert not (tmp_path / "run" / "final").exists()


def test_a_gradient_that_is_no_number_stops_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start every reward is 0, where a square root has the value 0 and an infinite slope."""
    monkeypatch.setitem(TERMS, "root", LossTerm(lambda rewards: rewards.chosen_B.abs().sqrt()))
    weights = ("--loss_weights", "dpo=0", "anchor=0", "listwise=0", "root=1")
    with pytest.raises(SystemExit):
        train("run", *weights, "--on_nonfinite", "skip")
    said = capsys.readouterr().err
    assert "step 2: the gradient's norm (" in said and "2 steps, more than 1 % of the run" in said


def test_a_step_that_is_skipped_leaves_the_adapter_and_is_counted(
    train: Train, tmp_path: Path, few_pairs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One record's response is so long that its log-probability is below that of all others, where the term is nan."""
    pairs = sample_pairs(8)
    pairs[5]["chosen"] = " ".join([pairs[5]["chosen"]] * 6)
    few_pairs.write_text(json.dumps(pairs))

    def term(rewards: Rewards) -> torch.Tensor:
        longest = rewards.policy_logps_BA[:, 0] < -1000
        return torch.where(longest, torch.nan, 1.0) * (1 - rewards.chosen_B)

    monkeypatch.setitem(TERMS, "odd", LossTerm(term))
    folder = train("run", "--loss_weights", "dpo=0", "anchor=0", "listwise=0", "odd=1", "--on_nonfinite", "skip")
    skipped = [message for message in caplog.messages if "step skipped, the 1. of this run" in message]
    assert len(skipped) == 1 and f"record {pairs[5]['id']}:" in skipped[0]
    assert len(logged(folder, "skipped_step")) == 1
    assert all(value.isfinite().all() for value in load_file(folder / "final" / "adapter_model.safetensors").values())


def test_an_adapter_that_did_not_change_and_rewards_that_fall_are_said(
    train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train("same", "--learning_rate", "0", "--max_steps", "1")
    assert "the adapter is what it was before training: is the learning rate (0) too low" in caplog.text
    assert "mean reward" not in caplog.text
    caplog.clear()
    monkeypatch.setitem(TERMS, "down", LossTerm(lambda rewards: rewards.chosen_B))
    weights = ("--loss_weights", "dpo=0", "anchor=0", "listwise=0", "down=1")
    train("down", *weights, "--beta", "10", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant")
    assert caplog.text.count("the chosen responses' mean reward is -") == 1
    assert "before training" not in caplog.text


def test_an_adapter_with_an_infinite_value_is_refused_when_it_is_loaded(
    train: Train, small_checkpoints: dict[str, Path]
) -> None:
    final = train("run", "--max_steps", "1") / "final"
    tensors = load_file(final / "adapter_model.safetensors")
    name = sorted(tensors)[3]
    tensors[name][0, 0] = torch.inf
    save_file(tensors, final / "adapter_model.safetensors")
    base = load_base_model(str(small_checkpoints["idefics2"]), dtype=torch.float32)
    with pytest.raises(ModelError, match="no finite numbers") as refused:
        load_adapter(base, final)
    assert name in str(refused.value)
