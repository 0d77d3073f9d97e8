"""The options of ``transformers.TrainingArguments`` (5.24), told without importing transformers.

The real ``TrainingArguments`` are made from them once options and data are known to be good. A test compares names,
types, choices and defaults with the installed transformers.
"""

import argparse
import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from listwise_preference.cli import boolean, option
from listwise_preference.errors import UserError
from listwise_preference.files import parse_json

if TYPE_CHECKING:
    from transformers import TrainingArguments

# A value that is a JSON object on the command line, or a file that holds one.
Json = dict[str, Any] | str | None

_OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor",
    "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad", "adamw_bnb_8bit",
    "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb",
    "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
    "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo",
    "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw",
    "apollo_adamw_layerwise", "stable_adamw",
)  # fmt: skip
_SCHEDULES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy",
)  # fmt: skip
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_DDP_BACKENDS = ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl")
# The Trainer's loggers and the packages they need, any of which will do.
LOGGERS = {
    "azure_ml": ("azureml",), "clearml": ("clearml",), "codecarbon": ("codecarbon",), "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",), "dvclive": ("dvclive",), "flyte": ("flytekit",), "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",), "neptune": ("neptune",), "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",),
}  # fmt: skip


# Options that could not do here what they say; any value but the default is refused, with what to know instead. Some
# others are refused by value or in company: ``options._settle`` and ``TrainerArguments.build``.
REFUSED = {
    "average_tokens_across_devices": "the loss is a mean over records, no tokens are counted",
    "use_liger_kernel": "its loss is not this one; --fused_layers does what its layers would",
    "liger_kernel_config": "its loss is not this one; --fused_layers does what its layers would",
    "use_cache": "each row is read in one pass, no keys and values are kept",
    "neftune_noise_alpha": "noise on the policy's embeddings, and none on the reference's, would be a reward",
    "prediction_loss_only": "an evaluation is the means over records, which need the log-probabilities",
    "eval_do_concat_batches": "an evaluation is the means over all records",
    "eval_use_gather_object": "an evaluation has no nested objects",
    "include_for_metrics": "an evaluation is the means over records and takes nothing more",
    "batch_eval_metrics": "an evaluation is the means over all records; --eval_accumulation_steps saves memory",
    "label_names": "there are no labels, the completions are compared",
    "length_column_name": "records have no columns",
    "do_predict": "generate.py makes responses",
}


def checkpointing(text: str) -> bool | str:
    """A value of ``--activation_checkpointing``: true, false, "auto" or "every_N"."""
    if text == "auto" or re.fullmatch(r"every_[1-9]\d*", text):
        return text
    try:
        return boolean(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text}: must be auto, true, false or every_N") from None


def checkpointed_every(value: bool | str | None) -> int | None:
    """Each how many layers one is checkpointed, 0 for none; ``None`` where that is still to be decided."""
    if value == "auto":
        return None
    return int(value.removeprefix("every_")) if isinstance(value, str) else int(bool(value))


def set_checkpointing(args: "TrainingArguments", every: int) -> None:
    """Have the Trainer checkpoint each ``every``-th layer, or none for 0."""
    args.activation_checkpointing = args.gradient_checkpointing = every > 0
    if every > 1:
        more: Any = args.activation_checkpointing_kwargs or {}
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs = {**more, "every_n_layers": every}


@dataclass
class TrainerArguments:
    """The Trainer's own options, and the real ``TrainingArguments`` made from them."""

    output_dir: str | None = option(None, "folder for checkpoints, the final adapter and evaluations")
    per_device_train_batch_size: int = option(8, "records per device and forward pass while training")
    num_train_epochs: float = option(3.0, "passes over the training records")
    max_steps: int = option(-1, "optimizer steps, instead of --num_train_epochs where it is above 0")
    learning_rate: float = option(5e-5, "the optimizer's learning rate, at its highest")
    lr_scheduler_type: str = option("linear", "course of the learning rate", choices=_SCHEDULES)
    lr_scheduler_kwargs: Json = option(None, "more settings of the schedule, as JSON")
    warmup_steps: float = option(0, "steps of linear warm-up; below 1 a share of all steps")
    optim: str = option("adamw_torch_fused", "optimizer", choices=_OPTIMIZERS)
    optim_args: str | None = option(None, "more settings of optimizers such as AdEMAMix or GaLore")
    weight_decay: float = option(0.0, "weight decay, of all but biases and norms")
    adam_beta1: float = option(0.9, "Adam's decay rate of the first moment")
    adam_beta2: float = option(0.999, "Adam's decay rate of the second moment")
    adam_epsilon: float = option(1e-8, "Adam's epsilon")
    optim_target_modules: str | None = option(None, "modules that GaLore or APOLLO optimize")
    gradient_accumulation_steps: int = option(1, "forward passes whose gradients make one optimizer step")
    average_tokens_across_devices: bool = option(True, "count tokens over all devices to average a loss over them")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 leaves it")
    label_smoothing_factor: float = option(
        0.0, "share of pairs taken to be the wrong way round: conservative DPO, with --objective dpo alone"
    )
    bf16: bool = option(False, "bfloat16 autocast; by default on when --dtype is bfloat16")
    fp16: bool = option(False, "float16 autocast with loss scaling")
    bf16_full_eval: bool = option(False, "evaluate wholly in bfloat16")
    fp16_full_eval: bool = option(False, "evaluate wholly in float16")
    tf32: bool | None = option(None, "allow TF32 matrix products on Ampere and newer GPUs")
    activation_checkpointing: bool | str | None = option(
        None,
        "compute activations again instead of keeping them: true, in all layers; every_N, in each N-th layer; auto, in"
        " as few as the memory of the device asks for",
        read=checkpointing,
    )
    activation_checkpointing_kwargs: Json = option(None, "its settings, as JSON")
    gradient_checkpointing: bool | None = option(None, "old name of --activation_checkpointing")
    gradient_checkpointing_kwargs: Json = option(None, "old name of --activation_checkpointing_kwargs")
    torch_compile: bool = option(False, "compile the model by torch.compile()")
    torch_compile_backend: str | None = option(None, "backend of torch.compile(); turns it on")
    torch_compile_mode: str | None = option(None, "mode of torch.compile(); turns it on")
    use_liger_kernel: bool = option(False, "use Liger's kernels")
    liger_kernel_config: dict[str, Any] | None = option(None, "which of Liger's kernels, as JSON")
    use_cache: bool = option(False, "let the model keep keys and values while training")
    neftune_noise_alpha: float | None = option(None, "noise on the embeddings (NEFTune)")
    torch_empty_cache_steps: int | None = option(None, "steps after which the device's memory cache is emptied")
    auto_find_batch_size: bool = option(False, "halve the batch until it fits into memory")
    logging_strategy: str = option("steps", "when to log", choices=("no", "steps", "epoch"))
    logging_steps: float = option(500, "steps between logs; below 1 a share of all steps")
    logging_first_step: bool = option(False, "log the first step too")
    log_on_each_node: bool = option(True, "log once per machine, not once in all")
    logging_nan_inf_filter: bool = option(True, "leave losses that are not numbers out of the logged mean")
    include_num_input_tokens_seen: bool = option("no", "count the input tokens")
    log_level: str = option("passive", "transformers' log level", choices=_LOG_LEVELS)
    log_level_replica: str = option("warning", "the same in all processes but the first", choices=_LOG_LEVELS)
    disable_tqdm: bool | None = option(None, "show no progress bars")
    report_to: str | list[str] = option("none", "a logger; all: every one installed", choices=("none", "all", *LOGGERS))
    run_name: str | None = option(None, "name of the run for loggers")
    project: str = option("huggingface", "name of the project for Trackio")
    trackio_space_id: str | None = option(None, "Space on the hub that shows Trackio's log")
    trackio_bucket_id: str | None = option(None, "bucket on the hub that holds Trackio's log")
    trackio_static_space_id: str | None = option(None, "read-only Space for Trackio's log")
    eval_strategy: str = option("no", "when to evaluate while training", choices=("no", "steps", "epoch"))
    eval_steps: float | None = option(None, "steps between evaluations; by default --logging_steps")
    eval_delay: float = option(0, "epochs or steps before the first evaluation")
    per_device_eval_batch_size: int = option(8, "records per device and forward pass while evaluating")
    prediction_loss_only: bool = option(False, "evaluate the loss alone")
    eval_on_start: bool = option(False, "evaluate before the first step")
    eval_do_concat_batches: bool = option(True, "join the evaluation's batches; else a list of them")
    eval_use_gather_object: bool = option(False, "gather nested objects from all devices")
    eval_accumulation_steps: int | None = option(None, "batches after which an evaluation's results leave the device")
    include_for_metrics: list[str] = option([], "more inputs for metrics")
    batch_eval_metrics: bool = option(False, "compute metrics batch by batch")
    save_only_model: bool = option(False, "save no optimizer state; such a checkpoint cannot be resumed")
    save_strategy: str = option("steps", "when to save a checkpoint", choices=("no", "steps", "epoch", "best"))
    save_steps: float = option(500, "steps between checkpoints; below 1 a share of all steps")
    save_on_each_node: bool = option(False, "save on every machine, not on the first alone")
    save_total_limit: int | None = option(None, "checkpoints to keep; older ones are deleted")
    enable_jit_checkpoint: bool = option(False, "save a checkpoint when the scheduler ends the job (SIGTERM)")
    push_to_hub: bool = option(False, "upload the adapter whenever it is saved")
    hub_token: str | None = option(None, "token for the hub; by default that of hf auth login")
    hub_private_repo: bool | None = option(None, "make the repository private")
    hub_model_id: str | None = option(None, "repository on the hub")
    hub_strategy: str = option(
        "every_save", "what is uploaded, and when", choices=("end", "every_save", "checkpoint", "all_checkpoints")
    )
    hub_always_push: bool = option(False, "upload even while the last upload is running")
    hub_revision: str | None = option(None, "branch on the hub")
    load_best_model_at_end: bool = option(False, "end with the best checkpoint instead of the last")
    metric_for_best_model: str | None = option(None, "what the best checkpoint is judged by; by default the loss")
    greater_is_better: bool | None = option(None, "whether more of that metric is better")
    ignore_data_skip: bool = option(False, "on resuming begin the records again instead of skipping those seen")
    restore_callback_states_from_checkpoint: bool = option(False, "on resuming restore callbacks too")
    full_determinism: bool = option(False, "deterministic kernels, slower; for debugging")
    seed: int = option(42, "seed of everything random: adapter, order of records, held-out images, crops")
    data_seed: int | None = option(None, "seed of the order of records; by default --seed")
    use_cpu: bool | None = option(False, "train on the CPU; by default only where there is no accelerator")
    accelerator_config: Json = option(None, "settings of Accelerate, as JSON or a file of it")
    parallelism_config: dict[str, Any] | None = option(None, "Accelerate's ParallelismConfig, as JSON")
    dataloader_drop_last: bool = option(False, "drop a last batch that is not full")
    dataloader_num_workers: int = option(0, "processes that load records; 0: none but the main one")
    dataloader_pin_memory: bool = option(True, "pin the memory that batches are copied from")
    dataloader_persistent_workers: bool = option(False, "keep the loading processes from epoch to epoch")
    dataloader_prefetch_factor: int | None = option(None, "batches that each loading process prepares ahead")
    dataloader_multiprocessing_context: str | None = option(
        None, "how loading processes are started", choices=("fork", "spawn", "forkserver")
    )
    dataloader_in_order: bool = option(True, "take batches in order, not as they are ready")
    remove_unused_columns: bool = option(True, "always off here: a record is no row of model inputs")
    label_names: list[str] | None = option(None, "inputs that are labels")
    train_sampling_strategy: str = option(
        "random", "order of records", choices=("random", "sequential", "group_by_length", "batch_rebalance")
    )
    length_column_name: str = option("length", "column of lengths for --train_sampling_strategy group_by_length")
    ddp_find_unused_parameters: bool | None = option(None, "of DistributedDataParallel; by default true")
    ddp_bucket_cap_mb: int | None = option(None, "bucket_cap_mb of DistributedDataParallel")
    ddp_broadcast_buffers: bool | None = option(None, "broadcast_buffers of DistributedDataParallel")
    ddp_static_graph: bool | None = option(None, "static_graph of DistributedDataParallel")
    ddp_backend: str | None = option(None, "backend of torch.distributed", choices=_DDP_BACKENDS)
    ddp_timeout: int = option(1800, "seconds that processes wait for each other")
    fsdp: bool | str | None = option(None, "shard the model by FSDP")
    fsdp_config: Json = option(None, "settings of FSDP, as JSON or a file of it")
    deepspeed: Json = option(None, "settings of DeepSpeed, as JSON or a file of it")
    debug: list[Literal["underflow_overflow", "tpu_metrics_debug"]] | None = option(None, "what to look out for")
    skip_memory_metrics: bool = option(True, "leave memory use out of the metrics")
    do_train: bool = option(False, "train")
    do_eval: bool = option(False, "not used: --eval_pairs or --eval_share evaluates")
    do_predict: bool = option(False, "not used")
    resume_from_checkpoint: str | None = option(
        None,
        "auto (or true): go on from the run's last complete checkpoint, or start where there is none; false: start;"
        " or the folder of a checkpoint",
    )
    local_rank: int = option(-1, "not used: the launcher says it in the environment")

    def build(self) -> "TrainingArguments":
        """The Trainer's own arguments; building them sets the device up.

        Raises:
            UserError: transformers refuses a combination, or its version lacks an option that was given.
        """
        import torch
        from accelerate import ParallelismConfig
        from transformers import TrainingArguments, __version__

        values, defaults = dict(vars(self)), vars(TrainerArguments())
        for name in values.keys() - {field.name for field in dataclasses.fields(TrainingArguments)}:
            if values.pop(name) != defaults[name]:
                raise UserError(f"--{name}: transformers {__version__} has no such option")
        if self.use_cpu is None:
            values["use_cpu"] = not torch.accelerator.is_available()
        every = checkpointed_every(self.activation_checkpointing)
        if isinstance(self.activation_checkpointing, str):
            values["activation_checkpointing"] = every is not None
        values["debug"] = " ".join(self.debug or ())
        try:
            for name in ("parallelism_config", "liger_kernel_config"):
                if isinstance(values[name], str):
                    values[name] = parse_json(values[name], f"--{name}")
            if isinstance(values["parallelism_config"], dict):
                values["parallelism_config"] = ParallelismConfig(**values["parallelism_config"])
            args = TrainingArguments(**values)
        except (ValueError, TypeError, ImportError, OSError) as error:
            raise UserError(" ".join(str(error).split())) from error
        accelerator: Any = args.accelerator_config
        for name in ("split_batches", "dispatch_batches"):
            if accelerator.to_dict()[name]:
                raise UserError(f"--accelerator_config {name}: rows stand behind one another, a batch cannot be split")
        parallelism = args.parallelism_config
        if parallelism and any(vars(parallelism).get(name, 1) > 1 for name in ("cp_size", "sp_size")):
            raise UserError("--parallelism_config: rows stand behind one another, a sequence cannot be split")
        if every is not None and every > 1:
            set_checkpointing(args, every)
        return args
