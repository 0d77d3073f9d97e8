"""One forward pass -> the log-probability of each completion on each image.

Shapes: R row, T token, K kept position, N completion token, B record, A completion, V vocabulary.
"""

import torch
from torch import Tensor, nn

from listwise_preference.training.batch import CHOSEN, PAD, PROMPT, Batch


def packed_attention(segments_RT: Tensor) -> Tensor:
    """Who sees whom in packed rows: boolean, (R, 1, T, T), query by key.

    Causal, and a token sees the prompt and its own segment only: the rejected response behind the chosen one does not
    see it. Padding is on the right and sees the prompt, so that no row of the softmax is empty.
    """
    token_count = segments_RT.shape[1]
    causal_TT = torch.ones(token_count, token_count, dtype=torch.bool, device=segments_RT.device).tril()
    keys_R1T, queries_RT1 = segments_RT[:, None, :], segments_RT[:, :, None]
    visible_RTT = (keys_R1T == PROMPT) | ((keys_R1T == queries_RT1) & (queries_RT1 >= CHOSEN))
    return (causal_TT & visible_RTT)[:, None]


def _attention(batch: Batch, model_dtype: torch.dtype, implementation: str) -> dict[str, Tensor]:
    segments_RT = batch["segments"]
    if not batch["packed"]:
        return {"attention_mask": (segments_RT != PAD).long()}
    mask_R1TT = packed_attention(segments_RT)
    if implementation == "eager":  # adds its mask to the scores
        mask_R1TT = torch.zeros(mask_R1TT.shape, dtype=model_dtype, device=mask_R1TT.device).masked_fill_(
            ~mask_R1TT, torch.finfo(model_dtype).min
        )
    return {"attention_mask": mask_R1TT, "position_ids": batch["position_ids"]}


def completion_logps(model: nn.Module, batch: Batch, implementation: str = "sdpa") -> Tensor:
    """Log-probabilities of the batch's completions, each summed over its tokens: (B, A), float32 or wider.

    Only the positions that predict a completion token reach the vocabulary projection: logits are (K, V), never
    (R, T, V).

    Args:
        model: the model as a trainer or accelerate wraps it, or bare.
        batch: from :class:`listwise_preference.training.batch.Collator`, on the model's device.
        implementation: the language model's attention, "sdpa" or "eager" for packed rows.
    """
    parameter = next(model.parameters())
    output = model(
        input_ids=batch["input_ids"],
        **_attention(batch, parameter.dtype, implementation),
        **batch["images"],
        logits_to_keep=batch["keep"],
        use_cache=False,
    )
    logits_KV: Tensor = output.logits
    if logits_KV.dtype != torch.float64:
        logits_KV = logits_KV.float()
    logps_N = logits_KV[batch["target_source"], batch["targets"]] - logits_KV.logsumexp(dim=-1)[batch["target_source"]]
    record_count, completion_count = batch["record"].shape[0], batch["completion_count"]
    logps = torch.zeros(record_count * completion_count, dtype=logps_N.dtype, device=logps_N.device)
    return logps.index_add(0, batch["target_completion"], logps_N).view(record_count, completion_count)
