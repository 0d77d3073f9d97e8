"""The object-awareness probe: what it draws, what it says of policies that are known, and the whole program."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageStat

from listwise_preference.data.pairs import BoxLists, Record, load_records
from listwise_preference.data.ranked_images import Box, Drawing, VisualPrompt
from listwise_preference.errors import DataError
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.models.adapters import add_adapter, load_adapter
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.pages import charts
from listwise_preference.probe.measure import (
    CLEAN,
    Measurement,
    ModelScorer,
    Scorer,
    Scores,
    Summary,
    background_box,
    measure,
    plan,
    summarize,
)

from .conftest import SAMPLE
from .scoring_data import Score

SIZE = (48, 40)
MAGENTA, GREEN, BLACK = (255, 0, 255), (40, 160, 60), (0, 0, 0)
# The object's box in each image; the last leaves no room for a second one of its size.
BOXES = (Box(4, 6, 16, 20), Box(30, 20, 44, 36), Box(20, 2, 30, 12), Box(6, 4, 40, 38))


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return [*zip(*[iter(image.tobytes())] * 3, strict=True)].count(colour)


def brightness(image: Image.Image) -> float:
    return -sum(image.tobytes()) / 1e5


# ---- policies that are known ----

Policy = Callable[[Image.Image], float]


def detects_boxes(image: Image.Image) -> float:
    """3 nats less where a black region is."""
    return -3.0 if count(image, BLACK) >= 30 else 0.0


def looks_at_the_object(image: Image.Image) -> float:
    """2 nats less where the object's pixels are not."""
    return -2.0 if count(image, MAGENTA) == 0 else 0.0


def scorer(log_ratio: Policy) -> Scorer:
    """Scores by the pixels; the reference minds how bright an image is, and the policy as well."""

    def score(records: Sequence[Record]) -> Iterator[tuple[int, Scores]]:
        for index, record in reversed([*enumerate(records)]):
            images = record.images.load()
            reference = tuple(map(brightness, images))
            policy = tuple(map(sum, zip(reference, map(log_ratio, images), strict=True)))
            yield index, Scores(policy, reference)

    return score


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Green images, each with a magenta and white chequered object; the same without; pairs and lists."""
    pairs, lists = [], []
    for number, box in enumerate(BOXES):
        name = f"{number}.png"
        for folder, has_object in (("images", True), ("removed/images", False)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", SIZE, GREEN)
            draw = ImageDraw.Draw(image)
            for x in range(box.left, box.right):
                for y in range(box.top, box.bottom):
                    if has_object:
                        draw.point((x, y), MAGENTA if (x + y) % 2 else "white")
            image.save(tmp_path / folder / name)
        edges = [box.left, box.top, box.right, box.bottom]
        pairs.append({"img_path": f"images/{name}", "prompt": "What?", "chosen": "A kite.", "rejected": "A cat."})
        lists.append(json.dumps({"img_path": f"images/{name}", "box": edges}) + "\n")
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "lists.jsonl").write_text("".join(lists))
    return tmp_path


def records_of(world: Path, drawing: Drawing = Drawing()) -> tuple[Record, ...]:  # noqa: B008 - frozen
    return load_records(world / "pairs.json", world, BoxLists(world / "lists.jsonl", drawing)).records


def log_ratios(summary: Summary) -> dict[str, float]:
    return {condition: change.mean for condition, change in summary.changes["log_ratio"].items()}


def test_a_policy_that_detects_boxes(world: Path) -> None:
    summary = summarize(measure(plan(records_of(world), removed_root=world / "removed"), scorer(detects_boxes)))
    expected = {"hidden": -3, "background": -3, "blur": 0, "mean": 0, "black": -3, "removed": 0}
    assert log_ratios(summary) == pytest.approx(expected)
    assert summary.artefact["log_ratio"].ratio == pytest.approx(1)
    assert summary.artefact["log_ratio"].interval == pytest.approx((1, 1))


@pytest.mark.parametrize("visual_prompt", ["ellipse", "none"])
def test_a_policy_that_looks_at_the_object(world: Path, visual_prompt: VisualPrompt) -> None:
    probes = plan(records_of(world, Drawing(visual_prompt=visual_prompt)), removed_root=world / "removed")
    summary = summarize(measure(probes, scorer(looks_at_the_object)))
    expected = {"hidden": -2, "background": 0, "blur": -2, "mean": -2, "black": -2, "removed": -2}
    if visual_prompt == "none":
        del expected["black"]  # which is then training's own way
    assert log_ratios(summary) == pytest.approx(expected)
    assert summary.artefact["log_ratio"].ratio == pytest.approx(0)


def test_the_reference_alone_is_no_part_of_the_log_ratio(world: Path) -> None:
    """Black on green makes an image darker, by what can be counted: 160 + 40 + 60 a pixel."""
    records = records_of(world, Drawing(visual_prompt="none"))[:1]
    (one,) = measure(plan(records), scorer(looks_at_the_object))
    changes = one.changes()
    assert changes["reference"]["background"] == pytest.approx(12 * 14 * 260 / 1e5)
    assert changes["policy"]["background"] == pytest.approx(12 * 14 * 260 / 1e5)
    assert changes["log_ratio"]["background"] == pytest.approx(0)


# ---- the images ----


def test_what_each_condition_shows(world: Path) -> None:
    probe = plan(records_of(world), removed_root=world / "removed")[0]
    assert probe.conditions == (CLEAN, "hidden", "background", "blur", "mean", "black", "removed")
    shown = dict(zip(probe.conditions, probe.record.images.load(), strict=True))
    box, place = BOXES[0], probe.background
    assert place is not None
    pixels = box.width * box.height
    with Image.open(world / "images" / "0.png") as clean:
        assert shown[CLEAN].tobytes() == clean.tobytes()
    with Image.open(world / "removed" / "images" / "0.png") as removed:
        assert shown["removed"].tobytes() == removed.tobytes()

    def changed(condition: str) -> Box:
        pairs = zip(shown[CLEAN].tobytes(), shown[condition].tobytes(), strict=True)
        at = [divmod(index // 3, SIZE[0]) for index, (one, other) in enumerate(pairs) if one != other]
        rows, columns = [row for row, _ in at], [column for _, column in at]
        return Box(min(columns), min(rows), max(columns) + 1, max(rows) + 1)

    assert changed("background") == place
    for condition in ("hidden", "blur", "mean", "black"):
        assert changed(condition) == box
    red = count(shown["hidden"], (255, 0, 0))
    assert red > 10 and count(shown["background"], (255, 0, 0)) == red  # hidden in the same way, ellipse and all
    assert count(shown["hidden"], BLACK) == count(shown["background"], BLACK) == pixels - red
    assert count(shown["black"], BLACK) == pixels
    assert count(shown["mean"], (255, 0, 0)) == count(shown["blur"], (255, 0, 0)) == 0
    assert count(shown["mean"], BLACK) == count(shown["blur"], BLACK) == 0


def brute_force(size: tuple[int, int], box: Box, obstacles: Sequence[Box]) -> set[Box]:
    """All places, by the definition: inside the image, no pixel shared."""

    def pixels(one: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(one.left, one.right) for y in range(one.top, one.bottom)}

    taken = set().union(*map(pixels, obstacles))
    places = {
        Box(left, top, left + box.width, top + box.height)
        for left in range(size[0] - box.width + 1)
        for top in range(size[1] - box.height + 1)
    }
    return {place for place in places if not pixels(place) & taken}


@pytest.mark.parametrize(
    ("size", "box", "others"),
    [
        ((9, 7), Box(3, 2, 6, 4), []),
        ((9, 7), Box(0, 0, 3, 2), [Box(4, 3, 9, 7)]),
        ((8, 5), Box(2, 0, 4, 5), [Box(7, 4, 8, 5)]),  # as tall as the image
        ((6, 6), Box(0, 0, 3, 3), [Box(4, 0, 5, 6)]),  # places only below it
    ],
)
def test_a_background_box_lies_in_any_allowed_place_and_no_other(
    size: tuple[int, int], box: Box, others: list[Box]
) -> None:
    obstacles = [box, *others]
    places = [background_box(size, box, obstacles, f"0/{number}") for number in range(600)]
    assert set(places) == brute_force(size, box, obstacles)
    assert places == [background_box(size, box, obstacles, f"0/{number}") for number in range(600)]


def test_no_place_for_a_background_box() -> None:
    assert background_box((9, 7), Box(2, 0, 7, 7), [Box(2, 0, 7, 7)], "0/1") is None
    assert background_box((9, 7), Box(0, 0, 4, 7), [Box(0, 0, 4, 7), Box(6, 3, 7, 4)], "0/1") is None


def test_the_seed_moves_background_boxes_and_annotations_keep_them_away(world: Path) -> None:
    records = records_of(world)
    places = [[probe.background for probe in plan(records, seed=seed)] for seed in (0, 1)]
    assert places[0] == [probe.background for probe in plan(records, seed=0)]
    assert places[0] != places[1]
    # All of the image but its left third is annotated.
    rows = [{"img_path": f"images/{number}.png", "label": "wall", "box": [16, 0, 48, 40]} for number in range(4)]
    (world / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = [probe.background for probe in plan(records, annotations=Annotations(world / "boxes.jsonl"))]
    assert [place is not None and place.right <= 16 for place in kept] == [True, True, True, False]
    assert kept[3] is None


def test_images_without_the_object_must_fit(world: Path) -> None:
    records = records_of(world)
    (world / "removed" / "images" / "1.png").unlink()
    Image.new("RGB", (9, 9)).save(world / "removed" / "images" / "2.png")
    with pytest.raises(DataError) as error:
        plan(records, removed_root=world / "removed")
    assert "2 of 4 records" in str(error.value)
    assert "record 2: --removed_root" in str(error.value) and "1.png: no such file" in str(error.value)
    assert "9 x 9 pixels, the image 48 x 40" in str(error.value)


# ---- the numbers ----


def measurement(image: str, hidden: float, background: float | None) -> Measurement:
    """A record whose clean log-probability is -10 under the policy and -12 under the reference."""
    policy = {CLEAN: -10.0, "hidden": -10 + hidden} | ({} if background is None else {"background": -10 + background})
    return Measurement(image, image, policy, dict.fromkeys(policy, -12.0))


def test_background_and_hidden_are_compared_on_the_records_that_have_both() -> None:
    """Hidden -4, -2 and -9, background -1 and 0: means -5 and -0.5, and the ratio is -0.5 / -3, not -0.5 / -5."""
    summary = summarize([measurement("a", -4, -1), measurement("b", -2, 0), measurement("c", -9, None)])
    changes, artefact = summary.changes["log_ratio"], summary.artefact["log_ratio"]
    means = [changes["hidden"].mean, changes["background"].mean, artefact.hidden.mean]
    assert means == pytest.approx([-5, -0.5, -3])
    assert [changes["hidden"].records, changes["background"].records, artefact.hidden.records] == [3, 2, 2]
    assert artefact.ratio == pytest.approx(1 / 6)
    assert (summary.records, summary.images, summary.without_background) == (3, 3, 1)
    assert summary.changes["reference"]["hidden"].mean == 0


def test_intervals_are_over_images_not_records() -> None:
    """Fifty records of one image say no more than one: with two images a draw is one, the other or both."""
    paths = ["a", "b", "a", "./b"] * 25
    many = [replace(measurement(path, -4 if path == "a" else -2, -1), id=number) for number, path in enumerate(paths)]
    assert summarize(many).images == 2
    assert summarize(many).changes["policy"]["hidden"].interval == pytest.approx((-4, -2))
    alone = summarize(many[::2])
    assert alone.changes["policy"]["hidden"].mean == pytest.approx(-4)
    assert alone.changes["policy"]["hidden"].interval is None
    assert alone.artefact["policy"].ratio is None


def test_no_ratio_of_noise() -> None:
    values = [1.0, -1.2, 0.7, -0.6, 0.9, -1.1, 0.2, -0.3]
    summary = summarize([measurement(str(place), value, 5.0) for place, value in enumerate(values)])
    low, high = summary.artefact["log_ratio"].hidden.interval or (1, 1)
    assert low < 0 < high
    assert (summary.artefact["log_ratio"].ratio, summary.artefact["log_ratio"].interval) == (None, None)
    shifted = summarize([measurement(str(place), value - 10, 5.0) for place, value in enumerate(values)])
    assert shifted.artefact["log_ratio"].ratio == pytest.approx(5 / (-10 - 0.05), rel=1e-9)


def test_a_number_that_is_none_stops_the_probe(world: Path) -> None:
    with pytest.raises(ArithmeticError, match="record 4: a log-probability is not a finite number"):
        measure(plan(records_of(world)), scorer(lambda _: float("nan")))


# ---- real models ----

LISTS = SAMPLE / "image_lists.jsonl"


def adapted(checkpoint: Path) -> Any:
    """A small model with an adapter that does something."""
    model = load_base_model(str(checkpoint), dtype=torch.float32)
    torch.manual_seed(3)  # whatever ran before: the conditions' values shall lie as far apart every time
    policy = add_adapter(model, r=4, alpha=8, dropout=0.0, target_modules=["all-linear"])
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return policy


def hidden_by_hand(image: Image.Image, condition: str, box: Box, background: Box | None) -> Image.Image:
    """The conditions by the rules that ranked_images documents, on training's default way."""
    drawn = image.copy()
    edges = (box.left, box.top, box.right, box.bottom)
    if condition == "clean":
        return drawn
    if condition == "blur":
        drawn.paste(image.crop(edges).filter(ImageFilter.GaussianBlur(max(box.width, box.height) / 8)), edges)
    elif condition == "mean":
        drawn.paste(tuple(int(mean + 0.5) for mean in ImageStat.Stat(image).mean), edges)
    elif condition == "black":
        drawn.paste((0, 0, 0), edges)
    else:
        place = box if condition == "hidden" else background
        assert place is not None
        drawn.paste((0, 0, 0), (place.left, place.top, place.right, place.bottom))
        width = max(1, min(round(3 * max(image.size) / 640), min(place.width, place.height) // 4))
        corners = (place.left, place.top, place.right - 1, place.bottom - 1)
        ImageDraw.Draw(drawn).ellipse(corners, outline=(255, 0, 0), width=width)
    return drawn


def logp_by_hand(model: Any, processor: Any, pair: dict[str, Any], image: Image.Image) -> float:
    """One forward pass of prompt and answer, whole logits, the answer's tokens summed."""
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": pair["prompt"]}]}
    prompt = processor.apply_chat_template([system, turn], add_generation_prompt=True, tokenize=False)
    text = f"{prompt} {pair['chosen']}<end_of_utterance>"
    start = processor(text=[prompt], images=[image], return_tensors="pt")["input_ids"].shape[1]
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with torch.no_grad():
        logps = model(**inputs).logits[0].log_softmax(-1)
    tokens = inputs["input_ids"][0]
    return sum(logps[at - 1, tokens[at]].item() for at in range(start, len(tokens)))


@pytest.fixture
def sample_command(small_checkpoints: dict[str, Path], few_pairs: Path) -> list[object]:
    options = {
        "pairs": few_pairs,
        "image_root": SAMPLE,
        "image_lists": LISTS,
        "model_name_or_path": small_checkpoints["idefics2"],
        "dtype": "float32",
    }
    return ["awareness", *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_the_program_says_what_a_plain_computation_says(
    small_checkpoints: dict[str, Path], sample_command: list[object], score: Score, tmp_path: Path
) -> None:
    """Every number of one record that has all conditions, and the printed means from the written records."""
    checkpoint, folder = small_checkpoints["idefics2"], tmp_path / "adapter"
    adapted(checkpoint).save_pretrained(folder)
    # As training leaves it: the prompts of the probe are those of the training.
    (folder / "run.json").write_text(json.dumps({"arguments": {"data": {"system_prompt": "Be brief."}}}))
    run = score(*sample_command, "--adapter", folder, "--batch_size", 3, "--output", tmp_path / "scores.json")
    assert run.status == 0, run.err
    result = json.loads((tmp_path / "scores.json").read_text())
    per_record = result.pop("per_record")
    assert result == run.result

    pairs = json.loads((tmp_path / "pairs.json").read_text())
    assert [one["id"] for one in per_record] == [pair["id"] for pair in pairs]
    assert 0 < result["counts"]["without_background"] < 8
    one = next(one for one in per_record if one["background_box"])
    assert list(one["policy"]) == ["clean", "hidden", "background", "blur", "mean", "black"]
    pair = next(pair for pair in pairs if pair["id"] == one["id"])
    boxes = {row["id"]: Box(*row["box"]) for row in map(json.loads, LISTS.read_text().splitlines())}
    processor = load_processor(str(checkpoint))
    reference = load_base_model(str(checkpoint), dtype=torch.float32).eval()
    policy = load_adapter(load_base_model(str(checkpoint), dtype=torch.float32), folder).eval()
    with Image.open(SAMPLE / pair["img_path"]) as file:
        image = file.convert("RGB")
    for condition in one["policy"]:
        shown = hidden_by_hand(image, condition, boxes[pair["id"]], Box(*one["background_box"]))
        assert one["policy"][condition] == pytest.approx(logp_by_hand(policy, processor, pair, shown), abs=2e-3)
        assert one["reference"][condition] == pytest.approx(logp_by_hand(reference, processor, pair, shown), abs=2e-3)
    # Every condition counts: were one drawn as another, the comparison above would tell.
    assert min(later - earlier for earlier, later in pairwise(sorted(one["policy"].values()))) > 0.005

    changes = [
        (record["policy"]["blur"] - record["policy"]["clean"])
        - (record["reference"]["blur"] - record["reference"]["clean"])
        for record in per_record
    ]
    assert result["changes"]["log_ratio"]["blur"]["mean"] == pytest.approx(sum(changes) / 8)


def test_without_an_adapter_there_is_no_log_ratio(sample_command: list[object], score: Score) -> None:
    run = score(*sample_command, "--adapter", "none", "--fill", "mean", "--visual_prompt", "none")
    assert run.status == 0, run.err
    result = run.result
    assert list(result["changes"]) == list(result["artefact"]) == ["policy"]
    assert list(result["changes"]["policy"]) == ["hidden", "background", "blur", "black"]


def test_a_scorer_in_the_middle_of_training(checkpoint: Path) -> None:
    """Batches of three say what single records say, and the model goes on training afterwards."""
    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(LISTS, Drawing())).records[:6]
    policy, processor = adapted(checkpoint).train(), load_processor(str(checkpoint))
    probes = plan(records)
    assert {len(probe.conditions) for probe in probes} == {5, 6}
    alone, together = (measure(probes, ModelScorer(policy, processor, batch_size=size)) for size in (1, 3))
    for one, other in zip(alone, together, strict=True):
        assert one.reference is not None and other.reference is not None
        assert dict(one.policy) == pytest.approx(dict(other.policy), abs=2e-3)
        assert dict(one.reference) == pytest.approx(dict(other.reference), abs=2e-3)
        assert abs(one.changes()["log_ratio"]["hidden"]) > 0.01
    assert policy.training and all(
        parameter.requires_grad for name, parameter in policy.named_parameters() if "lora" in name
    )


def test_data_is_checked_before_the_model(sample_command: list[object], score: Score, tmp_path: Path) -> None:
    command = [*sample_command, "--model_name_or_path", tmp_path / "no model"]
    run = score(*command, "--adapter", "none", "--removed_root", tmp_path)
    assert (run.status, run.out) == (2, "")
    assert "8 of 8 records cannot be probed" in run.err and "astronaut.jpg: no such file" in run.err
    run = score(*sample_command, "--adapter", tmp_path / "no adapter")
    assert run.status == 2
    assert run.err.strip().splitlines()[-1].startswith("score.py: error: ") and "holds no adapter" in run.err


def test_the_plot_has_a_bar_for_each_condition(sample_command: list[object], score: Score, tmp_path: Path) -> None:
    assert score(*sample_command, "--adapter", "none", "--plot", tmp_path / "chart.png").status == 0
    with Image.open(tmp_path / "chart.png") as chart:
        pixels = np.asarray(chart.convert("RGB"))
    others, background = (ImageColor.getrgb(colour) for colour in charts.LIGHT.lines[:2])
    assert (pixels == others).all(axis=2).sum() > 1000
    assert (pixels == background).all(axis=2).sum() > 100
