"""Preference records: read pairs, join each with its ranked images, check all before a model is loaded.

A pairs file is JSON (a list) or JSONL of {"img_path", "prompt", "chosen", "rejected"} and an optional "id", or a file
of another kind or form (``sources``, ``forms``).
"""

import filecmp
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from listwise_preference.data.box_lists import check_fits, match_lists
from listwise_preference.data.forms import embedded, path_of, translate
from listwise_preference.data.ranked_images import (
    Box,
    Drawing,
    ImageAndCrop,
    ImageFiles,
    MaskedBox,
    RankedImages,
    transposed_size,
)
from listwise_preference.data.sources import iterate_rows
from listwise_preference.data.stored import RowWriter, StoredRows
from listwise_preference.data.validation import ADVICE, EXAMPLES, BadRecord, Candidate, report, shown
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import below, find_file, read_json

logger = logging.getLogger("listwise_preference")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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

    records: StoredRows[Record]
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

_HEADER_THREADS = 8
_TWICE = "id used twice"
_WITH_ID = {"id": True}  # of a record that has been read: all that is kept of it


def load_records(
    pairs_file: Path,
    image_root: Path,
    source: ImageSource,
    *,
    on_bad_record: Literal["stop", "drop"] = "stop",
    placeholders: tuple[str, ...] = (),
    excluded: frozenset[str] = frozenset(),
    compares_responses: bool = False,
    rows: Path | None = None,
) -> Records:
    """Read and check every record; of the images only the headers are read.

    The records are kept on the disk (``stored``), so that a million of them fit into any memory.

    Args:
        pairs_file: the pairs: JSON, JSONL, CSV, TSV or parquet.
        image_root: the folder that image paths are relative to; no path may leave it.
        source: where the ranked images come from.
        on_bad_record: ``stop`` raises on any bad record, ``drop`` leaves bad records out.
        placeholders: tokens with a meaning of their own to the model, which may not occur in a user's text.
        excluded: ids, as text, of records to leave out unchecked (see ``read_exclusions``).
        compares_responses: whether a record whose two responses are the same is a bad one.
        rows: a file to keep the records in; by default one that is gone with them.

    Raises:
        DataError: a file that cannot be used at all, bad records under ``stop``, or nothing left.
    """
    with RowWriter(rows) as written:
        candidates = _read_candidates(pairs_file, image_root, placeholders, written, compares_responses)
        if isinstance(source, Folders):
            _check_folders(source.folders)
        if isinstance(source, BoxLists):
            match_lists(candidates, pairs_file, source.file, image_root)
        found = excluded & {str(candidate.id) for candidate in candidates if candidate.id is not None}
        kept = [candidate for candidate in candidates if candidate.id is None or str(candidate.id) not in found]
        _check_images(kept, source)
        return _sum_up(kept, pairs_file, on_bad_record, found, written, source)


def read_entries(pairs_file: Path, image_root: Path, placeholders: tuple[str, ...] = ()) -> tuple[Entry, ...]:
    """Every record of a pairs file, bad ones with their problem; no image is opened.

    Raises:
        DataError: the file or the root cannot be used at all, or an id is given twice.
    """
    candidates = _read_candidates(pairs_file, image_root, placeholders)
    twice = [what for candidate in candidates for reason, what in candidate.problems if reason == _TWICE]
    if twice:
        raise DataError("\n".join([f"{_TWICE}: {len(twice)}; {ADVICE[_TWICE]}", *(f"  {w}" for w in twice[:EXAMPLES])]))
    return tuple(_entry(candidate) for candidate in candidates)


def _entry(candidate: Candidate) -> Entry:
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
        content = read_json(file)
    except DataError as error:
        raise DataError(f"--exclude {error}") from None
    ids = content.get("rejected") if isinstance(content, dict) else content
    if not isinstance(ids, list) or any(isinstance(one, bool) or not isinstance(one, str | int) for one in ids):
        raise DataError(f'--exclude {file}: write {{"rejected": [ids]}} or a list of ids')
    return frozenset(map(str, ids))


def _check_folders(folders: tuple[Path, ...]) -> None:
    if len(folders) < 2:
        raise DataError("--ranked_image_folders: give at least 2 folders, best first")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError("--ranked_image_folders: a folder is given twice; equal images have no order")
    for folder in folders:
        if not folder.is_dir():
            raise DataError(
                f"--ranked_image_folders: no folder {folder}; put the ranked images there (data/README.md says where"
                " the paper's come from). For pairs of your own there are two ways: make lists with python"
                " make_image_lists.py and give --image_lists, or train without lists: --objective dpo, or mdpo"
            )


# One record of the pairs file


def _read_candidates(
    pairs_file: Path,
    image_root: Path,
    placeholders: tuple[str, ...],
    rows: RowWriter | None = None,
    compares_responses: bool = False,
) -> list[Candidate]:
    """All records of the file; with ``rows`` the texts of the good ones are written there and not kept."""
    if not image_root.is_dir():
        raise DataError(f"{image_root}: no such folder; set --image_root to the folder the images are under")
    candidates: list[Candidate] = []
    left_out: Counter[str] = Counter()
    paths: dict[Path, Path] = {}
    for row in tqdm(iterate_rows(pairs_file), desc="Reading", unit=" records", disable=None):
        candidate = Candidate(row)
        if others := read_candidate(candidate, image_root, placeholders):
            left_out += others
        if compares_responses:
            check_differ([candidate])
        if rows is not None and candidate.texts is not None and not candidate.problems:
            candidate.stored = rows.add([candidate.id, candidate.img_path, str(candidate.path), *candidate.texts])
            candidate.texts = None
        # Of a million records nothing else of the file is in memory, and of an image one path.
        candidate.row = replace(row, value=_WITH_ID if _has_id(row.value) else None)
        if candidate.path is not None:
            candidate.path = paths.setdefault(candidate.path, candidate.path)
        candidates.append(candidate)
    if left_out:
        parts = ", ".join(f"{count:,} {what}" for what, count in left_out.most_common())
        logger.info(
            f"{pairs_file}: {parts}: one pair of each record is used; `python -m listwise_preference.data` makes more"
        )
    _check_ids(candidates)
    return candidates


def _has_id(value: Any) -> bool:
    return isinstance(value, dict) and value.get("id") is not None


def read_candidate(candidate: Candidate, image_root: Path, placeholders: tuple[str, ...]) -> Counter[str]:
    """Fill in id, texts and image path as far as the record allows, and note all that is wrong.

    Returns:
        How much of the record is not in its pair, by what it is.
    """
    row, value, left_out = candidate.row, candidate.row.value, Counter[str]()
    if not isinstance(value, dict):
        candidate.add(BadRecord("not a record", f"{shown(value)} is not an object"))
        return left_out
    try:
        given = _read_id(value)
        candidate.id = row.number if given is None else given
    except BadRecord as bad:
        candidate.add(bad)
    try:
        translation = translate(value)
        value, left_out = translation.pairs[0], translation.left_out
        candidate.texts = _read_texts(value)
        _check_texts(candidate.texts, placeholders)
    except BadRecord as bad:
        candidate.add(bad)
    try:
        candidate.img_path = _read_img_path(value)
        candidate.path = _below(image_root, candidate.img_path)
    except BadRecord as bad:
        if bad.reason not in {reason for reason, _ in candidate.problems}:  # the form has said it already
            candidate.add(bad)
    return left_out


def _read_id(value: dict[str, Any]) -> str | int | None:
    record_id = value.get("id")
    if record_id is None:
        return None
    if isinstance(record_id, bool) or not isinstance(record_id, str | int) or not str(record_id).strip():
        raise BadRecord("unusable id", f"id {shown(record_id)} is not a string or a whole number")
    if not _is_utf8(str(record_id)):
        raise BadRecord("unusable id", f"id {shown(record_id)} holds half of a character, which no file can hold")
    return record_id


def _read_img_path(value: dict[str, Any]) -> str:
    found: dict[str, str] = {}
    for key in ("img_path", "image", "images"):
        path = value.get(key)
        if isinstance(path, list) and len(path) == 1:
            path = path[0]
        if path is None:
            continue
        if embedded(path) is not None:
            raise BadRecord("image inside the record", f'"{key}" holds the image itself')
        path = path_of(path)
        if isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]+://", path):
            what = f'"{key}" is {path}; download the image, and name the file below --image_root'
            raise BadRecord("image path missing or unclear", what)
        if not isinstance(path, str) or not path.strip():
            raise BadRecord("image path missing or unclear", f'"{key}" is {shown(path)}, not the path of one image')
        if "\0" in path or not _is_utf8(path):
            raise BadRecord("image path missing or unclear", f'"{key}" is {shown(path)}, which no file can be called')
        found[key] = path
    if not found:
        raise BadRecord("image path missing or unclear", 'no "img_path"')
    if len(set(found.values())) > 1:
        named = " and ".join(f'"{key}" {shown(path)}' for key, path in found.items())
        raise BadRecord("image path missing or unclear", f"{named} are different images")
    return next(iter(found.values()))


def _below(image_root: Path, img_path: str) -> Path:
    path = below(image_root, img_path)
    if path is None:
        raise BadRecord("image outside the image root", f"{img_path} is not under {image_root}")
    return path


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
        raise BadRecord("text missing or unusable", 'no "prompt"')
    if len(set(prompts.values())) > 1:
        raise BadRecord("text missing or unusable", f"{' and '.join(prompts)} are different prompts")
    return next(iter(prompts.values())), chosen, rejected


def _read_response(value: dict[str, Any], key: str) -> tuple[str | None, str]:
    """(the user message before the response if there is one, the response)."""
    given = value.get(key)
    if given is None:
        raise BadRecord("text missing or unusable", f'no "{key}"')
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
        raise _conversation(f'"{key}" holds {shown(message)}, not a message with "role" and "content"')
    if message["role"] != role:
        raise _conversation(f'"{key}" holds a {shown(message["role"])} message where one of "{role}" is expected')
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
            raise _conversation(f'"{key}" holds {shown(part)}, neither a text part nor an image part')
    return _text("".join(texts), key)


def _conversation(what: str) -> BadRecord:
    return BadRecord("conversation of another form", what)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise BadRecord("text missing or unusable", f'"{key}" is {shown(value)}, not text')
    if not value.strip():
        raise BadRecord("text missing or unusable", f'"{key}" is blank')
    if not _is_utf8(value):
        half = next(letter for letter in value if not _is_utf8(letter)).encode("ascii", "backslashreplace").decode()
        raise BadRecord("text missing or unusable", f'"{key}" holds {half}, half of a character')
    return value


def _is_utf8(text: str) -> bool:
    """Whether it can be written: JSON can spell halves of surrogate pairs, UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_texts(texts: tuple[str, str, str], placeholders: tuple[str, ...]) -> None:
    for key, text in zip(("prompt", "chosen", "rejected"), texts, strict=True):
        for placeholder in placeholders:
            if placeholder in text:
                raise BadRecord("special token in the text", f'"{key}" contains {placeholder}')


def check_differ(candidates: Iterable[Candidate]) -> None:
    """Note where chosen and rejected are the same but for blanks around them."""
    for candidate in candidates:
        if candidate.texts and candidate.texts[1].strip() == candidate.texts[2].strip():
            what = f"chosen and rejected are the same text: {shown(candidate.texts[1])}"
            candidate.add(BadRecord("chosen and rejected alike", what))


def _check_ids(candidates: list[Candidate]) -> None:
    first: dict[str, int] = {}
    for candidate in candidates:
        if candidate.id is None:
            continue
        number = first.setdefault(str(candidate.id), candidate.row.number)
        if number != candidate.row.number:
            candidate.add(BadRecord(_TWICE, f"id {candidate.id} is also that of record {number}"))


# Images


def _check_images(candidates: list[Candidate], source: ImageSource) -> None:
    """Check the files of every candidate and fill in ``images``.

    A record without a box is left out anyway, so its image is not opened.
    """
    files_of: dict[Path, tuple[Path, ...]] = {}
    for candidate in candidates:
        if candidate.path is None or candidate.without_box:
            continue
        try:
            if candidate.path not in files_of:
                files_of[candidate.path] = _files(candidate.path, source)
            candidate.files = files_of[candidate.path]
        except BadRecord as bad:
            candidate.add(bad)
    sizes = _header_sizes({path for files in files_of.values() for path in files})
    for candidate in candidates:
        files = candidate.files
        if not files:
            continue
        for level, path in enumerate(files):
            failure = sizes[path]
            if isinstance(failure, BadRecord):
                ranked_prefix = "ranked " if level else ""
                candidate.add(BadRecord(ranked_prefix + failure.reason, failure.what))
        size = sizes[files[0]]
        if isinstance(size, BadRecord):
            continue
        readable = [file for file in files if not isinstance(sizes[file], BadRecord)]
        # Of one size in bytes first, so that hardly any file is read.
        if alike := next((two for two in pairwise(readable) if filecmp.cmp(*two, shallow=False)), None):
            candidate.add(BadRecord("ranked images alike", f"{alike[0]} and {alike[1]} are the same image"))
        if candidate.box is not None and candidate.line is not None:
            try:
                check_fits(candidate.box, size)
            except BadRecord as bad:
                candidate.add(bad, candidate.line.where)


def _files(path: Path, source: ImageSource) -> tuple[Path, ...]:
    return _ranked_paths(path, source.folders) if isinstance(source, Folders) else (path,)


def _ranked_paths(path: Path, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    first = os.path.abspath(folders[0])  # noqa: PTH100
    below = os.path.relpath(os.path.abspath(path), first)  # noqa: PTH100
    if below.split(os.sep, 1)[0] == os.pardir:
        raise BadRecord("image outside the first ranked folder", f"{path} is not in {folders[0]}")
    return (path, *(find_file(folder / below) for folder in folders[1:]))


def _header_sizes(paths: Iterable[Path]) -> dict[Path, tuple[int, int] | BadRecord]:
    """(width, height) of each image, or what is wrong with it; each file is opened once."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        sizes = pool.map(_header_size, ordered, chunksize=1)
        bar = tqdm(sizes, total=len(ordered), desc="Checking images", unit=" files", disable=None)
        return dict(zip(ordered, bar, strict=True))


def _header_size(path: Path) -> tuple[int, int] | BadRecord:
    try:
        if not path.exists():
            return BadRecord("image missing", f"no image {path}")
        return transposed_size(path)
    except (ImageError, OSError) as error:
        return BadRecord("image unreadable", str(error))


# The result


def _sum_up(
    candidates: list[Candidate],
    pairs_file: Path,
    on_bad_record: Literal["stop", "drop"],
    excluded: frozenset[str],
    rows: RowWriter,
    source: ImageSource,
) -> Records:
    total = len(candidates)
    bad = [candidate for candidate in candidates if candidate.problems]
    without_box = sum(candidate.without_box and not candidate.problems for candidate in candidates)
    good = [candidate for candidate in candidates if not candidate.problems and not candidate.without_box]
    said = report(bad, pairs_file, total) if bad else ""
    if not good:
        counts = f"of {total}, {len(bad)} are bad and {without_box} have no box"
        if excluded:
            counts += f"; {len(excluded)} more are excluded"
        raise DataError(f"{said}\n{pairs_file}: no record is left: {counts}.".lstrip())
    if bad and on_bad_record == "stop":
        rest = f"--on_bad_record drop leaves these records out and uses the other {len(good)}."
        raise DataError(f"{said}\n{rest}")
    if bad:
        said += f"\nLeft out (--on_bad_record drop); records used: {len(good)}."
    numbers = [candidate.stored for candidate in good if candidate.stored is not None]
    boxes = (candidate.box for candidate in good if candidate.box is not None)
    edges = (edge for box in boxes for edge in (box.left, box.top, box.right, box.bottom))
    records = rows.stored(numbers, edges, partial(_record, source))
    return Records(records, dropped=len(bad), without_box=without_box, report=said, excluded=excluded)


def open_records(index: Path, source: ImageSource | None) -> StoredRows[Record]:
    """Records that another process has saved (``StoredRows.save``), their images from the same source."""
    return StoredRows.open(index, partial(_record, source or ImageOnly()))


def _record(source: ImageSource, row: Any, box: Sequence[int]) -> Record:
    """The record of a row, as ``_read_candidates`` writes it."""
    record_id, img_path, path, *texts = row
    files = _files(Path(path), source)
    images: RankedImages
    match source:
        case ImageOnly() | Folders():
            images = ImageFiles(files)
        case Crops(seed=seed):
            images = ImageAndCrop(files[0], key=f"{seed}/{record_id}")
        case BoxLists(drawing=drawing):
            images = MaskedBox(files[0], Box(*box), drawing)
    return Record(Pair(record_id, img_path, *texts), images)
