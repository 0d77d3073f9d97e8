"""What a detector is asked and what it answers, how it is chosen and loaded, and which of its boxes is taken."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from listwise_preference.data.pairs import Entry
from listwise_preference.data.ranked_images import Box
from listwise_preference.files import Record


@dataclass(frozen=True)
class Query:
    """Objects to look for in one image; without phrases: whatever the detector can name.

    ``img_path`` is the image's path as the pairs have it, ``image`` is EXIF-transposed.
    """

    img_path: str
    image: Image.Image
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """One object: its phrase as the query had it (or the detector's own name) and its box, cut to the image.

    ``score`` is the detector's confidence, 0 to 1, or None where it has none.
    """

    phrase: str
    box: Box
    score: float | None


@dataclass(frozen=True)
class Failed:
    """Why a query has no answer."""

    reason: str


class Detector(Protocol):
    """``detect(prepare(queries))`` answers each query; ``prepare`` may run on another thread than ``detect``."""

    def prepare(self, queries: Sequence[Query]) -> Any:
        """What ``detect`` wants of these queries."""
        ...

    def detect(self, prepared: Any) -> list[list[Found] | Failed]:
        """Per query the objects found, in no order."""
        ...


@dataclass(frozen=True)
class DetectorEntry:
    """A detector in the table ``DETECTORS``, by the name that ``--detector`` has for it; importing it loads no model.

    Attributes:
        help: what finds the boxes, in a few words.
        load: the detector, from the values of ``options``, the records that it is for and --dtype.
        options: its own options, name -> settings of ``add_argument``. Those without a default must be given. All
            decide the lists: a :class:`~pathlib.Path` is a file that is read and counts by its content.
        summary: what summary.json says of the detector's own input, given the detector.
        lost: what of that input is not used, for the end of the run and for --strict; empty when all is.
        model: the option that names its checkpoint. It is loaded after all checks; a detector without one before them.
        knows: given the detector, an image's path and a phrase, whether nothing found means that nothing is there.
            None: always.
    """

    help: str
    load: Callable[[Mapping[str, Any], Sequence[Entry], str], Detector]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model: str | None = None
    summary: Callable[[Any], Record] | None = None
    knows: Callable[[Any, str, str], bool] | None = None
    lost: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Choice:
    """The box taken of those found for a phrase, and how many were dropped for their size."""

    found: Found | None
    too_small: int
    too_large: int


def cut_box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Box | None:
    """Edges in pixels, rounded half up to whole ones and cut to an image of ``size`` (width, height).

    None when no pixel is left inside, or an edge is no number.
    """
    edges = (left, top, right, bottom)
    if not all(map(math.isfinite, edges)):
        return None
    left, top, right, bottom = (math.floor(edge + 0.5) for edge in edges)
    box = Box(max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))
    return box if box.fits(*size) else None


def box_share(box: Box, size: tuple[int, int]) -> float:
    """The box's part of an image of ``size`` (width, height), 0 to 1."""
    return box.width * box.height / (size[0] * size[1])


def choose(found: Sequence[Found], size: tuple[int, int], min_share: float, max_share: float) -> Choice:
    """The box of highest score among those whose share of the image is in range; of equal scores the larger.

    Of boxes that are equal in both, the one further left, then further up, so that the order found in does not count.
    """
    shares = [box_share(one.box, size) for one in found]
    in_range = [one for one, share in zip(found, shares, strict=True) if min_share <= share <= max_share]

    def rank(one: Found) -> tuple[float, int, int, int]:
        box = one.box
        return one.score if one.score is not None else 0.0, box.width * box.height, -box.left, -box.top

    return Choice(
        found=max(in_range, key=rank, default=None),
        too_small=sum(share < min_share for share in shares),
        too_large=sum(share > max_share for share in shares),
    )
