"""One forward pass -> the log-probability of each completion on each image.

Shapes: K kept position, N completion token, B record, A completion, V vocabulary.
"""

import torch
from torch import Tensor, nn

from listwise_preference.training.batch import Batch

# What tells rows apart: a mask, or positions and spans.
_LAYOUT = ("attention_mask", "position_ids", "spans")


def completion_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probabilities of the batch's completions, each summed over its tokens: (B, A), float64.

    Only the positions that predict a completion token reach the vocabulary projection: logits are (K, V), never
    (R, T, V).

    Args:
        model: the model as a trainer or accelerate wraps it, or bare; for ragged rows its language model must have
            ragged attention (``models.ragged_attention``).
        batch: from :class:`listwise_preference.training.batch.Collator`, on the model's device.
    """
    logps_N = token_logps(model, batch)
    record_count, completion_count = batch["record"].shape[0], batch["completion_count"]
    logps = torch.zeros(record_count * completion_count, dtype=logps_N.dtype, device=logps_N.device)
    return logps.index_add(0, batch["target_completion"], logps_N).view(record_count, completion_count)


def token_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probabilities of the completions' tokens, those of one completion behind those of the one before: (N,)."""
    read = {"kept": batch["keep"][0].nonzero()[:, 0]} if "spans" in batch else {}
    output = model(
        input_ids=batch["input_ids"],
        **{name: batch[name] for name in _LAYOUT if name in batch},  # type: ignore[literal-required]
        **batch["images"],
        **read,
        logits_to_keep=batch["keep"],
        use_cache=False,
    )
    logits_KV: Tensor = output.logits
    if logits_KV.dtype != torch.float64:
        logits_KV = logits_KV.float()
    logps_N = logits_KV[batch["target_source"], batch["targets"]] - logits_KV.logsumexp(dim=-1)[batch["target_source"]]
    if logps_N.device.type != "mps":  # it has no float64
        # A sum of hundreds of nats is rounded to 1e-4 in float32, and the loss is made of differences of such sums.
        logps_N = logps_N.double()
    return logps_N
