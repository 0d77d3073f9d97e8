"""One training step, the same work done in several ways: seconds, memory, tokens and images.

    python benchmarks/training_step.py --family llava                    # a small model on the CPU, about two minutes
    python benchmarks/training_step.py --family idefics2 --size full     # real shapes, random weights, bf16: a GPU

Each way runs in a process of its own, on the same records of data/sample:

    release   the authors' form: chosen and rejected on the image, then the chosen answer on all five (7 rows), the
              vocabulary projection at every position, the reference at every step
    plain     a row an answer (6 rows), answer positions only
    packed    a row an image (5 rows), answer positions only

plain and packed are measured with the reference at every step ("live") and precomputed ("once").
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing

WAYS = ("release live", "plain live", "packed live", "plain once", "packed once")


def build(family: str, size: str) -> tuple[Any, Any]:
    """A model with random weights on the device, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, Idefics2Processor

    from listwise_preference.small_world.model import build_small_model

    full = size != "small"
    image_size = {"llava": 336, "idefics2": 980 if full else 378}[family]
    sizes: dict[str, Any] = {"image_size": image_size, "hidden_size": 256, "layers": 4, "vocab_size": 8000}
    model, processor = build_small_model(family, **sizes)  # type: ignore[arg-type]
    if isinstance(processor, Idefics2Processor):
        processor.image_seq_len = 64  # as the real one, at any size
        model.config.perceiver_config.resampler_n_latents = 64
        model = AutoModelForImageTextToText.from_config(model.config)
    if not full:
        return model, processor
    config = model.config
    text, vision = config.text_config, config.vision_config
    text.update({"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 32064})
    if family == "llava":
        text.update({"num_key_value_heads": 32, "intermediate_size": 11008, "head_dim": 128})
        vision.update(
            {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
        )
        if size == "13b":
            text.update({"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40})
            text.update({"num_key_value_heads": 40, "intermediate_size": 13824})
    else:
        text.update({"num_key_value_heads": 8, "intermediate_size": 14336, "head_dim": 128})
        vision.update(
            {"num_hidden_layers": 27, "hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 4304}
        )
        config.perceiver_config.update({"hidden_size": 4096, "resampler_depth": 3})
        config.perceiver_config.update({"resampler_n_heads": 16, "resampler_head_dim": 96, "num_key_value_heads": 4})
    del model
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    return model, processor


def measure(way: str, family: str, size: str, steps: int, answer_tokens: int | None) -> dict[str, Any]:
    """Time ``steps`` steps of one record each after one that is not counted.

    On the CPU one thread does all, and seconds are its CPU time, which other work on the machine changes little.
    """
    import torch

    from listwise_preference.data.pairs import BoxLists, load_records
    from listwise_preference.data.ranked_images import Drawing
    from listwise_preference.models.adapters import add_adapter
    from listwise_preference.models.chat_format import ChatFormat
    from listwise_preference.models.families import FAMILIES
    from listwise_preference.models.loading import end_token
    from listwise_preference.training.batch import Batch, Collator, ListwiseDataset
    from listwise_preference.training.completion_logps import completion_logps
    from listwise_preference.training.objective import Objective, compare

    torch.manual_seed(0)
    torch.set_num_threads(1)
    sample = ROOT / "data" / "sample"
    records = load_records(sample / "pairs.json", sample, BoxLists(sample / "image_lists.jsonl", Drawing())).records
    bare, processor = build(family, size)
    chat = ChatFormat(processor, end_token(processor, FAMILIES[family]))
    dataset = ListwiseDataset(records, chat, 384)
    if answer_tokens is not None:
        for answers in (dataset.chosen_ids, dataset.rejected_ids):
            answers[:] = [(ids * answer_tokens)[:answer_tokens] for ids in answers]
    model = add_adapter(bare, r=8, alpha=8, dropout=0.0, target_modules=["all-linear"])
    model.activation_checkpointing_enable()
    model.train()
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    layout, reference_mode = way.split()
    collate = Collator(processor, packed=layout == "packed")
    objective = Objective()

    def logps_of(batch: Batch) -> torch.Tensor:
        if layout != "release":
            return completion_logps(model, batch)
        # Rows 0 and 1 are the text pair; the chosen answer on the first image once more for the list.
        rows = torch.tensor([0, 1, 0, *range(2, len(batch["input_ids"]))], device=device)
        tokens = batch["input_ids"][rows]
        logits = model(
            input_ids=tokens,
            attention_mask=(batch["segments"][rows] != 0).long(),
            **{name: value[rows] for name, value in batch["images"].items()},
            use_cache=False,
        ).logits
        logps = logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        summed = (logps * (batch["segments"][rows][:, 1:] >= 2)).sum(1)
        return summed[[0, 1, *range(3, len(rows))]][None]

    def to_device(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: to_device(item) for key, item in value.items()}
        return value.to(device) if isinstance(value, torch.Tensor) else value

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    seconds, tokens, scored = [], 0, 0
    # Every third record: different images, questions and lengths.
    for index in range(steps + 1):
        batch: Any = to_device(collate([dataset[(3 * index) % len(dataset)]]))
        start = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=size != "small"):
            if reference_mode == "live":
                with torch.no_grad(), model.disable_adapter():
                    reference = logps_of(batch)
            policy = logps_of(batch)
        loss = compare(objective, policy, reference if reference_mode == "live" else policy.detach()).loss_B.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if index:
            seconds.append(clock() - start)
            tokens += batch["input_ids"].numel() * (7 / 6 if layout == "release" else 1)
            scored += len(batch["targets"])
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    forwards = 2 if reference_mode == "live" else 1
    return {
        "way": way,
        "seconds": statistics.median(seconds),
        "peak_gib": peak / 2**30,
        "pictures": {"release": 7, "plain": 6, "packed": 5}[layout] * forwards,
        "tokens": round(tokens / steps) * forwards,
        "answer_tokens": round(scored / steps),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU, one thread",
        "parameters": sum(p.numel() for p in bare.parameters()),
    }


def main() -> None:
    """Run every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("idefics2", "llava"), default="llava")
    parser.add_argument("--size", choices=("small", "full", "13b"), default="small", help="full is 8B or 7B, on a GPU")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of one record")
    parser.add_argument("--answer_tokens", type=int, help="cut or repeat every answer to this length")
    parser.add_argument("--way", choices=WAYS, help="this one alone, as a line of JSON")
    arguments = parser.parse_args()
    if arguments.way:
        print(
            json.dumps(
                measure(arguments.way, arguments.family, arguments.size, arguments.steps, arguments.answer_tokens)
            )
        )
        return
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, *sys.argv[1:]]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            print(f"{way}: failed\n{finished.stderr[-2000:]}", file=sys.stderr)
            continue
        rows.append(json.loads(finished.stdout.splitlines()[-1]))
        print(f"{way}: {rows[-1]['seconds']:.2f} s", file=sys.stderr)
    first = rows[0]
    print(
        f"{arguments.family}, {first['parameters']:,} parameters, {first['device']}; median of {arguments.steps} steps"
    )
    print("| way | s a step | of release | peak GiB | images | LM tokens | answer tokens |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['way']} | {row['seconds']:.2f} | {row['seconds'] / first['seconds']:.2f} | {row['peak_gib']:.2f}"
            f" | {row['pictures']} | {row['tokens']} | {row['answer_tokens']} |"
        )


if __name__ == "__main__":
    main()
