"""Files of boxes: COCO instances JSON, or JSONL of {"img_path", "label", "box"}, as tools and people write them.

Other forms that tools have are in ``annotation_forms``.

What can be meant in one way only is understood: numbers as text, an unknown size, backslashes in file names, a turned
box of CVAT. What can be meant in several is left out, counted by reason with an example.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from listwise_preference.data.ranked_images import Box
from listwise_preference.errors import DataError
from listwise_preference.files import Record, parse_json, path_key, read_rows, read_text
from listwise_preference.image_lists.detectors.detect import cut_box
from listwise_preference.image_lists.detectors.labels import plain

Size = tuple[int, int]  # width, height
Numbers = tuple[float, float, float, float]

_EXAMPLES = 3
# Boxes that must contradict the file's own form before another one is taken that may be there by chance.
_EVIDENCE = 5
# Of a box that reaches past its image, the share that must be inside.
_INSIDE = 0.2
# How far a box may reach past its image: pixels, and a share of the image's longer side.
_SLACK = (2, 0.02)


@dataclass
class Tally:
    """How often something was met, by what it was, and the first examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, what: str, example: str) -> None:
        """Count one more."""
        self.counts[what] += 1
        if len(self.examples[what]) < _EXAMPLES:
            self.examples[what].append(example)

    def lines(self) -> list[str]:
        """For a user, the most frequent first."""
        counts = self.counts.most_common()
        return [f"  {what}: {count:,}, e.g. {'; '.join(self.examples[what])}" for what, count in counts]

    def as_record(self) -> Record:
        """For summary.json."""
        return {what: {"count": n, "example": self.examples[what][0]} for what, n in self.counts.most_common()}


@dataclass(frozen=True)
class Form:
    """What four numbers of a box are: its corners, or its left upper corner with width and height.

    They count pixels, or shares of the image's width and height in ``unit`` parts.
    """

    corners: bool
    unit: int | None = None

    def __str__(self) -> str:
        numbers = "[left, top, right, bottom]" if self.corners else "[left, top, width, height]"
        return f"{numbers} in {f'shares of {self.unit}' if self.unit else 'pixels'}"

    def edges(self, numbers: Numbers, size: Size) -> Numbers:
        """(left, top, right, bottom) in pixels of an image of this size."""
        left, top, right, bottom = numbers
        if not self.corners:
            right, bottom = left + right, top + bottom
        if self.unit is None:
            return left, top, right, bottom
        across, down = size[0] / self.unit, size[1] / self.unit
        return left * across, top * down, right * across, bottom * down

    def fits(self, numbers: Numbers, size: Size) -> bool:
        """Whether such numbers give a box of some size that lies on the image, give or take a little."""
        if (self.unit == 1) != in_shares(numbers):
            return False
        left, top, right, bottom = self.edges(numbers, size)
        slack = max(_SLACK[0], _SLACK[1] * max(size))
        return (-slack <= left < right <= size[0] + slack) and (-slack <= top < bottom <= size[1] + slack)


def in_shares(numbers: Numbers) -> bool:
    """Whether the numbers, read as pixels, would stay within the first pixel: they are shares of 1."""
    return all(-_SLACK[1] <= number <= 1 + _SLACK[1] for number in numbers)


@dataclass(frozen=True)
class FileBox:
    """One box as the file has it: where it stands, its label and four numbers, and by how many degrees it is turned."""

    where: str
    label: str
    numbers: Numbers
    turned: float = 0.0

    def place(self, form: Form, size: Size) -> tuple[Box | None, str]:
        """The box, cut to an image of this size, and what is to say of it: without a box, why it cannot be used."""
        left, top, right, bottom = edges = self._edges(form, size)
        is_reversed = right < left or bottom < top
        left, top, right, bottom = edges = min(left, right), min(top, bottom), max(left, right), max(top, bottom)
        if right == left or bottom == top:
            return None, "box of no size"
        if form.unit is None and in_shares(self.numbers):
            return None, "shares of 1 among boxes in pixels"
        box = cut_box(*edges, size=size)
        if box is None or box.width * box.height < _INSIDE * (right - left) * (bottom - top):
            return None, "box with no pixel on its image, or with most of it outside"
        if is_reversed:
            return box, "corners in reverse order, or a negative width or height, put right"
        if self.turned or form.fits(self.numbers, size):
            return box, ""
        if Form(not form.corners, form.unit).fits(self.numbers, size):
            return None, f"box past its image as {form}, and inside as {Form(not form.corners, form.unit)}"
        return box, "boxes past the edge, cut to their image"

    def _edges(self, form: Form, size: Size) -> Numbers:
        """(left, top, right, bottom) in pixels; of a turned box those of the upright box around it.

        CVAT turns about the centre.
        """
        left, top, right, bottom = form.edges(self.numbers, size)
        if not self.turned:
            return left, top, right, bottom
        cos, sin = (abs(turn(math.radians(self.turned))) for turn in (math.cos, math.sin))
        x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        half_width, half_height = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
        return x - half_width, y - half_height, x + half_width, y + half_height


@dataclass
class FileImage:
    """One image of the file, by the name that the file has for it.

    ``size`` is the size it was annotated at, where known; ``problem`` says why its boxes cannot be told from another's.
    """

    name: str
    size: Size | None = None
    boxes: list[FileBox] = field(default_factory=list)
    problem: str = ""


@dataclass
class BoxFile:
    """All images of a file, by :func:`path_key` of their names; several with one key may be different images.

    Attributes:
        bare_names: whether an image is found by its name alone where the file has that without folders.
        any_folder: the same whatever folders the file has before it.
        by_stem: whether the file's names have no endings.
        left_out: annotations that cannot be used.
        noted: others that were not taken as they stand.
    """

    file: Path
    form: Form
    bare_names: bool = False
    any_folder: bool = False
    by_stem: bool = False
    images: dict[str, list[FileImage]] = field(default_factory=lambda: defaultdict(list))
    left_out: Tally = field(default_factory=Tally)
    noted: Tally = field(default_factory=Tally)


def find_form(own: Form, boxes: Iterable[tuple[Numbers, Size]], file: Path) -> Form:
    """What the file's numbers are: ``own``, unless boxes contradict it and another form fits all of them.

    Args:
        own: the form that the file should have.
        boxes: numbers, each with the size of its image; those that no form fits say nothing.

    Raises:
        DataError: another form fits where ``own`` does not, but it may be by chance.
    """
    forms = [Form(corners, unit) for unit in (None, 1, 1000) for corners in (own.corners, not own.corners)]
    rows = [(numbers, size) for numbers, size in boxes if any(form.fits(numbers, size) for form in forms)]
    # A box of no width or height is a slip in any form.
    against = [row for row in rows if not own.fits(*row) and not (own.corners and _is_empty(row[0]))]
    # So are corners in reverse order, unless most boxes have them.
    in_order = [row for row in against if not (own.corners and own.fits(_in_order(row[0]), row[1]))]
    if 2 * (len(against) - len(in_order)) < len(rows):
        against = in_order
    fitting = [form for form in forms if all(form.fits(*row) for row in rows)] if against else []
    in_pixels = [form for form in fitting if form.unit is None]
    if fitting and fitting[0].unit == 1:
        return fitting[0]
    is_clear = len(against) >= _EVIDENCE
    if not in_pixels and (not is_clear or 2 * len(against) < len(rows)):
        return own  # shares of 1000 fit almost anything
    if is_clear and fitting:
        # Shares of 1000, as models print them, reach the far end of both sides; pixels of a smaller image do not.
        edges = [fitting[0].edges(numbers, (1000, 1000)) for numbers, _ in rows]
        if in_pixels or all(max(edge[side] for edge in edges) > 900 for side in (2, 3)):
            return fitting[0]
    if not fitting:
        return own
    numbers, size = against[0]
    raise DataError(
        f"--annotations {file}: {len(against)} of {len(rows)} boxes do not fit their images as {own}, e.g."
        f" {shown_numbers(numbers)} on {size[0]} x {size[1]} pixels. All may be {' or '.join(map(str, fitting))}, or of"
        f" images of another size. Write them as {own}"
    )


def shown_numbers(numbers: Numbers) -> str:
    """For a message."""
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"


def _in_order(corners: Numbers) -> Numbers:
    left, top, right, bottom = corners
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _is_empty(corners: Numbers) -> bool:
    return corners[0] == corners[2] or corners[1] == corners[3]


# Reading


def read_coco(file: Path, content: Mapping[str, Any]) -> BoxFile:
    """COCO instances; raises DataError where images, categories or annotations are not as COCO has them."""
    return _Coco(file, content).read()


class _Coco:
    """Reads COCO instances, as COCO has them and as CVAT, Label Studio and others export them."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.content = content
        self.found = BoxFile(file, Form(corners=False), bare_names=True)

    def read(self) -> BoxFile:
        try:
            labels = self._labels()
            images = self._images()
            annotations = list(self.content["annotations"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"--annotations {self.found.file}: not COCO instances: images need id and file_name, categories id and"
                f" name ({type(error).__name__}: {error})"
            ) from None
        crowds = [isinstance(one, dict) and _is_crowd(one) for one in annotations]
        if crowds and all(crowds):
            self.found.noted.add(
                "iscrowd 1 on every annotation: taken for single objects, as masks of CVAT", "annotation 1"
            )
        for number, annotation in enumerate(annotations, start=1):
            where = f"annotation {number}"
            if reason := self._add(where, annotation, images, labels, crowd=crowds[number - 1] and not all(crowds)):
                self.found.left_out.add(reason, where)
        return self.found

    def _labels(self) -> dict[str, str | None]:
        """The label of each category id, None where an id has several."""
        labels: dict[str, str | None] = {}
        for category in self.content["categories"]:
            key, label = _id(category["id"]), plain(category["name"])
            labels[key] = label if labels.get(key, label) == label else None
        return labels

    def _images(self) -> dict[str, FileImage]:
        images: dict[str, FileImage] = {}
        for row in self.content["images"]:
            key, name = _id(row["id"]), row["file_name"]
            image = FileImage(name, known_size(row.get("width"), row.get("height")))
            earlier = images.get(key)
            if earlier is not None and (earlier.name, earlier.size) == (image.name, image.size):
                continue
            if earlier is not None:
                earlier.problem = image.problem = (
                    f"image id {key} is used more than once, for {earlier.name} and for {image.name}"
                )
            images[key] = image
            self.found.images[path_key(name)].append(image)
        return images

    def _add(
        self, where: str, row: Any, images: Mapping[str, FileImage], labels: Mapping[str, str | None], *, crowd: bool
    ) -> str:
        """Keep one annotation, or say why it cannot be used."""
        if not isinstance(row, dict):
            return "not an object"
        image_id, category_id = _id(row.get("image_id")), _id(row.get("category_id"))
        if image_id not in images:
            return "names an image that is not in the file"
        if category_id not in labels:
            return "names a category that is not in the file"
        image, label = images[image_id], labels[category_id]
        if crowd:
            return "iscrowd 1, a region of many objects (CVAT writes it for masks: set it to 0 where it is one object)"
        if image.problem:
            return "image id used more than once"
        if label is None:
            return f"category id {category_id} has more than one name"
        has_bbox, has_segmentation = row.get("bbox") not in (None, []), row.get("segmentation") not in (None, [])
        if not has_bbox and not has_segmentation:
            return "neither bbox nor segmentation"
        if has_segmentation and (not has_bbox or row["bbox"] == [0, 0, 0, 0]):
            numbers = _around_segmentation(row["segmentation"])
            if isinstance(numbers, str):
                return f"no bbox, and {numbers}"
            self.found.noted.add("annotations without a bbox, taken as the box around their segmentation", where)
        else:
            numbers = _numbers(row["bbox"])
        if isinstance(numbers, str):
            return f"bbox {numbers}"
        attributes = row.get("attributes")
        turned = _number(attributes.get("rotation") or 0) if isinstance(attributes, dict) else 0.0
        if turned is None or not math.isfinite(turned) or _number(row.get("rotation") or 0) != 0:
            return "a rotation that is not CVAT's attributes.rotation in degrees"
        if turned % 360:
            self.found.noted.add("turned boxes, taken as the upright box around them", where)
        image.boxes.append(FileBox(where, label, numbers, turned % 360))
        return ""


def read_lines(file: Path, rows: Iterable[tuple[int, Any]]) -> BoxFile:
    """Records of {"img_path", "label", "box"} with their numbers; raises DataError where none can be used."""
    found = BoxFile(file, Form(corners=True))
    by_name: dict[str, FileImage] = {}
    for number, row in rows:
        where = f"record {number}"
        if not isinstance(row, dict) or not isinstance(row.get("img_path"), str):
            found.left_out.add('no "img_path"', where)
        elif not isinstance(row.get("label"), str) or not plain(row["label"]):
            found.left_out.add('no "label"', where)
        elif isinstance(numbers := _numbers(row.get("box")), str):
            found.left_out.add(f'"box" {numbers}', where)
        else:
            name = path_key(row["img_path"])
            if name not in by_name:
                by_name[name] = FileImage(row["img_path"])
                found.images[name].append(by_name[name])
            by_name[name].boxes.append(FileBox(where, plain(row["label"]), numbers))
    if not found.images:
        problems = "; ".join(line.strip() for line in found.left_out.lines()[:_EXAMPLES])
        raise DataError(
            f"--annotations {file}: no usable record ({problems}); write COCO instances JSON, or lines of"
            ' {"img_path", "label", "box": [left, top, right, bottom]}'
        )
    return found


def read_content(file: Path) -> Any:
    """One JSON object, or records with their numbers; raises DataError where it is neither."""
    try:
        value = parse_json(read_text(file), file)
    except DataError:  # lines, or a file that the other reader complains of
        value = None
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return list(enumerate(value, 1))
    return [(row.number, row.value) for row in read_rows(file)]


# Values, also those that are written as text


def _number(value: Any) -> float | None:
    """A number, written as such or as text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _numbers(value: Any) -> Numbers | str:
    """Four finite numbers, or what is wrong with them."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return "is not a list of four numbers"
    numbers = [_number(one) for one in value]
    if any(number is None for number in numbers):
        return "holds something that is not a number"
    left, top, third, fourth = (math.nan if number is None else number for number in numbers)
    if not all(map(math.isfinite, (left, top, third, fourth))):
        return "holds NaN or infinity"
    return left, top, third, fourth


def _around_segmentation(value: Any) -> Numbers | str:
    """[left, top, width, height] around COCO's polygons or its run lengths, or why there is none."""
    if isinstance(value, list):
        polygons = [value] if value and not isinstance(value[0], list) else value
        points = [_number(one) for polygon in polygons if isinstance(polygon, list) for one in polygon]
        numbers = [one for one in points if one is not None and math.isfinite(one)]
        if len(numbers) != len(points) or any(len(polygon) % 2 for polygon in polygons if isinstance(polygon, list)):
            return "its segmentation holds something that is no point"
        if not numbers:
            return "no segmentation"
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    size, counts = (value.get("size"), value.get("counts")) if isinstance(value, dict) else (None, None)
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(size, list) or not isinstance(runs, list):
        return "its segmentation is neither polygons nor run lengths"
    if any(type(one) is not int or one < 0 for one in [*size, *runs]) or len(size) != 2 or sum(runs) != math.prod(size):
        return "its run lengths do not fill the mask's size"
    return _around_runs(runs, size[0])


def _around_runs(runs: Sequence[int], height: int) -> Numbers | str:
    """Around the ones of a mask: runs of zeros and ones in turn, down the columns one after another."""
    lefts, tops, rights, bottoms = [], [], [], []
    end = 0
    for number, length in enumerate(runs):
        start, end = end, end + length
        if number % 2 and length:
            first, last = start // height, (end - 1) // height
            lefts.append(first)
            rights.append(last + 1)
            # A run that goes on in the next column touches the lower end of one and the upper of the other.
            tops.append(start % height if first == last else 0)
            bottoms.append((end - 1) % height + 1 if first == last else height)
    if not lefts:
        return "its mask is empty"
    return min(lefts), min(tops), max(rights) - min(lefts), max(bottoms) - min(tops)


def _run_lengths(text: str) -> list[int] | None:
    """COCO's compressed run lengths (maskApi.c, rleFrString); None where it is none.

    Five bits a character from "0" on, a sixth where more follow, the fifth of the last the sign; from the fourth number
    on the difference from the last but one.
    """
    runs: list[int] = []
    value, bits = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits > 40:
            return None
        value |= (code & 31) << bits
        bits += 5
        if not code & 32:
            value -= (1 << bits) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, bits = 0, 0
    return runs if not bits else None


def _id(value: Any) -> str:
    """An id as text: 7, 7.0 and "7" are one id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, int | str) else repr(value)


def known_size(width: Any, height: Any) -> Size | None:
    """None where the size is not known: 0, null, missing or no number."""
    sides = [_number(width), _number(height)]
    if any(side is None or not math.isfinite(side) or side < 1 for side in sides):
        return None
    return int(sides[0] or 0), int(sides[1] or 0)


def _is_crowd(row: Mapping[str, Any]) -> bool:
    return bool(_number(row.get("iscrowd"))) or row.get("iscrowd") is True
