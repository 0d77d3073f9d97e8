"""The part of a training run that needs torch: model, adapter, reference, trainer, and the files in the output folder.

``command`` imports this only once options and data are known to be good.
"""

import dataclasses
import json
import logging
import math
import os
import re
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
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from listwise_preference import __version__
from listwise_preference.data.own_questions import read_own_questions
from listwise_preference.data.pairs import Record
from listwise_preference.errors import DataError, ModelError, Stopped, UserError
from listwise_preference.files import sha256_of, write_json
from listwise_preference.models import adapters, dry_run, loading, ragged_attention
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.frozen_tower import freeze_tower, vision_tower
from listwise_preference.models.fused_layers import fuse_layers
from listwise_preference.training import checkpoints, cost
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.checkpoints import RunRecord
from listwise_preference.training.options import Arguments
from listwise_preference.training.reference import ReferenceCache, record_keys
from listwise_preference.training.row_proof import prove_rows
from listwise_preference.training.samples import Samples
from listwise_preference.training.stopping import StopRequests
from listwise_preference.training.trainer import ListwiseTrainer, write_eval_records
from listwise_preference.training.trainer_arguments import checkpointed_every, set_checkpointing

logger = logging.getLogger("listwise_preference")


# Of a record; ragged rows of LLaVA-1.5 with five images have 3,500.
_MANY_TOKENS = 8192
# What decides how many tokens an image takes, by the names that image processors have for it.
_TOKEN_SETTINGS = (
    "do_image_splitting",
    "crop_to_patches",
    "do_pan_and_scan",
    "max_patches",
    "max_crops",
    "max_image_tiles",
    "max_pixels",
    "size",
    "max_image_size",
)


class Run:
    """Everything that a run works with, made from its options and its checked records.

    Args:
        arguments: its options.
        training: records to train on.
        evaluation: records to evaluate on.
        record: what decides the adapter, where one is trained.
        checkpoint: where the run goes on.
        stop: what may ask for its end.

    Raises:
        UserError: a checkpoint, an adapter or a combination of options that cannot be used.
    """

    def __init__(
        self,
        arguments: Arguments,
        training: Sequence[Record],
        evaluation: Sequence[Record],
        record: RunRecord | None = None,
        checkpoint: Path | None = None,
        stop: StopRequests | None = None,
    ) -> None:
        self.arguments = arguments
        self.stop = stop or StopRequests(arguments)
        self.record = record
        self._disk_checked = False
        self.checkpoint = checkpoint
        self.args = _training_arguments(arguments)
        self.output = Path(str(self.args.output_dir))
        self.objective = arguments.objective.resolve(arguments.training.label_smoothing_factor)
        name, revision = arguments.model.model_name_or_path, arguments.model.model_revision

        self.config, self.family = loading.load_config(name, revision)
        layout = arguments.objective.row_layout
        if layout == "ragged" and self.family.ragged_rows is False:
            raise ModelError(f"{self.config.model_type} models need --row_layout unpacked")
        # Types that no test knows take unpacked rows, until the first record says more (``_prove_rows``).
        self.ragged = layout != "unpacked" and bool(self.family.ragged_rows)
        self.processor = loading.load_processor(name, revision, arguments.model.processor_settings)
        self.collator = Collator(
            self.processor,
            with_rejected=self.objective.uses_rejected,
            ragged=self.ragged,
            response_token_type=self.family.response_token_type,
            rope_index=loading.rope_index(self.config),
        )
        chat = ChatFormat(self.processor, system_prompt=arguments.data.system_prompt)
        # A checkpoint may have more of them than its family, for which the data has been checked.
        refuse_special_tokens([*training, *evaluation], self.processor.tokenizer)
        self.train_set = self._dataset("training", training, chat)
        self.eval_set = self._dataset("evaluation", evaluation, chat)
        if self.train_set is not None:
            self._say_tokens(self.train_set)

    def load(self) -> None:
        """Weights, adapter and trainer; before them all that the memory of the device decides.

        Raises:
            UserError: a checkpoint or an adapter that cannot be used, or a device that is too small.
        """
        self.base_weights = self._weights_identity()
        if self.record is not None:
            self.record["base_weights"] = self.base_weights
            if self.checkpoint is not None and checkpoints.read_record(self.checkpoint) is not None:
                allowed = self.arguments.run.allow_changed or ()
                checkpoints.refuse_changes(self.checkpoint, {"base_weights": self.base_weights}, allowed)
        self.reference_batch_size = 4 * self.args.per_device_train_batch_size
        if self.train_set is not None:
            self._settle_memory(self.train_set)
        options = self.arguments.model
        base = loading.load_base_model(
            options.model_name_or_path,
            revision=options.model_revision,
            dtype=loading.DTYPES[options.dtype],
            attn_implementation=options.attn_implementation,
            device=self.args.device if options.load_in_4bit or options.load_in_8bit else None,
            load_in_4bit=options.load_in_4bit,
            load_in_8bit=options.load_in_8bit,
        )
        policy, said = self._policy(base)
        self._check_disk(sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad))
        for line in said:
            logger.info(line)
        # The commit is behind the name of a model on the hub; a folder is known by its content alone.
        policy.peft_config["default"].revision = self.base_weights.partition("@")[2] or None
        self.description = self._describe(policy)
        try:
            self.trainer = self._trainer(policy)
        except HfHubHTTPError as error:  # --push_to_hub makes the repository
            raise ModelError(f"--push_to_hub: {' '.join(str(error).split())}") from error

        if self.family.ragged_rows is None:
            self._prove_rows(base)
        if self.arguments.data.sample_questions:
            self.trainer.add_callback(self._samples(policy))
        self.description["row_layout"] = "ragged" if self.ragged else "unpacked"

    def _samples(self, policy: PeftModel) -> Samples:
        data = self.arguments.data
        questions = read_own_questions(Path(str(data.sample_questions)), Path(data.image_root))
        chat = ChatFormat(self.processor, system_prompt=data.system_prompt)
        file = self.output / "samples.jsonl"
        return Samples(questions, policy, self.processor, chat, file, ragged=self.ragged)

    def _trainer(self, policy: PeftModel) -> ListwiseTrainer:
        return ListwiseTrainer(
            objective=self.objective,
            reference=self.arguments.objective.reference,
            run=self.description,
            stop=self.stop,
            on_nonfinite=self.arguments.run.on_nonfinite,
            model=policy,
            args=self.args,
            data_collator=self.collator,
            train_dataset=self.train_set,
            eval_dataset=self.eval_set,
            processing_class=self.processor,
        )

    # ---- what it is made of ----

    def _dataset(self, what: str, records: Sequence[Record], chat: ChatFormat) -> ListwiseDataset | None:
        if not records:
            return None
        cut = self.arguments.data.max_completion_length
        dataset = ListwiseDataset(records, chat, cut)
        if self.objective.uses_rejected and dataset.alike:
            report = f"{what}: {_alike(dataset, cut)}"
            kept = [record for index, record in enumerate(records) if index not in dataset.alike]
            if self.arguments.data.on_bad_record == "stop" or not kept:
                raise DataError(f"{report}; --on_bad_record drop leaves such records out, {len(kept)} others are there")
            logger.warning(f"{report}; left out (--on_bad_record drop)")
            dataset = ListwiseDataset(kept, chat, cut)
        images, about = len(records[0].images), "about " if dataset.is_estimate else ""
        logger.info(
            f"{what}: {len(dataset):,} records of {images} image{'s' if images > 1 else ''};"
            f" {about}{dataset.completions_cut:,} of {2 * len(dataset):,} completions cut at {cut} tokens"
        )
        return dataset

    def _say_tokens(self, dataset: ListwiseDataset) -> None:
        """How many tokens an image and a record take; with a warning where tiles times list length explode."""
        example, tokenizer = dataset[0], self.processor.tokenizer
        batch = self.collator([example])
        text = len(tokenizer(example.prompt_text, add_special_tokens=False).input_ids)
        if "spans" in batch:
            prompt, record = batch["spans"][0][0], batch["input_ids"].numel()
        else:
            lengths = batch["attention_mask"].sum(1).tolist()
            prompt, record = lengths[0] - len(example.chosen_ids), sum(lengths)
        width, height = example.images[0].size
        logger.info(
            f"tokens of the first record: about {max(prompt - text, 1):,} for its image of {width} x {height} pixels,"
            f" {record:,} in all with {len(example.images)} images"
        )
        if record > _MANY_TOKENS:
            has = self.processor.image_processor.to_dict()
            settings = ", ".join(f"{name} {json.dumps(has[name])}" for name in _TOKEN_SETTINGS if has.get(name))
            logger.warning(
                f"{record:,} tokens a record are many: --processor_settings changes how many an image takes"
                f" ({settings or 'its image processor has no setting for that'}), --list_size how many images there are"
            )

    def _policy(
        self, base: PreTrainedModel, *, in_4bit: bool = False, attention: str = ragged_attention.NAME
    ) -> tuple[PeftModel, list[str]]:
        """The base model with a fresh adapter, or with the one to start from; and what is to say of it.

        Args:
            base: with weights, or of shapes alone.
            in_4bit: whether shapes alone stand for weights in 4 bits.
            attention: form of the ragged one.
        """
        options = self.arguments.model
        set_seed(self.args.seed)
        tower = vision_tower(base)
        if options.freeze_vision_tower and not tower:
            raise ModelError(f"--freeze_vision_tower: transformers does not say what that is in {type(base).__name__}")
        if options.init_adapter is not None:
            folder, of_base = Path(options.init_adapter), self.arguments.objective.reference == "base"
            policy = adapters.load_adapter(base, folder, trainable=True, base_is_reference=of_base)
        else:
            policy = adapters.add_adapter(
                base,
                r=options.lora_r,
                alpha=options.lora_alpha,
                dropout=options.lora_dropout,
                target_modules=options.lora_target_modules,
                target_parameters=options.lora_target_parameters or (),
                frozen_module=tower if options.freeze_vision_tower else None,
                use_rslora=options.use_rslora,
                use_dora=options.use_dora,
            )
        if self.ragged:
            ragged_attention.use_ragged_attention(base, attention)
        count = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
        said = [f"{options.model_name_or_path}: {count:,} adapter parameters in training, base in {options.dtype}"]
        if options.init_adapter is not None and self.arguments.objective.reference == "base":
            said.append(
                f"reference: the base model without {options.init_adapter}, so that rewards need not start at 0;"
                " --reference init_adapter takes the adapter too"
            )
        elif options.init_adapter is not None:
            said.append(f"reference: the base model with {options.init_adapter}, as training starts")
        if left := adapters.experts_without_adapter(policy):
            said.append(left)
        if freeze_tower(base, tower):
            said.append("the vision tower is not trained: no gradients through it, the same images encoded once")
        if in_4bit:
            dry_run.stand_for_4bit(policy)
        if self.arguments.objective.fused_layers:
            autocast = "bfloat16" if self.args.bf16 else "float16" if self.args.fp16 else options.dtype
            if is_deepspeed_zero3_enabled():
                said.append("LoRA layers stay peft's: ZeRO-3 gathers weights layer by layer")
            elif autocast != options.dtype:
                said.append(f"LoRA layers stay peft's: the base is in {options.dtype}, autocast in {autocast}")
            else:
                said.append(str(fuse_layers(policy)))
        return policy, said

    def _prove_rows(self, base: PreTrainedModel) -> None:
        """Score a record in rows and one completion at a time; take ragged rows where they are exact.

        Raises:
            ModelError: the rows that the user wants, or all, are not exact.
        """
        layout, dataset = self.arguments.objective.row_layout, self.train_set or self.eval_set
        if self.args.deepspeed or self.args.fsdp:
            logger.info("rows: unpacked; sharded models are not compared with one completion at a time")
            return
        assert dataset is not None
        autocast = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        before = base.config.get_text_config()._attn_implementation
        proof = prove_rows(
            dataset[0],
            self.collator,
            self.trainer.score,
            None if layout == "unpacked" else lambda: ragged_attention.use_ragged_attention(base),
            autocast or loading.DTYPES[self.arguments.model.dtype],
        )
        agreed = [proof.ragged_rows]
        broadcast_object_list(agreed)  # all processes the same
        self.ragged = agreed[0]
        if layout == "ragged" and not self.ragged:
            raise ModelError(f"{self.config.model_type} models need --row_layout unpacked; {proof}")
        logger.info(str(proof))
        if self.ragged:
            self.collator = dataclasses.replace(self.collator, ragged=True)
            trainer: Any = self.trainer
            trainer.data_collator = self.collator
        elif layout != "unpacked":
            base.set_attn_implementation({"text_config": before})

    def _cost(self, data: cost.Data, *, in_4bit: bool, on_gpu: bool = True) -> cost.StepCost:
        """Of a training step, from the model's shapes."""
        options, args = self.arguments.model, self.arguments.training
        attention = "eager" if options.attn_implementation == "eager" else "sdpa"
        base = loading.empty_model(self.config, dtype=loading.DTYPES[options.dtype], attn_implementation=attention)
        kernel = on_gpu and options.dtype != "float32"
        policy, _ = self._policy(
            base, in_4bit=in_4bit, attention=ragged_attention.KERNEL if kernel else ragged_attention.NAME
        )
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        online = not self.arguments.objective.precompute_ref_log_probs
        return cost.StepCost(dry_run.without_weights(policy), data, autocast, online=online)

    def _settle_memory(self, records: ListwiseDataset) -> None:
        """Checkpointing, and the size of the reference's batches, by the memory that is free."""
        wanted = checkpointed_every(self.arguments.training.activation_checkpointing)
        if self.args.deepspeed or self.args.fsdp:
            if wanted is None:
                logger.info("--activation_checkpointing auto: all layers, sharded models being beyond the estimate")
                set_checkpointing(self.args, 1)
            return
        if self.args.device.type == "cpu" and wanted is not None:
            return
        try:
            every = self._choose(records, wanted)
        except UserError:
            raise
        except Exception as error:  # it rests on much that versions change, and a run can do without
            logger.warning(f"the memory of a step could not be estimated: {error}")
            every = 1
        if wanted is None:
            choice = [every]
            broadcast_object_list(choice)  # all processes the same
            set_checkpointing(self.args, choice[0])

    def _check_disk(self, trained: int) -> None:
        """Refuse a disk that holds not one checkpoint beside the final adapter, and say what all of them need.

        Args:
            trained: parameters of the adapter, of four bytes each; a checkpoint has AdamW's two moments too.
        """
        if self._disk_checked or not self.args.do_train or not self.args.should_save:
            return
        self._disk_checked = True
        free = shutil.disk_usage(next(one for one in (self.output, *self.output.parents) if one.exists())).free
        adapter, count = 4 * trained, self._checkpoint_count()
        one, all_of_them = adapter + 3 * adapter * min(count, 1), adapter + 3 * adapter * count
        if free < one:
            raise DataError(
                f"{self.output}: {free / 1e6:,.0f} MB are free and the adapter with one checkpoint needs"
                f" {one / 1e6:,.0f} MB: free some space, or name another --output_dir"
            )
        if free < all_of_them:
            logger.warning(
                f"{self.output}: {free / 1e9:.1f} GB are free and {count} checkpoints with the adapter need"
                f" {all_of_them / 1e9:.1f} GB: --save_total_limit keeps fewer"
            )

    def _checkpoint_count(self) -> int:
        """How many checkpoints lie on the disk at the end."""
        args = self.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps_an_epoch = math.ceil(len(self.train_set or ()) / batch)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_an_epoch)
        save_steps = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
        interval = {"epoch": steps_an_epoch, "steps": save_steps}.get(self.arguments.training.save_strategy, math.inf)
        count = math.ceil(steps / interval) if interval < math.inf else 0
        return min(count, args.save_total_limit or count)

    def _choose(self, records: ListwiseDataset, wanted: int | None) -> int:
        on_gpu, in_4bit = self.args.device.type != "cpu", self.arguments.model.load_in_4bit
        data, free = cost.Data.of(records, self.collator), cost.free_bytes(self.args.device)
        step = self._cost(data, in_4bit=in_4bit, on_gpu=on_gpu)
        self._check_disk(step.trained)
        if on_gpu:
            self.reference_batch_size = min(32, step.reference_records_that_fit(free))
        return cost.choose_checkpointing(
            step, lambda: self._cost(data, in_4bit=True), wanted, self.args.per_device_train_batch_size, free
        )

    def _weights_identity(self) -> str:
        """Hashed by one process, since all weights are read for it, and sent to the others."""
        model = self.arguments.model
        identity: list[Any] = [None]
        if self.args.process_index == 0:
            identity[0] = loading.weights_identity(model.model_name_or_path, model.model_revision)
        broadcast_object_list(identity)
        return str(identity[0])

    def _describe(self, policy: PeftModel) -> dict[str, Any]:
        """What ``run.json`` holds: all that decides the result."""
        arguments = self.arguments
        files = {
            "pairs": arguments.data.pairs if arguments.training.do_train else None,
            "image_lists": arguments.data.image_lists,
            "eval_pairs": arguments.data.eval_pairs,
            "eval_image_lists": arguments.data.eval_image_lists,
        }
        # The adapter's own numbers, which are not the options' when it was loaded.
        adapter: Any = policy.peft_config["default"]
        start = arguments.model.init_adapter
        return {
            "program": Path(sys.argv[0]).name,
            "arguments": {
                "model": dataclasses.asdict(arguments.model),
                "data": dataclasses.asdict(arguments.data),
                "objective": dataclasses.asdict(arguments.objective),
                "training": self.args.to_dict(),  # access tokens are left out
            },
            **({"record": self.record} if self.record is not None else {}),
            "data": {
                **{what: {"file": file, "sha256": sha256_of([Path(file)])} for what, file in files.items() if file},
                "training_records": len(self.train_set or ()),
                "evaluation_records": len(self.eval_set or ()),
            },
            "objective_weights": list(self.objective.weights.values()),
            "loss_weights": dict(self.objective.weights),
            "base_weights": self.base_weights,
            "versions": {
                "listwise_preference": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
                "accelerate": accelerate.__version__,
                "pillow": PIL.__version__,
            },
            "adapter": {
                "r": adapter.r,
                "alpha": adapter.lora_alpha,
                "dropout": adapter.lora_dropout,
                "target_modules": adapters.targets(adapter),
                "target_parameters": sorted(adapter.target_parameters or ()),
                "started_from": None
                if start is None
                else {
                    "folder": start,
                    "sha256": sha256_of([adapters.adapter_file(Path(start))]),
                    # As it was saved, with the names of its time.
                    "target_modules": adapters.targets(peft.PeftConfig.from_pretrained(start)),
                },
            },
        }

    # ---- what it does ----

    def estimate(self) -> str:
        """What the run will cost, from shapes alone."""
        args, records = self.args, self.train_set
        assert records is not None
        data = cost.Data.of(records, self.collator)
        dtype = self.arguments.model.dtype
        costs = {name: self._cost(data, in_4bit=name == "4-bit") for name in (dtype, "4-bit")}
        if self.arguments.model.load_in_4bit:
            costs = dict(reversed(costs.items()))
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        trained = args.max_steps * batch if args.max_steps > 0 else args.num_train_epochs * len(records)
        work = cost.Workload(
            trained=float(trained),
            referenced=len(records) + len(self.eval_set or ()),
            checkpoints=self._checkpoint_count(),
            completions=int(data.batch["completion_count"]),
        )
        return cost.report(costs, work)

    def begin(self) -> None:
        """Make the output folder this run's: delete what shall be, and write ``run.json``."""
        if self.trainer.is_world_process_zero():
            if self.args.do_train and self.arguments.run.overwrite_output_dir:
                checkpoints.clear(self.output)
            # An evaluation may go into the folder of the run that it is of, whose own record stays.
            write_json(self.output / ("run.json" if self.args.do_train else "eval_run.json"), self.description)
        self.trainer.accelerator.wait_for_everyone()

    def precompute_reference(self) -> None:
        """The reference's log-probabilities of every record, from the cache where they are known."""
        args, objective = self.args, self.arguments.objective
        start = self.arguments.model.init_adapter if objective.reference == "init_adapter" else None
        identity = json.dumps(
            [
                self.base_weights,
                self.description["versions"],
                self.arguments.model.dtype + self.arguments.model.quantized,
                [args.bf16, args.fp16],
                self.arguments.model.attn_implementation,
                ["ragged" if self.ragged else "unpacked", objective.fused_layers],
                loading.processor_identity(self.processor),
                *([adapters.identity(Path(start))] if start else []),
            ]
        )
        cache = ReferenceCache(Path(objective.ref_cache or f"{args.output_dir}/reference"))
        batch_size = objective.precompute_ref_batch_size or self.reference_batch_size
        for what, dataset in {"training": self.train_set, "evaluation": self.eval_set}.items():
            if dataset is None:
                continue
            # By one process, which reads every image for it.
            keys: list[Any] = [None] * len(dataset)
            if self.trainer.is_world_process_zero():
                keys = list(record_keys(dataset, identity, with_rejected=self.objective.uses_rejected))
            broadcast_object_list(keys)
            computed = self.trainer.precompute_reference(dataset, keys, cache, batch_size)
            logger.info(
                f"reference log-probabilities for {what}: {computed:,} computed,"
                f" {len(dataset) - computed:,} found in {cache.folder}"
            )

    def train(self) -> None:
        """Train, from a checkpoint's state if there is one.

        Raises:
            Stopped: asked to; the checkpoint is written.
        """
        self.stop.in_training = True
        before = self.trainer.adapter_norms()
        if self.checkpoint is not None:
            self.trainer.load_adapter_before_sharding(self.checkpoint)
        self.trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        self.stop.in_training = False
        if self.stop.why is not None:
            step = self.trainer.state.global_step
            raise Stopped(f"stopped by {self.stop.why} after step {step}; {self.stop.way_on()}", self.stop.status)
        self.trainer.save_state()
        self.trainer.refuse_nonfinite_adapter()
        if before and self.trainer.adapter_norms() == before:
            logger.warning(
                "the adapter is what it was before training: is the learning rate"
                f" ({self.args.learning_rate:g}) too low, or was every step skipped?"
            )

    def save(self) -> None:
        """The adapter and all that belongs to it, in ``final/``, which appears when it is complete."""
        final = self.output / checkpoints.FINAL
        if self.checkpoint is not None and self.checkpoint.resolve() == final.resolve():
            return
        partial = self.output / f"{checkpoints.FINAL}.partial"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.trainer.accelerator.wait_for_everyone()
        self.trainer.save_model(str(partial), _internal_call=True)
        if self.trainer.is_world_process_zero():
            (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same to everyone
            shutil.copy(self.output / "trainer_state.json", partial)
            write_json(partial / checkpoints.RUN_FILE, self.description)
            self.trainer.create_model_card(partial)
            checkpoints.complete(partial, self.trainer.facts())
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
            logger.info(f"the adapter is in {final}")

    def evaluate(self) -> None:
        """The evaluation's means in ``eval_results.json``, and a line for each of its records."""
        assert self.eval_set is not None
        prediction = self.trainer.predict(self.eval_set, metric_key_prefix="eval")
        self.trainer.log(dict(prediction.metrics or {}))
        if self.trainer.is_world_process_zero():
            results, records = self.output / "eval_results.json", self.output / "eval_records.jsonl"
            write_json(results, prediction.metrics)
            write_eval_records(records, self.eval_set, prediction, self.objective)
            logger.info(f"wrote {results} and {records}")

    def finish(self) -> None:
        """Upload what was asked for, and let the other processes go."""
        if self.args.do_train and self.args.push_to_hub:
            self._upload()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _upload(self) -> None:
        final = self.output / "final"
        try:
            self.trainer.push_to_hub()
        except Exception as error:  # of the hub's client, and of the libraries below it; the adapter is safe
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"the adapter is in {final}, and its upload failed: {reason}; try again with: hf upload"
                f" {self.args.hub_model_id or 'NAME'} {final}"
            ) from error


def _alike(dataset: ListwiseDataset, cut: int) -> str:
    """Which records have a chosen and a rejected completion of the same tokens, and what would keep them apart."""
    lengths = [length for length in dataset.alike.values() if length is not None]
    ids = [str(dataset.records[index].pair.id) for index in dataset.alike]
    shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
    said = f"{len(ids):,} of {len(dataset):,} records have the same tokens as chosen and as rejected"
    said += f" once cut at {cut} tokens: {shown}; they teach nothing"
    return f"{said}. --max_completion_length {max(lengths)} keeps {len(lengths):,} of them apart" if lengths else said


def refuse_special_tokens(records: Sequence[Record], tokenizer: Any) -> None:
    """Refuse texts that a tokenizer would not take as text.

    Raises:
        DataError: a record's text contains one of the tokenizer's special tokens.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
    for record in records:
        texts = {"prompt": record.pair.prompt, "chosen": record.pair.chosen, "rejected": record.pair.rejected}
        for key in texts:
            if found := pattern.search(texts[key]):
                raise DataError(
                    f'record {record.pair.id}: "{key}" contains {found[0]}, a special token of this model: take it out'
                )


def _training_arguments(arguments: Arguments) -> TrainingArguments:
    """The Trainer's options, settled for this machine."""
    args = arguments.training.build()
    if args.n_gpu > 1:
        # One process with several GPUs would mean nn.DataParallel: slow, and wrong for ragged rows.
        args._n_gpu = 1
        logger.warning("several GPUs are visible, one is used; for all of them start with: accelerate launch")
    # More loading processes than cores would only wait for each other.
    args.dataloader_num_workers = min(args.dataloader_num_workers, os.cpu_count() or 1)
    # A step that is skipped shall not make the logged mean a nan.
    if arguments.run.on_nonfinite == "skip":
        args.logging_nan_inf_filter = True
    if args.ddp_find_unused_parameters is None:
        # LLaVA reads the last but one layer of its vision tower: adapters of earlier versions have weights in the last
        # one, which get no gradient.
        args.ddp_find_unused_parameters = True
    sharded = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    kind = PartialState().distributed_type
    if sharded and kind in (DistributedType.MULTI_CPU, DistributedType.NO):
        # accelerate would train the whole model in every process, without a word.
        where = "on CPUs" if kind == DistributedType.MULTI_CPU else "in a single process"
        raise ModelError(f"FSDP shards nothing {where}: leave --fsdp and the launcher's FSDP settings out")
    if sharded and arguments.objective.precompute_ref_log_probs:
        raise ModelError(
            "FSDP shards the base model when training begins, and the precomputed reference needs all of it before:"
            " use --precompute_ref_log_probs false"
        )
    if arguments.objective.precompute_ref_log_probs and is_deepspeed_zero3_enabled():
        raise ModelError("ZeRO-3 shards the base model before training: use --precompute_ref_log_probs false")
    if arguments.objective.reference == "init_adapter" and (is_deepspeed_zero3_enabled() or args.fsdp):
        raise ModelError("ZeRO-3 and FSDP shard the adapter that training starts from: use --reference base")
    return args
