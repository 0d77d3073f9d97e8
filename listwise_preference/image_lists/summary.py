"""Counts of verdicts, sources and phrases for summary.json, and a histogram of box shares as an image."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from listwise_preference.files import Record
from listwise_preference.pages.charts import chart

VERDICTS = ("verified", "unverified", "no_object", "not_hideable", "error", "excluded")
_TOP_PHRASES = 50
_BINS = 20


def summarize(lines: Sequence[Record]) -> dict[str, Any]:
    """Counts over all lines of an image lists file.

    Of phrases and sources only lines with a box to train on count. ``no_text_phrase_found`` are records whose texts
    name objects of which the detector found none, ``some_text_phrase_not_found`` those where it missed at least one;
    both look at the objects that were tried, and those behind the one that was taken were not. ``any_object_taken``
    counts the records that were given an object that no text names, and those of them whose texts name objects that
    the detector did not find: it may know them by another name. ``boxes_dropped`` counts boxes of objects that were
    tried.
    """
    any_object = [_not_found(line) for line in lines if line["source"] == "detected"]
    example = next((f"record {name}: {', '.join(words)}" for name, words in any_object if words), None)
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
        "any_object_taken": {
            "records": len(any_object),
            "words_not_found": sum(bool(words) for _, words in any_object),
            "example": example,
        },
        "phrases_not_found": dict(
            Counter(phrase for line in lines for phrase in _not_found(line)[1]).most_common(_TOP_PHRASES)
        ),
        "boxes_dropped": {
            name: sum(tried.get(name, 0) for line in lines for tried in line["tried"])
            for name in ("too_small", "too_large")
        },
        "box_share": {"bins": _BINS, "counts": _histogram(_box_shares(lines)), "median": _median(_box_shares(lines))},
    }


def draw_histogram(lines: Sequence[Record], file: Path) -> None:
    """A PNG of how many boxes have which share of their image, in steps of 5 %; raises DataError."""
    shares = _box_shares(lines)
    with chart(file, size=(4.8, 2.4)) as (axis,):
        steps = [100 * (place + 0.5) / _BINS for place in range(_BINS)]
        axis.bar(steps, _histogram(shares), width=0.9 * 100 / _BINS)
        axis.set(title=f"Box share of the image, {len(shares):,} boxes", xlabel="share masked at the last level, %")
        axis.set_xlim(0, 100)
        axis.set_ylim(bottom=0)
        axis.set_xticks(range(0, 101, 10))
        axis.locator_params("y", integer=True, min_n_ticks=1)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(axis="x", visible=False)


def _not_found(line: Record) -> tuple[Any, list[str]]:
    """A record's id and the objects that its texts name and the detector did not find."""
    tried = [one for one in line["tried"] if one["source"] != "detected"]
    return line["id"], [one["phrase"] for one in tried if one["outcome"] == "not_found"]


def _box_shares(lines: Iterable[Record]) -> list[float]:
    return sorted(line["box_share"] for line in lines if line["verdict"] in ("verified", "unverified"))


def _histogram(shares: Sequence[float]) -> list[int]:
    """Boxes per bin; a share on the border between two bins belongs to the upper one, 1 to the last."""
    counts = Counter(min(int(share * _BINS), _BINS - 1) for share in shares)
    return [counts[index] for index in range(_BINS)]


def _median(ordered: Sequence[float]) -> float | None:
    if not ordered:
        return None
    return round((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2, 4)


def _shares(values: Iterable[str], total: int, order: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    counts = Counter(values)
    names = [*(name for name in order if name in counts), *sorted(set(counts) - set(order))]
    return {name: {"records": counts[name], "share": round(counts[name] / total, 4)} for name in names}
