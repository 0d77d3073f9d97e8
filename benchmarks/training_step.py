"""One training step of one record, the same work done in several ways, interleaved: seconds, tokens, bytes saved.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py --shape llava --json llava.json          # a CPU, three minutes
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --shape idefics2 --dtype bfloat16 --json idefics2.json
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --shape llava --frozen_tower --json tower.json
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --shape llava --against trl --json trl.json   # trl installed
    python benchmarks/training_step.py --shape llava --size 7b --dtype bfloat16 --json 7b.json    # a GPU
    python benchmarks/training_step.py --shape llava --size 7b --dtype bfloat16 --estimate   # any machine: no weights

A list of 5 images, chosen and rejected completions of 150 and 140 tokens, LoRA r 8 on all linear layers. The ways:

    release                the authors' form: 7 rows, the vocabulary projection at every position, the reference at
                           every step, activation checkpointing
    packed_checkpointed    5 padded rows, the rejected completion in the first behind a dense mask: this project's
                           former default, kept here as the yardstick
    unpacked_checkpointed  6 padded rows, an ordinary mask
    ragged_checkpointed    5 rows behind one another, no padding
    default                ragged rows, fused LoRA, nothing recomputed: what a GPU with room gets

All but the release's with a precomputed reference. ``bfloat16``: bf16 weights and bf16 autocast, as recipes train.
Weights are random; small shapes are narrow, with the real models' width of a head and share of the MLP. Seconds are CPU
time of the process,
on a GPU the clock's; medians, with (slowest - fastest) / median as spread. ``saved_bytes`` are what autograd
keeps for the backward pass, parameters left out. ``largest_difference`` compares each way's loss and gradient with one
completion at a time through peft's own layers, relative.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from shapes import FULL, IMAGE_SIZES, SAMPLE, build, device, timed

CHOSEN_TOKENS, REJECTED_TOKENS = 150, 140


def with_adapter(model: Any, shape: str, freeze: bool = False) -> Any:
    """LoRA on all linear layers, with B away from 0 so that every gradient counts."""
    import torch

    from listwise_preference.models.adapters import add_adapter
    from listwise_preference.models.frozen_tower import vision_tower

    tower = vision_tower(model) if freeze else None
    policy = add_adapter(model, r=8, alpha=8, dropout=0.0, target_modules=["all-linear"], frozen_module=tower)
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return policy.train()


def records_of(processor: Any, shape: str, chosen: int = CHOSEN_TOKENS, rejected: int = REJECTED_TOKENS) -> Any:
    """The sample's records with completions of these many tokens."""
    from listwise_preference.data.pairs import BoxLists, load_records
    from listwise_preference.data.ranked_images import Drawing
    from listwise_preference.models.chat_format import ChatFormat
    from listwise_preference.training.batch import ListwiseDataset

    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(SAMPLE / "image_lists.jsonl", Drawing())).records

    class OfLengths(ListwiseDataset):
        def completions(self, indices: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
            for one, other in super().completions(indices):
                yield (one * chosen)[:chosen], (other * rejected)[:rejected]

    return OfLengths(records, ChatFormat(processor), 384)


# ---- the ways ----


def gathered(logits_KV: Any, batch: Any) -> Any:
    """Log-probabilities of the completions from the logits of the kept positions."""
    import torch

    logits_KV = logits_KV.float()
    logps_N = logits_KV[batch["target_source"], batch["targets"]] - logits_KV.logsumexp(-1)[batch["target_source"]]
    logps_N = logps_N.double()
    sums = torch.zeros(len(batch["record"]) * batch["completion_count"], dtype=logps_N.dtype, device=logps_N.device)
    return sums.index_add(0, batch["target_completion"], logps_N).view(len(batch["record"]), -1)


def release_logps(model: Any, unpacked: Any) -> Any:
    """The authors' form, from the six unpacked rows: the chosen completion on the first image twice."""
    import torch

    rows = torch.tensor([0, 1, 0, *range(2, len(unpacked["input_ids"]))], device=unpacked["input_ids"].device)
    tokens = unpacked["input_ids"][rows]
    mask = unpacked["attention_mask"][rows]
    images = {name: value[rows] for name, value in unpacked["images"].items()}
    logits = model(input_ids=tokens, attention_mask=mask, **images, use_cache=False).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    # A kept position predicts the token behind it.
    summed = (logps.double() * unpacked["keep"][rows][:, :-1]).sum(1)
    return summed[[0, 1, *range(3, len(rows))]][None]


def packed(ragged: Any, pad: int) -> Any:
    """Ragged rows as padded ones below each other, with a dense mask for who sees whom."""
    import torch

    spans = ragged["spans"]
    lengths = [sum(span) for span in spans]
    width = max(lengths)

    def padded(values: Any, fill: int) -> Any:
        rows = values[0].split(lengths)
        return torch.stack([torch.nn.functional.pad(row, (0, width - len(row)), value=fill) for row in rows])

    mask = torch.ones(len(spans), 1, width, width, dtype=torch.bool, device=ragged["input_ids"].device).tril()
    for row, (prompt, chosen, rejected) in enumerate(spans):
        mask[row, :, prompt + chosen :, prompt : prompt + chosen] = False
        mask[row, :, sum((prompt, chosen, rejected)) :, prompt:] = False
    images = ragged["images"]
    if images["pixel_values"].ndim == 5:
        images = {name: value.transpose(0, 1) for name, value in images.items()}
    keep = padded(ragged["keep"].int(), 0).bool()
    return {
        **ragged,
        "input_ids": padded(ragged["input_ids"], pad),
        "position_ids": padded(ragged["position_ids"], 0),
        "attention_mask": mask,
        "keep": keep,
        "images": images,
        "spans": None,
    }


class Steps:
    """One model, with weights or of shapes alone, its batches, and a step in each of the ways."""

    def __init__(self, shape: str, size: str, bf16: bool, weights: bool = True, bits: int | None = None) -> None:
        import torch

        from listwise_preference.models import ragged_attention
        from listwise_preference.models.dry_run import stand_for_quantized, without_weights
        from listwise_preference.training.batch import Collator
        from listwise_preference.training.objective import Objective

        self.bf16, self.device = bf16, device() if weights else torch.device("cpu")
        dtype = torch.bfloat16 if bf16 else torch.float32
        bare, self.processor = build(shape, size, dtype, None if weights else torch.device("meta"))
        # Shapes alone are those of a GPU.
        self.ragged_attention = ragged_attention.NAME if weights else ragged_attention.KERNEL
        self.parameters = bare.num_parameters()
        self.model = with_adapter(bare, shape)
        self.own_attention = bare.config.text_config._attn_implementation
        self.objective = Objective()
        example = records_of(self.processor, shape)[0]
        self.batches = {
            "unpacked": self.moved(Collator(self.processor, ragged=False)([example])),
            "ragged": self.moved(Collator(self.processor)([example])),
        }
        self.batches["packed"] = packed(self.batches["ragged"], self.processor.tokenizer.pad_token_id or 0)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Way: rows, online reference, checkpointing, fused layers.
        self.ways: Mapping[str, tuple[str, bool, bool, bool]] = {
            "release": ("release", True, True, False),
            "packed_checkpointed": ("packed", False, True, False),
            "unpacked_checkpointed": ("unpacked", False, True, False),
            "ragged_checkpointed": ("ragged", False, True, False),
            "default": ("ragged", False, False, True),
        }
        if weights:
            self.reference, self.loss, self.gradient = self.one_at_a_time()
        else:
            if bits is not None:
                stand_for_quantized(self.model, bits)
            without_weights(self.model)
            self.reference = torch.zeros(1, 6)

    def moved(self, batch: Any) -> Any:
        """The batch on the device, images in the model's precision where autocast would round them."""
        from accelerate.utils import send_to_device

        return send_to_device(batch, self.device)

    def autocast(self) -> Any:
        """Of the recipes in bf16, or none."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def logps(self, rows: str) -> Any:
        """The policy's log-probabilities through these rows."""
        from listwise_preference.training.completion_logps import completion_logps

        if rows == "release":
            return release_logps(self.model, self.batches["unpacked"])
        if rows == "packed":
            batch = self.batches["packed"]
            names = ("input_ids", "position_ids", "attention_mask")
            given = {name: batch[name] for name in names}
            output = self.model(**given, **batch["images"], logits_to_keep=batch["keep"], use_cache=False)
            return gathered(output.logits, batch)
        return completion_logps(self.model, self.batches[rows])

    def one_at_a_time(self) -> tuple[Any, float, list[Any]]:
        """A reference away from the policy, and loss and gradient by single completions, without any padding."""
        import torch

        from listwise_preference.training.objective import compare

        batch = self.batches["unpacked"]
        rows = []
        for row in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][row].sum())
            tokens = batch["input_ids"][row : row + 1, :length]
            images = {name: value[row : row + 1] for name, value in batch["images"].items()}
            keep = batch["keep"][row, :length]
            with self.autocast():
                logits = self.model(input_ids=tokens, **images, use_cache=False).logits
            logps = logits[0, :-1].float().log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
            rows.append(logps[keep[:-1]].double().sum())
        policy = torch.stack(rows)[None]
        shift = torch.randn(policy.shape, generator=torch.Generator().manual_seed(0)).to(policy) * 5
        reference = policy.detach() + shift
        loss = compare(self.objective, policy, reference).loss_B.mean()
        self.model.zero_grad()
        loss.backward()
        return reference, loss.item(), self.gradients()

    def gradients(self) -> list[Any]:
        """A copy of every trained parameter's gradient."""
        import torch

        return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self.trained]

    def prepare(self, way: str) -> Callable[[], Any]:
        """Set the model as the way wants it; what takes that back."""
        from listwise_preference.models.fused_layers import fuse_layers
        from listwise_preference.models.ragged_attention import use_ragged_attention

        rows, _, checkpointed, fused = self.ways[way]
        base = self.model.get_base_model()
        if rows == "ragged":
            use_ragged_attention(base, self.ragged_attention)
        else:
            base.set_attn_implementation({"text_config": self.own_attention})
        if checkpointed:
            base.activation_checkpointing_enable({"use_reentrant": False})
        else:
            base.activation_checkpointing_disable()
        self.model.zero_grad()
        return fuse_layers(self.model).restore if fused else lambda: None

    def forward(self, way: str) -> Any:
        """The loss of a step."""
        import torch

        from listwise_preference.training.objective import compare

        rows, online, _, _ = self.ways[way]
        with self.autocast():
            if online:  # its cost counts; its values are those of the untrained adapter, so the given ones are used
                with torch.no_grad(), self.model.disable_adapter():
                    self.logps(rows)
            policy = self.logps(rows)
        return compare(self.objective, policy, self.reference).loss_B.mean()

    def check(self, way: str) -> dict[str, Any]:
        """Tokens, images and saved bytes of a way, and how far its loss and gradient are from single completions'."""
        import torch

        take_back = self.prepare(way)
        saved = Saved(self.model)
        with saved.hooks():
            loss = self.forward(way)
        total = saved.total
        loss.backward()
        difference = torch.sqrt(
            sum((one - other).double().pow(2).sum() for one, other in zip(self.gradients(), self.gradient, strict=True))
        )
        norm = torch.sqrt(sum(one.double().pow(2).sum() for one in self.gradient))
        take_back()
        rows, online, _, _ = self.ways[way]
        forwards = 2 if online else 1
        six = self.batches["unpacked"]["input_ids"]
        tokens = 7 * six.shape[1] if rows == "release" else self.batches[rows]["input_ids"].numel()
        return {
            "tokens": tokens * forwards,
            "images": {"release": 7, "unpacked": 6}.get(rows, 5) * forwards,
            "saved_bytes": total,
            "loss_difference": abs(loss.item() - self.loss) / abs(self.loss),
            "gradient_difference": (difference / norm).item(),
        }

    def seconds(self, way: str) -> float:
        """Of one step, forward and backward."""
        take_back = self.prepare(way)
        start = now(self.device)
        self.forward(way).backward()
        spent = now(self.device) - start
        take_back()
        return spent


class Saved:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters left out."""

    def __init__(self, model: Any) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.kept: dict[int, Any] = {}  # keeps them alive, so that no address is used twice
        self.total = 0

    def pack(self, tensor: Any) -> Any:
        """Count a saved tensor's storage."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known and storage.data_ptr() not in self.kept:
            self.kept[storage.data_ptr()] = tensor
            self.total += storage.nbytes()
        return tensor

    def hooks(self) -> Any:
        """To run a forward pass under."""
        import torch

        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)


def now(where: Any) -> float:
    """Seconds: the clock's on a GPU, else CPU time."""
    import torch

    if where.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def training_steps(options: argparse.Namespace) -> dict[str, Any]:
    """All ways, checked and timed."""
    import torch

    steps = Steps(options.shape, options.size, options.dtype == "bfloat16")
    ways = {name: steps.check(name) for name in steps.ways}
    on_gpu = steps.device.type != "cpu"
    peaks: dict[str, int] = {}

    def run(name: str) -> float:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        spent = steps.seconds(name)
        if on_gpu:
            peaks[name] = torch.cuda.max_memory_allocated()
        return spent

    figures = timed({name: partial(run, name) for name in steps.ways}, options.steps)
    for name, one in ways.items():
        one |= figures[name] | ({"peak_bytes": peaks[name]} if on_gpu else {})
    release, packed_ = (ways[name]["seconds"] for name in ("release", "packed_checkpointed"))
    print(f"{options.shape} {options.size}, {steps.parameters:,} parameters, {options.dtype}, {steps.device.type}")
    print("| way | seconds | spread | of release | of packed | tokens | images | saved MiB | loss | gradient |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, one in ways.items():
        print(
            f"| {name} | {one['seconds']:.3f} | {one['spread']:.0%} | {one['seconds'] / release:.2f}"
            f" | {one['seconds'] / packed_:.2f} | {one['tokens']:,} | {one['images']}"
            f" | {one['saved_bytes'] / 2**20:.1f} | {one['loss_difference']:.1e} | {one['gradient_difference']:.1e} |"
        )
    largest = {what: max(one.pop(f"{what}_difference") for one in ways.values()) for what in ("loss", "gradient")}
    return {"ways": ways, "largest_difference": largest}


def frozen_tower(options: argparse.Namespace) -> dict[str, Any]:
    """Backward seconds of a tower-heavy model whose tower is not trained, as before and run under ``no_grad``."""
    import torch

    from listwise_preference.models.frozen_tower import freeze_tower, vision_tower
    from listwise_preference.models.ragged_attention import use_ragged_attention
    from listwise_preference.training.batch import Collator
    from listwise_preference.training.completion_logps import completion_logps

    runs, gradients, passes = {}, {}, {}
    for name in ("plain", "frozen"):
        shape_sizes = {"vision_width": 512, "vision_layers": 5, "width": 256, "layers": 1}
        bare, processor = build(options.shape, "small", torch.float32, **shape_sizes)
        policy = with_adapter(bare, options.shape, freeze=True)
        use_ragged_attention(bare)
        tower = vision_tower(bare)
        if name == "frozen":
            assert freeze_tower(bare, tower)
        # As the Trainer sets a model whose activations are recomputed.
        policy.enable_input_require_grads()
        bare.activation_checkpointing_enable({"use_reentrant": False})
        dataset = records_of(processor, options.shape, 40, 40)
        batches = cycle([Collator(processor)([dataset[index]]) for index in (0, 1)])
        counts = passes[name] = [0]
        layer = next(module for path, module in bare.get_submodule(tower).named_modules() if path.endswith("layers.0"))
        layer.register_forward_hook(lambda *_, counts=counts: counts.__setitem__(0, counts[0] + 1))

        def run(policy: Any = policy, batches: Iterator[Any] = batches, name: str = name) -> float:
            batch = next(batches)
            policy.zero_grad()
            with torch.no_grad(), policy.disable_adapter():
                completion_logps(policy, batch)
            loss = completion_logps(policy, batch).sum()
            start = time.process_time()
            loss.backward()
            spent = time.process_time() - start
            gradients[name] = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
            return spent

        runs[name] = run
    figures: dict[str, Any] = timed(runs, options.steps)
    equal = all(torch.equal(one, gradients["frozen"][name]) for name, one in gradients["plain"].items())
    for name in runs:
        figures[name] |= {"tower_passes_a_step": passes[name][0] / (options.steps + 1)}
        print(f"{name}: backward {figures[name]['seconds']:.3f} s, {figures[name]['tower_passes_a_step']:.0f} passes")
    print(f"ratio {figures['frozen']['seconds'] / figures['plain']['seconds']:.3f}, gradients bit-equal: {equal}")
    return {"frozen_tower": figures | {"gradients_bit_equal": equal}}


def estimate(options: argparse.Namespace) -> dict[str, Any]:
    """FLOPs and memory of a step in every way, and what a run of 10,000 records costs, from shapes alone."""
    import torch

    from listwise_preference.models.dry_run import measure
    from listwise_preference.training import cost
    from listwise_preference.training.batch import Collator

    bf16 = options.dtype == "bfloat16"
    steps = Steps(options.shape, options.size, bf16, weights=False)
    figures: dict[str, Any] = {}
    rows = [["way", "TFLOP forward", "backward", "sum", "of release", "GB saved", "GB at most"]]
    for way in steps.ways:
        take_back = steps.prepare(way)
        one = measure(steps.model, partial(steps.forward, way))
        take_back()
        forward, backward = sum(one.forward_flops.values()), sum(one.backward_flops.values())
        figures[way] = {"flops": forward + backward, "saved_bytes": one.saved_bytes, "peak_bytes": one.peak_bytes}
        share = (forward + backward) / figures["release"]["flops"]
        flops = [f"{number / 1e12:.1f}" for number in (forward, backward, forward + backward)]
        gigabytes = [f"{size / cost.GB:.1f}" for size in (one.saved_bytes, one.peak_bytes)]
        rows.append([way, *flops, f"{share:.2f}", *gigabytes])
    print(f"{options.shape} {options.size}, {steps.parameters:,} parameters, {options.dtype}\n\n{cost.table(rows)}\n")

    data = cost.Data.of(records_of(steps.processor, options.shape), Collator(steps.processor))
    costs = {}
    for name, bits in ((options.dtype, None), ("8-bit", 8), ("4-bit", 4)):
        if bits is not None:
            steps = Steps(options.shape, options.size, bf16, weights=False, bits=bits)
        steps.prepare("default")
        costs[name] = cost.StepCost(steps.model, data, torch.bfloat16 if bf16 else None, online=False)
    epochs = 3 if options.shape == "idefics2" else 1  # the recipes'
    print(cost.report(costs, cost.Workload(10_000 * epochs, 10_000, epochs, 6)))
    return {"ways": figures}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--shape", choices=tuple(IMAGE_SIZES), default="llava")
    add("--size", choices=("small", "7b", "8b", "13b"), default="small", help="larger than small: a GPU")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--steps", type=int, default=7, help="timed steps of each way (default 7)")
    add("--frozen_tower", action="store_true", help="instead: a vision tower that is not trained")
    add("--against", choices=("trl",), help="instead: beside TRL's DPOTrainer, which must be installed")
    add("--estimate", action="store_true", help="instead: FLOPs and memory from the shapes alone, at any size")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if options.size != "small" and (options.shape, options.size) not in FULL:
        parser.error(f"there is no {options.shape} of {options.size}")
    return options


def main() -> None:
    """Measure, print, write."""
    import torch

    options = parse_arguments()
    if options.against:
        from against_trl import against_trl

        figures = against_trl(options)
    else:
        run = estimate if options.estimate else frozen_tower if options.frozen_tower else training_steps
        figures = run(options)
    setting = {"shape": options.shape, "size": options.size, "dtype": options.dtype, "torch": torch.__version__}
    if options.json:
        options.json.write_text(json.dumps(setting | figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
