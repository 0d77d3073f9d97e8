"""ListwiseTrainer: transformers.Trainer with this project's loss, metrics and reference.

Shapes: B record, A completion (chosen on image 1, rejected, chosen on image 2 ... L).
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, rotate_checkpoints

from listwise_preference.errors import DataError, UserError
from listwise_preference.files import write_atomic, write_json
from listwise_preference.training.batch import Batch, Collator, Example, ListwiseDataset
from listwise_preference.training.checkpoints import FINAL, MANIFEST, RUN_FILE, complete
from listwise_preference.training.completion_logps import completion_logps
from listwise_preference.training.console import ProgressBar, StepLines
from listwise_preference.training.losses import TERMS
from listwise_preference.training.model_card import write_model_card
from listwise_preference.training.objective import (
    FLOAT32_ROUNDING,
    HALF_ROUNDING,
    IN_ORDER,
    Objective,
    Outcome,
    compare,
    metrics,
)
from listwise_preference.training.reference import LogPs, ReferenceCache
from listwise_preference.training.stopping import StopRequests

logger = logging.getLogger("listwise_preference")

LOW_REWARD = -10.0  # of the chosen responses: with beta 0.1 they are a hundred nats less likely than at the start


class ListwiseTrainer(Trainer):
    """Trains the adapter of a model against the same model with the adapter off, or as it started.

    Datasets are :class:`ListwiseDataset`; where one holds ``reference_logps`` those are used, else the reference runs
    at every step.

    Args:
        objective: what is optimized.
        run: what ``run.json`` holds, for checkpoints and the model card.
        stop: what may ask for the end of the run, if anything.
        on_nonfinite: "stop" at a step whose loss or gradient is no number, or "skip" it.
        reference: "base" is the model with the adapter off, "init_adapter" with it as it is now.
        trainer_arguments: as of :class:`transformers.Trainer`.
    """

    # compute_loss returns a mean over records, which the Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        objective: Objective,
        run: Mapping[str, Any],
        stop: StopRequests | None = None,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        reference: Literal["base", "init_adapter"] = "base",
        **trainer_arguments: Any,
    ) -> None:
        super().__init__(compute_metrics=self._mean_metrics, **trainer_arguments)
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(ProgressBar())
        self.add_callback(StepLines())
        if stop is not None:
            self.add_callback(_StopAtStep(stop, self))
        self.run: Mapping[str, Any] = run
        self.objective: Objective = objective
        weights: Any = self.model
        half = self.args.bf16 or self.args.fp16 or weights.dtype != torch.float32
        self._rounding: float = HALF_ROUNDING if half else FLOAT32_ROUNDING
        self._sums: dict[str, Tensor] = {}
        self._record_count = 0
        self._step: list[_Counted] = []
        self._on_nonfinite = on_nonfinite
        self._low_reward_said = False
        self._start: dict[str, Tensor] | None = None
        if reference == "init_adapter":
            trained = {n: p for n, p in trainer_arguments["model"].named_parameters() if p.requires_grad}
            self._start = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def _prepare_inputs(self, inputs: Any) -> Any:
        """On the device; the reference's values as they are, where DeepSpeed rounds a batch's floats to the model's."""
        prepared = super()._prepare_inputs(inputs)
        if "reference_logps" in inputs:
            prepared["reference_logps"] = inputs["reference_logps"].to(self.args.device)
        return prepared

    # ---- loss ----

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The mean loss of the batch's records, and on request the completions' log-probabilities by policy and
        reference and their lengths."""
        reference_BA = inputs["reference_logps"] if "reference_logps" in inputs else self._reference(model, inputs)
        policy_BA = completion_logps(model, inputs)
        outcome = compare(self.objective, policy_BA, reference_BA, inputs["lengths"])
        if model.training:
            self._step.append(_Counted.of(inputs["record"], outcome, metrics(self.objective, outcome, self._rounding)))
        loss = outcome.loss_B.mean().float()
        return (loss, (policy_BA, reference_BA, inputs["lengths"])) if return_outputs else loss

    def _reference(self, model: nn.Module, inputs: Batch) -> Tensor:
        """The reference's log-probabilities: no dropout, no gradients, the adapter off or as it started. (B, A)."""
        was_training = model.training
        model.eval()
        adapted: PeftModel = self.accelerator.unwrap_model(model)
        off: AbstractContextManager[Any] = adapted.disable_adapter()
        with torch.no_grad(), off if self._start is None else _with_values(adapted, self._start):
            reference_BA = completion_logps(model, inputs)
            # peft turns the gradients of the adapter off here and on again. FSDP's shards, whose place whole weights
            # may have taken, must be back by then, or theirs stay off (findings/fsdp2_disable_adapter_freezes.sh).
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        model.train(was_training)
        return reference_BA

    @torch.no_grad()
    def score(self, examples: Sequence[Example], collator: Collator) -> Tensor:
        """The policy's log-probabilities of these examples' completions, as training computes them. (B, A)."""
        model: Any = self.model
        batch: Any = self._prepare_inputs(collator(examples))
        was_training = model.training
        model.to(self.args.device).eval()
        with self.accelerator.autocast():
            policy_BA = completion_logps(model, batch)
        model.train(was_training)
        return policy_BA

    # ---- metrics ----

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm, asked for once a step, before the optimizer moves: here each step is judged."""
        norm = super()._get_grad_norm(model, grad_norm)
        scaler = self.accelerator.scaler
        # A scaler of float16 meets infinite gradients as a matter of course, and leaves such steps out itself.
        good = norm is None or (scaler is not None and scaler.is_enabled()) or math.isfinite(norm)
        wrong = [int(index) for part in self._step for index in part.record_B[~part.finite_B].tolist()]
        verdict = torch.tensor(float(not good or bool(wrong)), device=self.args.device)
        if self.accelerator.reduce(verdict, reduction="sum").item() > 0:
            self._nonfinite(model, norm, wrong)
        else:
            for part in self._step:
                for name, total in part.sums.items():
                    self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total
                self._record_count += len(part.record_B)
        self._step = []
        return norm

    def _nonfinite(self, model: nn.Module, norm: Any, wrong: Sequence[int]) -> None:
        """Stop at a step of which something is no finite number, or leave it out."""
        dataset: Any = self.train_dataset
        of_step = [int(index) for part in self._step for index in part.record_B.tolist()]
        all_wrong = gather_object(list(wrong))
        named = sorted({str(dataset.records[index].pair.id) for index in all_wrong or gather_object(of_step)})
        shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        what = "a loss or log-probability is" if all_wrong else f"the gradient's norm ({norm}) is"
        message = f"step {self.state.global_step + 1}: {what} no finite number; record{'s' * (len(named) > 1)} {shown}"
        skipped = 1 + sum("skipped_step" in entry for entry in self.state.log_history)
        if self._on_nonfinite == "skip" and not self.is_deepspeed_enabled:
            if skipped <= max(1, self.state.max_steps // 100):
                model.zero_grad()  # without gradients the optimizer moves nothing
                logger.warning(f"{message}: step skipped, the {skipped}. of this run")
                self.log({"skipped_step": float(self.state.global_step + 1)})
                return
            message += f"; {skipped} steps, more than 1 % of the run"
        raise UserError(
            f"{message}. The run stops and leaves no {FINAL}/. Likely: the learning rate"
            f" ({self.args.learning_rate:g}) is too high, the base is not finite, or float16 overflows where bfloat16"
            " does not. --on_nonfinite skip leaves out a few such steps"
        )

    def adapter_norms(self) -> dict[str, float]:
        """The norm of each trained parameter; nothing where they are sharded."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return {}
        model: Any = self.model
        return {name: p.detach().norm().item() for name, p in model.named_parameters() if p.requires_grad}

    def refuse_nonfinite_adapter(self) -> None:
        """Raise UserError where the adapter, which is about to be saved, has a value that is no finite number."""
        model: Any = self.model
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        parts = {name: p.to_local() if isinstance(p, DTensor) else p for name, p in trained.items()}
        if wrong := [name for name, part in parts.items() if not part.isfinite().all()]:
            raise UserError(
                f"step {self.state.global_step}: {len(wrong)} tensors of the adapter are not finite, {wrong[0]} for"
                f" one; it is not saved. Likely: the learning rate ({self.args.learning_rate:g}) is too high"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over all records since the last log, over all processes, to the training loss's log."""
        if "loss" in logs and self._sums:
            count = torch.tensor(float(self._record_count), device=self.args.device)
            totals = self.accelerator.reduce(torch.stack([count, *self._sums.values()]), reduction="sum")
            means = (totals[1:] / totals[0]).tolist()
            logs |= dict(zip(self._sums, means, strict=True))
            self._sums, self._record_count = {}, 0
            if logs["rewards/chosen"] < LOW_REWARD and not self._low_reward_said:
                self._low_reward_said = True
                logger.warning(
                    f"step {self.state.global_step}: the chosen responses' mean reward is {logs['rewards/chosen']:.1f}:"
                    " the policy gives up what it is to prefer. Likely: the learning rate is too high, beta too low, or"
                    " the objective has no anchor"
                )
        super().log(logs, start_time)

    def prediction_step(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, Tensor | None]:
        """Loss, (policy's log-probabilities, reference's, lengths), and which records they are of."""
        prepared = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, logps = self.compute_loss(model, prepared, return_outputs=True)
        return loss, logps, prepared["record"]

    def _mean_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        policy_BA, reference_BA, lengths_BA = (torch.from_numpy(values) for values in prediction.predictions)
        outcome = compare(self.objective, policy_BA, reference_BA, lengths_BA)
        return {
            "mean_loss": outcome.loss_B.mean().item(),
            **{
                name: value_B.mean().item()
                for name, value_B in metrics(self.objective, outcome, self._rounding).items()
            },
        }

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's loop, with the loss averaged over records: its own counts a last, smaller batch as full."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        metrics = output.metrics
        if metrics is not None and f"{metric_key_prefix}_mean_loss" in metrics:
            metrics[f"{metric_key_prefix}_loss"] = metrics.pop(f"{metric_key_prefix}_mean_loss")
        return output

    # ---- checkpoints ----

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the run beside its files."""
        return {
            "step": self.state.global_step,
            "processes": self.args.world_size,
            "records_a_pass": self.args.per_device_train_batch_size * self.args.world_size,
            "optimizer": not self.args.save_only_model,
        }

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's checkpoint with the run's record, then its manifest; older ones are deleted only after that."""
        self.refuse_nonfinite_adapter()
        output = Path(str(self.args.output_dir))
        folder = output / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # what an interrupted run left, or a later part of this one
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
                write_json(folder / RUN_FILE, self.run)
                complete(folder, self.facts())
        except (OSError, SafetensorError, RuntimeError, DataError) as error:
            # torch.save says it by a RuntimeError.
            if isinstance(error, RuntimeError) and not re.search("writ|iostream|unexpected pos", str(error)):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise DataError(
                f"{folder} cannot be written: {' '.join(str(error).split())[:300]}. The checkpoints before it are"
                " whole: free some space, and the same command goes on from the last of them"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(str(output), limit, self.state.best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *epoch: Any, **settings: Any) -> None:
        """An epoch; none where all steps are done, which the Trainer asks only after one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*epoch, **settings)

    def create_model_card(self, folder: Path | None = None, **_: Any) -> None:  # type: ignore[override]
        """This project's card in a folder, by default where ``--push_to_hub`` wants the Trainer's draft."""
        if self.is_world_process_zero():
            folder = folder or Path(str(self.args.output_dir))
            write_model_card(folder / "README.md", self.run, self.objective, self.state.log_history)

    # ---- precomputed reference ----

    def precompute_reference(
        self, dataset: ListwiseDataset, keys: Sequence[str], cache: ReferenceCache, batch_size: int
    ) -> int:
        """Fill ``dataset.reference_logps`` from the cache, computing and storing what it lacks.

        The missing records are shared out over the processes. Returns how many were computed.
        """
        # One process reads: the others must see the same even while it, or another run, is already writing.
        read: list[Any] = [cache.load() if self.is_world_process_zero() else None]
        broadcast_object_list(read)
        known: dict[str, LogPs] = read[0]
        missing = [index for key, index in {key: i for i, key in enumerate(keys)}.items() if key not in known]
        mine = missing[self.accelerator.process_index :: self.accelerator.num_processes]
        model: Any = self.model
        model.to(self.args.device)
        computed: list[tuple[str, LogPs]] = []
        bar = tqdm(
            total=len(mine),
            desc="reference log-probabilities",
            unit="record",
            disable=self.args.disable_tqdm or not mine or not self.is_local_process_zero(),
        )
        while len(computed) < len(mine):
            try:
                for batch_keys, values in self._reference_values(dataset, mine[len(computed) :], keys, batch_size):
                    cache.add(batch_keys, values)
                    computed += zip(batch_keys, values, strict=True)
                    bar.update(len(values))
            except RuntimeError as error:
                if batch_size == 1 or not should_reduce_batch_size(error):
                    raise
                batch_size //= 2
                logger.warning(f"not enough memory for the reference: going on with {batch_size} records at a time")
            clear_device_cache(garbage_collection=True)
        bar.close()
        # Through memory and not only through files: processes on several machines may not share a disk.
        known |= dict(gather_object(computed))
        dataset.reference_logps = torch.tensor([known[key] for key in keys], dtype=torch.float64)
        return len(missing)

    def _reference_values(
        self, dataset: ListwiseDataset, indices: Sequence[int], keys: Sequence[str], batch_size: int
    ) -> Iterator[tuple[list[str], list[LogPs]]]:
        """Keys and log-probabilities of these records, in their order, batch by batch."""
        loader: DataLoader[Any] = DataLoader(
            Subset(dataset, indices),
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            # Of its own: dropout shall not depend on whether the values were computed or found.
            generator=torch.Generator(),
        )
        model: Any = self.model
        batch: Any
        for batch in loader:
            batch = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                logps_BA = self._reference(model, batch)
            yield [keys[index] for index in batch["record"].tolist()], [tuple(row) for row in logps_BA.tolist()]


@dataclass(frozen=True)
class _Counted:
    """What one forward pass adds to its step: its records, which of them are finite, and the sums of their metrics."""

    record_B: Tensor
    finite_B: Tensor
    sums: dict[str, Tensor]

    @classmethod
    def of(cls, record_B: Tensor, outcome: Outcome, values: Mapping[str, Tensor]) -> Self:
        logps = (outcome.rewards.policy_logps_BA, outcome.rewards.reference_logps_BA)
        finite_B = outcome.loss_B.detach().isfinite()
        for logps_BA in logps:
            finite_B = finite_B & logps_BA.detach().isfinite().all(dim=1)
        return cls(record_B, finite_B, {name: value_B.sum() for name, value_B in values.items()})


class _StopAtStep(TrainerCallback):
    """Ends training with a checkpoint at the end of the step in which some process was asked to."""

    def __init__(self, stop: StopRequests, trainer: ListwiseTrainer) -> None:
        self._stop, self._trainer = stop, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide, all processes alike."""
        self._stop.step_ended()
        asked = torch.tensor(float(self._stop.why is not None), device=args.device)
        if self._trainer.accelerator.reduce(asked, reduction="sum").item() > 0:
            self._stop.why = self._stop.why or "another process"
            args.save_only_model = False  # it shall go on
            control.should_log = control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint is written already."""
        if self._stop.why is not None:
            control.should_log = control.should_save = control.should_evaluate = False


@contextmanager
def _with_values(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other values in some of its parameters, and its own afterwards."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in values}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name].to(parameter.device)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def write_eval_records(
    file: Path, dataset: ListwiseDataset, prediction: PredictionOutput, objective: Objective
) -> None:
    """One JSON line per record in input order: log-probabilities, rewards and losses.

    The lists have the order chosen on image 1, rejected, chosen on image 2 ... L, and rejected on image 2 ... L where a
    term needs it there; what else the objective does not use is null.
    """
    policy, reference, lengths = (torch.from_numpy(values) for values in prediction.predictions)
    outcome = compare(objective, policy, reference, lengths)
    indices: Any = prediction.label_ids
    row_of = {int(index): row for row, index in enumerate(indices)}

    def completions(values_BA: Tensor, row: int) -> list[float | None]:
        values: list[float | None] = values_BA[row].tolist()
        return values if objective.uses_rejected else [values[0], None, *values[1:]]

    terms = [name for name in TERMS if name in outcome.terms or name in IN_ORDER]
    lines = []
    for index, record in enumerate(dataset.records):
        row = row_of[index]
        line = {
            "id": record.pair.id,
            "policy_logps": completions(policy, row),
            "reference_logps": completions(reference, row),
            "rewards": completions(outcome.rewards.rewards_BA, row),
            **{f"loss_{name}": outcome.terms[name][row].item() if name in outcome.terms else None for name in terms},
            "loss": outcome.loss_B[row].item(),
        }
        lines.append(json.dumps(line) + "\n")
    write_atomic(file, "".join(lines))
