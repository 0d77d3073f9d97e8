"""Is a layout of rows exact for a model? One record of the user's data, scored one completion at a time and in rows.

A model type that no test knows may read a row in another way than rows were made for: linear attention and
convolutions run on from row to row, an image may attend both ways, a mask may be replaced. That changes
log-probabilities by tenths of a nat to several nats and raises no error, so it is looked at before training.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import ImageOps
from torch import Tensor

from listwise_preference.errors import ModelError
from listwise_preference.training.batch import Collator, Example

# Nats for each square root of a completion's tokens: rounding adds up at random.
_ROUNDING = {torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
# In half precision that would hide an error, so that ragged rows may differ by no more than this share of it, or by
# three times what unpacked rows do: a model that is refused them by chance only trains more slowly.
_SHARE, _TIMES = 0.02, 3

# Log-probabilities of these examples' completions in their order: (B, A).
Score = Callable[[Sequence[Example], Collator], Tensor]


@dataclass(frozen=True)
class RowProof:
    """What was found, in nats.

    Attributes:
        unpacked: largest difference of unpacked rows from one completion at a time.
        bound: what that may be.
        ragged: the same of ragged rows; a text says why they could not be scored, an empty one that nobody tried.
        ragged_bound: what that may be.
    """

    unpacked: float
    bound: float
    ragged: float | str
    ragged_bound: float

    @property
    def ragged_rows(self) -> bool:
        """Whether ragged rows are exact."""
        return not isinstance(self.ragged, str) and self.ragged <= self.ragged_bound

    def __str__(self) -> str:
        """One line of the log."""
        alone = "one completion at a time"
        if self.ragged_rows:
            return f"rows: ragged, {self.ragged:.1e} nats from {alone} on the first record"
        unpacked = f"rows: unpacked, {self.unpacked:.1e} nats from {alone} on the first record"
        if self.ragged == "":
            return unpacked
        why = (
            f"ragged ones cannot be scored ({self.ragged})"
            if isinstance(self.ragged, str)
            else f"ragged ones are {self.ragged:.2g} nats from it (up to {self.ragged_bound:.1g} would be rounding)"
        )
        return f"{unpacked}; {why}"


def prove_rows(
    example: Example, collator: Collator, score: Score, ragged: Callable[[], None] | None, dtype: torch.dtype
) -> RowProof:
    """Score a record in all ways.

    Args:
        example: the record.
        collator: of the run; its layout does not matter.
        score: by the model, in its present layout.
        ragged: gives the model ragged attention, which it has when this returns, exact or not; ``None`` asks for
            unpacked rows alone.
        dtype: that the model computes in.

    Raises:
        ModelError: the image does not change a value, or no layout is exact.
    """
    one = dataclasses.replace(collator, ragged=False, with_rejected=False, rejected_on_all=False)

    def alone(image_index: int, ids: list[int], *, inverted: bool = False) -> float:
        image = example.images[image_index]
        images = (ImageOps.invert(image) if inverted else image,)
        return score([dataclasses.replace(example, images=images, chosen_ids=ids)], one).item()

    completions = [(0, example.chosen_ids)]
    if collator.with_rejected:
        completions.append((0, example.rejected_ids))
    completions += [(level, example.chosen_ids) for level in range(1, len(example.images))]
    if collator.rejected_on_all:
        completions += [(level, example.rejected_ids) for level in range(1, len(example.images))]
    alone_A = torch.tensor([alone(level, ids) for level, ids in completions], dtype=torch.float64)
    if alone(0, example.chosen_ids, inverted=True) == alone_A[0].item():
        raise ModelError("the model does not look at the image: with its colours inverted the response is as probable")

    def difference(layout: Collator) -> float:
        return (score([example], layout)[0].double().cpu() - alone_A).abs().max().item()

    root = math.sqrt(max(len(ids) for _, ids in completions))
    bound = _ROUNDING[dtype] * root
    unpacked = difference(dataclasses.replace(collator, ragged=False))
    ragged_bound = bound if dtype == torch.float32 else max(_SHARE * bound, _TIMES * min(unpacked, bound))
    found: float | str
    try:
        if ragged is None:
            found = ""
        else:
            ragged()
            found = difference(dataclasses.replace(collator, ragged=True))
    except Exception as error:  # whatever a model says to rows that it does not know
        found = " ".join(str(error).split())[:120] or type(error).__name__
    proof = RowProof(unpacked, bound, found, ragged_bound)
    if not proof.ragged_rows and not unpacked <= bound:
        raise ModelError(
            f"no rows are exact for this model: unpacked ones are {unpacked:.3g} nats from one completion at a time"
            f" (up to {bound:.1g} would be rounding), ragged ones {found if isinstance(found, str) else f'{found:.3g}'}"
        )
    return proof
