"""What a run is said to cost, against what it costs: bytes, FLOPs, files; and what is decided by it."""

import copy
import dataclasses
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel, PreTrainedConfig, ProcessorMixin, TrainingArguments

from listwise_preference.data.pairs import BoxLists, load_records
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.errors import ModelError
from listwise_preference.models.adapters import add_adapter
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.dry_run import (
    LANGUAGE,
    VISION,
    VOCABULARY,
    PassCost,
    Quantized,
    measure,
    stand_for_quantized,
    weight_bytes,
    without_weights,
)
from listwise_preference.models.frozen_tower import freeze_tower, vision_tower
from listwise_preference.models.fused_layers import fuse_layers
from listwise_preference.models.loading import empty_model
from listwise_preference.models.ragged_attention import use_ragged_attention
from listwise_preference.small_world.model import build_small_model
from listwise_preference.training.batch import Batch, Collator, ListwiseDataset
from listwise_preference.training.completion_logps import completion_logps
from listwise_preference.training.cost import EVERY, GB, Data, StepCost, Workload, choose_checkpointing, report, table
from listwise_preference.training.objective import Objective
from listwise_preference.training.options import parse
from listwise_preference.training.reference import ReferenceCache
from listwise_preference.training.trainer import ListwiseTrainer

from .conftest import SAMPLE, Run

Small = tuple[PeftModel, PreTrainedConfig, ProcessorMixin]


def small(family: Any, dtype: torch.dtype = torch.bfloat16, *, weights: bool, frozen: bool = False) -> Small:
    """A small model with an adapter, with weights or of shapes alone."""
    model, processor = build_small_model(family, layers=3)
    config = copy.deepcopy(model.config)
    base = model.to(dtype) if weights else empty_model(config, dtype=dtype)
    tower = vision_tower(base)
    settings: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["all-linear"]}
    policy = add_adapter(base, **settings, frozen_module=tower if frozen else None)
    use_ragged_attention(base)
    freeze_tower(base, tower)
    return policy.train(), config, processor


def dataset_of(family: str, processor: ProcessorMixin) -> ListwiseDataset:
    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(SAMPLE / "image_lists.jsonl", Drawing())).records
    return ListwiseDataset(records, ChatFormat(processor), 384)


def loss_of(policy: PeftModel, batch: Batch) -> Tensor:
    base: Any = policy.get_base_model()
    with torch.autocast("cpu", torch.bfloat16, enabled=base.dtype == torch.bfloat16):
        return completion_logps(policy, batch).sum()


def saved_bytes(policy: PeftModel, batch: Batch) -> int:
    """What autograd keeps of a real step, each address in memory once."""
    known = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(policy, batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# ---- bytes ----


@pytest.mark.parametrize("family", ["idefics2", "llava"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("every", [0, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_alone_tell_what_a_real_step_keeps(family: str, fused: bool, every: int, dtype: torch.dtype) -> None:
    kept, said = 0, 0
    for weights in (True, False):
        policy, _, processor = small(family, dtype, weights=weights)
        batch = Collator(processor)([dataset_of(family, processor)[0]])
        if fused:
            fuse_layers(policy)
        if not weights:
            without_weights(policy)
        if every:
            policy.activation_checkpointing_enable(every_n_layers=every)
        if weights:
            kept = saved_bytes(policy, batch)
        else:
            said = measure(policy, partial(loss_of, policy, batch)).saved_bytes
    assert said == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("family", ["idefics2", "llava"])
@pytest.mark.parametrize("frozen", [False, True])
def test_shapes_alone_tell_the_most_that_is_alive_in_a_real_step(family: str, frozen: bool) -> None:
    """And its FLOPs, operation by operation."""
    costs = []
    for weights in (True, False):
        policy, _, processor = small(family, weights=weights, frozen=frozen)
        batch = Collator(processor)([dataset_of(family, processor)[0]])
        fuse_layers(policy)
        if not weights:
            without_weights(policy)
        costs.append(measure(policy, partial(loss_of, policy, batch)))
    assert costs[0].peak_bytes >= costs[0].saved_bytes
    assert costs[1] == costs[0]


def one_layer(width: int, mlp: int, fused: bool) -> PassCost:
    config = LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=1, num_attention_heads=width // 128, vocab_size=8
    )
    with torch.device("meta"):
        model = get_peft_model(LlamaModel(config).to(torch.bfloat16), LoraConfig(r=8, target_modules="all-linear"))
    if fused:
        fuse_layers(model)
    without_weights(model)
    x = torch.zeros(1, 256, width, dtype=torch.bfloat16, requires_grad=True)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs_embeds=x, use_cache=False).last_hidden_state.sum()

    return measure(model, loss)


def test_fused_layers_keep_half_of_what_pefts_layers_keep() -> None:
    """At the width of LLaVA-1.5-7B, bytes a token: 24 x 4096 + 4 x 11008 and little more than that."""
    ours, pefts = one_layer(4096, 11008, fused=True), one_layer(4096, 11008, fused=False)
    assert ours.saved_bytes <= 0.56 * pefts.saved_bytes


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_weight_is_half_a_byte_or_one_and_its_share_of_scales(bits: int) -> None:
    """A layer of 64 x 128 has 8192 weights. In 4 bits: 4096 bytes, 128 scales of a byte, and half of a scale of scales;
    in 8 bits: 8192 bytes and 64 scales of four."""
    policy, _, _ = small("llava", weights=False)
    layers = [module for module in policy.modules() if isinstance(module, torch.nn.Linear)]
    before = weight_bytes(policy)
    stand_for_quantized(policy, bits)
    quantized = [layer for layer in layers if isinstance(layer, Quantized)]
    count, rows = sum(layer.weight.numel() for layer in quantized), sum(layer.out_features for layer in quantized)
    after = count * (4096 + 128 + 2) / 8192 if bits == 4 else count + 4 * rows
    assert before - weight_bytes(policy) == pytest.approx(2 * count - after, abs=1)
    base: Any = policy.get_base_model()
    assert base.get_output_embeddings() not in quantized  # nor is the adapter
    assert not any(layer.weight.requires_grad for layer in quantized)


# ---- FLOPs ----


@pytest.mark.parametrize("family", ["idefics2", "llava"])
def test_flops_are_torchs_count_of_products_and_attention_by_hand(family: str) -> None:
    """torch counts no attention on the CPU: two products in the forward pass, five in the backward pass."""
    policy, config, processor = small(family, torch.float32, weights=True)
    batch = Collator(processor)([dataset_of(family, processor)[0]])
    with FlopCounterMode(display=False) as counter:
        loss_of(policy, batch).backward()
    policy.zero_grad()
    text, vision = config.text_config, config.vision_config
    spans = batch["spans"]
    pairs = sum((p + c) * (p + c + 1) // 2 + r * (p + r) for p, c, r in spans)  # the rejected one under a dense mask
    language = 4 * text.hidden_size * pairs * text.num_hidden_layers
    images = len(spans)
    if family == "llava":
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        layer = 4 * vision.hidden_size * patches**2 * images
        # LLaVA reads the last but one layer: the last one is computed and gets no gradient.
        attention = 3.5 * language + layer * (3.5 * vision.num_hidden_layers - 2.5)
    else:
        height, width = (size // vision.patch_size for size in batch["images"]["pixel_values"].shape[-2:])
        latents, connector = config.perceiver_config.resampler_n_latents, config.perceiver_config
        resampler = connector.resampler_n_heads * connector.resampler_head_dim * connector.resampler_depth
        tower = 4 * vision.hidden_size * (height * width) ** 2 * images * vision.num_hidden_layers
        tower += 4 * resampler * latents * (latents + height * width) * images
        attention = 3.5 * language + 3.5 * tower
    cost = measure(policy, lambda: loss_of(policy, batch))
    said = sum(cost.forward_flops.values()) + sum(cost.backward_flops.values())
    assert said == counter.get_total_flops() + attention


def test_fused_layers_do_the_same_products() -> None:
    totals = []
    for fused in (False, True):
        policy, _, processor = small("llava", weights=False)
        batch = Collator(processor)([dataset_of("llava", processor)[0]])
        if fused:
            fuse_layers(policy)
        without_weights(policy)
        cost = measure(policy, partial(loss_of, policy, batch))
        totals.append(sum(cost.forward_flops.values()) + sum(cost.backward_flops.values()))
    assert totals[1] == pytest.approx(totals[0], rel=0.01)


@pytest.fixture
def step() -> StepCost:
    policy, _, processor = small("llava", weights=False)
    fuse_layers(policy)
    data = Data.of(dataset_of("llava", processor), Collator(processor))
    return StepCost(without_weights(policy), data, torch.bfloat16, online=False)


def test_vocabulary_and_recomputation_by_hand(step: StepCost) -> None:
    """Each kept position costs 2 x width x vocabulary; nothing of it is computed again, most of the layers is."""
    kept = int(step.data.batch["keep"].sum())
    base: Any = step.policy.get_base_model()
    text = base.config.text_config
    assert step.plain.forward_flops[VOCABULARY] == 2 * kept * text.hidden_size * text.vocab_size
    again = {part: step.flops(part)["again"] / step.flops(part)["forward"] for part in (VISION, LANGUAGE, VOCABULARY)}
    assert again[VOCABULARY] == 0
    assert 0.9 < again[LANGUAGE] <= 1
    assert 0 < again[VISION] < 1
    assert 0.8 < step.flops(LANGUAGE)["reference"] / step.flops(LANGUAGE)["forward"] < 1  # no adapter


# ---- data ----


def test_the_mean_record_and_the_largest() -> None:
    """Three records whose completions have 4, 2; 8, 6; 12, 10 tokens: 5 x chosen + rejected are 22, 46, 70."""
    _, _, processor = small("llava", weights=False)
    whole = dataset_of("llava", processor)

    class OfLengths(ListwiseDataset):
        def completions(self, indices: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
            return (([5] * (4 + 4 * index), [5] * (2 + 4 * index)) for index in indices)

    dataset = OfLengths(whole.records[:3], ChatFormat(processor, processor.tokenizer.eos_token), 384)
    dataset.prompt_texts = [dataset.prompt_texts[0]] * 3
    data = Data.of(dataset, Collator(processor))
    prompt = data.batch["spans"][0][0]
    assert data.batch["spans"][0] == (prompt, 12, 10)
    assert data.tokens == 5 * prompt + 70
    assert data.share[LANGUAGE] == (5 * prompt + 46) / (5 * prompt + 70)
    assert data.share[VOCABULARY] == 46 / 70
    assert data.share[VISION] == 1  # LLaVA makes all images one size


# ---- what it decides ----


def test_what_fits_fits_and_one_more_does_not(step: StepCost) -> None:
    for every in (0, 2, 1):
        count = step.records_that_fit(2 * GB, every)
        assert step.needed_bytes(every, count) <= 2 * GB < step.needed_bytes(every, count + 1)


def test_as_few_layers_are_checkpointed_as_the_memory_asks_for(step: StepCost) -> None:
    needs = [step.needed_bytes(every, 4) for every in EVERY]
    assert needs == sorted(needs, reverse=True)
    assert step.least_checkpointing(needs[0], 4) == 0
    assert step.least_checkpointing(needs[0] - 1, 4) not in (0, None)
    assert step.least_checkpointing(needs[-1], 4) == 1
    assert step.least_checkpointing(needs[-1] - 1, 4) is None


def test_a_choice_is_said_and_a_card_too_small_too(step: StepCost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="listwise_preference")

    def chosen(every: int | None, free: int) -> tuple[int, list[tuple[str, str]]]:
        caplog.clear()
        chosen = choose_checkpointing(step, lambda: step, every, 1, free)
        return chosen, [(record.levelname, record.getMessage()) for record in caplog.records]

    every, said = chosen(None, 48 * GB)
    assert every == 0 and len(said) == 1 and said[0][0] == "INFO"
    assert "--activation_checkpointing auto: no layer" in said[0][1] and "of the 48.0 GB free" in said[0][1]
    assert chosen(0, 48 * GB) == (0, [])  # as the user wants it, and it fits
    needed = step.needed_bytes(1, 1)
    every, said = chosen(None, needed)
    assert every == 1 and "all layers" in said[0][1] and len(said) == 1
    every, said = chosen(0, needed)
    assert every == 0 and said[0][0] == "WARNING"
    assert "will hardly fit" in said[0][1] and "--activation_checkpointing true needs" in said[0][1]
    with pytest.raises(ModelError, match="--load_in_4bit"):
        chosen(None, step.fixed_bytes - 1)


@pytest.mark.parametrize(
    ("given", "value", "trainers", "each"),
    [
        (["--activation_checkpointing"], True, True, None),
        (["--activation_checkpointing", "true"], True, True, None),
        (["--activation_checkpointing", "False"], False, False, None),
        (["--activation_checkpointing", "auto"], "auto", False, None),
        (["--activation_checkpointing=every_3"], "every_3", True, 3),
        (["--gradient_checkpointing", "false"], False, False, None),
    ],
)
def test_checkpointing_is_read_and_told_to_the_trainer(
    given: list[str], value: object, trainers: bool, each: int | None, tmp_path: Path
) -> None:
    recipe = {"model_name_or_path": "m", "output_dir": str(tmp_path), "pairs": "p.json", "do_train": True}
    arguments = parse({**recipe, "activation_checkpointing": "auto"}, [*given, "--use_cpu"])
    assert arguments.training.activation_checkpointing == value
    args: TrainingArguments = arguments.training.build()
    assert args.activation_checkpointing is trainers
    kwargs: Any = args.activation_checkpointing_kwargs or {}
    assert kwargs.get("every_n_layers") == each


@pytest.mark.parametrize("text", ["sometimes", "every_0", "every_", "every_two"])
def test_checkpointing_in_other_words_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse({"model_name_or_path": "m", "output_dir": "o"}, ["--activation_checkpointing", text])
    assert f"{text}: must be auto, true, false or every_N" in capsys.readouterr().err


# ---- the reference in as large batches as fit ----


def test_the_reference_goes_on_with_less_where_memory_runs_out(tmp_path: Path) -> None:
    """A model for which two records at a time are too much, and the values it gives all the same."""
    policy, _, processor = small("llava", torch.float32, weights=True)
    dataset = dataset_of("llava", processor)
    dataset = ListwiseDataset(dataset.records[:5], ChatFormat(processor, processor.tokenizer.eos_token), 20)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = ListwiseTrainer(
        objective=Objective(), run={}, model=policy, args=args, data_collator=Collator(processor), train_dataset=dataset
    )
    keys = [str(index) for index in range(5)]
    trainer.precompute_reference(dataset, keys, ReferenceCache(tmp_path / "whole"), 2)
    expected = dataset.reference_logps
    sizes = []

    def too_much(_: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["spans"]) // 5)
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with policy.register_forward_pre_hook(too_much, with_kwargs=True):
        assert trainer.precompute_reference(dataset, keys, ReferenceCache(tmp_path / "halved"), 4) == 5
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    assert dataset.reference_logps is not None and expected is not None
    torch.testing.assert_close(dataset.reference_logps.float(), expected.float())


# ---- the programs ----


def test_a_table_is_markdown() -> None:
    assert table([["a", "bc"], ["def", "1"]]) == "| a   | bc |\n|-----|----|\n| def | 1  |"


def test_the_report_in_hours_and_files(step: StepCost) -> None:
    """An hour on an L40S is 0.4 x 362 TFLOP/s x 3600 s."""
    flops = step.total_flops("forward", "backward")
    hour = 0.4 * 362e12 * 3600
    reference = step.total_flops("reference")
    records = (250 * hour - 1000 * reference) / flops
    printed = report({"bfloat16": step}, Workload(records, referenced=1000, checkpoints=3, completions=6))
    assert "| L40S (48 GB, 362 TFLOP/s)       | 250 " in printed
    online = dataclasses.replace(Workload(records, 0, 3, 6))
    step.online = True
    more = report({"bfloat16": step}, online)
    hours = 250 * records * (flops + reference) / (records * flops + 1000 * reference)
    assert f"| L40S (48 GB, 362 TFLOP/s)       | {hours:.0f} " in more


@pytest.mark.slow
def test_an_estimate_needs_no_weights_and_agrees_with_the_run(
    run_program: Run, small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small_checkpoints["llava"], bare)
    options = ["--dtype", "float32", "--pairs", few_pairs, "--image_root", SAMPLE, "--num_train_epochs", "2"]
    options += ["--image_lists", SAMPLE / "image_lists.jsonl", "--gradient_accumulation_steps", "4"]
    options += ["--output_dir", tmp_path / "run", "--model_name_or_path", bare]
    done = run_program("lpoi_llava.py", *options)
    assert "--activation_checkpointing auto: no layer; a step needs about" in done.stderr
    (bare / "model.safetensors").unlink()
    shutil.move(tmp_path / "run", tmp_path / "done")
    printed = run_program("lpoi_llava.py", *options, "--estimate").stdout
    assert not (tmp_path / "run").exists()

    def megabytes(what: str) -> float:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"| {what}")]
        return float(line.split("|")[2])

    def on_disk(pattern: str) -> float:
        return sum(file.stat().st_size for file in (tmp_path / "done").glob(pattern)) / 1e6

    assert megabytes("adapter") == pytest.approx(on_disk("final/adapter_model.safetensors"), rel=0.1)
    states = on_disk("checkpoint-*/adapter_model.safetensors") + on_disk("checkpoint-*/optimizer.pt")
    assert megabytes("checkpoints (2)") == pytest.approx(states, rel=0.15)
    assert megabytes("reference values") == pytest.approx(on_disk("reference/*"), rel=0.15)


@pytest.mark.slow
def test_checkpointing_changes_no_number(
    run_program: Run, small_checkpoints: dict[str, Path], few_pairs: Path, tmp_path: Path
) -> None:
    options = ["--dtype", "float32", "--pairs", few_pairs, "--image_root", SAMPLE, "--learning_rate", "1e-3"]
    options += ["--image_lists", SAMPLE / "image_lists.jsonl", "--gradient_accumulation_steps", "4"]
    options += ["--model_name_or_path", small_checkpoints["idefics2"], "--num_train_epochs", "1"]
    adapters = []
    for how in ("auto", "every_2"):
        run_program("lpoi.py", *options, "--activation_checkpointing", how, "--output_dir", tmp_path / how)
        adapters.append((tmp_path / how / "final" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
