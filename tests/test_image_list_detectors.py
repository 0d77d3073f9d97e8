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
    assert "record 2: box of no size, 0 x 30 pixels, on a.png" in report
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
    assert "annotation 3 names an image or a category that is not in the file" in detector.report(["000007.png"])


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


def test_a_coco_annotation_of_a_list_of_images_is_said(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "7.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": [7], "category_id": {}, "bbox": [0, 0, 5, 5]}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    report = Annotations(tmp_path / "instances.json").report(["7.png"])
    assert "annotation 1 names an image or a category that is not in the file" in report


def test_boxes_of_a_image_of_another_size_are_not_used(tmp_path: Path) -> None:
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
