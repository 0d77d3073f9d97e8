"""Recipe, file and command line; what is wrong is said in one line."""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lpoi
import lpoi_gemma3
import lpoi_llava
import lpoi_llava_13b
import lpoi_qwen2_5_vl
import lpoi_qwen3_vl
import lpoi_smolvlm
from listwise_preference.cli import Parser, add_options
from listwise_preference.errors import UserError
from listwise_preference.training.options import DataArguments, ModelArguments, ObjectiveArguments, RunArguments, parse
from listwise_preference.training.other_trainers import OTHER_TRAINERS
from listwise_preference.training.trainer_arguments import LOGGERS, REFUSED, TrainerArguments

from .conftest import ROOT, SAMPLE, Run, sample_pairs

RECIPE: dict[str, Any] = {"model_name_or_path": "m", "output_dir": "o", "pairs": "p.json", "do_train": True}


def test_command_line_over_file_over_recipe(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("beta: 0.2\nlearning_rate: 1e-6\nloss_weights: [1, 0, 2]\nfreeze_vision_tower: true\n")
    recipe = RECIPE | {"beta": 0.3, "learning_rate": 1e-3, "lora_r": 4}
    arguments = parse(recipe, ["--config", str(config), "--learning_rate", "1e-5"])
    assert arguments.objective.beta == 0.2
    assert arguments.training.learning_rate == 1e-5
    assert arguments.objective.resolve().weights == {"dpo": 1.0, "anchor": 0.0, "listwise": 2.0}
    assert arguments.model.lora_r == 4
    assert arguments.model.freeze_vision_tower is True


def test_numbers_with_exponents_and_yamls_no(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("anchor_delta: -2e-3\nsave_strategy: no\n")
    assert parse(RECIPE, ["--config", str(config)]).objective.anchor_delta == -2e-3
    assert parse(RECIPE, ["--config", str(config)]).training.save_strategy == "no"
    assert parse(RECIPE, ["--anchor_delta", "-1e-3"]).objective.anchor_delta == -1e-3


@pytest.mark.parametrize(
    ("objective", "weights"),
    [("lpoi", (1, 1, 1)), ("dpo", (1, 0, 0)), ("mdpo", (1, 1, 1))],
)
def test_objectives_are_named_weights(objective: str, weights: tuple[float, ...]) -> None:
    resolved = parse(RECIPE, ["--objective", objective]).objective.resolve()
    assert tuple(resolved.weights.values()) == weights
    own = parse(RECIPE, ["--objective", objective, "--loss_weights", "0", "1", "3"]).objective.resolve()
    assert own.weights == {"dpo": 0, "anchor": 1, "listwise": 3}
    named = parse(RECIPE, ["--objective", objective, "--loss_weights", "listwise=3", "dpo=0.5"]).objective.resolve()
    assert named.weights == {"dpo": 0.5, "anchor": weights[1], "listwise": 3}


def test_what_the_user_gives_wins_over_what_the_recipe_gives() -> None:
    """Boxes on the command line replace the recipe's folders; another model drops the recipe's revision."""
    recipe = RECIPE | {"ranked_image_folders": ["a", "b"], "model_revision": "a272c74"}
    assert parse(recipe, []).data.ranked_image_folders == ["a", "b"]
    assert parse(recipe, []).model.model_revision == "a272c74"
    changed = parse(recipe, ["--image_lists", "boxes.jsonl", "--model_name_or_path", "other"])
    assert changed.data.ranked_image_folders is None
    assert changed.model.model_revision is None


def test_precision_of_the_adapter_follows_the_base() -> None:
    assert parse(RECIPE, ["--use_cpu"]).training.bf16 is True
    assert parse(RECIPE, ["--dtype", "float32"]).training.bf16 is False
    assert parse(RECIPE, ["--use_cpu", "--dtype", "float32", "--bf16", "true"]).training.bf16 is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learnin_rate", "1"], "unknown option --learnin_rate; did you mean --learning_rate?"),
        (["--use_peft"], "unknown option --use_peft; not needed: an adapter is always trained"),
        (["--rpo_alpha=1"], "unknown option --rpo_alpha; here: --loss_weights sft=ALPHA"),
        (["--max-length", "512"], "unknown option --max-length; here: --max_completion_length; prompts are never cut"),
        (["--image_max_pixels", "1"], "unknown option --image_max_pixels; here: --processor_settings"),
        (["--gpus", "1"], "unknown option --gpus (see --help)"),
        (["extra"], "extra: belongs to no option"),
        (["--load_in_4bit", "--load_in_8bit"], "--load_in_4bit and --load_in_8bit are two ways to the same; give one"),
        (["--beta", "high"], "argument --beta: invalid float value: 'high'"),
        (["--objective", "ppo"], "argument --objective: invalid choice: 'ppo'"),
        (["--beta", "0"], "beta must be above 0"),
        (["--loss_weights", "1", "1"], "or three numbers, dpo anchor listwise; got 2"),
        (
            ["--loss_weights", "dpo=1", "lisp=1"],
            "lisp=1: expected name=number, with a name of dpo, anchor",
        ),
        (["--loss_weights", "dpo=one"], "--loss_weights dpo=one: 'one' is not a number"),
        (["--loss_weights", "0", "0", "0"], "not all 0"),
        (["--list_size", "1"], "--list_size must be 2 or more"),
        (["--image_lists", "a", "--ranked_image_folders", "b", "c"], "give one"),
        (["--ranked_image_folders", "b"], "needs two folders or more"),
        (["--do_train", "false"], "--do_train false needs --eval_pairs"),
        (["--eval_share", "1.5"], "--eval_share must be at least 0 and below 1"),
        (["--eval_strategy", "epoch"], "--eval_strategy needs --eval_pairs or --eval_share"),
        (["--beta", "nan"], "beta must be above 0"),
        (["--loss_weights", "nan", "1", "1"], "loss weights must be 0 or more"),
        (["--learning_rate", "-1"], "--learning_rate must be a number, 0 or more"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be 1 or more"),
        (["--lora_dropout", "1.5"], "--lora_dropout must be at least 0 and below 1"),
        (["--eval_share", "0.1", "--dataloader_drop_last", "true"], "would drop records of the evaluation"),
        (["--report_to", "comet_ml"], "--report_to comet_ml: install its package first"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--lr_scheduler_type", "zigzag"], "invalid choice: 'zigzag' (choose from 'linear', "),
        (["--lr_scheduler_kwargs", '{"min_lr": }'], "not valid JSON: Expecting value"),
        (["--tf32", "perhaps"], "argument --tf32: perhaps: must be true or false"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(RECIPE, options)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in printed
    assert printed.count("\n") == 1


def test_names_of_other_trainers_lead_to_options_that_are_there() -> None:
    """The table's names are none of ours, what it says is here is, and docs/other_trainers.md has every row."""
    groups = (ModelArguments, DataArguments, ObjectiveArguments, RunArguments, TrainerArguments)
    ours = {field.name for group in groups for field in dataclasses.fields(group)}
    assert not ours & OTHER_TRAINERS.keys()
    page = (ROOT / "docs" / "other_trainers.md").read_text()
    for name, (whose, here) in OTHER_TRAINERS.items():
        named = re.findall(r"--(\w+)", here.partition("python -m")[0])
        assert set(named) <= ours, name
        assert f"| `{name}` | {whose} | {here[:1].upper()}{here[1:]} |" in page, name
    assert len(re.findall(r"(?m)^\| `", page)) == len(OTHER_TRAINERS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("betta: 1", "unknown option betta; did you mean --beta?"),
        ("- 1", "must hold option: value lines"),
        ("beta:", "beta has no value"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit):
        parse(RECIPE, ["--config", str(file)])
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_recipes_are_the_papers() -> None:
    """The table of docs/recipes.md: what differs between them, everything else is shared."""
    modules = (lpoi, lpoi_llava, lpoi_llava_13b, lpoi_qwen3_vl, lpoi_qwen2_5_vl, lpoi_gemma3, lpoi_smolvlm)
    recipes = {module.__name__: parse(module.RECIPE, ["--use_cpu"]) for module in modules}
    numbers = {
        name: (arguments.training.num_train_epochs, arguments.training.learning_rate)
        for name, arguments in recipes.items()
    }
    assert numbers == {
        "lpoi": (3, 5e-6),
        "lpoi_llava": (1, 5e-5),
        "lpoi_llava_13b": (1, 5e-5),
        "lpoi_qwen3_vl": (1, 5e-6),
        "lpoi_qwen2_5_vl": (1, 5e-6),
        "lpoi_gemma3": (3, 5e-6),
        "lpoi_smolvlm": (3, 5e-6),
    }
    frozen = {name for name, arguments in recipes.items() if arguments.model.freeze_vision_tower}
    assert frozen == {"lpoi_qwen3_vl", "lpoi_qwen2_5_vl", "lpoi_gemma3"}
    for arguments in recipes.values():
        assert arguments.objective.beta == 0.1
        assert (arguments.model.lora_r, arguments.model.lora_alpha) == (8, 8)
        assert arguments.training.per_device_train_batch_size * arguments.training.gradient_accumulation_steps == 64
        assert arguments.data.max_completion_length == 384
        assert arguments.objective.precompute_ref_log_probs is True


# ---- the Trainer's options ----


def trainer_actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.option_strings[0]: action for action in parser._actions if action.dest not in ("help", "config")}


def test_options_that_are_json_are_read_by_the_bounded_reader() -> None:
    with pytest.raises(UserError, match="--parallelism_config: line 1: nested too deeply"):
        TrainerArguments(output_dir="x", parallelism_config="[" * 101 + "]" * 101).build()  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_table_of_the_trainers_options_is_that_of_transformers() -> None:
    """Every option, in order, with its spellings, default, choices and how many values it takes; none besides."""
    from transformers import HfArgumentParser, TrainingArguments
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    parser = Parser()
    add_options(parser, "training", TrainerArguments)
    ours, theirs = trainer_actions(parser), trainer_actions(HfArgumentParser(TrainingArguments))  # type: ignore[arg-type]
    assert list(ours) == list(theirs)
    for name, action in theirs.items():
        own = ours[name]
        assert own.option_strings == action.option_strings
        assert (own.help or "").strip(), name
        if name.startswith("--no_"):
            assert (own.nargs, own.const, own.dest) == (0, False, action.dest)
            continue
        assert own.default == action.default and type(own.default) is type(action.default), name
        # An optional bool may also stand alone here.
        assert own.nargs == action.nargs or (own.nargs, own.const, action.default) == ("?", True, None), name
        if action.choices is not None:
            assert list(own.choices or ()) == list(action.choices), name
        if action.type in (int, float):
            assert own.type is action.type, name
    assert LOGGERS.keys() == INTEGRATION_TO_CALLBACK.keys()


# What the Trainer or the run does as the option says; local_rank is what old launchers add.
HONOURED = (
    "output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "bf16_full_eval",
    "fp16_full_eval", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "torch_empty_cache_steps", "auto_find_batch_size", "logging_strategy", "logging_steps",
    "logging_first_step", "log_on_each_node", "logging_nan_inf_filter", "include_num_input_tokens_seen",
    "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "eval_strategy", "eval_steps", "eval_delay",
    "per_device_eval_batch_size", "eval_accumulation_steps", "save_only_model", "save_strategy", "save_steps",
    "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub", "hub_token",
    "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "ignore_data_skip", "restore_callback_states_from_checkpoint",
    "full_determinism", "seed", "data_seed", "use_cpu", "dataloader_drop_last", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed",
    "debug", "skip_memory_metrics", "do_train", "resume_from_checkpoint", "local_rank",
)  # fmt: skip
# Refused with some values, or where something else is missing.
REFUSED_AT_TIMES = {
    "remove_unused_columns": ["true"],
    "train_sampling_strategy": ["group_by_length"],
    "do_eval": ["true"],
    "eval_on_start": ["true"],
    "optim_target_modules": ["q_proj"],
    "label_smoothing_factor": ["0.1"],
    "accelerator_config": ['{"split_batches": true}'],
    "parallelism_config": ['{"cp_size": 2}'],
}
VALUES = {
    "average_tokens_across_devices": "false",
    "eval_do_concat_batches": "false",
    "neftune_noise_alpha": "5",
    "liger_kernel_config": "{}",
    "length_column_name": "tokens",
}  # of those that are always refused; "true" for the rest


@pytest.mark.slow
def test_every_option_of_the_trainer_does_what_it_says_or_is_refused() -> None:
    """A version of transformers with another option fails here, until somebody has looked at what it does."""
    from transformers import TrainingArguments

    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    assert sorted(names) == sorted([*HONOURED, *REFUSED, *REFUSED_AT_TIMES])


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_AT_TIMES])
def test_options_that_would_do_nothing_are_refused_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = REFUSED_AT_TIMES.get(name, [VALUES.get(name, "true")])
    with pytest.raises((SystemExit, UserError)) as refused:
        parse(RECIPE, [f"--{name}", *values, "--use_cpu"]).training.build()
    said = f"{capsys.readouterr().err}{refused.value}"
    assert name.removesuffix("_factor").replace("_smoothing", " smoothing") in said and said.count("\n") <= 1


def test_what_is_refused_at_times_has_its_uses() -> None:
    for options in (
        ["--train_sampling_strategy", "sequential"],
        ["--do_eval", "true", "--eval_on_start", "true", "--eval_share", "0.1"],
        ["--optim", "galore_adamw", "--optim_target_modules", "q_proj"],
        ["--objective", "dpo", "--label_smoothing_factor", "0.1"],
        ["--loss_weights", "1", "0", "0", "--label_smoothing_factor", "0.1"],
    ):
        parse(RECIPE, options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--learning-rate", "2e-4", "--max_steps=7", "--warmup_steps", "0.1", "--save_steps", "20"],
        ["--logging_first_step", "--tf32", "false", "--no_dataloader_pin_memory", "--dataloader_in_order", "no"],
        ["--activation_checkpointing", "--disable_tqdm", "true", "--ddp_find_unused_parameters", "True"],
        ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}', "--optim", "sgd"],
        ["--accelerator_config", '{"even_batches": false}', "--activation_checkpointing_kwargs", '{"a": "true"}'],
        ["--include_for_metrics", "inputs", "loss", "--label_names", "x", "--debug", "underflow_overflow"],
        ["--eval_strategy", "steps", "--eval_steps", "5", "--fsdp_config", "{}", "--include_num_input_tokens_seen"],
        ["--logging_strategy", "epoch", "--save_strategy", "no", "--hub_strategy", "end", "--report_to", "none"],
    ],
)
def test_the_trainers_options_become_what_transformers_makes_of_them(options: list[str], tmp_path: Path) -> None:
    from transformers import HfArgumentParser, TrainingArguments

    common = ["--output_dir", str(tmp_path), "--use_cpu", *options]
    (expected,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(common)  # type: ignore[arg-type]
    parser = Parser()
    add_options(parser, "training", TrainerArguments)
    built = TrainerArguments(**vars(parser.parse_args(common))).build()
    assert built.to_dict() == expected.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
        ({"logging_steps": 0}, "requires non-zero --logging_steps"),
        ({"accelerator_config": '{"evn_batches": true}'}, "evn_batches"),
        ({"parallelism_config": '{"tp": 2}'}, "unexpected keyword argument 'tp'"),
    ],
)
def test_what_transformers_refuses_is_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        TrainerArguments(output_dir=str(tmp_path), use_cpu=True, **options).build()
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "today"), [("plain", "unpacked"), ("unpacked", "unpacked"), ("packed", "ragged"), ("ragged", "ragged")]
)
def test_rows_had_other_names_once(name: str, today: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"row_layout: {name}\n")
    for arguments in (
        parse(RECIPE, ["--row_layout", name]),
        parse(RECIPE | {"row_layout": name}, []),
        parse(RECIPE, ["--config", str(config)]),
    ):
        assert arguments.objective.row_layout == today


# ---- fast to an error ----

HEAVY = ("torch", "transformers", "peft", "accelerate", "numpy", "nltk", "matplotlib")
TRAINING = ["--image_root", str(SAMPLE), "--model_name_or_path", "m/n", "--output_dir", "o"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learnin_rate", "1"], "unknown option --learnin_rate"),
        (["--beta", "high"], "invalid float value"),
        ([*TRAINING, "--image_root", "nowhere"], "nowhere: no such folder"),
        ([*TRAINING, "--pairs", "BAD", "--objective", "dpo"], "no image"),
        ([*TRAINING, "--pairs", str(SAMPLE / "pairs.json"), "--init_adapter", "nowhere"], "nowhere holds no adapter"),
        ([*TRAINING, "--pairs", str(SAMPLE / "pairs.json"), "--resume_from_checkpoint", "gone"], "gone: no checkpoint"),
        (
            [*TRAINING, "--pairs", str(SAMPLE / "pairs.json"), "--model_name_or_path", "data/gone"],
            "data/gone: no such folder",
        ),
        (["--help"], ""),
    ],
)
def test_an_error_needs_nothing_heavy_and_no_time(options: list[str], message: str, tmp_path: Path) -> None:
    """Below 1 s of CPU; a tenth of that on a desktop, so that the limit holds on a slow machine too."""
    pairs = sample_pairs(100)
    pairs[3]["img_path"] = "images/none.jpg"
    (tmp_path / "bad.json").write_text(json.dumps(pairs))
    options = [str(tmp_path / "bad.json") if option == "BAD" else option for option in options]
    code = (
        "import sys, resource, lpoi\n"
        "try:\n"
        f"    lpoi.main(lpoi.RECIPE, {options!r})\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"    print('heavy', [name for name in {HEAVY!r} if name in sys.modules], used.ru_utime + used.ru_stime)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if options == ["--help"] else 2)
    assert message in done.stderr and "Traceback" not in done.stderr
    imported, seconds = done.stdout.splitlines()[-1].removeprefix("heavy ").rsplit(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 1.0


@pytest.mark.slow
def test_help_shows_our_options_first(run_program: Run) -> None:
    printed = run_program("lpoi.py", "--help").stdout
    groups = ("\nmodel and adapter:", "\ndata:", "\nobjective:", "\ntraining (transformers.TrainingArguments):")
    places = [printed.index(group) for group in groups]
    assert places == sorted(places)
    assert "default:checkpoints/idefics2-8b-lpoi-list5-10k" in "".join(printed.split())
