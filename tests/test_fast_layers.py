"""Ragged attention, fused LoRA layers and the frozen tower against the plain form of the same arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from listwise_preference.models.adapters import add_adapter, load_adapter
from listwise_preference.models.frozen_tower import freeze_tower, vision_tower
from listwise_preference.models.fused_layers import fuse_layers
from listwise_preference.models.loading import load_base_model
from listwise_preference.models.ragged_attention import kernel_layout, ragged_attention

SPANS = ((3, 2, 2), (4, 1, 0), (1, 3, 1))


# ---- ragged attention ----


def seen(spans: tuple[tuple[int, int, int], ...]) -> Tensor:
    """Who sees whom, written out token by token: (T, T), query by key."""
    kinds = [(row, kind) for row, lengths in enumerate(spans) for kind, n in enumerate(lengths) for _ in range(n)]
    table = torch.zeros(len(kinds), len(kinds), dtype=torch.bool)
    for q, (query_row, query_kind) in enumerate(kinds):
        for k, (key_row, key_kind) in enumerate(kinds[: q + 1]):
            table[q, k] = query_row == key_row and key_kind in (0, query_kind)
    return table


@pytest.mark.parametrize("key_heads", [4, 2])
def test_ragged_attention_is_attention_under_the_mask_written_out(key_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    count = sum(map(sum, SPANS))
    query = torch.randn(1, 4, count, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 1, key_heads, count, 8, generator=generator, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=seen(SPANS), scale=0.3, enable_gqa=True)
    found, weights = ragged_attention(nn.Module(), query, key, value, None, scaling=0.3, spans=SPANS)
    assert weights is None and found.shape == (1, count, 4, 8)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_one_kernel_is_told_the_same_blocks() -> None:
    """[p p p | c c | r r] [p p p p | c]: blocks of 5, 2 and 5 queries; the rejected two meet keys 0 1 2 and 5 6."""
    places, query_ends, key_ends, longest_query, longest_key = kernel_layout(SPANS[:2], torch.device("cpu"))
    assert places.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert query_ends.tolist() == [0, 5, 7, 12]
    assert key_ends.tolist() == [0, 5, 10, 15]
    assert (longest_query, longest_key) == (5, 5)


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"sliding_window": 4}])
def test_what_ragged_rows_do_not_know_is_refused(setting: dict[str, Any]) -> None:
    heads = torch.zeros(1, 1, 5, 4)
    with pytest.raises(ValueError, match="unpacked rows"):
        ragged_attention(nn.Module(), heads, heads, heads, None, spans=((2, 3, 0),), **setting)


# ---- fused LoRA layers ----


def adapted(width: int = 32, dtype: torch.dtype = torch.float32, **lora: Any) -> PeftModel:
    """A small Llama with an adapter that does something."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4, vocab_size=8
    )
    model = get_peft_model(
        LlamaModel(config).to(dtype),
        LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients(model: PeftModel, x: Tensor, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of a weighted sum of it for the adapter and for the input."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(inputs_embeds=x, use_cache=False).last_hidden_state
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    (output.float() * weights).sum().backward()
    assert x.grad is not None
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), {**found, "input": x.grad}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of all gradients together, relative."""
    assert one.keys() == other.keys()
    apart = sum((one[name].double() - other[name].double()).square().sum() for name in one)
    return float((apart / sum(value.double().square().sum() for value in other.values())).sqrt())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fused_layers_give_the_output_and_the_gradients_of_pefts(checkpointing: bool) -> None:
    model, x = adapted(), torch.randn(2, 5, 32)
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable()
    expected_output, expected = gradients(model, x)
    fused = fuse_layers(model)
    # Two layers of q, k, v, o and an MLP of three; two norms a layer and the last.
    assert (fused.linears, fused.mlps, fused.norms, fused.left) == (14, 2, 5, 0)
    output, found = gradients(model, x)
    torch.testing.assert_close(output, expected_output)
    assert distance(found, expected) < 1e-6
    fused.restore()
    output, found = gradients(model, x)
    assert torch.equal(output, expected_output) and distance(found, expected) == 0


def test_in_bf16_fused_layers_are_as_near_to_float32_as_pefts() -> None:
    """Over several inputs, since bf16's rounding differs from input to input more than between the two ways."""
    model = adapted(width=64, dtype=torch.bfloat16)
    exact = adapted(width=64)
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    inputs = [torch.randn(1, 24, 64, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(8)]
    expected = [gradients(exact, x.float())[1] for x in inputs]
    pefts = [distance(gradients(model, x, autocast=True)[1], one) for x, one in zip(inputs, expected, strict=True)]
    fuse_layers(model)
    fused = [distance(gradients(model, x, autocast=True)[1], one) for x, one in zip(inputs, expected, strict=True)]
    assert sum(fused) < 1.1 * sum(pefts)
    assert max(pefts) < 0.05


def saved_bytes(model: PeftModel, x: Tensor) -> int:
    """What autograd keeps for the backward pass under bf16 autocast, each storage once, parameters left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        model(inputs_embeds=x.requires_grad_(), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.slow
def test_a_layer_of_real_width_keeps_little_more_than_half_of_what_pefts_keep() -> None:
    """Of one layer at LLaVA-1.5-7B's width, bytes a token; the shares do not depend on the number of tokens."""
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=1, num_attention_heads=32, vocab_size=8
    )
    with torch.device("meta"):
        bare = LlamaModel(config).to(torch.bfloat16)
    bare = bare.to_empty(device="cpu")
    for parameter in bare.parameters():
        nn.init.constant_(parameter, 0.01)
    bare.rotary_emb = type(bare.rotary_emb)(config)
    model = get_peft_model(bare, LoraConfig(r=8, lora_alpha=8, target_modules="all-linear")).train()

    def of_64_tokens() -> int:  # without what is kept once, whatever the number of tokens: the adapter in bf16
        x = torch.randn(1, 128, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
        return saved_bytes(model, x) - saved_bytes(model, x[:, :64].detach())

    pefts = of_64_tokens()
    fuse_layers(model)
    assert of_64_tokens() <= 0.56 * pefts


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_peft_wraps_in_another_way_stays_pefts_and_is_counted(lora: dict[str, Any]) -> None:
    fused = fuse_layers(adapted(**lora))
    assert (fused.linears, fused.mlps, fused.left) == (0, 0, 14)
    assert "14 stay as peft wraps them" in str(fused)


def test_a_layer_with_another_input_is_computed_for_it() -> None:
    """Queries of a cross-attention read one tensor, keys and values another."""
    model = adapted()
    attention: Any = model.get_base_model().layers[0].self_attn
    one, other = torch.randn(2, 1, 3, 32)
    expected = [attention.q_proj(one), attention.k_proj(other), attention.v_proj(other)]
    fuse_layers(model)
    for _ in range(2):  # found out at the first call, known at the second
        found = [attention.q_proj(one), attention.k_proj(other), attention.v_proj(other)]
        torch.testing.assert_close(found, expected)


def test_with_the_adapter_off_or_merged_the_base_answers() -> None:
    model, x = adapted(), torch.randn(1, 4, 32)
    with torch.no_grad():
        on = model(inputs_embeds=x).last_hidden_state
        with model.disable_adapter():
            base = model(inputs_embeds=x).last_hidden_state
        fuse_layers(model)
        with model.disable_adapter():
            assert torch.equal(model(inputs_embeds=x).last_hidden_state, base)
        torch.testing.assert_close(model(inputs_embeds=x).last_hidden_state, on)
        model.merge_adapter()
        torch.testing.assert_close(model(inputs_embeds=x).last_hidden_state, on, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(on, base, atol=1e-2)


def test_a_fused_model_saves_the_files_of_peft(checkpoint: Path, tmp_path: Path) -> None:
    bare = load_base_model(str(checkpoint), dtype=torch.float32)
    model = add_adapter(bare, r=4, alpha=4, dropout=0.0, target_modules=["all-linear"])
    model.save_pretrained(tmp_path / "pefts")
    fuse_layers(model)
    model.save_pretrained(tmp_path / "fused")
    ours, pefts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fused", "pefts"))
    assert ours.keys() == pefts.keys() and all(torch.equal(ours[key], pefts[key]) for key in pefts)
    load_adapter(load_base_model(str(checkpoint), dtype=torch.float32), tmp_path / "fused")


# ---- the frozen tower ----


def test_a_frozen_tower_runs_once_for_the_same_images_and_changes_nothing(checkpoint: Path) -> None:
    """Twice the same images, then others: two passes of the tower; features as before, and none of them a gradient."""
    model = load_base_model(str(checkpoint), dtype=torch.float32)
    name = vision_tower(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tower: Any = model.get_submodule(name)
    side = tower.config.image_size
    images = [torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    expected = [tower(pixel_values=one).last_hidden_state for one in images]
    passes: list[int] = []
    first = next(module for path, module in tower.named_modules() if path.endswith("layers.0"))
    first.register_forward_hook(lambda *_: passes.append(1))
    assert freeze_tower(model, name)
    tower.get_input_embeddings().register_forward_hook(lambda module, _, output: output.requires_grad_(True))
    found = [tower(pixel_values=one).last_hidden_state for one in (images[0], images[0].clone(), images[1])]
    assert len(passes) == 2
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[0])
    assert torch.equal(found[2], expected[1]) and not any(one.requires_grad for one in found)


def test_a_tower_in_training_is_left_alone(checkpoint: Path) -> None:
    model = load_base_model(str(checkpoint), dtype=torch.float32)
    add_adapter(model, r=2, alpha=2, dropout=0.0, target_modules=["all-linear"])
    assert not freeze_tower(model, vision_tower(model))
