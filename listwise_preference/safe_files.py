"""Files that survive a kill at any moment: written whole or not at all, or line by line with a torn end cut off."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, also when the power fails."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    with unfinished.open("wb") as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


def cut_torn_line(file: Path) -> None:
    """Cut off what an interruption left of a last line, so that the next one starts clean."""
    if file.exists():
        with file.open("r+b") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)


def whole_lines(file: Path) -> list[Any]:
    """The JSON values of a file's lines; what follows the last newline is torn, or being written."""
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
