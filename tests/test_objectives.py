"""The comparison of objectives: its statistics by hand arithmetic, and what its choices are allowed to see."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import ROOT


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_path() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


def counters(step: int, chair: float, cover: float) -> dict[str, float]:
    """Of 100 names and 100 objects."""
    return {"step": step, "chair_score": chair, "chair_num": 100, "safe_cover_score": cover, "safe_cover_num": 100}


def test_students_t_is_that_of_the_printed_tables() -> None:
    from objectives_report import t_quantile, t_upper

    # two-sided 95 %: 12.706, 4.303, 2.776, 2.262 for 1, 2, 4, 9 degrees of freedom
    for df, quantile in ((1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262)):
        assert t_quantile(df) == pytest.approx(quantile, abs=1e-3)
    assert t_upper(4, 0.0) == pytest.approx(0.5)
    # the density falls as t^-(df + 1) far out: ten times t, 10^4 times less
    assert t_upper(4, 500.0) / t_upper(4, 5000.0) == pytest.approx(1e4, rel=1e-3)
    # one degree of freedom is Cauchy's distribution: P(T > 1) = 1/4
    assert t_upper(1, 1.0) == pytest.approx(0.25, abs=1e-9)


def test_the_interval_of_a_mean() -> None:
    """1, 2, 3: mean 2, standard deviation 1, error 1/sqrt(3) = 0.5774, half 4.3027 * 0.5774 = 2.4841."""
    from objectives_report import spread

    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    # t = 2 / 0.5774 = 3.4641 with 2 degrees of freedom, where P(T > t) = 1/2 - t / (2 sqrt(2 + t^2))
    assert found.p == pytest.approx(1 - 3.4641 / (2 + 3.4641**2) ** 0.5, abs=1e-4)


def test_cover_is_compared_on_the_line_between_two_checkpoints() -> None:
    """CHAIR falls from 14 to 10 and 6. 6 below the base is 8, halfway between 78 and 70: 74, or 6 under the base."""
    from objectives_report import cover_after

    chair, cover = [14, 10, 6], [80, 78, 70]
    assert cover_after(chair, cover, 6) == pytest.approx(-6)
    assert cover_after(chair, cover, 4) == pytest.approx(-2)
    assert cover_after(chair, cover, 9) is None


def test_an_interval_of_a_percentage_ends_where_percentages_end() -> None:
    """98, 99, 100: 99 +- 2.4841, which would reach 101.5; a difference of as much may."""
    from objectives_report import difference, percentage

    assert percentage([98.0, 99.0, 100.0]) == "99.0 [96.5, 100.0]"
    assert percentage([0.0, 1.0, 2.0]) == "1.0 [0.0, 3.5]"
    assert difference([98.0, 99.0, 100.0]) == "+99.0 [+96.5, +101.5]"


def test_the_tables_shown_are_those_of_the_results_shown() -> None:
    from objectives_report import LEGEND, markdown

    folder = ROOT / "docs" / "evidence"
    assert (folder / "tables.md").read_text() == LEGEND + markdown(json.loads((folder / "results.json").read_text()))


def test_holms_correction_by_hand() -> None:
    """0.01 of three counts three times, 0.03 of the two that are left twice; 0.04 not less than that."""
    from image_terms_report import holm

    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_a_choice_on_the_edge_of_what_was_tried_is_said() -> None:
    from image_terms_report import on_edge

    tried = [{"learning_rate": rate, "step": step} for rate in (1e-3, 2e-3, 4e-3) for step in (5, 10, 15)]
    tried += [{"learning_rate": 1e-3, "step": 0}, {"learning_rate": 2e-3, "step": 20}]
    assert on_edge({"learning_rate": 2e-3, "step": 5, "tried": tried}) == "no"
    assert on_edge({"learning_rate": 2e-3, "step": 20, "tried": tried}) == "step"
    assert on_edge({"learning_rate": 4e-3, "step": 15, "tried": tried}) == "lr, step"
    assert on_edge({"learning_rate": 1e-3, "step": 0, "tried": tried}) == "no"  # the base itself


def test_what_is_tried_grows_until_the_best_setting_lies_inside() -> None:
    """0.0006, 0.0015 and 0.004 have 0.00024 and 0.01 for neighbours; 25 steps become 50, and 200 at most."""
    from image_terms import Choice, wider

    first = dict.fromkeys((6e-4, 1.5e-3, 4e-3), 25)
    assert wider(first, Choice(1.5e-3, 20)) == first
    assert wider(first, Choice(6e-4, 20)) == {**first, 2.4e-4: 25}
    assert wider(first, Choice(4e-3, 25)) == {6e-4: 25, 1.5e-3: 25, 4e-3: 50, 1e-2: 25}
    assert wider({**first, 1.5e-3: 200}, Choice(1.5e-3, 200)) == {**first, 1.5e-3: 200}
    assert wider(first, Choice(6e-4, 0)) == first  # the base itself


def test_methods_are_compared_seed_by_seed() -> None:
    """CHAIR 10, 12, 14 against 11, 13, 15: -1 on every seed, and no interval about it."""
    from objectives_report import paired_table

    def method(chair: list[float]) -> dict[str, Any]:
        values = {"chair": chair, "cover": [80.0] * 3, "f": [85.0] * 3}
        return {"seeds": [0, 1, 2], "at step": values, "curve": [{"step": 0, **values}]}

    row = paired_table({"a": method([10, 12, 14]), "b": method([11, 13, 15])}, "b").splitlines()[2]
    assert row == "| a | -1.0 [-1.0, -1.0] | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | - | - | 1.000 |"


def test_f_is_the_harmonic_mean_of_precision_and_cover() -> None:
    from objectives import summary

    assert summary(counters(0, 20, 60))["f"] == pytest.approx(2 * 80 * 60 / 140)


def test_choices_are_made_on_validation_scenes_of_the_choice_seeds_alone(tmp_path: Path) -> None:
    """Only those scores are there to read: a choice that looked at anything else would have to train a model."""
    from objectives import CHOICE_SEEDS, LEARNING_RATES, SAVE_EVERY, STEPS, Bench, choose, grid

    bench = Bench(tmp_path)
    best = (LEARNING_RATES[1], 2 * SAVE_EVERY)
    (tmp_path / "scores" / "validation").mkdir(parents=True)
    for run in grid("mdpo"):
        curve: list[dict[str, Any]] = [counters(0, 0, 100)]  # the base, which is no choice
        for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY):
            good = (run.learning_rate, step) == best
            # another point is best on one of the seeds, and bad on the other
            odd = (run.learning_rate, step, run.seed) == (LEARNING_RATES[0], SAVE_EVERY, CHOICE_SEEDS[0])
            curve.append(counters(step, 1 if odd else 5 if good else 10, 95 if odd else 90 if good else 80))
        (tmp_path / "scores" / "validation" / f"{run.name}.json").write_text(json.dumps(curve))
    choice = choose(bench, "mdpo")
    assert (choice.learning_rate, choice.step) == best
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_runs_that_differ_have_folders_of_their_own() -> None:
    from objectives import METHODS, Run

    runs = [Run(method, seed, rate) for method in METHODS for seed in (0, 1) for rate in (1e-3, 3e-3)]
    runs += [Run("mdpo", 0, 1e-3, beta=0.3), Run("mdpo", 0, 1e-3, base="naive"), Run("mdpo", 0, 1e-3, pairs="natural")]
    assert len({run.name for run in runs}) == len(runs)


def test_a_variant_must_be_above_every_reference() -> None:
    """F 1 above one reference on every seed, but not above the other: p is 1. Above both: the larger of the two p."""
    from image_terms_report import question_p
    from objectives_report import spread

    def cell(*f: float) -> dict[str, Any]:
        return {"test": {"f": list(f)}}

    new, low, high = cell(81.0, 82.1, 83.2), cell(80.0, 81.0, 82.0), cell(82.0, 82.0, 84.0)
    assert question_p(new, [low, high]) == 1.0
    high = cell(80.9, 82.2, 82.0)
    assert question_p(new, [low, high]) == pytest.approx(spread([0.1, -0.1, 1.2]).p)


def test_the_search_reads_validation_scenes_of_the_choice_seeds_alone_and_goes_on_to_where_the_best_is(
    tmp_path: Path,
) -> None:
    """Only those scores are there to read: best is 0.004 after 30 steps, which neither the first rates nor the first 25
    steps show inside."""
    from image_terms import CHOICE_SEEDS, Cell, Run, search
    from objectives import SAVE_EVERY, Bench

    cell, folder = Cell("margins", "naive"), tmp_path / "scores" / "validation"
    (folder / cell.name).mkdir(parents=True)
    asked: list[tuple[float, int]] = []

    def do(tasks: Sequence[tuple[Any, tuple[Run]]], what: str) -> None:
        for _, (run,) in tasks:
            asked.append((run.learning_rate, run.steps))
            for step in range(SAVE_EVERY, run.steps + 1, SAVE_EVERY):
                near = 30 - abs(30 - step) if run.learning_rate == 4e-3 else 10
                file = folder / cell.name / f"{run.seed}-lr{run.learning_rate:g}-{step}.json"
                file.write_text(json.dumps(counters(step, 10, 50 + near)))

    for seed in CHOICE_SEEDS:
        (folder / f"base-naive-{seed}.json").write_text(json.dumps(counters(0, 10, 50)))
    found = search(Bench(tmp_path), do, cell)
    assert (found["learning_rate"], found["step"], found["steps"]) == (4e-3, 30, 50)
    assert {rate for rate, _ in asked} == {6e-4, 1.5e-3, 4e-3, 1e-2}
    assert {steps for rate, steps in asked if rate == 4e-3} == {25, 50}
    assert len(found["tried"]) == 1 + 5 + 5 + 10 + 5
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_cells_that_differ_have_folders_of_their_own() -> None:
    from image_terms import CELLS

    assert len(CELLS) == len({cell.name for cell in CELLS}) == 24 + 4 + 9


def test_a_control_masks_no_object_a_removed_one_is_not_drawn_and_a_flipped_pair_denies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import image_terms
    from objectives import Bench

    from listwise_preference.small_world import data
    from listwise_preference.small_world.scenes import NATURAL

    monkeypatch.setattr(image_terms, "TRAINING_SCENES", 6)
    bench = Bench(tmp_path)
    folder = image_terms.scenes(bench, "training", 0)
    scenes = data.scenes(NATURAL, 6, "second training 0")
    # A kind that is not there in place of one that is: six pairs without any model.
    said = [(number, f"A {'dog' if 'dog' not in scene.visible else 'cat'}.") for number, scene in enumerate(scenes, 1)]
    pairs = data.preference_pairs(scenes, said, matched=False)
    assert len(pairs) > 3
    for kind in image_terms.KINDS:
        stem = f"naive-{kind}"
        data.write_json(folder / f"pairs-{stem}.json", pairs)
        bench.make_lists(folder, folder / f"pairs-{stem}.json", folder / f"lists-{stem}.jsonl")
    (folder / "paired-naive").touch()

    lists = [json.loads(line) for line in (folder / "lists-naive-truth.jsonl").read_text().splitlines()]
    boxes = [json.loads(line) for line in (folder / "annotations.jsonl").read_text().splitlines()]
    control = image_terms.with_control(bench, "naive", 0)["ranked_image_folders"]
    removed = image_terms.with_removed(bench, "naive", 0)["ranked_image_folders"]
    flip = image_terms.with_flipped(bench, "naive", 0)
    assert [Path(one).name for one in control] == ["1", "2", "3", "4", "5", "6"]
    assert [Path(one).name for one in removed] == ["1", "2", "3", "4", "5"]
    flipped = {one["img_path"]: one for one in json.loads(Path(flip["pairs"]).read_text())}
    assert len(flipped) == len(pairs) + len(lists)
    for line in lists:
        name, scene = line["img_path"], scenes[line["id"] - 1]
        first, second, hidden = (np.asarray(Image.open(Path(control[level]) / name)) for level in (0, 1, 5))
        assert (first == np.asarray(scene.draw())).all()
        for box in (one["box"] for one in boxes if one["img_path"] == name):
            left, top, right, bottom = box
            assert (first[top:bottom, left:right] == second[top:bottom, left:right]).all()
        assert (first != second).any()
        left, top, right, bottom = line["box"]
        assert (first[top:bottom, left:right] != hidden[top:bottom, left:right]).any()
        last = np.asarray(Image.open(Path(removed[4]) / name))
        assert (last == np.asarray(scene.without(line["phrase"]).draw())).all() and (last != first).any()
        assert (np.asarray(Image.open(Path(flip["image_root"]) / f"masked-{name}")) == hidden).all()
        pair = flipped[f"masked-{name}"]
        assert pair["rejected"] == flipped[name]["chosen"]
        assert set(data.mentioned(pair["chosen"])) == set(data.mentioned(pair["rejected"])) - {line["phrase"]}


def test_the_tables_of_the_second_round_are_those_of_its_results() -> None:
    from image_terms_report import LEGEND, markdown

    folder = ROOT / "docs" / "evidence"
    results = json.loads((folder / "image_terms.json").read_text())
    assert (folder / "image_terms_tables.md").read_text() == LEGEND + markdown(results)


@pytest.mark.slow
def test_the_second_round_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of one small model, few scenes: stopped in the middle, the same call does the rest, and a third one no
    work. The references and a variant are measured, and what was not run is not reported."""
    import image_terms
    import objectives
    from objectives import Bench

    small = {
        "SEEDS": (0, 1), "CHOICE_SEEDS": (1,), "TRAINING_SCENES": 60, "VALIDATION_SCENES": 12, "TEST_SCENES": 12,
        "RESPONSES": 4, "PAIRS": 8, "STEPS": 5, "MOST_STEPS": 5, "FIRST_RATES": (1e-3,), "LEARNING_RATES": (1e-3,),
        "CELLS": [image_terms.Cell(method) for method in ("dpo+anchor", "lpoi-5", "mdpo", "flip")],
        "SETTINGS": {**image_terms.SETTINGS, "seeds": (0, 1)},
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(image_terms, name, value)
    monkeypatch.setattr(objectives, "PROBE_SCENES", 8)
    bench, done = Bench(tmp_path / "work"), []
    for base in image_terms.BASES:
        for seed in (0, 1):
            shutil.copytree(ROOT / "checkpoints" / "small-idefics2", bench.base_folder(base, seed))
            (bench.base_folder(base, seed) / "done").touch()

    def do(tasks: Sequence[tuple[Any, tuple[Any, ...]]], what: str) -> None:
        for step, arguments in dict.fromkeys(tasks):
            if what == "mdpo-robust-truth-beta0.1, test" and len(done) < 2:
                raise KeyboardInterrupt
            before = sorted(path for path in bench.work.rglob("*") if path.is_file())
            step(bench, *arguments)
            if sorted(path for path in bench.work.rglob("*") if path.is_file()) != before:
                done[-1].append(what)

    results = []
    for call in range(3):
        done.append([])
        with contextlib.nullcontext() if call else pytest.raises(KeyboardInterrupt):
            image_terms.everything(bench, tmp_path, do)
        results.append(json.loads((tmp_path / "image_terms.json").read_text()))
    assert [len(one["cells"]) for one in results] == [2, 4, 4]
    assert not any(what.startswith(("pairs", "dpo+anchor", "lpoi-5")) for what in done[1]) and done[2] == []
    assert results[1] == results[2] and results[1]["cells"][:2] == results[0]["cells"]
    assert all(len(cell["test"]["f"]) == 2 for cell in results[2]["cells"])
    tables = (tmp_path / "image_terms_tables.md").read_text()
    assert "| robust | flip |" in tables and "margins" not in tables
