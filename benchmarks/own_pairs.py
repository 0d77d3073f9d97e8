"""Pairs of a model's own responses against pairs whose chosen response is the truth, in the small world.

    python benchmarks/own_pairs.py           # runs/own_pairs -> docs/evidence/own_pairs{.json,_tables.md}

Each base responds eight times to every training scene. ``make_pairs.py`` makes pairs of these responses ("own"); the
right description against one of the same responses that names something absent is the other kind ("truth"). A method is
trained on as many pairs of each, its settings are chosen on validation scenes, and test scenes are described once, at
the chosen settings. What is compared, in which order and how it is judged stands in docs/evidence/protocol-2.md.

All work is kept below ``--work``: the same command goes on after a stop, and what is there is not made again. What was
measured, seed by seed, goes into own_pairs.json, from which ``own_pairs_report.py`` makes the tables.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from objectives import (
    BATCH,
    SAVE_EVERY,
    SHORT_RUN,
    STEPS,
    Bench,
    by_name,
    in_processes,
    kept,
    nltk_data,
    opened,
    summary,
)
from objectives import LEARNING_RATES as _FIRST_RATES
from own_pairs_report import report

import lpoi
from listwise_preference.files import read_records, write_atomic
from listwise_preference.pair_making import command as pair_making
from listwise_preference.small_world import data
from listwise_preference.small_world.scenes import NATURAL

Do = Callable[..., None]  # carries out tasks
Counters = dict[str, float]  # AMBER's, summed over images

SEEDS = (0, 1, 2, 3, 4)
CHOICE_SEEDS = (0, 4)
KINDS = ("own", "truth")
# In the order in which they are asked; what each changes in lpoi.py's recipe.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "dpo+anchor": {"objective": "dpo", "loss_weights": [1.0, 1.0, 0.0]},
    "lpoi-5": {},
}
LEARNING_RATES = (*_FIRST_RATES, 4e-3)
TRAINING_SCENES, VALIDATION_SCENES, TEST_SCENES = 500, 300, 1000
RESPONSES, PAIRS = 8, 200

SETTINGS: Mapping[str, Any] = {
    "seeds": SEEDS,
    "choice seeds": CHOICE_SEEDS,
    "methods": METHODS,
    "learning rates": LEARNING_RATES,
    "steps": STEPS,
    "checkpoint every": SAVE_EVERY,
    "batch": BATCH,
    "training scenes": TRAINING_SCENES,
    "validation scenes": VALIDATION_SCENES,
    "test scenes": TEST_SCENES,
    "responses": RESPONSES,
    "pairs": PAIRS,
}


@dataclass(frozen=True)
class Run:
    """One training run; ``kind`` is that of its pairs."""

    method: str
    kind: str
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"{self.method}-{self.kind}-{self.seed}-lr{self.learning_rate:g}"


@dataclass(frozen=True)
class Choice:
    """Learning rate and number of steps, by validation scenes alone."""

    learning_rate: float
    step: int


# ---- what is made once ----


def scenes(bench: Bench, what: str, seed: int) -> Path:
    """Scenes of this comparison; other names, other scenes."""
    count = {"training": TRAINING_SCENES, "validation": VALIDATION_SCENES}.get(what, TEST_SCENES)
    return bench.scenes(f"own {what}", seed, count)


def pairs(bench: Bench, seed: int) -> tuple[Path, dict[str, tuple[Path, Path]]]:
    """The image root, and pairs and lists of each kind: as many of both, all from the same responses."""
    folder = scenes(bench, "training", seed)
    files = {kind: (folder / f"pairs-{kind}.json", folder / f"lists-{kind}.jsonl") for kind in KINDS}
    if not (folder / "paired").is_file():
        made = folder / "made.jsonl"
        options: dict[str, Any] = {
            "model_name_or_path": bench.base("robust", seed),
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
        said = [(one["prompt_id"], one["response"]) for one in read_records(made.with_name("made.responses.jsonl"))]
        drawn = data.scenes(NATURAL, TRAINING_SCENES, f"own training {seed}")
        found = {
            "own": [{key: one[key] for key in ("id", "img_path", "prompt", "chosen", "rejected")}
                    for one in read_records(made)],
            "truth": data.preference_pairs(drawn, said, seed=seed),
        }  # fmt: skip
        data.write_json(folder / "found.json", {kind: len(of) for kind, of in found.items()})
        count = min(PAIRS, *map(len, found.values()))
        for kind, (file, lists) in files.items():
            data.write_json(file, found[kind][:count])
            bench.make_lists(folder, file, lists, "--restart")
        (folder / "paired").touch()
    return folder / "image", files


def train(bench: Bench, run: Run) -> Path:
    """The run's folder with its checkpoints."""

    def changes() -> Mapping[str, Any]:
        _, files = pairs(bench, run.seed)
        return {**METHODS[run.method], "image_lists": str(files[run.kind][1])}

    return fit(bench, run, changes)


def fit(bench: Bench, run: Run, changes: Callable[[], Mapping[str, Any]]) -> Path:
    """Train where it is not done: the run's folder. ``changes`` to the recipe name the images after the first too."""
    folder = bench.work / "runs" / run.name
    if not (folder / "final" / "adapter_model.safetensors").is_file():
        from listwise_preference.training.command import main

        image_root, files = pairs(bench, run.seed)
        shutil.rmtree(folder, ignore_errors=True)
        recipe = lpoi.RECIPE | {
            "model_name_or_path": str(bench.base("robust", run.seed)),
            "output_dir": str(folder),
            "pairs": str(files[run.kind][0]),
            "image_root": str(image_root),
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            **SHORT_RUN,
            **changes(),
        }
        main(recipe, [])
    return folder


def scores(bench: Bench, run: Run, step: int, what: str, train: Callable[[Bench, Run], Path] = train) -> Counters:
    """AMBER's counters of a checkpoint on scenes of this name."""

    def made() -> Counters:
        base = bench.base("robust", run.seed)
        return bench.score(base, train(bench, run) / f"checkpoint-{step}", scenes(bench, what, run.seed), "generative")

    result: Counters = kept(bench.work / "scores" / what / f"{run.name}-{step}.json", made)
    return result


def base_scores(bench: Bench, seed: int, what: str = "test") -> Counters:
    """The same of a base."""

    def made() -> Counters:
        return bench.score(bench.base("robust", seed), None, scenes(bench, what, seed), "generative")

    result: Counters = kept(bench.work / "scores" / what / f"base-{seed}.json", made)
    return result


# ---- the plan ----


def grid(method: str, kind: str) -> list[tuple[Choice, list[Run]]]:
    """What a choice is made from: each setting, and its runs."""
    return [
        (Choice(rate, step), [Run(method, kind, seed, rate) for seed in CHOICE_SEEDS])
        for rate in LEARNING_RATES
        for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)
    ]


def validation(bench: Bench, method: str, kind: str) -> list[dict[str, Any]]:
    """F of every setting on the validation scenes, one a choice seed."""
    return [
        {
            "learning_rate": setting.learning_rate,
            "step": setting.step,
            "f": [summary(scores(bench, run, setting.step, "validation"))["f"] for run in runs],
        }
        for setting, runs in grid(method, kind)
    ]


def choose(bench: Bench, method: str, kind: str) -> Choice:
    """The setting with the best mean F."""
    best = max(validation(bench, method, kind), key=lambda of: sum(of["f"]))
    return Choice(best["learning_rate"], best["step"])


def prepare(bench: Bench, do: Do) -> None:
    """What every question needs."""
    do([(Bench.base, ("robust", seed)) for seed in SEEDS], what="pre-training")
    do([(scenes, (what, seed)) for seed in SEEDS for what in ("training", "validation", "test")], what="scenes")
    do([(pairs, (seed,)) for seed in SEEDS], what="pairs")
    do([(base_scores, (seed,)) for seed in SEEDS], what="bases")


def measure(bench: Bench, do: Do, method: str) -> None:
    """One question: the settings of both kinds of pairs, then the test."""
    settings = [(setting, run) for kind in KINDS for setting, runs in grid(method, kind) for run in runs]
    do([(train, (run,)) for _, run in settings], what=f"{method}, training to choose")
    do([(scores, (run, setting.step, "validation")) for setting, run in settings], what=f"{method}, choosing")
    chosen = [(choose(bench, method, kind), kind) for kind in KINDS]
    runs = [(Run(method, kind, seed, of.learning_rate), of.step) for of, kind in chosen for seed in SEEDS]
    do([(train, (run,)) for run, _ in runs], what=f"{method}, training")
    do([(scores, (run, step, "test")) for run, step in runs], what=f"{method}, test")


def collect(bench: Bench, methods: Sequence[str]) -> dict[str, Any]:
    """Everything that is reported of these methods, seed by seed."""
    found = [json.loads((scenes(bench, "training", seed) / "found.json").read_text()) for seed in SEEDS]
    measured: dict[str, Any] = {method: {} for method in methods}
    for method, kind in product(methods, KINDS):
        of = choose(bench, method, kind)
        runs = [Run(method, kind, seed, of.learning_rate) for seed in SEEDS]
        measured[method][kind] = {
            "learning_rate": of.learning_rate,
            "step": of.step,
            "validation": validation(bench, method, kind),
            "test": by_name([summary(scores(bench, run, of.step, "test")) for run in runs]),
        }
    return {
        "settings": SETTINGS,
        "pairs": by_name(found),
        "base": by_name([summary(base_scores(bench, seed)) for seed in SEEDS]),
        "methods": measured,
    }


def main() -> None:
    """Do what is not done yet; report after every question."""
    bench, args = opened(__doc__, Path("runs/own_pairs"), "settings.json", SETTINGS)

    def all_of_it(do: Do) -> None:
        prepare(bench, do)
        for number, method in enumerate(METHODS, start=1):
            measure(bench, do, method)
            results = collect(bench, [*METHODS][:number])
            write_atomic(args.output / "own_pairs.json", json.dumps(results, indent=1) + "\n")
            report(args.output)

    in_processes(bench, args.workers, all_of_it)


if __name__ == "__main__":
    main()
