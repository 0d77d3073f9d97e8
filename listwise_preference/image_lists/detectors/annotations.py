"""``--detector annotations``: boxes that the user has, COCO instances JSON or JSONL of {"img_path", "label", "box"}.

A JSONL box is [left, top, right, bottom] in pixels of the EXIF-transposed image, right and bottom exclusive; a COCO
bbox is [left, top, width, height].
"""

import logging
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from listwise_preference.data.pairs import Entry
from listwise_preference.english.singular import singulars
from listwise_preference.errors import DataError
from listwise_preference.files import parse_json, read_rows, read_text
from listwise_preference.image_lists.detectors.detect import DetectorEntry, Failed, Found, Query, cut_box

logger = logging.getLogger("listwise_preference")

# A word -> labels of broader meaning. A phrase and a label match when either is a meaning of the other: the phrase
# "person" finds boxes labelled "man", and "man" those labelled "person"; "man" never finds "woman". The broader words
# are mostly COCO's labels.
_BROADER_TABLE = """
man, woman, boy, girl, child, kid, baby, toddler, lady, gentleman, guy, adult, teenager: person
player, skier, snowboarder, surfer, skateboarder, rider, cyclist, driver, pedestrian, worker, chef: person
batter, pitcher, catcher, umpire, bride, groom, astronaut, photographer: person
dog, cat, bird, horse, cow, sheep, elephant, bear, zebra, giraffe, moose, fish: animal
puppy, doggy, hound: dog, animal
kitten, kitty: cat, animal
seagull, gull, pigeon, parrot, duck, goose, owl, eagle, swan: bird, animal
bull, calf, ox, cattle: cow, animal
pony, foal: horse, animal
lamb: sheep, animal
car, truck, bus, train, motorcycle, bicycle, boat, airplane: vehicle
sedan, taxi, cab, suv, automobile, jeep: car, vehicle
pickup, lorry: truck, vehicle
bike, tricycle: bicycle, vehicle
motorbike, moped, scooter: motorcycle, vehicle
plane, aeroplane, aircraft, jet, jetliner: airplane, vehicle
ship, canoe, kayak, sailboat, yacht: boat, vehicle
sofa, loveseat: couch
television, tv set, monitor: tv
phone, cellphone, mobile phone, smartphone: cell phone
laptop computer, notebook computer: laptop
table, desk: dining table
plant, houseplant: potted plant
ball, football, soccer ball, basketball, baseball, tennis ball: sports ball
purse, bag: handbag
mug, teacup: cup
parasol: umbrella
doughnut: donut
fridge: refrigerator
remote control: remote
hair dryer: hair drier
rucksack: backpack
luggage: suitcase
"""
_BROADER = {
    word.strip(): {label.strip() for label in labels.split(",")}
    for words, _, labels in (line.partition(":") for line in _BROADER_TABLE.split("\n"))
    for word in words.split(",")
    if labels
}
# Compounds that are not a kind of their last word.
_NOT_ITS_LAST_WORD = {"hot dog", "teddy bear", "sea horse", "sea lion", "guinea pig", "prairie dog", "fire hydrant"}
_EXAMPLES = 3


@dataclass
class _Image:
    """What is annotated on one image; ``size`` (width, height) is the size it was annotated at, where known."""

    size: tuple[int, int] | None = None
    boxes: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)


class Annotations:
    """Answers queries from a file of boxes.

    An image's path in the file must be that of the pairs. COCO names its images without a folder: there the bare
    name is enough, unless several images of the pairs have it.

    Labels match a phrase exactly (singular or plural), else by the table of broader words, else when the label is the
    last word of the phrase ("frying pan" finds "pan") or the phrase the last word of the label ("shuttle" finds
    "space shuttle"); a nearer kind of match shuts out the others.

    Args:
        img_paths: all images that will be asked for, as the pairs have them.

    Raises:
        DataError: the file cannot be read, or has neither form.
    """

    def __init__(self, file: Path, img_paths: Iterable[str] = ()) -> None:
        self.file = file
        self.problems: list[str] = []
        self._is_coco = False
        self._same_name = Counter(posixpath.basename(path) for path in set(map(_normal, img_paths)))
        self._images: dict[str, _Image] = defaultdict(_Image)
        content = _read(file)
        if isinstance(content, dict) and "annotations" in content:
            self._is_coco = True
            self._read_coco(content)
        elif isinstance(content, dict):
            self._read_lines([(1, content)])
        else:
            self._read_lines(content)

    def report(self, img_paths: Iterable[str]) -> str:
        """What a user should know before a run over these images; empty when nothing is amiss.

        Raises:
            DataError: the file has none of these images.
        """
        paths = sorted(set(img_paths))
        missing = [path for path in paths if self._find(path) is None]
        if paths and len(missing) == len(paths):
            known = ", ".join(list(self._images)[:_EXAMPLES]) or "none at all"
            raise DataError(
                f"--annotations {self.file} has boxes for none of the {len(paths)} images of the pairs: it names"
                f" {known}; the pairs name {', '.join(paths[:_EXAMPLES])}. Is it of another data set?"
            )
        said = []
        if self.problems:
            said.append(f"{self.file}: {len(self.problems)} annotations cannot be used and are left out:")
            said += [f"  {problem}" for problem in self.problems[:_EXAMPLES]]
        if missing:
            shown = ", ".join(missing[:_EXAMPLES])
            said.append(f"{self.file}: no boxes for {len(missing)} of {len(paths)} images: {shown}")
        unclear = [path for path in missing if self._is_coco and posixpath.basename(path) in self._images]
        if unclear:
            said.append(
                f"  {len(unclear)} of them have a name that the file knows, but so have images in other folders:"
                f" write the folder in file_name, e.g. {unclear[0]}"
            )
        return "\n".join(said)

    def prepare(self, queries: Sequence[Query]) -> list[tuple[Query, tuple[int, int]]]:
        """Nothing to do ahead of time."""
        return [(query, query.image.size) for query in queries]

    def detect(self, prepared: Sequence[tuple[Query, tuple[int, int]]]) -> list[list[Found] | Failed]:
        """Per query the boxes of matching labels, without scores."""
        return [self._answer(query, size) for query, size in prepared]

    def boxes(self, img_path: str, size: tuple[int, int]) -> list[Found] | Failed:
        """All that is annotated on an image of ``size`` (width, height), each box cut to it."""
        image = self._find(img_path)
        if image is None:
            return []
        if image.size is not None and image.size != size:
            return Failed(
                f"{img_path} was annotated at {image.size[0]} x {image.size[1]} pixels ({self.file.name}),"
                f" the EXIF-transposed image has {size[0]} x {size[1]}: the boxes do not fit it"
            )
        boxes = [(label, cut_box(*edges, size=size)) for label, edges in image.boxes]
        return [Found(label, box, None) for label, box in boxes if box is not None]

    def _answer(self, query: Query, size: tuple[int, int]) -> list[Found] | Failed:
        inside = self.boxes(query.img_path, size)
        if isinstance(inside, Failed) or not query.phrases:
            return inside
        found = []
        for phrase in query.phrases:
            kinds = [_match(phrase, one.phrase) for one in inside]
            nearest = min((kind for kind in kinds if kind is not None), default=None)
            if nearest is not None:
                found += [
                    Found(phrase, one.box, None) for one, kind in zip(inside, kinds, strict=True) if kind == nearest
                ]
        return found

    def _find(self, img_path: str) -> _Image | None:
        path = _normal(img_path)
        name = posixpath.basename(path)
        if path not in self._images and self._is_coco and self._same_name[name] <= 1:
            return self._images.get(name)
        return self._images.get(path)

    # Reading

    def _read_coco(self, content: dict[str, Any]) -> None:
        try:
            labels = {category["id"]: _plain(category["name"]) for category in content["categories"]}
            images = {image["id"]: image for image in content["images"]}
            for image in images.values():
                size = (image["width"], image["height"]) if "width" in image and "height" in image else None
                self._images[_normal(image["file_name"])].size = size
            annotations = list(content["annotations"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"--annotations {self.file}: not COCO instances: images need id and file_name, categories id and name"
                f" ({type(error).__name__}: {error})"
            ) from None
        for number, annotation in enumerate(annotations, start=1):
            where = f"annotation {number}"
            if not isinstance(annotation, dict):
                self.problems.append(f"{where} is not an object")
            elif annotation.get("iscrowd"):
                continue  # a region of many objects, not the box of one
            elif not _knows(images, annotation.get("image_id")) or not _knows(labels, annotation.get("category_id")):
                self.problems.append(f"{where} names an image or a category that is not in the file")
            elif (box := _numbers(annotation.get("bbox"))) is None:
                self.problems.append(f"{where} has no bbox of four numbers")
            else:
                left, top, width, height = box
                path = images[annotation["image_id"]]["file_name"]
                self._add(where, path, labels[annotation["category_id"]], (left, top, left + width, top + height))

    def _read_lines(self, rows: Iterable[tuple[int, Any]]) -> None:
        for number, row in rows:
            where = f"record {number}"
            if not isinstance(row, dict) or not isinstance(row.get("img_path"), str):
                self.problems.append(f'{where} has no "img_path"')
            elif not isinstance(row.get("label"), str) or not _plain(row["label"]):
                self.problems.append(f'{where} has no "label"')
            elif (box := _numbers(row.get("box"))) is None:
                self.problems.append(f'{where} has no "box" of four numbers')
            else:
                self._add(where, row["img_path"], _plain(row["label"]), box)
        if not self._images:
            raise DataError(
                f"--annotations {self.file}: no usable record ({'; '.join(self.problems[:_EXAMPLES])}); write COCO"
                ' instances JSON, or lines of {"img_path", "label", "box": [left, top, right, bottom]}'
            )

    def _add(self, where: str, path: str, label: str, edges: tuple[float, float, float, float]) -> None:
        left, top, right, bottom = edges
        if right <= left or bottom <= top:
            self.problems.append(f"{where}: box of no size, {right - left:g} x {bottom - top:g} pixels, on {path}")
        else:
            self._images[_normal(path)].boxes.append((label, edges))


def _match(phrase: str, label: str) -> int | None:
    """How near a phrase and a label are: 0 the same, 1 by the table, 2 by the last word of one; None: another thing."""
    phrases, labels = singulars(_plain(phrase)), singulars(label)
    if phrases & labels:
        return 0
    if any(_BROADER.get(one, set()) & labels for one in phrases) or any(
        _BROADER.get(one, set()) & phrases for one in labels
    ):
        return 1
    if _last_words(phrases) & labels or _last_words(labels) & phrases:
        return 2
    return None


def _last_words(words: set[str]) -> set[str]:
    return {word.rpartition(" ")[2] for word in words if " " in word and word not in _NOT_ITS_LAST_WORD}


def _plain(label: str) -> str:
    return " ".join(label.lower().replace("_", " ").replace("-", " ").split())


def _knows(table: dict[Any, Any], key: Any) -> bool:
    """Whether the key is there; lists and objects, which cannot be keys, are not."""
    return isinstance(key, int | str) and key in table


def _normal(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _numbers(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        return None
    return value[0], value[1], value[2], value[3]


def _read(file: Path) -> Any:
    """One JSON object, or records with their numbers."""
    try:
        value = parse_json(read_text(file), file)
    except DataError:  # lines, or a file that the other reader complains of
        value = None
    if isinstance(value, dict):
        return value
    return (
        list(enumerate(value, 1)) if isinstance(value, list) else [(row.number, row.value) for row in read_rows(file)]
    )


def _load(options: Mapping[str, Any], entries: Sequence[Entry], dtype: str) -> Annotations:
    annotations = Annotations(options["annotations"], (entry.img_path for entry in entries if entry.img_path))
    readable = (entry.pair.img_path for entry in entries if entry.pair and entry.path and entry.path.exists())
    if report := annotations.report(readable):
        logger.info(report)
    return annotations


ENTRY = DetectorEntry(
    help="they are in the file --annotations",
    options={
        "annotations": {
            "type": Path,
            "metavar": "FILE",
            "help": "COCO instances JSON, or JSONL of {img_path, label, box: [left, top, right, bottom]}",
        }
    },
    load=_load,
)
