"""``--detector annotations``: boxes that the user has, in COCO's form, as JSONL, or as annotation tools save them.

A JSONL box is [left, top, right, bottom] in pixels of the EXIF-transposed image, right and bottom exclusive; a COCO
bbox is [left, top, width, height].
"""

import logging
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from listwise_preference.data.pairs import Entry
from listwise_preference.data.ranked_images import transposed_size
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record, path_key
from listwise_preference.image_lists.detectors.annotation_forms import read_box_file
from listwise_preference.image_lists.detectors.box_files import FileImage, Size, find_form, shown_numbers
from listwise_preference.image_lists.detectors.detect import DetectorEntry, Failed, Found, Query
from listwise_preference.image_lists.detectors.labels import match

logger = logging.getLogger("listwise_preference")

_EXAMPLES = 3
_UNKNOWN = (10**6, 10**6)  # no box reaches past it


class Annotations:
    """Answers queries from a file of boxes.

    An image's path in the file must be that of the pairs. COCO and annotation tools name images without a folder: there
    the bare name is enough, unless several images of the pairs have it. Of the labels that match a phrase the nearest
    are taken (``labels.match``).

    Args:
        img_paths: all images that will be asked for, as the pairs have them.
        sizes: (width, height) of those that can be read, EXIF-transposed: boxes on them, and on images whose size the
            file tells, are checked at once and show what the file's numbers are.
        image_root: what relative paths are relative to, in the pairs and in the file; absolute ones below it are as
            those.

    Raises:
        DataError: the file cannot be read, has neither form, or its numbers may be several things.
    """

    def __init__(
        self,
        file: Path,
        img_paths: Iterable[str] = (),
        sizes: Mapping[str, Size] | None = None,
        image_root: Path | None = None,
    ) -> None:
        self.file = file
        self._root = image_root
        self._read = read_box_file(file)
        for name in [name for name in self._read.images if path_key(name, image_root) != name]:
            self._read.images[path_key(name, image_root)] += self._read.images.pop(name)
        self._sizes = sizes or {}
        self._without: dict[str, list[str]] = {}
        self._names = self._by_name()
        self._labels = {box.label for images in self._read.images.values() for image in images for box in image.boxes}
        img_paths = set(img_paths)
        self._moved = self._other_root(img_paths)
        self._same_name = Counter(posixpath.basename(path) for path in set(map(self._key, img_paths)))
        if self._moved is not None:
            there, here = self._moved
            example = f"{there or '.'} is {here or '.'} in the pairs"
            self._read.noted.add("image paths with another beginning, matched by their common end", example)
        asked = {image.name: size for path, size in self._sizes.items() for image in self._find(path)}
        boxes = [
            (image, box, image.size or asked.get(image.name))
            for images in self._read.images.values()
            for image in images
            for box in image.boxes
        ]
        own = self._read.form
        self._form = find_form(own, [(box.numbers, size) for _, box, size in boxes if size], file)
        if self._form != own:
            self._read.noted.add(f"boxes read as {self._form}, which all of them fit", boxes[0][1].where)
        for image, box, size in boxes:
            placed, remark = box.place(self._form, size or _UNKNOWN)
            if remark:
                tally = self._read.noted if placed else self._read.left_out
                tally.add(remark, f"{box.where}, {shown_numbers(box.numbers)} on {image.name}")

    def report(self, img_paths: Iterable[str]) -> str:
        """What a user should know before a run over these images; empty when nothing is amiss.

        Raises:
            DataError: the file has none of these images.
        """
        images = self._read.images
        paths = sorted(set(img_paths))
        missing = [path for path in paths if not self._find(path)]
        if paths and len(missing) == len(paths):
            known = ", ".join([same[0].name for same in images.values()][:_EXAMPLES]) or "none at all"
            raise DataError(
                f"--annotations {self.file} has boxes for none of the {len(paths)} images of the pairs: it names"
                f" {known}; the pairs name {', '.join(paths[:_EXAMPLES])}. Is it of another data set?"
                + "".join(f"\n{line}" for line in ([] if images else self._read.left_out.lines()))
            )
        said = []
        twice = [why for path in paths if (why := self._unclear(path, self._find(path, self._sizes.get(path))))]
        of_no_boxes = {"images that the file does not have": missing, "images that may be several of the file": twice}
        self._without = {what: which for what, which in of_no_boxes.items() if which}
        left_out = self._read.left_out
        if left_out.counts:
            said.append(f"{self.file}: {left_out.counts.total():,} annotations cannot be used and are left out:")
            said += left_out.lines()
        if self._read.noted.counts:
            said += [f"{self.file}: not as they stand in the file:", *self._read.noted.lines()]
        if missing:
            shown = ", ".join(missing[:_EXAMPLES])
            said.append(f"{self.file}: no boxes for {len(missing)} of {len(paths)} images: {shown}")
        bare = self._read.bare_names
        unclear = [path for path in missing if bare and posixpath.basename(self._key(path)) in self._names]
        if unclear:
            said.append(
                f"  {len(unclear)} of them have a name that the file knows, but so have images in other folders:"
                f" write the folder in file_name, e.g. {unclear[0]}"
            )
        if twice:
            said.append(f"{self.file}: {len(twice)} images of the pairs may be several of the file, and are left out:")
            said += [f"  {why}" for why in twice[:_EXAMPLES]]
        return "\n".join(said)

    def lost(self) -> str:
        """What of the file is not used, by reason with examples; empty when all is. Call :meth:`report` before."""
        lines = self._read.left_out.lines()
        lines += [
            f"  {what}: {len(paths):,}, e.g. {'; '.join(paths[:_EXAMPLES])}" for what, paths in self._without.items()
        ]
        return "\n".join([f"{self.file}: not used for boxes:", *lines]) if lines else ""

    def summary(self) -> Record:
        """What summary.json says of the file."""
        return {
            "annotations": {
                "left_out": self._read.left_out.as_record(),
                "noted": self._read.noted.as_record(),
                "images": {what: {"count": len(paths), "example": paths[0]} for what, paths in self._without.items()},
            }
        }

    def knows(self, img_path: str, phrase: str) -> bool:
        """Whether an object without a box is not in the image: the file has the image, and somewhere such a label."""
        return bool(self._find(img_path)) and any(match(phrase, label) is not None for label in self._labels)

    def prepare(self, queries: Sequence[Query]) -> list[tuple[Query, Size]]:
        """Nothing to do ahead of time."""
        return [(query, query.image.size) for query in queries]

    def detect(self, prepared: Sequence[tuple[Query, Size]]) -> list[list[Found] | Failed]:
        """Per query the boxes of matching labels, without scores."""
        return [self._answer(query, size) for query, size in prepared]

    def boxes(self, img_path: str, size: Size) -> list[Found] | Failed:
        """All that is annotated on an image of ``size`` (width, height), each box cut to it."""
        images = self._find(img_path)
        if not images:
            return []
        fitting = self._find(img_path, size)
        if not fitting:
            at = images[0].size or size
            return Failed(
                f"{img_path} was annotated at {at[0]} x {at[1]} pixels ({self.file.name}),"
                f" the EXIF-transposed image has {size[0]} x {size[1]}: the boxes do not fit it"
            )
        if why := self._unclear(img_path, fitting):
            return Failed(why)
        placed = [(box.label, box.place(self._form, size)[0]) for box in fitting[0].boxes]
        return [Found(label, box, None) for label, box in placed if box is not None]

    def _answer(self, query: Query, size: Size) -> list[Found] | Failed:
        inside = self.boxes(query.img_path, size)
        if isinstance(inside, Failed) or not query.phrases:
            return inside
        found = []
        for phrase in query.phrases:
            kinds = [match(phrase, one.phrase) for one in inside]
            nearest = min((kind for kind in kinds if kind is not None), default=None)
            if nearest is not None:
                found += [
                    Found(phrase, one.box, None) for one, kind in zip(inside, kinds, strict=True) if kind == nearest
                ]
        return found

    def _key(self, img_path: str) -> str:
        key = path_key(img_path, self._root)
        return posixpath.splitext(key)[0] if self._read.by_stem else key

    def _other_root(self, img_paths: Iterable[str]) -> tuple[str, str] | None:
        """(beginning in the file, beginning in the pairs) where one takes the other's place; None where none does.

        What follows must be more than a name, since two folders may each have a 0001.jpg; a name alone is enough below
        an absolute path. One pair of beginnings holds for all images: the one that most of them have, where no other
        pair of beginnings would find any of them as well.
        """
        if self._read.bare_names and not any("/" in key for key in self._read.images):
            return None
        by_name: dict[str, list[str]] = {}
        for key in self._read.images:
            by_name.setdefault(posixpath.basename(key), []).append(key)
        claims: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
        for path in map(self._key, img_paths):
            for key in () if path in self._read.images else by_name.get(posixpath.basename(path), []):
                if beginnings := _beginnings(key, path):
                    theirs, ours = claims.setdefault(beginnings, (set(), set()))
                    theirs.add(key)
                    ours.add(path)
        if not claims:
            return None
        best = max(claims, key=lambda one: len(claims[one][1]))
        others = [claim for beginnings, claim in claims.items() if beginnings != best]
        unclear = any(claims[best][0] & theirs or claims[best][1] & ours for theirs, ours in others)
        return None if unclear else best

    def _by_name(self) -> dict[str, list[FileImage]]:
        """The file's images by their names alone."""
        names: dict[str, list[FileImage]] = {}
        for key, images in self._read.images.items():
            if "/" not in key or self._read.any_folder:
                names.setdefault(posixpath.basename(key), []).extend(images)
        return names

    def _find(self, img_path: str, size: Size | None = None) -> list[FileImage]:
        """The file's images of this path and, where they have one, of this size; mostly one."""
        key = self._key(img_path)
        name = posixpath.basename(key)
        images = self._read.images.get(key, [])
        if not images and self._moved is not None and key.startswith(self._moved[1]):
            images = self._read.images.get(self._moved[0] + key.removeprefix(self._moved[1]), [])
        if not images and self._read.bare_names and self._same_name[name] <= 1:
            images = self._names.get(name, [])
        found = [image for image in images if None in (size, image.size) or image.size == size]
        return [image for image in found if image.name == img_path] or found

    def _unclear(self, img_path: str, images: Sequence[FileImage]) -> str:
        """Why the boxes of an image cannot be told; empty where they can, as when all of these have the same ones."""
        if problem := next((image.problem for image in images if image.problem), ""):
            return f"{img_path}: {problem} ({self.file.name}): it is unclear whose boxes are meant"
        if len({frozenset((box.label, box.numbers, box.turned) for box in image.boxes) for image in images}) > 1:
            names = " and ".join(dict.fromkeys(image.name for image in images))
            return (
                f"{img_path}: {len(images)} images of {self.file.name} have this name, with different boxes ({names}):"
                " it is unclear whose are meant. Write the folder in file_name"
            )
        return ""


def _beginnings(there: str, here: str) -> tuple[str, str] | None:
    """What two paths with the same end begin with; None where only the name is common and neither is absolute."""
    theirs, ours = there.split("/"), here.split("/")
    common = 0
    while common < min(len(theirs), len(ours)) and theirs[-1 - common] == ours[-1 - common]:
        common += 1
    first, second = "/".join(theirs[:-common]), "/".join(ours[:-common])
    is_root = not first or not second or there.startswith("/") or (theirs[0].endswith(":") and len(theirs[0]) == 2)
    if common < 2 and not is_root:
        return None
    return (f"{first}/" if len(theirs) > common else ""), (f"{second}/" if len(ours) > common else "")


def _load(options: Mapping[str, Any], entries: Sequence[Entry], dtype: str) -> Annotations:
    paths = {entry.img_path: entry.path for entry in entries if entry.img_path and entry.path and entry.path.exists()}
    with ThreadPoolExecutor(8) as pool:
        sizes = {name: size for name, size in zip(paths, pool.map(_size, paths.values()), strict=True) if size}
    names = (entry.img_path for entry in entries if entry.img_path)
    annotations = Annotations(options["annotations"], names, sizes, options.get("image_root"))
    readable = (entry.pair.img_path for entry in entries if entry.pair and entry.path and entry.path.exists())
    if report := annotations.report(readable):
        logger.info(report)
    return annotations


def _size(path: Path) -> Size | None:
    try:
        return transposed_size(path)
    except (ImageError, OSError):
        return None


ENTRY = DetectorEntry(
    help="they are in the file --annotations",
    options={
        "annotations": {
            "type": Path,
            "metavar": "FILE",
            "help": "COCO instances, JSONL of {img_path, label, box: [left, top, right, bottom]}, Label Studio JSON,"
            " CVAT XML, or a folder of VOC, LabelMe or YOLO files",
        }
    },
    load=_load,
    summary=Annotations.summary,
    knows=Annotations.knows,
    lost=Annotations.lost,
)
