"""What is optimized: which terms, how much of each, and the numbers that are logged about them.

Shapes: B record, L image of the list, A completion. The answers of a record stand in this order everywhere:
chosen on image 1, rejected on image 1 (when the objective uses it), chosen on image 2 ... L.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from listwise_preference.training.losses import anchor_loss, dpo_loss, plackett_luce_loss


@dataclass(frozen=True)
class Objective:
    """Weights and constants of ``L = w_dpo L_DPO + w_anchor L_anchor + w_listwise L_listwise``.

    A term of weight 0 is not computed, and neither is what only that term needs: without DPO no rejected response is
    scored, without the list term no image but the first.
    """

    beta: float = 0.1
    anchor_delta: float = 0.0
    dpo_weight: float = 1.0
    anchor_weight: float = 1.0
    listwise_weight: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.dpo_weight, self.anchor_weight, self.listwise_weight)
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"loss weights must be 0 or more and not all 0; got {weights}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be above 0; got {self.beta}")
        if not math.isfinite(self.anchor_delta):
            raise ValueError(f"anchor_delta must be a number; got {self.anchor_delta}")

    @property
    def uses_rejected(self) -> bool:
        """Whether the rejected response is scored."""
        return self.dpo_weight > 0

    @property
    def uses_list(self) -> bool:
        """Whether images after the first are scored."""
        return self.listwise_weight > 0


@dataclass(frozen=True)
class Outcome:
    """The terms of one batch. ``None`` where the objective leaves a term out."""

    rewards_BA: Tensor
    chosen_rewards_BL: Tensor
    rejected_rewards_B: Tensor | None
    dpo_B: Tensor | None
    anchor_B: Tensor | None
    listwise_B: Tensor | None
    loss_B: Tensor


def compare(objective: Objective, policy_logps_BA: Tensor, reference_logps_BA: Tensor) -> Outcome:
    """Rewards and losses of a batch from the log-probabilities of its answers, in float32 or wider."""
    difference_BA = policy_logps_BA - reference_logps_BA
    rewards_BA = objective.beta * (difference_BA if difference_BA.dtype == torch.float64 else difference_BA.float())
    if objective.uses_rejected:
        rejected_B = rewards_BA[:, 1]
        chosen_BL = torch.cat([rewards_BA[:, :1], rewards_BA[:, 2:]], dim=1)
    else:
        rejected_B = None
        chosen_BL = rewards_BA

    dpo_B = dpo_loss(chosen_BL[:, 0], rejected_B) if rejected_B is not None else None
    anchor_B = anchor_loss(chosen_BL[:, 0], objective.anchor_delta) if objective.anchor_weight > 0 else None
    listwise_B = plackett_luce_loss(chosen_BL) if objective.uses_list else None
    loss_B = torch.zeros_like(rewards_BA[:, 0])
    for weight, term_B in (
        (objective.dpo_weight, dpo_B),
        (objective.anchor_weight, anchor_B),
        (objective.listwise_weight, listwise_B),
    ):
        if term_B is not None:
            loss_B = loss_B + weight * term_B
    return Outcome(rewards_BA, chosen_BL, rejected_B, dpo_B, anchor_B, listwise_B, loss_B)


def metrics(
    objective: Objective, outcome: Outcome, policy_logps_BA: Tensor, reference_logps_BA: Tensor
) -> dict[str, Tensor]:
    """What is logged, one value per record and metric, so that any averaging over records is exact. Each (B,).

    The keys depend on the objective and the list's length alone, never on the values.
    """
    chosen_BL = outcome.chosen_rewards_BL
    values: dict[str, Tensor] = {}
    for name, term_B in (
        ("dpo", outcome.dpo_B),
        ("anchor", outcome.anchor_B),
        ("listwise", outcome.listwise_B),
    ):
        if term_B is not None:
            values[f"loss_{name}"] = term_B
    values["rewards/chosen"] = chosen_BL[:, 0]
    values["logps/chosen"] = policy_logps_BA[:, 0]
    values["logps/reference_chosen"] = reference_logps_BA[:, 0]
    if outcome.rejected_rewards_B is not None:
        values["rewards/rejected"] = outcome.rejected_rewards_B
        values["rewards/accuracies"] = (chosen_BL[:, 0] > outcome.rejected_rewards_B).float()
        values["rewards/margins"] = chosen_BL[:, 0] - outcome.rejected_rewards_B
        values["logps/rejected"] = policy_logps_BA[:, 1]
        values["logps/reference_rejected"] = reference_logps_BA[:, 1]
    if objective.uses_list:
        length = chosen_BL.shape[1]
        for level in range(length):
            values[f"rewards_image/level_{level + 1}"] = chosen_BL[:, level]
        above_BLL = torch.sign(chosen_BL[:, :, None] - chosen_BL[:, None, :])
        first, second = torch.triu_indices(length, length, offset=1, device=chosen_BL.device)
        values["list/adjacent_accuracy"] = (chosen_BL[:, :-1] > chosen_BL[:, 1:]).float().mean(dim=1)
        values["list/top1"] = (chosen_BL[:, :1] > chosen_BL[:, 1:]).all(dim=1).float()
        values["list/kendall_tau"] = above_BLL[:, first, second].mean(dim=1)
    return {name: value.detach() for name, value in values.items()}
