"""What the objectives do to hallucination in the small world: DPO, mDPO and LPOI side by side, with error bars.

    python benchmarks/objectives.py          # into docs/evidence; an hour and a half on two cores

For every seed a small Idefics2 is pre-trained, describes scenes, and its own descriptions become the rejected responses
of the pairs. A method is trained on the same pairs by ``lpoi.py``'s code at each learning rate of a grid, its
checkpoints describe the validation scenes by ``generate.py``'s code and are scored by ``score.py``'s. The learning rate
and the number of steps with the best F of precision (1 - CHAIR) and Cover, averaged over the first two seeds, are the
method's; only runs at that learning rate describe the test scenes.

All work is kept below ``--work``: a stopped run resumes, and what is there is not made again. What was measured, seed
by seed, goes into results.json, from which ``objectives_report.py`` makes tables and figures.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
from argparse import Namespace
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

import nltk  # noqa: E402
from objectives_report import report  # noqa: E402
from tqdm import tqdm  # noqa: E402

import lpoi  # noqa: E402
from listwise_preference import cli  # noqa: E402
from listwise_preference.data.pairs import BoxLists, load_records  # noqa: E402
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images  # noqa: E402
from listwise_preference.files import read_records, write_atomic  # noqa: E402
from listwise_preference.generation import command as generation  # noqa: E402
from listwise_preference.image_lists import command as image_lists  # noqa: E402
from listwise_preference.image_lists.detectors.annotations import Annotations  # noqa: E402
from listwise_preference.probe.measure import ModelScorer, Summary, background_box, measure, plan, summarize  # noqa: E402
from listwise_preference.scoring import amber_rules  # noqa: E402
from listwise_preference.scoring.similarity import load_similarity  # noqa: E402
from listwise_preference.scoring.words import load_lemmas  # noqa: E402
from listwise_preference.small_world import data  # noqa: E402
from listwise_preference.small_world.scenes import NATURAL  # noqa: E402
from listwise_preference.small_world.texts import DESCRIBE, any_caption  # noqa: E402

SEEDS = (0, 1, 2, 3, 4)
CHOICE_SEEDS = (0, 1)
LEARNING_RATES = (6e-4, 1.5e-3)
PRETRAINING_STEPS = 1300
STEPS, SAVE_EVERY, BATCH = 25, 5, 16
TRAINING_SCENES, VALIDATION_SCENES, TEST_SCENES, PROBE_SCENES = 800, 150, 300, 100
PAIRS = 200

# What every run of a small model on a CPU changes in lpoi.py's recipe.
SHORT_RUN: Mapping[str, Any] = {
    "ranked_image_folders": None,
    "dtype": "float32",
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "save_strategy": "steps",
    "save_steps": SAVE_EVERY,
    "save_only_model": True,
    "activation_checkpointing": False,
    "dataloader_num_workers": 0,
    "logging_steps": SAVE_EVERY,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}

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
# One image more, tied with the clean one: an equally large box masked where nothing is.
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
        base: "robust" was pre-trained with partly masked images, "naive" without.
        pairs: "matched" in length, or "natural": any length.
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
    """The work's files, and how each is made. A step whose result exists is not repeated."""

    def __init__(self, work: Path) -> None:
        self.work = work

    # ---- bases and data ----

    def base_folder(self, kind: str, seed: int) -> Path:
        """Where a pre-trained model is."""
        return self.work / "bases" / f"{kind}-{seed}"

    def base(self, kind: str, seed: int) -> Path:
        """A pre-trained model."""
        folder = self.base_folder(kind, seed)
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
        folder = self.work / "scenes" / f"{what}-{seed}"
        if not (folder / "done").is_file():
            data.write_scenes(folder, data.scenes(NATURAL, count, f"{what} {seed}"), seed)
            (folder / "done").touch()
        return folder

    def evaluation_scenes(self, what: str, seed: int) -> Path:
        """Validation or test scenes."""
        return self.scenes(what, seed, {"validation": VALIDATION_SCENES, "test": TEST_SCENES}[what])

    def pairs(self, run: Run) -> tuple[Path, Path, Path]:
        """Image root, pairs (at most ``PAIRS``) and lists of a run; the rejected responses are its base's own."""
        what = f"train{run.pair_set}"
        folder = self.scenes(what, run.seed, TRAINING_SCENES)
        stem = f"{run.base}-{run.pairs}"
        pairs, lists = folder / f"pairs-{stem}.json", folder / f"lists-{stem}.jsonl"
        if not lists.is_file():
            descriptions: list[tuple[int, str]] = []
            for draw in range(2):
                output = folder / f"said-{run.base}-{draw}.json"
                base = self.base(run.base, run.seed)
                self._generate(base, None, folder, "generative", output, temperature=1.0, seed=draw)
                descriptions += [(one["id"], one["response"]) for one in json.loads(output.read_text())]
            scenes = data.scenes(NATURAL, TRAINING_SCENES, f"{what} {run.seed}")
            made = data.preference_pairs(scenes, descriptions, matched=run.pairs == "matched", seed=run.seed)
            if len(made) < PAIRS // 2:
                raise RuntimeError(f"{pairs}: only {len(made)} pairs; the base hallucinates too little")
            data.write_json(pairs, made[:PAIRS])
            self.make_lists(folder, pairs, lists)
        return folder / "image", pairs, lists

    def make_lists(self, folder: Path, pairs: Path, lists: Path, *options: str) -> None:
        """Lists for pairs on the scenes of a folder, by ``make_image_lists.py`` and the known boxes."""
        paths = {"pairs": pairs, "image_root": folder / "image", "annotations": folder / "annotations.jsonl"}
        given = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        with nltk_data(folder):
            image_lists.main(
                [*given, "--output", str(lists), "--detector", "annotations", "--verifier", "none", *options]
            )

    # ---- training and generation, by the programs' own code ----

    def train(self, run: Run) -> Path:
        """The run's folder with its checkpoints."""
        folder = self.work / "runs" / run.name
        if not (folder / "final" / "adapter_model.safetensors").is_file():
            from listwise_preference.training.command import main

            image_root, pairs, lists = self.pairs(run)
            shutil.rmtree(folder, ignore_errors=True)
            recipe = lpoi.RECIPE | {
                "model_name_or_path": str(self.base(run.base, run.seed)),
                "output_dir": str(folder),
                "pairs": str(pairs),
                "image_root": str(image_root),
                "image_lists": str(lists),
                "learning_rate": run.learning_rate,
                "beta": run.beta,
                "seed": run.seed,
                **SHORT_RUN,
                "precompute_ref_log_probs": True,
                "ref_cache": str(self.work / "reference" / f"{run.base}-{run.seed}"),
                **RECIPES[run.method],
                **(self._with_distractors(run) if run.method == DISTRACTOR else {}),
            }
            main(recipe, [])
        return folder

    def _with_distractors(self, run: Run) -> Mapping[str, Any]:
        """Folders of ranked images; which of the two best comes first changes from record to record: a tie."""
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

    def _generate(
        self, base: Path, adapter: Path | None, scenes: Path, questions: str, output: Path, **changes: Any
    ) -> None:
        options = {
            "model_name_or_path": str(base),
            "adapter": "none" if adapter is None else str(adapter),
            "benchmark": "amber",
            "questions": str(scenes / "data" / "query" / f"query_{questions}.json"),
            "image_root": str(scenes / "image"),
            "output": str(output),
            "batch_size": 64,
            "max_new_tokens": 40,
            "dtype": "float32",
        }
        generation.main({**options, "temperature": 0.0, "seed": 0, **changes}, [])

    # ---- scores: AMBER's counters ----

    def scores(self, run: Run, what: str) -> list[dict[str, float]]:
        """The counters of every checkpoint on ``validation`` or ``test`` scenes, the base's first (step 0)."""

        def made() -> list[dict[str, float]]:
            base = self.base(run.base, run.seed)
            scenes, folder = self.evaluation_scenes(what, run.seed), self.train(run)
            return [self.base_scores(run.base, run.seed, what)] + [
                {"step": step} | self.score(base, folder / f"checkpoint-{step}", scenes, "generative")
                for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)
            ]

        result: list[dict[str, float]] = kept(self.work / "scores" / what / f"{run.name}.json", made)
        return result

    def yes_no(self, run: Run, step: int) -> dict[str, float]:
        """The counters of a checkpoint's yes/no responses on the test scenes; step 0 is the base."""

        def made() -> dict[str, float]:
            adapter = self.train(run) / f"checkpoint-{step}" if step else None
            base = self.base(run.base, run.seed)
            return self.score(base, adapter, self.evaluation_scenes("test", run.seed), "discriminative")

        name = run.name if step else f"base-{run.base}-{run.seed}"
        result: dict[str, float] = kept(self.work / "scores" / "yes_no" / f"{name}-{step}.json", made)
        return result

    def base_scores(self, base: str, seed: int, what: str) -> dict[str, float]:
        """The counters of a base's own descriptions."""

        def made() -> dict[str, float]:
            scenes = self.evaluation_scenes(what, seed)
            return {"step": 0} | self.score(self.base(base, seed), None, scenes, "generative")

        result: dict[str, float] = kept(self.work / "scores" / what / f"base-{base}-{seed}.json", made)
        return result

    def score(self, base: Path, adapter: Path | None, scenes: Path, questions: str) -> dict[str, float]:
        """The counters of a model's responses to one of the files of questions."""
        output = self.work / "answers" / f"{os.getpid()}.json"
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in output.parent.glob(f"{output.name}*"):
            left.unlink()
        self._generate(base, adapter, scenes, questions, output)
        benchmark = amber_rules.load_amber(scenes)
        answers, problems = amber_rules.check(read_records(output), benchmark)
        problems.refuse_unless(False, output)
        similarity, lemmas = load_similarity(None, benchmark.vocabulary, None), load_lemmas(None, "lemma_forms.json")
        with nltk_data(scenes):
            scores = amber_rules.score_answers(
                amber_rules.judge_answers(answers, benchmark, similarity, lemmas, "word")
            )
        sums: Counter[str] = Counter()
        for counts in scores.images.values():
            sums.update(counts)  # keeps a count of 0, as adding Counters does not
        return dict(sums)

    # ---- does it look at the object? ----

    def probe(self, run: Run, step: int) -> dict[str, Any]:
        """The awareness of a checkpoint on unseen scenes with right descriptions."""
        file = self.work / "probes" / f"{run.name}-{step}.json"
        result: dict[str, Any] = kept(file, lambda: asdict(self._probe(run, step)))
        return result

    def _probe(self, run: Run, step: int) -> Summary:
        adapter = self.train(run) / f"checkpoint-{step}"
        return self.awareness(self.base(run.base, run.seed), adapter, run.seed, RECIPES[run.method])

    def awareness(self, checkpoint: Path, adapter: Path, seed: int, recipe: Mapping[str, Any]) -> Summary:
        """What masking does to the log-ratio of right descriptions; ``recipe`` says how training masked."""
        from listwise_preference.models import adapters, loading

        folder, pairs, lists = self.probe_data(seed)
        drawing = Drawing(2, recipe.get("visual_prompt", "ellipse"), fill=recipe.get("fill", "black"))
        records = load_records(pairs, folder / "image", BoxLists(lists, drawing)).records
        annotations = Annotations(folder / "annotations.jsonl", {record.pair.img_path for record in records})
        base = loading.load_base_model(str(checkpoint), dtype=loading.DTYPES["float32"])
        policy = adapters.load_adapter(base, adapter).eval()
        scorer = ModelScorer(policy, loading.load_processor(str(checkpoint)), batch_size=32)
        probes = plan(records, annotations=annotations, removed_root=folder / "removed")
        return summarize(measure(probes, scorer), resamples=1000, seed=0)

    def probe_data(self, seed: int) -> tuple[Path, Path, Path]:
        """Scenes, a pair and a list for each, and the images in which the listed object never was."""
        folder = self.scenes("probe", seed, PROBE_SCENES)
        pairs, lists = folder / "pairs.json", folder / "lists.jsonl"
        if not (folder / "removed" / "done").is_file():
            drawn, rng = data.scenes(NATURAL, PROBE_SCENES, f"probe {seed}"), random.Random(seed)
            records = [
                {
                    "img_path": data.image_name(number),
                    "prompt": DESCRIBE,
                    "chosen": any_caption(rng, scene.place, scene.visible),
                    "rejected": "Nothing.",
                }
                for number, scene in enumerate(drawn, start=1)
            ]
            data.write_json(pairs, records)
            self.make_lists(folder, pairs, lists, "--restart")
            (folder / "removed").mkdir(exist_ok=True)
            for scene, line in zip(drawn, lists.read_text().splitlines(), strict=True):
                record = json.loads(line)
                scene.without(record["phrase"]).draw().save(folder / "removed" / record["img_path"])
            (folder / "removed" / "done").touch()
        return folder, pairs, lists


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file holds; where there is none, what ``make`` returns, which is written first."""
    if not file.is_file():
        write_atomic(file, json.dumps(make()) + "\n")
    return json.loads(file.read_text())


@contextlib.contextmanager
def nltk_data(scenes: Path) -> Iterator[None]:
    """The world's own tagger data, so that nothing has to be downloaded and all runs read the same."""
    nltk.data.path.insert(0, str(scenes / "nltk_data"))
    try:
        yield
    finally:
        nltk.data.path.pop(0)


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
    """The learning rate and step with the best mean F on the validation scenes of ``CHOICE_SEEDS``.

    The distractor's are those of the same method without it.
    """
    method = "lpoi-5 /(L-1)" if method == DISTRACTOR else method
    means: dict[Choice, float] = {}
    for rate in LEARNING_RATES:
        curves = [bench.scores(run, "validation")[1:] for run in grid(method) if run.learning_rate == rate]
        for points in zip(*curves, strict=True):
            means[Choice(rate, int(points[0]["step"]))] = sum(summary(point)["f"] for point in points) / len(points)
    return max(means, key=lambda choice: means[choice])


def final_runs(bench: Bench, methods: Iterable[str], seeds: Sequence[int], **changes: Any) -> list[Run]:
    """Each method at its own learning rate."""
    chosen = {method: choose(bench, method).learning_rate for method in methods}
    return [Run(method, seed, rate, **changes) for method, rate in chosen.items() for seed in seeds]


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


# A step of the work: a method of Bench, and what it is called with.
Task = tuple[Callable[..., object], tuple[Any, ...]]


def set_up(work: Path) -> None:
    """A worker's own: what the programs print goes into a file."""
    log = (work / f"log-{os.getpid()}.txt").open("a", buffering=1)
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())


def _do(work: Path, task: Task) -> None:
    step, arguments = task
    try:
        step(Bench(work), *arguments)
    except SystemExit as stop:  # how the programs end on an error that a user can correct
        what = f"{step.__name__}{arguments} stopped with {stop.code}"
        raise RuntimeError(f"{what}; {work}/log-{os.getpid()}.txt says why") from None


def carry_out(pool: ProcessPoolExecutor, work: Path, tasks: Iterable[Task], what: str) -> None:
    """All tasks, several at a time; the first that fails ends the program."""
    running = [pool.submit(_do, work, task) for task in dict.fromkeys(tasks)]
    for done in tqdm(as_completed(running), desc=what, total=len(running), unit="task"):
        done.result()


def in_processes(bench: Bench, workers: int, work: Callable[[Callable[..., None]], None]) -> None:
    """Call ``work`` with a function that carries out tasks; exits on Ctrl-C and with the first task that fails."""
    program = Path(sys.argv[0]).name
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=set_up, initargs=(bench.work,)
    ) as pool:
        try:
            work(partial(carry_out, pool, bench.work))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("\nstopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
        except RuntimeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"{program}: error: {error}", file=sys.stderr)
            sys.exit(1)


def opened(description: str | None, work: Path, file: str, settings: Mapping[str, Any]) -> tuple[Bench, Namespace]:
    """A comparison's options, and its work, which it refuses where ``file`` says that it was begun under others.

    Args:
        description: of the program.
        work: where it is, if the user does not say.
        file: in the work, keeps the settings.
        settings: what decides the results.
    """
    parser = cli.Parser(description)
    parser.add_argument("--work", type=Path, default=work, help="what is made on the way")
    parser.add_argument("--output", type=Path, default=Path("docs/evidence"), help="results, tables and figures")
    parser.add_argument("--workers", type=cli.count, default=2, help="processes, each on one core")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.work.resolve())
    if kept(bench.work / file, lambda: settings) != json.loads(json.dumps(settings)):
        parser.error(f"{args.work} holds work under other settings: name another folder with --work, or remove it")
    return bench, args


def main() -> None:
    """Do what is not done yet, and report."""
    bench, args = opened(__doc__, Path("runs/objectives"), "settings.json", SETTINGS)
    in_processes(bench, args.workers, partial(work, bench))
    write_atomic(args.output / "results.json", json.dumps(collect(bench), indent=1) + "\n")
    report(args.output)


def work(bench: Bench, do: Callable[..., None]) -> None:
    """All that is measured, in the order in which one thing needs another."""
    bases = [("robust", seed) for seed in SEEDS] + [("naive", seed) for seed in FEW_SEEDS]
    do([(Bench.base, base) for base in bases], what="pre-training")
    # Before whatever reads them, since several bases describe the same.
    scenes: list[Task] = [
        (Bench.scenes, (f"train{number}", seed, TRAINING_SCENES)) for number in (0, 1) for seed in SEEDS
    ]
    scenes += [(Bench.evaluation_scenes, (what, seed)) for what in ("validation", "test") for seed in SEEDS]
    do([*scenes, *((Bench.probe_data, (seed,)) for seed in SEEDS)], what="scenes")
    do([(Bench.pairs, (Run("dpo", seed, 0.0, base=base),)) for base, seed in bases], what="pairs")
    do([(Bench.base_scores, (*base, what)) for base in bases for what in ("validation", "test")], what="bases")
    do([(Bench.yes_no, (Run("dpo", seed, 0.0, base=base), 0)) for base, seed in bases], what="bases, yes/no")
    do([(Bench.scores, (run, "validation")) for method in METHODS for run in grid(method)], what="choosing")
    methods = final_runs(bench, METHODS, SEEDS)
    for name, runs in {"methods": methods, **variations(bench)}.items():
        do([(Bench.pairs, (run,)) for run in runs if run.method == runs[0].method], what=f"{name}, pairs")
        do([(Bench.scores, (run, "test")) for run in runs], what=name)
        do([(Bench.yes_no, (run, choose(bench, run.method).step)) for run in runs], what=f"{name}, yes/no")
        if name in PROBED:
            probed = [run for run in runs if run.seed in FEW_SEEDS]
            do([(Bench.probe, (run, choose(bench, run.method).step)) for run in probed], what=f"{name}, awareness")


# ---- what was measured ----


def summary(counters: Mapping[str, float]) -> dict[str, float]:
    """Percentages from counters: CHAIR, Cover, and F, the harmonic mean of 100 - CHAIR and Cover."""
    chair = 100 * counters.get("chair_score", 0) / max(counters.get("chair_num", 0), 1)
    cover = 100 * counters.get("safe_cover_score", 0) / counters["safe_cover_num"]
    return {"chair": chair, "cover": cover, "f": 2 * (100 - chair) * cover / (100 - chair + cover)}


def at_step(curve: Sequence[Mapping[str, float]], step: int, yes_no: Mapping[str, float]) -> dict[str, float]:
    """All percentages of one checkpoint, the yes/no ones from their own counters."""
    counters = next(point for point in curve if point["step"] == step)
    official = amber_rules.metrics_of_sums({**counters, **yes_no})
    return summary(counters) | {
        "hal": official["generative"]["hal"],
        "cog": official["generative"]["cog"],
        "yes/no accuracy": official["existence"]["accuracy"],
        "yes/no F1": official["existence"]["f1"],
    }


def by_name(seeds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The values of every name, one a seed."""
    return {name: [of[name] for of in seeds] for name in seeds[0]}


def of_runs(bench: Bench, runs: Sequence[Run]) -> dict[str, Any]:
    """One method on several seeds: every percentage at its step, and CHAIR, Cover and F over training."""
    curves = [bench.scores(run, "test") for run in runs]
    step = choose(bench, runs[0].method).step
    points = [at_step(curve, step, bench.yes_no(run, step)) for run, curve in zip(runs, curves, strict=True)]
    return {
        "learning_rate": runs[0].learning_rate,
        "step": step,
        "seeds": [run.seed for run in runs],
        "at step": by_name(points),
        "curve": [
            {"step": int(same[0]["step"]), **by_name([summary(point) for point in same])}
            for same in zip(*curves, strict=True)
        ],
    }


def validation(bench: Bench, method: str) -> list[dict[str, Any]]:
    """What the choice was made from: F of each learning rate and step, one a choice seed."""
    runs = [(run.learning_rate, bench.scores(run, "validation")[1:]) for run in grid(method)]
    return [
        {"learning_rate": rate, "step": points[0]["step"], "f": [summary(same)["f"] for same in points]}
        for rate in LEARNING_RATES
        for points in zip(*(curve for of, curve in runs if of == rate), strict=True)
    ]


def collect(bench: Bench) -> dict[str, Any]:
    """Everything that is reported, seed by seed."""
    bases = {}
    for kind, seeds in (("robust", SEEDS), ("naive", FEW_SEEDS)):
        yes_no = [bench.yes_no(Run("dpo", seed, 0.0, base=kind), 0) for seed in seeds]
        scores = [bench.base_scores(kind, seed, "test") for seed in seeds]
        bases[kind] = by_name([at_step([one], 0, other) for one, other in zip(scores, yes_no, strict=True)])
    others: dict[str, Any] = {name: {} for name in variations(bench)}
    for name, runs in variations(bench).items():
        for method, beta in dict.fromkeys((run.method, run.beta) for run in runs):
            title = f"{method}, beta {beta:g}" if name == "beta" else method
            others[name][title] = of_runs(bench, [run for run in runs if (run.method, run.beta) == (method, beta)])
    return {
        "settings": SETTINGS,
        "validation": {method: validation(bench, method) for method in METHODS},
        "bases": bases,
        "methods": {method: of_runs(bench, final_runs(bench, [method], SEEDS)) for method in METHODS},
        "variations": others,
        "probes": probes(bench),
        "choices": {method: asdict(choose(bench, method)) for method in METHODS},
    }


def probes(bench: Bench) -> dict[str, Any]:
    """The change of the log-ratio under each condition, and the artefact ratio, one a seed."""
    runs = {("robust", method): final_runs(bench, [method], FEW_SEEDS) for method in RECIPES}
    naive = variations(bench)["naive"]
    runs |= {("naive", run.method): [one for one in naive if one.method == run.method] for run in naive}
    result: dict[str, Any] = {"robust": {}, "naive": {}}
    for (base, method), same in runs.items():
        found = [bench.probe(run, choose(bench, run.method).step) for run in same]

        def changes(quantity: str, found: Sequence[Mapping[str, Any]] = found) -> dict[str, list[float]]:
            means = [{name: of["mean"] for name, of in one["changes"][quantity].items()} for one in found]
            return by_name(means)

        ratios = [one["artefact"]["log_ratio"]["ratio"] for one in found]
        result[base][method] = {**changes("log_ratio"), "background / hidden": ratios}
        if method == "lpoi-5":  # masked as in the paper
            result[base]["the base itself"] = changes("reference")
    return result


if __name__ == "__main__":
    main()
