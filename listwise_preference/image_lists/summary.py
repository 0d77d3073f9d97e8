"""What became of the records: counts for summary.json, and a histogram of box shares as an image."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from listwise_preference.image_lists.store import Line

VERDICTS = ("verified", "unverified", "no_object", "not_hideable", "error", "excluded")
_TOP_PHRASES = 50
_BINS = 20


def summarize(lines: Sequence[Line]) -> dict[str, Any]:
    """Counts over all lines of an image lists file.

    Of phrases and sources only lines with a box to train on count. ``no_text_phrase_found`` are records whose texts
    name objects of which the detector found none, ``some_text_phrase_not_found`` those where it missed at least one;
    both look at the objects that were tried, and those behind the one that was taken were not. ``boxes_dropped`` counts
    boxes of objects that were tried.
    """
    usable = [line for line in lines if line["verdict"] in ("verified", "unverified")]
    from_text = [
        [tried for tried in line["tried"] if tried["source"] != "detected"]
        for line in lines
        if line["verdict"] != "error"
    ]
    missed = [[tried["outcome"] == "not_found" for tried in tries] for tries in from_text if tries]
    return {
        "records": len(lines),
        "with_box": len(usable),
        "verdicts": _shares((line["verdict"] for line in lines), len(lines), VERDICTS),
        "sources": _shares((line["source"] for line in usable), len(usable)),
        "phrases": dict(Counter(line["phrase"] for line in usable).most_common(_TOP_PHRASES)),
        "different_phrases": len({line["phrase"] for line in usable}),
        "no_text_phrase_found": sum(map(all, missed)),
        "some_text_phrase_not_found": sum(map(any, missed)),
        "boxes_dropped": {
            name: sum(tried.get(name, 0) for line in lines for tried in line["tried"])
            for name in ("too_small", "too_large")
        },
        "box_share": {"bins": _BINS, "counts": _histogram(_box_shares(lines)), "median": _median(_box_shares(lines))},
    }


def draw_histogram(lines: Sequence[Line], file: Path) -> None:
    """A PNG of how many boxes have which share of their image, in steps of 5 %."""
    shares = _box_shares(lines)
    counts = _histogram(shares)
    width, height, left, bottom, top = 960, 480, 70, 70, 60
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(16), ImageFont.load_default(20)
    ink, grid, bar = "#22303c", "#dfe5ea", "#3b78b5"
    plot_height, step = height - bottom - top, (width - left - 30) / _BINS
    highest = max(counts) or 1
    draw.text((left, 18), f"Box share of the image, {len(shares):,} boxes", ink, large)
    tick = _tick(highest)
    for value in range(0, highest + 1, tick):
        y = height - bottom - plot_height * value / highest
        draw.line((left, y, left + step * _BINS, y), grid)
        draw.text((left - 8, y), f"{value:,}", ink, small, anchor="rm")
    for index, count in enumerate(counts):
        x = left + step * index
        y = height - bottom - plot_height * count / highest
        if count:
            draw.rectangle((x + 1, y, x + step - 1, height - bottom), bar)
    draw.line((left, height - bottom, left + step * _BINS, height - bottom), ink)
    for percent in range(0, 101, 10):
        draw.text((left + step * _BINS * percent / 100, height - bottom + 8), f"{percent}", ink, small, anchor="mt")
    draw.text((left + step * _BINS / 2, height - 14), "share hidden at the last level, %", ink, small, anchor="ms")
    image.save(file)


def _box_shares(lines: Iterable[Line]) -> list[float]:
    return sorted(line["box_share"] for line in lines if line["verdict"] in ("verified", "unverified"))


def _histogram(shares: Sequence[float]) -> list[int]:
    """Boxes per bin; a share on the border between two bins belongs to the upper one, 1 to the last."""
    counts = Counter(min(int(share * _BINS), _BINS - 1) for share in shares)
    return [counts[index] for index in range(_BINS)]


def _median(ordered: Sequence[float]) -> float | None:
    if not ordered:
        return None
    return round((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2, 4)


def _tick(highest: int) -> int:
    """1, 2 or 5 times a power of ten: a step that gives at most six lines."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if highest <= 5 * step * power:
                return step * power
        power *= 10


def _shares(values: Iterable[str], total: int, order: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    counts = Counter(values)
    names = [*(name for name in order if name in counts), *sorted(set(counts) - set(order))]
    return {name: {"records": counts[name], "share": round(counts[name] / total, 4)} for name in names}
