"""See it work: scenes, pairs, image lists, LPOI training, responses and scores on a small model, in minutes, on a CPU.

    python demo.py

draws scenes whose every object is known, lets a model of one million parameters describe them, trains it by LPOI
against its own hallucinations, and writes a page to look at all of it, demo/index.html. Every step is one of this
project's programs with the arguments that are shown. Nothing is downloaded. Running it again starts from the beginning.
"""

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before transformers is imported: nothing has to be downloaded, and loading takes no time worth a progress bar.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from listwise_preference import cli
from listwise_preference.data.ranked_images import Drawing, Fill
from listwise_preference.demo import page as demo_page
from listwise_preference.errors import DataError
from listwise_preference.files import read_json
from listwise_preference.generation import command as generate
from listwise_preference.image_lists import command as make_image_lists
from listwise_preference.pair_making import command as make_pairs
from listwise_preference.scoring import command as score
from listwise_preference.small_world import data
from listwise_preference.small_world.scenes import NATURAL, Scene
from listwise_preference.small_world.texts import write_nltk_data
from listwise_preference.training import command as train

MODEL = "checkpoints/small-idefics2"
# What makes a run take minutes and suits a model this small; everything else is as in lpoi.py.
TRAINING_SCENES = 1000
UNSEEN_SCENES = 300
RESPONSES = 8
STEPS = 40
BATCH = 16
LEARNING_RATE = 1e-3
# Chosen on scenes that the demo does not use, for fewer hallucinations at about the same Cover (docs/log.md). With the
# paper's weight of the list term, 1, Cover falls further; masks of the mean colour do as well there as black ones. A
# chosen description may name one object more than the rejected one.
LIST_WEIGHT = 0.15
FILL: Fill = "mean"
OBJECTS_MORE = 1
LENGTH_RATIO = 0.7

FOLDERS = (
    "training", "unseen", "nltk_data", "pairs", "lists", "review", "adapter", "answers", "scores", "reports", "ranking"
)  # fmt: skip
FILES = ("table.md", "log.txt", *demo_page.CHARTS)

# The programs when they are installed, and the values that lpoi.py's recipe adds to the defaults of such a run.
INSTALLED = {
    "lpoi.py": "lpoi-train",
    "make_pairs.py": "lpoi-pairs",
    "make_image_lists.py": "lpoi-lists",
    "generate.py": "lpoi-generate",
    "score.py": "lpoi-score",
}
AS_IN_LPOI = (
    "--do_train", "true", "--precompute_ref_log_probs", "true", "--optim", "adamw_torch", "--logging_first_step", "true"
)  # fmt: skip

ON_8B = """\
python lpoi.py                           # on the paper's data (data/README.md), one 48 GB GPU
python generate-idefics-lpoi-amber.py    # its responses to AMBER's questions
python score.py amber runs/idefics2-8b-lpoi-list5-10k-amber.json --data data/AMBER"""


class Progress:
    """The steps: titles, commands and seconds, shown on the terminal and kept for the page."""

    def __init__(self, folder: Path, count: int, installed: bool) -> None:
        self.folder, self.count, self.installed = folder, count, installed
        self.steps: list[demo_page.Step] = []
        self.begun = time.perf_counter()

    @contextlib.contextmanager
    def step(self, name: str, title: str) -> Iterator[demo_page.Step]:
        """One step; its messages are printed at its end."""
        step = demo_page.Step(name, title)
        self.steps.append(step)
        print(f"\n[{len(self.steps)}/{self.count}] {title}", flush=True)
        begun = time.perf_counter()
        yield step
        step.seconds = time.perf_counter() - begun
        print(indented("\n".join(step.messages)), flush=True)

    def run(self, program: str, main: Callable[[list[str]], None], *arguments: object) -> None:
        """Run a program by its own main function; its progress bars go to the terminal, its output to log.txt."""
        argv = list(map(str, arguments))
        command = shlex.join([*([INSTALLED[program]] if self.installed else ["python", program]), *argv])
        self.steps[-1].commands.append(command)
        print(f"  $ {command}", flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            print(f"\n$ {command}")
            main(argv)


def main(recipe: Mapping[str, Any] | None = None) -> None:
    """Run the demo; exits with code 2 on an error that the user can correct.

    Args:
        recipe: lpoi.py's; without it the commands are those of an installed package and give the same numbers.
    """
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", default=MODEL, help="small model that knows such scenes")
    add("--output", type=cli.folder, default=Path("demo"), help="folder to write to")
    add("--scenes", type=cli.count, default=TRAINING_SCENES, help="scenes to train on")
    add("--unseen_scenes", type=cli.count, default=UNSEEN_SCENES, help="scenes to score on")
    add("--steps", type=cli.count, default=STEPS, help=f"training steps, {BATCH} records each")
    add("--seed", type=int, default=0, help="another one gives other scenes, descriptions and order of training")
    given = parser.parse_args()
    cli.run_program(
        lambda: make_everything(
            recipe,
            given.model_name_or_path,
            given.output,
            given.scenes,
            given.unseen_scenes,
            given.steps,
            given.seed,
        )
    )


def make_everything(
    recipe: Mapping[str, Any] | None,
    model: str,
    folder: Path,
    training_count: int,
    unseen_count: int,
    steps: int,
    seed: int,
) -> None:
    """Run all steps and write the page.

    Raises:
        DataError: no such model, a folder of something else, or no description that a pair can be made of.
    """
    demo_page.PAGE.check(folder)
    architecture, parameters = look_at(model)
    demo_page.PAGE.start(folder)
    clear(folder)
    progress = Progress(folder, 8, installed=recipe is None)
    training, unseen, answers, scores = (folder / name for name in ("training", "unseen", "answers", "scores"))
    pairs, unseen_pairs = folder / "pairs" / "training.jsonl", folder / "pairs" / "unseen.json"
    lists, unseen_lists = (folder / "lists" / f"{name}.jsonl" for name in ("training", "unseen"))

    def ask(adapter: str | Path, scenes: Path, questions: str, output: Path, *arguments: object) -> None:
        progress.run(
            "generate.py", lambda argv: generate.main({}, argv), "--model_name_or_path", model, "--dtype", "float32",
            "--adapter", adapter, "--benchmark", "amber", "--questions", scenes / "data" / "query" / questions,
            "--image_root", scenes / "image", "--output", output, *arguments,
        )  # fmt: skip

    def make_lists(scenes: Path, its_pairs: Path, output: Path, *arguments: object) -> None:
        progress.run(
            "make_image_lists.py", make_image_lists.main, "--detector", "annotations",
            "--annotations", scenes / "annotations.jsonl", "--pairs", its_pairs, "--image_root", scenes / "image",
            "--output", output, *arguments,
        )  # fmt: skip

    def lpoi(scenes: Path, *arguments: object) -> None:
        progress.run(
            "lpoi.py", lambda argv: train.main(recipe or {}, argv), *(AS_IN_LPOI if recipe is None else ()),
            "--model_name_or_path", model, "--dtype", "float32", "--image_root", scenes / "image", *arguments,
            "--report_to", "none", "--dataloader_num_workers", 0, "--activation_checkpointing", "false",
        )  # fmt: skip

    with progress.step("scenes", "Draw scenes whose every object is known") as step:
        training_scenes = data.scenes(NATURAL, training_count, f"demo, training {seed}")
        unseen_scenes = data.scenes(NATURAL, unseen_count, f"demo, unseen {seed}")
        data.write_scenes(training, training_scenes)
        data.write_scenes(unseen, unseen_scenes)
        step.say(f"{training_count:,} to train on, {unseen_count:,} unseen ones to score on")
        step.say(f"the first: {training_scenes[0].place}, {', '.join(training_scenes[0].visible)}")

    with progress.step("pairs", "Let the model describe them several times; set its best against its worst") as step:
        step.commands.append(use_nltk_data(folder / "nltk_data"))
        progress.run(
            "make_pairs.py", make_pairs.main, "--model_name_or_path", model, "--dtype", "float32",
            "--prompts", training / "data" / "query" / "query_generative.json", "--image_root", training / "image",
            "--detector", "annotations", "--annotations", training / "annotations.jsonl", "--responses", RESPONSES,
            "--seed", seed, "--max_new_tokens", 60, "--batch_size", 64, "--objects_more", OBJECTS_MORE,
            "--length_ratio", LENGTH_RATIO, "--output", pairs,
        )  # fmt: skip
        summary = read_json(pairs.with_name("training.summary.json"))
        if not summary["pairs"]:
            raise DataError(f"{pairs}: no pair in {training_count} scenes; try more scenes")
        step.say(f"{summary['pairs']:,} pairs of its own descriptions; of the other scenes:")
        step.say(*(f"  {count:,}: {why}" for why, count in summary["prompts_without_a_pair"].items()))
        step.say(*demo_page.first_pair_lines(folder))

    with progress.step("lists", "Mask the object that each right description depends on, step by step") as step:
        make_lists(training, pairs, lists, "--verifier", model, "--fill", FILL, "--review", folder / "review")

    with progress.step("training", "Train by LPOI") as step:
        lpoi(
            training, "--pairs", pairs, "--image_lists", lists, "--output_dir", folder / "adapter",
            "--max_steps", steps, "--per_device_train_batch_size", BATCH, "--gradient_accumulation_steps", 1,
            "--learning_rate", LEARNING_RATE, "--loss_weights", "dpo=1", "anchor=1", f"listwise={LIST_WEIGHT:g}",
            "--fill", FILL, "--seed", seed, "--logging_steps", max(1, steps // 12), "--save_strategy", "no",
        )  # fmt: skip
        step.say("loss {:.2f} at first, {:.2f} at last".format(*demo_page.first_and_last_loss(folder)))

    adapter = folder / "adapter" / "final"
    with progress.step("answers", "Generate responses of the base model and the trained one to unseen scenes") as step:
        for name in demo_page.POLICIES:
            ask("none" if name == "base" else adapter, unseen, "query_all.json", answers / f"{name}.json")
        step.say(*demo_page.first_answer_lines(folder, unseen_scenes))

    with progress.step("scores", "Score their responses by AMBER's rules") as step:
        for name in demo_page.POLICIES:
            progress.run(
                "score.py", score.main, "amber", answers / f"{name}.json", "--data", unseen, "--bootstrap", 1000,
                "--output", scores / f"{name}.json", "--report", folder / "reports" / name,
                "--image_root", unseen / "image",
            )  # fmt: skip
        results = [scores / f"{name}.json" for name in demo_page.POLICIES]
        progress.run("score.py", score.main, "compare", *results, "--markdown", folder / "table.md")
        step.say(*demo_page.table_lines(folder))

    with progress.step("ranking", "How likely is the right description as its object is masked?") as step:
        count = write_pairs(unseen_pairs, unseen_scenes, answers / "base.json")
        make_lists(unseen, unseen_pairs, unseen_lists, "--verifier", "none")
        lpoi(
            unseen, "--do_train", "false", "--eval_pairs", unseen_pairs, "--image_lists", unseen_lists,
            "--fill", FILL, "--init_adapter", adapter,
            "--output_dir", folder / "ranking", "--per_device_eval_batch_size", BATCH,
        )  # fmt: skip
        step.say(f"measured on the {count:,} unseen scenes that the base model described wrongly")

    with progress.step("page", "Write the page") as step:
        run = demo_page.Run(
            model, architecture, parameters, training_scenes, unseen_scenes, RESPONSES, Drawing(fill=FILL), LIST_WEIGHT,
            progress.steps, ON_8B,
        )  # fmt: skip
        step.say(f"open {demo_page.finish(folder, run)} in a browser")

    print(f"""
Done in {time.perf_counter() - progress.begun:.0f} seconds. In {folder}/:
  index.html             the page that shows all of it
  ranking.png            how likely the right description is, over the mask ratio of its object
  review/index.html      every image list, to accept or reject
  reports/*/index.html   every response to the unseen scenes, with AMBER's marks
  table.md, scores/      base and trained compared
  adapter/final/         the trained adapter
  log.txt                what the programs printed

The same on Idefics2-8B:
{indented(ON_8B)}""")


def look_at(model: str) -> tuple[str, int]:
    """The model's class and number of parameters.

    Raises:
        DataError: there is no such model; raised before anything of an earlier run is removed.
    """
    if not Path(model).is_dir():
        shipped = "it lies in the repository: start at the top of a clone, or name its folder"
        raise DataError(f"{model}: no such folder; {shipped if model == MODEL else 'name one'} by --model_name_or_path")
    from listwise_preference.models import loading

    loaded = loading.load_base_model(model, dtype=loading.DTYPES["float32"])
    return type(loaded).__name__, loaded.num_parameters()


def clear(folder: Path) -> None:
    """Remove what an earlier run left, and nothing else."""
    for name in FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name in ("pairs", "answers", "scores", "reports"):
        (folder / name).mkdir()


def use_nltk_data(folder: Path) -> str:
    """Write the tagger's data for the scenes' few words and use it; returns the command for a shell."""
    import nltk

    write_nltk_data(folder)
    nltk.data.path.insert(0, str(folder))
    return f"export NLTK_DATA={shlex.quote(str(folder))}"


def write_pairs(file: Path, scenes: Sequence[Scene], answers: Path) -> int:
    """Pairs of a right description and the model's, where that names something absent; returns their number."""
    responses = [(one["id"], one["response"]) for one in read_json(answers)]
    descriptions = [one for one in responses if one[0] <= len(scenes)]  # yes/no responses come behind them
    pairs = data.preference_pairs(scenes, descriptions, matched=False)
    if not pairs:
        raise DataError(
            f"{answers}: no hallucination in {len(scenes)} descriptions that a pair can use; try more scenes"
        )
    data.write_json(file, pairs)
    return len(pairs)


def indented(text: str) -> str:
    """Each line indented by two spaces."""
    return "\n".join(f"  {line}" for line in text.splitlines())


if __name__ == "__main__":
    main()
