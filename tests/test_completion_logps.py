"""Ragged rows, unpacked rows and one completion at a time give the same log-probabilities and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from listwise_preference.data.pairs import BoxLists, load_records
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.models.adapters import add_adapter
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.models.ragged_attention import use_ragged_attention
from listwise_preference.small_world.model import save_small_model
from listwise_preference.training.batch import Batch, Collator, ListwiseDataset
from listwise_preference.training.completion_logps import completion_logps

from .conftest import SAMPLE

# Images of different sizes and completions of different lengths.
RECORDS = (0, 9, 15, 30)


def sample_dataset(checkpoint: Path) -> tuple[ListwiseDataset, ChatFormat]:
    source = BoxLists(SAMPLE / "image_lists.jsonl", Drawing(list_size=3))
    records = load_records(SAMPLE / "pairs.json", SAMPLE, source).records
    processor = load_processor(str(checkpoint))
    chat = ChatFormat(processor)
    return ListwiseDataset([records[index] for index in RECORDS], chat, 384), chat


def policy(checkpoint: Path, attn_implementation: str = "sdpa", ragged: bool = True) -> Any:
    """A float64 model with an adapter that does something, on every linear layer."""
    model = load_base_model(str(checkpoint), dtype=torch.float32, attn_implementation=attn_implementation)
    adapted = add_adapter(model, r=4, alpha=8, dropout=0.0, target_modules=["all-linear"])
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    if ragged:
        use_ragged_attention(model)
    return adapted.double()


def in_float64(batch: Batch) -> Batch:
    images = {k: v.double() if v.is_floating_point() else v for k, v in batch["images"].items()}
    return Batch(**{**batch, "images": images})  # type: ignore[typeddict-item]


def one_at_a_time(model: nn.Module, chat: ChatFormat, example: Any) -> list[float]:
    """Each completion alone behind its prompt: whole logits, log-softmax, sum over the completion's tokens.

    Chosen and rejected on image 1, chosen on the others, rejected on the others.
    """
    others = example.images[1:]
    completions = [example.chosen_ids, example.rejected_ids]
    completions += [example.chosen_ids] * len(others) + [example.rejected_ids] * len(others)
    images = [*[example.images[0]] * 2, *others, *others]
    values = []
    for image, completion in zip(images, completions, strict=True):
        inputs = chat.processor(text=[example.prompt_text], images=[image], return_tensors="pt")
        prompt = inputs["input_ids"]
        tokens = torch.cat([prompt, torch.tensor([completion])], dim=1)
        pixels = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items() if k.startswith("pixel")}
        logps = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **pixels).logits.log_softmax(-1)
        steps = range(prompt.shape[1] - 1, tokens.shape[1] - 1)
        values.append(sum(logps[0, t, tokens[0, t + 1]].item() for t in steps))
    return values


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_ragged_unpacked_and_one_at_a_time_agree(checkpoint: Path, attn_implementation: str) -> None:
    dataset, chat = sample_dataset(checkpoint)
    model = policy(checkpoint, attn_implementation, ragged=False)
    examples = [dataset[i] for i in range(len(dataset))]
    with torch.no_grad():
        expected = torch.tensor([one_at_a_time(model, chat, example) for example in examples], dtype=torch.float64)
        for ragged in (False, True):
            if ragged:
                use_ragged_attention(model.get_base_model())
            # eager attention takes its softmax in float32 whatever the model's precision
            tolerance = 1e-9 if attn_implementation == "sdpa" else 1e-5
            for on_all, count in ((False, 4), (True, 6)):
                batch = in_float64(Collator(chat.processor, ragged=ragged, rejected_on_all=on_all)(examples))
                logps = completion_logps(model, batch)
                torch.testing.assert_close(logps, expected[:, :count], atol=tolerance, rtol=0)
    assert expected.shape == (4, 6)
    assert (expected < -10).all()


def test_a_padded_batch_is_its_records_one_at_a_time(checkpoint: Path) -> None:
    dataset, chat = sample_dataset(checkpoint)
    model, collate = policy(checkpoint), Collator(chat.processor)
    examples = [dataset[i] for i in range(len(dataset))]
    with torch.no_grad():
        together = completion_logps(model, in_float64(collate(examples)))
        alone = torch.cat([completion_logps(model, in_float64(collate([example]))) for example in examples])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-9)


def test_ragged_and_unpacked_rows_have_the_same_gradient(checkpoint: Path) -> None:
    dataset, chat = sample_dataset(checkpoint)
    model = policy(checkpoint, ragged=False)
    gradients = []
    for ragged in (False, True):
        if ragged:
            use_ragged_attention(model.get_base_model())
        model.zero_grad()
        batch = in_float64(Collator(chat.processor, ragged=ragged)([dataset[0], dataset[1]]))
        completion_logps(model, batch).square().sum().backward()
        named = model.named_parameters()
        gradients.append(torch.cat([p.grad.flatten() for _, p in named if p.requires_grad and p.grad is not None]))
    # the norms inside the model are float32
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()
    assert gradients[0].norm() > 1


def test_activation_checkpointing_changes_no_gradient(checkpoint: Path) -> None:
    dataset, chat = sample_dataset(checkpoint)
    model: Any = policy(checkpoint)
    batch = in_float64(Collator(chat.processor)([dataset[0]]))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model.zero_grad()
        completion_logps(model, batch).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_only_completion_positions_reach_the_vocabulary(tmp_path: Path) -> None:
    """At 576 image tokens a record the projection sees as many rows as completion tokens, never (rows, tokens, V)."""
    folder = save_small_model(tmp_path / "llava", "llava", image_size=336)
    dataset, chat = sample_dataset(folder)
    model: Any = load_base_model(str(folder), dtype=torch.float32)
    use_ragged_attention(model)
    batch = Collator(chat.processor)([dataset[0], dataset[1]])
    assert (batch["input_ids"] == model.config.image_token_id).sum().item() == 6 * 576

    vocabulary = model.config.text_config.vocab_size
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    largest_saved = 0

    def record_saved(tensor: Tensor) -> Tensor:
        nonlocal largest_saved
        if tensor.ndim >= 2 and tensor.shape[-1] == vocabulary:
            largest_saved = max(largest_saved, tensor.numel() // vocabulary)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record_saved, lambda tensor: tensor):
        completion_logps(model, batch).sum().backward()
    # The rejected completion's first token is predicted where the chosen one's is.
    kept = len(batch["targets"]) - 2
    assert seen == [(kept, vocabulary)]
    assert largest_saved <= len(batch["targets"]) < batch["input_ids"].numel() / 5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_layer_computes_only_what_is_read(checkpoint: Path, checkpointing: bool) -> None:
    """Its MLP and output projection see the positions that predict a completion's token; those below see all."""
    dataset, chat = sample_dataset(checkpoint)
    model: Any = policy(checkpoint).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    batch = in_float64(Collator(chat.processor)([dataset[0]]))
    layers = model.get_base_model().get_decoder().layers
    seen: dict[str, set[int]] = {"last": set(), "below": set()}
    for name, layer in (("last", layers[-1]), ("below", layers[-2])):
        for module in (layer.mlp.down_proj, layer.self_attn.o_proj.base_layer):
            module.register_forward_hook(lambda _, inputs, output, name=name: seen[name].add(output.shape[1]))
    completion_logps(model, batch).sum().backward()
    kept = len(batch["targets"]) - 1  # the rejected completion's first token is predicted where the chosen one's is
    assert seen == {"last": {kept}, "below": {batch["input_ids"].shape[1]}}
    # A pass that names no positions computes all.
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]), spans=((2, 1, 0),), use_cache=False)
    assert seen["last"] == {kept, 3}
