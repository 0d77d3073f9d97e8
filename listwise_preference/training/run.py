"""The part of a training run that needs torch: model, adapter, reference, trainer, and the files in the output folder.

``command`` imports this only once options and data are known to be good.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from listwise_preference.data.own_questions import read_own_questions
from listwise_preference.data.pairs import Record
from listwise_preference.errors import DataError, ModelError, Stopped, UserError
from listwise_preference.files import write_json
from listwise_preference.models import adapters, loading, ragged_attention
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.training import checkpoints
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.checkpoints import RunRecord
from listwise_preference.training.dataset import make_dataset, refuse_special_tokens, say_settings, say_tokens
from listwise_preference.training.description import describe
from listwise_preference.training.options import Arguments
from listwise_preference.training.policy import make_policy
from listwise_preference.training.record_page.page import write_record_page
from listwise_preference.training.reference import ReferenceCache, record_keys
from listwise_preference.training.resources import Resources
from listwise_preference.training.row_proof import prove_rows
from listwise_preference.training.samples import Samples
from listwise_preference.training.stopping import StopRequests
from listwise_preference.training.trainer import ListwiseTrainer, write_eval_records

logger = logging.getLogger("listwise_preference")


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
            rejected_on_all=self.objective.uses_rejected_on_all,
            ragged=self.ragged,
            response_token_type=self.family.response_token_type,
            rope_index=loading.rope_index(self.config),
        )
        chat = ChatFormat(self.processor, system_prompt=arguments.data.system_prompt)
        # A checkpoint may have more of them than its family, for which the data has been checked.
        refuse_special_tokens(chain(training, evaluation), self.processor.tokenizer)
        self.train_set = self._dataset("training", training, chat) if training else None
        self.eval_set = self._dataset("evaluation", evaluation, chat) if evaluation else None
        self.resources: Resources | None = None
        if self.train_set is not None:
            say_tokens(self.train_set, self.collator, self.processor)
            if settings := arguments.model.processor_settings:
                say_settings(self.train_set, self.processor, loading.load_processor(name, revision), settings)
            self.resources = Resources(
                arguments, self.args, self.config, self.collator, self.train_set, len(self.eval_set or ())
            )

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
            self._refuse_other_disks()
        if self.resources is not None:
            self.resources.settle_memory()
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
        policy, said = make_policy(base, self.arguments, self.args, ragged=self.ragged)
        if self.resources is not None:
            trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
            self.resources.check_disk(trained)
        for line in said:
            logger.info(line)
        # The commit is behind the name of a model on the hub; a folder is known by its content alone.
        adapter = policy.peft_config["default"]
        adapter.revision = self.base_weights.partition("@")[2] or None
        self.description = describe(
            self.arguments,
            self.args,
            self.objective,
            adapter,
            base_weights=self.base_weights,
            training_records=len(self.train_set or ()),
            evaluation_records=len(self.eval_set or ()),
            record=self.record,
        )
        try:
            self.trainer = self._trainer(policy)
        except HfHubHTTPError as error:  # --push_to_hub makes the repository
            raise ModelError(f"--push_to_hub: {' '.join(str(error).split())}") from error

        if self.family.ragged_rows is None:
            self._prove_rows(base)
        if self.arguments.data.sample_questions:
            self.trainer.add_callback(self._samples(policy))
        self.description["row_layout"] = "ragged" if self.ragged else "unpacked"

    def _refuse_other_disks(self) -> None:
        """Refuse machines that would not all go on from the same checkpoint; before, some would wait for others."""
        here = checkpoints.identity(self.checkpoint) if self.checkpoint is not None else "the beginning"
        seen = [here] if self.args.world_size == 1 else gather_object([here])
        if others := [f"process {rank} from {one}" for rank, one in enumerate(seen) if one != seen[0]]:
            raise DataError(
                f"--output_dir {self.output}: process 0 would go on from {seen[0]}, {', '.join(others)}: the machines"
                " need a folder that they share, or a copy of process 0's on each of them"
            )

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

    def _dataset(self, what: str, records: Sequence[Record], chat: ChatFormat) -> ListwiseDataset:
        data = self.arguments.data
        return make_dataset(
            what,
            records,
            chat,
            data.max_completion_length,
            compares_responses=self.objective.uses_rejected,
            drop=data.on_bad_record == "drop",
        )

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

    def _weights_identity(self) -> str:
        """Hashed by one process, since all weights are read for it, and sent to the others."""
        model = self.arguments.model
        identity: list[Any] = [None]
        if self.args.process_index == 0:
            identity[0] = loading.weights_identity(model.model_name_or_path, model.model_revision)
        broadcast_object_list(identity)
        return str(identity[0])

    # ---- what it does ----

    def estimate(self) -> str:
        """What the run will cost, from shapes alone."""
        assert self.resources is not None
        return self.resources.estimate()

    def dry_run(self) -> str:
        """Show the first record's batch on a page; says where it is.

        Raises:
            DataError: ``dry_run/`` in the output folder holds something else.
        """
        dataset = self.train_set or self.eval_set
        assert dataset is not None
        example = dataset[0]
        batch = self.collator([example])
        page = self.output / "dry_run" / "index.html"
        if self.args.process_index == 0:
            write_record_page(
                page.parent,
                batch,
                example,
                dataset.records[0],
                self.processor,
                model=self.arguments.model.model_name_or_path,
                records=len(dataset),
                weights={name: weight for name, weight in self.objective.weights.items() if weight},
            )
        rows = "ragged" if self.ragged else "unpacked"
        if self.family.ragged_rows is None and self.arguments.objective.row_layout != "unpacked":
            rows = "unpacked (a run tries with its weights whether ragged rows are exact)"
        tokens, name = batch["input_ids"].numel(), dataset.records[0].pair.id
        return f"nothing was trained; record {name} as the model will see it, {tokens:,} tokens in rows {rows}: {page}"

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
        fitting = 4 * args.per_device_train_batch_size
        if self.resources is not None:
            fitting = self.resources.reference_batch_size
        batch_size = objective.precompute_ref_batch_size or fitting
        for what, dataset in {"training": self.train_set, "evaluation": self.eval_set}.items():
            if dataset is None:
                continue
            # By one process, which reads every image for it.
            keys: list[Any] = [None] * len(dataset)
            if self.trainer.is_world_process_zero():
                scored = {
                    "with_rejected": self.objective.uses_rejected,
                    "rejected_on_all": self.objective.uses_rejected_on_all,
                }
                keys = list(record_keys(dataset, identity, **scored))
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
