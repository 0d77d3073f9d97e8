"""Objectives that learn from images after the first, against mDPO, LPOI and DPO + anchor, in the small world.

    python benchmarks/image_terms.py         # runs/image_terms -> docs/evidence/image_terms{.json,_tables.md,.png}

What is compared, in which order and how it is judged stands in docs/evidence/protocol-2.md: variants of the list term
on bases that know masked images and on bases that do not, pairs of a model's own responses against pairs from truth,
and beta. Every cell of it (a method on a kind of base and of pairs, at a beta) has a learning rate and a number of
steps of its own, chosen on validation scenes in a grid that grows until the choice lies inside.

All work is kept below ``--work``: the same command goes on after a stop, and what is there is not made again. What was
measured, seed by seed, goes into image_terms.json, from which ``image_terms_report.py`` makes the tables.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from image_terms_report import report
from objectives import BATCH, SAVE_EVERY, SHORT_RUN, Bench, by_name, in_processes, kept, nltk_data, opened, summary

import lpoi
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.files import read_records, write_atomic
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.pair_making import command as pair_making
from listwise_preference.probe.measure import background_box
from listwise_preference.small_world import data
from listwise_preference.small_world.scenes import NATURAL, Scene
from listwise_preference.small_world.texts import without

Do = Callable[..., None]  # carries out tasks
Counters = dict[str, float]  # AMBER's, summed over images
Recipe = Mapping[str, Any]

BASES = ("robust", "naive")
SEEDS = (0, 1, 2, 3, 4)
CHOICE_SEEDS = (0, 4)
KINDS = ("own", "truth")  # of pairs
TRAINING_SCENES, VALIDATION_SCENES, TEST_SCENES = 500, 300, 1000
RESPONSES, PAIRS = 8, 200

# What each method changes in lpoi.py's recipe.
REFERENCES: Mapping[str, Recipe] = {
    "dpo+anchor": {"objective": "dpo", "loss_weights": [1.0, 1.0, 0.0]},
    "lpoi-5": {},
    "mdpo": {"objective": "mdpo"},
}
MEAN: Recipe = {"fill": "mean", "visual_prompt": "none"}
# In the order in which they are asked. A list term counts 1 / (L - 1), one a comparison.
VARIANTS: Mapping[str, Recipe] = {
    "margins": {"loss_weights": ["listwise=0", "margin_list=0.25"]},
    "chosen only": {"loss_weights": ["listwise=0.25"]},
    "control": {"loss_weights": ["listwise=0", "tied_list=0.2"]},
    "flip": REFERENCES["dpo+anchor"],
    "mean fill": {"loss_weights": ["listwise=0.25"], **MEAN},
    "texture fill": {"loss_weights": ["listwise=0.25"], "fill": "texture", "visual_prompt": "none"},
    "margins, chosen only, mean fill": {"loss_weights": ["listwise=0", "margin_list=0.25"], **MEAN},
    "removed": {"loss_weights": ["listwise=0.25"]},
}
# No question: what the variants of one change were changed from.
PLAIN: Mapping[str, Recipe] = {"plain": {"loss_weights": ["listwise=0.25"]}}
RECIPES = {**REFERENCES, **VARIANTS, **PLAIN}
OWN_PAIRS = ("dpo+anchor", "lpoi-5")
BETA = 0.1
BETAS = (0.3, 0.5, 1.0)
OTHER_BETAS = ("dpo+anchor", "lpoi-5", "margins")  # the first for comparison

# Learning rates that may be tried, about 2.5 apart; the search begins with the middle three and this many steps.
LEARNING_RATES = (1.5e-5, 4e-5, 1e-4, 2.4e-4, 6e-4, 1.5e-3, 4e-3, 1e-2, 2.5e-2)
FIRST_RATES = (6e-4, 1.5e-3, 4e-3)
STEPS, MOST_STEPS = 25, 200

SETTINGS: Mapping[str, Any] = {
    "bases": BASES,
    "seeds": SEEDS,
    "choice seeds": CHOICE_SEEDS,
    "references": REFERENCES,
    "variants": VARIANTS,
    "plain": PLAIN,
    "own pairs": OWN_PAIRS,
    "beta": BETA,
    "betas": BETAS,
    "other betas": OTHER_BETAS,
    "learning rates": LEARNING_RATES,
    "first learning rates": FIRST_RATES,
    "steps": STEPS,
    "most steps": MOST_STEPS,
    "checkpoint every": SAVE_EVERY,
    "batch": BATCH,
    "training scenes": TRAINING_SCENES,
    "validation scenes": VALIDATION_SCENES,
    "test scenes": TEST_SCENES,
    "responses": RESPONSES,
    "pairs": PAIRS,
}


@dataclass(frozen=True)
class Cell:
    """What is compared: a method on a kind of base and of pairs, at a beta."""

    method: str
    base: str = "robust"
    pairs: str = "truth"
    beta: float = BETA

    @property
    def name(self) -> str:
        """Of files and folders."""
        method = self.method.replace(", ", "-").replace(" ", "_")
        return f"{method}-{self.base}-{self.pairs}-beta{self.beta:g}"


@dataclass(frozen=True)
class Run:
    """One training run."""

    cell: Cell
    seed: int
    learning_rate: float
    steps: int


@dataclass(frozen=True)
class Choice:
    """Learning rate and number of steps, by validation scenes alone; step 0 is the base itself."""

    learning_rate: float
    step: int


CELLS = (
    *(Cell(method, base) for base in BASES for method in RECIPES),
    *(Cell(method, base, "own") for base in BASES for method in OWN_PAIRS),
    *(Cell(method, beta=beta) for beta in BETAS for method in OTHER_BETAS),
)


# ---- what is made once ----


def scenes(bench: Bench, what: str, seed: int) -> Path:
    """Scenes of this comparison; other names, other scenes."""
    count = {"training": TRAINING_SCENES, "validation": VALIDATION_SCENES, "test": TEST_SCENES}[what]
    return bench.scenes(f"second {what}", seed, count)


def pairs(bench: Bench, base: str, seed: int) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """The image root, and pairs and lists of each kind: as many of both, all from the same responses of the base."""
    folder = scenes(bench, "training", seed)
    files = {kind: (folder / f"pairs-{base}-{kind}.json", folder / f"lists-{base}-{kind}.jsonl") for kind in KINDS}
    if not (folder / f"paired-{base}").is_file():
        made = folder / f"made-{base}.jsonl"
        options: dict[str, Any] = {
            "model_name_or_path": bench.base(base, seed),
            "dtype": "float32",
            "prompts": folder / "data" / "query" / "query_generative.json",
            "image_root": folder / "image",
            "detector": "annotations",
            "annotations": folder / "annotations.jsonl",
            "output": made,
            "responses": RESPONSES,
            "batch_size": 64,
            "max_new_tokens": 40,
            "seed": seed,
        }
        with nltk_data(folder):
            pair_making.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
        responses = read_records(made.with_name(f"made-{base}.responses.jsonl"))
        said = [(one["prompt_id"], one["response"]) for one in responses]
        found = {
            "own": [{key: one[key] for key in ("id", "img_path", "prompt", "chosen", "rejected")}
                    for one in read_records(made)],
            "truth": data.preference_pairs(drawn(seed), said, seed=seed),
        }  # fmt: skip
        data.write_json(folder / f"found-{base}.json", {kind: len(of) for kind, of in found.items()})
        count = min(PAIRS, *map(len, found.values()))
        for kind, (file, lists) in files.items():
            data.write_json(file, found[kind][:count])
            bench.make_lists(folder, file, lists, "--restart")
        (folder / f"paired-{base}").touch()
    return folder / "image", files


def drawn(seed: int) -> list[Scene]:
    """The training scenes themselves."""
    return data.scenes(NATURAL, TRAINING_SCENES, f"second training {seed}")


# ---- images after the first ----


def chosen_only(bench: Bench, base: str, seed: int) -> Recipe:
    """Lists in which the masked object is one that only the chosen response names."""
    image_root, files = pairs(bench, base, seed)
    file = image_root.parent / f"lists-{base}-chosen_only.jsonl"
    if not file.is_file():
        bench.make_lists(image_root.parent, files["truth"][0], file, "--restart", "--prefer", "chosen_only")
    return {"image_lists": str(file)}


def listed(bench: Bench, base: str, seed: int) -> list[tuple[Mapping[str, Any], list[Any]]]:
    """The lines of the lists of pairs from truth, and the images of each, best first."""
    image_root, files = pairs(bench, base, seed)
    lines = [json.loads(line) for line in files["truth"][1].read_text().splitlines()]
    return [
        (line, list(ranked_images(open_image(image_root / line["img_path"]), Box(*line["box"]), Drawing())))
        for line in lines
    ]


def folders(
    bench: Bench, base: str, seed: int, name: str, change: Callable[[Mapping[str, Any], list[Any]], None]
) -> Recipe:
    """Folders of the lists' images after ``change``, which gets a line of the lists and its images, best first."""
    root = scenes(bench, "training", seed) / f"images-{base}-{name}"
    if not (root / "done").is_file():
        for line, levels in listed(bench, base, seed):
            change(line, levels)
            for number, level in enumerate(levels, start=1):
                folder = root / str(number)
                folder.mkdir(parents=True, exist_ok=True)
                level.save(folder / line["img_path"])
        (root / "done").touch()
    ranked = sorted(str(folder) for folder in root.iterdir() if folder.is_dir())
    return {"image_root": ranked[0], "ranked_image_folders": ranked, "image_lists": None}


def with_control(bench: Bench, base: str, seed: int) -> Recipe:
    """Behind the untouched image one in which a box is masked where no object is: as large as the object's, or as the
    first of three quarters, a half, a quarter of its sides for which there is a place."""
    image_root, _ = pairs(bench, base, seed)
    names = [path.name for path in image_root.iterdir()]
    annotations = Annotations(image_root.parent / "annotations.jsonl", names)

    def change(line: Mapping[str, Any], levels: list[Any]) -> None:
        box = Box(*line["box"])
        found = annotations.boxes(line["img_path"], levels[0].size)
        assert isinstance(found, list)
        objects = [box, *(one.box for one in found)]
        sizes = [(max(1, box.width * part // 4), max(1, box.height * part // 4)) for part in (4, 3, 2, 1)]
        places = (background_box(levels[0].size, Box(0, 0, *size), objects, line["img_path"]) for size in sizes)
        free = next(place for place in places if place is not None)
        levels.insert(1, ranked_images(levels[0], free, Drawing(2))[-1])

    return folders(bench, base, seed, "control", change)


def with_removed(bench: Bench, base: str, seed: int) -> Recipe:
    """In place of the fully masked image the scene drawn without the object."""
    untouched = drawn(seed)

    def change(line: Mapping[str, Any], levels: list[Any]) -> None:
        levels[-1] = untouched[line["id"] - 1].without(line["phrase"]).draw()

    return folders(bench, base, seed, "removed", change)


def with_flipped(bench: Bench, base: str, seed: int) -> Recipe:
    """Beside each pair one on the fully masked image: chosen is the chosen response without the object, rejected the
    chosen response."""
    image_root, files = pairs(bench, base, seed)
    root = image_root.parent / f"images-{base}-flip"
    file = image_root.parent / f"pairs-{base}-flip.json"
    if not file.is_file():
        shutil.copytree(image_root, root, dirs_exist_ok=True)
        records = json.loads(files["truth"][0].read_text())
        chosen = {record["id"]: record["chosen"] for record in records}
        for line, levels in listed(bench, base, seed):
            name, whole = f"masked-{line['img_path']}", chosen[line["id"]]
            levels[-1].save(root / name)
            less = without(whole, line["phrase"])
            records.append({"img_path": name, "prompt": records[0]["prompt"], "chosen": less, "rejected": whole})
        for number, record in enumerate(records, start=1):
            record["id"] = number
        data.write_json(file, records)
    return {"pairs": str(file), "image_root": str(root), "image_lists": None}


def images(bench: Bench, cell: Cell, seed: int) -> Recipe:
    """What a cell is trained on."""
    match cell.method:
        case "control":
            return with_control(bench, cell.base, seed)
        case "removed":
            return with_removed(bench, cell.base, seed)
        case "flip":
            return with_flipped(bench, cell.base, seed)
        case "chosen only" | "margins, chosen only, mean fill":
            return chosen_only(bench, cell.base, seed)
    return {"image_lists": str(pairs(bench, cell.base, seed)[1][cell.pairs][1])}


# ---- training, scores, awareness ----


def train(bench: Bench, run: Run) -> Path:
    """The run's folder with its checkpoints."""
    cell = run.cell
    folder = bench.work / "runs" / cell.name / f"{run.seed}-lr{run.learning_rate:g}-{run.steps}"
    if not (folder / "final" / "adapter_model.safetensors").is_file():
        from listwise_preference.training.command import main

        image_root, files = pairs(bench, cell.base, run.seed)
        shutil.rmtree(folder, ignore_errors=True)
        recipe = lpoi.RECIPE | {
            "model_name_or_path": str(bench.base(cell.base, run.seed)),
            "output_dir": str(folder),
            "pairs": str(files[cell.pairs][0]),
            "image_root": str(image_root),
            "seed": run.seed,
            **SHORT_RUN,
            "beta": cell.beta,
            "learning_rate": run.learning_rate,
            # A longer run passes through the checkpoints of a shorter one, so that the number of steps is one setting.
            "lr_scheduler_type": "constant",
            "max_steps": run.steps,
            "ref_cache": str(bench.work / "reference" / f"{cell.base}-{run.seed}"),
            **RECIPES[cell.method],
            **images(bench, cell, run.seed),
        }
        main(recipe, [])
    return folder


def scores(bench: Bench, run: Run, step: int, what: str) -> Counters:
    """AMBER's counters of a checkpoint on validation or test scenes."""

    def made() -> Counters:
        adapter = train(bench, run) / f"checkpoint-{step}"
        return bench.score(bench.base(run.cell.base, run.seed), adapter, scenes(bench, what, run.seed), "generative")

    file = bench.work / "scores" / what / run.cell.name / f"{run.seed}-lr{run.learning_rate:g}-{step}.json"
    result: Counters = kept(file, made)
    return result


def base_scores(bench: Bench, base: str, seed: int, what: str) -> Counters:
    """The same of a base."""

    def made() -> Counters:
        return bench.score(bench.base(base, seed), None, scenes(bench, what, seed), "generative")

    result: Counters = kept(bench.work / "scores" / what / f"base-{base}-{seed}.json", made)
    return result


def validate(bench: Bench, run: Run) -> None:
    """The scores of all its checkpoints."""
    for step in range(SAVE_EVERY, run.steps + 1, SAVE_EVERY):
        scores(bench, run, step, "validation")


def aware(bench: Bench, run: Run, step: int) -> dict[str, Any]:
    """The awareness of a checkpoint on unseen scenes with right descriptions."""

    def made() -> dict[str, Any]:
        adapter = train(bench, run) / f"checkpoint-{step}"
        return asdict(bench.awareness(bench.base(run.cell.base, run.seed), adapter, run.seed, RECIPES[run.cell.method]))

    file = bench.work / "probes" / run.cell.name / f"{run.seed}-lr{run.learning_rate:g}-{step}.json"
    result: dict[str, Any] = kept(file, made)
    return result


# ---- the choice of settings ----


def wider(lengths: Mapping[float, int], best: Choice) -> dict[float, int]:
    """The runs of each learning rate that the best setting of these asks for: its neighbours, and twice the steps where
    it is the last step. The same where it lies inside, or is the base itself.

    Args:
        lengths: steps of the runs at each learning rate.
    """
    longer = dict(lengths)
    if best.step == 0:
        return longer
    place = LEARNING_RATES.index(best.learning_rate)
    for neighbour in LEARNING_RATES[max(0, place - 1) : place + 2]:
        longer.setdefault(neighbour, STEPS)
    if best.step == lengths[best.learning_rate]:
        longer[best.learning_rate] = min(2 * best.step, MOST_STEPS)
    return longer


def tried(bench: Bench, cell: Cell, lengths: Mapping[float, int]) -> list[dict[str, Any]]:
    """F of every setting on the validation scenes, one a choice seed; first the base's."""

    def f(rate: float, step: int, seed: int) -> float:
        if step == 0:
            return summary(base_scores(bench, cell.base, seed, "validation"))["f"]
        return summary(scores(bench, Run(cell, seed, rate, lengths[rate]), step, "validation"))["f"]

    settings = [(min(lengths), 0)]
    settings += [(rate, step) for rate in sorted(lengths) for step in range(SAVE_EVERY, lengths[rate] + 1, SAVE_EVERY)]
    return [
        {"learning_rate": rate, "step": step, "f": [f(rate, step, seed) for seed in CHOICE_SEEDS]}
        for rate, step in settings
    ]


def search(bench: Bench, do: Do, cell: Cell) -> dict[str, Any]:
    """Try settings until the one with the best mean F lies inside those that were tried."""
    lengths = dict.fromkeys(FIRST_RATES, STEPS)
    while True:
        runs = [Run(cell, seed, rate, steps) for rate, steps in lengths.items() for seed in CHOICE_SEEDS]
        do([(validate, (run,)) for run in runs], what=f"{cell.name}, choosing")
        found = tried(bench, cell, lengths)
        best = max(found, key=lambda of: sum(of["f"]))
        if (longer := wider(lengths, Choice(best["learning_rate"], best["step"]))) == lengths:
            steps = lengths[best["learning_rate"]]
            return {"learning_rate": best["learning_rate"], "step": best["step"], "steps": steps, "tried": found}
        lengths = longer


# ---- the plan ----


def prepare(bench: Bench, do: Do) -> None:
    """What every cell needs."""
    both = [(base, seed) for base in BASES for seed in SEEDS]
    do([(Bench.base, one) for one in both], what="pre-training")
    names = ("training", "validation", "test")
    do([(scenes, (what, seed)) for seed in SEEDS for what in names], what="scenes")
    do([(Bench.probe_data, (seed,)) for seed in SEEDS], what="scenes of the probe")
    do([(pairs, one) for one in both], what="pairs")
    do([(base_scores, (*one, what)) for one in both for what in names[1:]], what="bases")


def measure(bench: Bench, do: Do, cell: Cell) -> dict[str, Any]:
    """One cell: its settings, then test and probe, seed by seed."""
    do([(images, (cell, seed)) for seed in SEEDS], what=f"{cell.name}, images")
    of: dict[str, Any] = kept(bench.work / "choices" / f"{cell.name}.json", partial(search, bench, do, cell))
    step, steps = of["step"], of["steps"]
    if step == 0:  # training made it worse at once: the base itself
        counters = [base_scores(bench, cell.base, seed, "test") for seed in SEEDS]
        return {**asdict(cell), **of, "test": by_name([summary(one) for one in counters])}
    # The runs of the choice are there already, and may be longer than the step that was chosen.
    runs = [Run(cell, seed, of["learning_rate"], steps if seed in CHOICE_SEEDS else step) for seed in SEEDS]
    do([(scores, (run, step, "test")) for run in runs], what=f"{cell.name}, test")
    do([(aware, (run, step)) for run in runs], what=f"{cell.name}, awareness")
    return {
        **asdict(cell),
        **of,
        "test": by_name([summary(scores(bench, run, step, "test")) for run in runs]),
        "awareness": awareness([aware(bench, run, step) for run in runs]),
    }


def awareness(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean change of the log-ratio under each condition, and the artefact ratio, one a seed."""
    means = [{name: of["mean"] for name, of in one["changes"]["log_ratio"].items()} for one in found]
    ratios = [one["artefact"]["log_ratio"]["ratio"] for one in found]
    return {**by_name(means), "background / hidden": ratios}


def everything(bench: Bench, output: Path, do: Do) -> None:
    """Measure cell after cell, and report after each."""
    prepare(bench, do)
    results: dict[str, Any] = {"settings": SETTINGS, "pairs": {}, "bases": {}, "cells": []}
    for base in BASES:
        found = [json.loads((scenes(bench, "training", seed) / f"found-{base}.json").read_text()) for seed in SEEDS]
        results["pairs"][base] = by_name(found)
        results["bases"][base] = by_name([summary(base_scores(bench, base, seed, "test")) for seed in SEEDS])
    for cell in CELLS:
        results["cells"].append(measure(bench, do, cell))
        write_atomic(output / "image_terms.json", json.dumps(results, indent=1) + "\n")
        report(output)


def main() -> None:
    """Do what is not done yet."""
    bench, args = opened(__doc__, Path("runs/image_terms"), "settings.json", SETTINGS)
    in_processes(bench, args.workers, partial(everything, bench, args.output))


if __name__ == "__main__":
    main()
