"""Recipe, file and command line; what is wrong is said in one line."""

from pathlib import Path
from typing import Any

import pytest

import lpoi
import lpoi_llava
import lpoi_llava_13b
from listwise_preference.training.options import parse

from .conftest import Run

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
        (["--attn_implementation", "flash_attention_2"], "needs --row_layout plain"),
        (["--beta", "nan"], "beta must be above 0"),
        (["--loss_weights", "nan", "1", "1"], "loss weights must be 0 or more"),
        (["--learning_rate", "-1"], "--learning_rate must be a number, 0 or more"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be 1 or more"),
        (["--lora_dropout", "1.5"], "--lora_dropout must be at least 0 and below 1"),
        (["--eval_share", "0.1", "--dataloader_drop_last", "true"], "would drop records of the evaluation"),
        (["--report_to", "comet_ml"], "--report_to comet_ml: install its package first"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
        (["--lr_scheduler_type", "zigzag"], "zigzag"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(RECIPE, options)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("betta: 1", "unknown option betta; did you mean beta?"),
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
    """The table of the README: epochs and learning rate differ, everything else is shared."""
    recipes = {module.__name__: parse(module.RECIPE, ["--use_cpu"]) for module in (lpoi, lpoi_llava, lpoi_llava_13b)}
    numbers = {
        name: (arguments.training.num_train_epochs, arguments.training.learning_rate)
        for name, arguments in recipes.items()
    }
    assert numbers == {"lpoi": (3, 5e-6), "lpoi_llava": (1, 5e-5), "lpoi_llava_13b": (1, 5e-5)}
    for arguments in recipes.values():
        assert arguments.objective.beta == 0.1
        assert (arguments.model.lora_r, arguments.model.lora_alpha) == (8, 8)
        assert arguments.training.train_batch_size * arguments.training.gradient_accumulation_steps == 64
        assert arguments.data.max_completion_length == 384
        assert arguments.objective.precompute_ref_log_probs is True


@pytest.mark.slow
def test_help_shows_our_options_first(run_program: Run) -> None:
    printed = run_program("lpoi.py", "--help").stdout
    groups = ("\nmodel and adapter:", "\ndata:", "\nobjective:", "\ntraining (transformers.TrainingArguments):")
    places = [printed.index(group) for group in groups]
    assert places == sorted(places)
    assert "idefics2-8b-lpoi-list5-10k" in printed
