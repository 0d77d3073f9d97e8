"""ListwiseTrainer: transformers.Trainer with this project's loss, metrics and reference.

Shapes: B record, A completion (chosen on image 1, rejected, chosen on image 2 ... L).
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, rotate_checkpoints

from listwise_preference.files import write_atomic, write_json
from listwise_preference.training.batch import Batch, Collator, Example, ListwiseDataset
from listwise_preference.training.checkpoints import MANIFEST, RUN_FILE, complete
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

logger = logging.getLogger("listwise_preference")


class ListwiseTrainer(Trainer):
    """Trains the adapter of a model against the same model with the adapter off, or as it started.

    Datasets are :class:`ListwiseDataset`; where one holds ``reference_logps`` those are used, else the reference runs
    at every step.

    Args:
        objective: what is optimized.
        run: what ``run.json`` holds, for the model card.
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
        reference: Literal["base", "init_adapter"] = "base",
        **trainer_arguments: Any,
    ) -> None:
        super().__init__(compute_metrics=self._mean_metrics, **trainer_arguments)
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(ProgressBar())
        self.add_callback(StepLines())
        self.run: Mapping[str, Any] = run
        self.objective: Objective = objective
        weights: Any = self.model
        half = self.args.bf16 or self.args.fp16 or weights.dtype != torch.float32
        self._rounding: float = HALF_ROUNDING if half else FLOAT32_ROUNDING
        self._sums: dict[str, Tensor] = {}
        self._record_count = 0
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
            self._count(outcome)
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

    def _count(self, outcome: Outcome) -> None:
        for name, value_B in metrics(self.objective, outcome, self._rounding).items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=value_B.device)) + value_B.sum()
        self._record_count += len(outcome.loss_B)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over all records since the last log, over all processes, to the training loss's log."""
        if "loss" in logs and self._sums:
            count = torch.tensor(float(self._record_count), device=self.args.device)
            totals = self.accelerator.reduce(torch.stack([count, *self._sums.values()]), reduction="sum")
            means = (totals[1:] / totals[0]).tolist()
            logs |= dict(zip(self._sums, means, strict=True))
            self._sums, self._record_count = {}, 0
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
        output = Path(str(self.args.output_dir))
        folder = output / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # what an interrupted run left, or a later part of this one
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
            write_json(folder / RUN_FILE, self.run)
            complete(folder, self.facts())
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
        dataset.reference_logps = [known[key] for key in keys]
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
        )
        model: Any = self.model
        batch: Any
        for batch in loader:
            batch = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                logps_BA = self._reference(model, batch)
            yield [keys[index] for index in batch["record"].tolist()], [tuple(row) for row in logps_BA.tolist()]


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

    The lists have the order chosen on image 1, rejected, chosen on image 2 ... L; what the objective does not use is
    null.
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
