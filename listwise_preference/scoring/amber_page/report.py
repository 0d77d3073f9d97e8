"""A page of AMBER answers with the words that count marked; it opens from disk, without a server or network.

``start_report`` makes the folder, so that a wrong one is told before the scoring. ``write_report`` fills it with the
scorer's own verdicts (``answers.js``) and, where the images are given, ``thumbs/``: one small JPEG per image.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import ImageError
from listwise_preference.files import Record
from listwise_preference.pages.page import finish_page, link, start_page
from listwise_preference.scoring.amber import DescriptionScore, Judged, NounVerdict
from listwise_preference.scoring.result import Result

_DATA_FILE = "answers.js"
# The longer side of a thumbnail; the page shows it at half of that, which is sharp on dense screens.
_SMALL = 480
_QUALITY = 80
_THREADS = 8


def start_report(folder: Path) -> None:
    """Make the folder with the page in it, still without answers.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    start_page(folder, resources.files(__package__), _DATA_FILE)


def write_report(
    folder: Path, judged: Iterable[Judged], result: Result, notes: Sequence[str], image_root: Path | None
) -> Path:
    """Write the answers, image by image in the order of the file, and return the page's ``index.html``.

    An image that is missing or cannot be read is shown as a placeholder with the reason.
    """
    by_image: dict[str, list[Judged]] = {}
    for one in judged:
        by_image.setdefault(one.image, []).append(one)
    images: list[Record] = [
        {"name": name, "answers": [_answer(one) for one in answers]} for name, answers in by_image.items()
    ]
    thumbs = folder / "thumbs"
    for old in thumbs.glob("*.jpg"):
        old.unlink()
    if image_root is not None:
        thumbs.mkdir(exist_ok=True)
        names = [answers[0].question.image for answers in by_image.values()]
        files = [thumbs / f"{number:06}.jpg" for number in range(1, len(names) + 1)]
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            made = pool.map(lambda name, file: _small_image(folder, image_root, name, file), names, files)
            shown = tqdm(made, total=len(names), desc="Small images", unit=" images", disable=None)
            images = [image | {"image": small} for image, small in zip(images, shown, strict=True)]
    data = {"result": result, "notes": list(notes), "images": images}
    return finish_page(folder, _DATA_FILE, "REPORT", data)


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
    truth, lures = one.question.truth, one.question.hallu
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
                "lures": [lures[place] for place in verdict.lures],
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
        "lures": list(lures),
        "fallen_for": [lures[place] for place in sorted(score.expected)],
        "hallucinated": len(score.hallucinated),
        "nouns": len(score.nouns),
        "errors": [name for name, places in found.items() if places],
    }


def _verdict(verdict: NounVerdict) -> str:
    if verdict.safe:
        return "safe"
    return "hallucinated" if verdict.hallucinated else "true"


def _small_image(folder: Path, image_root: Path, name: str | None, file: Path) -> Record:
    if name is None:
        return {"failure": "query/query_all.json, which names the image, is missing under --data"}
    path = image_root / name
    try:
        image = open_image(path)
    except ImageError as error:
        # Without the folder: the page may be shown to others.
        return {"failure": str(error).replace(str(path), name)}
    image.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS, reducing_gap=3)
    image.save(file, "JPEG", quality=_QUALITY)
    return {
        "file": f"thumbs/{file.name}",
        "link": link(folder, path),
        "width": image.width,
        "height": image.height,
    }
