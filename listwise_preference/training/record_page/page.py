"""``--dry_run``: a record as the model will see it, its rows, tokens, masks and images, on a page.

Everything is read from the batch that the collator made, not from the record, so that what a template, a tokenizer or
an image processor does to a record can be looked at before anything is trained.

Shapes: R row, T token.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from listwise_preference.data.pairs import Record
from listwise_preference.data.ranked_images import MaskedBox
from listwise_preference.models.ragged_attention import blocks
from listwise_preference.pages.page import Page, link
from listwise_preference.training.batch import Batch, Example

PAGE = Page(__package__, "record", "The first record", "record_data.js", "RECORD")
_SMALL = 320  # pixels of the longer side of a shown image
_TILES = 8  # of one row that are shown

Segment = tuple[str, int, int]  # prompt, chosen, rejected or padding: from and to which token of its row


def write_record_page(
    folder: Path,
    batch: Batch,
    example: Example,
    record: Record,
    processor: ProcessorMixin,
    *,
    model: str,
    records: int,
    weights: Mapping[str, float],
) -> Path:
    """Write the page of a batch of one record and return its ``index.html``.

    Args:
        batch: that the collator made of ``example`` alone.
        records: how many the run has.
        weights: of the loss terms.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    PAGE.start(folder)
    segments = list(_segments(batch, example))
    starts = _starts(batch, segments)
    ids = batch["input_ids"].flatten().tolist()
    positions = _positions(batch)
    made = _made(batch["images"], processor, len(segments))
    file = record.images.files()[0]
    rows = [
        {
            "image": _level(row, segments),
            "segments": [
                {
                    "kind": kind,
                    "count": end - begin,
                    "positions": _span(positions, start + begin, start + end),
                    "tokens": list(_tokens(ids[start + begin : start + end], processor)),
                }
                for kind, begin, end in its
            ],
            "sees": [[_relation(mask[b:e, c:f]) for _, c, f in its] for _, b, e in its],
            "made": made[row],
        }
        for row, (start, its) in enumerate(zip(starts, segments, strict=True))
        for mask in [_mask(batch, row, its)]
    ]
    pair, boxed = record.pair, isinstance(record.images, MaskedBox)
    content = {
        "model": model,
        "id": str(pair.id),
        "path": pair.img_path,
        "link": link(folder, file),
        "texts": {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected},
        "records": records,
        "ragged": "spans" in batch,
        "tokens": batch["input_ids"].numel(),
        "scored": len(batch["targets"]),
        "weights": [[name, f"{weight:g}"] for name, weight in weights.items()],
        "images": [
            {
                "file": _inline(image.convert("RGB"), "JPEG"),
                "width": image.width,
                "height": image.height,
                "masked": round(100 * level / (len(example.images) - 1)) if boxed else None,
            }
            for level, image in enumerate(example.images)
        ],
        "rows": rows,
        "both_ways": any("token_type" in name for name in batch["images"]),
        "tensors": list(_tensors(batch)),
    }
    return PAGE.finish(folder, content)


# Rows


def _segments(batch: Batch, example: Example) -> Iterator[list[Segment]]:
    """The parts of each row, in its order; their lengths are the batch's."""
    if "spans" in batch:
        lengths: list[list[tuple[str, int]]] = [
            [("prompt", prompt), ("chosen", chosen), ("rejected", rejected)]
            for prompt, chosen, rejected in batch["spans"]
        ]
    else:
        width = batch["input_ids"].shape[1]
        real = batch["attention_mask"].sum(1).tolist()
        completions = batch["lengths"][0].tolist()
        second = "rejected" if len(real) > len(example.images) else "chosen"
        kinds = ["chosen", second, *["chosen"] * len(real)]
        lengths = [
            [("prompt", count - completion), (kind, completion), ("padding", width - count)]
            for kind, count, completion in zip(kinds, real, completions, strict=False)
        ]
    for its in lengths:
        ends = [0]
        for _, length in its:
            ends.append(ends[-1] + length)
        whole = zip(its, pairwise(ends), strict=True)
        yield [(kind, begin, end) for (kind, _), (begin, end) in whole if end > begin]


def _starts(batch: Batch, segments: Sequence[Sequence[Segment]]) -> list[int]:
    """Where each row begins among all tokens of the batch."""
    starts = [0]
    for its in segments:
        starts.append(starts[-1] + its[-1][2])
    return starts[:-1]


def _level(row: int, segments: Sequence[Sequence[Segment]]) -> int:
    """Which image of the list a row is on: a rejected completion in a row of its own is on the first."""
    own = [index for index, its in enumerate(segments) if [kind for kind, _, _ in its][1] == "rejected"]
    return row - sum(index <= row for index in own)


def _mask(batch: Batch, row: int, segments: Sequence[Segment]) -> Tensor:
    """Which token sees which in a row, (T, T)."""
    size = segments[-1][2]
    if "spans" not in batch:
        real = batch["attention_mask"][row].bool()
        return torch.ones(size, size, dtype=torch.bool).tril() & real & real[:, None]
    mask = torch.zeros(size, size, dtype=torch.bool)
    for queries, keys in blocks((batch["spans"][row],)):
        seen = torch.cat([torch.arange(one.start, one.stop) for one in keys])
        own = torch.arange(queries.start, queries.stop)
        mask[own[:, None], seen[None]] = seen[None] <= own[:, None]
    return mask


def _relation(mask: Tensor) -> str:
    return "all" if mask.all() else "causal" if mask.any() else "none"


def _positions(batch: Batch) -> Tensor | None:
    """(D, T) of ragged rows; those of unpacked rows are the model's own."""
    return batch["position_ids"].reshape(-1, batch["input_ids"].numel()) if "position_ids" in batch else None


def _span(positions: Tensor | None, begin: int, end: int) -> str | None:
    """The least and the greatest position of some tokens, of each dimension where they differ."""
    if positions is None:
        return None
    spans = [f"{int(one.min())}-{int(one.max())}" for one in positions[:, begin:end]]
    return spans[0] if len(set(spans)) == 1 else " / ".join(spans)


# Tokens


def _tokens(ids: Sequence[int], processor: ProcessorMixin) -> Iterator[tuple[str, int, bool]]:
    """The text of each token, how often it stands there in a row, and whether it is a special one."""
    tokenizer = processor.tokenizer
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token, same in groupby(ids):
        text, piece = tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token))
        if "\N{REPLACEMENT CHARACTER}" in text:  # a part of a character
            text = piece
        elif piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
            text = f" {text}"  # which decoding takes away at the beginning
        yield text, len(list(same)), token in special


# Images


def _made(tensors: Mapping[str, Any], processor: ProcessorMixin, rows: int) -> list[Any]:
    """For each row what the image processor made of its image: {"files", "more"}, or None where it cannot be drawn.

    It can where pixels are (..., 3, height, width) and each row has as many tiles.
    """
    pixels = tensors.get("pixel_values")
    settings: Any = processor.image_processor
    if not isinstance(pixels, Tensor) or pixels.dim() < 4 or pixels.shape[-3] != 3:
        return [None] * rows
    tiles = pixels.reshape(-1, *pixels.shape[-3:]).float()
    if len(tiles) % rows:
        return [None] * rows
    if getattr(settings, "do_normalize", False):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.image_mean, settings.image_std))
        tiles = tiles * std + mean
    mask = tensors.get("pixel_attention_mask")
    real = torch.ones(tiles.shape[-2:]).expand(len(tiles), -1, -1)
    if isinstance(mask, Tensor) and mask.shape[-2:] == real.shape[-2:] and mask.numel() == real.numel():
        real = mask.reshape(real.shape).float()
    drawn = [torch.cat([tile, alpha[None]]) for tile, alpha in zip(tiles, real, strict=True)]
    each = len(drawn) // rows
    return [
        {
            "files": [_inline(_image(tile), "PNG") for tile in drawn[row * each : row * each + each][:_TILES]],
            "more": max(0, each - _TILES),
            "width": tiles.shape[-1],
            "height": tiles.shape[-2],
        }
        for row in range(rows)
    ]


def _image(tile: Tensor) -> Image.Image:
    """Of red, green, blue and opacity, (4, height, width), each from 0 to 1."""
    values = (tile.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy(), "RGBA")


def _inline(image: Image.Image, kind: str) -> str:
    small = image.copy()
    small.thumbnail((_SMALL, _SMALL))
    content = io.BytesIO()
    small.save(content, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _tensors(batch: Batch) -> Iterator[tuple[str, str, str]]:
    """Name, shape and dtype of all that goes to the model."""
    given = {name: batch.get(name) for name in ("input_ids", "attention_mask", "position_ids")} | batch["images"]
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield name, " x ".join(map(str, value.shape)), str(value.dtype).removeprefix("torch.")
