"""Files of boxes, told by content: COCO and JSONL (``box_files``), and VOC, YOLO, LabelMe, Label Studio and CVAT.

Each reader takes a tool's own numbers to corners in pixels, or in YOLO's case to corners in shares of the image. What
is no box (a polygon, an ellipse, a turned box) becomes the upright box around it; what has no extent (a point, a line)
and what has no label is left out and counted. Corners in the wrong order are put right.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from listwise_preference.errors import DataError
from listwise_preference.files import first_bytes, parse_json, parse_yaml, path_key, read_text
from listwise_preference.image_lists.detectors.box_files import (
    BoxFile,
    FileBox,
    FileImage,
    Form,
    Numbers,
    known_size,
    read_coco,
    read_content,
    read_lines,
)
from listwise_preference.image_lists.detectors.labels import plain

Point = tuple[float, float]

_TURNED = "turned boxes, taken as the upright box around them"
_SHAPES = "polygons, ellipses and masks, taken as the box around them"
_NO_EXTENT = "points and lines, which have no box"
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_box_file(file: Path) -> BoxFile:
    """The images and boxes of a file or a folder, form and place of the boxes not yet checked.

    Raises:
        DataError: it cannot be read, or has no form that is known.
    """
    if file.is_dir():
        return _read_folder(file)
    found = _box_file(file)
    is_json = first_bytes(file, 64).lstrip().startswith((b"[", b"{"))
    if file.suffix.lower() in (".txt", ".yaml", ".names") and not is_json and file.is_file():
        raise DataError(f"--annotations {file}: of YOLO, name the folder of the texts, one an image")
    if _is_xml(file):
        _read_xml(file, found)
        return found
    content = read_content(file)
    records: Any = content if isinstance(content, dict) else [value for _, value in content]
    if isinstance(content, dict) and "annotations" in content:
        return read_coco(file, content)
    if _is_labelme(records):
        _read_labelme(records, found)
    elif _is_label_studio(records):
        _read_label_studio(records, found)
    else:
        return read_lines(file, [(1, content)] if isinstance(content, dict) else content)
    return found


def _is_xml(file: Path) -> bool:
    return first_bytes(file, 64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def _read_folder(folder: Path) -> BoxFile:
    """A folder of VOC, CVAT, LabelMe or YOLO files; YOLO's need the names of the classes in it, or above it.

    Raises:
        DataError: it has files of none of these, or of several.
    """
    xml = sorted(folder.rglob("*.xml"))
    shapes = [file for file in sorted(folder.rglob("*.json")) if _is_labelme(_json(file))]
    names = _class_names(folder)
    texts = [file for file in sorted(folder.rglob("*.txt")) if file not in names[1]] if names else []
    kinds = {"XML (VOC, CVAT)": xml, "LabelMe": shapes, "YOLO": [file for file in texts if _is_yolo(file)]}
    there = [kind for kind, files in kinds.items() if files]
    if len(there) != 1:
        what = (
            "files of " + " and of ".join(there) if there else "no files of VOC, CVAT, LabelMe, or YOLO with its names"
        )
        advice = (
            "name a folder with one kind"
            if there
            else "YOLO's names are in data.yaml, classes.txt or obj.names, in this folder or above it; of COCO, JSONL"
            " and Label Studio name the file"
        )
        raise DataError(f"--annotations {folder}: {what}; {advice}")
    found = _box_file(folder)
    for file in xml:
        _read_xml(file, found)
    for file in shapes:
        _read_labelme(_json(file), found, f"{file.name}: ")
    if names and not xml and not shapes:
        found.form, found.by_stem = Form(corners=True, unit=1), True
        for file in kinds["YOLO"]:
            _read_yolo(file, names[0], found, folder)
    return found


def _box_file(file: Path) -> BoxFile:
    return BoxFile(file, Form(corners=True), bare_names=True, any_folder=True)


def _image(found: BoxFile, name: str, size: tuple[Any, Any] = (None, None)) -> FileImage:
    """A new image of the file; it is found by its path, and by its name alone."""
    image = FileImage(name, known_size(*size))
    found.images[path_key(name)].append(image)
    return image


def _add(
    found: BoxFile, image: FileImage, where: str, label: Any, points: Iterable[Point], turned: float = 0.0
) -> None:
    """Keep the box around points, or count why not."""
    if not isinstance(label, str) or not plain(label):
        found.left_out.add("no label", where)
        return
    numbers = _around(points)
    if not all(map(math.isfinite, numbers)):
        found.left_out.add("box holds something that is not a number", where)
        return
    image.boxes.append(FileBox(where, plain(label), numbers, turned))


def _around(points: Iterable[Point]) -> Numbers:
    """(left, top, right, bottom); not a number without points."""
    corners = list(points)
    if not corners or any(math.isnan(one) for corner in corners for one in corner):  # which min and max pass over
        return math.nan, math.nan, math.nan, math.nan
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _float(value: Any) -> float:
    """A number that a file gives, as one or as text; NaN where it is none, or is infinite."""
    if isinstance(value, bool):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


# VOC and CVAT


def _read_xml(file: Path, found: BoxFile) -> None:
    text = read_text(file)
    if "<!ENTITY" in text:  # no tool writes them, and a few unfold to any size
        raise DataError(f"--annotations {file}: entities of its own (<!ENTITY) are not read")
    try:
        root = ElementTree.fromstring(text)  # as text, so that an encoding it names does not matter
    except ElementTree.ParseError as error:
        raise DataError(f"--annotations {file}: not XML: {error}") from None
    if root.tag == "annotation":
        _read_voc(file, root, found)
    elif root.tag == "annotations":
        _read_cvat(file, root, found)
    else:
        raise DataError(f"--annotations {file}: <{root.tag}> is neither VOC's <annotation> nor CVAT's <annotations>")


def _read_voc(file: Path, root: ElementTree.Element, found: BoxFile) -> None:
    """Corners count from 1 and both belong to the box; of tools that count from 0 a box gets a pixel more at left."""
    name = (root.findtext("filename") or "").strip() or f"{file.stem}.jpg"
    if not Path(name).suffix:
        name += ".jpg"  # as VOC has it, whose tools may leave the ending away
    image = _image(found, name, (root.findtext("size/width"), root.findtext("size/height")))
    for number, one in enumerate(root.iter("object"), start=1):
        where = f"{file.name}: object {number}"
        left, top, right, bottom = (_float(one.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
        _add(found, image, where, one.findtext("name"), [(left - 1, top - 1), (right, bottom)])


def _read_cvat(file: Path, root: ElementTree.Element, found: BoxFile) -> None:
    """CVAT for images; turned boxes are turned about their centre."""
    if root.find("track") is not None and root.find("image") is None:
        raise DataError(f'--annotations {file}: tracks of a video, without images: export "CVAT for images" there')
    shapes: dict[str, Callable[[ElementTree.Element], list[Point]]] = {
        "box": lambda one: [_attributes(one, "xtl", "ytl"), _attributes(one, "xbr", "ybr")],
        "polygon": _cvat_points,
        "ellipse": _cvat_ellipse,
        "mask": _cvat_mask,
        "cuboid": lambda one: [
            _attributes(one, f"x{corner}{face}", f"y{corner}{face}")
            for corner in ("tl", "bl", "tr", "br")
            for face in (1, 2)
        ],
    }
    for row in root.iter("image"):
        image = _image(found, row.get("name", ""), (row.get("width"), row.get("height")))
        for number, one in enumerate(row, start=1):
            where = f"{file.name}: {image.name}, shape {number}"
            if one.tag in ("points", "polyline", "skeleton"):
                found.left_out.add(_NO_EXTENT, where)
            elif one.tag in shapes:
                turned = _float(one.get("rotation", 0)) % 360
                if math.isnan(turned):
                    found.left_out.add("a rotation that is not a number", where)
                    continue
                if turned:
                    found.noted.add(_TURNED, where)
                elif one.tag != "box":
                    found.noted.add(_SHAPES, where)
                _add(found, image, where, one.get("label"), shapes[one.tag](one), turned)


def _attributes(one: ElementTree.Element, x: str, y: str) -> Point:
    return _float(one.get(x)), _float(one.get(y))


def _cvat_points(one: ElementTree.Element) -> list[Point]:
    pairs = [pair.split(",") for pair in one.get("points", "").split(";")]
    return [(_float(pair[0]), _float(pair[-1])) for pair in pairs]


def _cvat_ellipse(one: ElementTree.Element) -> list[Point]:
    (x, y), (rx, ry) = _attributes(one, "cx", "cy"), _attributes(one, "rx", "ry")
    return [(x - rx, y - ry), (x + rx, y + ry)]


def _cvat_mask(one: ElementTree.Element) -> list[Point]:
    (left, top), (width, height) = _attributes(one, "left", "top"), _attributes(one, "width", "height")
    return [(left, top), (left + width, top + height)]


# YOLO


def _class_names(folder: Path) -> tuple[list[str], list[Path]] | None:
    """The names in the order of their numbers, and the files that are no labels; None where there are none."""
    above = [folder, *folder.absolute().parents[:2]]  # dataset/data.yaml of dataset/train/labels
    for place in above:
        for file in (place / "data.yaml", place / "dataset.yaml", *sorted(place.glob("*.yaml"))):
            if file.is_file() and (names := _yaml_names(file)):
                return names, _not_labels(above)
        for name in ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt"):
            if (place / name).is_file():
                lines = [line.strip() for line in read_text(place / name).splitlines()]
                return [line for line in lines if line], _not_labels(above)
    return None


def _not_labels(places: Sequence[Path]) -> list[Path]:
    names = ("classes.txt", "predefined_classes.txt", "train.txt", "val.txt", "test.txt", "README.txt", "notes.txt")
    return [place / name for place in places for name in names]


def _yaml_names(file: Path) -> list[str]:
    try:
        content = parse_yaml(read_text(file), file)
    except DataError:  # of another program
        return []
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and all(isinstance(key, int) for key in names):
        return [str(names.get(number, "")) for number in range(max(names, default=-1) + 1)]
    return list(map(str, names)) if isinstance(names, list) else []


def _is_yolo(file: Path) -> bool:
    """Whether a line begins as a class and a box do; an image without objects has an empty file."""
    lines = [line.split() for line in read_text(file).splitlines() if line.strip()]
    return not lines or any(len(line) >= 5 and line[0].isdigit() for line in lines)


def _is_yolo_line(words: Sequence[str]) -> bool:
    return len(words) >= 5 and words[0].isdigit() and not any(math.isnan(_float(one)) for one in words)


def _read_yolo(file: Path, names: Sequence[str], found: BoxFile, folder: Path) -> None:
    """Lines of a class and a box (centre, width, height), or a class and the corners of a polygon or a turned box."""
    image = _image(found, file.relative_to(folder).with_suffix("").as_posix())
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        where, (kind, *rest) = f"{file.name}: line {number}", line.split()
        if not _is_yolo_line([kind, *rest]):
            found.left_out.add("lines that are not a class and numbers", where)
            continue
        values = list(map(_float, rest))
        if int(kind) >= len(names):
            found.left_out.add(f"class {kind} of {len(names)} names", where)
        elif len(values) in (4, 5):  # a fifth is a detector's confidence
            x, y, width, height = values[:4]
            half_width, half_height = abs(width) / 2, abs(height) / 2
            corners = [(x - half_width, y - half_height), (x + half_width, y + half_height)]
            _add(found, image, where, names[int(kind)], corners)
        else:
            found.noted.add(_SHAPES, where)
            points = list(zip(values[: len(values) // 2 * 2 : 2], values[1::2], strict=True))
            _add(found, image, where, names[int(kind)], points)


# LabelMe


def _json(file: Path) -> Any:
    return parse_json(read_text(file), file)


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read_labelme(content: Mapping[str, Any], found: BoxFile, before: str = "") -> None:
    image = _image(found, str(content["imagePath"]), (content.get("imageWidth"), content.get("imageHeight")))
    for number, shape in enumerate(content["shapes"], start=1):
        where = f"{before}shape {number}"
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
        points = [(_float(x), _float(y)) for x, y in _pairs(shape.get("points"))] if isinstance(shape, dict) else []
        if kind in ("point", "points", "line", "linestrip") or not points:
            found.left_out.add(_NO_EXTENT, where)
            continue
        if kind == "circle" and len(points) == 2:
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        if kind != "rectangle":
            found.noted.add(_SHAPES, where)
        _add(found, image, where, shape.get("label"), points)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """The points of a list that holds nothing else."""
    whole = isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 for one in value)
    return [(one[0], one[1]) for one in value] if whole else []


# Label Studio


def _is_label_studio(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and (
        (isinstance(first.get("data"), dict) and isinstance(first.get("annotations", first.get("completions")), list))
        or any(_is_region(one) for one in _regions(first))
    )


def _regions(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of its smaller export, JSON-MIN: the lists of regions among a task's values."""
    return [one for value in task.values() if isinstance(value, list) for one in value if isinstance(one, dict)]


def _is_region(one: Mapping[str, Any]) -> bool:
    return "original_width" in one and ("x" in one or "points" in one)


def _read_label_studio(tasks: Sequence[Any], found: BoxFile) -> None:
    for number, task in enumerate(tasks, start=1):
        where = f"task {number}"
        if not isinstance(task, dict):
            found.left_out.add("not an object", where)
            continue
        regions: list[Mapping[str, Any]] | None = _regions(task)
        data = task
        if isinstance(task.get("data"), dict):
            regions, data = _annotated(task, where, found), task["data"]
        if regions is None:
            continue
        name = _label_studio_name(data)
        if name is None:
            found.left_out.add("no image in its data", where)
            continue
        sizes = [(one.get("original_width"), one.get("original_height")) for one in regions]
        image = _image(found, name, sizes[0] if sizes else (None, None))
        for region in regions:
            _add_region(region, image, where, found)


def _annotated(task: Mapping[str, Any], where: str, found: BoxFile) -> list[Mapping[str, Any]] | None:
    """The regions of the task's annotation: of several the one called ground truth, or the first not cancelled.

    None without an annotation: what is on the image is unknown, which is not the same as nothing.
    """
    several = task.get("annotations", task.get("completions"))
    given = [one for one in _list(several, where, found) if isinstance(one, dict)]
    valid = [one for one in given if not one.get("was_cancelled")]
    if not valid:
        if isinstance(several, list):
            found.left_out.add("tasks that nobody has annotated", where)
        return None
    if len(valid) > 1:
        found.noted.add("tasks with several annotations, of which one is taken", where)
    chosen = next((one for one in valid if one.get("ground_truth")), valid[0])
    regions: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(_list(chosen.get("result"), where, found)):
        if isinstance(one, dict) and isinstance(one.get("value"), dict):
            # A region and its labels may be two entries of one id.
            names = ("original_width", "original_height", "image_rotation")
            whole = {name: one[name] for name in names if name in one}
            key = str(one.get("id", number))
            regions[key] = regions.get(key, {}) | whole | one["value"]
    return [one for one in regions.values() if _marks_object(one, where, found)]


def _marks_object(one: Mapping[str, Any], where: str, found: BoxFile) -> bool:
    """Whether a result is a region that is read; one that is not is counted, choices and texts are none."""
    if not _is_region(one) and any(key.endswith("labels") for key in one):
        unplaced = "x" in one or "points" in one
        reason = "regions without original_width" if unplaced else "regions of a brush, which are not read"
        found.left_out.add(reason, where)
    return _is_region(one)


def _list(value: Any, where: str, found: BoxFile) -> list[Any]:
    if value is not None and not isinstance(value, list):
        found.left_out.add("annotations that are no list", where)
    return value if isinstance(value, list) else []


def _add_region(region: Mapping[str, Any], image: FileImage, where: str, found: BoxFile) -> None:
    """Label Studio's numbers are percents of the image's sides, and turn about the left upper corner."""
    if _float(region.get("image_rotation") or 0) % 360:
        found.left_out.add("regions on an image that was turned in Label Studio (image_rotation)", where)
        return
    sizes = (_float(region.get(f"original_{side}")) for side in ("width", "height"))
    width, height = (size if size > 0 else math.nan for size in sizes)
    kinds = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
    labels = next((region[kind] for kind in kinds if isinstance(region.get(kind), list) and region[kind]), [None])
    if "points" in region:
        points = [(_float(x), _float(y)) for x, y in _pairs(region["points"])]
        found.noted.add(_SHAPES, where)
    elif "radiusX" in region:
        x, y, rx, ry = (_float(region.get(name)) for name in ("x", "y", "radiusX", "radiusY"))
        # A turned ellipse fits into the box of its longer half axis, in pixels.
        if _float(region.get("rotation", 0)) % 180:
            longest = max(rx * width, ry * height)
            rx, ry = longest / width, longest / height
        points = [(x - rx, y - ry), (x + rx, y + ry)]
        found.noted.add(_SHAPES, where)
    elif {"width", "height"} <= region.keys():
        points = _turned_corners(region, width, height)
        if _float(region.get("rotation", 0)) % 360:
            found.noted.add(_TURNED, where)
    else:
        found.left_out.add(_NO_EXTENT, where)
        return
    pixels = [(x * width / 100, y * height / 100) for x, y in points]
    for label in labels:
        _add(found, image, where, label, pixels)


def _turned_corners(region: Mapping[str, Any], width: float, height: float) -> list[Point]:
    """The corners of a rectangle, in percents; the turn is one of pixels, whose sides are equal."""
    x, y, across, down = (_float(region.get(name)) for name in ("x", "y", "width", "height"))
    angle = math.radians(_float(region.get("rotation", 0)))
    cos, sin = math.cos(angle), math.sin(angle)
    sides = [(0.0, 0.0), (across * width, 0.0), (0.0, down * height), (across * width, down * height)]
    return [(x + (a * cos - b * sin) / width, y + (a * sin + b * cos) / height) for a, b in sides]


def _label_studio_name(data: Mapping[str, Any]) -> str | None:
    """The image's path: uploads have eight characters of their own before the name, local files are a parameter."""
    addresses = [value for value in data.values() if isinstance(value, str)]
    for address in addresses:
        parts = urlsplit(address)
        path = parse_qs(parts.query).get("d", [parts.path])[0]
        path = unquote(path)
        if Path(path).suffix.lower() in _IMAGES:
            folder, _, name = path.rpartition("/")
            name = re.sub(r"^[0-9a-f]{8}-", "", name) if "/upload/" in address else name
            return f"{folder}/{name}".lstrip("/") if not address.startswith("/data/upload/") else name
    return None
