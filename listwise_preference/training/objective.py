"""What is optimized: which terms, how much of each, and the numbers that are logged about them.

Options are checked against this module, so it imports torch only where it computes.

Shapes: B record, L image of the list, A completion. The completions of a record have this order everywhere:
chosen on image 1, rejected on image 1 (when the objective uses it), chosen on image 2 ... L, rejected on image 2 ... L
(when it uses them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from listwise_preference.training.losses import TERMS, LossTerm, Rewards

if TYPE_CHECKING:
    from torch import Tensor

# Where the images after the first come from, for the terms that compare images.
ListSource = Literal["ranked", "crops"]


@dataclass(frozen=True)
class Preset:
    """A published objective.

    Attributes:
        weights: of its terms; the others have none.
        list_source: "ranked" takes the user's folders or boxes, "crops" a crop of each image.
        summary: a few words for ``--help``.
        method: what an adapter was trained by, for its model card.
    """

    weights: Mapping[str, float]
    list_source: ListSource
    summary: str
    method: str


PRESETS: dict[str, Preset] = {
    "lpoi": Preset(
        {"dpo": 1.0, "anchor": 1.0, "listwise": 1.0},
        "ranked",
        "DPO + anchor + the ranked images",
        "listwise preference optimization (LPOI, ACL 2025) to rely on what is in the image",
    ),
    "dpo": Preset(
        {"dpo": 1.0},
        "ranked",
        "DPO alone",
        "DPO (arXiv:2305.18290), the comparison of LPOI, by this project's code",
    ),
    "mdpo": Preset(
        {"dpo": 1.0, "anchor": 1.0, "listwise": 1.0},
        "crops",
        "DPO + anchor + the image against a crop of up to 20 % of it",
        "mDPO (arXiv:2406.11839), the comparison of LPOI, by this project's code",
    ),
}

# How far a sum of log-probabilities is from the same computed in other batches, relative to it (docs/log.md). Rewards
# nearer to each other are taken as equal.
FLOAT32_ROUNDING, HALF_ROUNDING = 1e-6, 1e-4

# The terms that three bare numbers of --loss_weights weight.
IN_ORDER = ("dpo", "anchor", "listwise")


@dataclass(frozen=True)
class Objective:
    """Weights and constants of ``L = w_dpo L_DPO + w_anchor L_anchor + w_listwise L_listwise + ...``.

    A term of weight 0 is not computed, and neither is what only that term needs: without DPO no rejected response is
    scored, without the list term no image but the first.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: PRESETS["lpoi"].weights)
    beta: float = 0.1
    anchor_delta: float = 0.0
    list_source: ListSource = "ranked"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if unknown := self.weights.keys() - TERMS:
            raise ValueError(f"no such loss term: {', '.join(sorted(unknown))}; there are {', '.join(TERMS)}")
        weights = self.weights.values()
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            shown = " ".join(f"{name}={weight:g}" for name, weight in self.weights.items())
            raise ValueError(f"loss weights must be 0 or more and not all 0; got {shown}")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be above 0; got {self.beta}")
        if not math.isfinite(self.anchor_delta):
            raise ValueError(f"anchor_delta must be a number; got {self.anchor_delta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label smoothing must be at least 0 and below 0.5; got {self.label_smoothing}")
        if self.label_smoothing and set(self.terms) != {"dpo"}:
            raise ValueError("label smoothing is conservative DPO's: it needs the DPO term alone (--objective dpo)")

    @property
    def terms(self) -> dict[str, LossTerm]:
        """The terms that are computed."""
        return {name: term for name, term in TERMS.items() if self.weights.get(name, 0.0) > 0}

    @property
    def uses_rejected(self) -> bool:
        """Whether the rejected response is scored."""
        return any(term.needs_rejected for term in self.terms.values())

    @property
    def uses_rejected_on_all(self) -> bool:
        """Whether the rejected response is scored on every image."""
        return any(term.needs_rejected_on_all for term in self.terms.values())

    @property
    def uses_list(self) -> bool:
        """Whether images after the first are scored."""
        return any(term.needs_list for term in self.terms.values())


def read_weights(given: Sequence[str | float] | None, preset: Mapping[str, float]) -> dict[str, float]:
    """The weights of the paper's terms and of those that are named, from what ``--loss_weights`` holds.

    Args:
        given: ``["dpo=1", "listwise=0.25"]``, which leaves the other terms as in the preset, or three bare numbers
            for dpo, anchor and listwise; ``None`` or nothing is the preset.
        preset: weights by name.

    Raises:
        ValueError: an unknown name, no number, or bare numbers that are not three.
    """
    weights = {name: preset.get(name, 0.0) for name in (*IN_ORDER, *preset)}
    texts = [str(text) for text in given or ()]
    if texts and not any("=" in text for text in texts):
        if len(texts) != len(IN_ORDER):
            raise ValueError(
                f"--loss_weights takes name=number of {', '.join(TERMS)}, or three numbers,"
                f" {' '.join(IN_ORDER)}; got {len(texts)}"
            )
        texts = [f"{name}={number}" for name, number in zip(IN_ORDER, texts, strict=True)]
    for text in texts:
        name, _, number = text.partition("=")
        if name not in TERMS:
            raise ValueError(f"--loss_weights {text}: expected name=number, with a name of {', '.join(TERMS)}")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(f"--loss_weights {text}: {number!r} is not a number") from None
    return weights


@dataclass(frozen=True)
class Outcome:
    """The rewards of a batch, the terms that its objective computes from them by name, and their weighted sum."""

    rewards: Rewards
    terms: dict[str, Tensor]  # each (B,)
    loss_B: Tensor


def compare(
    objective: Objective, policy_logps_BA: Tensor, reference_logps_BA: Tensor, lengths_BA: Tensor | None = None
) -> Outcome:
    """Rewards and losses of a batch from the log-probabilities of its completions, in float32 or wider.

    ``lengths_BA``, their tokens, are for terms that are means over tokens.
    """
    import torch

    difference_BA = policy_logps_BA - reference_logps_BA
    rewards_BA = objective.beta * (difference_BA if difference_BA.dtype == torch.float64 else difference_BA.float())
    rewards = Rewards(
        policy_logps_BA,
        reference_logps_BA,
        rewards_BA,
        lengths_BA,
        objective.beta,
        objective.uses_rejected,
        objective.anchor_delta,
        objective.label_smoothing,
        objective.uses_rejected_on_all,
    )
    terms = {name: term.loss(rewards) for name, term in objective.terms.items()}
    loss_B = torch.zeros_like(rewards_BA[:, 0])
    for name, term_B in terms.items():
        loss_B = loss_B + objective.weights[name] * term_B
    return Outcome(rewards, terms, loss_B)


def _above(difference: Tensor, rounding: Tensor) -> Tensor:
    """1 where a difference of rewards is above 0, 0 where below, one half within rounding, as it is before step 1."""
    import torch

    return 0.5 + 0.5 * torch.where(difference.abs() <= rounding, 0.0, difference.sign())


def metrics(objective: Objective, outcome: Outcome, rounding: float = FLOAT32_ROUNDING) -> dict[str, Tensor]:
    """What is logged, one value per record and metric, so that any averaging over records is exact. Each (B,).

    The keys depend on the objective and the list's length alone, never on the values. Of rewards that are equal within
    ``rounding``, relative to the sums they are made of, neither is above the other: such a pair counts one half.
    """
    import torch

    rewards = outcome.rewards
    chosen_BL = rewards.chosen_BL
    values = {f"loss_{name}": term_B for name, term_B in outcome.terms.items()}
    sums_BA = torch.maximum(rewards.policy_logps_BA.abs(), rewards.reference_logps_BA.abs())
    rounding_B = objective.beta * rounding * sums_BA.amax(dim=1)
    values["rewards/chosen"] = rewards.chosen_B
    values["logps/chosen"] = rewards.policy_logps_BA[:, 0]
    values["logps/reference_chosen"] = rewards.reference_logps_BA[:, 0]
    if rewards.with_rejected:
        values["rewards/rejected"] = rewards.rejected_B
        values["rewards/accuracies"] = _above(rewards.chosen_B - rewards.rejected_B, rounding_B)
        values["rewards/margins"] = rewards.chosen_B - rewards.rejected_B
        values["logps/rejected"] = rewards.policy_logps_BA[:, 1]
        values["logps/reference_rejected"] = rewards.reference_logps_BA[:, 1]
    if objective.uses_list:
        length = chosen_BL.shape[1]
        for level in range(length):
            values[f"rewards_image/level_{level + 1}"] = chosen_BL[:, level]
        difference_BLL = chosen_BL[:, :, None] - chosen_BL[:, None, :]
        above_BLL = _above(difference_BLL, rounding_B[:, None, None])
        first, second = torch.triu_indices(length, length, offset=1, device=chosen_BL.device)
        pairs_BP = above_BLL[:, first, second]
        values["list/adjacent_accuracy"] = above_BLL.diagonal(offset=1, dim1=1, dim2=2).mean(dim=1)
        # The first image's share where several are equally far ahead.
        first_is_not_below = (above_BLL[:, 0] > 0).all(dim=1)
        values["list/top1"] = first_is_not_below / (above_BLL[:, 0] == 0.5).sum(dim=1)
        values["list/kendall_tau"] = (2 * pairs_BP - 1).mean(dim=1)
    return {name: value.detach() for name, value in values.items()}
