"""Boxes as annotation tools save them. The image is 100 x 50 pixels, the object fills [10, 10, 30, 40] of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from listwise_preference.data.ranked_images import Box
from listwise_preference.errors import DataError
from listwise_preference.files import read_records
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Failed
from listwise_preference.image_lists.detectors.labels import match

from .conftest import SAMPLE, Run

SIZE = (100, 50)


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def voc(box: tuple[Any, Any, Any, Any] = (11, 11, 30, 40), name: str = "a.jpg") -> str:
    """LabelImg's file: corners count from 1 and both belong to the box."""
    left, top, right, bottom = box
    return f"""<annotation><folder>images</folder><filename>{name}</filename><path>/home/me/{name}</path>
<size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>dog</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>"""


def cvat(*shapes: str) -> str:
    """CVAT for images 1.1."""
    return f"""<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta></meta>
<image id="0" name="batch/a.jpg" width="100" height="50">{"".join(shapes)}</image></annotations>"""


def labelme(*shapes: dict[str, Any]) -> dict[str, Any]:
    sizes = {"imageHeight": 50, "imageWidth": 100}
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "..\\images\\a.jpg",
        "imageData": None,
    } | sizes


def shape(kind: str, *points: tuple[float, float], label: str = "dog") -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def region(kind: str = "rectanglelabels", **value: Any) -> dict[str, Any]:
    box = {"x": 10, "y": 20, "width": 20, "height": 60, "rotation": 0} | value
    whole = {"original_width": 100, "original_height": 50, "image_rotation": 0}
    return {"id": "r1", "from_name": "label", "to_name": "image", "type": kind, "value": box} | whole


def label_studio(*regions: dict[str, Any], image: str = "/data/upload/1/0a1b2c3d-a.jpg") -> list[dict[str, Any]]:
    return [{"id": 1, "data": {"text": "photo", "image": image}, "annotations": [{"result": regions}]}]


def found(file: Path, img_path: str = "photos/a.jpg") -> list[tuple[str, Box]]:
    """All boxes of the image, which the pairs have in a folder of their own."""
    boxes = Annotations(file, [img_path], {img_path: SIZE}).boxes(img_path, SIZE)
    assert not isinstance(boxes, Failed), boxes
    return [(one.phrase, one.box) for one in boxes]


DOG = [("dog", Box(10, 10, 30, 40))]
BOX = '<box label="dog" source="manual" occluded="0" xtl="10" ytl="10" xbr="30" ybr="40" z_order="0"></box>'
SHARES = "0.2 0.5 0.2 0.6"  # centre 20, 25; 20 wide, 30 high


def form(name: str, folder: Path) -> Path:
    """Writes one file, or a folder of them, and returns what --annotations names."""
    if name == "VOC":
        write(folder / "b.xml", voc((1, 1, 5, 5), "b.jpg"))
        return write(folder / "a.xml", voc()).parent
    if name == "VOC, one file, corners the wrong way round":
        return write(folder / "a.xml", voc((30, 40, 11, 11)))
    if name == "VOC, another encoding named":
        return write(folder / "a.xml", f'<?xml version="1.0" encoding="GBK"?>{voc()}')
    if name == "CVAT":
        return write(folder / "annotations.xml", cvat(BOX))
    if name == "CVAT, corners the wrong way round":
        return write(
            folder / "annotations.xml", cvat(BOX.replace('xtl="10"', 'xtl="30"').replace('xbr="30"', 'xbr="10"'))
        )
    if name == "LabelMe":
        return write(folder / "a.json", labelme(shape("rectangle", (30, 10), (10, 40)))).parent
    if name == "LabelMe, one file, a polygon":
        return write(folder / "a.json", labelme(shape("polygon", (10, 20), (30, 10), (20, 40))))
    if name == "Label Studio":
        return write(folder / "export.json", label_studio(region(rectanglelabels=["Dog"])))
    if name == "Label Studio, region and labels apart":
        parts = [region("rectangle"), region("labels", labels=["dog"])]
        return write(folder / "export.json", label_studio(*parts, image="/data/local-files/?d=disk%2Fa.jpg"))
    if name == "Label Studio, JSON-MIN":
        value = region()["value"] | {"rectanglelabels": ["dog"], "original_width": 100, "original_height": 50}
        return write(folder / "min.json", [{"image": "s3://bucket/a.jpg", "id": 4, "label": [value]}])
    write(folder / "labels" / "train" / "a.txt", f"1 {SHARES}\n")
    write(folder / "labels" / "train" / "b.txt", "")
    if name == "YOLO, Darknet's names":
        write(folder / "labels" / "classes.txt", "cat\ndog\n")
        return folder / "labels"
    assert name.startswith("YOLO, Ultralytics")
    write(folder / "data.yaml", "train: images/train\nnames:\n  0: cat\n  1: dog\n")
    return folder / "labels" / ("train" if "two above" in name else "")


FORMS = [
    "VOC", "VOC, one file, corners the wrong way round", "VOC, another encoding named",
    "CVAT", "CVAT, corners the wrong way round", "LabelMe",
    "LabelMe, one file, a polygon", "Label Studio", "Label Studio, region and labels apart", "Label Studio, JSON-MIN",
    "YOLO, Darknet's names", "YOLO, Ultralytics", "YOLO, Ultralytics, names two above",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_box(tmp_path: Path, name: str) -> None:
    assert found(form(name, tmp_path / "annotations")) == DOG


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # A box of 20 x 10 about its centre (50, 25), by 90 degrees: 10 x 20.
        (cvat(BOX.replace('z_order="0"', 'rotation="90"').replace('"10"', '"40"', 1).replace('ytl="10"', 'ytl="20"')
              .replace('xbr="30"', 'xbr="60"').replace('ybr="40"', 'ybr="30"')), Box(45, 15, 55, 35)),
        (cvat('<polygon label="dog" points="10,20;30,10;20,40"/>'), Box(10, 10, 30, 40)),
        (cvat('<ellipse label="dog" cx="20" cy="25" rx="10" ry="15"/>'), Box(10, 10, 30, 40)),
        (cvat('<mask label="dog" rle="1, 2" left="10" top="10" width="20" height="30"/>'), Box(10, 10, 30, 40)),
        (labelme(shape("circle", (20, 25), (25, 25))), Box(15, 20, 25, 30)),
        # Percents 40, 40, 20, 20: pixels [40, 20, 60, 30]. Turned by 90 degrees about (40, 20): 30 to 40, 20 to 40.
        (label_studio(region(x=40, y=40, width=20, height=20, rotation=90, rectanglelabels=["dog"])),
         Box(30, 20, 40, 40)),
        # Turned by 30 degrees: 20 cos 30 = 17.32 wide to the right, 10 sin 30 = 5 to the left; 10 + 8.66 high.
        (label_studio(region(x=40, y=40, width=20, height=20, rotation=30, rectanglelabels=["dog"])),
         Box(35, 20, 57, 39)),
        (label_studio(region("polygonlabels", points=[[10, 40], [30, 20], [20, 80]], polygonlabels=["dog"])),
         Box(10, 10, 30, 40)),
        (label_studio(region("ellipselabels", x=20, y=50, radiusX=10, radiusY=30, ellipselabels=["dog"])),
         Box(10, 10, 30, 40)),
    ],
)  # fmt: skip
def test_shapes_that_are_no_upright_boxes_become_the_box_around_them(
    tmp_path: Path, content: Any, expected: Box
) -> None:
    file = write(tmp_path / ("a.xml" if isinstance(content, str) else "a.json"), content)
    assert found(file) == [("dog", expected)]
    assert "taken as the" in Annotations(file).report([])


def test_a_voc_box_of_a_tool_that_counts_from_0_begins_at_the_image(tmp_path: Path) -> None:
    """VOC's first pixel is 1, Datumaro 1.13.12 writes 0 (findings/voc_counts_from_zero.sh), which would be pixel -1."""
    assert found(write(tmp_path / "a.xml", voc((0, 0, 20, 20)))) == [("dog", Box(0, 0, 20, 20))]


def test_yolos_polygons_and_turned_boxes_are_their_corners(tmp_path: Path) -> None:
    write(tmp_path / "labels" / "a.txt", "0 0.1 0.4 0.3 0.2 0.2 0.8\n0 0.1 0.2 0.3 0.2 0.3 0.8 0.1 0.8\n")
    write(tmp_path / "data.yaml", "names: [dog]")
    assert found(tmp_path / "labels") == DOG * 2


def test_what_has_no_box_or_no_label_is_left_out_and_counted(tmp_path: Path) -> None:
    contents = {
        "cvat.xml": cvat('<points label="dog" points="1,2"/>', BOX, BOX.replace('xtl="10"', 'xtl="x"')),
        "voc.xml": voc((11, "", 30, 40)),
        "labelme.json": labelme(shape("point", (1, 1)), shape("rectangle", (1, 1), (5, 5), label=" ")),
        "studio.json": label_studio(region(), region(rectanglelabels=["dog"]) | {"id": "r2"}),
        "no list.json": [
            *label_studio(region(rectanglelabels=["dog"])),
            {"id": 2, "data": {"image": "b.jpg"}, "annotations": 30},
            {"id": 3, "data": {"image": "c.jpg"}, "annotations": [{"result": "none"}]},
        ],
    }
    expected = {
        "cvat.xml": ("points and lines", "not a number"),
        "voc.xml": ("not a number",),
        "labelme.json": ("points and lines", "no label"),
        "studio.json": ("no label",),
        "no list.json": ("annotations that are no list: 2, e.g. task 2",),
    }
    for name, content in contents.items():
        said = Annotations(write(tmp_path / name, content)).report([])
        assert all(what in said for what in expected[name]), said
    write(tmp_path / "yolo" / "a.txt", f"7 {SHARES}\n0 0.2 O.5 0.2 0.6\n")
    write(tmp_path / "yolo" / "classes.txt", "dog\n")
    said = Annotations(tmp_path / "yolo").report([])
    assert "class 7 of 1 names" in said and "not a class and numbers: 1, e.g. a.txt: line 2" in said
    wrong = [{"original_width": 0}, {"original_height": "0"}, {"value": region()["value"] | {"rotation": "1e999"}}]
    parts = [region(rectanglelabels=["dog"]) | {"id": number} | change for number, change in enumerate([{}, *wrong])]
    said = Annotations(write(tmp_path / "sizes.json", label_studio(*parts)), ["a.jpg"]).report([])
    assert "sizes.json: 3 annotations cannot be used" in said and "not a number" in said


def test_what_label_studio_has_beside_boxes_is_counted_and_an_image_nobody_annotated_is_unknown(tmp_path: Path) -> None:
    box = region(rectanglelabels=["dog"])
    regions = [
        {"id": "r2", "type": "choices", "value": {"choices": ["sharp"]}},  # marks nothing
        {"id": "r3", "type": "brushlabels", "value": {"format": "rle", "rle": [0, 1], "brushlabels": ["dog"]}},
        region("keypointlabels", keypointlabels=["dog"]) | {"id": "r4", "value": {"x": 1, "y": 1, "width": 1}},
        {"id": "r5", "type": "rectanglelabels", "value": box["value"]},
        box | {"id": "r6", "image_rotation": 90},
    ]
    tasks = label_studio(box, *regions)
    tasks += [{"id": 2, "data": {"image": "b.jpg"}, "annotations": []}]
    tasks += [{"id": 3, "data": {"image": "c.jpg"}, "annotations": [{"result": [box], "was_cancelled": True}]}]
    detector = Annotations(write(tmp_path / "s.json", tasks), ["a.jpg", "b.jpg"])
    assert found(detector.file) == DOG
    assert {reason: one["count"] for reason, one in detector.summary()["annotations"]["left_out"].items()} == {
        "regions of a brush, which are not read": 1,
        "points and lines, which have no box": 1,
        "regions without original_width": 1,
        "regions on an image that was turned in Label Studio (image_rotation)": 1,
        "tasks that nobody has annotated": 2,
    }
    assert detector.knows("a.jpg", "dog") and not detector.knows("b.jpg", "dog")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.xml": "<annotation>"}, "not XML: "),
        ({"a.xml": "<html></html>"}, "<html> is neither VOC's"),
        ({"a.xml": "<annotations><track id='0' label='dog'/></annotations>"}, "tracks of a video"),
        ({"a.txt": f"0 {SHARES}"}, "no files of VOC, CVAT, LabelMe, or YOLO with its names"),
        ({"a.xml": voc(), "a.json": labelme()}, "files of XML (VOC, CVAT) and of LabelMe"),
        ({"coco.json": {"images": [], "categories": [], "annotations": []}}, "of COCO, JSONL and Label Studio name"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        write(tmp_path / "boxes" / name, content)
    with pytest.raises(DataError) as refused:
        Annotations(tmp_path / "boxes")
    assert message in str(refused.value)
    for file in (tmp_path / "boxes").glob("*.txt"):
        with pytest.raises(DataError, match="of YOLO, name the folder of the texts"):
            Annotations(file)


def test_an_image_annotated_at_another_size_is_refused_and_of_two_annotators_one_is_taken(tmp_path: Path) -> None:
    small = write(tmp_path / "a.xml", voc().replace("<width>100", "<width>200"))
    answer = Annotations(small, ["a.jpg"]).boxes("a.jpg", SIZE)
    assert isinstance(answer, Failed) and "200 x 50" in answer.reason
    (task,) = label_studio(region(rectanglelabels=["cat"]))
    task["annotations"] += [{"result": [region(rectanglelabels=["dog"])], "ground_truth": True}]
    task["annotations"] += [{"result": [region(rectanglelabels=["cow"])], "was_cancelled": True}]
    assert found(write(tmp_path / "s.json", [task])) == DOG


@pytest.mark.parametrize(
    ("phrase", "label"),
    [
        ("people", "person"), ("men", "man"), ("children", "child"), ("knives", "knife"), ("policeman", "person"),
        ("fishermen", "Person"), ("policewomen", "people"), ("policemen", "man"),
        ("grandmothers", "woman"), ("person", "fisherman"), ("firefighters", "person"),
    ],
)  # fmt: skip
def test_plurals_and_professions_match(phrase: str, label: str) -> None:
    assert match(phrase, label) is not None
    assert match("snowman", "person") is None


@pytest.mark.slow
def test_lists_of_the_sample_data_are_the_same_from_voc_and_from_yolo(tmp_path: Path, run_program: Run) -> None:
    """The sample's own boxes, written as VOC and as YOLO."""
    rows = read_records(SAMPLE / "annotations.jsonl")
    labels = sorted({row["label"] for row in rows})
    for name in sorted({row["img_path"] for row in rows}):
        with Image.open(SAMPLE / name) as image:
            width, height = image.size
        boxes = [(row["label"], *row["box"]) for row in rows if row["img_path"] == name]
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax>"
            f"<ymax>{bottom}</ymax></bndbox></object>"
            for label, left, top, right, bottom in boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        text = f"<annotation><filename>{Path(name).name}</filename>{size}{objects}</annotation>"
        write(tmp_path / "voc" / f"{Path(name).stem}.xml", text)
        lines = [
            f"{labels.index(label)} {(left + right) / 2 / width:.9f} {(top + bottom) / 2 / height:.9f}"
            f" {(right - left) / width:.9f} {(bottom - top) / height:.9f}\n"
            for label, left, top, right, bottom in boxes
        ]
        write(tmp_path / "yolo" / f"{Path(name).stem}.txt", "".join(lines))
    write(tmp_path / "yolo" / "classes.txt", "\n".join(labels))
    lists = []
    for annotations in (SAMPLE / "annotations.jsonl", tmp_path / "voc", tmp_path / "yolo"):
        output = tmp_path / f"{annotations.stem}.jsonl"
        run_program(
            "make_image_lists.py", "--detector", "annotations", "--annotations", annotations, "--verifier", "none",
            "--pairs", SAMPLE / "pairs.json", "--image_root", SAMPLE, "--output", output,
        )  # fmt: skip
        lists.append([(row["id"], row["phrase"], row["box"]) for row in read_records(output)])
    assert lists[0] == lists[1] == lists[2] and any(box for _, _, box in lists[0])
