"""The heavy half of a training program: checked records -> model -> reference -> trainer -> adapter and evaluation.

``train`` imports this only once options and data are known to be good.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accelerate
import peft
import PIL
import torch
import transformers
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import ProcessorMixin, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME

from listwise_preference import __version__
from listwise_preference.data.pairs import Record
from listwise_preference.errors import ModelError
from listwise_preference.files import sha256_of, write_atomic
from listwise_preference.models import adapters, loading
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import Family
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.objective import Objective
from listwise_preference.training.options import Arguments, ModelArguments
from listwise_preference.training.reference import ReferenceCache, record_keys
from listwise_preference.training.trainer import ListwiseTrainer, write_eval_records

logger = logging.getLogger("listwise_preference")


def run(arguments: Arguments, training: Sequence[Record], evaluation: Sequence[Record]) -> None:
    """Train on the one, evaluate on the other, as far as each is asked for.

    Raises:
        ModelError: checkpoint, adapter or a combination of options that cannot be used.
    """
    objective, args, output = (
        arguments.objective.resolve(),
        arguments.training,
        Path(str(arguments.training.output_dir)),
    )
    _settle_machine(arguments)
    # What costs nothing to find out now and hours to find out later.
    checkpoint = _checkpoint_to_resume(args.resume_from_checkpoint, output) if args.do_train else None
    if arguments.model.init_adapter is not None:
        adapters.adapter_file(Path(arguments.model.init_adapter))

    config, family = loading.load_config(_name(arguments.model), arguments.model.model_revision)
    packed = arguments.objective.row_layout == "packed"
    if packed and not family.packed_rows:
        raise ModelError(f"{config.model_type} models need --row_layout plain")
    processor = loading.load_processor(_name(arguments.model), arguments.model.model_revision)
    chat = ChatFormat(processor, loading.end_token(processor, family))
    train_set = _dataset("training", training, chat, arguments.data.max_completion_length)
    eval_set = _dataset("evaluation", evaluation, chat, arguments.data.max_completion_length)

    description = {
        "program": Path(sys.argv[0]).name,
        "arguments": arguments.to_dict(),
        "data": _data_hashes(arguments) | {"training_records": len(training), "evaluation_records": len(evaluation)},
        "objective_weights": list(objective.weights.values()),
        "loss_weights": dict(objective.weights),
        "base_weights": _weights_identity(arguments),
        "versions": {
            "listwise_preference": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "accelerate": accelerate.__version__,
            "pillow": PIL.__version__,
        },
    }
    policy = _policy(arguments, family)
    description["adapter"] = _adapter_description(policy, arguments.model.init_adapter)
    trainer = ListwiseTrainer(
        objective=objective,
        attn_implementation=arguments.model.attn_implementation,
        run=description,
        model=policy,
        args=args,
        data_collator=Collator(processor, with_rejected=objective.uses_rejected, packed=packed),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
    )
    if trainer.is_world_process_zero():
        output.mkdir(parents=True, exist_ok=True)
        if checkpoint is not None:
            _warn_of_other_data(output / "run.json", description)
        # An evaluation may go into the folder of the run that it is of, whose own record stays.
        _write_json(output / ("run.json" if args.do_train else "eval_run.json"), description)
    if arguments.objective.precompute_ref_log_probs:
        datasets = {"training": train_set, "evaluation": eval_set}
        _precompute_reference(arguments, trainer, processor, description, datasets)

    if args.do_train:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
        _save(trainer, output, description)
    if eval_set is not None:
        _evaluate(trainer, eval_set, objective, output)
    if args.do_train and args.push_to_hub:
        trainer.push_to_hub()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _settle_machine(arguments: Arguments) -> None:
    args = arguments.training
    if args.n_gpu > 1:
        # One process with several GPUs would mean nn.DataParallel: slow, and wrong for packed rows.
        args._n_gpu = 1
        logger.warning("several GPUs are visible, one is used; for all of them start with: accelerate launch")
    # More loading processes than cores would only wait for each other.
    args.dataloader_num_workers = min(args.dataloader_num_workers, os.cpu_count() or 1)
    if args.ddp_find_unused_parameters is None:
        # LLaVA reads the last but one layer of its vision tower: the adapter of the last one gets no gradient.
        args.ddp_find_unused_parameters = True
    if arguments.objective.precompute_ref_log_probs and is_deepspeed_zero3_enabled():
        raise ModelError("ZeRO-3 shards the base model before training: use --precompute_ref_log_probs false")


def _name(model: ModelArguments) -> str:
    assert model.model_name_or_path is not None  # arguments.parse has seen to it
    return model.model_name_or_path


def _dataset(what: str, records: Sequence[Record], chat: ChatFormat, cut: int) -> ListwiseDataset | None:
    if not records:
        return None
    dataset = ListwiseDataset(records, chat, cut)
    images = len(records[0].images)
    logger.info(
        f"{what}: {len(dataset):,} records of {images} image{'s' if images > 1 else ''};"
        f" {dataset.completions_cut:,} of {2 * len(dataset):,} answers cut at {cut} tokens"
    )
    return dataset


def _policy(arguments: Arguments, family: Family) -> PeftModel:
    """The base model with a fresh adapter, or with the one to start from."""
    options = arguments.model
    model = loading.load_base_model(
        _name(options),
        revision=options.model_revision,
        dtype=loading.DTYPES[options.dtype],
        attn_implementation=options.attn_implementation,
    )
    set_seed(arguments.training.seed)
    if options.init_adapter is not None:
        adapted = adapters.load_adapter(model, Path(options.init_adapter), trainable=True)
    else:
        adapted = adapters.add_adapter(
            model,
            r=options.lora_r,
            alpha=options.lora_alpha,
            dropout=options.lora_dropout,
            target_modules=options.lora_target_modules,
            frozen_module=family.vision_tower if options.freeze_vision_tower else None,
        )
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    logger.info(f"{_name(options)}: {trainable:,} adapter parameters in training, base in {options.dtype}")
    return adapted


def _adapter_description(policy: PeftModel, started_from: str | None) -> dict[str, Any]:
    """The adapter's own numbers, which are not the options' when it was loaded."""
    config: Any = policy.peft_config["default"]
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules),
        "started_from": None
        if started_from is None
        else {"folder": started_from, "sha256": sha256_of([adapters.adapter_file(Path(started_from))])},
    }


def _warn_of_other_data(file: Path, description: dict[str, Any]) -> None:
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("data") != description["data"]:
        logger.warning(f"the data is not that of the run which is continued: {file} has other hashes or counts")


def _weights_identity(arguments: Arguments) -> str:
    """Hashed by one process, since the weights are read as a whole for it, and told to the others."""
    identity: list[Any] = [None]
    if arguments.training.process_index == 0:
        identity[0] = loading.weights_identity(_name(arguments.model), arguments.model.model_revision)
    broadcast_object_list(identity)
    return str(identity[0])


def _data_hashes(arguments: Arguments) -> dict[str, Any]:
    data = arguments.data
    files = {
        "pairs": data.pairs if arguments.training.do_train else None,
        "image_lists": data.image_lists,
        "eval_pairs": data.eval_pairs,
        "eval_image_lists": data.eval_image_lists,
    }
    return {what: {"file": file, "sha256": sha256_of([Path(file)])} for what, file in files.items() if file}


def _precompute_reference(
    arguments: Arguments,
    trainer: ListwiseTrainer,
    processor: ProcessorMixin,
    description: dict[str, Any],
    datasets: dict[str, ListwiseDataset | None],
) -> None:
    args, objective = arguments.training, arguments.objective
    identity = json.dumps(
        [
            description["base_weights"],
            description["versions"],
            arguments.model.dtype,
            [args.bf16, args.fp16],
            arguments.model.attn_implementation,
            objective.row_layout,
            loading.processor_identity(processor),
        ]
    )
    cache = ReferenceCache(Path(objective.ref_cache or f"{args.output_dir}/reference"))
    batch_size = objective.precompute_ref_batch_size or 4 * args.per_device_train_batch_size
    for what, dataset in datasets.items():
        if dataset is not None:
            # By one process, which reads every image for it.
            keys: list[Any] = [None] * len(dataset)
            if trainer.is_world_process_zero():
                keys = list(record_keys(dataset, identity, with_rejected=trainer.objective.uses_rejected))
            broadcast_object_list(keys)
            computed = trainer.precompute_reference(dataset, keys, cache, batch_size)
            logger.info(
                f"reference log-probabilities for {what}: {computed:,} computed,"
                f" {len(dataset) - computed:,} found in {cache.folder}"
            )


def _checkpoint_to_resume(option: str | None, output: Path) -> str | None:
    """The folder that ``--resume_from_checkpoint`` means; "true" is the last whole checkpoint of the run, if any."""
    if option is None or option.lower() == "false":
        return None
    if option.lower() != "true":
        if not (Path(option) / TRAINER_STATE_NAME).is_file():
            raise ModelError(f"--resume_from_checkpoint {option}: no checkpoint there; 'true' takes the run's last one")
        return option
    folders = [folder for folder in output.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), reverse=True):
        if (folder / TRAINER_STATE_NAME).is_file():  # the Trainer writes it last
            logger.info(f"continuing from {folder}")
            return str(folder)
        logger.warning(f"{folder} is not whole, an interruption cut it short: passed over")
    logger.info(f"no checkpoint in {output} yet: starting at the beginning")
    return None


def _evaluate(trainer: ListwiseTrainer, dataset: ListwiseDataset, objective: Objective, output: Path) -> None:
    prediction = trainer.predict(dataset, metric_key_prefix="eval")
    trainer.log_metrics("eval", prediction.metrics)
    trainer.log(dict(prediction.metrics or {}))
    if trainer.is_world_process_zero():
        _write_json(output / "eval_results.json", prediction.metrics)
        write_eval_records(output / "eval_records.jsonl", dataset, prediction, objective)
        logger.info(f"wrote {output / 'eval_results.json'} and {output / 'eval_records.jsonl'}")


def _save(trainer: ListwiseTrainer, output: Path, description: dict[str, Any]) -> None:
    """The adapter and all that belongs to it, in ``final/``."""
    final = output / "final"
    trainer.save_model(str(final), _internal_call=True)
    if trainer.is_world_process_zero():
        (final / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same to everyone
        shutil.copy(output / "trainer_state.json", final)
        _write_json(final / "run.json", description)
        trainer.create_model_card(final)
        logger.info(f"the adapter is in {final}")


def _write_json(file: Path, content: object) -> None:
    write_atomic(file, json.dumps(content, indent=2) + "\n")
