"""What a run takes of memory and disk, and what is decided by it."""

import logging
import math
import shutil
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers import PretrainedConfig, TrainingArguments

from listwise_preference.errors import DataError, UserError
from listwise_preference.models import dry_run, loading, ragged_attention
from listwise_preference.training import cost
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.options import Arguments
from listwise_preference.training.policy import make_policy
from listwise_preference.training.trainer_arguments import checkpointed_every, set_checkpointing

logger = logging.getLogger("listwise_preference")


class Resources:
    """What training on some records takes, and what of the run's settings follows from it.

    Args:
        arguments: the run's.
        args: the Trainer's, settled for this machine; ``settle_memory`` sets their checkpointing.
        config: the model's.
        collator: makes its batches.
        records: to train on.
        evaluated: records to evaluate on.
    """

    def __init__(
        self,
        arguments: Arguments,
        args: TrainingArguments,
        config: PretrainedConfig,
        collator: Collator,
        records: ListwiseDataset,
        evaluated: int,
    ) -> None:
        self.arguments = arguments
        self.args = args
        self.config = config
        self.collator = collator
        self.records = records
        self.evaluated = evaluated
        # Records that a pass of the reference takes at once.
        self.reference_batch_size = 4 * args.per_device_train_batch_size
        self.output = Path(str(args.output_dir))
        self._disk_checked = False

    def step_cost(self, data: cost.Data, *, bits: int | None, on_gpu: bool = True) -> cost.StepCost:
        """Of a training step, from the model's shapes, with its weights quantized to so many bits or as they are."""
        options, args = self.arguments.model, self.arguments.training
        attention = "eager" if options.attn_implementation == "eager" else "sdpa"
        base = loading.empty_model(self.config, dtype=loading.DTYPES[options.dtype], attn_implementation=attention)
        kernel = on_gpu and options.dtype != "float32"
        policy, _ = make_policy(
            base,
            self.arguments,
            self.args,
            ragged=self.collator.ragged,
            bits=bits,
            attention=ragged_attention.KERNEL if kernel else ragged_attention.NAME,
        )
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        online = not self.arguments.objective.precompute_ref_log_probs
        return cost.StepCost(dry_run.without_weights(policy), data, autocast, online=online)

    def settle_memory(self) -> None:
        """Checkpointing, and the size of the reference's batches, by the memory that is free.

        Raises:
            UserError: a step does not fit the device.
        """
        wanted = checkpointed_every(self.arguments.training.activation_checkpointing)
        if self.args.deepspeed or self.args.fsdp:
            if wanted is None:
                logger.info("--activation_checkpointing auto: all layers, sharded models being beyond the estimate")
                set_checkpointing(self.args, 1)
            return
        if self.args.device.type == "cpu" and wanted is not None:
            return
        try:
            every = self._choose(wanted)
        except UserError:
            raise
        except Exception as error:  # it rests on much that versions change, and a run can do without
            logger.warning(f"the memory of a step could not be estimated: {error}")
            every = 1
        if wanted is None:
            choice = [every]
            broadcast_object_list(choice)  # all processes the same
            set_checkpointing(self.args, choice[0])

    def check_disk(self, trained: int) -> None:
        """Refuse a disk that holds not one checkpoint beside the final adapter, and say what all of them need.

        Args:
            trained: parameters of the adapter, of four bytes each; a checkpoint has AdamW's two moments too.

        Raises:
            DataError: too little room.
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
        steps_an_epoch = math.ceil(len(self.records) / batch)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_an_epoch)
        save_steps = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
        interval = {"epoch": steps_an_epoch, "steps": save_steps}.get(self.arguments.training.save_strategy, math.inf)
        count = math.ceil(steps / interval) if interval < math.inf else 0
        return min(count, args.save_total_limit or count)

    def _choose(self, wanted: int | None) -> int:
        """Every how many layers are checkpointed."""
        on_gpu = self.args.device.type != "cpu"
        data, free = cost.Data.of(self.records, self.collator), cost.free_bytes(self.args.device)
        step = self.step_cost(data, bits=self.arguments.model.bits, on_gpu=on_gpu)
        self.check_disk(step.trained)
        if on_gpu:
            self.reference_batch_size = min(32, step.reference_records_that_fit(free))
        return cost.choose_checkpointing(
            step, lambda: self.step_cost(data, bits=4), wanted, self.args.per_device_train_batch_size, free
        )

    def estimate(self) -> str:
        """What the run will cost, from shapes alone."""
        args, records = self.args, self.records
        data = cost.Data.of(records, self.collator)
        own = self.arguments.model.bits
        each = [own, *(bits for bits in (None, 8, 4) if bits != own)]
        names = {None: self.arguments.model.dtype, 8: "8-bit", 4: "4-bit"}
        costs = {names[bits]: self.step_cost(data, bits=bits) for bits in each}
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        trained = args.max_steps * batch if args.max_steps > 0 else args.num_train_epochs * len(records)
        work = cost.Workload(
            trained=float(trained),
            referenced=len(records) + self.evaluated,
            checkpoints=self._checkpoint_count(),
            completions=int(data.batch["completion_count"]),
        )
        return cost.report(costs, work)
