"""A page to look at ranked lists and reject the bad ones; it opens from disk, without a server or network.

``write_review`` fills a folder with the page, ``lists.js`` (the records) and
``thumbs/`` (per record one JPEG of some 50 KB, its images side by side). Decisions stay in the browser; the page's
download, ``rejected.json``, is {"rejected": [id, ...]} with the ids as the pairs have them. Excluded records start as
rejected, so that a later download leaves out what an earlier one did.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from listwise_preference.data.pairs import Pair
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.errors import ImageError
from listwise_preference.pages.page import check_page, finish_page, javascript, link, start_page

# About the longer side of one small image.
_SMALL = 256
# Longer sides are brought below this before the list is drawn, which bounds the memory of the L copies.
_DRAWN = 1600
_QUALITY = 75
_THREADS = 8


@dataclass(frozen=True)
class ReviewItem:
    """One record as the page shows it.

    ``image`` is None where no path is known, ``box`` where nothing is hidden. ``phrase`` names the hidden
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


@dataclass(frozen=True)
class _Strip:
    """The small images of one record: number, pixels of each, and the box's share of the image, 0..1."""

    images: int
    width: int
    height: int
    share: float | None


@dataclass(frozen=True)
class _Failure:
    """Why a record has no small images."""

    reason: str


def check_review(folder: Path) -> None:
    """Refuse a folder that ``write_review`` would refuse; nothing is written.

    Raises:
        DataError: the folder holds something else.
    """
    check_page(folder, resources.files(__package__))


def write_review(folder: Path, items: Sequence[ReviewItem], drawing: Drawing, title: str) -> Path:
    """Write the page and return its ``index.html``; an older page in the folder is replaced.

    The lists are drawn by ``ranked_images`` and then made small. An image that cannot be read or does not hold
    its box is shown as a placeholder with the reason.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    thumbs = folder / "thumbs"
    start_page(folder, resources.files(__package__), "lists.js")
    thumbs.mkdir(exist_ok=True)

    files = [thumbs / f"{number:06}.jpg" for number in range(1, len(items) + 1)]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        drawn = pool.map(lambda item, file: _write_strip(item, drawing, file), items, files)
        strips = list(tqdm(drawn, total=len(items), desc="Drawing lists", unit=" lists", disable=None))
    current = {file for file, strip in zip(files, strips, strict=True) if isinstance(strip, _Strip)}
    for file in set(thumbs.glob("*.jpg")) - current:
        file.unlink()

    records = [_record(folder, *row) for row in zip(items, files, strips, strict=True)]
    # The browser keeps decisions under this key: lists that differ in anything that is judged do not share them; the
    # same lists in another folder do, and so do they after some are excluded.
    content = [repr(drawing), *(record | {"link": None, "verdict": None} for record in records)]
    key = hashlib.sha256(javascript(content).encode()).hexdigest()[:16]
    return finish_page(folder, "lists.js", "REVIEW", {"key": key, "title": title, "records": records})


def _write_strip(item: ReviewItem, drawing: Drawing, file: Path) -> _Strip | _Failure:
    if item.image is None:
        return _Failure("no image is known for this record")
    share = None
    try:
        image = open_image(item.image)
        images: tuple[Image.Image, ...] = (image,)
        if item.box is not None:
            share = item.box.width * item.box.height / (image.width * image.height)
            images = ranked_images(*_reduced(image, item.box), drawing)
    except (ImageError, ValueError) as error:
        return _Failure(str(error))
    width, height = _small_size(*images[0].size)
    strip = Image.new("RGB", (width * len(images), height))
    for level, drawn in enumerate(images):
        strip.paste(drawn.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3), (level * width, 0))
    # Colour at full resolution, or the thin red outline turns brown.
    strip.save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    return _Strip(len(images), width, height, share)


def _reduced(image: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """Both at 1/n of their size, rounded outwards; n is the smallest whole number that reaches _DRAWN.

    Raises:
        ValueError: the box does not lie inside the image.
    """
    n = math.ceil(max(image.size) / _DRAWN)
    if n == 1 or not box.fits(*image.size):  # a box that does not fit is for ranked_images to refuse
        return image, box
    return image.reduce(n), Box(box.left // n, box.top // n, -(-box.right // n), -(-box.bottom // n))


def _small_size(width: int, height: int) -> tuple[int, int]:
    """The same shape with a longer side of about _SMALL and a width of whole JPEG blocks, so that images side by
    side do not run into each other. Very long images are shown less long than they are."""
    small_width = max(8, round(_SMALL * width / max(width, height) / 8) * 8)
    return small_width, min(max(1, round(height * small_width / width)), 2 * _SMALL)


def _record(folder: Path, item: ReviewItem, file: Path, strip: _Strip | _Failure) -> dict[str, Any]:
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
    if isinstance(strip, _Failure):
        return record | {"failure": strip.reason}
    shown = {"file": f"thumbs/{file.name}", "images": strip.images, "width": strip.width, "height": strip.height}
    return record | {"strip": shown, "share": strip.share}
