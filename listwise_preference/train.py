"""What the three training programs share: options -> data -> model -> trainer -> adapter.

from listwise_preference.train import main
main(RECIPE)
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .pairs import (
    BoxLists,
    Crops,
    DataError,
    Folders,
    ImageSource,
    PictureOnly,
    Record,
    Records,
    load_records,
    read_exclusions,
)
from .ranked_images import Drawing

if TYPE_CHECKING:
    from .arguments import Arguments
    from .objective import Objective

# Tokens that place a picture in a prompt; in a user's text they would ask for a picture that is not there.
PLACEHOLDERS = ("<image>", "<fake_token_around_image>")

logger = logging.getLogger("listwise_preference")


def main(recipe: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
    """Run a recipe as the command line changes it. Exits with code 2 and a message on what a user can mend."""
    from .arguments import parse  # here, so that a module which only wants train's parts stays light

    arguments = parse(recipe, argv, description=sys.modules["__main__"].__doc__)
    is_main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # peft asks transformers by the old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    try:
        _run(arguments)
    except _user_errors() as error:
        if is_main:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def _user_errors() -> tuple[type[Exception], ...]:
    from .models import ModelError

    return DataError, ModelError


def _run(arguments: "Arguments") -> None:
    objective = arguments.objective.resolve()
    train_data, eval_data = _read_data(arguments, objective)

    # Nothing is wrong with options and data: now the heavy part.
    import torch
    from transformers import set_seed
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from . import models
    from .batch import ChatFormat, Collator, ListwiseDataset
    from .reference import ReferenceCache, record_keys
    from .trainer import ListwiseTrainer, write_eval_records

    args, name, revision = (
        arguments.training,
        arguments.model.model_name_or_path,
        arguments.model.model_revision,
    )
    assert name is not None and args.output_dir is not None  # parse has seen to it
    if args.n_gpu > 1:
        # One process with several GPUs would mean nn.DataParallel: slow, and wrong for packed rows.
        args._n_gpu = 1
        logger.warning("several GPUs are visible, one is used; for all of them start with: accelerate launch")
    # More loading processes than cores would only wait for each other.
    args.dataloader_num_workers = min(args.dataloader_num_workers, os.cpu_count() or 1)
    if arguments.objective.precompute_ref_log_probs and is_deepspeed_zero3_enabled():
        raise models.ModelError("ZeRO-3 shards the base model before training: use --precompute_ref_log_probs false")

    config, family = models.load_config(name, revision)
    packed = arguments.objective.row_layout == "packed"
    if packed and not family.packed_rows:
        raise models.ModelError(f"{config.model_type} models need --row_layout plain")
    processor = models.load_processor(name, revision)
    try:
        chat = ChatFormat(processor, models.end_token(processor, family))
    except ValueError as error:
        raise models.ModelError(f"{name}: {error}") from error

    def dataset_of(records: Sequence[Record], what: str) -> ListwiseDataset | None:
        if not records:
            return None
        dataset = ListwiseDataset(records, chat, arguments.data.max_completion_length)
        logger.info(
            f"{what}: {len(dataset):,} records of {len(records[0].images)} pictures;"
            f" {dataset.answers_cut:,} of {2 * len(dataset):,} answers cut"
            f" at {arguments.data.max_completion_length} tokens"
        )
        return dataset

    train_set, eval_set = dataset_of(train_data, "training"), dataset_of(eval_data, "evaluation")

    model = models.load_base_model(
        name,
        revision=revision,
        dtype=models.DTYPES[arguments.model.dtype],
        attn_implementation=arguments.model.attn_implementation,
    )
    set_seed(args.seed)
    if arguments.model.init_adapter is not None:
        adapted = models.load_adapter(model, Path(arguments.model.init_adapter), trainable=True)
    else:
        adapted = models.add_adapter(
            model,
            r=arguments.model.lora_r,
            alpha=arguments.model.lora_alpha,
            dropout=arguments.model.lora_dropout,
            target_modules=arguments.model.lora_target_modules,
            frozen_module=family.vision_tower if arguments.model.freeze_vision_tower else None,
        )
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    logger.info(f"{name}: {trainable:,} adapter parameters in training, base in {arguments.model.dtype}")

    if args.ddp_find_unused_parameters is None:
        # LLaVA reads the last but one layer of its vision tower: the adapter of the last one gets no gradient.
        args.ddp_find_unused_parameters = True
    trainer = ListwiseTrainer(
        objective=objective,
        attn_implementation=arguments.model.attn_implementation,
        model=adapted,
        args=args,
        data_collator=Collator(processor, with_rejected=objective.uses_rejected, packed=packed),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
    )

    output = Path(args.output_dir)
    run = {
        "program": Path(sys.argv[0]).name,
        "arguments": arguments.to_dict(),
        "data": _data_hashes(arguments) | {"training_records": len(train_data), "evaluation_records": len(eval_data)},
        "base_weights": models.weights_identity(name, revision) if trainer.is_world_process_zero() else None,
        "versions": _versions(),
    }
    if trainer.is_world_process_zero():
        output.mkdir(parents=True, exist_ok=True)
        _write_json(output / "run.json", run)

    if arguments.objective.precompute_ref_log_probs:
        from accelerate.utils import broadcast_object_list

        # Hashed by one process: the weights are read as a whole for it.
        identity = [
            json.dumps(
                [
                    run["base_weights"],
                    arguments.model.dtype,
                    args.bf16,
                    args.fp16,
                    arguments.model.attn_implementation,
                    arguments.objective.row_layout,
                    models.processor_identity(processor),
                    run["versions"],
                ]
            )
        ]
        broadcast_object_list(identity)
        cache = ReferenceCache(Path(arguments.objective.ref_cache or output / "reference"), args.process_index)
        batch_size = arguments.objective.precompute_ref_batch_size or 4 * args.per_device_train_batch_size
        for what, dataset in (("training", train_set), ("evaluation", eval_set)):
            if dataset is not None:
                keys = record_keys(dataset, identity[0], with_rejected=objective.uses_rejected)
                computed = trainer.precompute_reference(dataset, keys, cache, batch_size)
                logger.info(
                    f"reference log-probabilities for {what}: {computed:,} computed,"
                    f" {len(dataset) - computed:,} found in {cache.folder}"
                )

    if args.do_train:
        checkpoint = _checkpoint_to_resume(args.resume_from_checkpoint, output)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
    if eval_set is not None:
        prediction = trainer.predict(eval_set, metric_key_prefix="eval")
        trainer.log_metrics("eval", prediction.metrics)
        if trainer.is_world_process_zero():
            _write_json(output / "eval_results.json", prediction.metrics)
            write_eval_records(output / "eval_records.jsonl", eval_set, prediction, objective)
            logger.info(f"wrote {output / 'eval_results.json'} and {output / 'eval_records.jsonl'}")
    if args.do_train:
        from .model_card import write_model_card

        final = output / "final"
        trainer.save_model(str(final), _internal_call=True)
        if trainer.is_world_process_zero():
            (final / "training_args.bin").unlink()  # a pickle; run.json says the same to everyone
            shutil.copy(output / "trainer_state.json", final)
            _write_json(final / "run.json", run)
            write_model_card(final / "README.md", run, trainer.state.log_history)
            logger.info(f"the adapter is in {final}")
        if args.push_to_hub:
            trainer.push_to_hub()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# ---- data ----


def _read_data(arguments: "Arguments", objective: "Objective") -> tuple[Sequence[Record], Sequence[Record]]:
    """Training and evaluation records, all checked."""
    data, seed = arguments.data, arguments.training.seed
    to_exclude = read_exclusions(Path(data.exclude)) if data.exclude else frozenset()

    def read(pairs: str, lists: str | None, what: str, excluded: frozenset[str] = frozenset()) -> Sequence[Record]:
        source: ImageSource
        if not objective.uses_list:
            source = PictureOnly()
        elif arguments.objective.objective == "mdpo":
            source = Crops(seed)
        elif lists is not None:
            source = BoxLists(Path(lists), Drawing(data.list_size, data.visual_prompt, data.grow))
        elif data.ranked_image_folders:
            source = Folders(tuple(Path(folder) for folder in data.ranked_image_folders))
        else:
            raise DataError("the list term needs ranked images: give --ranked_image_folders or --image_lists")
        records = load_records(
            Path(pairs),
            Path(data.image_root),
            source,
            on_bad_record=data.on_bad_record,
            placeholders=PLACEHOLDERS,
            excluded=excluded,
        )
        _say_what_was_left_out(records, what, excluded)
        return records.records

    training: Sequence[Record] = ()
    if arguments.training.do_train and data.pairs:
        training = read(data.pairs, data.image_lists, "training", to_exclude)
    if data.eval_pairs:
        return training, read(data.eval_pairs, data.eval_image_lists or data.image_lists, "evaluation")
    return hold_out(training, data.eval_share, seed)


def _say_what_was_left_out(records: Records, what: str, excluded: frozenset[str]) -> None:
    if records.report:
        logger.warning(records.report)
        logger.warning(f"{what}: {records.dropped:,} bad records dropped")
    if records.without_box:
        logger.info(f"{what}: {records.without_box:,} records left out, their image list has no box")
    if excluded:
        logger.info(f"{what}: {len(records.excluded):,} records left out by --exclude")
    if unknown := sorted(excluded - records.excluded):
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        logger.warning(f"--exclude names {len(unknown):,} ids that no record has: {shown}")


def hold_out(records: Sequence[Record], share: float, seed: int) -> tuple[Sequence[Record], Sequence[Record]]:
    """Split off about ``share`` of the records for evaluation, in input order, the same for the same seed.

    All records of a picture go to one side, so that no picture is both trained and evaluated on.

    Raises:
        DataError: nothing would be left on one side.
    """
    if share == 0:
        return records, ()

    def place(path: str) -> str:
        return hashlib.sha256(f"{seed}:{path}".encode()).hexdigest()

    paths = sorted({record.pair.img_path for record in records}, key=place)
    counts = Counter(record.pair.img_path for record in records)
    held: set[str] = set()
    held_count = 0
    for path in paths:
        if held_count >= share * len(records):
            break
        held.add(path)
        held_count += counts[path]
    training = [record for record in records if record.pair.img_path not in held]
    evaluation = [record for record in records if record.pair.img_path in held]
    if not training or not evaluation:
        raise DataError(f"--eval_share {share} of {len(records)} records leaves nothing to train or evaluate on")
    return training, evaluation


def _data_hashes(arguments: "Arguments") -> dict[str, Any]:
    from .models import sha256_of

    data = arguments.data
    files = {
        "pairs": data.pairs if arguments.training.do_train else None,
        "image_lists": data.image_lists,
        "eval_pairs": data.eval_pairs,
        "eval_image_lists": data.eval_image_lists,
    }
    return {what: {"file": file, "sha256": sha256_of([Path(file)])} for what, file in files.items() if file}


# ---- run ----


def _checkpoint_to_resume(option: str | None, output: Path) -> str | None:
    """The checkpoint folder that ``--resume_from_checkpoint`` means; "true" is the last one of the run, if any."""
    from transformers.trainer_utils import get_last_checkpoint

    from .models import ModelError

    if option is None or option.lower() == "false":
        return None
    if option.lower() == "true":
        last = get_last_checkpoint(str(output)) if output.is_dir() else None
        logger.info(f"continuing from {last}" if last else f"no checkpoint in {output} yet: starting at the beginning")
        return last
    if not Path(option).is_dir():
        raise ModelError(f"--resume_from_checkpoint {option}: no such folder; 'true' takes the last one of the run")
    return option


def _versions() -> dict[str, str]:
    import peft
    import torch
    import transformers

    return {
        "listwise_preference": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
