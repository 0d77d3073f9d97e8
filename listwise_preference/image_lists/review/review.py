"""A page to look at ranked lists and reject the bad ones; it opens from disk, without a server or network.

``write_review`` fills a folder with the page, ``lists.js`` (the records) and ``thumbs/`` (per record one JPEG of some
50 KB, its images side by side). Decisions stay in the browser; the page's download, ``rejected.json``, is
{"rejected": [id, ...]} with the ids as the pairs have them. Excluded records start as rejected, so that a later
download leaves out what an earlier one did.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from listwise_preference.data.pairs import Pair
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images, transposed_size
from listwise_preference.errors import ImageError
from listwise_preference.files import Record
from listwise_preference.pages.page import Page, javascript, link
from listwise_preference.pages.thumbnails import write_thumbnails

_PAGE = Page(__package__, "review", "Ranked image lists", "lists.js", "REVIEW")
# About the longer side of one small image.
_SMALL = 256
_QUALITY = 75


@dataclass(frozen=True)
class ReviewItem:
    """One record as the page shows it.

    ``image`` is None where no path is known, ``box`` where nothing is masked. ``phrase`` names the masked
    object, ``surface`` is the same as the text has it ("people" for "person"); both are marked in the texts.
    ``score`` is the detector's, ``reason`` says why there is an error.
    """

    pair: Pair
    image: Path | None
    box: Box | None
    phrase: str | None
    surface: str | None
    source: str
    score: float | None
    verdict: str
    reason: str | None = None


def check_review(folder: Path) -> None:
    """Refuse a folder that ``write_review`` would refuse; nothing is written.

    Raises:
        DataError: the folder holds something else.
    """
    _PAGE.check(folder)


def write_review(folder: Path, items: Sequence[ReviewItem], drawing: Drawing, title: str) -> Path:
    """Write the page and return its ``index.html``; an older page in the folder is replaced.

    The images are made small and the lists are drawn on them by ``ranked_images``. An image that cannot be read or does
    not hold its box is shown as a placeholder with the reason.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    _PAGE.start(folder)
    drawn = write_thumbnails(
        folder, items, lambda item, file: _draw_strip(item, drawing, file), desc="Drawing lists", unit=" lists"
    )
    records = [_record(folder, *row) for row in zip(items, drawn, strict=True)]
    # The browser keeps decisions under this key: lists that differ in anything that is judged do not share them; the
    # same lists in another folder do, and so do they after some are excluded.
    content = [repr(drawing), *(record | {"link": None, "verdict": None} for record in records)]
    key = hashlib.sha256(javascript(content).encode()).hexdigest()[:16]
    return _PAGE.finish(folder, {"key": key, "title": title, "records": records})


def _draw_strip(item: ReviewItem, drawing: Drawing, file: Path) -> Record:
    """Write a record's small images side by side; returns their number, the pixels of each, and the box's share.

    Raises:
        ImageError: there is no image, or it cannot be read.
        ValueError: the box does not lie inside the image.
    """
    if item.image is None:
        raise ImageError("no image is known for this record")
    width, height = transposed_size(item.image)
    if item.box is not None and not item.box.fits(width, height):
        raise ValueError(f"{item.box} does not lie inside an image of {width} x {height} pixels")
    share = None if item.box is None else item.box.width * item.box.height / (width * height)
    # Made small first and drawn then: what is drawn scales with the image, and L large copies would take twice as long.
    small = _small_size(width, height)
    image = open_image(item.image, least=min(small)).resize(small, Image.Resampling.LANCZOS, reducing_gap=3)
    images = (image,) if item.box is None else ranked_images(image, _scaled(item.box, (width, height), small), drawing)
    strip = Image.new("RGB", (small[0] * len(images), small[1]))
    for level, drawn in enumerate(images):
        strip.paste(drawn, (level * small[0], 0))
    # Colour at full resolution, or the thin red outline turns brown.
    strip.save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    return {"images": len(images), "width": small[0], "height": small[1], "share": share}


def _scaled(box: Box, size: tuple[int, int], small: tuple[int, int]) -> Box:
    """The box on the image made small, of a pixel at least."""
    across, down = small[0] / size[0], small[1] / size[1]
    left, top = min(round(box.left * across), small[0] - 1), min(round(box.top * down), small[1] - 1)
    return Box(left, top, max(left + 1, round(box.right * across)), max(top + 1, round(box.bottom * down)))


def _small_size(width: int, height: int) -> tuple[int, int]:
    """The same shape with a longer side of about _SMALL and a width of whole JPEG blocks, so that images side by
    side do not run into each other. Very long images are shown less long than they are."""
    small_width = max(8, round(_SMALL * width / max(width, height) / 8) * 8)
    return small_width, min(max(1, round(height * small_width / width)), 2 * _SMALL)


def _record(folder: Path, item: ReviewItem, drawn: Record) -> Record:
    pair = item.pair
    finite = item.score is not None and math.isfinite(item.score)
    record = {
        # As JSON text: the page puts it back as it is, also where a number has more digits than JavaScript's.
        "id": json.dumps(pair.id),
        "path": pair.img_path,
        "link": None if item.image is None else link(folder, item.image),
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "phrase": item.phrase,
        "surface": item.surface,
        "source": item.source,
        "score": item.score if finite else None,
        "verdict": item.verdict,
        "reason": item.reason,
    }
    if "failure" in drawn:
        return record | drawn
    strip = {name: drawn[name] for name in ("file", "images", "width", "height")}
    return record | {"strip": strip, "share": drawn["share"]}
