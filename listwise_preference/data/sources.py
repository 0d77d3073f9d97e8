"""The records of a file, or of several, whatever its kind: JSON, JSON lines, CSV, TSV, parquet, a folder, a hub name.

Kinds are told apart by content. JSON and CSV are read here and not by ``datasets``, which gives a column of mixed types
one type: "007" becomes 7, and "null" nothing. A cell of CSV stays the text it is.
"""

import csv
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import Row, first_bytes, iterate_json_rows, parse_json, read_text

logger = logging.getLogger("listwise_preference")

_ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
# Beside the records of a folder, and not records themselves.
_NOT_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Builders of `datasets` that guess a column's type from its texts.
_GUESSING = ("json", "csv", "pandas", "text")
_ROWS_AT_A_TIME = 64  # of parquet, whose rows may hold whole images
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}


def find_sources(names: list[str]) -> list[Path | str]:
    """What the names stand for, in order: files, a folder's files, a folder of ``datasets``, or a name on the hub.

    A name may hold ``*``, ``?`` and ``[...]``, as in a shell.

    Raises:
        DataError: nothing is there, or a folder has no file of records.
    """
    found: list[Path | str] = []
    for name in names:
        path = Path(name)
        if path.is_file() or (path.is_dir() and _saved_by_datasets(path)):
            found.append(path)
        elif path.is_dir():
            files = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in _ENDINGS and one.is_file()]
            files = [one for one in files if one.name not in _NOT_RECORDS]
            if not files:
                raise DataError(f"{name}: no {', '.join(_ENDINGS)} file in this folder")
            found += files
        elif any(sign in name for sign in "*?["):
            anchor = Path(path.anchor)
            files = sorted(one for one in anchor.glob(str(path.relative_to(anchor))) if one.is_file())
            if not files:
                raise DataError(f"{name}: no file has such a name")
            found += files
        elif _HUB_NAME.fullmatch(name) and not path.suffix and not path.parent.is_dir():
            found.append(name)
        else:
            raise DataError(f"{name}: no such file")
    return list(dict.fromkeys(found))


def iterate_rows(source: Path | str, split: str = "train") -> Iterator[Row]:
    """The records of one source, images in it as {"bytes", "path"}.

    Args:
        split: of a hub name, and of a folder of ``datasets`` that has several.

    Raises:
        DataError: it cannot be read, is empty, or needs a package that is not installed.
    """
    if isinstance(source, str):
        return _from_hub(source, split)
    if source.is_dir() and _saved_by_datasets(source):
        return _from_folder(source, split)
    # Not Path.exists(), which raises on names that are too long.
    if source.is_dir() or (set(str(source)) & set("*?[") and not os.path.exists(source)):  # noqa: PTH110
        raise DataError(
            f"{source}: one file is read here; make one of several: python -m listwise_preference.data '{source}' --to"
            " pairs.jsonl"
        )
    kind = _kind(source)
    if kind == "parquet":
        return _from_parquet(source)
    return iter(_read_cells(source)) if kind == "cells" else iterate_json_rows(source)


def read_file_rows(file: Path) -> list[Row]:
    """The records of one file; raises DataError as :func:`iterate_rows`."""
    return list(iterate_rows(file))


def _kind(file: Path) -> str:
    start = first_bytes(file, 1024)
    if not start:
        return "json"  # whose reader says what is wrong
    if start.startswith(b"PAR1"):
        return "parquet"
    if packer := next((name for begin, name in _PACKED.items() if start.startswith(begin)), None):
        raise DataError(f"{file}: packed by {packer}; unpack it first")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    json_like = file.suffix.lower() in (".json", ".jsonl") or text.startswith((b"[", b"{")) or not text
    return "json" if json_like else "cells"


# CSV and TSV


def _read_cells(file: Path) -> list[Row]:
    """Rows of a table with a head, cells apart by comma, semicolon or tab; an empty cell is no value."""
    text = read_text(file)
    head = text.split("\n", 1)[0]
    apart = max(",;\t", key=head.count)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # StringIO with newline="" keeps line ends within quotes as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=apart, strict=True)
    rows: list[Row] = []
    try:
        names = [name.strip() for name in next(reader)]
        if not head.count(apart) or len(set(names)) < len(names):
            raise DataError(f"{file}: neither JSON nor a table: its first line does not name columns")
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{file}: line {line}: {len(cells)} cells where the first line names {len(names)} columns; put a"
                    " text that holds separators or line ends into double quotes"
                )
            number = len(rows) + 1
            value = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
            rows.append(Row(number, file, value, number, line))
    except csv.Error as error:
        raise DataError(f"{file}: line {reader.line_num}: not a table of cells: {error}") from None
    if not rows:
        raise DataError(f"{file}: no records in it: there are no lines below the first")
    return rows


_LISTS = ("images", "messages", "conversations", "completions", "rejected_images", "rejected_messages")


def _cell(name: str, cell: str) -> Any:
    """The text, or the lists and messages that it is JSON of: where its column is one of such, or it holds messages."""
    if not cell.startswith(("[", "{")):
        return cell
    try:
        value = parse_json(cell, name)
    except DataError:
        return cell
    first = value[0] if isinstance(value, list) and value else value
    messages = isinstance(first, dict) and ({"role", "content"} <= set(first) or {"from", "value"} <= set(first))
    return value if messages or name in _LISTS else cell


# parquet, and what `datasets` has


def _from_parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{file}: parquet needs a package that is not installed: pip install pyarrow") from None
    number = 0
    try:
        content = pyarrow.parquet.ParquetFile(file)
        for batch in content.iter_batches(batch_size=_ROWS_AT_A_TIME):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, file, _without_empty(value), number)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: record {number + 1}: not parquet that can be read: {error}") from None
    if not number:
        raise DataError(f"{file}: no records in it")


def _saved_by_datasets(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _from_folder(folder: Path, split: str) -> Iterator[Row]:
    datasets = _datasets(str(folder))
    try:
        content = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: `datasets` cannot load it: {error}") from None
    if isinstance(content, datasets.DatasetDict):
        if split not in content:
            raise DataError(f"{folder}: no split {split}; --split takes one of {', '.join(content)}")
        content = content[split]
    if content.info.builder_name in _GUESSING:
        logger.warning(
            f"{folder} was made of {content.info.builder_name} files; `datasets` changed texts of columns of mixed"
            ' types when it read them ("007" to 7, "null" to nothing): the files themselves are read as they stand'
        )
    return _from_dataset(content, str(folder))


def _from_hub(name: str, split: str) -> Iterator[Row]:
    datasets = _datasets(name)
    try:
        content = datasets.load_dataset(name, split=split)
    except Exception as error:  # the errors of the hub's client are of many kinds
        raise DataError(
            f"{name}: no such file, and `datasets` cannot load it: {' '.join(str(error).split())}"
        ) from None
    check_builder(content, name)
    return _from_dataset(content, name)


def check_builder(content: Any, name: str) -> None:
    """Refuse a data set whose texts ``datasets`` may have changed.

    Raises:
        DataError: it was made of JSON or CSV.
    """
    if content.info.builder_name in _GUESSING:
        raise DataError(
            f"{name} consists of {content.info.builder_name} files; `datasets` changes texts in them (of a column of"
            ' mixed types, "007" and "null"): fetch the files, `hf download NAME --repo-type dataset --local-dir'
            " FOLDER`, and give the folder"
        )


def _from_dataset(content: Any, name: str) -> Iterator[Row]:
    # As arrow: images stay {"bytes", "path"} and are not decoded.
    number = 0
    for batch in content.with_format("arrow").iter(_ROWS_AT_A_TIME):
        for value in batch.to_pylist():
            number += 1
            yield Row(number, name, _without_empty(value), number)
    if not number:
        raise DataError(f"{name}: no records in it")


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: no such file; a folder or hub name of `datasets` needs a package that is not installed:"
            " pip install datasets"
        ) from None
    return datasets


def _without_empty(value: Any) -> Any:
    """Without keys of no value: a column has them in every record, also where only some have something."""
    if isinstance(value, dict):
        return {key: _without_empty(one) for key, one in value.items() if one is not None}
    return [_without_empty(one) for one in value] if isinstance(value, list) else value
