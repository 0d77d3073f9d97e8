"""The object-awareness probe: what it draws, what it says of policies that are known, and the whole program."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from listwise_preference.awareness import (
    CLEAN,
    Measurement,
    Scorer,
    Scores,
    Summary,
    background_box,
    measure,
    plan,
    summarize,
)
from listwise_preference.image_lists.annotations import Annotations
from listwise_preference.pairs import BoxLists, DataError, Record, load_records
from listwise_preference.ranked_images import Box, Drawing, VisualPrompt

SIZE = (48, 40)
MAGENTA, GREEN, BLACK = (255, 0, 255), (40, 160, 60), (0, 0, 0)
# The object's box in each picture; the last leaves no room for a second one of its size.
BOXES = (Box(4, 6, 16, 20), Box(30, 20, 44, 36), Box(20, 2, 30, 12), Box(6, 4, 40, 38))


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return [*zip(*[iter(picture.tobytes())] * 3, strict=True)].count(colour)


def brightness(picture: Image.Image) -> float:
    return -sum(picture.tobytes()) / 1e5


# ---- policies that are known ----

Policy = Callable[[Image.Image], float]


def detects_boxes(picture: Image.Image) -> float:
    """3 nats less where a black region is."""
    return -3.0 if count(picture, BLACK) >= 30 else 0.0


def looks_at_the_object(picture: Image.Image) -> float:
    """2 nats less where the object's pixels are not."""
    return -2.0 if count(picture, MAGENTA) == 0 else 0.0


def scorer(log_ratio: Policy) -> Scorer:
    """Scores by the pixels; the reference minds how bright a picture is, and the policy as well."""

    def score(records: Sequence[Record]) -> Iterator[tuple[int, Scores]]:
        for index, record in reversed([*enumerate(records)]):
            pictures = record.images.load()
            reference = tuple(map(brightness, pictures))
            policy = tuple(map(sum, zip(reference, map(log_ratio, pictures), strict=True)))
            yield index, Scores(policy, reference)

    return score


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Green pictures, each with a magenta and white chequered object; the same without; pairs and lists."""
    pairs, lists = [], []
    for number, box in enumerate(BOXES):
        name = f"{number}.png"
        for folder, has_object in (("images", True), ("removed/images", False)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", SIZE, GREEN)
            draw = ImageDraw.Draw(picture)
            for x in range(box.left, box.right):
                for y in range(box.top, box.bottom):
                    if has_object:
                        draw.point((x, y), MAGENTA if (x + y) % 2 else "white")
            picture.save(tmp_path / folder / name)
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
    """Black on green makes a picture darker, by what can be counted: 160 + 40 + 60 a pixel."""
    records = records_of(world, Drawing(visual_prompt="none"))[:1]
    (one,) = measure(plan(records), scorer(looks_at_the_object))
    changes = one.changes()
    assert changes["reference"]["background"] == pytest.approx(12 * 14 * 260 / 1e5)
    assert changes["policy"]["background"] == pytest.approx(12 * 14 * 260 / 1e5)
    assert changes["log_ratio"]["background"] == pytest.approx(0)


# ---- the pictures ----


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
    """All places, by the definition: inside the picture, no pixel shared."""

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
        ((8, 5), Box(2, 0, 4, 5), [Box(7, 4, 8, 5)]),  # as tall as the picture
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
    # All of the picture but its left third is annotated.
    rows = [{"img_path": f"images/{number}.png", "label": "wall", "box": [16, 0, 48, 40]} for number in range(4)]
    (world / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = [probe.background for probe in plan(records, annotations=Annotations(world / "boxes.jsonl"))]
    assert [place is not None and place.right <= 16 for place in kept] == [True, True, True, False]
    assert kept[3] is None


def test_pictures_without_the_object_must_fit(world: Path) -> None:
    records = records_of(world)
    (world / "removed" / "images" / "1.png").unlink()
    Image.new("RGB", (9, 9)).save(world / "removed" / "images" / "2.png")
    with pytest.raises(DataError) as error:
        plan(records, removed_root=world / "removed")
    assert "2 of 4 records" in str(error.value)
    assert "record 2: --removed_root" in str(error.value) and "1.png: no such file" in str(error.value)
    assert "9 x 9 pixels, the picture 48 x 40" in str(error.value)


# ---- the numbers ----


def measurement(picture: str, hidden: float, background: float | None) -> Measurement:
    """A record whose clean log-probability is -10 under the policy and -12 under the reference."""
    policy = {CLEAN: -10.0, "hidden": -10 + hidden} | ({} if background is None else {"background": -10 + background})
    return Measurement(picture, picture, policy, dict.fromkeys(policy, -12.0))


def test_background_and_hidden_are_compared_on_the_records_that_have_both() -> None:
    """Hidden -4, -2 and -9, background -1 and 0: means -5 and -0.5, and the ratio is -0.5 / -3, not -0.5 / -5."""
    summary = summarize([measurement("a", -4, -1), measurement("b", -2, 0), measurement("c", -9, None)])
    changes, artefact = summary.changes["log_ratio"], summary.artefact["log_ratio"]
    means = [changes["hidden"].mean, changes["background"].mean, artefact.hidden.mean]
    assert means == pytest.approx([-5, -0.5, -3])
    assert [changes["hidden"].records, changes["background"].records, artefact.hidden.records] == [3, 2, 2]
    assert artefact.ratio == pytest.approx(1 / 6)
    assert (summary.records, summary.pictures, summary.without_background) == (3, 3, 1)
    assert summary.changes["reference"]["hidden"].mean == 0


def test_intervals_are_over_pictures_not_records() -> None:
    """Fifty records of one picture say no more than one: with two pictures a draw is one, the other or both."""
    many = [measurement("a", -4, -1)] * 50 + [measurement("./b", -2, -1)] * 50
    assert summarize(many).changes["policy"]["hidden"].interval == pytest.approx((-4, -2))
    assert summarize(many).pictures == 2
    alone = summarize(many[:50])
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
