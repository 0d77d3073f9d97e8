"""Make one pairs file of preferences in any form: python -m listwise_preference.data FILE... --to pairs.jsonl

Forms are told apart by content: TRL, LLaMA-Factory, ms-swift, RLHF-V, RLAIF-V, LLaVA, responses with ratings; files by
content too: JSON, JSON lines, CSV, TSV, parquet, a folder, a hub name. Images inside the records are written beside
the pairs. All that is left out is counted and said.
"""

import hashlib
import logging
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from listwise_preference.cli import Parser, count, run_program
from listwise_preference.data.forms import IMAGE_TOKEN, embedded, translate
from listwise_preference.data.pairs import check_differ, read_candidate
from listwise_preference.data.ranked_images import FORMATS, image_kind, open_image
from listwise_preference.data.sources import find_sources, iterate_rows
from listwise_preference.data.validation import BadRecord, Candidate, report
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record, Row, json_line, write_atomic
from listwise_preference.pages.page import Page, link
from listwise_preference.pages.thumbnails import write_thumbnails

logger = logging.getLogger("listwise_preference")

_PAGE = Page("listwise_preference.data", "preview", "Preference pairs", "pairs.js", "PAIRS")
_PRINTED = 3
_SMALL = 360  # longer side of the page's small images, pixels


@dataclass
class Converted:
    """The pairs of all sources, and what became of the rest.

    ``bad`` are the records without a pair; ``left_out`` counts what records with a pair have beyond it; ``renamed`` is
    how many ids were those of an earlier record and got a number behind them.
    """

    pairs: list[Record] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    records: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    bad: list[Candidate] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    renamed: int = 0
    unpacked: set[Path] = field(default_factory=set)


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """The options; exits with code 2 and one line on a wrong one."""
    parser = Parser(__doc__, prog="python -m listwise_preference.data")
    files = "what to read: files, names with * or ?, a folder, or the name of a data set on the hub"
    parser.add_argument("sources", nargs="+", metavar="FILE", help=files)
    add = parser.add_argument
    add("--to", type=Path, required=True, metavar="FILE", help="pairs to write, JSON lines")
    add("--image_root", type=Path, default=Path(), help="folder that image paths are relative to")
    several = "pairs made of an image and prompt with several responses; of rated ones best against worst first"
    add("--pairs_per_image", type=count, default=1, help=several)
    add("--split", default="train", help="of a data set that has several")
    add("--page", type=Path, metavar="DIR", help="folder of the page of the first pairs (default: beside --to)")
    add("--page_pairs", type=count, default=50, help="pairs on the page")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert as the command line says. Exits with code 2 and a message on an error that the user can correct."""
    options = parse(argv)
    run_program(lambda: _run(options))


def _run(options: Namespace) -> None:
    sources = find_sources(options.sources)
    to: Path = options.to
    page = options.page or to.with_name(f"{to.stem}_page")
    if to in sources:
        raise DataError(f"--to {to} is one of the files to read; name a new one")
    _PAGE.check(page)
    images = to.with_name(f"{to.stem}_images")
    converted = convert(sources, options.image_root, images, limit=options.pairs_per_image, split=options.split)
    named = ", ".join(map(str, options.sources))
    said = report(converted.bad, named, converted.records) if converted.bad else ""
    if not converted.pairs:
        raise DataError(f"{said}\n{named}: no pair in it".lstrip())
    write_atomic(to, "".join(map(json_line, converted.pairs)))
    if said:
        logger.warning(said)
    for line in _summary(converted):
        logger.info(line)
    print("\n".join(_first_pairs(converted.pairs)))
    index = write_page(page, converted, named, options.page_pairs)
    logger.info(f"wrote {len(converted.pairs):,} pairs: {to}; the first of them: {index}")
    root = "" if options.image_root == Path() else f" --image_root {options.image_root}"
    logger.info(f"train or make lists with --pairs {to}{root}")


def convert(
    sources: Sequence[Path | str], image_root: Path, images: Path, *, limit: int = 1, split: str = "train"
) -> Converted:
    """Read all sources.

    Args:
        image_root: the folder that image paths are relative to, in the sources and in the result.
        images: folder for images that are inside records; it must lie under ``image_root``. An image is written once.
        limit: pairs of one record.
        split: of sources that have several.

    Raises:
        DataError: a source that cannot be read at all, or images that would lie outside ``image_root``.
    """
    converted = Converted()
    seen: set[str] = set()
    if not image_root.is_dir():
        raise DataError(f"{image_root}: no such folder; set --image_root to the folder the images are under")
    for row in tqdm(_rows(sources, split, image_root), desc="Reading", unit=" records", disable=None):
        converted.records += 1
        whole = Candidate(row)
        try:
            if not isinstance(row.value, dict):
                raise BadRecord("not a record", f"{type(row.value).__name__} is not an object")
            translation = translate(_unpacked(row.value, images, image_root, converted), limit)
        except BadRecord as bad:
            whole.add(bad)
            converted.bad.append(whole)
            continue
        candidates = [_candidate(row, pair, image_root) for pair in translation.pairs]
        if problems := [problem for one in candidates for problem in one.problems]:
            whole.problems += tuple(dict.fromkeys(problems))
        good = [one for one in candidates if not one.problems]
        if not good:
            converted.bad.append(whole)
            continue
        converted.forms[translation.form] += 1
        converted.left_out += translation.left_out
        for number, candidate in enumerate(good, start=1):
            _add(converted, candidate, number, seen)
    return converted


def _rows(sources: Sequence[Path | str], split: str, image_root: Path) -> Iterator[Row]:
    """The records of all sources; one without an id is numbered over all of them."""
    number = 0
    for source in sources:
        metadata = source.parent if isinstance(source, Path) and source.stem == "metadata" else None
        for row in iterate_rows(source, split):
            number += 1
            value = row.value
            if metadata and isinstance(value, dict) and isinstance(name := value.get("file_name"), str):
                # Of an image folder, whose metadata names images from where it lies itself.
                value = value | {"file_name": os.path.relpath(metadata / name, image_root)}
            yield replace(row, number=number, value=value)


def _candidate(row: Row, pair: Record, image_root: Path) -> Candidate:
    candidate = Candidate(replace(row, value=pair))
    read_candidate(candidate, image_root, (IMAGE_TOKEN,))
    check_differ([candidate])
    if candidate.path is not None and not os.path.isfile(candidate.path):  # noqa: PTH113 - which takes any name
        candidate.add(BadRecord("image missing", f"no image {candidate.path}"))
    return candidate


def _add(converted: Converted, candidate: Candidate, number: int, seen: set[str]) -> None:
    """``number``, from 1, counts the pairs of a record; from the second on it stands behind the id."""
    assert candidate.id is not None and candidate.texts is not None and candidate.path is not None
    own = new = candidate.id if number == 1 else f"{candidate.id}-{number}"
    while str(new) in seen:
        number += 1
        new = f"{candidate.id}-{number}"
    converted.renamed += new != own
    seen.add(str(new))
    keys = ("id", "img_path", "prompt", "chosen", "rejected")
    converted.pairs.append(dict(zip(keys, (new, candidate.img_path, *candidate.texts), strict=True)))
    converted.paths.append(candidate.path)


def _unpacked(value: Record, images: Path, image_root: Path, converted: Converted) -> Record:
    """The record with paths for the images inside it, which are written: same bytes, same file."""
    changed: dict[str, Any] = {}
    for key in ("img_path", "image", "images", "rejected_images"):
        given = value.get(key)
        several = given if isinstance(given, list) else [given]
        contents = [embedded(one) for one in several]
        if any(content is not None for content in contents):
            paths = [
                one if content is None else _write_image(content, images, image_root, converted)
                for one, content in zip(several, contents, strict=True)
            ]
            changed[key] = paths if isinstance(given, list) else paths[0]
    return value | changed


def _write_image(content: bytes, images: Path, image_root: Path, converted: Converted) -> str:
    try:
        below = images.resolve().relative_to(image_root.resolve())
    except ValueError:
        raise DataError(
            f"records hold their images, which would be written to {images}: not under --image_root {image_root}; write"
            " --to under it"
        ) from None
    kind = image_kind(content)
    if kind is None:
        raise BadRecord("image unreadable", f"the image in the record is none of {', '.join(FORMATS)}, or too large")
    ending = {"JPEG": "jpg"}.get(kind, kind.lower())
    name = f"{hashlib.sha256(content).hexdigest()[:20]}.{ending}"
    file = images / name
    if file not in converted.unpacked:
        if not file.exists():
            write_atomic(file, content)
        converted.unpacked.add(file)
    return (below / name).as_posix()


# What is shown


def _summary(converted: Converted) -> list[str]:
    forms = "; ".join(f"{form}: {count:,}" for form, count in converted.forms.most_common())
    lines = [f"{converted.records:,} records, by the form of those with a pair: {forms}"]
    if converted.left_out:
        lines.append(f"left out: {', '.join(f'{count:,} {what}' for what, count in converted.left_out.most_common())}")
    if converted.renamed:
        lines.append(f"ids of an earlier record, with a number behind them now: {converted.renamed:,}")
    if converted.unpacked:
        folder = next(iter(converted.unpacked)).parent
        lines.append(f"{len(converted.unpacked):,} images were inside the records and are in {folder}")
    return lines


def _first_pairs(pairs: Sequence[Record]) -> list[str]:
    lines = []
    for pair in pairs[:_PRINTED]:
        lines.append(f"{pair['id']}  {pair['img_path']}")
        lines += [f"  {key:9}{_cut(pair[key])}" for key in ("prompt", "chosen", "rejected")]
    return lines


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 110 else f"{line[:107]}..."


def write_page(folder: Path, converted: Converted, title: str, most: int) -> Path:
    """The page of the first ``most`` pairs, with their images and what was left out; returns its ``index.html``.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    _PAGE.start(folder)
    pairs, paths = converted.pairs[:most], converted.paths[:most]
    drawn = write_thumbnails(folder, paths, _draw, desc="Drawing", unit=" images")
    shown = [
        pair | {"id": str(pair["id"]), "link": link(folder, path), "image": image}
        for pair, path, image in zip(pairs, paths, drawn, strict=True)
    ]
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for candidate in converted.bad:
        reasons.update({reason for reason, _ in candidate.problems})
        for reason, what in candidate.problems:
            examples.setdefault(reason, what)
    content = {
        "title": title,
        "records": converted.records,
        "all": len(converted.pairs),
        "forms": converted.forms.most_common(),
        "bad": [[reason, number, examples[reason]] for reason, number in reasons.most_common()],
        "left_out": converted.left_out.most_common(),
        "pairs": shown,
    }
    return _PAGE.finish(folder, content)


def _draw(path: Path, file: Path) -> Record:
    try:
        image = open_image(path)
    except OSError as error:
        raise ImageError(f"{path}: {error}") from None
    image.thumbnail((_SMALL, _SMALL))
    image.save(file, "JPEG", quality=80)
    return {"width": image.width, "height": image.height}
