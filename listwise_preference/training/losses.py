"""The objectives as pure functions: rewards in, one loss per example out.

A reward is ``beta * (log pi(y|x,q) - log pi_ref(y|x,q))`` of an answer ``y`` to a prompt ``q`` on an image ``x``.
Everything here is float32 or wider; callers average over the batch.

Shapes: B record, L image of the list, best first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor) -> Tensor:
    """``-log sigmoid(r(w|x) - r(l|x))``, eq. 7 of DPO (arXiv:2305.18290), beta folded into the rewards. Shape (B,)."""
    return -F.logsigmoid(chosen_rewards_B - rejected_rewards_B)


def anchor_loss(chosen_rewards_B: Tensor, delta: float = 0.0) -> Tensor:
    """``-log sigmoid(r(w|x) - delta)``: keeps the chosen response's own likelihood from falling. Shape (B,).

    From mDPO (arXiv:2406.11839), kept by LPOI's Algorithm 1 (arXiv:2505.21061).
    """
    return -F.logsigmoid(chosen_rewards_B - delta)


def plackett_luce_loss(scores_BL: Tensor) -> Tensor:
    """``-sum_k log(exp(S_k) / sum_{j>=k} exp(S_j))``, the ranking loss of LPOI's Algorithm 1. Shape (B,).

    The negative log-likelihood of the order best-first under the Plackett-Luce model. The last term is 0; for two
    images it is DPO's loss of their difference; for L equal scores it is ln(L!). Each denominator is one logsumexp
    over a suffix, finite wherever the scores are.
    """
    last = scores_BL.shape[-1] - 1
    terms = [torch.logsumexp(scores_BL[:, k:], dim=-1) - scores_BL[:, k] for k in range(last)]
    return torch.stack(terms, dim=-1).sum(dim=-1) if terms else torch.zeros_like(scores_BL[:, 0])
