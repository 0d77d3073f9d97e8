import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from listwise_preference.cli import share
from listwise_preference.data.pairs import BoxLists, Folders, load_records, read_exclusions
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.errors import DataError
from listwise_preference.image_lists.command import main
from listwise_preference.image_lists.detectors import DETECTORS
from listwise_preference.image_lists.detectors.detect import DetectorEntry, Failed, Found, Query, cut_box
from listwise_preference.image_lists.store import ListStore
from listwise_preference.image_lists.summary import summarize

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"

pytestmark = pytest.mark.usefixtures("english_data")

Lines = list[dict[str, Any]]


def read(file: Path) -> Lines:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_json(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def options(output: Path, pairs: Path = SAMPLE / "pairs.json", root: Path = SAMPLE, *more: object) -> list[str]:
    """A command line that needs no model."""
    boxes = root / "annotations.jsonl"
    line = ["--pairs", pairs, "--image_root", root, "--output", output]
    return [*map(str, [*line, "--detector", "annotations", "--annotations", boxes, "--verifier", "none", *more])]


def sample(output: Path, *more: object) -> list[str]:
    return options(output, SAMPLE / "pairs.json", SAMPLE, *more)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def start(arguments: list[str], *launcher: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [*(launcher or (sys.executable,)), str(ROOT / "make_image_lists.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> str:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


# The sample


def test_one_command_makes_lists_page_and_summary_of_the_sample_without_torch(tmp_path: Path) -> None:
    code = "import sys; from listwise_preference.image_lists.command import main; main(sys.argv[1:]); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    arguments = sample(tmp_path / "lists.jsonl", "--review", tmp_path / "review")
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, timeout=60)

    lines = read(tmp_path / "lists.jsonl")
    by_hand = read(SAMPLE / "image_lists.jsonl")
    assert [line["id"] for line in lines] == [line["id"] for line in by_hand]
    other = {a["id"]: a["phrase"] for a, b in zip(lines, by_hand, strict=True) if a["box"] != b["box"]}
    # "fish" is the larger of two; "The person is carrying a dark backpack" names the person first.
    assert other == {"perch-left": "fish", "stairs-backpack": "person"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdicts"] == {"unverified": {"records": 31, "share": 1.0}}
    assert set(summary["nltk_data"]) == {"punkt_tab", "averaged_perceptron_tagger_eng"}
    assert sum(summary["box_share"]["counts"]) == 31
    assert (tmp_path / "review" / "index.html").is_file()
    assert Image.open(tmp_path / "box_share.png").size == (960, 480)
    assert not (tmp_path / "lists.jsonl.parts").exists()
    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(tmp_path / "lists.jsonl", Drawing()))
    assert len(records.records) == 31


def test_the_lists_stand_in_input_order_with_what_was_tried(tmp_path: Path) -> None:
    pairs = write_json(
        tmp_path / "pairs.json",
        [
            pair("images/coffee.jpg", "What is it?", "A zebra stands there. A spoon lies by a cup."),
            pair("images/cat.jpg", "Is the sky blue?", "It is."),
            pair("images/perch.jpg", "What is it?", "A zebra. A giraffe!"),
        ],
    )
    main(options(tmp_path / "lists.jsonl", pairs))
    first, second, third = read(tmp_path / "lists.jsonl")
    assert (first["phrase"], first["source"], first["box"]) == ("spoon", "chosen_rest", [326, 66, 425, 326])
    assert [(tried["phrase"], tried["outcome"]) for tried in first["tried"]] == [
        ("zebra", "not_found"),
        ("spoon", "taken"),
    ]
    # Nothing of the text is annotated: any object will do, and none below 1 % or above 95 % of the image.
    assert second["source"] == third["source"] == "detected"
    summary = summarize([first, second, third])
    assert summary["some_text_phrase_not_found"] >= 2
    assert summary["no_text_phrase_found"] == sum(
        all(tried["outcome"] == "not_found" for tried in line["tried"] if tried["source"] != "detected")
        and any(tried["source"] != "detected" for tried in line["tried"])
        for line in (first, second, third)
    )
    # Said and counted: the words of records 2 and 3 are on no label.
    assert summary["any_object_taken"] == {"records": 2, "words_not_found": 2, "example": "record 2: sky"}
    assert summary["phrases_not_found"] == {"zebra": 2, "sky": 1, "giraffe": 1}
    main(options(tmp_path / "again.jsonl", pairs))
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "lists.jsonl").read_bytes()


def test_verbs_taken_for_nouns_are_asked_again_without_and_denied_objects_are_never_masked(tmp_path: Path) -> None:
    """A cat and a bus stop are annotated on one image, a bus on the other."""
    here = [("images/cat.jpg", "cat", [20, 20, 120, 120]), ("images/cat.jpg", "bus stop", [150, 20, 250, 120]),
            ("images/pan.jpg", "bus", [30, 30, 130, 130])]  # fmt: skip
    rows = [dict(zip(("img_path", "label", "box"), one, strict=True)) for one in here]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [
        ("images/cat.jpg", "The cats sleep."),
        ("images/cat.jpg", "A bus stops."),  # the place is found first
        ("images/pan.jpg", "A bus stops."),
        ("images/cat.jpg", "There is no cat."),
        ("images/pan.jpg", "There is no bus."),
        ("images/pan.jpg", "There is no vehicle."),  # a bus is one
    ]
    pairs = write_json(tmp_path / "pairs.json", [pair(path, "What is it?", text) for path, text in texts])
    main(options(tmp_path / "lists.jsonl", pairs, SAMPLE, "--annotations", tmp_path / "boxes.jsonl"))
    lines = read(tmp_path / "lists.jsonl")
    assert [(line["phrase"], line["source"], line["box"] and line["box"][0]) for line in lines] == [
        ("cat", "chosen_first", 20),
        ("bus stop", "chosen_first", 150),
        ("bus", "chosen_first", 30),
        ("bus stop", "detected", 150),
        (None, None, None),
        (None, None, None),
    ]
    assert [one["outcome"] for one in lines[2]["tried"]] == ["not_found", "taken"]
    assert (lines[2]["tried"][0]["phrase"], lines[2]["surface"]) == ("bus stop", "bus")


def test_chosen_only_masks_nothing_that_the_rejected_answer_names_and_no_unnamed_object(tmp_path: Path) -> None:
    """A dog and a ball are there. Where both answers name the dog, the ball is left alone too."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    box = {"img_path": "a.png", "label": "dog", "box": [0, 0, 30, 30]}
    boxes = [box, {**box, "label": "ball", "box": [30, 30, 60, 60]}]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in boxes))
    pair = {"img_path": "a.png", "prompt": "Describe.", "rejected": "A dog with a cat."}
    pairs = write_json(
        tmp_path / "pairs.json",
        [
            {"id": 1, **pair, "chosen": "A dog with a ball."},
            {"id": 2, **pair, "chosen": "There is a dog."},
        ],
    )
    main(options(tmp_path / "lists.jsonl", pairs, tmp_path, "--prefer", "chosen_only"))
    lines = read(tmp_path / "lists.jsonl")
    assert [(line["verdict"], line.get("phrase")) for line in lines] == [("unverified", "ball"), ("no_object", None)]


def test_what_the_boxes_file_leaves_out_is_in_the_summary_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_json(tmp_path / "pairs.json", [pair("images/cat.jpg", "What is it?", "A bat and a ball lie there.")])
    cat = {"image_id": 1, "category_id": 1, "bbox": [20, 20, 100, 100]}
    boxes = write_json(
        tmp_path / "coco.json",
        {
            "images": [{"id": 1, "file_name": "cat.jpg"}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [cat, cat | {"bbox": [900, 900, 10, 10]}, cat | {"iscrowd": 1}],
        },
    )
    with caplog.at_level("INFO", logger="listwise_preference"):
        main(options(tmp_path / "lists.jsonl", pairs, SAMPLE, "--annotations", boxes))
    summary = json.loads((tmp_path / "summary.json").read_text())
    left_out = summary["annotations"]["left_out"]
    assert [(what.partition(",")[0], one["count"]) for what, one in left_out.items()] == [
        ("iscrowd 1", 1),
        ("box with no pixel on its image", 1),
    ]
    assert "1 records name objects that the detector did not find under these names" in caplog.text
    assert "record 1: bat, ball" in caplog.text


def pair(img_path: str, prompt: str, chosen: str, **more: Any) -> dict[str, Any]:
    return {"img_path": img_path, "prompt": prompt, "chosen": chosen, "rejected": "A green parrot."} | more


# Bad input


def test_every_bad_record_gets_a_verdict_and_nothing_else_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (100, 50), "red").save(root / "good.png")
    whole = (SAMPLE / "images" / "coffee.jpg").read_bytes()
    (root / "corrupt.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.jpg").write_bytes(b"")
    huge = Image.new("1", (20000, 10000))
    huge.save(root / "huge.png")
    boxes = [
        {"img_path": name, "label": "cup", "box": [10, 10, 40, 40]}
        for name in ("good.png", "corrupt.jpg", "empty.jpg", "huge.png")
    ]
    boxes.append({"img_path": "good.png", "label": "spoon", "box": [5, 5, 5, 20]})
    (root / "annotations.jsonl").write_text("".join(json.dumps(box) + "\n" for box in boxes))
    pairs = write_json(
        tmp_path / "pairs.json",
        [
            pair("corrupt.jpg", "What is it?", "A cup."),
            pair("empty.jpg", "What is it?", "A cup."),
            pair("huge.png", "What is it?", "A cup."),
            pair("missing.png", "What is it?", "A cup."),
            pair("good.png", "What is it?", ""),
            pair("good.png", "What is it?", "A <image> cup."),
            pair("../good.png", "What is it?", "A cup."),
            pair("good.png", "Что это?", "Красная чашка на столе."),
            pair("good.png", "What is it?", 'A "tiny" 😀 cup with a 🐱 on it.'),
            pair("good.png", "What is it?", "A spoon."),
            "no record at all",
            pair("good.png", "What is it?", "A cup."),
        ],
    )
    main(options(tmp_path / "lists.jsonl", pairs, root, "--review", tmp_path / "review"))
    said = caplog.text
    lines = read(tmp_path / "lists.jsonl")
    page = (tmp_path / "review" / "lists.js").read_text().removeprefix("window.REVIEW = ").removesuffix(";\n")
    shown = json.loads(page)["records"]
    assert [(one["verdict"], one["reason"]) for one in shown] == [
        (line["verdict"], line.get("reason")) for line in lines
    ]
    assert [line["verdict"] for line in lines] == [
        *["error"] * 7, "unverified", "unverified", "unverified", "error", "unverified",
    ]  # fmt: skip
    reasons = [line.get("reason", "") for line in lines]
    assert "truncated" in reasons[0]
    assert "the file is empty" in reasons[1]
    assert "too large: at most 89,478,485 pixels" in reasons[2]
    assert "missing.png: no such file" in reasons[3]
    assert '"chosen" is blank' in reasons[4]
    assert '"chosen" contains <image>' in reasons[5]
    assert "not under" in reasons[6]
    assert "not an object" in reasons[10]
    # Another language, no annotated spoon: the cup is what is detected.
    assert [(line["phrase"], line["source"]) for line in lines[7:10]] == [
        ("cup", "detected"),
        ("cup", "chosen_first"),
        ("cup", "detected"),
    ]
    assert lines[11]["box"] == [10, 10, 40, 40]
    assert "box of no size: 1, e.g. record 5, [5, 5, 5, 20] on good.png" in said
    assert "error: record 1" in said and "5 more errors" in said


def test_strict_stops_before_any_work_where_an_annotation_would_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_json(tmp_path / "pairs.json", [pair("images/cat.jpg", "What is it?", "A cat."),
                                                 pair("images/pan.jpg", "What is it?", "A pan.")])  # fmt: skip
    cat = {"img_path": "images/cat.jpg", "label": "cat"}
    rows = [cat | {"box": [20, 20, 120, 120]}, cat | {"box": [1, 2, math.nan, 4]}]
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = options(tmp_path / "lists.jsonl", pairs, SAMPLE, "--annotations", tmp_path / "boxes.jsonl")
    said = refusal([*arguments, "--strict"], capsys)
    assert '"box" holds NaN or infinity: 1, e.g. record 2' in said
    assert "images that the file does not have: 1, e.g. images/pan.jpg" in said
    assert not (tmp_path / "lists.jsonl").exists()
    with caplog.at_level("INFO", logger="listwise_preference"):
        main(arguments)
    assert "images that the file does not have: 1, e.g. images/pan.jpg" in caplog.messages[-1]  # the last word
    summary = json.loads((tmp_path / "summary.json").read_text())["annotations"]
    assert summary["images"]["images that the file does not have"] == {"count": 1, "example": "images/pan.jpg"}
    assert summary["left_out"]['"box" holds NaN or infinity'] == {"count": 1, "example": "record 2"}


def test_annotations_of_another_data_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.jsonl").write_text('{"img_path": "street/1.jpg", "label": "car", "box": [0, 0, 5, 5]}\n')
    arguments = [*sample(tmp_path / "lists.jsonl"), "--annotations", str(tmp_path / "other.jsonl")]
    assert "for none of the 12 images of the pairs: it names street/1.jpg" in refusal(arguments, capsys)
    assert list(tmp_path.iterdir()) == [tmp_path / "other.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_root", "nowhere"], "no such folder"),
        (["--image_root", str(ROOT)], "none of the 12 images is there"),
        (["--list_size", "1"], "at least 2"),
        (["--min_box_share", "0.9", "--max_box_share", "0.1"], "no box could be taken"),
        (["--max_box_share", "95"], "95: must be a number from 0 to 1"),
        (["--max_box_share", "much"], "argument --max_box_share: much: must be a number from 0 to 1"),
        (["--threads", "1.5"], "argument --threads: 1.5: must be a whole number, 1 or more"),
        (["--export", "ms-swift"], "needs --write_pictures"),
        (["--detector", "grounding-dino"], "--annotations is read with --detector annotations only"),
        (["--output", str(SAMPLE / "pairs.json" / "lists.jsonl")], "cannot be written: Not a directory"),
        (["--exclude", "nowhere.json"], "--exclude nowhere.json: no such file"),
        (["--pairs", "nowhere.json"], "no such file"),
        (["--write_pictures", str(SAMPLE)], "is the image root"),
    ],
)
def test_a_wrong_option_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refusal([*sample(tmp_path / "lists.jsonl"), *arguments], capsys)


def test_an_id_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [pair("images/cat.jpg", "What is it?", "A cat.", id="x")] * 2
    pairs = write_json(tmp_path / "pairs.json", records)
    assert "id x is also that of record 1" in refusal(options(tmp_path / "lists.jsonl", pairs), capsys)


# Stop and continue


def many_pairs(file: Path, count: int) -> Path:
    pairs = json.loads((SAMPLE / "pairs.json").read_text())
    records = [
        pairs[k % len(pairs)] | {"id": f"{k}", "prompt": f"{k}: {pairs[k % len(pairs)]['prompt']}"}
        for k in range(count)
    ]
    return write_json(file, records)


def test_a_partial_line_is_cut_off_and_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    main(sample(tmp_path / "whole.jsonl"))
    whole = read(tmp_path / "whole.jsonl")
    main(sample(tmp_path / "lists.jsonl"))
    run = json.loads((tmp_path / "lists.summary.json").read_text())["run"]
    parts = tmp_path / "lists.jsonl.parts"
    parts.mkdir()
    (tmp_path / "lists.jsonl").unlink()
    write_json(parts / "run.json", {"run": run})
    rows = [json.dumps({"number": number, "seconds": 500.0, "line": whole[number - 1]}) for number in (3, 31, 1)]
    (parts / "0.jsonl").write_text("\n".join(rows)[:-20])
    (parts / "1.jsonl").write_text(json.dumps({"number": 7, "line": whole[6]}) + '\n{"number": 8, "li')
    main(sample(tmp_path / "lists.jsonl"))
    assert (tmp_path / "lists.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    speed = json.loads((tmp_path / "lists.summary.json").read_text())["speed"]
    assert speed["records_computed"] == 31  # 2 + 1 whole lines of the interrupted run, 28 of this one
    assert speed["seconds"] > 1000
    main(sample(tmp_path / "lists.jsonl"))
    assert (tmp_path / "lists.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert json.loads((tmp_path / "lists.summary.json").read_text())["speed"] == speed
    assert json.loads((tmp_path / "summary.json").read_text())["output"] == "whole.jsonl"


def test_other_options_or_inputs_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lists.jsonl"
    main(sample(output))
    before = output.read_bytes()
    changed = refusal(sample(output, "--min_box_share", "0.05"), capsys)
    assert "--min_box_share was 0.01 and is 0.05" in changed and "--restart" in changed
    assert "--pairs was" in refusal(options(output, many_pairs(tmp_path / "pairs.json", 31)), capsys)
    assert output.read_bytes() == before
    main(sample(output, "--min_box_share", "0.05", "--restart"))
    assert output.read_bytes() != before
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("{}\n")
    for more in ((), ("--restart",)):
        assert "nothing records what made it" in refusal(sample(foreign, *more), capsys)
    assert foreign.read_text() == "{}\n"


@pytest.mark.parametrize("word", ['"replaces"', '"afresh"'])  # the second in folders of earlier versions
def test_restart_keeps_the_older_output_until_the_new_one_is_whole(tmp_path: Path, word: str) -> None:
    output = tmp_path / "lists.jsonl"
    main(sample(output))
    older = output.read_bytes()
    wider = sample(output, "--min_box_share", "0.05", "--annotations", tmp_path / "boxes.jsonl")
    (tmp_path / "boxes.jsonl").write_bytes((SAMPLE / "annotations.jsonl").read_bytes())
    main([*wider, "--output", str(tmp_path / "wanted.jsonl")])
    run = json.loads((tmp_path / "wanted.summary.json").read_text())["run"]
    ids = [line["id"] for line in read(output)]
    store = ListStore(output, ids)
    store.begin(run, restart=True)
    store.add(1, read(tmp_path / "wanted.jsonl")[0], 0.1)  # ... and here it is killed
    assert output.read_bytes() == older
    begun = store.folder / "run.json"
    begun.write_text(begun.read_text().replace('"replaces"', word))
    main(wider)  # continued without --restart: nothing of the older output is in it
    assert output.read_bytes() == (tmp_path / "wanted.jsonl").read_bytes() != older


def test_nothing_that_is_read_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, boxes = tmp_path / "pairs.jsonl", tmp_path / "boxes.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in json.loads((SAMPLE / "pairs.json").read_text())))
    boxes.write_bytes((SAMPLE / "annotations.jsonl").read_bytes())
    left_out = write_json(tmp_path / "rejected.json", ["cat-nose"])
    line = ["--annotations", str(boxes), "--exclude", str(left_out), "--restart"]
    (tmp_path / "link.jsonl").symlink_to(pairs)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for output, name in (
        (pairs, "--pairs"),
        (tmp_path / "link.jsonl", "--pairs"),
        (boxes, "--annotations"),
        (left_out, "--exclude"),
    ):
        assert f"would overwrite {name}" in refusal([*options(output, pairs), *line], capsys)
    said = refusal([*options(tmp_path, pairs), *line], capsys)
    assert "is a folder" in said and said.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_finished_output_that_was_changed_is_not_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lists.jsonl"
    main(sample(output))
    whole = output.read_text()
    rows = whole.splitlines(keepends=True)
    for changed, message in (
        ("".join(rows[:4] + rows[5:]), "30 lines for 31 records"),
        ("".join([*rows[:4], rows[5], rows[4], *rows[6:]]), "line 5 is not that of record"),
        ("".join([*rows[:4], "{partial\n", *rows[5:]]), "line 5 is not JSON"),
        ("".join([*rows[:4], "7\n", *rows[5:]]), "line 5 is not that of record"),
        (whole[:-5], "31 lines for 31 records: it was changed"),
    ):
        output.write_text(changed)
        said = refusal(sample(output), capsys)
        assert message in said and "--restart" in said
        assert output.read_text() == changed
    main(sample(output, "--restart"))
    assert output.read_text() == whole


def test_summaries_of_two_lists_in_one_folder_stand_side_by_side(tmp_path: Path) -> None:
    for _ in range(2):
        for name in ("a", "b"):
            main(sample(tmp_path / f"{name}.jsonl"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.jsonl", "b.box_share.png", "b.jsonl", "b.summary.json", "box_share.png", "summary.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["output"] == "a.jsonl"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text("mine")
    main(sample(tmp_path / "other" / "c.jsonl"))
    assert (tmp_path / "other" / "summary.json").read_text() == "mine"
    assert (tmp_path / "other" / "c.summary.json").exists()


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_file_is_the_same(tmp_path: Path) -> None:
    count = 900
    pairs = many_pairs(tmp_path / "pairs.json", count)
    main(options(tmp_path / "whole.jsonl", pairs))
    arguments = options(tmp_path / "lists.jsonl", pairs)
    draw = random.Random()  # other moments in every run of the tests
    killed = 0
    for moment in sorted(draw.sample(range(1, count - 60), 10)):
        process = start(arguments)
        part = tmp_path / "lists.jsonl.parts" / "0.jsonl"
        while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < moment):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
    assert killed >= 8  # at most some came too late
    finish(start(arguments))
    assert (tmp_path / "lists.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(tmp_path: Path) -> None:
    pairs = many_pairs(tmp_path / "pairs.json", 300)
    main(options(tmp_path / "one.jsonl", pairs))
    # What accelerate starts for two GPUs; without any they meet on the CPU.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    finish(start(options(tmp_path / "two.jsonl", pairs), *launcher))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert json.loads((tmp_path / "two.summary.json").read_text())["speed"]["processes"] == 2
    _, said = start([*options(tmp_path / "two.jsonl", pairs), "--min_box_share", "0.1"], *launcher).communicate()
    assert said.count("was made with other options") == 1 and "[rank" not in said  # no traceback of the second one


# Exclusion


def test_excluded_records_keep_a_line_without_use_and_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "lists.jsonl"
    main(sample(output))
    before = output.read_bytes()
    rejected = write_json(tmp_path / "rejected.json", {"rejected": ["cat-nose", "moose-animal", "nobody"]})
    main(sample(output, "--exclude", rejected))
    assert "leaves out 2 of 31 records" in caplog.text and "1 ids that no record has: nobody" in caplog.text
    lines = {line["id"]: line for line in read(output)}
    assert len(lines) == 31 and lines["cat-nose"]["verdict"] == lines["moose-animal"]["verdict"] == "excluded"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["with_box"] == 29 and summary["speed"]["records_computed"] == 31
    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(output, Drawing()))
    assert (len(records.records), records.without_box) == (29, 2)
    main(sample(output))
    assert output.read_bytes() == before

    fresh = tmp_path / "fresh.jsonl"
    main(sample(fresh, "--exclude", write_json(tmp_path / "list.json", ["cat-nose"])))
    assert [line["id"] for line in read(fresh) if line["box"] is None] == ["cat-nose"]
    main(sample(fresh))
    assert fresh.read_bytes() == before


def test_training_leaves_out_the_rejected_records(tmp_path: Path) -> None:
    lists = BoxLists(SAMPLE / "image_lists.jsonl", Drawing())
    excluded = read_exclusions(write_json(tmp_path / "rejected.json", {"rejected": ["cat-nose", "nobody"]}))
    records = load_records(SAMPLE / "pairs.json", SAMPLE, lists, excluded=excluded)
    assert records.excluded == {"cat-nose"}
    assert len(records.records) == 30 and "cat-nose" not in {record.pair.id for record in records.records}
    for content in ({"rejected": "cat"}, {"ids": []}, [1.5], "x", [True]):
        with pytest.raises(DataError, match="or a list of ids"):
            read_exclusions(write_json(tmp_path / "wrong.json", content))


# A detector of one's own


class Frame:
    """What an image shows between its borders, whatever is asked for; ``border`` is a share of each side."""

    def __init__(self, border: float) -> None:
        self.border = border

    def prepare(self, queries: Sequence[Query]) -> Sequence[Query]:
        return queries

    def detect(self, prepared: Sequence[Query]) -> list[list[Found] | Failed]:
        answers: list[list[Found] | Failed] = []
        for query in prepared:
            width, height = query.image.size
            edges = (self.border, self.border, 1 - self.border, 1 - self.border)
            pixels = (edge * side for edge, side in zip(edges, (width, height) * 2, strict=True))
            box = cut_box(*pixels, size=query.image.size)
            answers.append([Found(phrase, box, 0.5) for phrase in query.phrases or ("anything",) if box])
        return answers


def test_a_detector_is_one_entry_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = DetectorEntry(
        help="all but a border",
        options={"border": {"type": share, "default": 0.25}},
        load=lambda options, entries, dtype: Frame(options["border"]),
    )
    monkeypatch.setitem(DETECTORS, "frame", frame)
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    pairs = write_json(
        tmp_path / "pairs.json", [pair("a.png", "What is it?", "A cat."), pair("a.png", "What?", "Yes.")]
    )
    line = ["--pairs", pairs, "--image_root", tmp_path, "--output", tmp_path / "lists.jsonl", "--verifier", "none"]
    arguments = [*map(str, line), "--detector", "frame"]
    main(arguments)
    first, second = read(tmp_path / "lists.jsonl")
    assert (first["phrase"], first["box"], first["box_share"], first["score"]) == ("cat", [50, 25, 150, 75], 0.25, 0.5)
    assert (second["phrase"], second["source"]) == ("anything", "detected")
    assert "--border was 0.25 and is 0.1" in refusal([*arguments, "--border", "0.1"], capsys)
    main([*arguments, "--border", "0.1", "--restart"])
    assert read(tmp_path / "lists.jsonl")[0]["box"] == [20, 10, 180, 90]


# Images and other trainers


def png_sample(tmp_path: Path) -> tuple[Path, Path]:
    """Three sample images as PNG with their boxes, and a pair for each."""
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    boxes = read(SAMPLE / "annotations.jsonl")
    names = ("cat", "coffee", "rocket")
    for name in names:
        Image.open(SAMPLE / "images" / f"{name}.jpg").save(root / "images" / f"{name}.png")
    mine = [box | {"img_path": box["img_path"].replace(".jpg", ".png")} for box in boxes]
    (root / "annotations.jsonl").write_text("".join(json.dumps(box) + "\n" for box in mine))
    chosen = {"cat": "A cat.", "coffee": "A cup.", "rocket": "A rocket."}
    records = [pair(f"images/{name}.png", "What is it?", chosen[name]) for name in names]
    return write_json(tmp_path / "pairs.json", records), root


def test_training_on_written_pngs_and_on_boxes_gives_the_same_batch(tmp_path: Path) -> None:
    from listwise_preference.models.chat_format import ChatFormat
    from listwise_preference.small_world.model import build_small_model
    from listwise_preference.training.batch import Collator, ListwiseDataset

    pairs, root = png_sample(tmp_path)
    images = tmp_path / "pictures"
    main(options(tmp_path / "lists.jsonl", pairs, root, "--write_pictures", images))
    assert sorted(path.name for path in images.iterdir()) == ["100", "25", "50", "75", "made_by.json", "pairs.json"]
    drawn = load_records(pairs, root, BoxLists(tmp_path / "lists.jsonl", Drawing())).records
    folders = Folders((root, *(images / share for share in ("25", "50", "75", "100"))))
    opened = load_records(images / "pairs.json", root, folders).records
    assert len(drawn) == len(opened) == 3
    for one, other in zip(drawn, opened, strict=True):
        assert one.pair == other.pair
        assert len({image.tobytes() for image in other.images.load()}) == 5
    _, processor = build_small_model("llava")
    chat = ChatFormat(processor, "</s>")
    datasets = (ListwiseDataset(records, chat, 384) for records in (drawn, opened))
    first, second = (Collator(processor)([dataset[k] for k in range(3)]) for dataset in datasets)
    assert first["images"]["pixel_values"].equal(second["images"]["pixel_values"])
    assert first["input_ids"].equal(second["input_ids"]) and first["targets"].equal(second["targets"])


def test_jpegs_stay_jpegs_and_an_image_has_one_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = tmp_path / "pictures"
    main(sample(tmp_path / "lists.jsonl", "--write_pictures", images, "--list_size", "3"))
    assert sorted(path.name for path in images.iterdir()) == ["100", "50", "made_by.json", "pairs.json"]
    assert Image.open(images / "50" / "images" / "cat.jpg").format == "JPEG"
    assert "19 more records have an image that is there already" in caplog.text
    assert len(json.loads((images / "pairs.json").read_text())) == 12


def test_exports_have_the_form_of_each_trainer(tmp_path: Path) -> None:
    pairs, root = png_sample(tmp_path)
    images = tmp_path / "pictures"
    for trainer in ("trl", "llama-factory", "ms-swift"):
        main(options(tmp_path / "lists.jsonl", pairs, root, "--write_pictures", images, "--export", trainer))
    cat = str(root / "images" / "cat.png")
    trl, factory, swift = (
        json.loads((tmp_path / f"lists.{trainer}.json").read_text()) for trainer in ("trl", "llama-factory", "ms-swift")
    )
    assert trl[0] == {
        "images": [cat],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "A green parrot."}]}],
    }
    assert factory[0] == {
        "conversations": [{"from": "human", "value": "<image>What is it?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A green parrot."},
        "images": [cat],
    }
    question = {"role": "user", "content": "<image>What is it?"}
    cat_messages, parrot_messages = (
        [question, {"role": "assistant", "content": text}] for text in ("A cat.", "A green parrot.")
    )
    levels = [cat, *(str(images / share / "images" / "cat.png") for share in ("25", "50", "75", "100"))]
    sides = [(parrot_messages, cat, cat), *((cat_messages, better, worse) for better, worse in pairwise(levels))]
    assert swift[:5] == [
        {"messages": cat_messages, "images": [better], "rejected_messages": rejected, "rejected_images": [worse]}
        for rejected, better, worse in sides
    ]
    assert all(Path(path).is_file() for row in swift for path in row["images"] + row["rejected_images"])
    assert (len(trl), len(factory), len(swift)) == (3, 3, 15)


def test_ms_swift_gets_every_text_pair_and_the_image_pairs_of_the_lists_that_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """31 records on 12 images; at three levels each written list gives two image pairs."""
    line = ["--write_pictures", tmp_path / "pictures", "--list_size", "3", "--export", "ms-swift"]
    main(sample(tmp_path / "lists.jsonl", *line))
    rows = json.loads((tmp_path / "lists.ms-swift.json").read_text())
    assert sum(row["images"] == row["rejected_images"] for row in rows) == 31
    assert sum(row["messages"] == row["rejected_messages"] for row in rows) == 12 * 2
    assert "image pairs of 12 of 31 records" in caplog.text


@pytest.mark.parametrize("images", ["100", "100/below", "."])
def test_images_are_never_written_over_the_users_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: str
) -> None:
    """X/100 holds the fully masked images: with the image root there, each would replace its own original."""
    folder = tmp_path / "x"
    root = folder / images
    (root / "images").mkdir(parents=True)
    for file in (SAMPLE / "images").iterdir():
        (root / "images" / file.name).write_bytes(file.read_bytes())
    (root / "annotations.jsonl").write_bytes((SAMPLE / "annotations.jsonl").read_bytes())
    (folder / "made_by.json").touch()  # even if it was written by this program once
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    said = refusal(options(tmp_path / "lists.jsonl", SAMPLE / "pairs.json", root, "--write_pictures", folder), capsys)
    assert "the image root; name a folder of its own" in said
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_folders_of_others_are_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").touch()
    for option in ("--review", "--write_pictures"):
        assert "holds other files" in refusal(sample(tmp_path / "lists.jsonl", option, foreign), capsys)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "100").symlink_to(SAMPLE)
    (tmp_path / "pictures" / "made_by.json").touch()
    linked = refusal(sample(tmp_path / "lists.jsonl", "--write_pictures", tmp_path / "pictures"), capsys)
    assert "is the image root" in linked
    assert not (tmp_path / "lists.jsonl").exists() and not (tmp_path / "lists.jsonl.parts").exists()


# With small models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options for small models and twelve records; one thread, since small work only waits for a second one."""
    import torch

    from listwise_preference.small_world.detector import save_small_detector
    from listwise_preference.small_world.model import save_small_model

    folder = tmp_path_factory.mktemp("models")
    detector, verifier = save_small_detector(folder / "dino"), save_small_model(folder / "vlm", "idefics2")
    pairs = write_json(folder / "pairs.json", json.loads((SAMPLE / "pairs.json").read_text())[:12])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield [
        "--pairs",
        str(pairs),
        "--detector_model",
        str(detector),
        "--verifier",
        str(verifier),
        "--box_threshold",
        "0.2",
    ]
    torch.set_num_threads(threads)


def with_models(output: Path, models: list[str], *more: object) -> list[str]:
    line = ["--image_root", SAMPLE, "--output", output]
    return [*map(str, [*line, "--max_box_share", "1", "--min_box_share", "0", *models, *more])]


def test_answerable_to_the_end_is_not_hideable_after_max_candidates(tmp_path: Path, models: list[str]) -> None:
    """At threshold 0 every answer counts as still right, at threshold 1 none does."""
    main(with_models(tmp_path / "never.jsonl", models, "--verify_threshold", "0", "--max_candidates", "3"))
    never = read(tmp_path / "never.jsonl")
    asked = [[tried for tried in line["tried"] if "p_yes" in tried] for line in never]
    assert max(map(len, asked)) == 3
    for line, tries in zip(never, asked, strict=True):
        assert line["verdict"] == ("not_hideable" if tries else "no_object") and line["box"] is None
        assert {tried["outcome"] for tried in tries} <= {"answerable"}
        boxes = [tuple(tried["box"]) for tried in tries]
        assert len(set(boxes)) == len(boxes)  # no box is tried twice
    main(with_models(tmp_path / "always.jsonl", models, "--verify_threshold", "1"))
    for line, before in zip(read(tmp_path / "always.jsonl"), asked, strict=True):
        assert line["verdict"] == ("verified" if before else "no_object")
        if before:
            assert line["tried"][-1] == before[0] | {"outcome": "taken"}  # the first one that was tried above


def test_batches_decide_nothing(tmp_path: Path, models: list[str]) -> None:
    main(with_models(tmp_path / "one.jsonl", models, "--detector_batch_size", "1", "--verifier_batch_size", "1"))
    main(with_models(tmp_path / "many.jsonl", models, "--detector_batch_size", "8", "--verifier_batch_size", "7"))
    one, many = read(tmp_path / "one.jsonl"), read(tmp_path / "many.jsonl")
    for name in ("id", "verdict", "phrase", "box"):
        assert [line[name] for line in one] == [line[name] for line in many]


def test_a_model_that_is_not_there_or_of_another_kind_is_named_and_leaves_nothing_behind(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lists.jsonl"
    verifier = models[models.index("--verifier") + 1]
    nowhere = str(tmp_path / "nowhere")
    assert f"cannot load {nowhere}" in refusal(with_models(output, models, "--detector_model", nowhere), capsys)
    other = refusal(with_models(output, models, "--detector_model", verifier), capsys)
    assert f"cannot load the detector {verifier}" in other
    main(with_models(output, models, "--verifier", "none"))  # with other options, and yet there is nothing to refuse
    assert len(read(output)) == 12


def test_images_of_extreme_shape_end_as_errors_of_their_own(tmp_path: Path, models: list[str]) -> None:
    """At a shorter side of 64 and a longer one of at most 96, 3000 x 1 would become 96 x 0."""
    root = tmp_path / "root"
    root.mkdir()
    sizes = [(3000, 1), (1, 3000), (1, 1), (90, 60)]
    for width, height in sizes:
        Image.new("RGB", (width, height), "red").save(root / f"{width}x{height}.png")
    pairs = write_json(
        tmp_path / "pairs.json", [pair(f"{width}x{height}.png", "What is it?", "A cat.") for width, height in sizes]
    )
    line = [*models, "--pairs", str(pairs), "--image_root", str(root), "--output", str(tmp_path / "lists.jsonl")]
    main([*line, "--verify_threshold", "1", "--min_box_share", "0", "--max_box_share", "1"])
    lines = read(tmp_path / "lists.jsonl")
    assert [line["verdict"] == "error" for line in lines[:2]] == [True, True]
    assert "the detector cannot take this record, 3000 x 1 pixels" in lines[0]["reason"]
    assert lines[3]["verdict"] in ("verified", "no_object")


@pytest.mark.slow
def test_a_killed_run_with_models_ends_as_an_uninterrupted_one(tmp_path: Path, models: list[str]) -> None:
    main(with_models(tmp_path / "whole.jsonl", models))
    arguments = with_models(tmp_path / "lists.jsonl", models)
    process = start(arguments)
    part = tmp_path / "lists.jsonl.parts" / "0.jsonl"
    while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < 3):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "lists.jsonl").exists()
    main(arguments)
    assert (tmp_path / "lists.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
