"""The training programs on real photographs with small real models: what they log, save, resume and evaluate."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from listwise_preference.models.adapters import load_adapter
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.training.command import main
from listwise_preference.training.losses import TERMS, LossTerm
from listwise_preference.training.reference import ReferenceCache

from .asking import generate_responses
from .conftest import ROOT, SAMPLE, Run, sample_pairs

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, checkpoint: Path) -> Train:
    """Train a small model on eight sample pairs, four steps of four records; returns the output folder."""
    return trainer_of(checkpoint, tmp_path)


@pytest.fixture
def train_idefics2(tmp_path: Path, small_checkpoints: dict[str, Path]) -> Train:
    return trainer_of(small_checkpoints["idefics2"], tmp_path)


def trainer_of(checkpoint: Path, tmp_path: Path) -> Train:
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(sample_pairs(8)), encoding="utf-8")

    def run(name: str, *options: str, **changes: Any) -> Path:
        recipe = {
            "model_name_or_path": str(checkpoint),
            "dtype": "float32",
            "output_dir": str(tmp_path / name),
            "pairs": str(pairs),
            "image_root": str(SAMPLE),
            "image_lists": str(SAMPLE / "image_lists.jsonl"),
            "do_train": True,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "optim": "adamw_torch",
            "logging_steps": 1,
            "save_strategy": "epoch",
            "disable_tqdm": True,
        }
        main(recipe | changes, list(options))
        return tmp_path / name

    return run


def logged(folder: Path, key: str = "loss") -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


def eval_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "eval_records.jsonl").read_text().splitlines()]


# ---- the loss and what is logged ----


def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(train: Train) -> None:
    folder = train("run", "--max_steps", "1")
    assert logged(folder)[0] == pytest.approx(2 * math.log(2) + math.log(120), abs=1e-4)
    assert logged(folder, "loss_listwise")[0] == pytest.approx(math.log(120), abs=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_the_list_size_is_chosen_at_training_time(train_idefics2: Train, size: int) -> None:
    folder = train_idefics2("run", "--max_steps", "1", "--list_size", str(size))
    assert logged(folder, "loss_listwise")[0] == pytest.approx(math.log(math.factorial(size)), abs=1e-4)
    assert logged(folder, f"rewards_image/level_{size}")
    assert not logged(folder, f"rewards_image/level_{size + 1}")


def test_what_is_logged(train: Train) -> None:
    folder = train("run", "--max_steps", "1", "--eval_share", "0.25")
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    expected = {
        "loss",
        *(f"loss_{term}" for term in ("dpo", "anchor", "listwise")),
        *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")),
        *(f"rewards_image/level_{level}" for level in range(1, 6)),
        *(f"list/{name}" for name in ("adjacent_accuracy", "top1", "kendall_tau")),
        *(f"logps/{name}" for name in ("chosen", "rejected", "reference_chosen", "reference_rejected")),
    }
    assert expected <= history[0].keys()
    assert {f"eval_{name}" for name in expected} <= json.loads((folder / "eval_results.json").read_text()).keys()


@pytest.mark.parametrize("without_bar", [True, False])
def test_the_console_shows_an_aligned_line_a_step(
    train_idefics2: Train, without_bar: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_idefics2("run", "--eval_share", "0.25", "--eval_strategy", "epoch", disable_tqdm=without_bar)
    printed = capsys.readouterr()
    assert "{'" not in printed.out and ("| 2/2 [" in printed.err) == (not without_bar)
    header, *lines = [line for line in printed.out.splitlines() if line]
    names = "step epoch loss dpo anchor listwise margin list acc first last records/s left"
    assert header.split() == names.split()
    steps = [line for line in lines if "/2 " in line]
    assert len(steps) == 2 and {len(line) for line in steps} == {len(header)}
    step, epoch, *values, per_second, left = steps[0].split()
    assert (step, epoch) == ("1/2", "1.00") and float(per_second) > 0 and left.startswith("0:00:")
    # Before the first step all rewards are 0: ln 2 twice, ln 5! for the list, and no margin.
    assert values[:5] == ["6.1738", "0.6931", "0.6931", "4.7875", "+0.000"] and values[6:] == ["+0.000", "+0.000"]
    assert steps[-1].split()[2] == f"{logged(folder)[-1]:.4f}" and steps[-1].split()[-1] == "0:00:00"
    evaluations = [line.split() for line in lines if line.startswith("evaluation")]
    assert [line[2] for line in evaluations[:2]] == [f"{loss:.4f}" for loss in logged(folder, "eval_loss")[:2]]


def test_metrics_are_means_over_all_records_of_a_step(train_idefics2: Train) -> None:
    """One step of 8 records, in micro-batches of 8, 2 or 3 (3 + 3 + 2), counts each record once."""
    values = []
    for size, batches in ((8, 1), (2, 4), (3, 3)):
        folder = train_idefics2(
            f"run{size}", "--max_steps", "1", per_device_train_batch_size=size, gradient_accumulation_steps=batches
        )
        values.append(logged(folder, "logps/chosen")[0])
    assert values == pytest.approx([values[0]] * len(values), abs=1e-3)


@pytest.mark.parametrize("precompute", ["true", "false"])
def test_accumulating_four_batches_of_one_is_one_batch_of_four(train_idefics2: Train, precompute: str) -> None:
    """Loss and gradient norm agree at each step, and each step starts from the ones before."""
    ones, fours = (
        train_idefics2(
            f"run{size}",
            "--precompute_ref_log_probs",
            precompute,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
        )
        for size in (1, 4)
    )
    assert len(logged(ones)) == 4
    assert logged(ones) == pytest.approx(logged(fours), abs=2e-5)
    assert logged(ones, "grad_norm") == pytest.approx(logged(fours, "grad_norm"), rel=1e-4)
    assert logged(ones)[-1] < logged(ones)[0]


def test_a_precomputed_reference_gives_the_losses_of_an_online_one(train: Train) -> None:
    online = train("online", "--precompute_ref_log_probs", "false")
    precomputed = train("precomputed", "--precompute_ref_log_probs", "true")
    assert logged(online) == pytest.approx(logged(precomputed), abs=2e-5)


def test_unpacked_and_ragged_rows_train_alike(train: Train) -> None:
    ragged = train("ragged")
    unpacked = train("unpacked", "--row_layout", "unpacked", "--fused_layers", "false")
    assert logged(ragged) == pytest.approx(logged(unpacked), abs=2e-5)


def test_drawn_images_and_the_same_images_in_folders_train_alike(train_idefics2: Train, tmp_path: Path) -> None:
    """The release's layout: a folder a level, the same names in each; written as PNG from the boxes."""
    from listwise_preference.data.pairs import BoxLists, load_records
    from listwise_preference.data.ranked_images import Drawing

    pairs = [pair | {"img_path": f"data/images/{pair['id']}.png"} for pair in sample_pairs(8)]
    source = BoxLists(SAMPLE / "image_lists.jsonl", Drawing(list_size=3))
    records = load_records(SAMPLE / "pairs.json", SAMPLE, source).records[:8]
    folders = [tmp_path / "data" / name for name in ("images", "ours/until50", "ours/until100")]
    for folder in folders:
        folder.mkdir(parents=True)
    for pair, record in zip(pairs, records, strict=True):
        for folder, image in zip(folders, record.images.load(), strict=True):
            image.save(folder / f"{pair['id']}.png")
    (tmp_path / "png.json").write_text(json.dumps(pairs))
    drawn = train_idefics2("drawn", "--list_size", "3")
    on_disk = train_idefics2(
        "on_disk",
        "--pairs",
        str(tmp_path / "png.json"),
        "--image_root",
        str(tmp_path),
        "--ranked_image_folders",
        *map(str, folders),
        image_lists=None,
    )
    assert logged(drawn) == logged(on_disk)


# ---- objectives ----


def test_dpo_needs_no_list_and_mdpo_makes_its_own(train: Train) -> None:
    dpo = train("dpo", "--objective", "dpo", "--max_steps", "1", image_lists=None)
    assert logged(dpo)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert not logged(dpo, "loss_anchor") and not logged(dpo, "rewards_image/level_1")
    mdpo = train("mdpo", "--objective", "mdpo", "--max_steps", "1", image_lists=None)
    assert logged(mdpo)[0] == pytest.approx(3 * math.log(2), abs=1e-4)
    assert logged(mdpo, "rewards_image/level_2") and not logged(mdpo, "rewards_image/level_3")


def test_without_dpo_no_rejected_answer_is_scored(train_idefics2: Train) -> None:
    folder = train_idefics2("run", "--loss_weights", "0", "1", "1", "--max_steps", "1", "--eval_share", "0.25")
    assert logged(folder)[0] == pytest.approx(math.log(2) + math.log(120), abs=1e-4)
    assert not logged(folder, "rewards/rejected")
    assert all(
        record["policy_logps"][1] is None and len(record["policy_logps"]) == 6 for record in eval_records(folder)
    )


def test_a_loss_term_from_outside_is_trained_logged_and_written_down(
    train_idefics2: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hinge of 1 on the margin between the first and the last image: 1 at the start, where all rewards are 0."""
    hinge = LossTerm(lambda rewards: (1 - rewards.chosen_BL[:, 0] + rewards.chosen_BL[:, -1]).relu(), needs_list=True)
    monkeypatch.setitem(TERMS, "hinge", hinge)
    weights = ("--loss_weights", "dpo=0", "anchor=0", "listwise=0", "hinge=2")
    folder = train_idefics2("run", *weights, "--learning_rate", "1e-2", "--eval_share", "0.25")
    losses = logged(folder, "loss_hinge")
    assert losses[0] == pytest.approx(1.0, abs=1e-4) and logged(folder)[0] == pytest.approx(2.0, abs=1e-4)
    assert losses[-1] < losses[0] - 1e-4
    assert not logged(folder, "rewards/rejected") and not logged(folder, "loss_listwise")
    for record in eval_records(folder):
        first, last = record["rewards"][0], record["rewards"][-1]
        assert record["loss_hinge"] == pytest.approx(1 - first + last, abs=1e-4)
        assert record["loss"] == pytest.approx(2 * record["loss_hinge"]) and record["loss_dpo"] is None
    card = (folder / "final" / "README.md").read_text()
    assert "hinge 2" in card and "| loss_hinge | 1.0000 |" in card
    assert json.loads((folder / "run.json").read_text())["loss_weights"]["hinge"] == 2
    header = next(line for line in capsys.readouterr().out.splitlines() if "records/s" in line)
    assert header.split()[:4] == ["step", "epoch", "loss", "hinge"]


def test_sft_and_ipo_train_beside_dpo(train: Train, checkpoint: Path) -> None:
    """Of every evaluated record: -log pi per token of the chosen response, and the squared distance of the margin."""
    options = ("--objective", "dpo", "--loss_weights", "sft=0.5", "ipo=0.01", "--max_steps", "2")
    folder = train("run", *options, "--eval_share", "0.25")
    processor = load_processor(str(checkpoint))
    pairs = {pair["id"]: pair for pair in sample_pairs(8)}
    for record in eval_records(folder):
        pair, rewards = pairs[record["id"]], record["rewards"]
        length = len(processor.tokenizer(pair["chosen"], add_special_tokens=False).input_ids) + 1  # and an end token
        assert record["loss_sft"] == pytest.approx(-record["policy_logps"][0] / length)
        assert record["loss_ipo"] == pytest.approx(((rewards[0] - rewards[1]) / 0.1 - 5) ** 2, rel=1e-4)
        expected = record["loss_dpo"] + 0.5 * record["loss_sft"] + 0.01 * record["loss_ipo"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)
    assert logged(folder, "loss_ipo")[0] == pytest.approx(25.0, rel=1e-3)  # (1 / (2 * 0.1))^2


def test_dora_and_rank_stabilized_lora_train_behind_a_system_prompt(train: Train, checkpoint: Path) -> None:
    """Both are in the saved config, peft's own loader takes the adapter, and evaluating it gives the run's numbers."""
    options = ("--use_dora", "--use_rslora", "--lora_r", "4", "--system_prompt", "Be brief.", "--eval_share", "0.25")
    folder = train("run", *options, "--max_steps", "2", "--objective", "dpo", "--learning_rate", "1e-2")
    config = json.loads((folder / "final" / "adapter_config.json").read_text())
    assert config["use_dora"] is True and config["use_rslora"] is True
    adapted = PeftModel.from_pretrained(load_base_model(str(checkpoint), dtype=torch.float32), str(folder / "final"))
    layer = next(module for module in adapted.modules() if hasattr(module, "lora_A"))
    assert layer.scaling["default"] == 8 / math.sqrt(4) and "default" in layer.lora_magnitude_vector

    held = {record["id"] for record in eval_records(folder)}
    pairs = folder.parent / "held.json"
    pairs.write_text(json.dumps([pair for pair in sample_pairs(8) if pair["id"] in held]))
    common = ("--do_train", "false", "--eval_pairs", str(pairs), "--init_adapter", str(folder / "final"))
    again = train("again", *common, "--objective", "dpo", "--system_prompt", "Be brief.")
    assert [one["policy_logps"] for one in eval_records(again)] == [
        pytest.approx(one["policy_logps"], abs=1e-3) for one in eval_records(folder)
    ]
    without = train("without", *common, "--objective", "dpo")
    for one, other in zip(eval_records(without), eval_records(folder), strict=True):
        assert abs(one["policy_logps"][0] - other["policy_logps"][0]) > 1e-2


# ---- precomputed reference ----


def test_an_unchanged_run_computes_no_reference_again_and_a_changed_one_does(
    train_idefics2: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--precompute_ref_log_probs", "true", "--max_steps", "1", "--ref_cache", str(tmp_path / "cache"))
    options += ("--overwrite_output_dir", "--lora_dropout", "0.1")

    def computed(*more: str) -> int:
        caplog.clear()
        train_idefics2("run", *options, *more)
        messages = [record.getMessage() for record in caplog.records if "log-probabilities for" in record.getMessage()]
        return int(messages[0].split(": ")[1].split(" computed")[0])

    assert computed() == 8
    norm = logged(tmp_path / "run", "grad_norm")
    assert computed("--learning_rate", "1e-4") == 0
    assert logged(tmp_path / "run", "grad_norm") == norm  # dropout drops the same, computed or found
    assert computed("--visual_prompt", "none") == 8
    assert computed("--max_completion_length", "40") == 8
    assert computed("--dtype", "bfloat16") == 8
    changed = sample_pairs(8)
    changed[3]["rejected"] += " Indeed."
    (tmp_path / "pairs.json").write_text(json.dumps(changed))
    assert computed() == 1
    # an interruption leaves a line partial: that record is computed again, and nothing else
    newest = max((tmp_path / "cache").glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-20])
    assert computed() == 1
    assert computed("--beta", "0.2") == 0


# ---- resuming, processes ----


@pytest.mark.parametrize("precompute", ["true", "false"])
def test_resuming_is_not_having_stopped(train: Train, precompute: str) -> None:
    """Four steps at once, and the last two again from the checkpoint after two: the same losses and weights."""
    options = ("--precompute_ref_log_probs", precompute)
    whole = train("whole", *options)
    losses, weights = logged(whole), load_file(whole / "final" / "adapter_model.safetensors")
    resumed = train("whole", *options, "--resume_from_checkpoint", str(whole / "checkpoint-2"))
    assert logged(resumed) == pytest.approx(losses, abs=1e-6)
    for name, tensor in load_file(resumed / "final" / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)


def test_processes_that_see_the_cache_at_different_times_share_the_work(tmp_path: Path) -> None:
    """Whoever reads the folder while another already writes there must not plan with other values: one run's files
    are added to by nobody else, a partial line and a garbled one are no values."""
    first, second = ReferenceCache(tmp_path), ReferenceCache(tmp_path)
    first.add(["a"], [[1.5, -2.0]])
    second.add(["b"], [[0.25]])
    assert first.file != second.file
    with second.file.open("a") as stream:
        stream.write('garbled\n{"key": "c", "logps": [1')
    # as earlier versions wrote it
    (tmp_path / "reference-0.jsonl").write_text('{"key": "d", "logps": [0.5]}\n')
    assert ReferenceCache(tmp_path).load() == {"a": (1.5, -2.0), "b": (0.25,), "d": (0.5,)}


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_global_batch(
    small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path, run_program: Run
) -> None:
    common = [
        "--model_name_or_path", small_checkpoints["llava"], "--dtype", "float32", "--use_cpu",
        "--pairs", few_pairs, "--image_root", SAMPLE, "--image_lists", SAMPLE / "image_lists.jsonl", "--list_size", "3",
        "--num_train_epochs", "2", "--learning_rate", "1e-3", "--logging_steps", "1", "--dataloader_num_workers", "0",
        "--eval_pairs", SAMPLE / "pairs.json", "--save_strategy", "no",
    ]  # fmt: skip
    # --multi_gpu is accelerate's word for several processes; without a GPU they meet over gloo
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    two = ["--output_dir", tmp_path / "two", "--gradient_accumulation_steps", "2"]
    # The second process comes late to a cache that the first one is filling.
    late = tmp_path / "late.py"
    late.write_text(
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from listwise_preference.training import reference\n"
        "from listwise_preference.training.command import main\n"
        "import lpoi_llava\n"
        "load = reference.ReferenceCache.load\n"
        "def late(cache):\n"
        "    time.sleep(3 if os.environ['RANK'] == '1' else 0)\n"
        "    return load(cache)\n"
        "reference.ReferenceCache.load = late\n"
        "main(lpoi_llava.RECIPE)\n"
    )
    run_program(*launch, late, *common, *two)
    run_program("lpoi_llava.py", *common, "--output_dir", tmp_path / "one", "--gradient_accumulation_steps", "4")
    for key in ("loss", "rewards/margins", "list/kendall_tau", "logps/chosen"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / "one", key), abs=1e-4)
    adapters = [load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("one", "two")]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, atol=1e-5, rtol=0)
    values, by_two = (ReferenceCache(tmp_path / name / "reference").load() for name in ("one", "two"))
    assert len(values) == len(sample_pairs(100)) and by_two.keys() == values.keys()
    assert all(by_two[key] == pytest.approx(values[key], abs=1e-4) for key in values)
    one, both = (eval_records(tmp_path / name) for name in ("one", "two"))
    assert [record["id"] for record in both] == [pair["id"] for pair in sample_pairs(100)]
    assert [record["loss"] for record in both] == pytest.approx([record["loss"] for record in one], abs=1e-4)


def test_fsdp_that_would_shard_nothing_is_refused(
    train_idefics2: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As accelerate launch asks for it; a single process would train the whole model without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit):
        train_idefics2("run")
    assert "FSDP shards nothing in a single process" in capsys.readouterr().err


@pytest.mark.slow
def test_fsdp_over_two_processes_is_one_process(
    small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path, run_program: Run
) -> None:
    """Over gloo on CPUs, where accelerate shards only what it takes for GPUs; and again from the middle."""
    common = [
        "--model_name_or_path", small_checkpoints["idefics2"], "--dtype", "float32", "--use_cpu",
        "--pairs", few_pairs, "--image_root", SAMPLE, "--image_lists", SAMPLE / "image_lists.jsonl", "--list_size", "2",
        "--num_train_epochs", "2", "--learning_rate", "1e-3", "--logging_steps", "1", "--dataloader_num_workers", "0",
        "--precompute_ref_log_probs", "false", "--activation_checkpointing", "false",
    ]  # fmt: skip
    launch = [
        "-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs" / "fsdp2.yaml",
        "--num_processes", "2", "--main_process_port", "0",
    ]  # fmt: skip
    two = ["--output_dir", tmp_path / "two", "--gradient_accumulation_steps", "2"]
    sharding = tmp_path / "sharding.py"
    sharding.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "os.environ['ACCELERATE_TORCH_DEVICE'] = 'cpu'\n"
        "import torch\n"
        "torch.distributed.init_process_group('gloo')\n"
        "from accelerate import PartialState\n"
        "from accelerate.utils import DistributedType\n"
        "PartialState._prepare_backend = lambda self, *_: ('gloo', DistributedType.MULTI_GPU)\n"
        "from torch.distributed.tensor import DTensor\n"
        "from listwise_preference.training.run import Run\n"
        "save = Run.save\n"
        "def count_and_save(self):\n"
        "    print('whole weights:', sum(not isinstance(p, DTensor) for p in self.trainer.model.parameters()))\n"
        "    save(self)\n"
        "Run.save = count_and_save\n"
        "from listwise_preference.training.command import main\n"
        "import lpoi\n"
        "main(lpoi.RECIPE)\n"
        # Gloo's threads, which a device mesh keeps, may abort the end of an interpreter whose work is done.
        "sys.stdout.flush()\n"
        "sys.stderr.flush()\n"
        "os._exit(0)\n"
    )
    sharded = run_program(*launch, sharding, *common, *two)
    assert "whole weights: 0\n" in sharded.stdout
    # The vision tower's MLPs are in the root, whose adapters torch 2.13 and accelerate 1.15 leave out of checkpoints
    # once peft 0.21 has turned them off and on.
    saved = torch.load(tmp_path / "two" / "checkpoint-2" / "pytorch_model_fsdp.bin", weights_only=True)
    adapter = load_file(tmp_path / "two" / "checkpoint-2" / "adapter_model.safetensors")
    assert {name.replace(".default.", ".") for name in saved if "lora_" in name} == adapter.keys()
    assert any("vision_model" in name and "fc1" in name for name in adapter)
    run_program("lpoi.py", *common, "--output_dir", tmp_path / "one", "--gradient_accumulation_steps", "4")
    shutil.rmtree(tmp_path / "two" / "final")
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    assert "resuming from" in run_program(*launch, sharding, *common, *two).stderr
    for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / "one", key), abs=1e-4)
    one, both = (load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == both.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(both[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_process_that_fails_says_why_and_the_others_end(
    small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path, run_program: Run
) -> None:
    """An image whose header is good breaks off in the process that draws it; whichever that is, it is named once."""
    shutil.copytree(SAMPLE / "images", tmp_path / "images")
    last = sample_pairs(8)[7]  # the only one of the eight on its image
    file = tmp_path / last["img_path"]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    ended = run_program(
        "-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_configs" / "ddp.yaml",
        "--num_processes", "2", "--main_process_port", "0", "lpoi.py",
        "--model_name_or_path", small_checkpoints["idefics2"], "--dtype", "float32", "--use_cpu",
        "--pairs", few_pairs, "--image_root", tmp_path, "--objective", "dpo", "--dataloader_num_workers", "0",
        "--save_strategy", "no", "--precompute_ref_log_probs", "false", "--activation_checkpointing", "false",
        "--train_sampling_strategy", "sequential", "--gradient_accumulation_steps", "1",
        "--output_dir", tmp_path / "run", check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if "cannot be decoded" in line]
    # Records are dealt out in turn, the eighth to the second process.
    assert len(said) == 1 and f"process 1: error: record {last['id']}: " in said[0]


# ---- learning ----


@pytest.mark.slow
def test_a_model_can_learn_the_ranking(train: Train) -> None:
    """With a higher learning rate every list is in order at last, and the loss is far below its start of 6.17."""
    folder = train("run", "--learning_rate", "1e-2", "--num_train_epochs", "40", "--lr_scheduler_type", "constant")
    assert logged(folder, "list/adjacent_accuracy")[-1] == 1.0
    assert logged(folder)[-1] < 0.5


# ---- what is saved ----


def test_the_final_folder_is_a_whole_adapter_that_changes_the_answers(train: Train, checkpoint: Path) -> None:
    folder = train("run", "--learning_rate", "1e-2")
    final = folder / "final"
    assert {file.name for file in final.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "processor_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "trainer_state.json",
        "run.json",
        "README.md",
    }
    assert not [file for file in final.rglob("*") if file.suffix in (".bin", ".pt", ".pkl")]
    processor = load_processor(str(checkpoint))
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    with Image.open(SAMPLE / "images" / "cat.jpg") as image:
        inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    base = load_base_model(str(checkpoint), dtype=torch.float32)
    with torch.no_grad():
        before = base(**inputs).logits
        adapted = load_adapter(base, final)
        after = adapted(**inputs).logits
        answer = adapted.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert (after - before).abs().max() > 0.1
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_the_run_is_written_down(train_idefics2: Train, tmp_path: Path) -> None:
    import hashlib

    folder = train_idefics2("run", "--max_steps", "1", "--beta", "0.25")
    run = json.loads((folder / "final" / "run.json").read_text())
    assert run["arguments"]["objective"]["beta"] == 0.25
    assert run["data"]["pairs"]["sha256"] == hashlib.sha256((tmp_path / "pairs.json").read_bytes()).hexdigest()
    assert run["base_weights"].startswith("sha256:")
    card = (folder / "final" / "README.md").read_text()
    assert "beta 0.25" in card and run["data"]["pairs"]["sha256"] in card and "pesaranzadeh2025lpoi" in card
    assert f"{logged(folder)[0]:.4f}" in card


@pytest.mark.parametrize(
    ("options", "said", "not_said"),
    [
        (
            (),
            [
                "listwise preference optimization",
                "weights dpo 1, anchor 1, listwise 1,",
                "drawn from boxes",
            ],
            [],
        ),
        (("--objective", "mdpo"), ["trained by mDPO", "a crop of it, seed 42"], ["image_lists.jsonl"]),
        (
            ("--objective", "dpo"),
            ["trained by DPO", "weights dpo 1, anchor 0, listwise 0", "no ranked images"],
            ["image_lists.jsonl"],
        ),
        (("--lora_r", "2", "--max_steps", "1"), ["r 2, alpha 8", "1 steps, 0.5 epochs"], ["2 epochs"]),
    ],
)
def test_the_model_card_says_what_was_done(
    train_idefics2: Train, options: tuple[str, ...], said: list[str], not_said: list[str]
) -> None:
    card = (train_idefics2("run", *options) / "final" / "README.md").read_text()
    assert [text for text in said if text not in card] == []
    assert [text for text in not_said if text in card.split("sha256")[2]] == []


def test_the_model_card_names_the_adapter_that_was_started_from(train_idefics2: Train) -> None:
    first = train_idefics2("first", "--lora_r", "2", "--max_steps", "1")
    second = train_idefics2("second", "--init_adapter", str(first / "final"), "--max_steps", "1")
    card = (second / "final" / "README.md").read_text()
    assert "r 2, alpha 8" in card and f"`{first / 'final'}`, sha256" in card


def test_starting_from_an_adapter_keeps_the_base_as_reference(train_idefics2: Train) -> None:
    """The first loss of the second run is the first run's last state, not that of a fresh adapter."""
    first = train_idefics2("first", "--learning_rate", "1e-2")
    second = train_idefics2("second", "--init_adapter", str(first / "final"), "--max_steps", "1")
    assert logged(second)[0] < logged(first)[0] - 0.5
    assert logged(second, "logps/reference_chosen")[0] == pytest.approx(
        logged(first, "logps/reference_chosen")[0], rel=0.5
    )


def test_what_the_adapter_of_the_start_was_shown_otherwise_is_said(
    train_idefics2: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """Smaller images and a system prompt in the first run, neither in the second; a third with both says nothing."""
    smaller = '{"size": {"longest_edge": 56, "shortest_edge": 28}}'
    settings = ("--processor_settings", smaller, "--system_prompt", "Be brief.")
    first = train_idefics2("first", *settings, "--max_steps", "1")
    start = ("--init_adapter", str(first / "final"), "--max_steps", "1")
    caplog.clear()
    train_idefics2("second", *start)
    assert f'--processor_settings: {first / "final"} was trained with {{"size"' in caplog.text
    assert f'--system_prompt: {first / "final"} was trained with "Be brief.", this run has none' in caplog.text
    caplog.clear()
    train_idefics2("third", *start, *settings)
    assert "was trained with" not in caplog.text


def test_a_frozen_tower_is_refused_to_an_adapter_that_has_layers_there(
    train_idefics2: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_idefics2("first", "--max_steps", "1")
    with pytest.raises(SystemExit):
        train_idefics2("second", "--init_adapter", str(first / "final"), "--freeze_vision_tower")
    assert "final has adapters in the vision tower" in capsys.readouterr().err
    without = train_idefics2("without", "--max_steps", "1", "--freeze_vision_tower")
    train_idefics2("third", "--init_adapter", str(without / "final"), "--max_steps", "1", "--freeze_vision_tower")


# ---- evaluation ----


@pytest.mark.parametrize("precompute", ["true", "false"])
def test_the_adapter_of_the_start_can_be_the_reference(
    train_idefics2: Train, precompute: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rewards are 0 at the start then; the reference stays there when a run is resumed, and is told in log and card."""
    first = train_idefics2("first")
    start = ("--init_adapter", str(first / "final"), "--precompute_ref_log_probs", precompute)
    caplog.clear()
    of_base = train_idefics2("of-base", *start, "--max_steps", "1")
    assert abs(logged(of_base, "rewards/chosen")[0]) > 1e-2
    assert f"reference: the base model without {first / 'final'}" in caplog.text
    caplog.clear()
    of_start = train_idefics2("of-start", *start, "--reference", "init_adapter")
    assert logged(of_start)[0] == pytest.approx(2 * math.log(2) + math.log(120), abs=1e-4)
    assert f"reference: the base model with {first / 'final'}" in caplog.text
    assert "reference: this adapter" in (of_start / "final" / "README.md").read_text()
    assert logged(of_start, "logps/reference_chosen")[0] == pytest.approx(logged(of_base, "logps/chosen")[0], abs=1e-4)

    losses, resume = logged(of_start), ("--resume_from_checkpoint", str(of_start / "checkpoint-2"))
    resumed = train_idefics2("of-start", *start, "--reference", "init_adapter", *resume)
    assert logged(resumed) == pytest.approx(losses, abs=1e-6) and losses[-1] < losses[0] - 0.01


def test_the_layers_of_an_adapter_that_names_them_by_a_pattern_are_written_down_as_the_pattern(
    train_idefics2: Train, small_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    pattern = r".*text_model.*\.(q|v)_proj"
    base = load_base_model(str(small_checkpoints["idefics2"]), dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=pattern)).save_pretrained(str(tmp_path / "adapter"))
    folder = train_idefics2("run", "--init_adapter", str(tmp_path / "adapter"), "--max_steps", "1")
    adapter = json.loads((folder / "run.json").read_text())["adapter"]
    assert adapter["target_modules"] == adapter["started_from"]["target_modules"] == pattern
    assert ".*text_model.*\\.(q&#124;v)_proj" in (folder / "final" / "README.md").read_text()


def test_evaluation_alone_writes_every_record(train: Train, checkpoint: Path) -> None:
    """In input order; losses follow from the log-probabilities in the line by the formulas."""
    adapter = train("run", "--learning_rate", "1e-2") / "final"
    folder = train(
        "evaluation", "--do_train", "false", "--eval_pairs", str(SAMPLE / "pairs.json"), "--list_size", "3",
        "--init_adapter", str(adapter), per_device_eval_batch_size=4,
    )  # fmt: skip
    records = eval_records(folder)
    assert [record["id"] for record in records] == [pair["id"] for pair in sample_pairs(100)]
    for record in records:
        policy, reference = record["policy_logps"], record["reference_logps"]
        assert len(policy) == len(reference) == 4
        chosen, rejected, second, third = (0.1 * (p - r) for p, r in zip(policy, reference, strict=True))
        assert record["rewards"] == pytest.approx([chosen, rejected, second, third], abs=1e-4)
        dpo = math.log1p(math.exp(rejected - chosen))
        anchor = math.log1p(math.exp(-chosen))
        listwise = math.log1p(math.exp(second - chosen) + math.exp(third - chosen)) + math.log1p(
            math.exp(third - second)
        )
        assert [record[f"loss_{term}"] for term in ("dpo", "anchor", "listwise")] == pytest.approx(
            [dpo, anchor, listwise], abs=1e-4
        )
        assert record["loss"] == pytest.approx(dpo + anchor + listwise, abs=1e-4)
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(sum(record["loss"] for record in records) / len(records), abs=1e-5)
    assert not (folder / "final").exists()


def test_smoothed_labels_are_trained_evaluated_and_written_down(train_idefics2: Train) -> None:
    options = ("--objective", "dpo", "--label_smoothing_factor", "0.2", "--eval_share", "0.25")
    folder = train_idefics2("run", *options, "--learning_rate", "1e-2")
    for line in eval_records(folder):
        margin = line["rewards"][0] - line["rewards"][1]
        expected = 0.8 * math.log1p(math.exp(-margin)) + 0.2 * math.log1p(math.exp(margin))
        assert line["loss_dpo"] == pytest.approx(expected, abs=1e-6) and abs(margin) > 0.01
    assert "label smoothing 0.2" in (folder / "final" / "README.md").read_text()


def test_evaluation_after_each_epoch_is_logged(train_idefics2: Train) -> None:
    """A reference by chance equal to the policy would give 6.17 each time; the model learns, so the loss falls."""
    folder = train_idefics2("run", "--eval_strategy", "epoch", "--eval_share", "0.3", "--learning_rate", "5e-3")
    losses = logged(folder, "eval_loss")
    assert len(losses) == 2
    assert losses[1] < losses[0] < 6.17
    final = json.loads((folder / "eval_results.json").read_text())
    assert final["eval_loss"] == pytest.approx(losses[1], abs=1e-5)


def test_sample_questions_are_answered_by_base_and_adapter_at_each_evaluation(
    train: Train, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base's response is what generate.py gives, at every evaluation; training goes on as without them."""
    asked = [
        {"image": "images/cat.jpg", "question": "What is it?"},
        {"image": "images/pan.jpg", "question": "And this?"},
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(one) + "\n" for one in asked))
    options = ("--eval_strategy", "epoch", "--eval_share", "0.3", "--learning_rate", "2e-2", "--objective", "dpo")
    folder = train("run", *options, "--sample_questions", str(questions))
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [one["step"] for one in samples] == [1, 1, 2, 2]
    printed = capsys.readouterr().out
    assert "step 2, pan.jpg: And this?" in printed and f"  base     {samples[0]['base']}" in printed

    own = tmp_path / "own.jsonl"
    answers = generate_responses(checkpoint, "own", questions, SAMPLE, own, "--max_new_tokens", "128")
    of_base = [json.loads(line)["response"] for line in answers.read_text().splitlines()]
    assert [one["base"] for one in samples] == of_base * 2
    assert [one["adapter"] for one in samples[2:]] != of_base
    assert logged(folder) == logged(train("without", *options))


def test_images_held_out_are_not_trained_on(train_idefics2: Train) -> None:
    from listwise_preference.data.pairs import ImageOnly, load_records
    from listwise_preference.training.command import hold_out

    records = load_records(SAMPLE / "pairs.json", SAMPLE, ImageOnly()).records
    training, held = hold_out(records, 0.25, seed=1)
    assert {r.pair.img_path for r in training}.isdisjoint(r.pair.img_path for r in held)
    assert len(training) + len(held) == len(records)
    assert 0.25 <= len(held) / len(records) < 0.4
    assert [list(part) for part in hold_out(records, 0.25, seed=1)] == [list(training), list(held)]


# ---- the door ----


def test_pairs_that_are_equal_once_cut_are_named_with_the_length_that_keeps_them_apart(
    train_idefics2: Train, small_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_processor(str(small_checkpoints["idefics2"])).tokenizer
    beginning = "A quiet scene with a good deal of light. It ends with"
    differs_at = len(tokenizer(f" {beginning}", add_special_tokens=False).input_ids) + 1
    pairs = sample_pairs(4)
    for pair in pairs[:2]:
        pair |= {"chosen": f"{beginning} 1", "rejected": f"{beginning} 2"}
    file = tmp_path / "alike.json"
    file.write_text(json.dumps(pairs), encoding="utf-8")
    options = ("--pairs", str(file), "--objective", "dpo", "--max_steps", "1", "--max_completion_length")
    with pytest.raises(SystemExit):
        train_idefics2("stops", *options, str(differs_at - 1))
    said = capsys.readouterr().err
    assert "training: 2 of 4 records have the same tokens as chosen and as rejected once cut" in said
    assert f"{pairs[0]['id']}, {pairs[1]['id']}; they teach nothing" in said
    assert f"--max_completion_length {differs_at} keeps 2 of them apart" in said
    folder = train_idefics2("drops", *options, str(differs_at - 1), "--on_bad_record", "drop")
    assert json.loads((folder / "run.json").read_text())["data"]["training_records"] == 2
    whole = train_idefics2("longer", *options, str(differs_at))
    assert json.loads((whole / "run.json").read_text())["data"]["training_records"] == 4


def test_lists_with_equal_images_are_counted(
    train_idefics2: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four steps in a box three pixels wide: two of them mask the same columns."""
    lines = [json.loads(line) for line in (SAMPLE / "image_lists.jsonl").read_text().splitlines()]
    lines[0]["box"] = [10, 10, 13, 12]
    file = tmp_path / "lists.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train_idefics2("run", "--image_lists", str(file), "--max_steps", "1")
    assert "1 records have a box too small for their list, so that some of its images are equal" in caplog.text
    assert str(lines[0]["id"]) in caplog.text


def test_rejected_records_are_left_out_and_unknown_ids_said(
    train_idefics2: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rejected = tmp_path / "rejected.json"
    rejected.write_text(json.dumps({"rejected": [sample_pairs(8)[2]["id"], "nobody"]}), encoding="utf-8")
    folder = train_idefics2("run", "--max_steps", "1", "--exclude", str(rejected))
    assert json.loads((folder / "run.json").read_text())["data"]["training_records"] == 7
    assert "--exclude names 1 ids that no record has: nobody" in caplog.text


def test_a_image_that_breaks_off_is_named_in_one_line(
    train_idefics2: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its header is good, so that the door lets it pass; it is read in a loading process."""
    (tmp_path / "images").mkdir()
    whole = (SAMPLE / "images" / "cat.jpg").read_bytes()
    (tmp_path / "images" / "cut.jpg").write_bytes(whole[:6000])
    (tmp_path / "pairs.json").write_text(json.dumps([sample_pairs(1)[0] | {"img_path": "images/cut.jpg"}]))
    with pytest.raises(SystemExit) as stopped:
        train_idefics2(
            "run",
            "--objective",
            "dpo",
            "--image_root",
            str(tmp_path),
            "--dataloader_num_workers",
            "1",
            image_lists=None,
        )
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "record astronaut-portrait: " in last and "images/cut.jpg" in last and "give the same command again" in last


def test_an_evaluation_leaves_the_record_of_the_training_run_alone(train_idefics2: Train) -> None:
    folder = train_idefics2("run", "--max_steps", "1")
    before = (folder / "run.json").read_text()
    train_idefics2("run", "--do_train", "false", "--eval_pairs", str(SAMPLE / "pairs.json"))
    assert (folder / "run.json").read_text() == before
    assert json.loads((folder / "eval_run.json").read_text())["data"]["evaluation_records"] == 31


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume_from_checkpoint", "nowhere"), "nowhere: no checkpoint there"),
        (("--init_adapter", "nowhere"), "nowhere holds no adapter"),
        (
            ("--row_layout", "unpacked", "--model_name_or_path", "nowhere/at-all"),
            "cannot load the model nowhere/at-all",
        ),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    train_idefics2: Train, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_idefics2("run", *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_records_stop_the_run_before_a_model_is_loaded(
    train_idefics2: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = sample_pairs(8)
    pairs[2]["img_path"] = "images/none.jpg"
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    with pytest.raises(SystemExit) as stopped:
        train_idefics2("run", "--model_name_or_path", "nowhere/at-all")
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert "record 3" in printed and "images/none.jpg" in printed and "--on_bad_record drop" in printed
    folder = train_idefics2("run", "--on_bad_record", "drop", "--max_steps", "1")
    assert json.loads((folder / "run.json").read_text())["data"]["training_records"] == 7
