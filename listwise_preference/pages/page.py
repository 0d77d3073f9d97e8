"""A page that opens from disk: a folder of HTML, one data file in JavaScript and small images; no server, no network.

``Page.start`` writes the page without its data and ``Page.finish`` the data. A page that is opened between them, or
after a run that was stopped, says that it was not finished. Its content security policy lets it load files only.
"""

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from listwise_preference.errors import DataError
from listwise_preference.files import write_atomic

THUMBNAILS = "thumbs"  # the folder of a page's small images


@dataclass(frozen=True)
class Page:
    """One kind of page.

    Attributes:
        package: where its own files are: ``name``.html, which is the body, ``name``.css and ``name``.js.
        title: shown until the script sets another.
        data_file: what ``finish`` writes beside them; it sets ``window.variable``.
        asks: whether it asks the server that it comes from; a page from disk has none.
    """

    package: str
    name: str
    title: str
    data_file: str
    variable: str
    asks: bool = False

    def check(self, folder: Path) -> None:
        """Refuse a folder that the page cannot be written to; nothing is written.

        Raises:
            DataError: the folder holds something else, or cannot be read.
        """
        try:
            found = {file.name for file in folder.iterdir()} if folder.exists() else set()
        except OSError as error:
            raise DataError(f"{folder}: no folder for the page: {error.strerror}") from None
        # The page's own script tells it from other kinds of pages and from the user's files.
        if found and f"{self.name}.js" not in found:
            raise DataError(f"{folder}: the folder holds other files; name a new one for the page")

    def start(self, folder: Path) -> None:
        """Write the page without its data and small images, in place of an older one of the same kind.

        Raises:
            DataError: the folder holds something else, or cannot be made.
        """
        self.check(folder)
        for old in (folder / self.data_file, *folder.glob(f"{THUMBNAILS}/*.jpg")):
            old.unlink(missing_ok=True)
        own, shared = resources.files(self.package), resources.files(__package__)
        for source, file in (
            *((own, f"{self.name}.{kind}") for kind in ("js", "css")),
            *((shared, f"page.{kind}") for kind in ("js", "css")),
        ):
            write_atomic(folder / file, (source / file).read_bytes())
        html = (shared / "page.html").read_text(encoding="utf-8")
        body = (own / f"{self.name}.html").read_text(encoding="utf-8")
        connect = "connect-src 'self'; " if self.asks else ""
        content = html.format(title=self.title, name=self.name, data_file=self.data_file, body=body, connect=connect)
        write_atomic(folder / "index.html", content)

    def finish(self, folder: Path, value: Any) -> Path:
        """Write the data and return the page's ``index.html``."""
        write_atomic(folder / self.data_file, f"window.{self.variable} = {javascript(value)};\n")
        return folder / "index.html"


def javascript(value: Any) -> str:
    """JSON that is also JavaScript, in ASCII, and that no parser of HTML takes for a tag."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def link(folder: Path, file: Path) -> str:
    """A relative address of the file, so that it holds as long as page and file move together."""
    return quote(os.fsencode(Path(os.path.relpath(file, folder)).as_posix()))
