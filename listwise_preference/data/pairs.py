"""Preference records: read pairs, join each with its ranked images, check all before a model is loaded.

A pairs file is JSON (a list) or JSONL of {"img_path", "prompt", "chosen", "rejected"} and an optional "id";
image lists are JSONL of {"id", "img_path", "box": [left, top, right, bottom] or null, "verdict", ...}. All
bad records of a run end in one report that says what is wrong with each and what to do.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from listwise_preference.data.ranked_images import (
    Box,
    Drawing,
    ImageAndCrop,
    ImageFiles,
    MaskedBox,
    RankedImages,
    transposed_size,
)
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Row, read_rows


@dataclass(frozen=True)
class Pair:
    """One preference: a prompt on an image with the chosen and the rejected response.

    ``img_path`` is as in the pairs file; ``id`` is the record number, from 1, where the file gives
    none.
    """

    id: str | int
    img_path: str
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Record:
    """A pair and its ranked images, best first."""

    pair: Pair
    images: RankedImages


@dataclass(frozen=True)
class Records:
    """The usable records in the file's order, and what became of the rest.

    ``dropped`` were bad, ``without_box`` have an image list without a box, ``excluded`` are the ids
    among those asked to leave out that were there; ``report`` is empty when nothing was bad.
    """

    records: tuple[Record, ...]
    dropped: int
    without_box: int
    report: str
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entry:
    """One record of a pairs file before any image is opened.

    ``pair`` and ``path`` are there when ``problem`` is empty; ``problem`` says what is wrong and where, for a user.
    ``img_path`` is there when the record names an image at all.
    """

    number: int
    id: str | int
    img_path: str | None
    pair: Pair | None
    path: Path | None
    problem: str


@dataclass(frozen=True)
class Folders:
    """Images on disk: a folder per level, best first, with the same paths below each."""

    folders: tuple[Path, ...]


@dataclass(frozen=True)
class BoxLists:
    """A file of boxes, one line per record; the images are drawn on load."""

    file: Path
    drawing: Drawing


@dataclass(frozen=True)
class ImageOnly:
    """The image alone, for objectives without an image term."""


@dataclass(frozen=True)
class Crops:
    """The image and a random crop of it (mDPO), decided by the seed and the record's id."""

    seed: int


ImageSource = Folders | BoxLists | ImageOnly | Crops

# What can be wrong with a record, in the order of the report, and what to do about it.
_ADVICE = {
    "not a record": 'write {"img_path": ..., "prompt": ..., "chosen": ..., "rejected": ...}',
    "unusable id": "give a string or a whole number, or no record an id",
    "id used twice": "give every record an id of its own",
    "image path missing or unclear": 'name one image, relative to --image_root, in "img_path"',
    "image outside the image root": "set --image_root to a folder above all images",
    "text missing or unusable": 'give "prompt", "chosen" and "rejected" as text that is not blank',
    "conversation of another form": "give one user message as prompt and one assistant message "
    "as each response; system messages and earlier turns cannot be used",
    "special token in the text": "take it out; the model would read it as an image or as the end of a response",
    "image missing": "check --image_root and the path, or fetch the image",
    "image unreadable": "replace or convert the file (JPEG, PNG and WebP are safe)",
    "image outside the first ranked folder": "the first of --ranked_image_folders must "
    "hold the images that img_path names under --image_root",
    "ranked image missing": "every folder of --ranked_image_folders needs the same file names, ending included",
    "ranked image unreadable": "replace or convert the file (JPEG, PNG and WebP are safe)",
    "no image list": "make the lists again from these pairs, so that every record has a line",
    "unusable image list": "make the lists again from these pairs, or correct the line",
    "unusable box": "give [left, top, right, bottom] in whole pixels of the EXIF-transposed image, right and "
    "bottom exclusive",
}
_EXAMPLES = 3
_TWICE = "id used twice"
_HEADER_THREADS = 8


class _Bad(Exception):
    """One thing wrong with one record; ``reason`` is a key of _ADVICE."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what


@dataclass
class _Candidate:
    """A record while it is read: what is known of it so far, and what is wrong with it."""

    row: Row
    id: str | int | None = None
    img_path: str | None = None
    texts: tuple[str, str, str] | None = None
    path: Path | None = None
    line: Row | None = None
    without_box: bool = False
    images: RankedImages | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)

    def add(self, bad: _Bad, where: str | None = None) -> None:
        what = f"{where or self.row.where}: {bad.what}"
        # A report must be printable whatever the data holds, half characters included.
        self.problems.append((bad.reason, what.encode("utf-8", "backslashreplace").decode()))


def load_records(
    pairs_file: Path,
    image_root: Path,
    source: ImageSource,
    *,
    on_bad_record: Literal["stop", "drop"] = "stop",
    placeholders: tuple[str, ...] = (),
    excluded: frozenset[str] = frozenset(),
) -> Records:
    """Read and check every record; of the images only the headers are read.

    Args:
        pairs_file: the pairs, JSON or JSONL.
        image_root: the folder that image paths are relative to; no path may leave it.
        source: where the ranked images come from.
        on_bad_record: ``stop`` raises on any bad record, ``drop`` leaves bad records out.
        placeholders: tokens with a meaning of their own to the model, which may not occur in a user's text.
        excluded: ids, as text, of records to leave out unchecked (see ``read_exclusions``).

    Raises:
        DataError: a file that cannot be used at all, bad records under ``stop``, or nothing left.
    """
    if not image_root.is_dir():
        raise DataError(f"{image_root}: no such folder; set --image_root to the folder the images are under")
    if isinstance(source, Folders):
        _check_folders(source.folders)
    candidates = [_Candidate(row) for row in read_rows(pairs_file)]
    for candidate in candidates:
        _read_candidate(candidate, image_root, placeholders)
    _check_ids(candidates)
    if isinstance(source, BoxLists):
        _match_lists(candidates, pairs_file, source.file, image_root)
    found = excluded & {str(candidate.id) for candidate in candidates if candidate.id is not None}
    kept = [candidate for candidate in candidates if candidate.id is None or str(candidate.id) not in found]
    _check_images(kept, source)
    return _sum_up(kept, pairs_file, on_bad_record, found)


def read_entries(pairs_file: Path, image_root: Path, placeholders: tuple[str, ...] = ()) -> tuple[Entry, ...]:
    """Every record of a pairs file, bad ones with their problem; no image is opened.

    Raises:
        DataError: the file or the root cannot be used at all, or an id is given twice.
    """
    if not image_root.is_dir():
        raise DataError(f"{image_root}: no such folder; set --image_root to the folder the images are under")
    candidates = [_Candidate(row) for row in read_rows(pairs_file)]
    for candidate in candidates:
        _read_candidate(candidate, image_root, placeholders)
    _check_ids(candidates)
    twice = [what for candidate in candidates for reason, what in candidate.problems if reason == _TWICE]
    if twice:
        raise DataError(
            "\n".join([f"{_TWICE}: {len(twice)}; {_ADVICE[_TWICE]}", *(f"  {w}" for w in twice[:_EXAMPLES])])
        )
    return tuple(_entry(candidate) for candidate in candidates)


def _entry(candidate: _Candidate) -> Entry:
    number = candidate.row.number
    record_id = number if candidate.id is None else candidate.id
    problem = "; ".join(what for _, what in candidate.problems)
    if problem:
        return Entry(number, record_id, candidate.img_path, None, None, problem)
    assert candidate.img_path is not None and candidate.texts is not None
    pair = Pair(record_id, candidate.img_path, *candidate.texts)
    return Entry(number, record_id, candidate.img_path, pair, candidate.path, "")


def read_exclusions(file: Path) -> frozenset[str]:
    """The ids of records to leave out, as text: ``{"rejected": [ids]}``, as the review page saves it, or a list.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"--exclude {file}: {error.strerror}") from None
    except ValueError:
        raise DataError(f"--exclude {file}: not valid JSON") from None
    ids = content.get("rejected") if isinstance(content, dict) else content
    if not isinstance(ids, list) or any(isinstance(one, bool) or not isinstance(one, str | int) for one in ids):
        raise DataError(f'--exclude {file}: write {{"rejected": [ids]}} or a list of ids')
    return frozenset(map(str, ids))


def _check_folders(folders: tuple[Path, ...]) -> None:
    if len(folders) < 2:
        raise DataError("--ranked_image_folders: give at least 2 folders, best first")
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"--ranked_image_folders: no folder {folder}; put the ranked images there (data/README.md says where"
                " the paper's come from), or draw them from boxes with --image_lists"
            )


# One record of the pairs file


def _read_candidate(candidate: _Candidate, image_root: Path, placeholders: tuple[str, ...]) -> None:
    """Fill in id, texts and image path as far as the record allows, and note all that is wrong."""
    row = candidate.row
    if not isinstance(row.value, dict):
        candidate.add(_Bad("not a record", f"{_shown(row.value)} is not an object"))
        return
    try:
        given = _read_id(row.value)
        candidate.id = row.number if given is None else given
    except _Bad as bad:
        candidate.add(bad)
    try:
        candidate.texts = _read_texts(row.value)
        _check_texts(candidate.texts, placeholders)
    except _Bad as bad:
        candidate.add(bad)
    try:
        candidate.img_path = _read_img_path(row.value)
        candidate.path = _below(image_root, candidate.img_path)
    except _Bad as bad:
        candidate.add(bad)


def _read_id(value: dict[str, Any]) -> str | int | None:
    record_id = value.get("id")
    if record_id is None:
        return None
    if isinstance(record_id, bool) or not isinstance(record_id, str | int) or not str(record_id).strip():
        raise _Bad("unusable id", f"id {_shown(record_id)} is not a string or a whole number")
    return record_id


def _read_img_path(value: dict[str, Any]) -> str:
    found: dict[str, str] = {}
    for key in ("img_path", "image", "images"):
        path = value.get(key)
        if isinstance(path, list) and len(path) == 1:
            path = path[0]
        if path is None:
            continue
        if not isinstance(path, str) or not path.strip():
            raise _Bad("image path missing or unclear", f'"{key}" is {_shown(path)}, not the path of one image')
        found[key] = path
    if not found:
        raise _Bad("image path missing or unclear", 'no "img_path"')
    if len(set(found.values())) > 1:
        named = " and ".join(f'"{key}" {_shown(path)}' for key, path in found.items())
        raise _Bad("image path missing or unclear", f"{named} are different images")
    return next(iter(found.values()))


def _below(image_root: Path, img_path: str) -> Path:
    """The image's path. By names alone, so that a link inside the root may lead to another disk."""
    path = os.path.normpath(image_root / img_path)
    root = Path(os.path.abspath(image_root))  # noqa: PTH100 - resolve() would follow links
    if not Path(os.path.abspath(path)).is_relative_to(root):  # noqa: PTH100
        raise _Bad("image outside the image root", f"{img_path} is not under {image_root}")
    return Path(path)


def _read_texts(value: dict[str, Any]) -> tuple[str, str, str]:
    """(prompt, chosen, rejected), from texts or from TRL's lists of messages."""
    chosen_prompt, chosen = _read_response(value, "chosen")
    rejected_prompt, rejected = _read_response(value, "rejected")
    prompts: dict[str, str] = {}
    for key in ("prompt", "question"):
        given = value.get(key)
        if isinstance(given, list):
            if len(given) != 1:
                raise _conversation(f'"{key}" has {len(given)} messages, expected one of the user')
            prompts[key] = _message_text(given[0], "user", key)
        elif given is not None:
            prompts[key] = _text(given, key)
    if chosen_prompt is not None:
        prompts["the user message of chosen"] = chosen_prompt
    if rejected_prompt is not None:
        prompts["the user message of rejected"] = rejected_prompt
    if not prompts:
        raise _Bad("text missing or unusable", 'no "prompt"')
    if len(set(prompts.values())) > 1:
        raise _Bad("text missing or unusable", f"{' and '.join(prompts)} are different prompts")
    return next(iter(prompts.values())), chosen, rejected


def _read_response(value: dict[str, Any], key: str) -> tuple[str | None, str]:
    """(the user message before the response if there is one, the response)."""
    given = value.get(key)
    if given is None:
        raise _Bad("text missing or unusable", f'no "{key}"')
    if not isinstance(given, list):
        return None, _text(given, key)
    if len(given) == 1:
        return None, _message_text(given[0], "assistant", key)
    if len(given) == 2:
        return _message_text(given[0], "user", key), _message_text(given[1], "assistant", key)
    raise _conversation(f'"{key}" has {len(given)} messages, expected one of the assistant')


def _message_text(message: Any, role: Literal["user", "assistant"], key: str) -> str:
    """The text of one message in TRL's form; text parts are joined without a gap, as chat templates do."""
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        raise _conversation(f'"{key}" holds {_shown(message)}, not a message with "role" and "content"')
    if message["role"] != role:
        raise _conversation(f'"{key}" holds a {_shown(message["role"])} message where one of "{role}" is expected')
    content = message["content"]
    if not isinstance(content, list):
        return _text(content, key)
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    if kinds.count("image") > (role == "user"):
        raise _conversation(
            f'"{key}" has {kinds.count("image")} images in the "{role}" message; one is allowed '
            "in the prompt and none in a response"
        )
    texts = []
    for kind, part in zip(kinds, content, strict=True):
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind != "image":
            raise _conversation(f'"{key}" holds {_shown(part)}, neither a text part nor an image part')
    return _text("".join(texts), key)


def _conversation(what: str) -> _Bad:
    return _Bad("conversation of another form", what)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _Bad("text missing or unusable", f'"{key}" is {_shown(value)}, not text')
    if not value.strip():
        raise _Bad("text missing or unusable", f'"{key}" is blank')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise _Bad("text missing or unusable", f'"{key}" holds {half}, half of a character') from None
    return value


def _check_texts(texts: tuple[str, str, str], placeholders: tuple[str, ...]) -> None:
    for key, text in zip(("prompt", "chosen", "rejected"), texts, strict=True):
        for placeholder in placeholders:
            if placeholder in text:
                raise _Bad("special token in the text", f'"{key}" contains {placeholder}')


def _check_ids(candidates: list[_Candidate]) -> None:
    first: dict[str, int] = {}
    for candidate in candidates:
        if candidate.id is None:
            continue
        number = first.setdefault(str(candidate.id), candidate.row.number)
        if number != candidate.row.number:
            candidate.add(_Bad(_TWICE, f"id {candidate.id} is also that of record {number}"))


# Image lists


def _match_lists(candidates: list[_Candidate], pairs_file: Path, lists_file: Path, image_root: Path) -> None:
    """Give each candidate its line: by id, or by position when no pair has an id."""
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
        except _Bad as bad:
            candidate.add(bad, line.where)
            candidate.line = None


def _given_id(row: Row) -> Any:
    return row.value.get("id") if isinstance(row.value, dict) else None


def _match_by_id(candidates: list[_Candidate], lines: list[Row], lists_file: Path) -> None:
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
            candidate.add(_Bad("no image list", f"{lists_file} has no line with id {candidate.id}"))
        else:
            numbers = " and ".join(str(line.number) for line in found)
            what = f"{lists_file} has id {candidate.id} more than once: records {numbers}"
            candidate.add(_Bad("unusable image list", what))


def _match_by_position(
    candidates: list[_Candidate], lines: list[Row], pairs_file: Path, lists_file: Path, image_root: Path
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
                f"{line.where}: img_path is {_shown(listed)}, but record {candidate.row.number} of "
                f"{pairs_file} has {_shown(candidate.img_path)}. {advice}"
            )


def _has_box(line: Any) -> bool:
    """False for a line that says there is no box; raises _Bad when it says neither."""
    if not isinstance(line, dict):
        raise _Bad("unusable image list", f"{_shown(line)} is not an object")
    if line.get("verdict") not in (None, "verified", "unverified"):
        return False
    if "box" not in line:
        raise _Bad("unusable image list", 'no "box" (null means that there is none)')
    return line["box"] is not None


def _check_list_path(candidate: _Candidate, line: Row, image_root: Path) -> None:
    listed = line.value.get("img_path")
    if candidate.img_path is None or listed is None:
        return
    if not _same_path(image_root, candidate.img_path, listed):
        what = f"img_path is {_shown(listed)}, the pair with this id has {_shown(candidate.img_path)}"
        raise _Bad("unusable image list", what)


def _same_path(image_root: Path, one: str, other: Any) -> bool:
    if not isinstance(other, str):
        return False
    return os.path.normpath(image_root / one) == os.path.normpath(image_root / other)


def _read_box(value: Any, size: tuple[int, int]) -> Box:
    shown = f"box {_shown(value)}"
    if not isinstance(value, list) or len(value) != 4:
        raise _Bad("unusable box", f"{shown} is not a list of four numbers")
    for number in value:
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or (isinstance(number, float) and not math.isfinite(number)):
            raise _Bad("unusable box", f"{shown} holds {_shown(number)}, not a finite number")
        if number != int(number):
            raise _Bad("unusable box", f"{shown} holds {number}, not whole pixels")
    box = Box(*(int(number) for number in value))
    if box.width < 1 or box.height < 1:
        raise _Bad("unusable box", f"{shown} holds no pixel: {box.width} x {box.height}")
    if not box.fits(*size):
        raise _Bad("unusable box", f"{shown} reaches past the image, {size[0]} x {size[1]} pixels")
    return box


# Images


def _check_images(candidates: list[_Candidate], source: ImageSource) -> None:
    """Check the files of every candidate and fill in ``images``.

    A record without a box is left out anyway, so its image is not opened.
    """
    paths: list[tuple[_Candidate, tuple[Path, ...]]] = []
    for candidate in candidates:
        if candidate.path is None or candidate.without_box:
            continue
        try:
            ranked = _ranked_paths(candidate.path, source.folders) if isinstance(source, Folders) else ()
            paths.append((candidate, ranked or (candidate.path,)))
        except _Bad as bad:
            candidate.add(bad)
    sizes = _header_sizes({path for _, files in paths for path in files})
    for candidate, files in paths:
        for level, path in enumerate(files):
            failure = sizes[path]
            if isinstance(failure, _Bad):
                ranked_prefix = "ranked " if level else ""
                candidate.add(_Bad(ranked_prefix + failure.reason, failure.what))
        size = sizes[files[0]]
        if isinstance(size, _Bad):
            continue
        match source:
            case ImageOnly() | Folders():
                candidate.images = ImageFiles(files)
            case Crops(seed=seed):
                candidate.images = ImageAndCrop(files[0], key=f"{seed}/{candidate.id}")
            case BoxLists(drawing=drawing) if candidate.line is not None:
                try:
                    candidate.images = MaskedBox(files[0], _read_box(candidate.line.value["box"], size), drawing)
                except _Bad as bad:
                    candidate.add(bad, candidate.line.where)


def _ranked_paths(path: Path, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    first = os.path.abspath(folders[0])  # noqa: PTH100
    below = os.path.relpath(os.path.abspath(path), first)  # noqa: PTH100
    if below.split(os.sep, 1)[0] == os.pardir:
        raise _Bad("image outside the first ranked folder", f"{path} is not in {folders[0]}")
    return (path, *(folder / below for folder in folders[1:]))


def _header_sizes(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | _Bad]:
    """(width, height) of each image, or what is wrong with it; each file is opened once."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        sizes = pool.map(_header_size, ordered, chunksize=1)
        bar = tqdm(sizes, total=len(ordered), desc="Checking images", unit=" files", disable=None)
        return dict(zip(ordered, bar, strict=True))


def _header_size(path: Path) -> tuple[int, int] | _Bad:
    try:
        if not path.exists():
            return _Bad("image missing", f"no image {path}")
        return transposed_size(path)
    except (ImageError, OSError) as error:
        return _Bad("image unreadable", str(error))


# The result


def _sum_up(
    candidates: list[_Candidate], pairs_file: Path, on_bad_record: Literal["stop", "drop"], excluded: frozenset[str]
) -> Records:
    total = len(candidates)
    bad = [candidate for candidate in candidates if candidate.problems]
    records = []
    without_box = 0
    for candidate in candidates:
        if candidate.problems:
            continue
        if candidate.without_box:
            without_box += 1
            continue
        assert candidate.id is not None and candidate.img_path is not None
        assert candidate.texts is not None and candidate.images is not None
        records.append(Record(Pair(candidate.id, candidate.img_path, *candidate.texts), candidate.images))
    report = _report(bad, pairs_file, total) if bad else ""
    if not records:
        counts = f"of {total}, {len(bad)} are bad and {without_box} have no box"
        if excluded:
            counts += f"; {len(excluded)} more are excluded"
        raise DataError(f"{report}\n{pairs_file}: no record is left: {counts}.".lstrip())
    if bad and on_bad_record == "stop":
        rest = f"--on_bad_record drop leaves these records out and uses the other {len(records)}."
        raise DataError(f"{report}\n{rest}")
    if bad:
        report += f"\nLeft out (--on_bad_record drop); records used: {len(records)}."
    return Records(tuple(records), dropped=len(bad), without_box=without_box, report=report, excluded=excluded)


def _report(bad: list[_Candidate], pairs_file: Path, total: int) -> str:
    examples: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for candidate in bad:
        counts.update({reason for reason, _ in candidate.problems})
        for reason, what in candidate.problems:
            examples[reason].append(what)
    lines = [f"{pairs_file}: {len(bad)} of {total} records cannot be used."]
    for reason, advice in _ADVICE.items():
        if reason in counts:
            lines.append(f"{reason}: {counts[reason]} {'record' if counts[reason] == 1 else 'records'}; {advice}")
            lines += [f"  {what}" for what in examples[reason][:_EXAMPLES]]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """A value as JSON, short enough for one line of a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
