"""The training step as it is by default against one completion at a time through peft's own layers, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from listwise_preference.data.pairs import BoxLists, Crops, ImageOnly, ImageSource, load_records
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.models.adapters import add_adapter
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.fused_layers import fuse_layers
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.models.ragged_attention import use_ragged_attention
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.completion_logps import completion_logps
from listwise_preference.training.objective import PRESETS, Objective, compare
from listwise_preference.training.run import Run

from .conftest import SAMPLE


def dataset_of(checkpoint: Path, objective: Objective, list_size: int) -> ListwiseDataset:
    source: ImageSource = ImageOnly()
    if objective.uses_list:
        drawing = Drawing(list_size=list_size)
        ranked = objective.list_source == "ranked"
        source = BoxLists(SAMPLE / "image_lists.jsonl", drawing) if ranked else Crops(0)
    records = load_records(SAMPLE / "pairs.json", SAMPLE, source).records
    processor = load_processor(str(checkpoint))
    return ListwiseDataset(records, ChatFormat(processor), 384)


def policy_of(checkpoint: Path) -> PeftModel:
    """With an adapter on every linear layer that does something."""
    torch.manual_seed(0)
    bare = load_base_model(str(checkpoint), dtype=torch.float32)
    policy = add_adapter(bare, r=4, alpha=8, dropout=0.0, target_modules=["all-linear"])
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return policy.train()


def alone(policy: PeftModel, processor: Any, examples: list[Any]) -> Tensor:
    """Each completion behind its prompt, by itself: (B, A)."""
    logps = []
    for example in examples:
        completions = [(example.images[0], example.chosen_ids), (example.images[0], example.rejected_ids)]
        completions += [(image, example.chosen_ids) for image in example.images[1:]]
        for image, ids in completions:
            inputs = processor(text=[example.prompt_text], images=[image], return_tensors="pt")
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            steps = policy(**inputs).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
            logps.append(steps[range(len(ids)), ids].double().sum())
    return torch.stack(logps).view(len(examples), -1)


def gradient(policy: PeftModel, loss: Tensor) -> Tensor:
    policy.zero_grad()
    loss.backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


@pytest.mark.parametrize(
    ("preset", "list_size", "batch_size"),
    [
        ("lpoi", 5, 1),
        pytest.param("lpoi", 5, 4, marks=pytest.mark.slow),
        pytest.param("lpoi", 2, 1, marks=pytest.mark.slow),
        ("lpoi", 2, 4),
        pytest.param("mdpo", 2, 4, marks=pytest.mark.slow),
        pytest.param("dpo", 1, 1, marks=pytest.mark.slow),
        ("dpo", 1, 4),
    ],
)
def test_loss_and_gradient_are_those_of_single_completions(
    checkpoint: Path, preset: str, list_size: int, batch_size: int
) -> None:
    objective = Objective(PRESETS[preset].weights, list_source=PRESETS[preset].list_source)
    dataset = dataset_of(checkpoint, objective, list_size)
    examples = [dataset[index] for index in (0, 9, 15, 30)[:batch_size]]
    processor = load_processor(str(checkpoint))
    policy = policy_of(checkpoint)
    expected_logps = alone(policy, processor, examples)
    shift = torch.randn(expected_logps.shape, generator=torch.Generator().manual_seed(1)).double()
    reference = expected_logps.detach() + 3 * shift
    expected_loss = compare(objective, expected_logps, reference).loss_B.mean()
    expected = gradient(policy, expected_loss)

    use_ragged_attention(policy.get_base_model())
    fuse_layers(policy)
    logps = completion_logps(policy, Collator(processor, with_rejected=objective.uses_rejected)(examples))
    assert logps.shape == (batch_size, 1 + list_size)
    loss = compare(objective, logps, reference).loss_B.mean()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6, abs=1e-6)
    found = gradient(policy, loss)
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
def test_an_adapter_trained_on_fused_layers_gives_the_same_logits_in_plain_peft(
    checkpoint: Path, tmp_path: Path
) -> None:
    from listwise_preference.training.command import read_data
    from listwise_preference.training.options import parse
    from lpoi import RECIPE

    given = {
        "model_name_or_path": str(checkpoint), "dtype": "float32", "pairs": str(SAMPLE / "pairs.json"),
        "image_root": str(SAMPLE), "image_lists": str(SAMPLE / "image_lists.jsonl"), "output_dir": str(tmp_path),
        "max_steps": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "disable_tqdm": True,
    }  # fmt: skip
    arguments = parse(RECIPE, [f"--{name}={value}" for name, value in given.items()])
    run = Run(arguments, *read_data(arguments))
    run.load()
    run.precompute_reference()
    run.train()
    run.save()
    trained: Any = run.trainer.model.eval()
    assert any("forward" in module.__dict__ for module in trained.modules())
    plain = PeftModel.from_pretrained(load_base_model(str(checkpoint), dtype=torch.float32), tmp_path / "final").eval()
    processor = load_processor(str(checkpoint))
    dataset = dataset_of(checkpoint, Objective(), 5)
    with torch.no_grad():
        ours = completion_logps(trained, Collator(processor)([dataset[0]]))
        theirs = completion_logps(plain, Collator(processor, ragged=False)([dataset[0]]))
        with plain.disable_adapter():
            base = completion_logps(plain, Collator(processor, ragged=False)([dataset[0]]))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - base).abs().max() > 0.01
