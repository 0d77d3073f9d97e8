"""The small images of a page, drawn in threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from listwise_preference.errors import ImageError
from listwise_preference.files import Record
from listwise_preference.pages.page import THUMBNAILS

_THREADS = 8

Item = TypeVar("Item")


def write_thumbnails(
    folder: Path, items: Sequence[Item], draw: Callable[[Item, Path], Record], *, desc: str, unit: str
) -> list[Record]:
    """Draw a small image for each item into the page's folder, with a progress bar.

    Args:
        draw: writes an item's image into a file and returns what else the page should know of it.

    Returns:
        For each item {"file": its address for the page, ...}, or {"failure": why there is none} where ``draw`` raised
        ImageError or ValueError.
    """
    (folder / THUMBNAILS).mkdir(exist_ok=True)

    def one(number: int, item: Item) -> Record:
        address = f"{THUMBNAILS}/{number:06}.jpg"
        try:
            return {"file": address} | draw(item, folder / address)
        except (ImageError, ValueError) as error:
            return {"failure": str(error)}

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        drawn = pool.map(one, range(1, len(items) + 1), items)
        return list(tqdm(drawn, total=len(items), desc=desc, unit=unit, disable=None))
