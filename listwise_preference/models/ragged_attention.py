"""Attention over ragged rows: all rows of a batch behind one another in one sequence, without padding or a dense mask.

A row is a prompt with its image and one completion, or two of which the second does not see the first:

    [prompt 1 | chosen 1 | rejected 1] [prompt 2 | chosen 2] ...        one sequence of T tokens

``spans`` holds three lengths a row: prompt, chosen, rejected (0 where there is none). The prompt and the chosen
completion attend causally among themselves; the rejected completion's queries meet the keys of its prompt and its own.
Registered with transformers' ``AttentionInterface`` as "ragged"; a model's forward takes ``spans`` as a keyword.

Shapes: H head, T token, D width of a head.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from listwise_preference.models.last_layer import skip_unread_positions

NAME = "ragged"
KERNEL = "ragged_kernel"  # the form for GPUs, by name where a GPU's cost is asked for without one
Spans = tuple[tuple[int, int, int], ...]


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    spans: Spans,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each row by itself; query (1, H, T, D), key and value (1, H or fewer, T, D).

    Returns:
        (1, T, H, D), and None for the weights that nobody computes.

    Raises:
        ValueError: dropout, or a row longer than the model's sliding window, which this function does not know.
    """
    longest = max(prompt + max(chosen, rejected) for prompt, chosen, rejected in spans)
    if dropout or (sliding_window is not None and longest > sliding_window):
        raise ValueError("ragged rows know neither attention dropout nor sliding windows: use unpacked rows")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return ragged_kernel(module, query, key, value, attention_mask, scaling=scaling, spans=spans)
    grouped = key.shape[1] != query.shape[1]
    parts = []
    for queries, keys in blocks(spans):
        row_key = torch.cat([key[:, :, one] for one in keys], dim=2) if len(keys) > 1 else key[:, :, keys[0]]
        row_value = torch.cat([value[:, :, one] for one in keys], dim=2) if len(keys) > 1 else value[:, :, keys[0]]
        mask = None
        if len(keys) > 1:  # fewer queries than keys: causal from the lower right corner
            length, before = queries.stop - queries.start, keys[0].stop - keys[0].start
            mask = torch.ones(length, before + length, dtype=torch.bool, device=query.device).tril(before)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, queries],
                row_key,
                row_value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def blocks(spans: Spans) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """The queries and keys of each causal block: prompt with chosen completion, rejected completion with prompt."""
    start = 0
    for prompt, chosen, rejected in spans:
        end = start + prompt + chosen
        yield slice(start, end), (slice(start, end),)
        if rejected:
            own = slice(end, end + rejected)
            yield own, (slice(start, start + prompt), own)
        start = end + rejected


@functools.lru_cache(maxsize=8)
def kernel_layout(spans: Spans, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """What a variable-length kernel takes: the keys' places, block ends of queries and of keys, longest of each.

    A prompt's keys are there twice where a rejected completion needs them: once in front of each completion.
    """
    places: list[int] = []
    query_ends, key_ends = [0], [0]
    longest_query = longest_key = 0
    for queries, keys in blocks(spans):
        block = [place for one in keys for place in range(one.start, one.stop)]
        places += block
        query_ends.append(queries.stop)
        key_ends.append(len(places))
        longest_query = max(longest_query, queries.stop - queries.start)
        longest_key = max(longest_key, len(block))
    return (
        torch.tensor(places, device=device),
        torch.tensor(query_ends, dtype=torch.int32, device=device),
        torch.tensor(key_ends, dtype=torch.int32, device=device),
        longest_query,
        longest_key,
    )


def ragged_kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    spans: Spans,
    **_: Any,
) -> tuple[Tensor, None]:
    """FlashAttention over all blocks at once. Its causal mask begins at the lower right corner, as the blocks need."""
    from torch.nn.attention.varlen import varlen_attn

    places, query_ends, key_ends, longest_query, longest_key = kernel_layout(spans, query.device)
    attended = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[places],
        value[0].transpose(0, 1)[places],
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None], None


def use_ragged_attention(model: PreTrainedModel, name: str = NAME) -> None:
    """Give the language model ragged attention; the vision tower and the connector keep theirs."""
    model.set_attn_implementation({"text_config": name})
    skip_unread_positions(model)


AttentionInterface.register(NAME, ragged_attention)
AttentionInterface.register(KERNEL, ragged_kernel)
for _name in (NAME, KERNEL):
    AttentionMaskInterface.register(_name, lambda *_, **__: None)  # rows are told apart by ``spans``
