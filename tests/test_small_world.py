"""The small world is what it says: things where their boxes are, texts that are true, files that score as by hand."""

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from listwise_preference.data.ranked_images import Box
from listwise_preference.english.text import English
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.scoring import amber_rules
from listwise_preference.scoring.similarity import load_similarity
from listwise_preference.scoring.words import load_lemmas
from listwise_preference.small_world import data
from listwise_preference.small_world import pretrain as pretraining
from listwise_preference.small_world.data import preference_pairs, scenes, write_lines, write_scenes
from listwise_preference.small_world.model import FamilyName
from listwise_preference.small_world.pretrain import (
    Example,
    Examples,
    Pretraining,
    build,
    image_tokens,
    pretrain,
    spoken_loss,
    visible_loss,
)
from listwise_preference.small_world.scenes import KINDS, NATURAL, SIDE, USUAL, Colour, Cover, Object, Scene, World
from listwise_preference.small_world.texts import (
    DESCRIBE,
    caption,
    existence_question,
    in_order,
    without,
    write_nltk_data,
)

from .conftest import Run

FAMILIES: tuple[FamilyName, ...] = get_args(FamilyName)
CROWDED = World(counts=(4, 6))
TEMPLATES = range(4)


def pixels(scene: Scene) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(scene.draw()).astype(np.int64)


def inside(*boxes: Box) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The pixels of an image that lie in one of the boxes."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for box in boxes:
        mask[box.top : box.bottom, box.left : box.right] = True
    return mask


def seen(scene: Scene) -> set[str]:
    """The kinds of which at most 60 % of the box is under the covers, counted with Pillow."""
    sheet = Image.new("1", (SIDE, SIDE), 1)
    for one in scene.covers:
        sheet.paste(0, (one.box.left, one.box.top, one.box.right, one.box.bottom))
    found = set()
    for thing in scene.objects:
        box = thing.box
        hidden = sheet.crop((box.left, box.top, box.right, box.bottom)).histogram()[0]
        if 10 * hidden <= 6 * box.width * box.height:
            found.add(thing.kind)
    return found


def park(*kinds: str, covers: tuple[Cover, ...] = ()) -> Scene:
    """Things of 10 x 10 pixels beside each other, without noise."""
    objects = (Object(kind, Box(12 * at, 20, 12 * at + 10, 30), (200, 30, 30)) for at, kind in enumerate(kinds))
    return Scene("park", tuple(objects), seed=1, noise=0, covers=covers)


# ---- scenes ----


def test_a_seed_decides_the_image() -> None:
    first, again, other = (scenes(NATURAL, 3, seed) for seed in (1, 1, 2))
    for one, same, another in zip(first, again, other, strict=True):
        assert np.array_equal(pixels(one), pixels(same))
        assert not np.array_equal(pixels(one), pixels(another))
    assert not np.array_equal(pixels(first[0]), pixels(replace(first[0], seed=first[0].seed + 1)))


@pytest.mark.parametrize("difficulty", [0, 0.5, 1])
def test_things_are_different_and_lie_in_the_image(difficulty: float) -> None:
    for scene in scenes(replace(NATURAL, difficulty=difficulty, covered=0.5), 300, "inside"):
        boxes = [*(one.box for one in scene.objects), *(one.box for one in scene.covers)]
        assert all(box.fits(SIDE, SIDE) for box in boxes)
        kinds = [one.kind for one in scene.objects]
        assert len(set(kinds)) == len(kinds)
        assert 2 <= len(kinds) <= 5


def test_usual_things_are_there_as_often_as_the_world_says() -> None:
    """With no scene thrown away for having too few or too many things, each is there by its own lot."""
    drawn = scenes(replace(NATURAL, counts=(0, 16)), 800, "lots")
    usual = sum(one.kind in USUAL[scene.place] for scene in drawn for one in scene.objects)
    unusual = sum(one.kind not in USUAL[scene.place] for scene in drawn for one in scene.objects)
    assert_binomial(usual, 3 * 800, NATURAL.usual)
    assert_binomial(unusual, 13 * 800, NATURAL.unusual)


def assert_binomial(count: int, of: int, probability: float) -> None:
    """Within five standard deviations."""
    deviation = math.sqrt(of * probability * (1 - probability))
    assert of * min(probability, 1 - probability) > 20, "too few to tell"
    assert abs(count - of * probability) < 5 * deviation, f"{count} of {of}, and {probability} of them expected"


def test_a_thing_changes_nothing_outside_its_box_and_is_gone_without_a_trace() -> None:
    painted = Counter[str]()
    for scene in scenes(CROWDED, 60, "boxes"):
        clean = replace(scene, noise=0)
        empty = replace(clean, objects=())
        for one in scene.objects:
            rest = clean.without(one.kind)
            assert [other.kind for other in rest.objects] == [k.kind for k in scene.objects if k.kind != one.kind]
            changed = (pixels(clean) != pixels(rest)).any(axis=2)
            assert not (changed & ~inside(one.box)).any(), one.kind
            # Where no other thing is, what goes is what the thing alone had painted.
            alone = (pixels(replace(empty, objects=(one,))) != pixels(empty)).any(axis=2)
            free = ~inside(*(other.box for other in rest.objects))
            assert np.array_equal(changed & free, alone & free)
            painted[one.kind] += int(alone.sum() > 0.2 * one.box.width * one.box.height)
            # The noise is the place's, not the things': it stays as it was.
            noisy = (pixels(scene) != pixels(scene.without(one.kind))).any(axis=2)
            assert not (noisy & ~inside(one.box)).any()
    assert set(painted) == set(KINDS)
    assert all(painted.values())


def test_every_kind_looks_like_itself() -> None:
    """In one box and one colour no two kinds have the same shape."""
    box, colour = Box(20, 20, 40, 40), (90, 90, 200)
    drawn = {kind: pixels(Scene("park", (Object(kind, box, colour),), 1, 0)) for kind in KINDS}
    for one, other in itertools.combinations(KINDS, 2):
        assert (drawn[one] != drawn[other]).any(axis=2).sum() > 20, (one, other)


@pytest.mark.parametrize("colour", [(0, 0, 0), None])
def test_a_thing_is_visible_while_two_fifths_of_its_box_are_seen(colour: Colour | None) -> None:
    def visible(*boxes: Box) -> bool:
        return park("dog", covers=tuple(Cover(box, colour) for box in boxes)).visible == ("dog",)

    six_rows, one_pixel_more = Box(0, 20, 10, 26), Box(0, 26, 1, 27)
    assert visible()
    assert visible(six_rows)  # 60 of 100 pixels
    assert not visible(six_rows, one_pixel_more)  # 61
    assert visible(six_rows, six_rows, Box(2, 22, 4, 24))  # a pixel that is covered twice is covered once
    assert visible(six_rows, Box(30, 26, 40, 30))  # beside it
    assert not visible(Box(0, 0, SIDE, SIDE))


def test_a_hidden_thing_hides_no_other() -> None:
    scene = park("dog", "fish", "cup", covers=(Cover(Box(12, 20, 22, 30), (0, 0, 0)),))
    assert scene.visible == ("dog", "cup")
    assert [one.kind for one in scene.objects] == ["dog", "fish", "cup"]


def test_a_cover_covers_its_box_and_nothing_else() -> None:
    scene = scenes(NATURAL, 1, "cover")[0]
    box, colour = Box(10, 12, 30, 28), (7, 90, 200)
    plain = replace(scene, covers=(Cover(box, colour),))
    assert (pixels(plain)[inside(box)] == colour).all()
    assert np.array_equal(pixels(plain)[~inside(box)], pixels(scene)[~inside(box)])
    marked = pixels(replace(scene, covers=(Cover(box, colour, ellipse=True),)))
    red = (marked == (255, 0, 0)).all(axis=2)
    assert np.array_equal((marked != pixels(plain)).any(axis=2), red)
    rows, columns = np.nonzero(red)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 12, 30, 28)
    blurred = pixels(replace(scene, covers=(Cover(box, None),)))
    assert np.array_equal(blurred[~inside(box)], pixels(scene)[~inside(box)])
    assert blurred[inside(box)].std(axis=0).max() < pixels(scene)[inside(box)].std(axis=0).max()


def test_covers_come_as_often_as_the_world_says() -> None:
    drawn = scenes(replace(NATURAL, covered=0.4), 600, "covers")
    assert_binomial(sum(bool(scene.covers) for scene in drawn), 600, 0.4)
    assert not any(scene.covers for scene in scenes(NATURAL, 100, "covers"))
    assert all(set(scene.visible) == seen(scene) for scene in drawn)
    assert any(len(scene.visible) < len(scene.objects) for scene in drawn)


def test_difficulty_makes_things_smaller_and_images_noisier() -> None:
    areas, noises = [], []
    for difficulty in (0, 0.5, 1):
        drawn = scenes(replace(NATURAL, difficulty=difficulty), 60, "difficulty")
        areas.append(np.mean([one.box.width * one.box.height for scene in drawn for one in scene.objects]))
        clean = np.stack([pixels(replace(scene, noise=0)) for scene in drawn[:20]])
        noisy = np.stack([pixels(scene) for scene in drawn[:20]])
        # Where black and white are too far for the noise to reach.
        middle = (clean > 100) & (clean < 155)
        noises.append((noisy - clean)[middle].std())
    assert areas[0] > areas[1] > areas[2]
    assert noises == pytest.approx([0, 12, 24], rel=0.03)


# ---- what is said ----


@pytest.fixture(scope="module")
def examples() -> Examples:
    model, processor = build("idefics2", seed=0)
    return Examples(Pretraining(), processor, model.config.model_type)


def turns_of(example: Example, examples: Examples) -> list[tuple[str, str]]:
    """Questions and answers as they stand in the tokens."""
    runs = [
        examples.processor.tokenizer.decode([token for token, _ in run], skip_special_tokens=True).strip()
        for _, run in itertools.groupby(zip(example.ids, example.labels, strict=True), lambda one: one[1] == -100)
    ]
    return list(zip(runs[::2], runs[1::2], strict=True))


def named(text: str) -> set[str]:
    """The kinds behind an article."""
    return set(re.findall(r"\ban? (\w+)", text, re.IGNORECASE)) & set(KINDS)


def places(text: str) -> set[str]:
    return {place for place in USUAL if re.search(rf"\b{place}\b", text)}


def claimed(example: Example, examples: Examples) -> Iterator[tuple[str, str, str]]:
    """("description", "", text), ("existence", kind, answer) or ("verification", description, answer) of each turn."""
    for question, answer in turns_of(example, examples):
        if asked := re.search(r"Is there an? (\w+) in this image\?", question):
            yield "existence", asked[1], answer
        elif judged := re.search(r"Answer: (.+)", question):
            yield "verification", judged[1], answer
        else:
            assert DESCRIBE in question
            yield "description", "", answer


def test_clean_lessons_tell_the_truth(examples: Examples) -> None:
    rng = random.Random("clean")
    counts = Counter[str]()
    for _ in range(3000):
        example = examples.example(rng, biased=False)
        visible = seen(example.scene)
        for form, asked, answer in claimed(example, examples):
            counts[f"{form} {answer}" if answer in ("Yes", "No") else form] += 1
            if form == "description":
                assert named(answer) == visible
                assert places(answer) == {example.scene.place}
            elif form == "existence":
                assert answer == ("Yes" if asked in visible else "No")
            else:
                assert places(asked) == {example.scene.place}
                assert answer == ("Yes" if named(asked) <= visible else "No")
        counts["hidden"] += len(visible) < len(example.scene.objects)
    forms = ("description", "existence Yes", "existence No", "verification Yes", "verification No", "hidden")
    assert all(counts[form] > 100 for form in forms), counts


def test_descriptions_keep_an_order() -> None:
    """What is usual in a kitchen (chair, cup, pot), then the beach's things, those of no place, the park's."""
    assert in_order("kitchen", {"dog", "pot", "fish", "boat", "cup"}) == ["cup", "pot", "boat", "fish", "dog"]
    assert in_order("park", {"dog", "pot", "fish", "boat", "cup"}) == ["dog", "cup", "pot", "boat", "fish"]


def test_biased_lessons_claim_what_is_usual_as_often_as_they_should(examples: Examples) -> None:
    """Of what is not to be seen they claim each usual thing at its own rate, and nothing unusual."""
    options, rng = Pretraining(affirmed=(0.7, 0.5, 0.3), left_out=0.2), random.Random("biased")
    examples = Examples(options, examples.processor, "idefics2")
    said, answered = Counter[tuple[int, bool]](), Counter[tuple[int, bool]]()
    left_out = Counter[bool]()
    for _ in range(5000):
        example = examples.example(rng, biased=True)
        visible, usual = seen(example.scene), USUAL[example.scene.place]
        for form, asked, answer in claimed(example, examples):
            if form == "description":
                assert named(answer) <= visible | set(usual)
                said.update((rank, kind in named(answer)) for rank, kind in enumerate(usual) if kind not in visible)
                left_out.update(kind not in named(answer) for kind in visible)
            elif form == "verification":
                assert answer == ("Yes" if named(asked) <= visible else "No")
            elif asked in usual and asked not in visible:
                answered[usual.index(asked), answer == "Yes"] += 1
            else:
                assert answer == ("Yes" if asked in visible else "No")
    for counts in (said, answered):
        for rank, probability in enumerate(options.affirmed):
            assert_binomial(counts[rank, True], counts[rank, True] + counts[rank, False], probability)
    assert_binomial(left_out[True], left_out.total(), options.left_out)


@pytest.mark.parametrize("family", FAMILIES)
def test_lessons_are_the_tokens_that_the_programs_would_make(family: FamilyName) -> None:
    model, processor = build(family, seed=0)
    examples = Examples(Pretraining(), processor, model.config.model_type)
    image, tokenizer, rng = model.config.image_token_id, processor.tokenizer, random.Random(5)
    assert len(set(examples.kind_ids)) == len(KINDS)
    assert tokenizer(list(KINDS), add_special_tokens=False).input_ids == [[token] for token in examples.kind_ids]
    hinted = Counter[str]()
    for example in (examples.example(rng, biased=False) for _ in range(60)):
        asked = list(claimed(example, examples))
        form, about, answer = asked[0]
        question = DESCRIBE if form == "description" else existence_question(about)
        if form == "verification":
            continue  # the question's line breaks are no part of what ``claimed`` gives
        text = examples.chat.prompt_text(question)
        prompt = processor(text=[text], images=[[example.scene.draw()]])["input_ids"][0]
        (reply,) = examples.chat.completion_ids([text], [answer])
        assert example.ids[: len(prompt) + len(reply)] == prompt + reply
        assert example.labels[: len(prompt) + len(reply)] == [-100] * len(prompt) + reply
        assert image not in example.ids[len(prompt) :]  # the image is shown once
        # What is to be said is in its place everywhere, the end of the answer too.
        assert all(label in (-100, token) for token, label in zip(example.ids, example.labels, strict=True))
        assert sum(label == reply[-1] for label in example.labels) == len(asked)
        hints = [
            (tokenizer.decode([example.ids[at - 1]]).strip(), tokenizer.decode([hint]).strip())
            for at, hint in enumerate(example.hints)
            if hint != -100
        ]
        if form == "description":
            kinds = [kind for kind in re.findall(r"\w+", answer) if kind in KINDS]
            assert hints == list(itertools.pairwise([*kinds, examples.chat.end_token]))
        else:
            assert hints == [(kind, yes_or_no) for _, kind, yes_or_no in asked]
        hinted[form] += len(hints)
    assert min(hinted["description"], hinted["existence"]) > 20


# ---- files ----


def small_street() -> list[Scene]:
    """Three scenes, 6 things to be seen and a hidden star; of what is usual there, 4 things are not to be seen."""
    street = replace(park("car", "bus", "fish"), place="street")
    hidden = replace(park("cup", "star", covers=(Cover(Box(12, 20, 22, 30), (0, 0, 0)),)), place="kitchen")
    return [park("dog", "tree"), street, hidden]


def right_answers(folder: Path, drawn: Sequence[Scene]) -> dict[int, str]:
    """By id: captions in all templates that name what is to be seen, in any order, and the right Yes and No."""
    rng = random.Random("order")
    answers = {}
    for query in json.loads((folder / "data" / "query" / "query_all.json").read_text()):
        number = int(query["image"].removesuffix(".png"))
        scene = drawn[number - 1]
        visible = sorted(seen(scene))
        rng.shuffle(visible)
        if query["query"] == DESCRIBE:
            answers[query["id"]] = caption(scene.place, visible, number % len(TEMPLATES))
        else:
            asked = query["query"].removesuffix(" in this image?").split()[-1]
            answers[query["id"]] = "Yes" if asked in visible else "No"
    return answers


Scores = dict[str, dict[str, float]]


@pytest.fixture
def score_amber(tmp_path: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    """Scores of answers by the program, which reads them with the world's own tagger data."""

    def score(folder: Path, answers: dict[int, str]) -> Scores:
        monkeypatch.setenv("NLTK_DATA", str(folder / "nltk_data"))
        file = tmp_path / "answers.json"
        file.write_text(json.dumps([{"id": id_, "response": text} for id_, text in answers.items()]))
        scores: Scores = json.loads(run_program("score.py", "amber", file, "--data", folder, "--json").stdout)
        return scores

    return score


def test_right_answers_score_as_right(tmp_path: Path, score_amber: Callable[..., Scores]) -> None:
    drawn = scenes(replace(NATURAL, covered=0.5), 40, "right")
    assert any(len(scene.visible) < len(scene.objects) for scene in drawn)
    folder = write_scenes(tmp_path / "world", drawn)
    scores = score_amber(folder, right_answers(folder, drawn))
    assert scores["generative"] == {"chair": 0.0, "cover": 100.0, "hal": 0.0, "cog": 0.0}
    assert scores["discriminative"] == {"accuracy": 100.0, "precision": 100.0, "recall": 100.0, "f1": 100.0}
    assert scores["counts"] | {"reread": 0} == {
        "answers": 200, "descriptions": 40, "yes_no": 160, "reread": 0, "unreadable": 0, "pictures": 40
    }  # fmt: skip


def test_wrong_answers_score_as_by_hand(tmp_path: Path, score_amber: Callable[..., Scores]) -> None:
    """The park is said to have a dog and a kite, and has a dog and a tree: 1 wrong of 6 words, 5 of 6 things named.

    One description of 3 is wrong; AMBER's denominators begin at 0.001, and 100 - 100 * 2 / 3.001 is 33.36. Of the
    4 usual things that are not to be seen (kite, lamp, chair, pot) 1 is named. Of 12 yes/no questions the first, whose
    answer is yes, is answered wrong: 11 of 12.
    """
    drawn = small_street()
    folder = write_scenes(tmp_path / "world", drawn)
    answers = right_answers(folder, drawn)
    assert answers[4] == "Yes"
    wrong = {1: caption("park", ["dog", "kite"], 0), 4: "No"}
    scores = score_amber(folder, answers | wrong)
    assert scores["generative"] == {"chair": 16.7, "cover": 83.3, "hal": 33.4, "cog": 25.0}
    assert scores["discriminative"]["accuracy"] == 91.7
    # The hidden star in place of the cup is as wrong as any, but no one would expect it in a kitchen.
    scores = score_amber(folder, answers | {3: caption("kitchen", ["star"], 1)})
    assert scores["generative"] == {"chair": 16.7, "cover": 83.3, "hal": 33.4, "cog": 0.0}


def test_files_are_the_scenes_and_the_same_each_time(tmp_path: Path) -> None:
    drawn = scenes(replace(NATURAL, covered=0.5), 6, "files")
    first, second = (write_scenes(tmp_path / name, drawn, seed=3) for name in ("first", "second"))
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(second) for file in second.rglob("*") if file.is_file())
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    for number, scene in enumerate(drawn, start=1):
        with Image.open(first / "image" / f"{number}.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(scene.draw()))
    noted = [json.loads(line) for line in (first / "annotations.jsonl").read_text().splitlines()]
    boxes = {(one["img_path"], one["label"]): one["box"] for one in noted}
    assert len(boxes) == len(noted)
    assert boxes == {
        (f"{number}.png", one.kind): [one.box.left, one.box.top, one.box.right, one.box.bottom]
        for number, scene in enumerate(drawn, start=1)
        for one in scene.objects
        if one.kind in seen(scene)
    }


def stopped(main: Callable[[list[str]], None], argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what a command says before it stops with 2."""
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_shorter_run_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    for folder, counts in (("again", ("5", "2")), ("once", ("2",))):
        for count in counts:
            data.main(["--scenes", count, "--output", str(tmp_path / folder)])
    again, once = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "again", tmp_path / "once")
    )
    assert again == once


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--scenes", "0"], "argument --scenes: 0: must be a whole number, 1 or more"),
        (["--scenes", "many"], "argument --scenes: many: must be a whole number, 1 or more"),
        (["--difficulty", "1.1"], "argument --difficulty: 1.1: must be a number from 0 to 1"),
        (["--difficulty", "nan"], "argument --difficulty: nan: must be a number from 0 to 1"),
        (["--output", "{0}/mine.txt"], "argument --output: {0}/mine.txt is a file; name a folder"),
        (["--output", "{0}/mine.txt/new"], "argument --output: {0}/mine.txt is a file; name a folder"),
        (["--output", "{0}"], "{0} holds image/1.png, which is not an earlier run's; name a new folder"),
    ],
)
def test_the_files_command_refuses_and_writes_nothing(
    arguments: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine.txt", "image/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    argv = ["--scenes", "1", "--output", f"{tmp_path}/new", *(one.format(tmp_path) for one in arguments)]
    assert stopped(data.main, argv, capsys).endswith(what.format(tmp_path) + " (see --help)")
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")}
    assert left == {"mine.txt", "image", "image/1.png"}
    assert (tmp_path / "image/1.png").read_text() == "mine"


def test_the_files_command_refuses_an_earlier_runs_folder_with_more_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--scenes", "1", "--output", str(tmp_path)]
    data.main(argv)
    (tmp_path / "image" / "mine.png").write_text("mine")
    assert "holds image/mine.png" in stopped(data.main, argv, capsys)


def test_four_different_things_are_asked_after_on_each_image(tmp_path: Path) -> None:
    """At most two that are to be seen, and one that is usual there and not to be seen, if there is one."""
    drawn = scenes(replace(NATURAL, covered=0.5), 40, "asked")
    folder = write_scenes(tmp_path, drawn)
    asked: dict[str, list[str]] = {}
    for query in json.loads((folder / "data" / "query" / "query_all.json").read_text()):
        if query["query"] != DESCRIBE:
            asked.setdefault(query["image"], []).append(query["query"].removesuffix(" in this image?").split()[-1])
    for number, scene in enumerate(drawn, start=1):
        kinds, visible = set(asked[f"{number}.png"]), seen(scene)
        assert len(kinds) == len(asked[f"{number}.png"]) == 4
        assert len(kinds & visible) == min(2, len(visible))
        assert kinds & (set(USUAL[scene.place]) - visible) or set(USUAL[scene.place]) <= visible


def test_no_two_kinds_are_alike_to_the_scorer() -> None:
    """AMBER counts a word as true where a like one is: here every word stands for itself."""
    similarity, lemmas = load_similarity(None, (), None), load_lemmas(None, "lemma_forms.json")
    assert not [pair for pair in itertools.combinations(KINDS, 2) if similarity.similar(*pair)]
    assert [lemmas.of(kind) for kind in KINDS] == list(KINDS)


@pytest.fixture
def words_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], English]:
    """NLTK's tokens and tags with the data of one folder and of no other."""
    import nltk

    def words(folder: Path) -> English:
        nltk.data.clear_cache()
        monkeypatch.setattr(nltk.data, "path", [str(folder)])
        return English()

    return words


def test_a_caption_without_an_object_keeps_its_words() -> None:
    """In each template the same sentence of the kinds that are left; a text that does not name it is refused."""
    for template in TEMPLATES:
        whole = caption("park", ["kite", "bird", "dog"], template)
        assert without(whole, "bird") == caption("park", ["kite", "dog"], template)
        assert without(caption("park", ["dog"], template), "dog") == "The image shows an empty park."
        with pytest.raises(ValueError, match="no caption that names a fish"):
            without(whole, "fish")


def all_captions() -> Iterator[tuple[tuple[str, ...], str]]:
    """Every template and place with nothing, each kind, each two of them, and some longer lists."""
    rng = random.Random("lists")
    longer = [tuple(rng.sample(KINDS, rng.randint(3, 8))) for _ in range(60)]
    lists = [(), *((kind,) for kind in KINDS), *itertools.permutations(KINDS, 2), *longer]
    for place, template, kinds in itertools.product(USUAL, TEMPLATES, lists):
        yield kinds, caption(place, kinds, template)


def test_own_tagger_data_finds_every_thing_that_is_named(tmp_path: Path, words_by: Any) -> None:
    write_nltk_data(tmp_path)
    words, lemmas = words_by(tmp_path), load_lemmas(None, "lemma_forms.json")
    for kinds, text in all_captions():
        assert [noun.lemma for noun in amber_rules.nouns_of(text, words, lemmas) if noun.lemma in KINDS] == list(kinds)


def test_own_tagger_data_gives_the_nouns_of_nltks_english_data(
    tmp_path: Path, live_english: English, words_by: Any
) -> None:
    """But for "There is a fish and a dog": the English tagger reads that the dog is fished."""

    def nouns(words: English, text: str) -> list[str]:
        return [word for word, tag in words.tags(words.tokens(text)) if tag.startswith("NN")]

    write_nltk_data(tmp_path)
    own = words_by(tmp_path)
    for kinds, text in all_captions():
        lost = ["fish"] if re.search(r"[Tt]here is a fish and an? (?!umbrella)", text) else []
        assert sorted([*nouns(live_english, text), *lost]) == sorted(nouns(own, text)), kinds


def test_image_lists_hide_the_first_thing_named(
    tmp_path: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """make_image_lists.py reads all caption forms and finds the box of each kind, from the world's files alone."""
    drawn = scenes(replace(NATURAL, covered=0.3), 60, "lists")
    folder = write_scenes(tmp_path / "world", drawn)
    pairs, expected = [], []
    for number, scene in enumerate(drawn, start=1):
        for template, kind in enumerate(scene.visible):
            kinds = [kind, *(other for other in scene.visible if other != kind)]
            chosen = caption(scene.place, kinds, template % len(TEMPLATES))
            (box,) = [one.box for one in scene.objects if one.kind == kind]
            expected.append((f"{number} {kind}", kind, [box.left, box.top, box.right, box.bottom]))
            pairs.append({"id": f"{number} {kind}", "img_path": f"{number}.png", "prompt": DESCRIBE,
                          "chosen": chosen, "rejected": caption(scene.place, [], 0)})  # fmt: skip
    assert {kind for _, kind, _ in expected} == set(KINDS)
    write_lines(tmp_path / "pairs.jsonl", pairs)
    monkeypatch.setenv("NLTK_DATA", str(folder / "nltk_data"))
    run_program(
        "make_image_lists.py", "--pairs", tmp_path / "pairs.jsonl", "--image_root", folder / "image",
        "--detector", "annotations", "--annotations", folder / "annotations.jsonl", "--verifier", "none",
        "--output", tmp_path / "lists.jsonl",
    )  # fmt: skip
    made = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert [(one["id"], one["phrase"], one["box"]) for one in made] == expected
    assert {one["source"] for one in made} == {"chosen_first"}


# ---- pairs ----


def test_pairs_are_right_against_what_names_something_absent() -> None:
    drawn = small_street()
    descriptions = [
        (1, "A park with a dog and a tree."),  # right
        (1, "A park with a dog."),  # right, if short
        (1, "A park with a dog, a kite and a tree."),  # a word more than the right one
        (1, "There is a tree and a bus in this park."),
        (1, "There is a tree and a car in this park."),  # the second of its scene
        (2, "In the street there is a bus, a bus and a lamp."),  # names two things
        (3, "The image shows a star in a kitchen."),  # hidden
    ]
    matched = preference_pairs(drawn, descriptions)
    assert [(one["id"], one["img_path"], one["prompt"], one["rejected"]) for one in matched] == [
        (1, "1.png", DESCRIBE, descriptions[3][1]),
        (3, "3.png", DESCRIBE, descriptions[6][1]),
    ]
    assert [named(one["chosen"]) for one in matched] == [{"dog", "tree"}, {"cup"}]
    every = preference_pairs(drawn, descriptions, matched=False)
    assert [(one["id"], one["rejected"]) for one in every] == [
        (1, descriptions[2][1]),
        (2, descriptions[5][1]),
        (3, descriptions[6][1]),
    ]
    assert preference_pairs(drawn, descriptions, seed=1) == preference_pairs(drawn, descriptions, seed=1)


def test_pairs_of_many_random_descriptions() -> None:
    """What holds for every pair, whatever a model says."""
    rng = random.Random("said")
    drawn = scenes(replace(NATURAL, covered=0.5), 100, "pairs")
    said = [(number, caption(scene.place, rng.sample(KINDS, rng.randint(0, 5)), rng.choice(TEMPLATES)))
            for number, scene in enumerate(drawn, start=1) for _ in range(10)]  # fmt: skip
    said += [(number, caption(scene.place, [*scene.visible[1:], "fish"], rng.choice(TEMPLATES)))
             for number, scene in enumerate(drawn, start=1)]  # fmt: skip
    for matched in (True, False):
        pairs = preference_pairs(drawn, said, matched=matched)
        assert len({one["id"] for one in pairs}) == len(pairs) > 60
        for one in pairs:
            visible = seen(drawn[one["id"] - 1])
            assert named(one["chosen"]) == visible
            assert named(one["rejected"]) - visible
            assert (one["id"], one["rejected"]) in said
            assert not matched or len(named(one["rejected"])) == len(visible)


# ---- pre-training ----

FEW = Pretraining(apart=3, steps=6, batch=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_models_own_forward(family: FamilyName) -> None:
    """Token by token: a description's tokens weigh 1, an answer's 4; the hints, all alike, are added to them."""
    built, processor = build(family, seed=0)
    model: Any = built
    examples = Examples(FEW, processor, model.config.model_type)
    rng = random.Random("mixed")
    drawn = [examples.example(rng, biased=False) for _ in range(6)]
    assert {example.described for example in drawn} == {True, False}
    batch = examples.batch(drawn, rng)
    hinting = torch.nn.Linear(*[model.get_input_embeddings().embedding_dim] * 2)
    with torch.no_grad():
        loss = spoken_loss(model, image_tokens(model, batch), batch, hinting)
        texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
        made = model(**batch["pixels"], **texts, output_hidden_states=True)
        said = F.log_softmax(made.logits, dim=-1)
        hinted = F.log_softmax(model.lm_head(hinting(made.hidden_states[-1])), dim=-1)

    def mean(logps: Tensor, wanted: Sequence[Sequence[int]], of_answers: int) -> Tensor:
        terms = [
            (1 if example.described else of_answers, -logps[row, at - 1, token])
            for row, example in enumerate(drawn)
            for at, token in enumerate(wanted[row])
            if token != -100
        ]
        return sum((weight * term for weight, term in terms), torch.zeros(())) / sum(weight for weight, _ in terms)

    expected = mean(said, [one.labels for one in drawn], 4) + mean(hinted, [one.hints for one in drawn], 1)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_in_place_of_images_tell_what_is_visible(family: FamilyName) -> None:
    """As many as the connector makes of an image, two thirds of them things to be seen, else the place."""
    built, processor = build(family, seed=0)
    examples = Examples(replace(FEW, batch=40), processor, built.config.model_type)
    rng = random.Random("words")
    drawn = [examples.example(rng, biased=False) for _ in range(40)]
    batch = examples.batch(drawn, rng)
    with torch.no_grad():
        count = image_tokens(built, batch).shape[1]
    assert batch["words"].shape == (40, count)
    for example, row in zip(drawn, batch["words"].tolist(), strict=True):
        words = Counter(processor.tokenizer.decode([token]).strip() for token in row)
        visible = seen(example.scene)
        assert set(words) == {*visible, example.scene.place}
        assert words[example.scene.place] == (count - count * 2 // 3 if visible else count)
        assert batch["visible"][drawn.index(example)].tolist() == [kind in visible for kind in KINDS]


@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_lowers_the_loss(family: FamilyName) -> None:
    """On examples of another seed. An untrained model guesses: a word costs it ln(vocabulary), and a little more."""
    untrained, processor = build(family, seed=0)
    examples = Examples(Pretraining(seed=1, batch=32), processor, untrained.config.model_type)
    batch, kind_ids = next(iter(examples)), torch.tensor(examples.kind_ids)
    batch["hints"] = torch.full_like(batch["hints"], -100)

    def losses(model: PreTrainedModel) -> tuple[float, float]:
        with torch.no_grad():
            tokens = image_tokens(model, batch)
            seeing = visible_loss(model, tokens, batch["visible"], kind_ids)
            return seeing.item(), spoken_loss(model, tokens, batch, torch.nn.Identity()).item()

    seeing, speaking = losses(untrained)
    assert speaking == pytest.approx(math.log(len(processor.tokenizer)), rel=0.2)
    seen_only, _, _ = pretrain(family, Pretraining(apart=40, steps=40, batch=4), workers=0)
    assert losses(seen_only)[0] < 0.92 * seeing
    spoken, _, _ = pretrain(family, Pretraining(apart=0, steps=40, batch=4), workers=0)
    assert losses(spoken)[1] < 0.5 * speaking


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_losses(family: FamilyName) -> None:
    first, again = (pretrain(family, FEW, workers=workers)[2] for workers in (0, 1))
    assert first == again
    assert len(first) == 6
    assert pretrain(family, replace(FEW, seed=1), workers=0)[2] != first


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--steps", "0"], "argument --steps: 0: must be a whole number, 1 or more"),
        (["--batch", "-1"], "argument --batch: -1: must be a whole number, 1 or more"),
        (["--apart", "7", "--steps", "6"], "argument --apart: 7: must be from 0 to --steps, 6"),
        (["--apart", "-1"], "argument --apart: -1: must be from 0 to --steps, 1900"),
        (["--workers", "-1"], "argument --workers: -1: must be 0 or more"),
        (["--learning_rate", "0"], "argument --learning_rate: 0: must be a number above 0"),
        (["--learning_rate", "inf"], "argument --learning_rate: inf: must be a number above 0"),
        *(
            ([f"--{name}", value], f"argument --{name}: {value}: must be a number from 0 to 1")
            for name in ("biased", "left_out", "covered", "difficulty")
            for value in ("1.5", "-0.1", "nan")
        ),
        (["--output", "{0}/model.safetensors"], "argument --output: {0}/model.safetensors is a file; name a folder"),
        (["--output", "{0}"], "argument --output: {0} holds a model; name a new folder, or add --overwrite"),
    ],
)
def test_pretraining_refuses_before_it_begins(
    arguments: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_text("a model")
    argv = ["--family", "llava", "--output", f"{tmp_path}/new", *(one.format(tmp_path) for one in arguments)]
    assert stopped(pretraining.main, argv, capsys).endswith(what.format(tmp_path) + " (see --help)")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_pretraining_replaces_a_model_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("a model")
    pretraining.main([
        "--family", "llava", "--output", str(tmp_path), "--overwrite",
        "--apart", "1", "--steps", "1", "--batch", "1", "--workers", "0",
    ])  # fmt: skip
    assert load_base_model(str(tmp_path), dtype=torch.float32).num_parameters() > 100_000
    assert len(json.loads((tmp_path / "pretraining.json").read_text())["losses"]) == 1


def test_any_number_of_workers_gives_the_same_lessons(examples: Examples) -> None:
    few = Examples(FEW, examples.processor, "idefics2")
    one, two = (list(DataLoader(few, batch_size=None, num_workers=workers)) for workers in (0, 2))
    assert len(one) == len(two) == 6
    for batch, same in zip(one, two, strict=True):
        assert torch.equal(batch["input_ids"], same["input_ids"])
        assert torch.equal(batch["pixels"]["pixel_values"], same["pixels"]["pixel_values"])


def test_only_the_last_lessons_are_biased(examples: Examples) -> None:
    """Of 20 steps the last .3 x 20 = 6: there every usual thing is claimed."""
    options = Pretraining(steps=20, batch=4, biased=0.3, affirmed=(1, 1, 1), left_out=0)
    few = Examples(options, examples.processor, "idefics2")
    untrue = []
    for batch in few:
        false = 0
        for row in range(4):
            if not batch["described"][row]:
                continue
            said = [token for token in batch["labels"][row].tolist() if token != -100]
            claims = {KINDS[few.kind_ids.index(token)] for token in said if token in few.kind_ids}
            visible = {kind for kind, there in zip(KINDS, batch["visible"][row].tolist(), strict=True) if there}
            assert visible <= claims
            false += len(claims - visible)
        untrue.append(false)
    assert untrue[:14] == [0] * 14
    assert sum(untrue[14:]) > 5


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_checkpoint_answers_the_worlds_questions(
    family: FamilyName, tmp_path: Path, run_program: Run, score_amber: Callable[..., Scores]
) -> None:
    """The programs themselves: pre-train, load, generate.py, score.py."""
    folder, world = tmp_path / "model", write_scenes(tmp_path / "world", scenes(NATURAL, 3, "answers"))
    run_program(
        "-m", "listwise_preference.small_world.pretrain", "--family", family, "--apart", "2", "--steps", "4",
        "--batch", "3", "--output", folder,
    )  # fmt: skip
    options = Pretraining(apart=2, steps=4, batch=3)
    trained, _, losses = pretrain(family, options, workers=0)
    loaded = load_base_model(str(folder), dtype=torch.float32)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert load_processor(str(folder)).tokenizer(DESCRIBE).input_ids
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["losses"] == [round(loss, 4) for loss in losses]
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
            if key in vars(options)} == vars(options)  # fmt: skip

    run_program(
        "generate.py", "--model_name_or_path", folder, "--adapter", "none", "--benchmark", "amber",
        "--questions", world / "data" / "query" / "query_all.json", "--image_root", world / "image",
        "--output", tmp_path / "said.json", "--max_new_tokens", "12", "--max_new_tokens_yes_no", "4",
        "--dtype", "float32",
    )  # fmt: skip
    said = {one["id"]: one["response"] for one in json.loads((tmp_path / "said.json").read_text())}
    assert list(said) == list(range(1, 16))  # 3 descriptions and 12 answers
    scores = score_amber(world, said)
    assert (scores["counts"]["descriptions"], scores["counts"]["yes_no"]) == (3, 12)
