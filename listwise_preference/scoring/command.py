"""Score answers files as the benchmarks' own programs do: AMBER, Object HalBench, CHAIR, MMHal-Bench, POPE;
and probe whether a model looks at the object that an answer is about.

    python score.py amber answers.json --data AMBER --output scores/lpoi-amber.json
    python score.py amber answers.json --data AMBER --report look --image_root AMBER/image
    python score.py object-halbench answers.jsonl --coco_annotations annotations
    python score.py mmhal answers.json --judge_base_url http://localhost:8000/v1 --judge_model MODEL
    python score.py pope answers.jsonl --questions coco_pope_random.json
    python score.py awareness --pairs pairs.json --image_lists lists.jsonl --model_name_or_path MODEL --adapter FOLDER
    python score.py compare scores/*.json --paper --markdown table.md --plot table.png

Every scorer prints a table and, last, one JSON line; --output writes the same with protocol, versions and
counts.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from listwise_preference.cli import count, run_program
from listwise_preference.scoring import runs
from listwise_preference.scoring.compare import PAPER
from listwise_preference.scoring.judge import API_KEY_VARIABLE
from listwise_preference.scoring.similarity import OFFICIAL_MODEL


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="benchmark")

    def scorer(name: str, help_: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        one.set_defaults(run=run)
        one.add_argument("answers", type=Path, help="answers file (JSON list or JSON lines)")
        one.add_argument("--output", type=Path, help="write the result there as JSON")
        one.add_argument("--partial", action="store_true", help="score what is there and mark the result partial")
        one.add_argument(
            "--bootstrap",
            type=count,
            default=0,
            metavar="N",
            help="95 %% intervals by N resamples of images",
        )
        one.add_argument("--seed", type=int, default=0, help="of the resamples")
        return one

    def with_judge(one: argparse.ArgumentParser) -> None:
        one.add_argument(
            "--judge_cache",
            type=Path,
            help="folder that keeps replies (default ~/.cache/listwise_preference/judge)",
        )
        one.add_argument(
            "--judge_retries", type=int, default=6, help="tries again after a fault, waiting longer each time"
        )
        one.add_argument("--judge_timeout", type=float, default=120.0, help="seconds for one reply")
        one.add_argument("--judge_workers", type=count, default=1, help="requests at a time (default 1)")

    one = scorer("amber", "AMBER: descriptions and yes/no questions", runs.score_amber)
    one.add_argument("--data", type=Path, required=True, help="clone of github.com/junyangwang0410/AMBER")
    one.add_argument(
        "--similarity",
        metavar="FILE|SPACY_MODEL",
        help=f"which words are alike (default: shipped table; official: {OFFICIAL_MODEL})",
    )
    one.add_argument("--save_similarity", type=Path, metavar="FILE", help="keep the table made with a spaCy model")
    one.add_argument("--lemmas", metavar="FILE|wordnet", help="default: shipped table")
    one.add_argument(
        "--yes_no",
        choices=("word", "exact", "release"),
        default="word",
        help="word: first whole word yes or no in the first sentence (default); exact: only Yes and No, as "
        "AMBER's program alone; release: the released LPOI code's rule, for comparison, not to be trusted",
    )

    one.add_argument("--report", type=Path, metavar="DIR", help="write a page to look at the answers")
    one.add_argument("--image_root", type=Path, metavar="DIR", help="AMBER's images, to show them on the page")

    for name, help_ in (
        ("object-halbench", "Object HalBench: objects in answers about 300 COCO images"),
        ("chair", "CHAIR: objects in captions of any COCO images"),
    ):
        one = scorer(name, help_, runs.score_coco)
        one.add_argument(
            "--coco_annotations",
            type=Path,
            required=True,
            help="folder with instances_*.json and captions_*.json",
        )
        one.add_argument("--questions", type=Path, help="the benchmark's questions, where answers have no image_id")
        one.add_argument("--synonyms", type=Path, help="synonym table (default: CHAIR's own, shipped)")
        one.add_argument("--lemmas", metavar="FILE|wordnet", help="default: shipped table")
        if name == "object-halbench":
            one.add_argument(
                "--objects",
                choices=("words", "extractor", "given"),
                help="where objects come from: the answer's words (default), a language model, or the list "
                "extract_objs that each answer brings",
            )
            one.add_argument(
                "--extractor_base_url", "--judge_base_url", metavar="URL", help="OpenAI-compatible endpoint"
            )
            one.add_argument("--extractor_model", "--judge_model", metavar="MODEL")
            one.add_argument(
                "--extractor_prompt",
                "--judge_prompt",
                type=Path,
                metavar="FILE",
                help="template with {question} and {answer} (default: ours)",
            )
            one.add_argument(
                "--spacy_model",
                help="noun tagger of extracted names (default: NLTK; official: en_core_web_trf)",
            )
            with_judge(one)

    one = scorer("mmhal", "MMHal-Bench: 96 answers rated by a judge", runs.score_mmhal)
    one.add_argument(
        "--judge_base_url",
        required=True,
        metavar="URL",
        help=f"OpenAI-compatible endpoint; the key is read from {API_KEY_VARIABLE}",
    )
    one.add_argument("--judge_model", required=True, metavar="MODEL")
    one.add_argument(
        "--judge_prompt",
        type=Path,
        metavar="FILE",
        help="template with {image_content}, {question}, {gt_answer} and {model_answer}, or four {}; default: ours",
    )
    one.add_argument(
        "--questions",
        type=Path,
        help="the benchmark's answer template, where the answers are not in its form",
    )
    with_judge(one)

    one = scorer("pope", "POPE: is there a ... in the image?", runs.score_pope)
    one.add_argument("--questions", type=Path, required=True, help="coco_pope_random.json, _popular or _adversarial")

    _add_awareness(commands)

    one = commands.add_parser(
        "compare",
        help="scores files side by side",
        description="Scores files side by side.",
        allow_abbrev=False,
    )
    one.set_defaults(run=runs.compare_runs)
    one.add_argument("scores", type=Path, nargs="+", help="files written by --output")
    one.add_argument("--names", nargs="+", help="names of the runs (default: file names)")
    one.add_argument("--paper", action="store_true", help="add the paper's rows")
    one.add_argument(
        "--paper_model",
        action="append",
        choices=tuple(PAPER),
        help="add the paper's rows for this model only",
    )
    one.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    one.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a bar chart")

    args = parser.parse_args(argv)
    if args.benchmark == "object-halbench" and args.objects is None:
        args.objects = "extractor" if args.extractor_base_url else "words"
    return args


def _add_awareness(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    help_ = "does a model look at the object, or does it detect hidden boxes?"
    one = commands.add_parser(
        "awareness",
        help=help_,
        description="Does a model look at the object, or does it detect hidden boxes? Scores the chosen answer with the"
        " object hidden, with an equal box hidden beside it, and with the object hidden otherwise (docs/scoring.md).",
        allow_abbrev=False,
    )
    one.set_defaults(run=runs.score_awareness)
    add = one.add_argument
    add(
        "--pairs",
        type=Path,
        required=True,
        help="as for training: JSON or JSONL of {img_path, prompt, chosen, rejected}",
    )
    add("--image_root", type=Path, default=Path(), help="folder that the records' img_path is relative to (default .)")
    add("--image_lists", type=Path, required=True, help="JSONL with a box per record")
    add("--exclude", type=Path, metavar="FILE", help='ids to leave out: {"rejected": [ids]} or a list')
    add(
        "--on_bad_record",
        choices=("stop", "drop"),
        default="stop",
        help="stop with a report (default), or probe the other records",
    )
    add(
        "--visual_prompt",
        choices=("ellipse", "none"),
        default="ellipse",
        help="training's marker of the hidden part (default ellipse)",
    )
    add("--fill", choices=("black", "mean", "blur"), default="black", help="training's fill (default black)")
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="boxes that the one beside the object must not overlap: COCO instances JSON, or JSONL of "
        "{img_path, label, box}",
    )
    add(
        "--removed_root",
        type=Path,
        metavar="DIR",
        help="images of the same paths and sizes without the object, as one more condition",
    )
    add("--model_name_or_path", required=True, help="base model: a folder or a name on the hub")
    add("--model_revision", help="branch, tag or commit of the model on the hub")
    add("--adapter", required=True, metavar="FOLDER|none", help="adapter of the policy; none probes the base alone")
    add(
        "--dtype",
        choices=("bfloat16", "float32", "float16"),
        default="bfloat16",
        help="of the base weights (default bfloat16)",
    )
    add("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="default sdpa")
    add("--batch_size", type=count, default=1, help="records at a time, each with all its images (default 1)")
    add("--max_completion_length", type=count, default=384, help="tokens after which an answer is cut (default 384)")
    add("--seed", type=int, default=0, help="of the boxes' places and of the resamples")
    add("--bootstrap", type=count, default=1000, metavar="N", help="resamples of images (default 1000)")
    add("--output", type=Path, help="write the result and every record's numbers there as JSON")
    add("--plot", type=Path, metavar="FILE.png", help="draw a bar chart")


def main(argv: list[str] | None = None) -> None:
    """Run the command; exits with code 2 for something the user can put right."""
    args = parse_arguments(argv)
    run_program(lambda: args.run(args))


if __name__ == "__main__":
    main()
