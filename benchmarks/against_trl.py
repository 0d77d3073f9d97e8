"""TRL's DPOTrainer beside ours on one small model, the same LoRA and texts: seconds of a training step, a completion.

    pip install "trl==1.16.*" -r requirements.txt        # in an environment of its own; TRL is no dependency
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --shape llava --against trl --json trl.json

TRL scores two completions a record, each on its image, with its reference at every step and gradient checkpointing (its
defaults); ours are ``dpo`` (the same two) and ``lpoi`` (six, on five images) as a GPU with room gets them: ragged rows,
fused layers, a precomputed reference, nothing recomputed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shapes import SAMPLE, build, timed

WORDS = 60  # of a completion


def against_trl(options: argparse.Namespace) -> dict[str, Any]:
    """Both trainers' ``training_step``, interleaved."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from PIL import Image
    from transformers import TrainingArguments
    from trl import DPOConfig, DPOTrainer, __version__

    from listwise_preference.data.pairs import BoxLists, ImageOnly, load_records
    from listwise_preference.data.ranked_images import Drawing
    from listwise_preference.models.adapters import add_adapter
    from listwise_preference.models.chat_format import ChatFormat
    from listwise_preference.models.fused_layers import fuse_layers
    from listwise_preference.models.ragged_attention import use_ragged_attention
    from listwise_preference.training.batch import Collator, ListwiseDataset
    from listwise_preference.training.objective import PRESETS, Objective
    from listwise_preference.training.trainer import ListwiseTrainer

    work = Path(tempfile.mkdtemp())
    pairs = json.loads((SAMPLE / "pairs.json").read_text(encoding="utf-8"))[:8]
    for pair in pairs:
        for key in ("chosen", "rejected"):
            pair[key] = " ".join((pair[key].split() * WORDS)[:WORDS])
    (work / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    common: dict[str, Any] = {
        "output_dir": str(work / "out"),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 100,
        "learning_rate": 1e-5,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    arguments, trl_arguments = TrainingArguments(**common), DPOConfig(**common, max_length=None, beta=0.1)
    trainers: dict[str, Any] = {}

    def ours(name: str) -> None:
        model, processor = build(options.shape, "small", torch.float32)
        objective = Objective(PRESETS[name].weights)
        source = BoxLists(SAMPLE / "image_lists.jsonl", Drawing()) if objective.uses_list else ImageOnly()
        records = load_records(work / "pairs.json", SAMPLE, source).records
        chat = ChatFormat(processor)
        dataset = ListwiseDataset(records, chat, 384)
        dataset.reference_logps = torch.full((len(records), 6 if objective.uses_list else 2), -500.0).double()
        policy = add_adapter(model, r=8, alpha=8, dropout=0.0, target_modules=["all-linear"])
        use_ragged_attention(model)
        fuse_layers(policy)
        trainers[name] = ListwiseTrainer(
            objective=objective,
            run={},
            model=policy,
            args=arguments,
            data_collator=Collator(processor),
            train_dataset=dataset,
            processing_class=processor,
        )

    def theirs() -> None:
        model, processor = build(options.shape, "small", torch.float32)
        rows = [
            {
                "images": [Image.open(SAMPLE / pair["img_path"]).convert("RGB")],
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                "chosen": [{"role": "assistant", "content": pair["chosen"]}],
                "rejected": [{"role": "assistant", "content": pair["rejected"]}],
            }
            for pair in pairs
        ]
        trainers["trl_dpo"] = DPOTrainer(
            model=model,
            args=trl_arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            peft_config=LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"),
        )

    theirs()
    ours("dpo")
    ours("lpoi")
    runs: dict[str, Callable[[], float]] = {}
    for name, trainer in trainers.items():
        trainer.model.train()
        trainer.create_optimizer_and_scheduler(num_training_steps=100)
        trainer.model_wrapped = trainer.model
        trainer.current_gradient_accumulation_steps = 1
        loader = iter(trainer.get_train_dataloader())
        runs[name] = partial(_step, trainer, [next(loader) for _ in range(3)])
    figures: dict[str, Any] = timed(runs, options.steps)
    trl = figures["trl_dpo"]["seconds"] / 2
    print(f"TRL {__version__}, {options.shape}, float32; seconds a completion, and of TRL's")
    for name, one in figures.items():
        one["seconds_a_completion"] = one["seconds"] / (6 if name == "lpoi" else 2)
        one["of_trl"] = one["seconds_a_completion"] / trl
        print(f"{name:8} {one['seconds_a_completion']:.3f}  {one['of_trl']:.2f}  (spread {one['spread']:.0%})")
    return {"trl": __version__, "trainers": figures}


def _step(trainer: Any, batches: list[Any]) -> float:
    """CPU seconds of one training step, the batches in turn."""
    batch = batches.pop(0)
    batches.append(batch)
    start = time.process_time()
    trainer.training_step(trainer.model, dict(batch))
    spent = time.process_time() - start
    trainer.model.zero_grad()
    return spent
