"""The terms of the loss: rewards in, one loss per record out.

A reward is ``beta * (log pi(y|x,q) - log pi_ref(y|x,q))`` of a response ``y`` to a prompt ``q`` on an image ``x``.
Everything here is float32 or wider; callers average over the batch. A new term is one more entry of ``TERMS``:
its weight can be given (``--loss_weights NAME=1``), and the logs, eval_records.jsonl and the model card show it.

torch is imported where it computes, so that options are checked without waiting for it.

Shapes: B record, L image of the list, best first, A completion (chosen on image 1, rejected if it is scored, chosen on
image 2 ... L, rejected on image 2 ... L if it is scored on all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-log sigmoid(r(w|x) - r(l|x))``, eq. 7 of DPO (arXiv:2305.18290), beta folded into the rewards. Shape (B,).

    With ``label_smoothing`` e it is conservative DPO: a share e of the labels is taken to be the wrong way round,
    ``(1 - e) * loss + e * loss of the reverse``.
    """
    from torch.nn.functional import logsigmoid

    margin_B = chosen_rewards_B - rejected_rewards_B
    if label_smoothing == 0:
        return -logsigmoid(margin_B)
    return -(1 - label_smoothing) * logsigmoid(margin_B) - label_smoothing * logsigmoid(-margin_B)


def anchor_loss(chosen_rewards_B: Tensor, delta: float = 0.0) -> Tensor:
    """``-log sigmoid(r(w|x) - delta)``: keeps the chosen response's own likelihood from falling. Shape (B,).

    From mDPO (arXiv:2406.11839), kept by LPOI's Algorithm 1 (arXiv:2505.21061).
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(chosen_rewards_B - delta)


def plackett_luce_loss(scores_BL: Tensor) -> Tensor:
    """``-sum_k log(exp(S_k) / sum_{j>=k} exp(S_j))``, the ranking loss of LPOI's Algorithm 1. Shape (B,).

    The negative log-likelihood of the order best-first under the Plackett-Luce model. The last term is 0; for two
    images it is DPO's loss of their difference; for L equal scores it is ln(L!). Each denominator is one logsumexp
    over a suffix, finite wherever the scores are.
    """
    import torch

    last = scores_BL.shape[-1] - 1
    terms = [torch.logsumexp(scores_BL[:, k:], dim=-1) - scores_BL[:, k] for k in range(last)]
    return torch.stack(terms, dim=-1).sum(dim=-1) if terms else torch.zeros_like(scores_BL[:, 0])


def tied_plackett_luce_loss(scores_BL: Tensor) -> Tensor:
    """Plackett-Luce where the first two images are tied, ``-log`` of both orders' summed probabilities. Shape (B,).

    For an image that belongs at the level of the untouched one, as one with an equal box masked where nothing is. For L
    equal scores it is ln(L! / 2); with two images alone nothing is asked, and it is 0.
    """
    import torch

    exchanged_BL = torch.cat([scores_BL[:, 1:2], scores_BL[:, :1], scores_BL[:, 2:]], dim=1)
    return -torch.logaddexp(-plackett_luce_loss(scores_BL), -plackett_luce_loss(exchanged_BL))


def sft_loss(chosen_logps_B: Tensor, lengths_B: Tensor) -> Tensor:
    """``-log pi(w|x) / |w|``, supervised fine-tuning on the chosen response, a mean over its tokens. Shape (B,).

    Added to DPO in RPO (arXiv:2404.19733): keeps the response likely that the ranking terms may push down.
    """
    return -chosen_logps_B / lengths_B


def ipo_loss(chosen_rewards_B: Tensor, rejected_rewards_B: Tensor, beta: float) -> Tensor:
    """``(h - 1 / (2 beta))^2`` of the log-ratios' difference ``h``, eq. 17 of IPO (arXiv:2310.12036). Shape (B,).

    A margin to reach, not to grow for ever. ``h`` is of sums over tokens, as in the paper; its beta is called tau.
    """
    return ((chosen_rewards_B - rejected_rewards_B - 0.5) / beta) ** 2


@dataclass(frozen=True)
class Rewards:
    """What a term is computed from.

    Attributes:
        policy_logps_BA: of whole completions, each summed over its tokens.
        reference_logps_BA: of the same completions.
        rewards_BA: ``beta * (policy - reference)``.
        lengths_BA: of the completions, tokens; for terms that need them.
        beta: of the rewards.
        with_rejected: whether completion 2 is the rejected response.
        rejected_on_all: whether the last L - 1 completions are the rejected response on images 2 ... L.
        anchor_delta: the margin of the anchor term.
        label_smoothing: of the DPO term.
    """

    policy_logps_BA: Tensor
    reference_logps_BA: Tensor
    rewards_BA: Tensor
    lengths_BA: Tensor | None
    beta: float
    with_rejected: bool
    anchor_delta: float
    label_smoothing: float = 0.0
    rejected_on_all: bool = False

    @property
    def chosen_BL(self) -> Tensor:
        """Rewards of the chosen response on each image."""
        import torch

        if not self.with_rejected:
            return self.rewards_BA
        completions = self.rewards_BA.shape[1]
        end = completions // 2 + 1 if self.rejected_on_all else completions
        return torch.cat([self.rewards_BA[:, :1], self.rewards_BA[:, 2:end]], dim=1)

    @property
    def rejected_BL(self) -> Tensor:
        """Rewards of the rejected response on each image, for terms that need them."""
        import torch

        assert self.rejected_on_all
        return torch.cat([self.rewards_BA[:, 1:2], self.rewards_BA[:, self.rewards_BA.shape[1] // 2 + 1 :]], dim=1)

    @property
    def chosen_length_B(self) -> Tensor:
        """Tokens of the chosen response."""
        assert self.lengths_BA is not None
        return self.lengths_BA[:, 0]

    @property
    def chosen_B(self) -> Tensor:
        """Rewards of the chosen response on the first image."""
        return self.rewards_BA[:, 0]

    @property
    def rejected_B(self) -> Tensor:
        """Rewards of the rejected response, for terms that need it."""
        assert self.with_rejected
        return self.rewards_BA[:, 1]


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss.

    Attributes:
        loss: from a batch's rewards to one loss per record, (B,).
        needs_rejected: whether the rejected response must be scored for it.
        needs_list: whether the images after the first must be scored for it.
        needs_rejected_on_all: whether the rejected response must be scored on those too.
    """

    loss: Callable[[Rewards], Tensor]
    needs_rejected: bool = False
    needs_list: bool = False
    needs_rejected_on_all: bool = False


TERMS: dict[str, LossTerm] = {
    "dpo": LossTerm(
        lambda rewards: dpo_loss(rewards.chosen_B, rewards.rejected_B, rewards.label_smoothing), needs_rejected=True
    ),
    "anchor": LossTerm(lambda rewards: anchor_loss(rewards.chosen_B, rewards.anchor_delta)),
    "listwise": LossTerm(lambda rewards: plackett_luce_loss(rewards.chosen_BL), needs_list=True),
    # Of log pi(y|x) = S(x, y) - log Z(x) a reward of one response keeps the change of log Z(x_k), which depends on the
    # image; in the difference of two responses on the same image it cancels.
    "margin_list": LossTerm(
        lambda rewards: plackett_luce_loss(rewards.chosen_BL - rewards.rejected_BL),
        needs_rejected=True,
        needs_list=True,
        needs_rejected_on_all=True,
    ),
    "tied_list": LossTerm(lambda rewards: tied_plackett_luce_loss(rewards.chosen_BL), needs_list=True),
    "sft": LossTerm(lambda rewards: sft_loss(rewards.policy_logps_BA[:, 0], rewards.chosen_length_B)),
    "ipo": LossTerm(lambda rewards: ipo_loss(rewards.chosen_B, rewards.rejected_B, rewards.beta), needs_rejected=True),
}
