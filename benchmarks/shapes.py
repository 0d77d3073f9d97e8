"""Models of random weights for the benchmarks: small ones of the real classes, and the real sizes; and timing."""

import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing
SAMPLE = ROOT / "data" / "sample"

IMAGE_SIZES = {"llava": 336, "idefics2": 378}
# Width of the small language models, four layers of them: what a minute or two on one thread allows.
WIDTHS = {
    ("llava", "float32"): 512,
    ("llava", "bfloat16"): 768,
    ("idefics2", "float32"): 768,
    ("idefics2", "bfloat16"): 1024,
}
# (layers, width, MLP width, heads, key-value heads) of the language model at full size.
FULL = {
    ("llava", "7b"): (32, 4096, 11008, 32, 32),
    ("llava", "13b"): (40, 5120, 13824, 40, 40),
    ("idefics2", "8b"): (32, 4096, 14336, 32, 8),
}


def build(
    shape: str,
    size: str,
    dtype: Any,
    where: Any = None,
    vision_width: int = 128,
    vision_layers: int = 3,
    **text: int,
) -> Any:
    """A model of random weights, on the device if not elsewhere, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, Idefics2Processor

    from listwise_preference.small_world.model import build_small_model

    small = size == "small"
    image_size = IMAGE_SIZES[shape] if small or shape == "llava" else 980
    family: Any = shape
    model, processor = build_small_model(family, image_size=image_size, layers=1, initializer_range=0.02)
    config = model.config
    if small:
        width = text.get("width", WIDTHS[shape, str(dtype).removeprefix("torch.")])
        heads = width // 128  # a head is as wide as the real models'
        kv_heads = heads if shape == "llava" else max(1, heads // 4)
        layers, mlp = text.get("layers", 4), width * 11 // 4
    else:
        layers, width, mlp, heads, kv_heads = FULL[shape, size]
    config.text_config.update(
        {
            "num_hidden_layers": layers,
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": width // heads,
        }
    )
    if small:
        vision = (vision_layers, vision_width, 4 * vision_width, max(2, vision_width // 64))
    else:
        config.text_config.vocab_size = 32064
        vision = (24, 1024, 4096, 16) if shape == "llava" else (27, 1152, 4304, 16)
    config.vision_config.update(
        dict(zip(("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"), vision, strict=True))
    )
    if isinstance(processor, Idefics2Processor):
        processor.image_seq_len = 64  # as the real one, at any size
        resampler = {"resampler_n_latents": 64, "hidden_size": width}
        if small:
            resampler |= {"resampler_depth": 1, "resampler_n_heads": 4, "resampler_head_dim": 64}
            resampler |= {"num_key_value_heads": 2}
        else:
            resampler |= {"resampler_depth": 3, "resampler_n_heads": 16, "resampler_head_dim": 96}
            resampler |= {"num_key_value_heads": 4}
        config.perceiver_config.update(resampler)
    torch.manual_seed(0)
    with where or device():
        return AutoModelForImageTextToText.from_config(config, dtype=dtype), processor


def device() -> Any:
    """The accelerator, or the CPU."""
    import torch

    # A torch built for CUDA names it on a machine that has none, unless it is asked to look.
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def timed(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """Median and spread of each, interleaved, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            spent = run()
            if repeat:
                times[name].append(spent)
    return {
        name: {"seconds": (median := statistics.median(one)), "spread": (max(one) - min(one)) / median}
        for name, one in times.items()
    }
