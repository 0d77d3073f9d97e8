"""Image lists matched to pairs: JSONL of {"id", "img_path", "box": [left, top, right, bottom] or null, "verdict"}."""

import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from listwise_preference.data.ranked_images import Box
from listwise_preference.data.validation import BadRecord, Candidate, shown
from listwise_preference.errors import DataError
from listwise_preference.files import Row, path_key, read_rows


def match_lists(candidates: list[Candidate], pairs_file: Path, lists_file: Path, image_root: Path) -> None:
    """Give each candidate its line: by id, or by position when no pair has an id.

    Raises:
        DataError: the file cannot be used at all, or its lines cannot be told apart.
    """
    lines = read_rows(lists_file)
    if any(_given_id(candidate.row) is not None for candidate in candidates):
        _match_by_id(candidates, lines, lists_file)
    else:
        _match_by_position(candidates, lines, pairs_file, lists_file, image_root)
    for candidate in candidates:
        if candidate.line is None:
            continue
        line = candidate.line
        try:
            candidate.without_box = not _has_box(line.value)
            _check_list_path(candidate, line, image_root)
        except BadRecord as bad:
            candidate.add(bad, line.where)
            candidate.line = None


def _given_id(row: Row) -> Any:
    return row.value.get("id") if isinstance(row.value, dict) else None


def _match_by_id(candidates: list[Candidate], lines: list[Row], lists_file: Path) -> None:
    by_id: dict[str, list[Row]] = defaultdict(list)
    for line in lines:
        if _given_id(line) is not None:
            by_id[str(_given_id(line))].append(line)
    for candidate in candidates:
        if candidate.id is None:
            continue
        found = by_id.get(str(candidate.id), [])
        if len(found) == 1:
            candidate.line = found[0]
        elif not found:
            candidate.add(BadRecord("no image list", f"{lists_file} has no line with id {candidate.id}"))
        else:
            numbers = " and ".join(str(line.number) for line in found)
            what = f"{lists_file} has id {candidate.id} more than once: records {numbers}"
            candidate.add(BadRecord("unusable image list", what))


def _match_by_position(
    candidates: list[Candidate], lines: list[Row], pairs_file: Path, lists_file: Path, image_root: Path
) -> None:
    advice = (
        "The records have no ids, so line k must belong to record k. "
        f'Give every record of both files an "id", or make the lists again from {pairs_file}.'
    )
    if len(lines) != len(candidates):
        raise DataError(f"{lists_file}: {len(lines)} lines for the {len(candidates)} records of {pairs_file}. {advice}")
    for candidate, line in zip(candidates, lines, strict=True):
        candidate.line = line
        listed = line.value.get("img_path") if isinstance(line.value, dict) else None
        if candidate.img_path is not None and not _same_path(image_root, candidate.img_path, listed):
            raise DataError(
                f"{line.where}: img_path is {shown(listed)}, but record {candidate.row.number} of "
                f"{pairs_file} has {shown(candidate.img_path)}. {advice}"
            )


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


def read_box(value: Any, size: tuple[int, int]) -> Box:
    """The box that a line gives, on an image of this (width, height); raises BadRecord where it is none."""
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
    if not box.fits(*size):
        raise _unusable(value, f"reaches past the image, {size[0]} x {size[1]} pixels")
    return box


def _unusable(box: Any, what: str) -> BadRecord:
    return BadRecord("unusable box", f"box {shown(box)} {what}")
