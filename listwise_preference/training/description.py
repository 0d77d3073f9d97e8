"""What ``run.json`` says of a run."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import accelerate
import peft
import PIL
import torch
import transformers
from transformers import TrainingArguments

from listwise_preference import __version__
from listwise_preference.files import sha256_of
from listwise_preference.models import adapters
from listwise_preference.training.checkpoints import RunRecord
from listwise_preference.training.objective import Objective
from listwise_preference.training.options import Arguments


def describe(
    arguments: Arguments,
    args: TrainingArguments,
    objective: Objective,
    adapter: Any,
    *,
    base_weights: str,
    training_records: int,
    evaluation_records: int,
    record: RunRecord | None,
) -> dict[str, Any]:
    """What ``run.json`` holds: all that decides the result.

    Args:
        arguments: the run's.
        args: the Trainer's, settled for this machine.
        objective: its terms and weights.
        adapter: peft's configuration of it, whose numbers are not the options' when it was loaded.
        base_weights: their identity.
        training_records: how many are trained on.
        evaluation_records: how many are evaluated.
        record: what resuming compares, where an adapter is trained.
    """
    files = {
        "pairs": arguments.data.pairs if arguments.training.do_train else None,
        "image_lists": arguments.data.image_lists,
        "eval_pairs": arguments.data.eval_pairs,
        "eval_image_lists": arguments.data.eval_image_lists,
    }
    start = arguments.model.init_adapter
    return {
        "program": Path(sys.argv[0]).name,
        "arguments": {
            "model": dataclasses.asdict(arguments.model),
            "data": dataclasses.asdict(arguments.data),
            "objective": dataclasses.asdict(arguments.objective),
            "training": args.to_dict(),  # access tokens are left out
        },
        **({"record": record} if record is not None else {}),
        "data": {
            **{what: {"file": file, "sha256": sha256_of([Path(file)])} for what, file in files.items() if file},
            "training_records": training_records,
            "evaluation_records": evaluation_records,
        },
        "objective_weights": list(objective.weights.values()),
        "loss_weights": dict(objective.weights),
        "base_weights": base_weights,
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
