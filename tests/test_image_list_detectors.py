import json
import math
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    CLIPTokenizer,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
    OwlViTProcessor,
)

from listwise_preference.data.ranked_images import Box
from listwise_preference.errors import DataError
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Failed, Found, Query, choose, cut_box
from listwise_preference.image_lists.detectors.zero_shot import EVERYDAY_OBJECTS, ZeroShotDetector
from listwise_preference.small_world.detector import build_small_detector, save_small_detector

SIZE = (100, 50)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small work only waits for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Which box


def test_edges_are_rounded_half_up_and_cut_to_the_image() -> None:
    assert cut_box(1.5, 2.4, 10.49, 20.5, SIZE) == Box(2, 2, 10, 21)
    assert cut_box(-7.0, -0.2, 130.0, 50.4, SIZE) == Box(0, 0, 100, 50)
    assert cut_box(100.0, 0.0, 120.0, 50.0, SIZE) is None  # all of it past the right border
    assert cut_box(10.0, 10.0, 10.4, 20.0, SIZE) is None  # no column left
    assert cut_box(0.0, 0.0, math.nan, 10.0, SIZE) is None


def test_the_highest_score_is_taken_of_equal_ones_the_larger_and_sizes_out_of_range_are_counted() -> None:
    small, large, best = (Found("cat", Box(0, 0, w, 10), score) for w, score in ((20, 0.5), (30, 0.5), (10, 0.6)))
    speck, all_of_it = Found("cat", Box(0, 0, 7, 7), 0.9), Found("cat", Box(0, 0, 100, 50), 0.95)
    # 20 x 10 of 100 x 50 is 4 %, 30 x 10 6 %, 10 x 10 2 %, 7 x 7 0.98 %
    assert choose([small, large], SIZE, 0.01, 0.95).found == large
    assert choose([small, large, best], SIZE, 0.01, 0.95).found == best
    choice = choose([speck, small, all_of_it], SIZE, 0.01, 0.95)
    assert (choice.found, choice.too_small, choice.too_large) == (small, 1, 1)
    assert choose([best], SIZE, 0.02, 0.02).found == best  # both limits belong to the range
    twins = [Found("cat", Box(x, 0, x + 20, 10), None) for x in (40, 10)]
    assert choose(twins, SIZE, 0, 1).found == choose(twins[::-1], SIZE, 0, 1).found == twins[1]


# Annotations


def annotations(tmp_path: Path, *rows: Any) -> Annotations:
    file = tmp_path / "boxes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Annotations(file)


def row(label: str, box: list[float] | None = None, img_path: str = "a.png") -> dict[str, Any]:
    return {"img_path": img_path, "label": label, "box": box or [10, 10, 30, 40]}


def ask(detector: Annotations, *phrases: str, img_path: str = "a.png") -> dict[str, Box] | Failed:
    query = Query(img_path, Image.new("RGB", SIZE), phrases)
    answer = detector.detect(detector.prepare([query]))[0]
    return answer if isinstance(answer, Failed) else {found.phrase: found.box for found in answer}


@pytest.mark.parametrize(
    ("phrase", "label", "matches"),
    [
        ("cat", "Cat", True),
        ("traffic light", "traffic_light", True),
        ("pebble", "pebbles", True),
        ("berry", "berries", True),
        ("man", "person", True),
        ("person", "man", True),
        ("man", "woman", False),
        ("kitten", "cat", True),
        ("sofa", "couch", True),
        ("frying pan", "pan", True),
        ("shuttle", "space shuttle", True),
        ("bear", "teddy bear", False),
        ("hot dog", "dog", False),
        ("car", "cat", False),
        ("кот", "cat", False),
        ('"big" 😀 cat', "cat", True),
        # Names and notes as Objects365, LVIS, COCO-Stuff and ADE20K have them
        ("cabinet", "Cabinet/shelf", True),
        ("shelf", "Cabinet/shelf", True),
        ("monitor", "Moniter/TV", True),
        ("television", "Monitor/TV", True),
        ("cutting board", "Cutting/chopping Board", True),
        ("headphone", "Head Phone", True),
        ("shoe", "Other Shoes", True),
        ("bat", "bat_(animal)", True),
        ("baseball bat", "bat_(animal)", False),
        ("animal", "bat_(animal)", False),
        ("monitor", "monitor_(computer_equipment) computer_monitor", True),
        ("wall", "wall-other", True),
        ("building", "building, edifice", True),
        ("cat", "cat [blurred]", True),
        ("board", "Blackboard/Whiteboard", False),
    ],
)
def test_a_phrase_matches_a_label_of_the_same_or_a_broader_meaning(
    tmp_path: Path, phrase: str, label: str, matches: bool
) -> None:
    expected = {phrase: Box(10, 10, 30, 40)} if matches else {}
    assert ask(annotations(tmp_path, row(label)), phrase) == expected


def test_the_same_word_goes_before_a_broader_one(tmp_path: Path) -> None:
    detector = annotations(tmp_path, row("person", [0, 0, 90, 50]), row("man", [1, 1, 9, 9]))
    assert ask(detector, "man") == {"man": Box(1, 1, 9, 9)}


def test_an_open_question_is_answered_with_the_labels(tmp_path: Path) -> None:
    detector = annotations(tmp_path, row("cat"), row("dog", [0, 0, 5, 5]), row("bird", img_path="b.png"))
    assert ask(detector) == {"cat": Box(10, 10, 30, 40), "dog": Box(0, 0, 5, 5)}


def test_boxes_without_size_and_bad_lines_are_said_and_the_rest_is_kept(tmp_path: Path) -> None:
    detector = annotations(
        tmp_path,
        row("cat"),
        row("dog", [30, 10, 30, 40]),
        row("dog", [0, 0, 5]),
        {"img_path": "a.png", "box": [1, 2, 3, 4]},
        "nothing",
        row("bird", [-10, -10, 20, 20]),
    )
    report = detector.report(["./a.png", "b.png"])
    assert "4 annotations cannot be used" in report
    assert "box of no size: 1, e.g. record 2, [30, 10, 30, 40] on a.png" in report
    assert "no boxes for 1 of 2 images: b.png" in report
    assert ask(detector, "dog", "cat", "bird") == {"cat": Box(10, 10, 30, 40), "bird": Box(0, 0, 20, 20)}


def coco(tmp_path: Path, img_paths: Sequence[str] = (), size: tuple[int, int] = SIZE) -> Annotations:
    content = {
        "images": [{"id": 7, "file_name": "000007.png", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dining table"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [10.2, 5.5, 20.4, 10.1], "iscrowd": 0},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 50, 50], "iscrowd": 1},
            {"image_id": 8, "category_id": 1, "bbox": [0, 0, 5, 5]},
        ],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    return Annotations(file, img_paths)


def test_coco_instances_are_read_by_file_name_without_crowds(tmp_path: Path) -> None:
    detector = coco(tmp_path)
    # 10.2 -> 10, 5.5 -> 6, 10.2 + 20.4 = 30.6 -> 31, 5.5 + 10.1 = 15.6 -> 16
    assert ask(detector, "cat", "table", img_path="train2017/000007.png") == {"cat": Box(10, 6, 31, 16)}
    report = detector.report(["000007.png"])
    assert "2 annotations cannot be used and are left out" in report
    assert "names an image that is not in the file: 1, e.g. annotation 3" in report
    assert "iscrowd 1, a region of many objects" in report and "1, e.g. annotation 2" in report


def test_a_bare_name_answers_in_coco_and_only_where_it_is_clear(tmp_path: Path) -> None:
    """000007.png is in one folder of the pairs, or in two; JSONL names its images by their whole path."""
    paths = ["train/000007.png", "val/000008.png"]
    assert ask(coco(tmp_path, paths), "cat", img_path="train/000007.png") == {"cat": Box(10, 6, 31, 16)}
    unclear = coco(tmp_path, [*paths, "val/000007.png"])
    assert ask(unclear, "cat", img_path="train/000007.png") == {}
    with pytest.raises(DataError, match="for none of the 2 images"):
        unclear.report(["train/000007.png", "val/000007.png"])
    assert ask(unclear, "cat", img_path="000007.png") == {"cat": Box(10, 6, 31, 16)}  # the file's own path
    lines = annotations(tmp_path, row("cat", img_path="7.png"), row("dog", img_path="b/8.png"))
    assert ask(lines, "cat", img_path="other/7.png") == {}
    assert ask(lines, "cat", img_path="./7.png") == {"cat": Box(10, 10, 30, 40)}


def test_absolute_and_relative_names_of_an_image_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pairs and in annotations, either way round, the root being absolute or relative."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "images"
    file = tmp_path / "boxes.jsonl"
    rows = [row("cat", img_path=str(root / "x" / "7.png")), row("dog", img_path=".//x//8.png")]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    pairs = ["x/7.png", f"{root}/./x/8.png"]
    for image_root in (root, Path("images")):
        detector = Annotations(file, pairs, image_root=image_root)
        assert detector.report(pairs) == ""
        assert ask(detector, "cat", img_path=pairs[0]) == {"cat": Box(10, 10, 30, 40)}
        assert ask(detector, "dog", img_path=pairs[1]) == {"dog": Box(10, 10, 30, 40)}
    with pytest.raises(DataError, match="for none of the 2 images"):
        Annotations(file, pairs, image_root=tmp_path / "elsewhere").report([f"{root}/x/9.png", "x/9.png"])


def test_a_coco_annotation_of_a_list_of_images_is_said(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "7.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": [7], "category_id": {}, "bbox": [0, 0, 5, 5]}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    report = Annotations(tmp_path / "instances.json").report(["7.png"])
    assert "names an image that is not in the file: 1, e.g. annotation 1" in report


def read_coco(
    tmp_path: Path,
    boxes: Sequence[Any],
    images: Sequence[dict[str, Any]] = ({"id": 7, "file_name": "a.png", "width": 100, "height": 50},),
    sizes: dict[str, tuple[int, int]] | None = None,
    **more: Any,
) -> Annotations:
    """Category 1 is cat; a box is four numbers, or an annotation's keys beside them."""
    rows = [
        {"id": k, "image_id": 7, "category_id": 1} | (one if isinstance(one, dict) else {"bbox": one})
        for k, one in enumerate(boxes, start=1)
    ]
    content = {"images": list(images), "categories": [{"id": 1, "name": "cat"}], "annotations": rows} | more
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return Annotations(tmp_path / "coco.json", sizes or ["a.png"], sizes)


def found(detector: Annotations, img_path: str = "a.png") -> list[Box]:
    answer = detector.boxes(img_path, SIZE)
    assert isinstance(answer, list)
    return [one.box for one in answer]


A = {"id": 7, "file_name": "a.png"}
CAT = {"bbox": [10, 10, 20, 30]}


@pytest.mark.parametrize("size", [(0, 0), (None, None), ("100", "50"), (100.0, 50.0), ("", ""), ("?", "?"), (-1, -1)])
def test_a_size_that_is_not_known_or_written_as_text_is_no_other_size(tmp_path: Path, size: tuple[Any, Any]) -> None:
    image = A | {"width": size[0], "height": size[1]}
    assert found(read_coco(tmp_path, [CAT], [image])) == [Box(10, 10, 30, 40)]


def test_numbers_and_ids_as_text_are_numbers_and_ids(tmp_path: Path) -> None:
    row = {"image_id": "7", "category_id": 1.0, "iscrowd": "0", "bbox": ["10", "10", 20, "30.0"]}
    crowd = {"bbox": [0, 0, 9, 9], "iscrowd": "1"}
    assert found(read_coco(tmp_path, [row, crowd])) == [Box(10, 10, 30, 40)]


@pytest.mark.parametrize("name", ["images\\a.png", ".\\images\\a.png", "images/a.png", "a.png"])
def test_a_path_written_on_windows_is_a_path(tmp_path: Path, name: str) -> None:
    detector = read_coco(tmp_path, [CAT], [A | {"file_name": name}], {"images/a.png": SIZE})
    assert found(detector, "images/a.png") == [Box(10, 10, 30, 40)]
    assert found(detector, "images\\a.png") == [Box(10, 10, 30, 40)]


def test_a_name_in_decomposed_letters_is_the_same_name(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    detector = read_coco(tmp_path, [CAT], [A | {"file_name": decomposed}], {composed: SIZE})
    assert found(detector, composed) == [Box(10, 10, 30, 40)]
    assert ask(annotations(tmp_path, row("cat", img_path=composed)), "cat", img_path=decomposed) != {}


def test_a_name_of_several_images_with_different_boxes_is_an_error_of_its_records(tmp_path: Path) -> None:
    detector = read_coco(tmp_path, [CAT, {"image_id": 8, "bbox": [0, 0, 9, 9]}], [A, A | {"id": 8}])
    answer = ask(detector, "cat")
    assert isinstance(answer, Failed) and "a.png: 2 images of coco.json have this name" in answer.reason
    assert "1 images of the pairs may be several of the file" in detector.report(["a.png"])


@pytest.mark.parametrize(
    ("boxes", "images"),
    [
        # The same boxes, as where one export is merged with itself
        ([CAT, CAT | {"image_id": 8}], [A, A | {"id": 8}]),
        # Of another size than the image
        ([CAT, {"image_id": 8, "bbox": [0, 0, 9, 9]}], [A, A | {"id": 8, "width": 640, "height": 480}]),
        # The very same entry twice
        ([CAT], [A, A]),
        # Another folder
        ([CAT, {"image_id": 8, "bbox": [0, 0, 9, 9]}], [A, {"id": 8, "file_name": "val/a.png"}]),
    ],
)
def test_a_name_that_comes_twice_is_understood_where_it_is_clear(tmp_path: Path, boxes: Any, images: Any) -> None:
    detector = read_coco(tmp_path, boxes, images, {"a.png": SIZE})
    assert found(detector) == [Box(10, 10, 30, 40)]
    assert detector.report(["a.png"]) == ""


def test_an_id_that_is_used_twice_gives_no_boxes_and_is_said(tmp_path: Path) -> None:
    detector = read_coco(tmp_path, [CAT], [A, {"id": "7", "file_name": "b.png"}])
    for name in ("a.png", "b.png"):
        answer = ask(detector, "cat", img_path=name)
        assert (
            isinstance(answer, Failed) and "image id 7 is used more than once, for a.png and for b.png" in answer.reason
        )
    assert "image id used more than once: 1, e.g. annotation 1" in detector.report(["a.png"])

    kinds = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "cup"}, {"id": 2, "name": "Cup"}]
    detector = read_coco(tmp_path, [CAT, CAT | {"category_id": 2}], categories=kinds)
    assert ask(detector) == {"cup": Box(10, 10, 30, 40)}
    assert "category id 1 has more than one name: 1, e.g. annotation 1" in detector.report(["a.png"])


def test_iscrowd_on_every_annotation_says_nothing(tmp_path: Path) -> None:
    detector = read_coco(tmp_path, [CAT | {"iscrowd": 1}])
    assert found(detector) == [Box(10, 10, 30, 40)]
    assert "iscrowd 1 on every annotation" in detector.report(["a.png"])


def test_a_turned_box_of_cvat_is_the_upright_box_around_it(tmp_path: Path) -> None:
    """40 x 20 about (50, 25): by 90 degrees 20 x 40, by 180 as before; by 30 degrees 40 cos 30 + 20 sin 30 = 44.6 wide,
    40 sin 30 + 20 cos 30 = 37.3 high: 27.7 to 72.3 and 6.3 to 43.7."""
    for angle, box in {
        0: Box(30, 15, 70, 35),
        90: Box(40, 5, 60, 45),
        "270.0": Box(40, 5, 60, 45),
        180: Box(30, 15, 70, 35),
        30: Box(28, 6, 72, 44),
        -30: Box(28, 6, 72, 44),
    }.items():
        detector = read_coco(tmp_path, [{"bbox": [30, 15, 40, 20], "attributes": {"rotation": angle}}])
        assert found(detector) == [box]
    unclear = [CAT | {"attributes": {"rotation": "left"}}, CAT | {"rotation": 90}, {"bbox": [50, 25, 40, 20, 90]}]
    detector = read_coco(tmp_path, unclear)
    report = detector.report(["a.png"])
    assert found(detector) == [] and "3 annotations cannot be used" in report
    assert "a rotation that is not CVAT's attributes.rotation in degrees: 2" in report


def test_boxes_that_are_none_or_outside_are_counted_and_boxes_past_the_edge_cut(tmp_path: Path) -> None:
    boxes = [[math.nan, 0, 5, 5], [0, 0, math.inf, 5], ["x", 0, 5, 5], None, [10, 10, 0, 5], [200, 10, 20, 20]]
    detector = read_coco(tmp_path, [*boxes, [95, 40, 40, 60], [60, 20, 60, 10], [10, 10, 20, 30.5]])
    report = detector.report(["a.png"])
    assert found(detector) == [Box(60, 20, 100, 30), Box(10, 10, 30, 41)]
    assert "7 annotations cannot be used" in report
    assert "bbox holds NaN or infinity: 2, e.g. annotation 1; annotation 2" in report
    assert "box of no size: 1, e.g. annotation 5, [10, 10, 0, 5] on a.png" in report
    assert "most of it outside: 2, e.g. annotation 6" in report
    assert "boxes past the edge, cut to their image: 1, e.g. annotation 8, [60, 20, 60, 10] on a.png" in report
    assert detector.summary()["annotations"]["noted"] == {
        "boxes past the edge, cut to their image": {"count": 1, "example": "annotation 8, [60, 20, 60, 10] on a.png"}
    }


def test_boxes_dragged_over_a_corner_are_put_right(tmp_path: Path) -> None:
    """The object fills [10, 10, 30, 40]: dragged from its lower right corner, in COCO's numbers and in corners."""
    detector = read_coco(tmp_path, [[30, 40, -20, -30], [30, 10, -20, 30], [10, 40, 20, "-30"]])
    assert found(detector) == [Box(10, 10, 30, 40)] * 3
    put_right = "corners in reverse order, or a negative width or height, put right"
    assert detector.summary()["annotations"]["noted"][put_right]["count"] == 3
    others = [row("dog", box) for box in CORNERS]
    detector = annotations(tmp_path, *others, row("cat", [30, 40, 10, 10]), row("cup", [30, 10, 10, 40]))
    assert ask(detector, "cat", "cup") == {"cat": Box(10, 10, 30, 40), "cup": Box(10, 10, 30, 40)}


# The mask of [10, 10, 30, 40] on 100 x 50 pixels, column by column: 10 columns and 10 pixels of nothing, then in 20
# columns 30 pixels, 20 of nothing between them.
RUNS = [10 * 50 + 10, *([30, 20] * 19), 30, 10 + 70 * 50]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 10, 30, 10, 30, 40, 10, 40]],
        [[10, 10, 20, 10, 15, 30], ["30", "40", 20, 20, 12, 12]],  # two parts
        {"size": [50, 100], "counts": RUNS},
        {"size": [50, 100], "counts": f"n?n0d0{'0' * 37}R]3"},  # as pycocotools 2.0.11 writes it
    ],
    ids=["polygon", "two polygons", "run lengths", "compressed run lengths"],
)
def test_a_segmentation_alone_gives_its_box(tmp_path: Path, segmentation: Any) -> None:
    for bbox in ({}, {"bbox": None}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}):
        detector = read_coco(tmp_path, [{"segmentation": segmentation, **bbox}])
        assert found(detector) == [Box(10, 10, 30, 40)]
        assert "taken as the box around their segmentation: 1, e.g. annotation 1" in detector.report(["a.png"])


def test_a_compressed_mask_of_pycocotools_is_read(tmp_path: Path) -> None:
    """pycocotools 2.0.11: encode of a 4 x 3 mask (height, width) with the lower two of the second column set."""
    detector = read_coco(tmp_path, [{"segmentation": {"size": [4, 3], "counts": "624"}}], sizes={"a.png": (3, 4)},
                         images=[{"id": 7, "file_name": "a.png", "width": 3, "height": 4}])  # fmt: skip
    answer = detector.boxes("a.png", (3, 4))
    assert isinstance(answer, list) and [one.box for one in answer] == [Box(1, 2, 2, 4)]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2, 3]], "holds something that is no point"),
        ([[1, 2, math.nan, 4]], "holds something that is no point"),
        ({"size": [50, 100], "counts": [1, 2]}, "do not fill the mask's size"),
        ({"size": [50, 100], "counts": [5000]}, "its mask is empty"),
        ({"size": [50, 100], "counts": "~~"}, "neither polygons nor run lengths"),
        ("mask", "neither polygons nor run lengths"),
        ([], "neither bbox nor segmentation"),
    ],
)
def test_a_segmentation_that_is_none_is_counted_by_reason(tmp_path: Path, segmentation: Any, reason: str) -> None:
    detector = read_coco(tmp_path, [CAT, {"segmentation": segmentation}])
    assert found(detector) == [Box(10, 10, 30, 40)]
    assert reason in detector.lost() and "1, e.g. annotation 2" in detector.lost()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("/home/me/set/images/{}.png", "images/{}.png"),
        ("set/images/{}.png", "images/{}.png"),
        ("images/{}.png", "set/images/{}.png"),
        ("old/images/{}.png", "new/images/{}.png"),
        ("C:\\set\\{}.png", "images/{}.png"),
    ],
)
def test_paths_with_another_beginning_meet_at_their_common_end(tmp_path: Path, theirs: str, ours: str) -> None:
    rows = [row("cat", img_path=theirs.format(name)) for name in "ab"]
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    detector = Annotations(tmp_path / "annotations.jsonl", [ours.format(name) for name in "ab"])
    for name in "ab":
        assert ask(detector, "cat", img_path=ours.format(name)) == {"cat": Box(10, 10, 30, 40)}
    assert "matched by their common end: 1" in detector.report([ours.format("a")])
    assert ask(detector, "cat", img_path="elsewhere/a.png") == {}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["train/1.png"], ["val/1.png"]),  # only the name is common: two splits may number their images alike
        (["1.png"], ["train/1.png", "train/2.png", "val/1.png"]),  # which of the two?
        (["a/x/1.png", "b/x/1.png", "b/x/2.png"], ["x/1.png", "x/2.png"]),
    ],
)
def test_where_an_end_may_be_of_several_images_none_is_taken(tmp_path: Path, theirs: Any, ours: Any) -> None:
    (tmp_path / "annotations.jsonl").write_text("\n".join(json.dumps(row("cat", img_path=path)) for path in theirs))
    detector = Annotations(tmp_path / "annotations.jsonl", ours)
    assert ask(detector, "cat", img_path=ours[0]) == {}


CORNERS = [[10, 10, 30, 40], [60, 5, 95, 45], [50, 20, 70, 50], [70, 0, 100, 30], [40, 25, 90, 45], [55, 30, 60, 49]]


def test_corners_in_place_of_width_and_height_are_understood_where_all_boxes_say_so(tmp_path: Path) -> None:
    """60 + 95 is past the image, 100 wide, and so are the four boxes behind it; as corners all fit."""
    detector = read_coco(tmp_path, CORNERS)
    assert found(detector) == [Box(*edges) for edges in CORNERS]
    assert "boxes read as [left, top, right, bottom] in pixels" in detector.report(["a.png"])
    with pytest.raises(DataError, match=r"2 of 3 boxes do not fit .* \[60, 5, 95, 45\] on 100 x 50 pixels"):
        read_coco(tmp_path, CORNERS[:3])
    # Among boxes of the file's own form, one that may be corners is left out.
    mixed = read_coco(tmp_path, [CAT, [60, 30, 35, 10], CORNERS[1]])
    assert found(mixed) == [Box(10, 10, 30, 40), Box(60, 30, 95, 40)]
    assert "inside as [left, top, right, bottom] in pixels: 1, e.g. annotation 3" in mixed.report(["a.png"])


def test_width_and_height_in_place_of_corners_are_understood_too(tmp_path: Path) -> None:
    sides = [[60, 10, 20, 30], [50, 5, 45, 40], [70, 30, 20, 15], [10, 10, 60, 5], [90, 5, 8, 40], [80, 40, 10, 10]]
    rows = [row("cat", [float(number) for number in one]) for one in sides]
    annotations(tmp_path, *rows)
    detector = Annotations(tmp_path / "boxes.jsonl", ["a.png"], {"a.png": SIZE})
    assert found(detector) == [Box(x, y, x + width, y + height) for x, y, width, height in sides]


@pytest.mark.parametrize("unit", [1, 1000])
def test_shares_of_the_image_are_understood(tmp_path: Path, unit: int) -> None:
    """In pixels of 100 x 50 the boxes of JSONL are CORNERS; half of them reach past 900 thousandths."""
    shares = [[x * unit / 100 if k % 2 == 0 else x * unit / 50 for k, x in enumerate(one)] for one in CORNERS]
    annotations(tmp_path, *[row("cat", box) for box in shares])
    detector = Annotations(tmp_path / "boxes.jsonl", ["a.png"], {"a.png": SIZE})
    assert found(detector) == [Box(*edges) for edges in CORNERS]
    assert f"boxes read as [left, top, right, bottom] in shares of {unit}" in detector.report(["a.png"])


def test_boxes_that_may_be_shares_or_of_a_larger_image_are_refused_and_single_shares_left_out(tmp_path: Path) -> None:
    """No box reaches past 760: they may be of an image of 800 x 760 that was made smaller."""
    larger = [[8 * x, 15 * y, 8 * right - 40, 15 * bottom] for x, y, right, bottom in CORNERS]
    annotations(tmp_path, *[row("cat", box) for box in larger])
    with pytest.raises(DataError, match="or of images of another size"):
        Annotations(tmp_path / "boxes.jsonl", ["a.png"], {"a.png": SIZE})
    annotations(tmp_path, row("cat"), row("dog", [0.1, 0.2, 0.3, 0.4]))
    detector = Annotations(tmp_path / "boxes.jsonl", ["a.png"], {"a.png": SIZE})
    assert found(detector) == [Box(10, 10, 30, 40)]
    assert "shares of 1 among boxes in pixels: 1, e.g. record 2" in detector.report(["a.png"])


def test_boxes_of_an_image_of_another_size_are_not_used(tmp_path: Path) -> None:
    answer = ask(coco(tmp_path, size=(50, 100)), "cat", img_path="000007.png")
    assert isinstance(answer, Failed)
    assert "annotated at 50 x 100 pixels" in answer.reason and "has 100 x 50" in answer.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, column 2: not valid JSON"),
        ('{"img_path": "a.png"}', "no usable record"),
        ("", "the file is empty"),
        ('{"annotations": [], "images": [{"file": 1}], "categories": []}', "not COCO instances"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes").write_text(text)
    with pytest.raises(DataError, match=message):
        Annotations(tmp_path / "boxes")


# Grounding DINO


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_detector(tmp_path_factory.mktemp("detector"))


def load(checkpoint: Path, box_threshold: float, text_threshold: float = 0.0) -> ZeroShotDetector:
    return ZeroShotDetector.load(
        str(checkpoint),
        device=torch.device("cpu"),
        dtype=torch.float32,
        box_threshold=box_threshold,
        text_threshold=text_threshold,
    )


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, (40 * seed % 256, 90, 130))
    ImageDraw.Draw(image).rectangle((5 * seed, 8, 5 * seed + 30, 40), fill=(250, 20 * seed % 256, 30))
    return image


def test_the_prompt_has_every_phrase_in_lower_case_with_a_full_stop(checkpoint: Path) -> None:
    detector = load(checkpoint, 0.0)
    queries = [
        Query("a", scene(1, (80, 60)), ("cat", "Traffic Light", "no. 5 bird?")),
        Query("b", scene(2, (80, 60)), ("dog",)),
    ]
    (group,) = detector.prepare(queries).groups
    tokenizer = detector.processor.tokenizer
    texts = [tokenizer.decode(ids) for ids in group.inputs["input_ids"]]
    assert texts[0] == "[CLS] cat. traffic light. no 5 bird. [SEP]"
    assert texts[1].startswith("[CLS] dog. [SEP] [PAD]")


def test_phrases_beyond_one_text_go_into_another_and_nothing_is_asked_of_none(checkpoint: Path) -> None:
    detector = load(checkpoint, 0.0)
    (group,) = detector.prepare([Query("a", scene(1, (80, 60)), ())]).groups
    rows = [row.phrases for row in group.rows]
    assert len(rows) > 1 and sum(rows, ()) == EVERYDAY_OBJECTS
    assert group.inputs["input_ids"].shape[1] <= detector.model.config.max_text_len
    assert detector.detect(detector.prepare([Query("a", scene(1, (80, 60)), ("?", "..."))])) == [[]]


def test_boxes_do_not_depend_on_what_else_is_in_the_batch(checkpoint: Path) -> None:
    detector = load(checkpoint, 0.0)
    phrases = ("cat", "traffic light", "zebra", "dog", "red umbrella")
    queries = [
        Query(str(k), scene(k, size), phrases[: 1 + k % 5])
        for k, size in enumerate([(80, 60), (120, 60), (80, 60), (50, 200), (120, 60), (80, 60), (64, 64)])
    ]
    together = detector.detect(detector.prepare(queries))
    for query, answer in zip(queries, together, strict=True):
        (alone,) = detector.detect(detector.prepare([query]))
        assert isinstance(answer, list) and isinstance(alone, list) and len(alone) > 3

        def plain(found: list[Found]) -> list[tuple[str, Box]]:
            return sorted(((one.phrase, one.box) for one in found), key=str)

        assert plain(answer) == plain(alone)


@pytest.mark.parametrize("padded", [False, True])
def test_boxes_come_back_in_pixels_of_the_image_that_was_given(padded: bool) -> None:
    """An image of 200 x 50 becomes 96 x 24 (longest edge 96); one of another size goes through a batch of its own.

    A processor that pads lays it into the upper left of 128 x 128 pixels, which changes none of the boxes below.

    The model says centre and size as parts of the image: (0.5, 0.4, 0.2, 0.4) is left 0.4, top 0.2, right 0.6,
    bottom 0.6 of it: 80, 10, 120, 30 in pixels of 200 x 50, whatever the processor made of it.
    """
    model, processor = build_small_detector()
    if padded:
        processor.image_processor.pad_size = {"height": 128, "width": 128}
    detector = ZeroShotDetector(model, processor, box_threshold=0.3, text_threshold=0.25)
    wide, square = Query("a", scene(1, (200, 50)), ("cat", "traffic light")), Query("b", scene(2, (64, 64)), ("cat",))
    resized = {tuple(group.inputs["pixel_values"].shape[-2:]) for group in detector.prepare([wide, square]).groups}
    assert resized == ({(128, 128)} if padded else {(24, 96), (64, 64)})
    (group,) = detector.prepare([wide]).groups
    assert group.inputs["pixel_mask"].sum() == 24 * 96 == group.inputs["pixel_mask"][0, :24, :96].sum()

    # tokens: [CLS] cat . traffic light . [SEP]
    def logits(cat: float, traffic: float, light: float) -> list[float]:
        values = torch.logit(torch.tensor([0.99, cat, 0.99, traffic, light, 0.99, 0.99]))
        return [*values.tolist(), *[-math.inf] * (model.config.max_text_len - 7)]

    queries = [
        (logits(0.9, 0.2, 0.2), (0.5, 0.4, 0.2, 0.4)),  # cat, 0.9
        (logits(0.2, 0.35, 0.26), (0.5, 0.5, 0.5, 0.5)),  # traffic light, 0.35: 0.35 and 0.26 are above 0.25
        (logits(0.1, 0.24, 0.9), (0.2, 0.2, 0.1, 0.1)),  # 0.24 is not above 0.25: half a compound
        (logits(0.25, 0.1, 0.1), (0.2, 0.2, 0.1, 0.1)),  # 0.25 is not above 0.3; [CLS] and full stops do not count
        (logits(0.31, 0.32, 0.9), (0.95, 0.5, 0.2, 1.2)),  # traffic light, past the border: left 170, right 200
    ]
    (group,) = detector.prepare([wide]).groups
    outputs = model(**group.inputs)
    outputs.logits = torch.tensor([[values for values, _ in queries]])
    outputs.pred_boxes = torch.tensor([[box for _, box in queries]])
    model.forward = lambda **inputs: outputs  # the boxes worked out above instead of random ones
    (found,) = detector.detect(detector.prepare([wide]))
    assert isinstance(found, list)
    assert [(one.phrase, one.box) for one in found] == [
        ("cat", Box(80, 10, 120, 30)),
        ("traffic light", Box(50, 13, 150, 38)),  # 12.5 and 37.5, half up
        ("traffic light", Box(170, 0, 200, 50)),
    ]
    assert [one.score for one in found] == pytest.approx([0.9, 0.35, 0.9], abs=1e-6)


def test_too_little_memory_is_one_message_with_the_option_that_helps() -> None:
    model, processor = build_small_detector()
    detector = ZeroShotDetector(model, processor, box_threshold=0.3, text_threshold=0.25)

    def forward(**inputs: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 ...")

    model.forward = forward
    with pytest.raises(DataError, match=r"^out of GPU memory in the detector: lower --detector_batch_size$"):
        detector.detect(detector.prepare([Query("a", scene(1, (80, 60)), ("cat",))]))


# Detectors that take lists of names


def test_a_detector_that_takes_lists_answers_in_the_same_shape() -> None:
    """OWL-ViT fills shorter lists up with empty names; what it sees in those is no answer."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: place for place, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = OwlViTConfig(
        text_config={**layers, "vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 0},
        vision_config={**layers, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    processor = OwlViTProcessor(
        OwlViTImageProcessorPil(size={"height": 64, "width": 64}),
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16),
    )
    model = OwlViTForObjectDetection(config)
    detector = ZeroShotDetector(model, processor, box_threshold=0.0, text_threshold=0.0)
    long_name = "a traffic light that is red and green"
    queries = [
        Query("a", scene(1, (80, 60)), ("cat", long_name, "bird")),
        Query("b", scene(2, (80, 60)), ("dog",)),
        Query("c", scene(3, (30, 60)), ("dog", "cup")),
    ]
    answers = detector.detect(detector.prepare(queries))
    seen = set()
    for query, answer in zip(queries, answers, strict=True):
        assert isinstance(answer, list)
        seen |= {found.phrase for found in answer}
        assert {found.phrase for found in answer} <= set(query.phrases)
        assert all(found.box.fits(*query.image.size) for found in answer)
    assert seen
