"""Training on quantized base weights. Runs where bitsandbytes is installed; the refusal, where it is not."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from listwise_preference.models.loading import load_base_model

from .conftest import SAMPLE, Run, sample_pairs


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", ["4", "8"])
def test_without_its_package_it_is_refused_at_once(run_program: Run, bits: str) -> None:
    done = run_program("lpoi.py", f"--load_in_{bits}bit", check=False)
    assert done.returncode == 2 and "pip install bitsandbytes" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4", "8"])
def test_losses_are_near_those_of_the_float_weights_and_the_adapter_fits_them(
    run_program: Run, checkpoint: Path, tmp_path: Path, bits: str
) -> None:
    """The first loss is that of a policy equal to its reference; the adapter loads on the weights as they were."""
    pytest.importorskip("bitsandbytes")
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(sample_pairs(8)))
    common = ["--model_name_or_path", checkpoint, "--dtype", "float32", "--image_root", SAMPLE, "--image_lists",
              SAMPLE / "image_lists.jsonl", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1",
              "--learning_rate", "1e-2", "--num_train_epochs", "2", "--logging_steps", "1", "--disable_tqdm", "true",
              "--save_strategy", "no"]  # fmt: skip
    losses = {}
    for name, more in {"float": [], "quantized": [f"--load_in_{bits}bit"]}.items():
        run_program("lpoi.py", *common, "--pairs", pairs, "--output_dir", tmp_path / name, *more)
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        losses[name] = [entry["loss"] for entry in history if "loss" in entry]
    # Of 8 bits each pass is rounded by what else is in its batch, so that policy and reference differ a little.
    assert losses["quantized"][0] == pytest.approx(6.1738, abs=1e-4 if bits == "4" else 0.1)
    assert losses["quantized"] == pytest.approx(losses["float"], abs=0.25)
    assert losses["quantized"][-1] < losses["quantized"][0] - 0.3

    options = ["--do_train", "false", "--eval_pairs", pairs, "--init_adapter", tmp_path / "quantized" / "final"]
    run_program("lpoi.py", *common, *options, "--output_dir", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "eval_results.json").read_text())["eval_loss"]
    assert again < losses["quantized"][0] - 0.3


@pytest.mark.slow
def test_4_bit_layers_stay_differentiable_after_a_pass_without_gradients(checkpoint: Path) -> None:
    """A reference is computed between two steps; bitsandbytes would pack the weights for inference then."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = load_base_model(str(checkpoint), dtype=torch.float32, device=torch.device("cpu"), load_in_4bit=True)
    layer = next(module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit))
    with torch.no_grad():
        layer.eval()(torch.ones(1, layer.in_features))
    x = torch.ones(1, layer.in_features, requires_grad=True)
    layer.train()(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
