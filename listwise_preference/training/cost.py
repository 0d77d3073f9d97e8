"""What a run costs, from config and data alone: memory by setting, FLOPs, time, disk; and what that decides.

A training step is run on the shapes of the model's tensors (``models.dry_run``), with the longest record and the
largest image of the data. That gives the memory; FLOPs are scaled to the mean record, part by part of the model.
"""

import dataclasses
import heapq
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import psutil
import torch
from peft import PeftModel
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from listwise_preference.errors import ModelError
from listwise_preference.models.chat_format import add_special_tokens
from listwise_preference.models.dry_run import LANGUAGE, VISION, VOCABULARY, PassCost, measure, weight_bytes
from listwise_preference.models.frozen_tower import forget_images
from listwise_preference.training.batch import Batch, Collator, ListwiseDataset
from listwise_preference.training.completion_logps import completion_logps

logger = logging.getLogger("listwise_preference")

GB = 10**9
_SMALL_CARDS = (12, 16)  # GB, of cards without a row of hours
# Memory in GB and dense bf16 TFLOP/s by the makers' data sheets.
CARDS = {
    "RTX 4090": (24, 165),
    "A100 40 GB": (40, 312),
    "L40S": (48, 362),
    "A100 80 GB": (80, 312),
    "H100": (80, 989),
}
EFFICIENCY = 0.4  # of that rate, which a training step reaches
# What a sum of tensors leaves out: memory in pieces too small to use, and what CUDA and its libraries take.
FRAGMENTS, OVERHEAD = 1.05, GB
# Bytes for a trained parameter: the weight, its gradient and AdamW's two moments, all in float32.
TRAINED_BYTES = 16
EVERY = (0, 8, 4, 3, 2, 1)  # each n-th layer checkpointed, 0 for none: from the fastest to the smallest
IMAGES_SAMPLED = 32
TEXTS_SAMPLED = 5_000


@dataclass(frozen=True)
class Data:
    """The largest batch of one record, and how much of it the mean record is.

    Attributes:
        batch: of the record with most tokens, with the largest of the sampled images.
        tokens: of its rows.
        share: by part of the model, work of the mean record / work of this one.
    """

    batch: Batch
    tokens: int
    share: Mapping[str, float]

    @classmethod
    def of(cls, dataset: ListwiseDataset, collator: Collator) -> "Data":
        """Texts and images are counted in a sample of the records, evenly taken and the longest, or in all if few."""
        processor = collator.processor
        opened = add_special_tokens(processor.tokenizer, dataset.prompt_texts[0])
        sample = _sample(dataset)
        encoded = processor.tokenizer([dataset.prompt_texts[index] for index in sample], add_special_tokens=opened)
        prompts = [len(ids) for ids in encoded["input_ids"]]
        levels = len(dataset.records[0].images)
        answers, texts = [], []
        for prompt, (chosen, rejected) in zip(prompts, dataset.completions(sample), strict=True):
            answers.append(levels * len(chosen) + collator.rejected_count(levels) * len(rejected))
            rows = levels + (0 if collator.ragged else collator.rejected_count(levels))
            texts.append(rows * prompt + answers[-1])
        longest = max(range(len(texts)), key=texts.__getitem__)  # of the sample
        sizes = {}
        for index in range(0, len(dataset), math.ceil(len(dataset) / IMAGES_SAMPLED)):
            pixels = processor.image_processor(images=[dataset[index].images[0]], return_tensors="pt")["pixel_values"]
            sizes[index] = pixels.numel()
        largest = max(sizes, key=sizes.__getitem__)
        batch = collator([dataclasses.replace(dataset[sample[longest]], images=dataset[largest].images)])
        tokens = batch["input_ids"].numel()
        share = {
            VISION: sum(sizes.values()) / len(sizes) / sizes[largest],
            LANGUAGE: (sum(texts) / len(texts) + tokens - texts[longest]) / tokens,
            VOCABULARY: sum(answers) / len(answers) / answers[longest],
        }
        return cls(batch, tokens, share)


class StepCost:
    """Costs of one record's training step by a policy without weights, each measured when it is first asked for.

    Args:
        policy: as it is trained, of fake tensors (``models.dry_run.without_weights``).
        data: what it is trained on.
        autocast: dtype that the training computes in, ``None`` for that of the weights.
        online: whether the reference runs at every step.
    """

    def __init__(self, policy: PeftModel, data: Data, autocast: torch.dtype | None, *, online: bool) -> None:
        self.policy, self.data, self.autocast, self.online = policy, data, autocast, online
        self.trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
        self.layers = sum(isinstance(module, GradientCheckpointingLayer) for module in policy.modules())
        self.fixed_bytes = weight_bytes(policy) + TRAINED_BYTES * self.trained
        self.batch_bytes = sum(value.nbytes for value in _tensors(data.batch))

    def _loss(self) -> Tensor:
        forget_images(self.policy)
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            return completion_logps(self.policy, self.data.batch).sum()

    @cached_property
    def plain(self) -> PassCost:
        """Of a step that keeps all activations."""
        self.policy.activation_checkpointing_disable()
        return measure(self.policy.train(), self._loss)

    @cached_property
    def checkpointed(self) -> PassCost:
        """Of a step that keeps none inside a layer."""
        self.policy.activation_checkpointing_enable()
        cost = measure(self.policy.train(), self._loss)
        self.policy.activation_checkpointing_disable()
        self.policy.disable_input_require_grads()
        return cost

    @cached_property
    def reference(self) -> PassCost:
        """Of the reference: no adapter, no gradients."""
        self.policy.activation_checkpointing_disable()
        with torch.no_grad(), self.policy.disable_adapter():
            return measure(self.policy.eval(), self._loss)

    def record_bytes(self, every: int) -> int:
        """Memory for each record of a micro-batch, with each ``every``-th layer checkpointed."""
        plain, share = self.plain.peak_bytes, self._share(every)
        peak = plain + share * (self.checkpointed.peak_bytes - plain) if share else plain
        return round(peak) + self.batch_bytes

    def _share(self, every: int) -> float:
        return math.ceil(self.layers / every) / self.layers if every and self.layers else 0.0

    def needed_bytes(self, every: int, records: int) -> int:
        """Memory of a GPU for training with so many records a micro-batch."""
        return round(FRAGMENTS * (self.fixed_bytes + records * self.record_bytes(every))) + OVERHEAD

    def records_that_fit(self, memory: float, every: int) -> int:
        """The largest micro-batch, 0 if not even one record fits."""
        free = (memory - OVERHEAD) / FRAGMENTS - self.fixed_bytes
        return max(0, int(free // self.record_bytes(every)))

    def reference_records_that_fit(self, memory: float) -> int:
        """The most records for a pass of the reference, at least 1."""
        free = (memory - OVERHEAD) / FRAGMENTS - self.fixed_bytes
        return max(1, int(free // (self.reference.peak_bytes + self.batch_bytes)))

    def least_checkpointing(self, memory: float, records: int) -> int | None:
        """Which layers to checkpoint so that a step fits and is as fast as it can be; ``None`` if it never fits."""
        return next((every for every in EVERY if self.needed_bytes(every, records) <= memory), None)

    def flops(self, part: str) -> dict[str, float]:
        """A mean record's FLOPs in a part of the model; "again" is what checkpointing all layers adds."""
        share = self.data.share[part]
        return {
            "forward": share * self.plain.forward_flops[part],
            "backward": share * self.plain.backward_flops[part],
            "again": share * (self.checkpointed.backward_flops[part] - self.plain.backward_flops[part]),
            "reference": share * self.reference.forward_flops[part],
        }

    def total_flops(self, *passes: str) -> float:
        """A mean record's FLOPs in these passes, over all parts."""
        return sum(self.flops(part)[name] for part in (VISION, LANGUAGE, VOCABULARY) for name in passes)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for value in (*batch.values(), *batch["images"].values()):
        if isinstance(value, Tensor):
            yield value


# ---- what it decides ----


def free_bytes(device: torch.device) -> int:
    """What a run may take of a device: all that is free on a GPU, half of the memory of a machine."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available // 2)
    return int(torch.accelerator.get_memory_info(device)[0])


def choose_checkpointing(
    cost: StepCost, in_4bit: Callable[[], StepCost], every: int | None, records: int, free: int
) -> int:
    """Which layers to checkpoint, said in a line of the log; with a warning where the step will not fit.

    Args:
        cost: of the run's step.
        in_4bit: of the same with the base in 4 bits, asked for only where memory is short.
        every: what the user wants, ``None`` to have it chosen.
        records: of a micro-batch.
        free: bytes of the device.

    Raises:
        ModelError: not even the weights fit.
    """
    if cost.fixed_bytes > free:
        raise ModelError(
            f"weights and optimizer need {cost.fixed_bytes / GB:.1f} GB and {free / GB:.1f} GB are free;"
            f" with --load_in_4bit they need {in_4bit().fixed_bytes / GB:.1f} GB"
        )
    chosen = every
    if chosen is None:
        least = cost.least_checkpointing(free, records)
        chosen = 1 if least is None else least
        without = cost.needed_bytes(0, records) / GB
        logger.info(
            f"--activation_checkpointing auto: {checkpointed(chosen)}; a step needs about"
            f" {cost.needed_bytes(chosen, records) / GB:.1f} GB of the {free / GB:.1f} GB free"
            + (f", {without:.1f} GB with no layer checkpointed" if chosen else "")
        )
    needed = cost.needed_bytes(chosen, records)
    if needed > free:
        ways = {
            "--activation_checkpointing true": cost.needed_bytes(1, records),
            "--per_device_train_batch_size 1 with it": cost.needed_bytes(1, 1),
            "--load_in_4bit with both": in_4bit().needed_bytes(1, 1),
        }
        logger.warning(
            f"a step needs about {needed / GB:.1f} GB and {free / GB:.1f} GB are free: it will hardly fit; "
            + ", ".join(f"{way} needs {need / GB:.1f} GB" for way, need in ways.items() if need < needed)
        )
    return chosen


def checkpointed(every: int) -> str:
    """Which layers are checkpointed, in words."""
    return {0: "no layer", 1: "all layers"}.get(every, f"one layer in {every}")


# ---- what it tells ----


@dataclass(frozen=True)
class Workload:
    """How much a run does, over all of its processes.

    Attributes:
        trained: records in training, each as often as it is used.
        referenced: records whose reference is computed before training.
        checkpoints: that are on the disk at the end.
        completions: per record.
    """

    trained: float
    referenced: int
    checkpoints: int
    completions: int


def report(costs: Mapping[str, StepCost], work: Workload) -> str:
    """The tables of ``--estimate``. ``costs`` by the name of the base's precision, the run's own first."""
    own = next(iter(costs.values()))
    adapter = 4 * own.trained
    training = ("forward", "backward", *(["reference"] if own.online else []))
    once = 0.0 if own.online else work.referenced * own.total_flops("reference")

    def hours(rate: int, *more: str) -> str:
        flops = work.trained * own.total_flops(*training, *more) + once
        return _number(flops / (rate * 1e12 * EFFICIENCY) / 3600)

    sizes = sorted({*_SMALL_CARDS, *(size for size, _ in CARDS.values())})
    memory = [["base", "checkpointed", "weights, adapter", "a record", *(f"on {size} GB" for size in sizes)]]
    for name, cost in costs.items():
        for every in (0, 4, 2, 1):
            gigabytes = [_number(size / GB) for size in (cost.fixed_bytes, cost.record_bytes(every))]
            fit = [f"{cost.records_that_fit(size * GB, every) or '-'}" for size in sizes]
            memory.append([name, checkpointed(every), *gigabytes, *fit])
    flops = [["TFLOP a record", *own.flops(VOCABULARY)]]
    for part in (VISION, LANGUAGE, VOCABULARY):
        flops.append([part, *(_number(value / 1e12) for value in own.flops(part).values())])
    flops.append(["all", *(_number(own.total_flops(name) / 1e12) for name in own.flops(VOCABULARY))])
    time = [["hours on one", checkpointed(0), checkpointed(1)]]
    for card, (size, rate) in CARDS.items():
        time.append([f"{card} ({size} GB, {rate} TFLOP/s)", hours(rate), hours(rate, "again")])
    disk = [
        ["disk", "MB"],
        ["adapter", _number(adapter / 1e6)],
        [f"checkpoints ({work.checkpoints}), with AdamW's moments", _number(3 * adapter * work.checkpoints / 1e6)],
        ["reference values", _number(work.referenced * (90 + 21 * work.completions) / 1e6)],
    ]
    return "\n\n".join(
        [
            f"Memory in GB. A record: the largest, of {own.data.tokens:,} tokens; on a card: records of a micro-batch"
            f" that fit, {FRAGMENTS - 1:.0%} and {OVERHEAD / GB:.0f} GB being left for what is not seen here.",
            table(memory),
            "The mean record. Again: what checkpointing all layers computes a second time. Reference: once a record if"
            " it is precomputed, else at every step.",
            table(flops),
            f"{work.trained:,.0f} records in training, at {EFFICIENCY:.0%} of a card's dense bf16 rate; checkpointed:",
            table(time),
            table(disk),
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _sample(dataset: ListwiseDataset) -> Sequence[int]:
    """All records, or of many some, evenly taken, and those with the longest texts."""
    if len(dataset) <= TEXTS_SAMPLED:
        return range(len(dataset))

    def characters(index: int) -> int:
        pair = dataset.records[index].pair
        return len(pair.prompt) + len(pair.chosen) * len(dataset.records[index].images) + len(pair.rejected)

    evenly = range(0, len(dataset), math.ceil(len(dataset) / TEXTS_SAMPLED))
    return sorted({*evenly, *heapq.nlargest(100, range(len(dataset)), key=characters)})
