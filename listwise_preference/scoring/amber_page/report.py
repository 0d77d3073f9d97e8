"""A page of AMBER responses with the words that count marked; it opens from disk, without a server or network.

``start_report`` makes the folder, so that a wrong one is told before the scoring. ``write_report`` fills it with the
scorer's own verdicts (``answers.js``) and, where the images are given, ``thumbs/``: one small JPEG per image.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import ImageError
from listwise_preference.files import Record, below
from listwise_preference.pages.page import Page, link
from listwise_preference.pages.thumbnails import write_thumbnails
from listwise_preference.scoring.amber_rules import DescriptionScore, Judged, NounVerdict
from listwise_preference.scoring.result import Result

_PAGE = Page(__package__, "amber", "AMBER responses", "answers.js", "REPORT")
# The longer side of a thumbnail; the page shows it at half of that, which is sharp on dense screens.
_SMALL = 480
_QUALITY = 80


def start_report(folder: Path) -> None:
    """Make the folder with the page in it, still without responses.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    _PAGE.start(folder)


def write_report(
    folder: Path, judged: Iterable[Judged], result: Result, notes: Sequence[str], image_root: Path | None
) -> Path:
    """Write the responses, image by image in the order of the file, and return the page's ``index.html``.

    An image that is missing or cannot be read is shown as a placeholder with the reason.
    """
    by_image: dict[str, list[Judged]] = {}
    for one in judged:
        by_image.setdefault(one.image, []).append(one)
    images: list[Record] = [
        {"name": name, "answers": [_answer(one) for one in answers]} for name, answers in by_image.items()
    ]
    if image_root is not None:
        drawn = write_thumbnails(
            folder,
            [answers[0].question.image for answers in by_image.values()],
            lambda name, file: _draw_small(folder, image_root, name, file),
            desc="Small images",
            unit=" images",
        )
        images = [image | {"image": small} for image, small in zip(images, drawn, strict=True)]
    return _PAGE.finish(folder, {"result": result, "notes": list(notes), "images": images})


def _answer(one: Judged) -> Record:
    record: Record = {"id": one.answer.id, "kind": one.question.kind, "question": one.question.query}
    if one.description is not None:
        return record | _description(one, one.description)
    if one.right:
        error = None
    elif one.unreadable:
        error = "unreadable"
    else:
        error = "false_yes" if one.read == "Yes" else "false_no"
    return record | {
        "expected": str(one.question.truth).capitalize(),
        "answer": one.answer.response,
        "read": one.read,
        "errors": [error] if error else [],
    }


def _description(one: Judged, score: DescriptionScore) -> Record:
    truth, likely = one.question.truth, one.question.hallu
    # The text as a list of plain parts and of marked words, so that the page need not count characters.
    parts: list[Any] = []
    words: list[Record] = []
    end = 0
    for verdict in score.verdicts:
        noun = one.nouns[verdict.position]
        parts.append(one.read[end : noun.start])
        end = noun.end
        words.append(
            {
                "word": one.read[noun.start : noun.end],
                "noun": verdict.noun,
                "verdict": _verdict(verdict),
                "truth": None if verdict.truth is None else truth[verdict.truth],
                "likely": [likely[place] for place in verdict.hallu],
            }
        )
        parts.append(words[-1])
    parts.append(one.read[end:])
    missing = [name for place, name in enumerate(truth) if place not in score.covered]
    found = {"hallucinated": score.hallucinated, "cognition": score.expected, "missing": missing}
    return {
        "parts": [part for part in parts if part],
        "answer": one.answer.response,
        "read": one.read,
        "covered": [truth[place] for place in sorted(score.covered)],
        "missing": missing,
        "objects": len(truth),
        "likely": list(likely),
        "fallen_for": [likely[place] for place in sorted(score.expected)],
        "hallucinated": len(score.hallucinated),
        "nouns": len(score.nouns),
        "errors": [name for name, places in found.items() if places],
    }


def _verdict(verdict: NounVerdict) -> str:
    if verdict.safe:
        return "safe"
    return "hallucinated" if verdict.hallucinated else "true"


def _draw_small(folder: Path, image_root: Path, name: str | None, file: Path) -> Record:
    """Write an image's small copy; returns its size and the address of the image. Raises ImageError."""
    if name is None:
        raise ImageError("query/query_all.json, which names the image, is missing under --data")
    path = below(image_root, name)
    if path is None:
        raise ImageError(f"{name} leads out of the folder of images")
    try:
        image = open_image(path)
    except ImageError as error:
        # Without the folder: the page may be shown to others.
        raise ImageError(str(error).replace(str(path), name)) from None
    image.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS, reducing_gap=3)
    image.save(file, "JPEG", quality=_QUALITY)
    return {"link": link(folder, path), "width": image.width, "height": image.height}
