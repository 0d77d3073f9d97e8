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

import peft
import torch
import transformers
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import ProcessorMixin, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import get_last_checkpoint

from . import __version__, models
from .arguments import Arguments, ModelArguments
from .batch import ChatFormat, Collator, ListwiseDataset
from .models import ModelError
from .objective import Objective
from .pairs import Record
from .reference import ReferenceCache, record_keys
from .trainer import ListwiseTrainer, write_eval_records

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

    config, family = models.load_config(_name(arguments.model), arguments.model.model_revision)
    packed = arguments.objective.row_layout == "packed"
    if packed and not family.packed_rows:
        raise ModelError(f"{config.model_type} models need --row_layout plain")
    processor = models.load_processor(_name(arguments.model), arguments.model.model_revision)
    try:
        chat = ChatFormat(processor, models.end_token(processor, family))
    except ValueError as error:
        raise ModelError(f"{arguments.model.model_name_or_path}: {error}") from error
    train_set = _dataset("training", training, chat, arguments.data.max_completion_length)
    eval_set = _dataset("evaluation", evaluation, chat, arguments.data.max_completion_length)

    description = {
        "program": Path(sys.argv[0]).name,
        "arguments": arguments.to_dict(),
        "data": _data_hashes(arguments) | {"training_records": len(training), "evaluation_records": len(evaluation)},
        "base_weights": _weights_identity(arguments),
        "versions": {
            "listwise_preference": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    trainer = ListwiseTrainer(
        objective=objective,
        attn_implementation=arguments.model.attn_implementation,
        run=description,
        model=_policy(arguments, family),
        args=args,
        data_collator=Collator(processor, with_rejected=objective.uses_rejected, packed=packed),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
    )
    if trainer.is_world_process_zero():
        output.mkdir(parents=True, exist_ok=True)
        _write_json(output / "run.json", description)
    if arguments.objective.precompute_ref_log_probs:
        datasets = {"training": train_set, "evaluation": eval_set}
        _precompute_reference(arguments, trainer, processor, description, datasets)

    if args.do_train:
        trainer.train(resume_from_checkpoint=_checkpoint_to_resume(args.resume_from_checkpoint, output))
        trainer.save_state()
    if eval_set is not None:
        _evaluate(trainer, eval_set, objective, output)
    if args.do_train:
        _save(trainer, output, description)
        if args.push_to_hub:
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
    pictures = len(records[0].images)
    logger.info(
        f"{what}: {len(dataset):,} records of {pictures} picture{'s' if pictures > 1 else ''};"
        f" {dataset.answers_cut:,} of {2 * len(dataset):,} answers cut at {cut} tokens"
    )
    return dataset


def _policy(arguments: Arguments, family: models.Family) -> PeftModel:
    """The base model with a fresh adapter, or with the one to start from."""
    options = arguments.model
    model = models.load_base_model(
        _name(options),
        revision=options.model_revision,
        dtype=models.DTYPES[options.dtype],
        attn_implementation=options.attn_implementation,
    )
    set_seed(arguments.training.seed)
    if options.init_adapter is not None:
        adapted = models.load_adapter(model, Path(options.init_adapter), trainable=True)
    else:
        adapted = models.add_adapter(
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


def _weights_identity(arguments: Arguments) -> str:
    """Hashed by one process, since the weights are read as a whole for it, and told to the others."""
    identity: list[Any] = [None]
    if arguments.training.process_index == 0:
        identity[0] = models.weights_identity(_name(arguments.model), arguments.model.model_revision)
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
    return {what: {"file": file, "sha256": models.sha256_of([Path(file)])} for what, file in files.items() if file}


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
            models.processor_identity(processor),
        ]
    )
    cache = ReferenceCache(Path(objective.ref_cache or f"{args.output_dir}/reference"), args.process_index)
    batch_size = objective.precompute_ref_batch_size or 4 * args.per_device_train_batch_size
    for what, dataset in datasets.items():
        if dataset is not None:
            keys = record_keys(dataset, identity, with_rejected=trainer.objective.uses_rejected)
            computed = trainer.precompute_reference(dataset, keys, cache, batch_size)
            logger.info(
                f"reference log-probabilities for {what}: {computed:,} computed,"
                f" {len(dataset) - computed:,} found in {cache.folder}"
            )


def _checkpoint_to_resume(option: str | None, output: Path) -> str | None:
    """The checkpoint folder that ``--resume_from_checkpoint`` means; "true" is the last one of the run, if any."""
    if option is None or option.lower() == "false":
        return None
    if option.lower() == "true":
        last = get_last_checkpoint(str(output)) if output.is_dir() else None
        logger.info(f"continuing from {last}" if last else f"no checkpoint in {output} yet: starting at the beginning")
        return last
    if not Path(option).is_dir():
        raise ModelError(f"--resume_from_checkpoint {option}: no such folder; 'true' takes the last one of the run")
    return option


def _evaluate(trainer: ListwiseTrainer, dataset: ListwiseDataset, objective: Objective, output: Path) -> None:
    prediction = trainer.predict(dataset, metric_key_prefix="eval")
    trainer.log_metrics("eval", prediction.metrics)
    if trainer.is_world_process_zero():
        _write_json(output / "eval_results.json", prediction.metrics)
        write_eval_records(output / "eval_records.jsonl", dataset, prediction, objective)
        logger.info(f"wrote {output / 'eval_results.json'} and {output / 'eval_records.jsonl'}")


def _save(trainer: ListwiseTrainer, output: Path, description: dict[str, Any]) -> None:
    """The adapter and all that belongs to it, in ``final/``."""
    final = output / "final"
    trainer.save_model(str(final), _internal_call=True)
    if trainer.is_world_process_zero():
        (final / "training_args.bin").unlink()  # a pickle; run.json says the same to everyone
        shutil.copy(output / "trainer_state.json", final)
        _write_json(final / "run.json", description)
        trainer.create_model_card(final)
        logger.info(f"the adapter is in {final}")


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
