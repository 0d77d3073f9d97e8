"""The dataclasses behind the training programs' command lines, and how recipe, file and command line meet.

A recipe gives every default, ``--config run.yaml`` comes over it, the command line over both. Our own options stand
first in ``--help``, then those of ``transformers.TrainingArguments``.
"""

import dataclasses
import difflib
import json
import math
import os
import re
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from listwise_preference.training.losses import TERMS
from listwise_preference.training.objective import PRESETS, Objective, read_weights


def _option(default: Any, help: str) -> Any:
    # argparse formats help texts with %, so that a literal one is doubled.
    return field(default=default, metadata={"help": help.replace("%", "%%")})


@dataclass
class ModelArguments:
    """Which weights, in which precision, and the adapter that is trained on them."""

    _argument_group_name: ClassVar[str] = "model and adapter"

    model_name_or_path: str | None = _option(None, "checkpoint of the base model: a folder or a name on the hub")
    model_revision: str | None = _option(None, "branch, tag or commit of the checkpoint on the hub")
    dtype: Literal["bfloat16", "float32", "float16"] = _option(
        "bfloat16",
        "of the frozen base weights; bfloat16 also runs the adapter under bf16 autocast (see --bf16)",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = _option(
        "sdpa", "attention; flash_attention_2 takes no custom mask and needs --row_layout plain"
    )
    init_adapter: str | None = _option(
        None,
        "folder of an adapter to start from (the --lora_* options are then its own); the reference stays the base",
    )
    lora_r: int = _option(8, "rank of the adapter")
    lora_alpha: int = _option(8, "scale of the adapter: its update is multiplied by alpha / r")
    lora_dropout: float = _option(0.0, "dropout in the adapter")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "module name endings, or all-linear: every linear layer but the vocabulary projection"},
    )
    freeze_vision_tower: bool = _option(False, "give the vision tower no adapter")


@dataclass
class DataArguments:
    """Pairs, images and lists."""

    _argument_group_name: ClassVar[str] = "data"

    pairs: str | None = _option(None, "JSON or JSONL of {img_path, prompt, chosen, rejected}")
    image_root: str = _option(".", "folder that the records' img_path is relative to")
    ranked_image_folders: list[str] | None = field(
        default=None,
        metadata={"help": "folders with the ranked images, best first, the same file names in each"},
    )
    image_lists: str | None = _option(
        None, "JSONL with a box per record; the images are drawn when they are loaded (instead of folders)"
    )
    list_size: int = _option(5, "images in a list drawn from a box, 2 or more; L hide 0, 1/(L-1) ... 1 of the box")
    visual_prompt: Literal["ellipse", "none"] = _option("ellipse", "what marks the hidden part of a box")
    grow: Literal["longer_side", "left_to_right", "top_to_bottom"] = _option(
        "longer_side", "how the hidden part grows: along the longer side of the box, or one way always"
    )
    fill: Literal["black", "mean", "blur"] = _option(
        "black", "what covers the hidden part: black, the image's mean colour, or its own pixels blurred"
    )
    max_completion_length: int = _option(384, "tokens after which an answer is cut; prompts are never cut")
    on_bad_record: Literal["stop", "drop"] = _option("stop", "stop with a report, or train on the other records")
    exclude: str | None = _option(
        None,
        'records of --pairs to leave out: JSON {"rejected": [ids]}, as the review page of image lists saves it, or'
        " a list of ids",
    )
    eval_pairs: str | None = _option(None, "pairs to evaluate on, in the same form as --pairs")
    eval_image_lists: str | None = _option(None, "image lists of --eval_pairs, if they are not in --image_lists")
    eval_share: float = _option(0.0, "hold out this share of --pairs for evaluation, whole images at a time")


@dataclass
class ObjectiveArguments:
    """What is optimized, and how it is computed."""

    _argument_group_name: ClassVar[str] = "objective"

    objective: Literal["lpoi", "dpo", "mdpo"] = _option(
        "lpoi", "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items())
    )
    loss_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": f"weights over the objective's, each name=number, of {', '.join(TERMS)}; 0 skips the work; three"
            " bare numbers are those of dpo, anchor and listwise"
        },
    )
    beta: float = _option(0.1, "scale of the rewards: beta * (log pi - log pi_ref)")
    anchor_delta: float = _option(0.0, "margin that the anchor asks of the chosen response's reward")
    row_layout: Literal["packed", "plain"] = _option(
        "packed",
        "packed: the rejected response in the row of the first image, behind a mask; plain: in a row of its own",
    )
    precompute_ref_log_probs: bool = _option(
        False,
        "compute the reference's log-probabilities once, before training, and keep them; else at every step",
    )
    precompute_ref_batch_size: int | None = _option(
        None,
        "records per forward pass when precomputing; by default 4 x the training batch: no gradients are kept",
    )
    ref_cache: str | None = _option(None, "folder of the precomputed values, by default reference/ in --output_dir")

    def resolve(self) -> Objective:
        """The objective's numbers.

        Raises:
            ValueError: weights or beta out of range.
        """
        preset = PRESETS[self.objective]
        weights = read_weights(self.loss_weights, preset.weights)
        return Objective(weights, self.beta, self.anchor_delta, preset.list_source)


@dataclass
class TrainerArguments(TrainingArguments):
    """The Trainer's own options, in a help group of their own."""

    _argument_group_name: ClassVar[str] = "training (transformers.TrainingArguments)"


@dataclass(frozen=True)
class Arguments:
    """All options of a run."""

    model: ModelArguments
    data: DataArguments
    objective: ObjectiveArguments
    training: TrainerArguments

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; access tokens are left out."""
        return {
            "model": dataclasses.asdict(self.model),
            "data": dataclasses.asdict(self.data),
            "objective": dataclasses.asdict(self.objective),
            "training": self.training.to_dict(),
        }


# Where our default is not the Trainer's: a loss that is not a number shall be seen, not averaged away.
_TRAINER_DEFAULTS = {"logging_nan_inf_filter": False}


class _Parser(HfArgumentParser):
    """Errors are one line: the usage of 200 options would bury it."""

    def error(self, message: str) -> NoReturn:
        # Once, however many processes were started.
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n" if os.environ.get("RANK", "0") == "0" else None)


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """One spelling and one value name per option, and no default where there is none."""

    def _format_action_invocation(self, action: Action) -> str:
        spelling = action.option_strings[-1 if action.dest == "help" else 0]
        return f"{spelling} {self._format_args(action, 'VALUE')}".rstrip()

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_usage(self, *_: Any, **__: Any) -> str:
        return f"usage: {self._prog} [--config run.yaml] [--option value ...]\n\n"


def parse(recipe: Mapping[str, Any], argv: Sequence[str] | None = None, description: str | None = None) -> Arguments:
    """The options of a run: the recipe's, over them ``--config``'s, over both the command line's.

    Exits with code 2 and one line on an unknown option or a wrong value.
    """
    groups: Any = (ModelArguments, DataArguments, ObjectiveArguments, TrainerArguments)
    parser = _Parser(
        groups,
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    # argparse takes -1e-3 for an option: it knows no exponents.
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options; the command line goes over it")
    names = {action.dest for action in parser._actions}
    if unknown := set(recipe) - names:
        raise ValueError(f"the recipe sets unknown options: {', '.join(sorted(unknown))}")
    parser.set_defaults(**_TRAINER_DEFAULTS, **recipe)

    command_line = list(sys.argv[1:] if argv is None else argv)
    given = _parse_known(parser, command_line, names)
    if given.config is not None:
        command_line = _file_options(parser, Path(given.config), names) + command_line
    options = _parse_known(parser, command_line, names)
    explicit = {name for name in names if any(_is_option(token, name) for token in command_line)}
    _settle(parser, options, explicit)

    def of(group: Any) -> dict[str, Any]:
        return {f.name: vars(options)[f.name] for f in dataclasses.fields(group) if f.init}

    try:
        arguments = Arguments(
            ModelArguments(**of(ModelArguments)),
            DataArguments(**of(DataArguments)),
            ObjectiveArguments(**of(ObjectiveArguments)),
            TrainerArguments(**of(TrainerArguments)),
        )
        arguments.objective.resolve()
    except (ValueError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    for logger in arguments.training.report_to or ():
        if logger not in ("all", "none", *get_available_reporting_integrations()):
            parser.error(f"--report_to {logger}: install its package first (pip install {logger})")
    return arguments


def _parse_known(parser: _Parser, tokens: Sequence[str], names: set[str]) -> Namespace:
    options, rest = parser.parse_known_args(tokens)
    if rest:
        wrong = rest[0].partition("=")[0]
        close = difflib.get_close_matches(wrong.lstrip("-").replace("-", "_"), names, n=1)
        parser.error(f"unknown option {wrong}" + (f"; did you mean --{close[0]}?" if close else ""))
    return options


def _is_option(token: str, name: str) -> bool:
    spelled = token.partition("=")[0].replace("-", "_")
    return token.startswith("--") and spelled in (f"__{name}", f"__no_{name}")


def _file_options(parser: _Parser, file: Path, names: set[str]) -> list[str]:
    """A YAML mapping as command-line tokens, so that both are checked by the same rules."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {file}: {error.strerror}")
    except yaml.YAMLError as error:
        parser.error(f"--config {file} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        parser.error(f"--config {file} must hold option: value lines")
    choices = {action.dest: action.choices for action in parser._actions}
    tokens = []
    for name, value in content.items():
        if name not in names or name in ("config", "help"):
            close = difflib.get_close_matches(str(name), names, n=1)
            parser.error(f"--config {file}: unknown option {name}" + (f"; did you mean {close[0]}?" if close else ""))
        if value is None:
            parser.error(f"--config {file}: {name} has no value")
        if isinstance(value, list):
            tokens += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            tokens.append(f"--{name}={json.dumps(value)}")
        elif value is False and "no" in (choices.get(name) or ()):
            tokens.append(f"--{name}=no")  # YAML reads a bare no as false
        else:
            tokens.append(f"--{name}={value}")
    return tokens


def _settle(parser: _Parser, options: Namespace, explicit: set[str]) -> None:
    """Options that hang together; what the user gave wins over what the recipe gave."""
    if "model_name_or_path" in explicit and "model_revision" not in explicit:
        options.model_revision = None  # the recipe's belongs to the recipe's model
    if "use_cpu" not in explicit:
        options.use_cpu = not torch.accelerator.is_available()
    if "bf16" not in explicit:
        options.bf16 = options.dtype == "bfloat16"
    options.remove_unused_columns = False  # a record is no row of model inputs; the collator makes those
    if options.ranked_image_folders and options.image_lists:
        if {"ranked_image_folders", "image_lists"} <= explicit:
            parser.error("--ranked_image_folders and --image_lists are two ways to the same images; give one")
        if "image_lists" in explicit:
            options.ranked_image_folders = None
        else:
            options.image_lists = None
    problems = {
        "--model_name_or_path is needed": not options.model_name_or_path,
        "--output_dir is needed": not options.output_dir,
        "--pairs is needed to train": options.do_train and not options.pairs,
        "nothing to do: --do_train false needs --eval_pairs": not options.do_train and not options.eval_pairs,
        "--list_size must be 2 or more": options.list_size < 2,
        "--eval_share must be at least 0 and below 1": not 0 <= options.eval_share < 1,
        "--eval_share and --eval_pairs are two ways to the same; give one": options.eval_share and options.eval_pairs,
        "--max_completion_length must be 1 or more": options.max_completion_length < 1,
        "--lora_r must be 1 or more": options.lora_r < 1,
        "--lora_alpha must be above 0": options.lora_alpha <= 0,
        "--lora_dropout must be at least 0 and below 1": not 0 <= options.lora_dropout < 1,
        "--learning_rate must be a number, 0 or more": not 0 <= options.learning_rate < math.inf,
        "--per_device_train_batch_size must be 1 or more": options.per_device_train_batch_size < 1,
        "--per_device_eval_batch_size must be 1 or more": options.per_device_eval_batch_size < 1,
        "--gradient_accumulation_steps must be 1 or more": options.gradient_accumulation_steps < 1,
        "--dataloader_drop_last true would drop records of the evaluation too": (
            options.dataloader_drop_last and (options.eval_pairs or options.eval_share)
        ),
        "--precompute_ref_batch_size must be 1 or more": (options.precompute_ref_batch_size or 1) < 1,
        "--attn_implementation flash_attention_2 needs --row_layout plain: it takes no custom mask": (
            options.attn_implementation == "flash_attention_2" and options.row_layout == "packed"
        ),
        "--ranked_image_folders needs two folders or more, best first": (
            options.ranked_image_folders and len(options.ranked_image_folders) < 2
        ),
    }
    for message, wrong in problems.items():
        if wrong:
            parser.error(message)
    if options.eval_strategy != "no" and not options.eval_pairs and not options.eval_share:
        parser.error("--eval_strategy needs --eval_pairs or --eval_share")
