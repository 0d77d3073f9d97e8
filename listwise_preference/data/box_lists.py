"""Image lists matched to pairs: JSONL of {"id", "img_path", "box": [left, top, right, bottom] or null, "verdict"}."""

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from listwise_preference.data.ranked_images import Box
from listwise_preference.data.validation import BadRecord, Candidate, shown
from listwise_preference.errors import DataError
from listwise_preference.files import Row, iterate_json_rows, path_key


def match_lists(candidates: list[Candidate], pairs_file: Path, lists_file: Path, image_root: Path) -> None:
    """Give each candidate its line: by id, or by position when no pair has an id.

    Of a line its box alone is kept, and nothing where the line cannot be used.

    Raises:
        DataError: the file cannot be used at all, or its lines cannot be told apart.
    """
    lines = tqdm(iterate_json_rows(lists_file), desc="Reading lists", unit=" lines", disable=None)
    if any(_given_id(candidate.row) is not None for candidate in candidates):
        _match_by_id(candidates, lines, lists_file, image_root)
    else:
        _match_by_position(candidates, lines, pairs_file, lists_file, image_root)


def _given_id(row: Row) -> Any:
    return row.value.get("id") if isinstance(row.value, dict) else None


def _take(candidate: Candidate, line: Row, image_root: Path) -> None:
    candidate.line = replace(line, value=None)
    try:
        candidate.without_box = not _has_box(line.value)
        _check_list_path(candidate, line, image_root)
        if not candidate.without_box:
            candidate.box = read_box(line.value["box"])
    except BadRecord as bad:
        candidate.add(bad, line.where)


def _match_by_id(candidates: list[Candidate], lines: Iterable[Row], lists_file: Path, image_root: Path) -> None:
    wanted: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.id is not None:
            wanted.setdefault(str(candidate.id), candidate)  # another of this id is a bad record already
    twice: dict[str, list[int]] = {}
    for line in lines:
        given = _given_id(line)
        found = None if given is None else wanted.get(str(given))
        if found is not None and found.line is None:
            _take(found, line, image_root)
        elif found is not None and found.line is not None:
            twice.setdefault(str(given), [found.line.number]).append(line.number)
    for given, candidate in wanted.items():
        if candidate.line is None:
            candidate.add(BadRecord("no image list", f"{lists_file} has no line with id {candidate.id}"))
        elif given in twice:
            records = " and ".join(map(str, twice[given]))
            what = f"{lists_file} has id {candidate.id} more than once: records {records}"
            candidate.add(BadRecord("unusable image list", what))


def _match_by_position(
    candidates: list[Candidate], lines: Iterable[Row], pairs_file: Path, lists_file: Path, image_root: Path
) -> None:
    advice = (
        "The records have no ids, so line k must belong to record k. "
        f'Give every record of both files an "id", or make the lists again from {pairs_file}.'
    )
    count = 0
    for count, line in enumerate(lines, start=1):
        if count > len(candidates):
            continue
        candidate = candidates[count - 1]
        listed = line.value.get("img_path") if isinstance(line.value, dict) else None
        if candidate.img_path is not None and not _same_path(image_root, candidate.img_path, listed):
            raise DataError(
                f"{line.where}: img_path is {shown(listed)}, but record {candidate.row.number} of "
                f"{pairs_file} has {shown(candidate.img_path)}. {advice}"
            )
        _take(candidate, line, image_root)
    if count != len(candidates):
        raise DataError(f"{lists_file}: {count} lines for the {len(candidates)} records of {pairs_file}. {advice}")


def _has_box(line: Any) -> bool:
    """False for a line that says there is no box; raises BadRecord when it says neither."""
    if not isinstance(line, dict):
        raise BadRecord("unusable image list", f"{shown(line)} is not an object")
    if line.get("verdict") not in (None, "verified", "unverified"):
        return False
    if "box" not in line:
        raise BadRecord("unusable image list", 'no "box" (null means that there is none)')
    return line["box"] is not None


def _check_list_path(candidate: Candidate, line: Row, image_root: Path) -> None:
    listed = line.value.get("img_path")
    if candidate.img_path is None or listed is None:
        return
    if not _same_path(image_root, candidate.img_path, listed):
        what = f"img_path is {shown(listed)}, the pair with this id has {shown(candidate.img_path)}"
        raise BadRecord("unusable image list", what)


def _same_path(image_root: Path, one: str, other: Any) -> bool:
    def whole(path: str) -> str:
        return path_key(os.path.abspath(os.path.join(image_root, path)))  # noqa: PTH100, PTH118 - thousands of times

    return one == other or (isinstance(other, str) and whole(one) == whole(other))


def read_box(value: Any) -> Box:
    """The box that a line gives; raises BadRecord where it is none."""
    if not isinstance(value, list) or len(value) != 4:
        raise _unusable(value, "is not a list of four numbers")
    for number in value:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or (isinstance(number, float) and not math.isfinite(number)):
            raise _unusable(value, f"holds {shown(number)}, not a finite number")
        if number != int(number):
            raise _unusable(value, f"holds {number}, not whole pixels")
    box = Box(*(int(number) for number in value))
    if box.width < 1 or box.height < 1:
        raise _unusable(value, f"holds no pixel: {box.width} x {box.height}")
    return box


def check_fits(box: Box, size: tuple[int, int]) -> None:
    """Raises BadRecord where the box does not lie inside an image of this (width, height)."""
    if not box.fits(*size):
        value = [box.left, box.top, box.right, box.bottom]
        raise _unusable(value, f"reaches past the image, {size[0]} x {size[1]} pixels")


def _unusable(box: Any, what: str) -> BadRecord:
    return BadRecord("unusable box", f"box {shown(box)} {what}")
