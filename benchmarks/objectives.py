"""What the objectives do to hallucination in the small world: DPO, mDPO and LPOI side by side, with error bars.

    pip install -r requirements-dev.txt      # matplotlib, for the figures
    python benchmarks/objectives.py          # into docs/evidence; an hour and a half on two cores

For every seed a small Idefics2 is pre-trained, describes scenes, and its own descriptions become the rejected answers
of the pairs. A method is trained on the same pairs by ``lpoi.py``'s code at each learning rate of a grid, its
checkpoints answer the validation scenes by ``generate.py``'s code and are scored by ``score.py``'s. The learning rate
and the number of steps with the best F of precision (1 - CHAIR) and Cover, averaged over the first two seeds, are the
method's; the test scenes are answered only by runs at that learning rate.

All work is kept below ``--work``: a stopped run continues, and what is there is not made again.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing

# Models this small only lose by threads that wait for each other; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SEEDS = (0, 1, 2, 3, 4)
CHOICE_SEEDS = (0, 1)
LEARNING_RATES = (6e-4, 1.5e-3)
PRETRAINING_STEPS = 1300
STEPS, SAVE_EVERY, BATCH = 25, 5, 16
TRAINING_SCENES, VALIDATION_SCENES, TEST_SCENES, PROBE_SCENES = 800, 150, 300, 100
PAIRS = 200

# What each method changes in lpoi.py's recipe.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"objective": "dpo"},
    "dpo+anchor": {"objective": "dpo", "loss_weights": [1.0, 1.0, 0.0]},
    "mdpo": {"objective": "mdpo"},
    "lpoi-3": {"list_size": 3},
    "lpoi-4": {"list_size": 4},
    "lpoi-5": {},
    "lpoi-5 no ellipse": {"visual_prompt": "none"},
    "lpoi-5 mean": {"fill": "mean"},
    "lpoi-5 blur": {"fill": "blur"},
    "lpoi-5 /(L-1)": {"loss_weights": [1.0, 1.0, 0.25]},
    "lpoi-5 /(L-1) mean": {"loss_weights": [1.0, 1.0, 0.25], "fill": "mean", "visual_prompt": "none"},
}
# One image more, tied with the clean one: an equally large box hidden where nothing is.
DISTRACTOR = "lpoi-5 /(L-1) distractor"
RECIPES: Mapping[str, Mapping[str, Any]] = {**METHODS, DISTRACTOR: {"loss_weights": [1.0, 1.0, 0.2]}}

# Asked of a few methods on the first seeds: does it hold elsewhere too?
FEW = ("dpo+anchor", "mdpo", "lpoi-5", "lpoi-5 /(L-1)")
FEW_SEEDS = (0, 1, 2)
BETAS = (0.03, 0.3)


SETTINGS: Mapping[str, Any] = {
    "seeds": SEEDS,
    "choice seeds": CHOICE_SEEDS,
    "seeds of the variations": FEW_SEEDS,
    "learning rates": LEARNING_RATES,
    "betas": BETAS,
    "pre-training steps": PRETRAINING_STEPS,
    "steps": STEPS,
    "checkpoint every": SAVE_EVERY,
    "batch": BATCH,
    "pairs": PAIRS,
    "training scenes": TRAINING_SCENES,
    "validation scenes": VALIDATION_SCENES,
    "test scenes": TEST_SCENES,
    "probe scenes": PROBE_SCENES,
    "recipes": RECIPES,
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        base: "robust" was pre-trained with things before the scenes, "naive" without.
        pairs: "matched" in length, or "natural": whatever the base said.
        pair_set: which training scenes.
    """

    method: str
    seed: int
    learning_rate: float
    beta: float = 0.1
    base: str = "robust"
    pairs: str = "matched"
    pair_set: int = 0

    @property
    def name(self) -> str:
        """A folder's name."""
        method = self.method.replace("/", "over").replace(" ", "_").replace(",", "")
        data = f"{self.base}-{self.seed}-{self.pairs}-{self.pair_set}"
        return f"{method}-lr{self.learning_rate:g}-beta{self.beta:g}-{data}"


class Bench:
    """The work's files, and how each is made. Every step is left alone where its result stands."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether what is here was made under these settings; an empty folder takes them on."""
        file = self.work / "settings.json"
        if not file.is_file():
            _write(file, settings)
        return bool(json.loads(file.read_text()) == json.loads(json.dumps(settings)))

    # ---- bases and data ----

    def base(self, kind: str, seed: int) -> Path:
        """A pre-trained model."""
        folder = self.work / "bases" / f"{kind}-{seed}"
        if not (folder / "done").is_file():
            from listwise_preference.small_world.pretrain import Pretraining, pretrain

            options = Pretraining(seed=seed, steps=PRETRAINING_STEPS)
            if kind == "naive":
                options = replace(options, covered=0.0)
            model, processor, _ = pretrain("idefics2", options, workers=0)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / "done").touch()
        return folder

    def scenes(self, what: str, seed: int, count: int) -> Path:
        """Scenes with their images, questions and truth; validation and test scenes share none with others."""
        from listwise_preference.small_world.data import scenes, write_scenes
        from listwise_preference.small_world.scenes import NATURAL

        folder = self.work / "scenes" / f"{what}-{seed}"
        if not (folder / "done").is_file():
            write_scenes(folder, scenes(NATURAL, count, f"{what} {seed}"), seed)
            (folder / "done").touch()
        return folder

    def pairs(self, run: Run) -> tuple[Path, Path, Path]:
        """Image root, pairs (at most ``PAIRS``) and image lists of a run; the rejected answers are its base's own."""
        from listwise_preference.small_world.data import preference_pairs, scenes, write_json
        from listwise_preference.small_world.scenes import NATURAL

        what = f"train{run.pair_set}"
        folder = self.scenes(what, run.seed, TRAINING_SCENES)
        stem = f"{run.base}-{run.pairs}"
        pairs, lists = folder / f"pairs-{stem}.json", folder / f"lists-{stem}.jsonl"
        if not lists.is_file():
            said: list[tuple[int, str]] = []
            for draw in range(2):
                output = folder / f"said-{run.base}-{draw}.json"
                self._answer(
                    self.base(run.base, run.seed), None, folder, "generative", output, temperature=1.0, seed=draw
                )
                said += [(one["id"], one["response"]) for one in json.loads(output.read_text())]
            made = preference_pairs(
                scenes(NATURAL, TRAINING_SCENES, f"{what} {run.seed}"),
                said,
                matched=run.pairs == "matched",
                seed=run.seed,
            )
            if len(made) < PAIRS // 2:
                raise RuntimeError(f"{pairs}: only {len(made)} pairs; the base makes too little up")
            write_json(pairs, made[:PAIRS])
            from listwise_preference.image_lists.command import main

            with self._nltk_data(folder):
                main(self._list_options(folder, pairs, lists))
        return folder / "image", pairs, lists

    # ---- training and answering, by the programs' own code ----

    def train(self, run: Run) -> Path:
        """The run's folder with its checkpoints."""
        folder = self.work / "runs" / run.name
        if not (folder / "final" / "adapter_model.safetensors").is_file():
            import lpoi
            from listwise_preference.training.command import main

            image_root, pairs, lists = self.pairs(run)
            shutil.rmtree(folder, ignore_errors=True)
            recipe = lpoi.RECIPE | {
                "model_name_or_path": str(self.base(run.base, run.seed)),
                "output_dir": str(folder),
                "pairs": str(pairs),
                "image_root": str(image_root),
                "image_lists": str(lists),
                "ranked_image_folders": None,
                "dtype": "float32",
                "learning_rate": run.learning_rate,
                "beta": run.beta,
                "max_steps": STEPS,
                "per_device_train_batch_size": BATCH,
                "gradient_accumulation_steps": 1,
                "seed": run.seed,
                "save_strategy": "steps",
                "save_steps": SAVE_EVERY,
                "save_only_model": True,
                "activation_checkpointing": False,
                "dataloader_num_workers": 0,
                "logging_steps": SAVE_EVERY,
                "use_cpu": True,
                "disable_tqdm": True,
                "report_to": "none",
                "precompute_ref_log_probs": True,
                "ref_cache": str(self.work / "reference" / f"{run.base}-{run.seed}"),
                **RECIPES[run.method],
                **(self._with_distractors(run) if run.method == DISTRACTOR else {}),
            }
            main(recipe, [])
        return folder

    def _with_distractors(self, run: Run) -> Mapping[str, Any]:
        """Folders of ranked images; which of the two best comes first changes from record to record: a tie."""
        from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
        from listwise_preference.image_lists.detectors.annotations import Annotations
        from listwise_preference.probe.measure import background_box

        image_root, _, lists = self.pairs(run)
        annotations = Annotations(image_root.parent / "annotations.jsonl", [path.name for path in image_root.iterdir()])
        folders = [lists.parent / f"distractors-{run.base}-{run.pairs}" / str(level) for level in range(1, 7)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for number, line in enumerate(lists.read_text().splitlines()):
            record = json.loads(line)
            image, box = open_image(image_root / record["img_path"]), Box(*record["box"])
            levels = list(ranked_images(image, box, Drawing()))
            found = annotations.boxes(record["img_path"], image.size)
            assert isinstance(found, list)
            background = background_box(image.size, box, [box, *(one.box for one in found)], record["img_path"])
            distractor = ranked_images(image, background, Drawing(2))[-1] if background else image
            levels.insert(number % 2, distractor)
            for folder, level in zip(folders, levels, strict=True):
                level.save(folder / record["img_path"])
        return {"image_lists": None, "image_root": str(folders[0]), "ranked_image_folders": [*map(str, folders)]}

    def scores(self, run: Run, what: str) -> list[dict[str, float]]:
        """The counters of every checkpoint on ``validation`` or ``test`` scenes, the base's first (step 0)."""
        file = self.work / "scores" / what / f"{run.name}.json"
        if not file.is_file():
            scenes = self.evaluation_scenes(what, run.seed)
            folder = self.train(run)
            counters = [self.base_scores(run.base, run.seed, what)]
            for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY):
                counters.append({"step": step} | self._score(run, folder / f"checkpoint-{step}", scenes, "generative"))
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, counters)
        result: list[dict[str, float]] = json.loads(file.read_text())
        return result

    def yes_no(self, run: Run, step: int) -> dict[str, float]:
        """The counters of a checkpoint's yes/no answers on the test scenes; step 0 is the base."""
        file = self.work / "scores" / "yes_no" / f"{run.name if step else f'base-{run.base}-{run.seed}'}-{step}.json"
        if not file.is_file():
            adapter = self.train(run) / f"checkpoint-{step}" if step else None
            file.parent.mkdir(parents=True, exist_ok=True)
            scenes = self.evaluation_scenes("test", run.seed)
            _write(file, self._score(run, adapter, scenes, "discriminative"))
        result: dict[str, float] = json.loads(file.read_text())
        return result

    def evaluation_scenes(self, what: str, seed: int) -> Path:
        """Validation or test scenes."""
        return self.scenes(what, seed, {"validation": VALIDATION_SCENES, "test": TEST_SCENES}[what])

    def base_scores(self, base: str, seed: int, what: str) -> dict[str, float]:
        """The counters of a base's own descriptions."""
        file = self.work / "scores" / what / f"base-{base}-{seed}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            run = Run("dpo", seed, 0.0, base=base)
            _write(file, {"step": 0} | self._score(run, None, self.evaluation_scenes(what, seed), "generative"))
        result: dict[str, float] = json.loads(file.read_text())
        return result

    def _score(self, run: Run, adapter: Path | None, scenes: Path, questions: str) -> dict[str, float]:
        from listwise_preference.files import read_records
        from listwise_preference.scoring import amber
        from listwise_preference.scoring.similarity import load_similarity
        from listwise_preference.scoring.words import load_lemmas

        output = self.work / "answers" / f"{os.getpid()}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in output.parent.glob(f"{output.name}*"):
            left.unlink()
        self._answer(self.base(run.base, run.seed), adapter, scenes, questions, output)
        data = amber.load_amber(scenes)
        answers, problems = amber.check(read_records(output), data)
        problems.refuse_unless(False, output)
        similarity, lemmas = load_similarity(None, data.vocabulary, None), load_lemmas(None, "lemma_forms.json")
        with self._nltk_data(scenes):
            scores = amber.score_answers(amber.judge_answers(answers, data, similarity, lemmas, "word"))
        sums: Counter[str] = Counter()
        for counts in scores.images.values():
            sums.update(counts)  # keeps a count of 0, as adding Counters does not
        return dict(sums)

    @contextlib.contextmanager
    def _nltk_data(self, scenes: Path) -> Iterator[None]:
        """The world's own tagger data, so that nothing has to be downloaded and all runs read the same."""
        import nltk

        nltk.data.path.insert(0, str(scenes / "nltk_data"))
        try:
            yield
        finally:
            nltk.data.path.pop(0)

    def _answer(
        self,
        base: Path,
        adapter: Path | None,
        scenes: Path,
        questions: str,
        output: Path,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        from listwise_preference.generation.command import main

        main(
            {
                "model_name_or_path": str(base),
                "adapter": "none" if adapter is None else str(adapter),
                "benchmark": "amber",
                "questions": str(scenes / "data" / "query" / f"query_{questions}.json"),
                "image_root": str(scenes / "image"),
                "output": str(output),
                "batch_size": 64,
                "max_new_tokens": 40,
                "dtype": "float32",
                "temperature": temperature,
                "seed": seed,
            },
            [],
        )

    # ---- does it look at the object? ----

    def probe(self, run: Run, step: int) -> dict[str, Any]:
        """The awareness of a checkpoint on unseen scenes with faithful descriptions."""
        file = self.work / "probes" / f"{run.name}-{step}.json"
        if not file.is_file():
            from listwise_preference.data.pairs import BoxLists, load_records
            from listwise_preference.data.ranked_images import Drawing
            from listwise_preference.image_lists.detectors.annotations import Annotations
            from listwise_preference.models import adapters, loading
            from listwise_preference.probe.measure import ModelScorer, measure, plan, summarize

            folder, pairs, lists = self.probe_data(run.seed)
            recipe = RECIPES[run.method]
            drawing = Drawing(2, recipe.get("visual_prompt", "ellipse"), fill=recipe.get("fill", "black"))
            records = load_records(pairs, folder / "image", BoxLists(lists, drawing)).records
            annotations = Annotations(folder / "annotations.jsonl", {record.pair.img_path for record in records})
            base = loading.load_base_model(str(self.base(run.base, run.seed)), dtype=loading.DTYPES["float32"])
            policy = adapters.load_adapter(base, self.train(run) / f"checkpoint-{step}").eval()
            processor = loading.load_processor(str(self.base(run.base, run.seed)))
            probes = plan(records, annotations=annotations, removed_root=folder / "removed")
            result = summarize(measure(probes, ModelScorer(policy, processor, batch_size=32)), resamples=1000, seed=0)
            file.parent.mkdir(parents=True, exist_ok=True)
            _write(file, asdict(result))
        result_: dict[str, Any] = json.loads(file.read_text())
        return result_

    def probe_data(self, seed: int) -> tuple[Path, Path, Path]:
        """Scenes, a pair and a list for each, and the images in which the listed object never was."""
        from listwise_preference.image_lists.command import main
        from listwise_preference.small_world.data import image_name, scenes, write_json
        from listwise_preference.small_world.scenes import NATURAL
        from listwise_preference.small_world.texts import DESCRIBE, any_caption

        folder = self.scenes("probe", seed, PROBE_SCENES)
        pairs, lists = folder / "pairs.json", folder / "lists.jsonl"
        if not (folder / "removed" / "done").is_file():
            drawn, rng = scenes(NATURAL, PROBE_SCENES, f"probe {seed}"), random.Random(seed)
            records = [
                {
                    "img_path": image_name(number),
                    "prompt": DESCRIBE,
                    "chosen": any_caption(rng, scene.place, scene.visible),
                    "rejected": "Nothing.",
                }
                for number, scene in enumerate(drawn, start=1)
            ]
            write_json(pairs, records)
            with self._nltk_data(folder):
                main(["--restart", *self._list_options(folder, pairs, lists)])
            (folder / "removed").mkdir(exist_ok=True)
            for scene, line in zip(drawn, lists.read_text().splitlines(), strict=True):
                record = json.loads(line)
                scene.without(record["phrase"]).draw().save(folder / "removed" / record["img_path"])
            (folder / "removed" / "done").touch()
        return folder, pairs, lists

    def _list_options(self, folder: Path, pairs: Path, lists: Path) -> list[str]:
        return [
            *("--pairs", str(pairs), "--image_root", str(folder / "image"), "--output", str(lists)),
            *("--detector", "annotations", "--annotations", str(folder / "annotations.jsonl"), "--verifier", "none"),
        ]


# ---- the plan ----


@dataclass(frozen=True)
class Choice:
    """A method's learning rate and number of steps, by validation scenes alone."""

    learning_rate: float
    step: int


def grid(method: str, seeds: Sequence[int] = CHOICE_SEEDS) -> list[Run]:
    """The runs that a choice is made from."""
    return [Run(method, seed, rate) for rate in LEARNING_RATES for seed in seeds]


def choose(bench: Bench, method: str) -> Choice:
    """The learning rate and step with the best mean F on the validation scenes of ``CHOICE_SEEDS``."""
    means: dict[Choice, float] = {}
    for rate in LEARNING_RATES:
        curves = [bench.scores(run, "validation")[1:] for run in grid(method) if run.learning_rate == rate]
        for points in zip(*curves, strict=True):
            means[Choice(rate, int(points[0]["step"]))] = sum(summary(point)["f"] for point in points) / len(points)
    return max(means, key=lambda choice: means[choice])


def final_runs(bench: Bench, methods: Iterable[str], seeds: Sequence[int], **changes: Any) -> list[Run]:
    """Each method at its own learning rate; a distractor run at that of the same without."""
    return [
        replace(
            Run(method, seed, choose(bench, "lpoi-5 /(L-1)" if method == DISTRACTOR else method).learning_rate),
            **changes,
        )
        for method in methods
        for seed in seeds
    ]


def variations(bench: Bench) -> dict[str, list[Run]]:
    """What else is asked, by name."""
    few = partial(final_runs, bench, FEW, FEW_SEEDS)
    return {
        "naive": [
            *few(base="naive"),
            *final_runs(bench, ("lpoi-5 mean", "lpoi-5 /(L-1) mean", DISTRACTOR), FEW_SEEDS, base="naive"),
        ],
        "distractor": final_runs(bench, (DISTRACTOR,), FEW_SEEDS),
        "natural pairs": few(pairs="natural"),
        "beta": [
            run for beta in BETAS for run in final_runs(bench, ("dpo+anchor", "lpoi-5 /(L-1)"), FEW_SEEDS, beta=beta)
        ],
        "other pairs": few(pair_set=1),
    }


PROBED = ("methods", "naive", "distractor")


@dataclass(frozen=True)
class Task:
    """A step of the work: a method of :class:`Bench`, and what it is called with."""

    step: Callable[..., object]
    arguments: tuple[Any, ...]


def _set_up(work: Path) -> None:
    """A worker's own: what the programs print goes into a file."""
    log = (work / f"log-{os.getpid()}.txt").open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())


def _do(work: Path, task: Task) -> None:
    try:
        task.step(Bench(work), *task.arguments)
    except SystemExit as stop:  # how the programs end on what a user can mend
        what = f"{task.step.__name__}{task.arguments} stopped with {stop.code}"
        raise RuntimeError(f"{what}; {work}/log-{os.getpid()}.txt says why") from None


def carry_out(pool: ProcessPoolExecutor, work: Path, tasks: Iterable[Task], what: str) -> None:
    """All tasks, several at a time; the first that fails ends the program."""
    from tqdm import tqdm

    running = [pool.submit(_do, work, task) for task in dict.fromkeys(tasks)]
    for done in tqdm(as_completed(running), desc=what, total=len(running), unit="task"):
        done.result()


def main() -> None:
    """Do what is not done yet, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="what is made on the way")
    parser.add_argument("--output", type=Path, default=Path("docs/evidence"), help="tables and figures")
    parser.add_argument("--workers", type=int, default=2, help="processes, each on one core (default 2)")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers must be 1 or more")
    try:
        from objectives_report import report
    except ImportError as error:
        parser.error(f"{error}; the figures need it: pip install -r requirements-dev.txt")
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.work.resolve())
    if not bench.is_of(SETTINGS):
        parser.error(f"{args.work} holds work under other settings: name another folder with --work, or remove it")
    with ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn"), initializer=_set_up, initargs=(bench.work,)
    ) as pool:
        try:
            work(bench, partial(carry_out, pool, bench.work))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("\nstopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
        except RuntimeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"objectives.py: error: {error}", file=sys.stderr)
            sys.exit(1)
    report(bench, args.output)


def work(bench: Bench, do: Callable[..., None]) -> None:
    """All that is measured, in the order in which one thing needs another."""
    bases = [("robust", seed) for seed in SEEDS] + [("naive", seed) for seed in FEW_SEEDS]
    do([Task(Bench.base, base) for base in bases], what="pre-training")
    # Before whatever reads them, since several bases describe the same.
    scenes = [Task(Bench.scenes, (f"train{number}", seed, TRAINING_SCENES)) for number in (0, 1) for seed in SEEDS]
    scenes += [Task(Bench.evaluation_scenes, (what, seed)) for what in ("validation", "test") for seed in SEEDS]
    do([*scenes, *(Task(Bench.probe_data, (seed,)) for seed in SEEDS)], what="scenes")
    do([Task(Bench.pairs, (Run("dpo", seed, 0.0, base=base),)) for base, seed in bases], what="pairs")
    do([Task(Bench.base_scores, (*base, what)) for base in bases for what in ("validation", "test")], what="bases")
    do([Task(Bench.yes_no, (Run("dpo", seed, 0.0, base=base), 0)) for base, seed in bases], what="bases, yes/no")
    do([Task(Bench.scores, (run, "validation")) for method in METHODS for run in grid(method)], what="choosing")
    methods = final_runs(bench, METHODS, SEEDS)
    for name, runs in {"methods": methods, **variations(bench)}.items():
        do([Task(Bench.pairs, (run,)) for run in runs if run.method == runs[0].method], what=f"{name}, pairs")
        do([Task(Bench.scores, (run, "test")) for run in runs], what=name)
        do([Task(Bench.yes_no, (run, choose_step(bench, run))) for run in runs], what=f"{name}, yes/no")
        if name in PROBED:
            probed = [run for run in runs if run.seed in FEW_SEEDS]
            do([Task(Bench.probe, (run, choose_step(bench, run))) for run in probed], what=f"{name}, awareness")


def choose_step(bench: Bench, run: Run) -> int:
    """The step at which a run is looked at: its method's."""
    return choose(bench, "lpoi-5 /(L-1)" if run.method == DISTRACTOR else run.method).step


def _write(file: Path, content: object) -> None:
    from listwise_preference.files import write_atomic

    write_atomic(file, json.dumps(content) + "\n")


def summary(counters: Mapping[str, float]) -> dict[str, float]:
    """Percentages from counters: CHAIR, Cover, and F, the harmonic mean of 100 - CHAIR and Cover."""
    chair = 100 * counters.get("chair_score", 0) / max(counters.get("chair_num", 0), 1)
    cover = 100 * counters.get("safe_cover_score", 0) / counters["safe_cover_num"]
    return {"chair": chair, "cover": cover, "f": 2 * (100 - chair) * cover / (100 - chair + cover)}


if __name__ == "__main__":
    main()
