"""make_pairs.py: which responses become a pair, by hand; whole runs in the small world, where the truth is known."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nltk.data
import pytest
from PIL import Image

from listwise_preference.data.pairs import ImageOnly, load_records
from listwise_preference.english.text import english
from listwise_preference.files import read_records
from listwise_preference.image_lists.detectors import DETECTORS
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import DetectorEntry, Found, Query
from listwise_preference.pair_making.choose import Judged, Preference, Rules, choose
from listwise_preference.pair_making.command import main
from listwise_preference.pair_making.objects import objects_of, verdict
from listwise_preference.small_world import data
from listwise_preference.small_world.scenes import NATURAL, Scene

from .conftest import ROOT

CHECKPOINT = ROOT / "checkpoints" / "small-idefics2"
SCENES, DRAWS = 30, 8


def judged(draw: int, found: str = "", absent: str = "", unclear: str = "", words: int = 10) -> Judged:
    """A response of so many words that names these objects."""
    names = [tuple(one.split()) for one in (found, absent, unclear)]
    text = " ".join([str(draw)] * words)
    return Judged(draw, text, *names, mentions=sum(map(len, names)))


# ---- which two ----


def margin(chosen: Judged, rejected: Judged) -> int:
    return Preference(chosen, rejected).margin


def test_the_margin_holds_whatever_unclear_objects_are() -> None:
    clean = judged(1, "cat cup")
    assert margin(clean, judged(2, "cat", "dog")) == 1
    assert margin(clean, judged(2, "", "dog kite")) == 2
    # The sky may be absent: then both name one absent object.
    assert margin(judged(1, "cat", unclear="sky"), judged(2, "cat", "dog")) == 0
    # Both name it: it makes no difference.
    assert margin(judged(1, "cat", unclear="sky"), judged(2, "", "dog", "sky")) == 1
    # In the rejected response it may be there, and does not count.
    assert margin(clean, judged(2, "cat", unclear="sky")) == 0
    assert margin(judged(2, "cat", "dog"), clean) == -1


def test_the_best_supported_is_set_against_the_worst() -> None:
    responses = [
        judged(1, "cat cup", "dog"),
        judged(2, "cat cup lamp"),
        judged(3, "cat", "dog kite"),
        judged(4, "cat", "dog bus"),
    ]
    (pair,), reason = choose(responses, Rules())
    assert (pair.chosen.draw, pair.rejected.draw, pair.margin, reason) == (2, 3, 2, "")
    assert pair.reason == (
        "the rejected response names dog, kite, not found in the image; the chosen one cup, lamp, found"
    )


def test_responses_that_repeat_themselves_equally_come_first() -> None:
    """A model that says "a lamp and a lamp" is not to learn it from a chosen response."""
    repeated = Judged(1, "a a a a a a a a", ("cat", "lamp"), mentions=3)
    once = Judged(2, "b b b b b b b b", ("cat", "lamp"), mentions=2)
    assert (repeated.repeats, once.repeats) == (1, 0)
    (pair,), _ = choose([repeated, once, judged(3, "cat", "dog", words=8)], Rules())
    assert pair.chosen.draw == 2


def test_support_counts_what_was_found_too() -> None:
    """Both chosen responses name one absent object fewer; the second also names two things that are there."""
    rejected = judged(3, "cat", "dog")
    one, two = judged(1, "cat cup"), judged(2, "cat cup lamp")
    assert [Preference(chosen, rejected).support for chosen in (one, two)] == [2, 3]
    # An unclear one of the rejected response may be there.
    assert Preference(one, judged(3, "", "dog", "sky")).support == 2
    (pair,), _ = choose([one, two, rejected], Rules(objects_more=1))
    assert pair.chosen.draw == 2


def test_a_response_is_in_one_pair() -> None:
    responses = [judged(1, "cat"), judged(2, "cup"), judged(3, absent="dog"), judged(4, absent="kite")]
    pairs, _ = choose(responses, Rules(pairs_per_image=9))
    assert [(pair.chosen.draw, pair.rejected.draw) for pair in pairs] == [(1, 3), (2, 4)]


@pytest.mark.parametrize(
    ("responses", "why"),
    [
        ([judged(1, "cat"), judged(1, "cat")], "fewer than two different responses that ended by themselves"),
        ([judged(1, "cat"), judged(2)], "fewer than two responses that name an object"),
        ([judged(1, "cat"), judged(2, "cup")], "no response names an absent object"),
        ([judged(1, "cat", "dog"), judged(2, "", "dog kite")], "all responses name an absent object"),
        ([judged(1, "cat", unclear="sky"), judged(2, "cat", "dog")], "which response is better is unclear"),
        (
            [judged(1, "cat"), judged(2, "cat", "dog")],
            "the better and the worse name different numbers of objects",
        ),
        ([judged(1, "cat", words=7), judged(2, "", "dog")], "the better and the worse differ in length"),
    ],
)
def test_why_a_prompt_has_no_pair(responses: list[Judged], why: str) -> None:
    assert choose(responses, Rules()) == ([], why)


def test_rules_can_be_loosened() -> None:
    assert choose([judged(1, "cat", "dog"), judged(2, "", "dog kite")], Rules(max_absent=1))[0]
    more = [judged(1, "cat cup lamp"), judged(2, "cup", "dog")]
    assert choose(more, Rules())[1] == "the better and the worse name different numbers of objects"
    assert choose(more, Rules(objects_more=1))[0]
    # To name fewer objects is the easiest way to name fewer absent ones, and is not to be learned.
    assert not choose([judged(1, "cat"), judged(2, "cat", "dog")], Rules(objects_more=9))[0]
    assert choose([judged(1, "cat", words=7), judged(2, "", "dog")], Rules(length_ratio=0.7))[0]


# ---- what is there ----


def test_detectors_must_agree() -> None:
    assert [verdict(seen) for seen in ([True], [True, True], [False], [False, False])] == [
        "found", "found", "not found", "not found"
    ]  # fmt: skip
    assert {verdict(seen) for seen in ([True, False], [True, None], [None], [None, False])} == {"unclear"}


def test_annotations_tell_that_a_thing_is_absent_only_where_they_could_have_it(tmp_path: Path) -> None:
    file = tmp_path / "boxes.jsonl"
    boxes = [("a.png", "puppy"), ("a.png", "cup"), ("b.png", "cat")]
    file.write_text("".join(json.dumps({"img_path": i, "label": n, "box": [0, 0, 9, 9]}) + "\n" for i, n in boxes))
    annotations = Annotations(file, ["a.png", "b.png", "c.png"])
    assert annotations.knows("a.png", "cat") and annotations.knows("a.png", "dog")
    assert not annotations.knows("a.png", "sky")  # nobody was asked to draw a box around the sky
    assert not annotations.knows("c.png", "cat")  # nobody has looked at this image
    (answer,) = annotations.detect(annotations.prepare([Query("a.png", Image.new("RGB", (20, 20)), ("dog", "cat"))]))
    assert isinstance(answer, list) and [found.phrase for found in answer] == ["dog"]


# ---- whole runs ----


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Scene]]]:
    """A folder of scenes, whose words are read by the world's own tagger data."""
    folder, scenes = tmp_path_factory.mktemp("world"), data.scenes(NATURAL, SCENES, "pairs of one's own")
    data.write_scenes(folder, scenes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(folder / "nltk_data"))
        patch.setattr(nltk.data, "path", [str(folder / "nltk_data"), *nltk.data.path])
        english.cache_clear()
        yield folder, scenes
    english.cache_clear()


def options(world: Path, output: Path, *more: object) -> list[str]:
    line = ["--model_name_or_path", CHECKPOINT, "--dtype", "float32", "--responses", DRAWS]
    line += ["--prompts", world / "data/query/query_generative.json", "--image_root", world / "image"]
    line += ["--detector", "annotations", "--annotations", world / "annotations.jsonl", "--output", output]
    return [*map(str, [*line, *more])]


@pytest.fixture(scope="module")
def made(world: tuple[Path, list[Scene]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "pairs.jsonl"
    main(options(world[0], output, "--review", output.parent / "review"))
    return output


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_every_pair_holds_by_the_scenes_truth(made: Path, world: tuple[Path, list[Scene]]) -> None:
    pairs, responses = read_records(made), read_records(made.with_name("pairs.responses.jsonl"))
    assert len(responses) == SCENES * DRAWS and len(pairs) > 5
    for pair in pairs:
        said = {line["response"] for line in responses if line["img_path"] == pair["img_path"]}
        assert {pair["chosen"], pair["rejected"]} <= said
        visible = set(world[1][pair["id"] - 1].visible)
        chosen, rejected = (set(data.mentioned(pair[name])) for name in ("chosen", "rejected"))
        assert chosen <= visible and not rejected <= visible and len(chosen) == len(rejected)
        assert pair["margin"] == len(rejected - visible)
        assert set(pair["objects"]["rejected"]["not_found"]) == rejected - visible
    assert {"ball", "boat"} & {name for pair in pairs for name in pair["objects"]["chosen"]["found"]}


def test_what_has_no_pair_is_counted(made: Path) -> None:
    summary = json.loads(made.with_name("pairs.summary.json").read_text())
    assert summary["pairs"] == len(read_records(made))
    assert summary["pairs"] + sum(summary["prompts_without_a_pair"].values()) == summary["prompts"] == SCENES
    assert summary["responses"] == SCENES * DRAWS and summary["responses_cut"] == 0


def test_the_pairs_are_read_as_any_others(made: Path, world: tuple[Path, list[Scene]]) -> None:
    records = load_records(made, world[0] / "image", ImageOnly()).records
    assert [record.pair.chosen for record in records] == [pair["chosen"] for pair in read_records(made)]


def test_other_rules_sample_nothing_again(made: Path, world: tuple[Path, list[Scene]]) -> None:
    files = [made.with_name(f"pairs.{name}.jsonl") for name in ("responses", "objects")]
    before, first = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files], made.read_bytes()
    main(options(world[0], made, "--objects_more", 1, "--length_ratio", 0.5))
    counts = [[len(pair["objects"][name]["found"]) for name in ("chosen", "rejected")] for pair in read_records(made)]
    assert made.read_bytes() != first and any(chosen > rejected + 1 for chosen, rejected in counts)
    main(options(world[0], made))
    assert made.read_bytes() == first
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before


def test_a_stopped_run_goes_on_where_it_was(
    world: tuple[Path, list[Scene]], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user stops it while objects are looked for: the responses stay, and so do the images that were done."""
    entry, asked = DETECTORS["annotations"], []

    def load(given: Any, entries: Any, dtype: str) -> Any:
        annotations = entry.load(given, entries, dtype)
        detect = annotations.detect

        def stopped(prepared: Any) -> Any:
            asked.append(len(prepared))
            if len(asked) == 3:
                raise KeyboardInterrupt
            return detect(prepared)

        annotations.detect = stopped
        return annotations

    stopping = DetectorEntry(help="", load=load, options=entry.options, knows=entry.knows)
    output = tmp_path / "pairs.jsonl"
    line = options(world[0], output, "--detector_batch_size", 8)
    with monkeypatch.context() as patch:
        patch.setitem(DETECTORS, "annotations", stopping)
        with pytest.raises(SystemExit) as caught:
            main(line)
    assert caught.value.code == 130 and asked == [8, 8, 8]
    assert not output.exists() and (tmp_path / "pairs.objects.jsonl.parts").is_dir()
    responses = tmp_path / "pairs.responses.jsonl"
    assert responses.read_bytes() == made.with_name("pairs.responses.jsonl").read_bytes()
    kept = responses.stat().st_mtime_ns
    main(line)
    assert responses.stat().st_mtime_ns == kept
    assert output.read_bytes() == made.read_bytes()
    assert (tmp_path / "pairs.objects.jsonl").read_bytes() == made.with_name("pairs.objects.jsonl").read_bytes()


def test_what_only_one_of_two_detectors_finds_decides_nothing(
    world: tuple[Path, list[Scene]], made: Path, tmp_path: Path
) -> None:
    """The second file has no dog, tree or kite: all of these are unclear, and nobody is called wrong for a kite."""
    boxes = [
        line for line in read_records(world[0] / "annotations.jsonl") if line["label"] not in ("dog", "tree", "kite")
    ]
    second = tmp_path / "second.jsonl"
    second.write_text("".join(json.dumps(line) + "\n" for line in boxes))
    output = tmp_path / "pairs.jsonl"
    main(options(world[0], output, "--second_detector", "annotations", "--second_annotations", second))
    seen = {name for line in read_records(tmp_path / "pairs.objects.jsonl") for name in line["objects"]}
    assert {"dog", "tree", "kite"} & seen
    ids = {line["img_path"] for line in boxes}
    for pair in read_records(output):
        assert pair["img_path"] in ids
        wrong = set(pair["objects"]["rejected"]["not_found"])
        assert wrong and not wrong & {"dog", "tree", "kite"}
    assert {"dog", "tree", "kite"} & {
        n for pair in read_records(made) for n in pair["objects"]["rejected"]["not_found"]
    }


class Everything:
    """A detector of one's own that fails at images of one name and finds all that it is asked for in the others."""

    def prepare(self, queries: Any) -> Any:
        return queries

    def detect(self, queries: Any) -> Any:
        if any(query.img_path == "3.png" for query in queries):
            raise RuntimeError("no such layer")
        return [[Found(phrase, None, None) for phrase in query.phrases] for query in queries]  # type: ignore[arg-type]


def test_an_image_that_a_detector_cannot_take_is_left_out_alone(
    world: tuple[Path, list[Scene]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DETECTORS, "everything", DetectorEntry("finds all", lambda *_: Everything()))
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"image": f"{number}.png", "question": "Describe this image."} for number in range(1, 6)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    line = options(world[0], tmp_path / "pairs.jsonl", "--prompts", prompts, "--detector", "everything")
    main(line)
    summary = json.loads((tmp_path / "pairs.summary.json").read_text())
    assert summary["prompts"] == 5 and summary["records_repeated"] == 1 and summary["pairs"] == 0
    assert summary["images_not_looked_at"] == {
        "everything cannot take this image, 64 x 64 pixels: RuntimeError: no such layer": 1
    }
    assert summary["prompts_without_a_pair"] == {"no response names an absent object": 4, "image not looked at": 1}


@pytest.mark.slow
def test_the_commands_of_the_document_run(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "making_pairs.md").read_text().replace("runs/own", str(tmp_path / "own"))
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    environment = os.environ | {"NLTK_DATA": str(tmp_path / "own" / "nltk_data"), "CUDA_VISIBLE_DEVICES": ""}
    for command in block[1].splitlines():
        line = [sys.executable, *shlex.split(command)[1:]]
        subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    assert len(read_records(tmp_path / "own" / "pairs.jsonl")) > 10
    assert (tmp_path / "own" / "review" / "index.html").is_file()


@pytest.mark.slow
def test_a_real_detector_looks_too(world: tuple[Path, list[Scene]], tmp_path: Path) -> None:
    """A small Grounding DINO of random weights, as the second one: what it does not confirm is unclear."""
    from listwise_preference.small_world.detector import save_small_detector

    detector = save_small_detector(tmp_path / "dino")
    more = ["--second_detector", "grounding-dino", "--second_detector_model", detector, "--second_box_threshold", 0.2]
    main(options(world[0], tmp_path / "pairs.jsonl", *more, "--max_absent", 9))
    lines = read_records(tmp_path / "pairs.objects.jsonl")
    seen = [by for line in lines for by in line["objects"].values()]
    assert {frozenset(by) for by in seen} == {frozenset({"annotations", "second grounding-dino"})}
    assert {by["second grounding-dino"] for by in seen} <= {True, False}


def test_what_a_user_can_correct_is_said_in_one_message(
    world: tuple[Path, list[Scene]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.jsonl"
    line = options(world[0], output)
    assert "needed: --model_name_or_path, --prompts, --output" in refusal([], capsys)
    assert "a pair is made of two" in refusal([*line, "--responses", "1"], capsys)
    assert "--second_detector annotations needs --second_annotations" in refusal(
        [*line, "--second_detector", "annotations"], capsys
    )
    assert "nowhere.json: no such file" in refusal([*line, "--prompts", "nowhere.json"], capsys)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"img_path": "1.png"}\n{"img_path": "../1.png", "prompt": "What?"}\n{"image": "1.png", "prompt": "What?"}\n'
    )
    said = refusal([*line, "--prompts", str(bad)], capsys)
    assert "2 of 3 records cannot be used" in said and "--on_bad_record drop asks the other 1" in said
    assert "image outside the image root: 1 record" in said and "text missing or unusable: 1 record" in said
    output.write_text("mine\n")
    assert f"{output} exists and was not made by this program" in refusal(line, capsys)
    assert output.read_text() == "mine\n"
    assert [file.name for file in tmp_path.iterdir()] == ["bad.jsonl", "pairs.jsonl"] or os.name == "nt"


def test_objects_are_those_that_a_text_says_are_there(english_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(english_data)])  # the world's comes first in this module
    english.cache_clear()
    try:
        assert objects_of("A cup of coffee has been served; a spoon lies by the cup.")[:2] == ("cup", "coffee")
    finally:
        english.cache_clear()


def test_the_page_shows_the_pairs_with_their_reasons(made: Path) -> None:
    text = (made.parent / "review" / "lists.js").read_text()
    for pair in read_records(made):
        assert json.dumps(pair["reason"])[1:-1] in text
