"""The options of a training run, and how recipe, file and command line meet.

A recipe gives every default, ``--config run.yaml`` overrides it, the command line overrides both. ``--help`` has our
own options first, then those of ``transformers.TrainingArguments``. No large library is imported for it.
"""

import dataclasses
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from listwise_preference.cli import Parser, add_options, json_object, option, parse_options, positive
from listwise_preference.training.losses import TERMS
from listwise_preference.training.objective import PRESETS, Objective, read_weights
from listwise_preference.training.other_trainers import HERE
from listwise_preference.training.trainer_arguments import LOGGERS, REFUSED, TrainerArguments


@dataclass
class ModelArguments:
    """Which weights, in which precision, and the adapter that is trained on them."""

    model_name_or_path: str = option(None, "checkpoint of the base model: a folder or a name on the hub")
    model_revision: str | None = option(None, "branch, tag or commit of the checkpoint on the hub")
    dtype: Literal["bfloat16", "float32", "float16"] = option(
        "bfloat16", "of the frozen base weights; bfloat16 also runs the adapter under bf16 autocast (see --bf16)"
    )
    load_in_4bit: bool = option(
        False, "quantize the frozen base weights to NF4 on loading (needs bitsandbytes): less memory, another reference"
    )
    load_in_8bit: bool = option(False, "the same to 8 bits, by LLM.int8(): more memory than 4 bits, less of a change")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = option(
        "sdpa", "attention; the language model's has a form of its own with ragged rows"
    )
    processor_settings: dict[str, Any] | None = option(
        None,
        "JSON over the checkpoint's settings of its image processor, for fewer tokens an image:"
        " '{\"do_image_splitting\": false}' (Idefics3, SmolVLM), '{\"crop_to_patches\": false}' (InternVL, Ovis2),"
        " '{\"max_pixels\": 401408}' (Qwen)",
        read=json_object,
    )
    init_adapter: str | None = option(
        None,
        "folder of an adapter to start from (the --lora_* options are then its own); see --reference",
    )
    lora_r: int = option(8, "rank of the adapter")
    lora_alpha: int = option(8, "scale of the adapter: its update is multiplied by alpha / r")
    lora_dropout: float = option(0.0, "dropout in the adapter")
    use_rslora: bool = option(False, "rank-stabilized LoRA: the update is multiplied by alpha / sqrt(r) instead")
    use_dora: bool = option(
        False, "DoRA: the adapter's update changes directions, a vector of magnitudes is trained too"
    )
    lora_target_modules: list[str] = option(
        ["all-linear"], "module name endings, or all-linear: every linear layer but the vocabulary projection"
    )
    lora_target_parameters: list[str] | None = option(
        None, "endings of parameter names that get an adapter beside the modules: experts that are one parameter"
    )
    freeze_vision_tower: bool = option(False, "give the vision tower no adapter")

    @property
    def bits(self) -> int | None:
        """Of the base weights, where they are quantized."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def quantized(self) -> str:
        """How the base weights are, for what identifies them."""
        return "/nf4" if self.load_in_4bit else "/int8" if self.load_in_8bit else ""


@dataclass
class DataArguments:
    """Pairs, images and lists."""

    pairs: str | None = option(
        None, "JSON, CSV or parquet of {img_path, prompt, chosen, rejected}, or as docs/pairs.md says"
    )
    image_root: str = option(".", "folder that the records' img_path is relative to")
    ranked_image_folders: list[str] | None = option(
        None, "folders with the ranked images, best first, the same file names in each"
    )
    image_lists: str | None = option(
        None, "JSONL with a box per record; the images are drawn when they are loaded (instead of folders)"
    )
    list_size: int = option(5, "images in a list drawn from a box, 2 or more; L mask 0, 1/(L-1) ... 1 of the box")
    visual_prompt: Literal["ellipse", "none"] = option("ellipse", "what marks the masked part of a box")
    grow: Literal["longer_side", "left_to_right", "top_to_bottom"] = option(
        "longer_side", "how the masked part grows: along the longer side of the box, or one way always"
    )
    fill: Literal["black", "mean", "blur", "texture"] = option(
        "black",
        "what covers the masked part: black, the image's mean colour, its own pixels blurred, or the texture beside "
        "the box",
    )
    system_prompt: str | None = option(None, "a system turn before every prompt, for chat templates that have one")
    max_completion_length: int = option(384, "tokens after which a completion is cut; prompts are never cut")
    on_bad_record: Literal["stop", "drop"] = option("stop", "stop with a report, or train on the other records")
    exclude: str | None = option(
        None,
        'records of --pairs to leave out: JSON {"rejected": [ids]}, as the review page of image lists saves it, or'
        " a list of ids",
    )
    sample_questions: str | None = option(
        None,
        "JSON or JSONL of {image, question}: what base and adapter respond is printed at each evaluation while training"
        " (--eval_strategy), and kept in samples.jsonl",
    )
    eval_pairs: str | None = option(None, "pairs to evaluate on, in the same form as --pairs")
    eval_image_lists: str | None = option(None, "image lists of --eval_pairs, if they are not in --image_lists")
    eval_share: float = option(0.0, "hold out this share of --pairs for evaluation, whole images at a time")


@dataclass
class ObjectiveArguments:
    """What is optimized, and how it is computed."""

    objective: str = option(
        "lpoi", "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items()), choices=PRESETS
    )
    loss_weights: list[str] | None = option(
        None,
        f"weights over the objective's, each name=number, of {', '.join(TERMS)}; 0 skips the work; three bare numbers"
        " are those of dpo, anchor and listwise",
    )
    beta: float = option(0.1, "scale of the rewards: beta * (log pi - log pi_ref)")
    anchor_delta: float = option(0.0, "margin that the anchor asks of the chosen response's reward")
    reference: Literal["base", "init_adapter"] = option(
        "base",
        "what the policy is compared with: base, the model without an adapter; init_adapter, the model with the one of"
        " --init_adapter, so that rewards start at 0",
    )
    row_layout: str = option(
        "auto",
        "ragged: all rows behind one another, without padding, the rejected response in the row of the first image;"
        " unpacked: padded rows, the rejected response in one of its own; auto: ragged for the models for which it is"
        " exact; packed and plain are former names of the two",
        choices=("auto", "ragged", "unpacked", "packed", "plain"),
    )
    fused_layers: bool = option(
        True, "LoRA layers that keep less for the backward pass, where they equal peft's own; false: peft's own"
    )
    precompute_ref_log_probs: bool = option(
        False, "compute the reference's log-probabilities once, before training, and keep them; else at every step"
    )
    precompute_ref_batch_size: int | None = option(
        None, "records per forward pass when precomputing; by default as many as fit a GPU, 32 at most"
    )
    ref_cache: str | None = option(None, "folder of the precomputed values, by default reference/ in --output_dir")
    estimate: bool = option(
        False, "print what the run will cost in memory, time and disk, from its config and data alone, and stop"
    )
    dry_run: bool = option(
        False,
        "read and check everything, build one batch, show its record as the model will see it on a page in"
        " --output_dir/dry_run, and stop; no weights are loaded",
    )

    def resolve(self, label_smoothing: float = 0.0) -> Objective:
        """The objective's numbers; label smoothing has its option among the Trainer's.

        Raises:
            ValueError: weights or beta out of range.
        """
        preset = PRESETS[self.objective]
        weights = read_weights(self.loss_weights, preset.weights)
        return Objective(weights, self.beta, self.anchor_delta, preset.list_source, label_smoothing)


@dataclass
class RunArguments:
    """The run itself: its folder, where it goes on, when it stops."""

    overwrite_output_dir: bool = option(
        False, "delete the checkpoints and the adapter that are in --output_dir, and start anew"
    )
    allow_changed: list[str] | None = option(
        None,
        "what may differ from the run that is resumed, by name: options (learning_rate), data (pairs, images),"
        " base_weights, libraries (torch), processes; optimizer or manifest for a checkpoint that lacks it",
    )
    save_at_minutes: float | None = option(
        None, "after so many minutes write a checkpoint and stop; the same command goes on", read=positive
    )
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop",
        "a loss or gradient that is no number: stop, and name its records; or skip the step, in at most 1 % of them",
    )


@dataclass(frozen=True)
class Arguments:
    """All options of a run."""

    model: ModelArguments
    data: DataArguments
    objective: ObjectiveArguments
    training: TrainerArguments
    run: RunArguments


# Where our default is not the Trainer's: a loss that is not a number shall be seen, not averaged away.
_TRAINER_DEFAULTS = {"logging_nan_inf_filter": False}


def parse(recipe: Mapping[str, Any], argv: Sequence[str] | None = None, description: str | None = None) -> Arguments:
    """The options of a run: the recipe's, over them ``--config``'s, over both the command line's.

    Exits with code 2 and one line on an unknown option or a wrong value.
    """
    parser = Parser(description, usage="%(prog)s [--config run.yaml] [--option value ...]")
    add_options(parser, "model and adapter", ModelArguments)
    add_options(parser, "data", DataArguments)
    add_options(parser, "objective", ObjectiveArguments)
    add_options(parser, "going on and stopping", RunArguments)
    add_options(parser, "training (transformers.TrainingArguments)", TrainerArguments)
    parser.known_elsewhere = HERE
    options, explicit = parse_options(parser, {**_TRAINER_DEFAULTS, **recipe}, argv)
    _settle(parser, options, explicit)

    def given(group: type) -> dict[str, Any]:
        return {field.name: vars(options)[field.name] for field in dataclasses.fields(group)}

    arguments = Arguments(
        ModelArguments(**given(ModelArguments)),
        DataArguments(**given(DataArguments)),
        ObjectiveArguments(**given(ObjectiveArguments)),
        TrainerArguments(**given(TrainerArguments)),
        RunArguments(**given(RunArguments)),
    )
    try:
        arguments.objective.resolve(arguments.training.label_smoothing_factor)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _settle(parser: Parser, options: Namespace, explicit: frozenset[str]) -> None:
    """Options that hang together; what the user gave wins over what the recipe gave."""
    if "model_name_or_path" in explicit and "model_revision" not in explicit:
        options.model_revision = None  # the recipe's belongs to the recipe's model
    if "use_cpu" not in explicit:
        options.use_cpu = None  # decided by what the machine has, once torch is there to ask
    if "gradient_checkpointing" in explicit and "activation_checkpointing" not in explicit:
        options.activation_checkpointing = options.gradient_checkpointing  # its old name
    if "bf16" not in explicit:
        options.bf16 = options.dtype == "bfloat16"
    defaults = vars(TrainerArguments())
    for name, why in REFUSED.items():
        if vars(options)[name] != defaults[name]:
            parser.error(f"--{name} has no use here: {why}")
    evaluates = options.eval_pairs or options.eval_share
    unused_columns = options.remove_unused_columns
    options.remove_unused_columns = False  # a record is no row of model inputs; the collator makes those
    options.row_layout = {"packed": "ragged", "plain": "unpacked"}.get(options.row_layout, options.row_layout)
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
        "--remove_unused_columns has no use here: records have no columns": (
            "remove_unused_columns" in explicit and unused_columns
        ),
        "--train_sampling_strategy has no such use here: a record's length is not known before its images are": (
            options.train_sampling_strategy in ("group_by_length", "batch_rebalance")
        ),
        "--do_eval has no use here: --eval_pairs or --eval_share evaluates": options.do_eval and not evaluates,
        "--eval_on_start needs --eval_pairs or --eval_share": options.eval_on_start and not evaluates,
        "--optim_target_modules is GaLore's and APOLLO's alone": (
            options.optim_target_modules and not options.optim.startswith(("galore", "apollo"))
        ),
        "--eval_share must be at least 0 and below 1": not 0 <= options.eval_share < 1,
        "--eval_share and --eval_pairs are two ways to the same; give one": options.eval_share and options.eval_pairs,
        "--max_completion_length must be 1 or more": options.max_completion_length < 1,
        "--reference init_adapter needs --init_adapter": options.reference == "init_adapter"
        and not options.init_adapter,
        "--lora_r must be 1 or more": options.lora_r < 1,
        "--lora_alpha must be above 0": options.lora_alpha <= 0,
        "--load_in_4bit and --load_in_8bit are two ways to the same; give one": (
            options.load_in_4bit and options.load_in_8bit
        ),
        "--load_in_4bit and --load_in_8bit need a package that is not installed: pip install bitsandbytes": (
            (options.load_in_4bit or options.load_in_8bit)
            and not (options.estimate or options.dry_run)
            and not find_spec("bitsandbytes")
        ),
        "--lora_dropout must be at least 0 and below 1": not 0 <= options.lora_dropout < 1,
        "--learning_rate must be a number, 0 or more": not 0 <= options.learning_rate < math.inf,
        "--per_device_train_batch_size must be 1 or more": options.per_device_train_batch_size < 1,
        "--per_device_eval_batch_size must be 1 or more": options.per_device_eval_batch_size < 1,
        "--gradient_accumulation_steps must be 1 or more": options.gradient_accumulation_steps < 1,
        "--dataloader_drop_last true would drop records of the evaluation too": (
            options.dataloader_drop_last and (options.eval_pairs or options.eval_share)
        ),
        "--precompute_ref_batch_size must be 1 or more": (options.precompute_ref_batch_size or 1) < 1,
        "--sample_questions needs --eval_strategy steps or epoch": (
            options.sample_questions and (options.eval_strategy == "no" or not options.do_train)
        ),
        "--sample_questions: sharded models (--deepspeed, --fsdp) cannot be asked by one process": (
            options.sample_questions and (options.deepspeed or options.fsdp)
        ),
        "--estimate needs --do_train and --pairs": options.estimate and not options.do_train,
        "--ranked_image_folders needs two folders or more, best first": (
            options.ranked_image_folders and len(options.ranked_image_folders) < 2
        ),
    }
    for message, wrong in problems.items():
        if wrong:
            parser.error(message)
    if options.eval_strategy != "no" and not options.eval_pairs and not options.eval_share:
        parser.error("--eval_strategy needs --eval_pairs or --eval_share")
    loggers = [options.report_to] if isinstance(options.report_to, str) else options.report_to or ()
    for logger in loggers:
        if logger not in ("all", "none") and not any(map(find_spec, LOGGERS.get(logger, ()))):
            parser.error(f"--report_to {logger}: install its package first (pip install {logger})")
