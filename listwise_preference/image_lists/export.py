"""The lists in other forms: images in the release's folders, and records for other trainers."""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from listwise_preference.data.pairs import Pair
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record, write_json

# Says that a folder of images is this program's, to be written again.
_MADE = "made_by.json"


@dataclass(frozen=True)
class Usable:
    """A record with a box to train on; ``path`` is its image."""

    pair: Pair
    path: Path
    box: Box


@dataclass(frozen=True)
class Written:
    """The records whose images were written, and those that were not: folders have one list for each image."""

    records: tuple[Usable, ...]
    left_out: tuple[Usable, ...]


def level_folders(folder: Path, drawing: Drawing) -> tuple[Path, ...]:
    """The folders of the levels with something masked, least first, named by percentage: 25, 50, 75, 100 for five."""
    last = drawing.list_size - 1
    return tuple(folder / f"{100 * level / last:.4g}" for level in range(1, drawing.list_size))


def check_images_folder(folder: Path, images: Collection[Path], image_root: Path, drawing: Drawing) -> None:
    """Refuse a folder where ``write_images`` would overwrite what it has not made; nothing is written.

    Raises:
        DataError: the folder or one of its levels is, holds or is linked to the image root, or holds files of others.
    """
    root = image_root.resolve()
    for place in (folder, *level_folders(folder, drawing)):
        if root.is_relative_to(place.resolve()):
            what = "is the image root" if place.resolve() == root else "holds the image root"
            raise DataError(f"--write_pictures {folder}: {place} {what}; name a folder of its own")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--write_pictures {folder} is a file; name a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MADE).exists():
        raise DataError(f"--write_pictures {folder}: the folder holds other files; name a new one")
    inputs = {path.resolve() for path in images}
    for level in level_folders(folder, drawing):
        for path in images:
            if (level / _below(path, image_root)).resolve() in inputs:
                raise DataError(f"--write_pictures {folder} would write over an image of the pairs, for {path}")


def write_images(folder: Path, records: Sequence[Usable], image_root: Path, drawing: Drawing, threads: int) -> Written:
    """Write the levels of every list below ``folder``, with the path that the image has below the image root.

    Level 0 is the image itself, under the image root. A file that ends in .jpg or .jpeg is JPEG of quality 95, any
    other is PNG whatever its ending, so that all folders have the same file names. ``pairs.json`` names the records
    that the images belong to.

    Raises:
        DataError: the folder holds anything else, lies where images would be overwritten, or cannot be written.
    """
    check_images_folder(folder, [record.path for record in records], image_root, drawing)
    first: dict[Path, Usable] = {}
    for record in records:
        first.setdefault(record.path, record)
    chosen = list(first.values())
    folders = level_folders(folder, drawing)

    def write(record: Usable) -> None:
        below = _below(record.path, image_root)
        levels = ranked_images(open_image(record.path), record.box, drawing)[1:]
        for level, image in zip(folders, levels, strict=True):
            file = level / below
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix.lower() in (".jpg", ".jpeg"):
                image.save(file, "JPEG", quality=95)
            else:
                image.save(file, "PNG")

    try:
        write_json(folder / _MADE, {"made_by": "make_image_lists.py --write_pictures", "drawing": asdict(drawing)})
        with ThreadPoolExecutor(threads) as pool:
            for _ in tqdm(pool.map(write, chosen), total=len(chosen), desc="Writing", unit=" lists", disable=None):
                pass
        write_json(folder / "pairs.json", [_plain(record.pair) for record in chosen])
    except (OSError, ImageError) as error:
        raise DataError(f"--write_pictures {folder}: {error}") from None
    left_out = tuple(record for record in records if first[record.path] is not record)
    return Written(tuple(chosen), left_out)


@dataclass(frozen=True)
class Export:
    """The form of another trainer.

    Attributes:
        help: what is in it, for --help.
        rows: of a record and the images of its list, best first, by absolute path: the image alone where the others
            are not written.
        needs_levels: whether its rows hold images of other levels than the first.
    """

    help: str
    rows: Callable[[Usable, Sequence[str]], list[Record]]
    needs_levels: bool = False


def export(
    form: Export,
    records: Sequence[Usable],
    image_root: Path,
    images: Path | None,
    written: Collection[Usable],
    drawing: Drawing,
) -> list[Record]:
    """All rows of a form; ``images`` is the folder of ``write_images``, ``written`` the records with images there."""
    folders = level_folders(images, drawing) if images is not None else ()

    def levels(record: Usable) -> list[str]:
        below = _below(record.path, image_root)
        return [_absolute(path) for path in (record.path, *(folder / below for folder in folders if record in written))]

    return [row for record in records for row in form.rows(record, levels(record))]


def _plain(pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.id,
        "img_path": pair.img_path,
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }


def _trl(record: Usable, levels: Sequence[str]) -> list[Record]:
    def turn(role: str, text: str, *before: dict[str, str]) -> list[dict[str, Any]]:
        return [{"role": role, "content": [*before, {"type": "text", "text": text}]}]

    row = {
        "images": [levels[0]],
        "prompt": turn("user", record.pair.prompt, {"type": "image"}),
        "chosen": turn("assistant", record.pair.chosen),
        "rejected": turn("assistant", record.pair.rejected),
    }
    return [row]


def _llama_factory(record: Usable, levels: Sequence[str]) -> list[Record]:
    row = {
        "conversations": [{"from": "human", "value": f"<image>{record.pair.prompt}"}],
        "chosen": {"from": "gpt", "value": record.pair.chosen},
        "rejected": {"from": "gpt", "value": record.pair.rejected},
        "images": [levels[0]],
    }
    return [row]


def _ms_swift(record: Usable, levels: Sequence[str]) -> list[Record]:
    """Whole conversations on both sides: with ``rejected_response`` in some rows ms-swift deletes those without it."""

    def conversation(response: str) -> list[dict[str, str]]:
        question = {"role": "user", "content": f"<image>{record.pair.prompt}"}
        return [question, {"role": "assistant", "content": response}]

    def row(rejected: str, better: str, worse: str) -> Record:
        return {
            "messages": conversation(record.pair.chosen),
            "images": [better],
            "rejected_messages": conversation(rejected),
            "rejected_images": [worse],
        }

    text_pair = row(record.pair.rejected, levels[0], levels[0])
    return [text_pair, *(row(record.pair.chosen, better, worse) for better, worse in pairwise(levels))]


EXPORTS = {
    "trl": Export("for its DPOTrainer, text pairs only, since a row has one image for both responses", _trl),
    "ms-swift": Export(
        "a text pair, and an image pair of each two adjacent levels with the chosen response (its rows hold two images,"
        " not a list), which needs --write_pictures",
        _ms_swift,
        needs_levels=True,
    ),
    "llama-factory": Export("ShareGPT form of ranking, text pairs only as for trl", _llama_factory),
}


def _below(path: Path, image_root: Path) -> str:
    """The image's path below the image root, by names alone: a link inside it may lead elsewhere."""
    return os.path.relpath(path, image_root)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
