"""Prompts with their images as tensors, and tokens behind them, whatever a model's processor returns.

Processors differ in the shape of everything but text: an image's pixels come per patch, per tile or padded to the
batch's largest, with sizes, grids or masks beside them. So the processor is called with the images of the rows, and all
that it returns goes to the model. What it returns for each token (token types, cross-attention masks) grows with the
row; leaving it out gives other values without an error.

Shapes: R row, T token.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from listwise_preference.models.chat_format import add_special_tokens


def encode_prompts(
    processor: ProcessorMixin,
    texts: Sequence[str],
    images: Sequence[Image.Image],
    padding_side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """What the processor returns for prompts with an image each; ``input_ids`` and ``attention_mask`` are (R, T)."""
    tokenizer = processor.tokenizer

    def call(texts: Sequence[str]) -> dict[str, Tensor]:
        encoded: Any = processor(
            text=list(texts),
            images=[[image] for image in images],
            padding=True,
            padding_side=padding_side,
            add_special_tokens=add_special_tokens(tokenizer, texts[0]),
            return_tensors="pt",
        )
        return {name: value for name, value in encoded.items() if name != "labels"}

    encoded = call(texts)
    opens = (encoded["input_ids"] == tokenizer.bos_token_id) & encoded["attention_mask"].bool()
    if (opens[:, 1:] & opens[:, :-1]).any():  # by the template and by the processor: the processor's shall stay
        encoded = call([text.replace(tokenizer.bos_token, "", 1) for text in texts])
    return encoded


def per_token(encoded: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that have an entry for each token, (R, T, ...)."""
    shape = encoded["input_ids"].shape
    return [name for name, value in encoded.items() if value.shape[:2] == shape and not name.startswith("pixel_")]


def unpadded(encoded: dict[str, Tensor], name: str) -> list[Tensor]:
    """Each row of such a tensor without its padding."""
    rows = zip(encoded[name], encoded["attention_mask"].bool(), strict=True)
    return [values[real] for values, real in rows]


def extended(row: Tensor, count: int, value: int | None = None) -> Tensor:
    """A row, (T, ...), with ``count`` entries behind it, each ``value`` or as the prompt's last token has it."""
    tail = row[-1:].expand(count, *row.shape[1:])
    return torch.cat([row, tail if value is None else torch.full_like(tail, value)])
