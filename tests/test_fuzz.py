"""Every reader on files that were changed at random: it reads them, or says in one short message what is wrong.

The seed is fixed, so that a run finds what the last one found. FUZZ_INPUTS=10000 asks each reader more than the 300
that are asked here by default.
"""

import copy
import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from listwise_preference.cli import Parser, add_options, count, parse_options
from listwise_preference.data.convert import convert
from listwise_preference.data.pairs import BoxLists, ImageOnly, load_records, read_entries, read_exclusions
from listwise_preference.data.ranked_images import Drawing, open_image, transposed_size
from listwise_preference.errors import DataError, ImageError, ModelError, UserError
from listwise_preference.files import parse_yaml, read_json
from listwise_preference.generation.questions import read_questions
from listwise_preference.generation.response_files import ResponseFiles
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.store import ListStore
from listwise_preference.models.adapters import check_folders
from listwise_preference.models.adapters import read_config as read_adapter_config
from listwise_preference.scoring import compare, table
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.judge import _Failed, _kept_reply, _text_in
from listwise_preference.training.options import ModelArguments

INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
LONGEST = 2_000

# ---- how a file is changed ----

ODD: list[Any] = [
    None, True, False, 0, -1, 7, 2**64, 10**400, 1e308, -1e308, float("nan"), float("inf"), "", " ", "7", "-3.5", "NaN",
    "1e999", "9" * 400, "\ud83d", "\x00", "a\nb", "\u202e", "x" * 5_000, "../../x", "/etc", "\\\\host\\x", [], {},
    [[]], [None], [1, 2, 3, 4], ["1", "2", "3", "4"], {"a": {"a": []}}, {"": None}, "[1]", "{}", "yes",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(one, (*path, key))


def change_value(value: Any, draw: random.Random) -> Any:
    """One value replaced, taken out, doubled, nested, or put where another one is."""
    found = list(places(value))
    if not found or draw.random() < 0.03:
        return draw.choice(ODD)
    value = copy.deepcopy(value)
    *above, key = draw.choice(found)
    holder = value
    for step in above:
        holder = holder[step]
    kind = draw.randrange(6)
    if kind <= 2:
        holder[key] = draw.choice(ODD)
    elif kind == 3:
        del holder[key]
    elif kind == 4:
        for _ in range(draw.choice([1, 3, 150])):
            holder[key] = [holder[key]] if draw.random() < 0.5 else {"a": holder[key]}
    else:
        other: Any = value
        for step in draw.choice(found):
            other = other[step]
        holder[key] = copy.deepcopy(other)
    return value


def change_bytes(content: bytes, draw: random.Random) -> bytes:
    """Cut, changed, doubled or strewn with other bytes."""
    kind, place = draw.randrange(5), draw.randrange(len(content) + 1)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes(draw.randrange(256) for _ in range(draw.randint(1, 4))) + content[place + 1 :]
    if kind == 2:
        return content[:place] + content[draw.randrange(len(content) + 1) :]
    if kind == 3:
        return content[:place] + draw.choice([b"[" * 3_000, b'{"a":' * 3_000, b"9" * 5_000, b"\xff", b"\x00", b'"'])
    return content[:place] + draw.choice(b'{}[]",:0\n<>-').to_bytes(1, "little") + content[place:]


def changed_json(value: Any, draw: random.Random, lines: bool = False) -> bytes:
    for _ in range(draw.choice([1, 1, 1, 3])):
        value = change_value(value, draw)
    if lines and isinstance(value, list):
        content = "\n".join(map(json.dumps, value)).encode()
    else:
        content = json.dumps(value, ensure_ascii=draw.random() < 0.9).encode("utf-8", "surrogatepass")
    return change_bytes(content, draw) if draw.random() < 0.3 else content


# ---- the readers ----


@dataclass(frozen=True)
class Reader:
    """``read`` takes the folder and a file in it, which held ``seed`` before it was changed."""

    file: str
    seed: Any
    read: Callable[[Path, Path], object]
    lines: bool = False


PAIR = {"id": "a", "img_path": "a.png", "prompt": "What is it?", "chosen": "A dog.", "rejected": "A cat."}
PAIRS = [PAIR, {**PAIR, "id": 2, "img_path": "sub/b.png"}, {**PAIR, "id": 3}]
OTHER_FORMS = [
    {"images": ["a.png"], "conversations": [{"from": "human", "value": "<image>What?"}],
     "chosen": {"from": "gpt", "value": "A dog."}, "rejected": {"from": "gpt", "value": "A cat."}},
    {"images": ["a.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
     {"role": "assistant", "content": "A dog."}], "rejected_response": "A cat."},
    {"image": "a.png", "prompt": "What?", "completions": [
        {"response": "A dog.", "annotations": {"Helpfulness": {"Rating": "4"}}}, {"response": "A cat.", "score": 1}]},
    {"image": "a.png", "text": json.dumps({"question": "What?", "chosen": "A dog.", "rejected": "A cat."})},
    {"image": "a.png", "conversations": [{"from": "human", "value": "What?"}],
     "output_1": {"from": "llm", "value": "a"}, "output_2": {"from": "llm", "value": "b"}, "preference": 1},
    {"image": {"bytes": "iVBORw0KGgo=", "path": "../x.png"},
     "prompt": "What?", "chosen": "A dog.", "rejected": "A cat."},
]  # fmt: skip
LISTS = [{"id": one["id"], "img_path": one["img_path"], "box": [1, 2, 9, 12], "verdict": "verified"} for one in PAIRS]
CSV = 'id,img_path,prompt,chosen,rejected\n1,a.png,What?,A dog.,A cat.\n2,sub/b.png,"W,hat?","A\ndog.",A cat.\n'
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 12], "iscrowd": 0, "attributes": {"rotation": 20}},
        {"image_id": 1, "category_id": 2, "segmentation": [[1, 2, 9, 2, 9, 12]]},
        {"image_id": 2, "category_id": 2, "segmentation": {"size": [30, 40], "counts": [31, 5, 1164]}},
    ],
}
BOXES = [
    {"img_path": "a.png", "label": "dog", "box": [1, 2, 9, 12]},
    {"img_path": "sub/b.png", "label": "cat", "box": [0, 0, 4, 4]},
]
LABEL_STUDIO = [{"id": 1, "data": {"image": "/data/upload/1/0123abcd-a.png"}, "annotations": [{"id": 1, "result": [
    {"id": "r", "type": "rectanglelabels", "original_width": 40, "original_height": 30,
     "value": {"x": 5, "y": 5, "width": 20, "height": 30, "rotation": 10, "rectanglelabels": ["Dog"]}},
    {"id": "p", "type": "polygonlabels", "original_width": 40, "original_height": 30,
     "value": {"points": [[1, 2], [30, 40], [50, 2]], "polygonlabels": ["Cat"]}}]}]}]  # fmt: skip
LABELME = {"imagePath": "a.png", "imageWidth": 40, "imageHeight": 30, "shapes": [
    {"label": "dog", "shape_type": "rectangle", "points": [[1, 2], [9, 12]]},
    {"label": "cat", "shape_type": "circle", "points": [[20, 10], [22, 12]]}]}  # fmt: skip
VOC = (
    "<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size><object><name>dog</name>"
    "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>12</ymax></bndbox></object></annotation>"
)
CVAT = (
    '<annotations><image id="0" name="a.png" width="40" height="30"><box label="dog" xtl="1" ytl="2" xbr="9" ybr="12"'
    ' rotation="10"/><polygon label="cat" points="1,2;9,2;9,12"/></image></annotations>'
)
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "amber": [
        {"id": 1, "image": "a.png", "query": "Describe this image."},
        {"id": 1005, "image": "a.png", "query": "Is it?"},
    ],
    "object-halbench": [{"question": "What is there?", "image_id": 1}],
    "mmhal": [
        {
            "question_type": "attribute",
            "image_src": "x/a.png",
            "image_id": "a",
            "question": "What?",
            "gt_answer": "A dog.",
            "image_content": ["dog"],
            "model_answer": "",
        }
    ],
    "hallusionbench": [
        {
            "category": "VD",
            "subcategory": "chart",
            "set_id": "0",
            "figure_id": str(n),
            "question_id": "0",
            "visual_input": "1",
            "gt_answer": "1",
            "question": "Is it?",
            "filename": "a.png",
            "gt_answer_details": "It is.",
        }
        for n in (0, 1)
    ],
    "pope": [{"question_id": n, "image": "a.png", "text": "Is there a dog?", "label": "yes"} for n in (1, 2)],
    "beaf": [
        {
            "id": n,
            "image": name,
            "question": f"Is there a {what} in the image?",
            "orig_img": name == "x.jpg",
            "removed_q": True,
            "gt": gt,
        }
        for n, (name, what, gt) in enumerate([("x.jpg", "dog", "yes"), ("x_00.png", "dog", "no")])
    ],
}
ANSWERS: dict[str, list[dict[str, Any]]] = {
    "amber": [{"id": 1, "response": "A dog."}, {"id": 1005, "response": "Yes"}],
    "object-halbench": [{"question": "What is there?", "answer": "A dog and a cat.", "image_id": 1}],
    "chair": [{"image_id": 1, "caption": "A dog and a cat."}],
    "hallusionbench": [
        {**one, "response": "Yes", "judge": "correct", "same": "same"} for one in QUESTIONS["hallusionbench"]
    ],
    "pope": [{"question_id": n, "text": "Yes"} for n in (1, 2)],
    "dash-b": [
        {"img_id": "1.png", "object_name": "tie", "gt": "no", "response": "No"},
        {"img_id": "1.jpg", "object_name": "tie", "gt": "yes", "response": "Yes"},
    ],
    "beaf": [{"id": n, "response": "yes"} for n in (0, 1)],
}
SCORES = {
    "benchmark": "pope", "partial": False, "problems": [], "accuracy": 0.5, "f1": 0.5, "precision": 0.5, "recall": 0.5,
    "yes_ratio": 0.5, "counts": {"answers": 2, "pictures": 1}, "protocol": {"rules": "POPE"},
    "answers": {"file": "a.json", "sha256": "0" * 64}, "versions": {"listwise_preference": "1"},
    "bootstrap": {"accuracy": {"low": 0.1, "high": 0.9}},
}  # fmt: skip
COCO_TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 1}],
}
COCO_CAPTIONS = {"annotations": [{"image_id": 1, "caption": "A dog on a sofa."}]}
AMBER_TRUTH = [
    {"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["cat"]},
    {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"},
]
ADAPTER = {
    "peft_type": "LORA", "task_type": None, "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj"],
    "exclude_modules": None, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
    "use_rslora": False, "init_lora_weights": True, "inference_mode": True, "base_model_name_or_path": "m",
}  # fmt: skip
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHTS = save({f"{LAYER}.lora_A.weight": np.ones((4, 8), "f"), f"{LAYER}.lora_B.weight": np.ones((8, 4), "f")})
REPLY = {"model": "m", "choices": [{"message": {"role": "assistant", "content": "Rating: 3"}}]}


def read_pairs(folder: Path, file: Path) -> None:
    load_records(file, folder, ImageOnly(), on_bad_record="drop", placeholders=("<image>",))


def read_lists(folder: Path, file: Path) -> None:
    load_records(folder / "pairs.json", folder, BoxLists(file, Drawing()), on_bad_record="drop")


def read_annotations(folder: Path, file: Path) -> None:
    images = ["a.png", "sub/b.png"]
    annotations = Annotations(file, images, {"a.png": (40, 30), "sub/b.png": (40, 30)})
    annotations.report(images)
    json.dumps(annotations.summary())
    for image in images:
        annotations.boxes(image, (40, 30))


def read_folder(folder: Path, file: Path) -> None:
    read_annotations(folder, file.parent)


def read_config(folder: Path, file: Path) -> None:
    parser = Parser(prog="program")
    add_options(parser, "model", ModelArguments)
    parser.add_argument("--list_size", type=count)
    try:
        parse_options(parser, {}, ["--config", str(file)])
    except SystemExit as stop:
        assert stop.code == 2
        raise UserError("the parser has said it") from None


def ask(name: str) -> Callable[[Path, Path], None]:
    form = BENCHMARKS[name].questions
    assert form is not None

    def read(folder: Path, file: Path) -> None:
        read_questions(form, file, folder, "drop")

    return read


def scored(name: str, *options: str) -> Callable[[Path, Path], None]:
    benchmark = BENCHMARKS[name]

    def read(folder: Path, file: Path) -> None:
        parser = Parser(prog="score.py")
        parser.add_argument("answers", type=Path)
        parser.add_argument("--output", type=Path)
        parser.add_argument("--partial", action="store_true")
        parser.add_argument("--bootstrap", type=int, default=0)
        benchmark.add_options(parser)
        filled = [one.format(folder=folder, file=file) for one in options]
        result = benchmark.score(parser.parse_args([*filled, "--partial"]))
        benchmark.table({**result.numbers, "counts": result.counts, "protocol": result.protocol})

    return read


def read_scores(folder: Path, file: Path) -> None:
    result = compare.read_result(file)
    compare.markdown(compare.rows_by_benchmark(["a"], [result], []))
    compare.notes(["a"], [result])
    runs, _ = table.collect([file], ["a"])
    table.build(runs, [], 10, 0)


def read_reply(folder: Path, file: Path) -> None:
    try:
        _text_in(file.read_bytes())
    except _Failed as failed:
        raise UserError(str(failed)) from None


def read_store(folder: Path, file: Path) -> None:
    """Responses: a changed run.json, part or record is another run's, or is done again."""
    store = ResponseFiles(folder / "responses.json")
    store.check()
    store.items()
    store.begin({"decides": {"model": "m"}, "versions": {"torch": "1"}}, restart=False, versions={"torch": "1"})


def read_list_store(folder: Path, file: Path) -> None:
    store = ListStore(folder / "lists.jsonl", ["a", 2, 3])
    store.check()
    store.lines()
    store.measured()
    store.earlier_speed()
    store.begin({"version": "1"}, restart=False)


def read_adapter(folder: Path, file: Path) -> None:
    """At the door, and what it lets through once more by peft."""
    check_folders(".", folder / "adapter")
    read_adapter_config(folder / "adapter")


READERS = {
    "pairs": Reader("p.json", PAIRS, read_pairs),
    "pairs, lines": Reader("p.jsonl", PAIRS, read_pairs, lines=True),
    "pairs, other forms": Reader("p.json", OTHER_FORMS, read_pairs),
    "entries": Reader("p.json", PAIRS, lambda folder, file: read_entries(file, folder)),
    "converted": Reader("p.json", OTHER_FORMS, lambda folder, file: convert([file], folder, folder / "inside")),
    "csv": Reader("p.csv", CSV, read_pairs),
    "lists": Reader("l.jsonl", LISTS, read_lists, lines=True),
    "exclude": Reader("e.json", {"rejected": ["a", 2]}, lambda _, file: read_exclusions(file)),
    "coco": Reader("c.json", COCO, read_annotations),
    "boxes": Reader("b.jsonl", BOXES, read_annotations, lines=True),
    "label studio": Reader("s.json", LABEL_STUDIO, read_annotations),
    "labelme": Reader("m.json", LABELME, read_annotations),
    "voc": Reader("voc/v.xml", VOC, read_folder),
    "cvat": Reader("c.xml", CVAT, read_annotations),
    "yolo": Reader("yolo/a.txt", "0 0.5 0.5 0.2 0.3\n1 0.1 0.1 0.4 0.1 0.4 0.4\n", read_folder),
    "yolo, names": Reader("yolo/data.yaml", "nc: 2\nnames: [dog, cat]\n", read_folder),
    "config": Reader(
        "c.yaml", "dtype: bfloat16\nlist_size: 5\nmodel_name_or_path: m\nlora_target_modules: [q, v]\n", read_config
    ),
    "judge's reply": Reader("r.json", REPLY, read_reply),
    "judge's cache": Reader("r.json", {"reply": "Rating: 3"}, lambda _, file: _kept_reply(file)),
    "scores": Reader("scores.json", SCORES, read_scores),
    "responses, run": Reader(
        "responses.json.parts/run.json",
        {"run": {"model": "m"}, "versions": {"torch": "1"}, "replaces": False},
        read_store,
    ),
    "responses, parts": Reader(
        "responses.json.parts/0.jsonl",
        [{"number": 1, "answer": "a", "cut": False}, {"number": 2, "answer": "b", "cut": True}],
        read_store,
        lines=True,
    ),
    "responses, record": Reader("responses.json.run.json", {"decides": {"model": "m"}, "answers_cut": {}}, read_store),
    "lists, parts": Reader(
        "lists.jsonl.parts/0.jsonl",
        [
            {"number": n, "seconds": 0.1, "line": {"id": one["id"], "verdict": "verified"}}
            for n, one in enumerate(PAIRS, 1)
        ],
        read_list_store,
        lines=True,
    ),
    "lists, run": Reader("lists.jsonl.parts/run.json", {"run": {"version": "1"}, "replaces": False}, read_list_store),
    "lists, summary": Reader(
        "summary.json", {"output": "lists.jsonl", "run": {"version": "1"}, "speed": {"seconds": 1}}, read_list_store
    ),
    "adapter's weights": Reader("adapter/adapter_model.safetensors", WEIGHTS, read_adapter),
    "adapter's config": Reader(
        "adapter/adapter_config.json",
        ADAPTER,
        read_adapter,
    ),
    **{f"questions, {name}": Reader("q.json", questions, ask(name)) for name, questions in QUESTIONS.items()},
    "answers, amber": Reader("a.json", ANSWERS["amber"], scored("amber", "{file}", "--data", "{folder}/amber")),
    "answers, pope": Reader("a.json", ANSWERS["pope"], scored("pope", "{file}", "--questions", "{folder}/pope.json")),
    "answers, beaf": Reader("a.json", ANSWERS["beaf"], scored("beaf", "{file}", "--questions", "{folder}/beaf.json")),
    "answers, dash-b": Reader("a.json", ANSWERS["dash-b"], scored("dash-b", "{file}")),
    "lists, dash-b": Reader(
        "dash_neg.json",
        {"coco": {"tie": ["1.png", "2.png"]}, "open": {"Cello": ["3.png"]}},
        scored("dash-b", "{folder}/dash-b.json", "--questions", "{file}"),
    ),
    "answers, hallusionbench": Reader(
        "a.json",
        ANSWERS["hallusionbench"],
        scored("hallusionbench", "{file}", "--data", "{folder}/hallusionbench.json"),
    ),
    "questions of hallusionbench": Reader(
        "q.json",
        QUESTIONS["hallusionbench"],
        scored("hallusionbench", "{folder}/hallusionbench-answers.json", "--data", "{file}"),
    ),
    "questions of pope": Reader(
        "q.json", QUESTIONS["pope"], scored("pope", "{folder}/pope-answers.json", "--questions", "{file}")
    ),
    "questions of beaf": Reader(
        "q.json", QUESTIONS["beaf"], scored("beaf", "{folder}/beaf-answers.json", "--questions", "{file}")
    ),
    "answers, object-halbench": Reader(
        "a.jsonl",
        ANSWERS["object-halbench"],
        scored("object-halbench", "{file}", "--coco_annotations", "{folder}/coco"),
        lines=True,
    ),
    "answers, chair": Reader(
        "a.json", ANSWERS["chair"], scored("chair", "{file}", "--coco_annotations", "{folder}/coco")
    ),
    "coco's truth": Reader(
        "coco2/instances_val2014.json",
        COCO_TRUTH,
        scored("chair", "{folder}/chair.json", "--coco_annotations", "{folder}/coco2"),
    ),
    "coco's captions": Reader(
        "coco2/captions_val2014.json",
        COCO_CAPTIONS,
        scored("chair", "{folder}/chair.json", "--coco_annotations", "{folder}/coco2"),
    ),
    "amber's annotations": Reader(
        "amber2/data/annotations.json",
        AMBER_TRUTH,
        scored("amber", "{folder}/amber-answers.json", "--data", "{folder}/amber2"),
    ),
    "amber's relations": Reader(
        "amber2/data/relation.json",
        {"dog": ["puppy"]},
        scored("amber", "{folder}/amber-answers.json", "--data", "{folder}/amber2"),
    ),
    "amber's questions": Reader(
        "amber2/data/query/query_all.json",
        QUESTIONS["amber"],
        scored("amber", "{folder}/amber-answers.json", "--data", "{folder}/amber2"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the whole files that stand beside the changed one."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("sub", "voc", "yolo", "adapter", "coco", "coco2", "amber/data/query", "amber2/data/query", "inside"):
        (folder / name).mkdir(parents=True)
    for name in ("a.png", "a.jpg", "sub/b.png", "yolo/a.png", "000000000001.jpg", "x.jpg", "x_00.png"):
        Image.new("RGB", (40, 30)).save(folder / name)
    whole: dict[str, Any] = {"pairs.json": PAIRS}
    for name, questions in QUESTIONS.items():
        whole[f"{name}.json"] = questions
    for name, answers in ANSWERS.items():
        whole[f"{name}-answers.json"] = answers
    whole["dash-b.json"], whole["chair.json"] = ANSWERS["dash-b"], ANSWERS["chair"]
    for place in ("coco", "coco2"):
        whole[f"{place}/captions_val2014.json"] = COCO_CAPTIONS
        whole[f"{place}/instances_val2014.json"] = COCO_TRUTH
    for place in ("amber", "amber2"):
        whole[f"{place}/data/annotations.json"] = AMBER_TRUTH
        whole[f"{place}/data/relation.json"] = {"dog": ["puppy"]}
        whole[f"{place}/data/query/query_all.json"] = QUESTIONS["amber"]
        (folder / place / "data" / "safe_words.txt").write_text("image\n")
    whole["dash_pos.json"] = {"coco": {"tie": ["1.jpg"]}}
    for place, run in (("responses.json", {"model": "m"}), ("lists.jsonl", {"version": "1"})):
        whole[f"{place}.parts/run.json"] = {"run": run, "replaces": False}
        (folder / f"{place}.parts").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS)
    whole["adapter/adapter_config.json"] = ADAPTER
    (folder / "yolo" / "data.yaml").write_text("names: [dog, cat]\n")
    (folder / "yolo" / "a.txt").write_text("0 0.5 0.5 0.2 0.3\n")
    for name, value in whole.items():
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.mark.usefixtures("english_data")
@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused_in_one_message(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, draw = READERS[name], random.Random(f"0/{name}")
    file = folder / reader.file
    file.parent.mkdir(exist_ok=True)
    caplog.set_level(logging.CRITICAL, "listwise_preference")
    whole = file.read_bytes() if file.is_file() else None
    seed = reader.seed
    if not isinstance(seed, str | bytes):
        seed = "\n".join(map(json.dumps, seed)) if reader.lines else json.dumps(seed)
    sound = seed.encode() if isinstance(seed, str) else seed
    try:
        file.write_bytes(sound)
        reader.read(folder, file)  # or the rest would prove nothing

        for _ in range(INPUTS):
            if isinstance(reader.seed, str | bytes):
                content = change_bytes(sound, draw)
            else:
                content = changed_json(reader.seed, draw, reader.lines)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            try:
                reader.read(folder, file)
            except UserError as error:
                assert 10 < len(str(error)) <= LONGEST
            except Exception as error:
                raise AssertionError(f"{name}: {type(error).__name__} on {content[:2_000]!r}") from error
    finally:
        if whole is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(whole)
        capsys.readouterr()


# ---- what the one place for reading refuses, one by one ----


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 101 + "]" * 101, "line 1: nested too deeply: more than 100 levels"),
        ("[" * 100_000, "line 1: nested too deeply"),
        ("[" + "9" * 101 + "]", "line 1: a number of 101 digits; at most 100 are read"),
        ("[" + "9" * 5_000 + "]", "line 1: a number of 5,000 digits"),
    ],
)
def test_json_that_nothing_can_mean_is_refused_by_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(DataError) as refusal:
        read_json(tmp_path / "f.json")
    assert f"{tmp_path / 'f.json'}: {says}" in str(refusal.value)


def test_100_levels_and_100_digits_are_read(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text("[" * 99 + "[" + "9" * 100 + "]" + "]" * 99)
    value = read_json(tmp_path / "f.json")
    for _ in range(100):
        (value,) = value
    assert value == 10**100 - 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: &x [1]\nb: *x", "line 2: aliases (*name) are not read"),
        ("a: !!python/object/apply:print [1]", "could not determine a constructor"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: 0x" + "f" * 100, "a number of more than 100 digits"),
        ("a: " + "b" * 1_000_000, "YAML is read up to 1,000,000"),
        ("a: " + "[" * 150 + "]" * 150, "nested too deeply"),
    ],
)
def test_yaml_is_values_alone_and_bounded(content: str, says: str) -> None:
    with pytest.raises(DataError, match=r"^options.yaml: ") as refusal:
        parse_yaml(content, "options.yaml")
    assert says in str(refusal.value)


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    """Nobody writes into it: whoever opened it would wait for good."""
    pipe = tmp_path / "pairs.json"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"pairs.json: not a file that ends, but a pipe or device"):
        load_records(pipe, tmp_path, ImageOnly())
    with pytest.raises(ImageError, match=r"not a file that ends"):
        open_image(pipe)
    with pytest.raises(ImageError, match=r"not a file that ends"):
        transposed_size(pipe)
    with pytest.raises(DataError, match=r"not a file that ends"):
        Annotations(pipe)


def test_an_id_that_no_file_can_hold_is_refused_at_the_door(tmp_path: Path) -> None:
    """It would end training in its middle, where a crop is drawn by the id's bytes."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "p.json").write_text(json.dumps([{**PAIR, "id": "\ud83d"}, {**PAIR, "img_path": "a\ud83d.png"}]))
    with pytest.raises(DataError) as refusal:
        load_records(tmp_path / "p.json", tmp_path, ImageOnly())
    assert "record 1: id" in str(refusal.value) and "half of a character" in str(refusal.value)
    assert 'record 2: "img_path" is' in str(refusal.value)
    str(refusal.value).encode("utf-8")


def test_messages_keep_their_start_and_end_in_2000_characters() -> None:
    said = str(
        DataError("file: " + "x" * 10_000 + " do this\n" + "\n".join(f"line {n}" for n in range(1_000)) + "\nlast")
    )
    assert len(said) <= LONGEST
    first = said.split("\n")[0]
    assert first.startswith("file: xxx") and first.endswith("xxx do this") and len(first) == 800
    assert said.endswith("line 999\nlast")


@pytest.mark.parametrize(
    ("setting", "says"),
    [({"r": "4"}, '"r" is "4"; it must be a whole number above 0'),
     ({"target_modules": "("}, "not a regular expression"),
     ({"lora_alpha": None}, '"lora_alpha" is null; it must be a number'), ({"peft_type": 3}, "peft_type")],
)  # fmt: skip
def test_a_wrong_adapter_is_named_before_anything_is_loaded(folder: Path, setting: dict[str, Any], says: str) -> None:
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(ADAPTER | setting))
    try:
        with pytest.raises(ModelError) as refusal:
            check_folders("no/such-model", folder / "adapter")
    finally:
        config.write_text(json.dumps(ADAPTER))
    assert str(refusal.value).startswith(f"{config}: ") and says in str(refusal.value)
