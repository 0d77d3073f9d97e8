"""A page that opens from disk: a folder of HTML, one data file in JavaScript and small images; no server, no network.

``start_page`` copies the page's own files and ``finish_page`` writes the data. Between them the folder has none, and a
page opened then, or after a run that was stopped, says that it was not finished.
"""

import json
import os
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from listwise_preference.errors import DataError

STYLESHEET = "page.css"


def check_page(folder: Path, own: Traversable) -> None:
    """Refuse a folder that is no place for the page in ``own``; nothing is written.

    Raises:
        DataError: the folder holds something else, or cannot be read.
    """
    try:
        found = {file.name for file in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise DataError(f"{folder}: no folder for the page: {error.strerror}") from None
    # An own script tells one kind of page from another, and both from the user's files.
    if found and not {asset.name for asset in own.iterdir() if asset.name.endswith(".js")} <= found:
        raise DataError(f"{folder}: the folder holds other files; name a new one for the page")


def start_page(folder: Path, own: Traversable, data_file: str) -> None:
    """Fill a folder with the files in ``own`` and the shared stylesheet, in place of an older page of the same kind.

    Raises:
        DataError: the folder holds something else, or cannot be made.
    """
    check_page(folder, own)
    assets = [*_assets(own), resources.files(__package__) / STYLESHEET]
    try:
        (folder / data_file).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for asset in assets:
            (folder / asset.name).write_bytes(asset.read_bytes())
    except OSError as error:
        raise DataError(f"{folder}: no folder for the page: {error.strerror}") from None


def _assets(own: Traversable) -> list[Traversable]:
    return [file for file in own.iterdir() if file.name.endswith((".html", ".css", ".js"))]


def finish_page(folder: Path, data_file: str, variable: str, value: Any) -> Path:
    """Write the data as ``window.variable`` and return the page's ``index.html``."""
    (folder / data_file).write_text(f"window.{variable} = {javascript(value)};\n", encoding="ascii")
    return folder / "index.html"


def javascript(value: Any) -> str:
    """JSON that is also JavaScript, in ASCII, and that no parser of HTML takes for a tag."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def link(folder: Path, file: Path) -> str:
    """A relative address of the file, so that it holds as long as page and file move together."""
    return quote(os.fsencode(Path(os.path.relpath(file, folder)).as_posix()))
