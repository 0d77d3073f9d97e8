"""Whose work a folder holds, which checkpoints are whole, where a run goes on, and that it is the same run then."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from listwise_preference.errors import DataError, UserError
from listwise_preference.training.checkpoints import (
    MANIFEST,
    RUN_FILE,
    RunRecord,
    complete,
    damage,
    find_checkpoint,
    folder_of_one_run,
    record_of,
)
from listwise_preference.training.command import main, read_data
from listwise_preference.training.options import Arguments, parse

from .conftest import ROOT, SAMPLE, sample_pairs
from .test_train import logged

Train = Callable[..., Path]


@pytest.fixture
def arguments(tmp_path: Path, few_pairs: Path) -> Callable[..., Arguments]:
    """Options of a run on eight pairs, read as the program reads them."""

    def read(*options: str) -> Arguments:
        recipe = {
            "model_name_or_path": "nobody/nothing",
            "output_dir": str(tmp_path / "run"),
            "pairs": str(few_pairs),
            "image_root": str(SAMPLE),
            "image_lists": str(SAMPLE / "image_lists.jsonl"),
            "do_train": True,
            "resume_from_checkpoint": "auto",
        }
        return parse(recipe, list(options))

    return read


def recorded(arguments: Arguments) -> RunRecord:
    return record_of(arguments, read_data(arguments)[0])


def leave(folder: Path, record: RunRecord, *, whole: bool = True, **facts: Any) -> Path:
    """A folder as a run of this record leaves it, as far as its place in the run is decided by it."""
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (folder / name).write_text(f"the content of {name}")
    (folder / RUN_FILE).write_text(json.dumps({"record": record}))
    if whole:
        complete(folder, {"processes": 1, "records_a_pass": 8, "optimizer": True} | facts)
    return folder


# ---- the record ----


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--learning_rate", "1e-4"], {"learning_rate"}),
        (["--seed", "7"], {"seed"}),
        (["--beta", "0.2"], {"beta"}),
        (["--lora_r", "4"], {"lora_r"}),
        (["--lr_scheduler_type", "cosine"], {"lr_scheduler_type"}),
        (["--list_size", "3"], {"list_size"}),
        (["--dtype", "float32"], {"dtype", "bf16"}),
        (["--loss_weights", "anchor=0.5"], {"loss_weights"}),
        # The images are then single files and no longer boxes.
        (["--objective", "dpo"], {"objective", "loss_weights", "images"}),
        (["--per_device_train_batch_size", "4"], {"records_a_step"}),
        # The same records a step, cut otherwise; the same weights, written otherwise.
        (["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"], set()),
        (["--loss_weights", "1", "1", "1"], set()),
        (["--logging_steps", "1", "--save_steps", "3", "--dataloader_num_workers", "3"], set()),
        (["--row_layout", "unpacked", "--activation_checkpointing", "--precompute_ref_log_probs"], set()),
    ],
)
def test_the_record_has_what_decides_the_adapter(
    arguments: Callable[..., Arguments], options: list[str], changed: set[str]
) -> None:
    before, now = recorded(arguments()), recorded(arguments(*options))
    assert {name for name in before if before[name] != now[name]} == changed


def test_the_record_knows_texts_and_boxes_but_not_where_they_lie(
    arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    before = recorded(arguments())

    def changes(*options: str) -> set[str]:
        now = recorded(arguments(*options))
        return {name for name in before if before[name] != now[name]}

    pairs = sample_pairs(8)
    shutil.copytree(SAMPLE / "images", tmp_path / "elsewhere" / "images")
    (tmp_path / "elsewhere.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    assert changes("--pairs", str(tmp_path / "elsewhere.jsonl"), "--image_root", str(tmp_path / "elsewhere")) == set()
    pairs[3]["chosen"] += " Indeed."
    (tmp_path / "text.json").write_text(json.dumps(pairs))
    assert changes("--pairs", str(tmp_path / "text.json")) == {"pairs"}
    lists = [json.loads(line) for line in (SAMPLE / "image_lists.jsonl").read_text().splitlines()]
    lists[3]["box"][2] -= 1
    (tmp_path / "lists.jsonl").write_text("\n".join(map(json.dumps, lists)))
    assert changes("--image_lists", str(tmp_path / "lists.jsonl")) == {"images"}


# ---- whole or not ----


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_folder_with_a_missing_short_or_changed_file_is_not_whole(tmp_path: Path, name: str) -> None:
    folder = leave(tmp_path / "checkpoint-1", {})
    assert damage(folder) == []
    file, content = folder / name, (folder / name).read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert damage(folder) == [f"{name} has {len(content) // 2} bytes of {len(content)}"]
    file.write_bytes(b"T" + content[1:])
    assert damage(folder) == [f"{name} is not what was written"]
    file.unlink()
    assert damage(folder) == [f"{name} is missing"]
    file.write_bytes(content)
    assert damage(folder) == []
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-20])
    assert damage(folder)[0].startswith("no manifest.json: its writing was cut short")


# ---- where a run begins ----


def test_the_last_whole_checkpoint_is_taken(
    arguments: Callable[..., Arguments], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = arguments()
    record, run = recorded(given), tmp_path / "run"
    assert find_checkpoint(given, record) is None
    for step in (2, 4, 10):
        leave(run / f"checkpoint-{step}", record)
    leave(run / "checkpoint-12", record, whole=False)
    with caplog.at_level("INFO"):
        assert find_checkpoint(given, record) == run / "checkpoint-10"
    assert "checkpoint-12 is incomplete and passed over" in caplog.text
    (run / "checkpoint-10" / "optimizer.pt").unlink()
    assert find_checkpoint(given, record) == run / "checkpoint-4"
    without = arguments("--allow_changed", "optimizer")
    assert find_checkpoint(without, record) == run / "checkpoint-10"
    leave(run / "final", record)
    assert find_checkpoint(given, record) == run / "final"


def test_the_work_of_another_run_is_refused_with_the_ways_on(
    arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    leave(tmp_path / "run" / "checkpoint-2", recorded(arguments()))
    other = arguments("--objective", "dpo", "--learning_rate", "1e-4")
    with pytest.raises(DataError) as refused:
        find_checkpoint(other, recorded(other))
    message = str(refused.value)
    assert "objective was 'lpoi' and is 'dpo'" in message and "learning_rate was 5e-05 and is 0.0001" in message
    assert "--overwrite_output_dir" in message and "--output_dir" in message and "seed" not in message
    anew = arguments("--objective", "dpo", "--overwrite_output_dir")
    assert find_checkpoint(anew, recorded(anew)) is None
    slower = arguments("--learning_rate", "1e-4", "--allow_changed", "learning_rate")
    assert find_checkpoint(slower, recorded(slower)) == tmp_path / "run" / "checkpoint-2"
    start = arguments("--resume_from_checkpoint", "false")
    with pytest.raises(DataError, match="--resume_from_checkpoint auto goes on with it"):
        find_checkpoint(start, recorded(start))


@pytest.mark.parametrize("left", ["checkpoint-2", "final"])
def test_what_no_manifest_or_record_vouches_for_is_neither_resumed_nor_replaced(
    arguments: Callable[..., Arguments], tmp_path: Path, left: str
) -> None:
    """A folder of an earlier version; it is taken as it is where that is asked for."""
    folder = tmp_path / "run" / left
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    given = arguments()
    with pytest.raises(DataError, match="nothing there records which run made it"):
        find_checkpoint(given, recorded(given))
    named = arguments("--resume_from_checkpoint", str(folder))
    with pytest.raises(UserError, match="--allow_changed manifest"):
        find_checkpoint(named, recorded(named))
    named = arguments("--resume_from_checkpoint", str(folder), "--allow_changed", "manifest")
    assert find_checkpoint(named, recorded(named)) == folder


@pytest.mark.parametrize(
    ("options", "goes_on"),
    [
        (["--gradient_accumulation_steps", "4"], True),
        (["--gradient_accumulation_steps", "4", "--lora_dropout", "0.1"], False),
        (["--gradient_accumulation_steps", "4", "--lora_dropout", "0.1", "--allow_changed", "processes"], True),
        # Eight records in passes of 2 x 3: the last one is filled up with records that one process would not see again.
        (["--gradient_accumulation_steps", "4", "--per_device_train_batch_size", "3"], False),
    ],
)
def test_another_number_of_processes_goes_on_where_that_is_the_same_run(
    arguments: Callable[..., Arguments],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    goes_on: bool,
) -> None:
    given = arguments("--per_device_train_batch_size", "1", *options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    record = recorded(given)
    folder = leave(tmp_path / "run" / "checkpoint-2", record, records_a_pass=1)
    if goes_on:
        assert find_checkpoint(given, record) == folder
    else:
        with pytest.raises(DataError, match="was trained by 1 processes and would go on by 2"):
            find_checkpoint(given, record)


# ---- one run in a folder ----


def test_a_second_run_in_the_folder_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from listwise_preference.training.checkpoints import folder_of_one_run\n"
        f"with folder_of_one_run(Path({str(folder)!r})):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match="another run is at work"), folder_of_one_run(folder):
        pass
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with folder_of_one_run(folder):
        (folder / "work").touch()
    assert folder.is_dir()


def test_a_folder_that_nothing_came_of_is_not_left_behind(tmp_path: Path) -> None:
    with folder_of_one_run(tmp_path / "a" / "run"):
        pass
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/run"), folder_of_one_run(tmp_path / "file" / "run"):
        pass


# ---- the program ----


@pytest.fixture
def train(small_checkpoints: dict[str, Path], tmp_path: Path, few_pairs: Path) -> Train:
    """Train a small model, two epochs of two steps, by the same command each time."""

    def run(*options: str) -> Path:
        recipe = {
            "model_name_or_path": str(small_checkpoints["idefics2"]),
            "dtype": "float32",
            "output_dir": str(tmp_path / "run"),
            "pairs": str(few_pairs),
            "image_root": str(SAMPLE),
            "image_lists": str(SAMPLE / "image_lists.jsonl"),
            "list_size": 2,
            "do_train": True,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "epoch",
            "disable_tqdm": True,
            "use_cpu": True,
            "resume_from_checkpoint": "auto",
        }
        main(recipe, list(options))
        return tmp_path / "run"

    return run


def adapter(folder: Path) -> list[float]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return [value for name in sorted(tensors) for value in tensors[name].flatten().tolist()]


def test_the_same_command_goes_on_and_trains_no_step_twice(train: Train) -> None:
    """After a stop in the writing of the last checkpoint; after one between training and ``final/``; and when done."""
    folder = train("--max_steps", "3", "--save_strategy", "steps", "--save_steps", "2")
    losses, trained = logged(folder), adapter(folder / "final")
    assert len(losses) == 3
    assert json.loads((folder / "final" / RUN_FILE).read_text())["record"]["max_steps"] == 3
    again = ("--max_steps", "3", "--save_strategy", "steps", "--save_steps", "2")

    shutil.rmtree(folder / "final")
    state = folder / "checkpoint-3" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:100])
    train(*again)
    assert logged(folder) == pytest.approx(losses, abs=1e-6)
    assert adapter(folder / "final") == pytest.approx(trained, abs=1e-6)

    losses, trained = logged(folder), adapter(folder / "final")
    shutil.rmtree(folder / "final")
    train(*again)
    assert logged(folder) == losses and adapter(folder / "final") == trained
    assert not damage(folder / "final") and not (folder / "checkpoint-4").exists()

    before = (folder / "final" / MANIFEST).stat().st_mtime_ns
    train(*again)
    assert (folder / "final" / MANIFEST).stat().st_mtime_ns == before


def test_an_older_checkpoint_is_deleted_only_for_a_whole_one(train: Train) -> None:
    folder = train("--save_total_limit", "1")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert damage(folder / "checkpoint-4") == []
    assert not list(folder.rglob("training_args.bin"))
    other = ("--beta", "0.2", "--save_strategy", "no")
    with pytest.raises(SystemExit):
        train(*other)
    train(*other, "--overwrite_output_dir")
    assert not list(folder.glob("checkpoint-*")) and len(logged(folder)) == 4


def test_other_base_weights_are_refused_before_they_are_loaded(
    train: Train, small_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("--max_steps", "1")
    shutil.rmtree(folder / "final")
    other = tmp_path / "other"
    shutil.copytree(small_checkpoints["idefics2"], other)
    (other / "model.safetensors").write_bytes(b"not even weights")
    with pytest.raises(SystemExit):
        train("--max_steps", "1", "--model_name_or_path", str(other))
    assert "base_weights was 'sha256:" in capsys.readouterr().err
