"""merge.py: the merged model on disk is what base and adapter are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from listwise_preference.merging.command import main
from listwise_preference.merging.merge import compare
from listwise_preference.models.adapters import add_adapter, untie
from listwise_preference.models.loading import load_base_model
from listwise_preference.small_world.model import build_small_model

from .conftest import SAMPLE, Run


def save_adapter(checkpoint: Path, folder: Path, targets: tuple[str, ...] = ("all-linear",)) -> Path:
    """An adapter of random weights, large enough to change responses by tens of nats."""
    model = load_base_model(str(checkpoint), dtype=torch.float32)
    adapted = add_adapter(model, r=4, alpha=8, dropout=0.0, target_modules=list(targets))
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    adapted.save_pretrained(str(folder))
    return folder


def merge(adapter: Path, output: Path, *more: str) -> dict[str, Any]:
    pairs = ("--pairs", str(SAMPLE / "pairs.json"), "--image_root", str(SAMPLE), "--records", "3")
    main(["--adapter", str(adapter), "--output", str(output), *pairs, *more])
    record: dict[str, Any] = json.loads((output / "merge.json").read_text())
    return record


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_model_is_base_and_adapter(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """Every weight is W + (alpha / r) B A, added in float32 and rounded once, by up to 2^-8 in bfloat16."""
    adapter = save_adapter(checkpoint, tmp_path / "adapter")
    left = tmp_path / ".merged.partial"  # by a run that was killed
    left.mkdir()
    (left / "model-00077-of-00077.safetensors").touch()
    (adapter / "run.json").write_text(json.dumps({"arguments": {"data": {"system_prompt": 'Say "yes".'}}}))
    record = merge(adapter, tmp_path / "merged", "--dtype", dtype, "--max_shard_size", "100KB")
    proof, card = record["proof"], (tmp_path / "merged" / "README.md").read_text()
    assert record["system_prompt"] == 'Say "yes".'
    assert r'{"role": "system", "content": [{"type": "text", "text": "Say \"yes\"."}]}, {"role": "user"' in card
    written = (tmp_path / "merged" / "merge.json").stat().st_mtime_ns
    merge(adapter, tmp_path / "merged", "--dtype", dtype)
    assert (tmp_path / "merged" / "merge.json").stat().st_mtime_ns == written  # the same again: nothing to do
    assert not left.exists() and not (tmp_path / "merged" / "model-00077-of-00077.safetensors").exists()
    assert (proof["records"], proof["responses"]) == (3, 6)
    assert proof["difference"] <= {"float32": 1e-3, "bfloat16": 3 * proof["rounding"]}[dtype] < proof["effect"]
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1

    lora = load_file(adapter / "adapter_model.safetensors")
    before = load_base_model(str(checkpoint), dtype=torch.float32).state_dict()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="auto")
    rounding = {"float32": 2**-22, "bfloat16": 2**-8}[dtype]
    for name, weight in model.state_dict().items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        expected = before[name]
        if f"{key}A.weight" in lora:
            expected = expected + 2 * (lora[f"{key}B.weight"] @ lora[f"{key}A.weight"])
        assert str(weight.dtype) == f"torch.{dtype}"
        torch.testing.assert_close(weight.float(), expected, rtol=rounding, atol=1e-6)
    assert sum(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight" in lora for name in before) * 2 == len(
        lora
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "merged", backend="pil")
    assert processor.chat_template and model.generation_config.eos_token_id is not None


def test_a_model_further_off_than_the_bound_is_refused_and_nothing_is_left(
    small_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(small_checkpoints["llava"], tmp_path / "adapter")
    with pytest.raises(SystemExit) as ended:
        merge(adapter, tmp_path / "out" / "merged", "--largest_difference", "1e-9")
    assert ended.value.code == 2 and "not what base and adapter are" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_proof_compares() -> None:
    """Rounding changes 0.125, so that 3 x 0.125 is allowed; without rounding 0.01; not a number is no proof."""
    base, exact = torch.zeros(1, 2), torch.tensor([[8.0, -2.0]])
    merged, rounded = torch.tensor([[8.0, -2.25]]), torch.tensor([[8.125, -2.0]])
    proof = compare(merged, exact, rounded, base)
    assert (proof.difference, proof.rounding, proof.effect, proof.bound) == (0.25, 0.125, 8.0, 0.375)
    assert compare(merged, exact, exact, base).bound == 0.01
    assert compare(merged, exact, exact, base, 3.0).bound == 3.0
    wrong = compare(torch.tensor([[float("nan"), 0.0]]), exact, rounded, base)
    assert not wrong.difference <= wrong.bound


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "lm_head")])
def test_a_tied_vocabulary_stays_tied_or_untied_when_it_is_resized(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """With an adapter on it the projection gets weights of its own, for good: on disk, and after a resize."""
    model, processor = build_small_model("llava", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "base", tmp_path / "adapter", targets)
    record = merge(adapter, tmp_path / "merged", "--dtype", "float32")
    tied = "lm_head" not in targets
    assert record["tied_vocabulary"] is tied and record["proof"]["difference"] < 1e-3
    merged: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    for _ in range(2):
        assert (merged.lm_head.weight is merged.get_input_embeddings().weight) is tied
        merged.resize_token_embeddings(merged.lm_head.weight.shape[0] + 8)


def test_a_config_that_says_tied_of_weights_that_are_not_is_put_right(small_checkpoints: dict[str, Path]) -> None:
    model: Any = load_base_model(str(small_checkpoints["idefics2"]), dtype=torch.float32)
    model.config.get_text_config().tie_word_embeddings = True
    adapted = add_adapter(model, r=2, alpha=2, dropout=0.0, target_modules=["q_proj"])
    assert not untie(adapted)
    assert not model.config.tie_word_embeddings and not model.config.get_text_config().tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": "none"}, "holds no adapter"),
        ({"output": "."}, "there is something already"),
        ({"pairs": "no.json"}, "no such file"),
        ({"pairs": None}, "give --pairs"),
        ({"model_name_or_path": "runs/none/none"}, "no such folder"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    small_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], message: str,
) -> None:  # fmt: skip
    save_adapter(small_checkpoints["llava"], tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    options = {"adapter": "adapter", "output": "merged", "pairs": str(SAMPLE / "pairs.json"), **change}
    arguments = [text for name, value in options.items() if value for text in (f"--{name}", value)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--image_root", str(SAMPLE)])
    assert ended.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_trained_adapter_names_its_bases_commit_and_is_merged_by_its_name(
    small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path, run_program: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The base lies in a hub cache, as a download leaves it: a name, a branch and the commit behind it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(small_checkpoints["llava"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(repository.parent))
    output = tmp_path / "run"
    run_program(
        "lpoi_llava.py", "--model_name_or_path", "someone/small", "--dtype", "float32", "--objective", "dpo",
        "--pairs", few_pairs, "--image_root", SAMPLE, "--max_steps", "2", "--gradient_accumulation_steps", "1",
        "--learning_rate", "1e-2", "--output_dir", output,
    )  # fmt: skip
    config = json.loads((output / "final" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/small", commit)
    finished = run_program("merge.py", "--adapter", output / "final", "--output", tmp_path / "merged")
    assert "largest difference between the merged model on disk and base + adapter: 0." in finished.stderr
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"`someone/small` at `{commit}`" in card and "bfloat16" in card
