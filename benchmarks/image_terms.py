"""What answers to the criticisms of an image term do to hallucination in the small world.

    python benchmarks/image_terms.py         # runs/own_pairs -> docs/evidence/image_terms{.json,_tables.md,.png}

Every variant changes the list term and is compared with DPO + anchor, mDPO and LPOI. Bases, pairs, and the scenes for
training and validation are those of ``own_pairs.py``: its work below ``--work`` is used, and made where it is missing.
The test scenes are others. What is compared and how it is judged stands in docs/evidence/protocol-2.md.

The same command goes on after a stop. What was measured, seed by seed, goes into image_terms.json after each method;
``image_terms_report.py`` makes the tables of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from image_terms_report import report
from objectives import SAVE_EVERY, STEPS, Bench, by_name, in_processes, opened, summary
from own_pairs import (
    CHOICE_SEEDS,
    LEARNING_RATES,
    PAIRS,
    SEEDS,
    TEST_SCENES,
    TRAINING_SCENES,
    VALIDATION_SCENES,
    Choice,
    Counters,
    Do,
    Run,
    base_scores,
    fit,
    grid,
    pairs,
    scenes,
)
from own_pairs import METHODS as FIRST
from own_pairs import scores as scores_of

from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.files import write_atomic
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.probe.measure import background_box
from listwise_preference.small_world import data
from listwise_preference.small_world.scenes import NATURAL

TEST = "test of image terms"  # scenes that own_pairs.py does not describe
KIND = "truth"  # of the pairs
Recipe = Mapping[str, Any]

REFERENCES: Mapping[str, Recipe] = {**FIRST, "mdpo": {"objective": "mdpo"}}
# In the order in which they are asked. The list term counts 1 / (L - 1), one a comparison.
VARIANTS: Mapping[str, Recipe] = {
    "margins": {"loss_weights": ["listwise=0", "margin_list=0.25"]},
    "chosen only": {"loss_weights": ["listwise=0.25"]},
    "control": {"loss_weights": ["listwise=0", "tied_list=0.2"]},
    "margins, chosen only, mean fill": {"loss_weights": ["listwise=0", "margin_list=0.25"], "fill": "mean"},
    "removed": {"loss_weights": ["listwise=0.25"]},
}
# No question: what the variants of one change were changed from.
PLAIN: Mapping[str, Recipe] = {"plain": {"loss_weights": ["listwise=0.25"]}}
RECIPES = {**REFERENCES, **VARIANTS, **PLAIN}

SETTINGS: Mapping[str, Any] = {
    "seeds": SEEDS,
    "choice seeds": CHOICE_SEEDS,
    "references": REFERENCES,
    "variants": VARIANTS,
    "plain": PLAIN,
    "learning rates": LEARNING_RATES,
    "steps": STEPS,
    "checkpoint every": SAVE_EVERY,
    "training scenes": TRAINING_SCENES,
    "validation scenes": VALIDATION_SCENES,
    "test scenes": TEST_SCENES,
    "pairs": PAIRS,
}


# ---- images after the first ----


def lists(bench: Bench, seed: int, name: str, *options: str) -> Path:
    """Lists of the pairs, made with other options of ``make_image_lists.py``."""
    image_root, files = pairs(bench, seed)
    file = image_root.parent / f"lists-{KIND}-{name}.jsonl"
    if not file.is_file():
        bench.make_lists(image_root.parent, files[KIND][0], file, "--restart", *options)
    return file


def folders(bench: Bench, seed: int, name: str, change: Callable[[Mapping[str, Any], list[Any]], None]) -> Recipe:
    """Folders of the lists' images after ``change``, which gets a line of the lists and its images, best first."""
    image_root, files = pairs(bench, seed)
    root = image_root.parent / f"images-{name}"
    if not (root / "done").is_file():
        for line in files[KIND][1].read_text().splitlines():
            record = json.loads(line)
            levels = list(ranked_images(open_image(image_root / record["img_path"]), Box(*record["box"]), Drawing()))
            change(record, levels)
            for number, level in enumerate(levels, start=1):
                folder = root / str(number)
                folder.mkdir(parents=True, exist_ok=True)
                level.save(folder / record["img_path"])
        (root / "done").touch()
    ranked = sorted(str(folder) for folder in root.iterdir() if folder.is_dir())
    return {"image_root": ranked[0], "ranked_image_folders": ranked, "image_lists": None}


def with_control(bench: Bench, seed: int) -> Recipe:
    """Behind the untouched image one in which a box is masked where no object is: as large as the object's, or as the
    first of three quarters, a half, a quarter of its sides for which there is a place."""
    image_root, _ = pairs(bench, seed)
    names = [path.name for path in image_root.iterdir()]
    annotations = Annotations(image_root.parent / "annotations.jsonl", names)

    def change(record: Mapping[str, Any], levels: list[Any]) -> None:
        box = Box(*record["box"])
        found = annotations.boxes(record["img_path"], levels[0].size)
        assert isinstance(found, list)
        objects = [box, *(one.box for one in found)]
        sizes = [(max(1, box.width * part // 4), max(1, box.height * part // 4)) for part in (4, 3, 2, 1)]
        places = (background_box(levels[0].size, Box(0, 0, *size), objects, record["img_path"]) for size in sizes)
        free = next(place for place in places if place is not None)
        levels.insert(1, ranked_images(levels[0], free, Drawing(2))[-1])

    return folders(bench, seed, "control", change)


def with_removed(bench: Bench, seed: int) -> Recipe:
    """In place of the fully masked image the scene drawn without the object."""
    drawn = data.scenes(NATURAL, TRAINING_SCENES, f"own training {seed}")

    def change(record: Mapping[str, Any], levels: list[Any]) -> None:
        levels[-1] = drawn[record["id"] - 1].without(record["phrase"]).draw()

    return folders(bench, seed, "removed", change)


def images(bench: Bench, method: str, seed: int) -> Recipe:
    """What a method's list is made of."""
    match method:
        case "control":
            return with_control(bench, seed)
        case "removed":
            return with_removed(bench, seed)
        case "chosen only" | "margins, chosen only, mean fill":
            return {"image_lists": str(lists(bench, seed, "chosen_only", "--prefer", "chosen_only"))}
    return {"image_lists": str(pairs(bench, seed)[1][KIND][1])}


# ---- the plan ----


def train(bench: Bench, run: Run) -> Path:
    """The run's folder with its checkpoints."""
    return fit(bench, run, lambda: {**RECIPES[run.method], **images(bench, run.method, run.seed)})


def scores(bench: Bench, run: Run, step: int, what: str) -> Counters:
    """AMBER's counters of a checkpoint on scenes of this name."""
    return scores_of(bench, run, step, what, train)


def validation(bench: Bench, method: str) -> list[dict[str, Any]]:
    """F of every setting on the validation scenes, one a choice seed."""
    return [
        {
            "learning_rate": setting.learning_rate,
            "step": setting.step,
            "f": [summary(scores(bench, run, setting.step, "validation"))["f"] for run in runs],
        }
        for setting, runs in grid(method, KIND)
    ]


def choose(bench: Bench, method: str) -> Choice:
    """The setting with the best mean F."""
    best = max(validation(bench, method), key=lambda of: sum(of["f"]))
    return Choice(best["learning_rate"], best["step"])


def prepare(bench: Bench, do: Do) -> None:
    """What every method needs."""
    do([(Bench.base, ("robust", seed)) for seed in SEEDS], what="pre-training")
    names = ("training", "validation", TEST)
    do([(scenes, (what, seed)) for seed in SEEDS for what in names], what="scenes")
    do([(pairs, (seed,)) for seed in SEEDS], what="pairs")
    do([(base_scores, (seed, TEST)) for seed in SEEDS], what="bases")


def measure(bench: Bench, do: Do, method: str) -> None:
    """One method: its setting, then the test."""
    do([(images, (method, seed)) for seed in SEEDS], what=f"{method}, images")
    settings = [(setting, run) for setting, runs in grid(method, KIND) for run in runs]
    do([(train, (run,)) for _, run in settings], what=f"{method}, training to choose")
    do([(scores, (run, setting.step, "validation")) for setting, run in settings], what=f"{method}, choosing")
    of = choose(bench, method)
    runs = [Run(method, KIND, seed, of.learning_rate) for seed in SEEDS]
    do([(train, (run,)) for run in runs], what=f"{method}, training")
    do([(scores, (run, of.step, TEST)) for run in runs], what=f"{method}, test")


def collect(bench: Bench, methods: Sequence[str]) -> dict[str, Any]:
    """Everything that is reported of these methods, seed by seed."""
    measured = {}
    for method in methods:
        of = choose(bench, method)
        runs = [Run(method, KIND, seed, of.learning_rate) for seed in SEEDS]
        measured[method] = {
            "learning_rate": of.learning_rate,
            "step": of.step,
            "validation": validation(bench, method),
            "test": by_name([summary(scores(bench, run, of.step, TEST)) for run in runs]),
        }
    base = by_name([summary(base_scores(bench, seed, TEST)) for seed in SEEDS])
    return {"settings": SETTINGS, "base": base, "methods": measured}


def everything(bench: Bench, output: Path, do: Do) -> None:
    """Measure method after method, and report after each."""
    prepare(bench, do)
    for number, method in enumerate(RECIPES, start=1):
        measure(bench, do, method)
        results = collect(bench, [*RECIPES][:number])
        write_atomic(output / "image_terms.json", json.dumps(results, indent=1) + "\n")
        report(output)


def main() -> None:
    """Do what is not done yet."""
    bench, args = opened(__doc__, Path("runs/own_pairs"), "image_terms.json", SETTINGS)
    in_processes(bench, args.workers, partial(everything, bench, args.output))


if __name__ == "__main__":
    main()
