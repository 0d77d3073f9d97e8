"""The README.md that goes with an adapter: what it is, what it was made from, and what was measured while it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CITATION = """@inproceedings{pesaranzadeh2025lpoi,
  title     = {LPOI: Listwise Preference Optimization for Vision Language Models},
  author    = {Pesaran Zadeh, Fatemeh and Oh, Yoojin and Kim, Gunhee},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics},
  year      = {2025},
}"""

# Logged values that say how a run went, in the order of the table.
_SHOWN = (
    "loss",
    "loss_dpo",
    "loss_anchor",
    "loss_listwise",
    "rewards/accuracies",
    "rewards/margins",
    "list/adjacent_accuracy",
    "list/top1",
    "list/kendall_tau",
)


def write_model_card(file: Path, run: Mapping[str, Any], log_history: Sequence[Mapping[str, float]]) -> None:
    """Write the card of a finished run.

    Args:
        file: the adapter folder's README.md.
        run: what run.json holds: arguments, data hashes, weights' identity, versions.
        log_history: the Trainer's.
    """
    model, data, objective, training = (run["arguments"][name] for name in ("model", "data", "objective", "training"))
    steps = [entry for entry in log_history if "loss" in entry]
    rows = [
        f"| {name} | {steps[0][name]:.4f} | {steps[-1][name]:.4f} |" for name in _SHOWN if steps and name in steps[0]
    ]
    pairs = run["data"].get("pairs", {})
    lists = run["data"].get("image_lists", {"file": ", ".join(data["ranked_image_folders"] or []), "sha256": "-"})
    weights = objective["loss_weights"] or "those of the objective"
    lines = [
        "---",
        f"base_model: {model['model_name_or_path']}",
        "library_name: peft",
        "pipeline_tag: image-text-to-text",
        "tags: [lora, lpoi, preference-optimization, hallucination]",
        "---",
        "",
        f"# {objective['objective'].upper()} adapter for {model['model_name_or_path']}",
        "",
        "A LoRA adapter trained by listwise preference optimization (LPOI, ACL 2025) to rely on what is in the"
        " picture. Load it with PEFT on its base model.",
        "",
        "| | |",
        "|---|---|",
        f"| base weights | `{run['base_weights']}` |",
        f"| pairs | `{pairs.get('file')}`, sha256 `{pairs.get('sha256')}`,"
        f" {run['data']['training_records']:,} records trained on |",
        f"| ranked images | `{lists['file'] or '-'}`, sha256 `{lists['sha256']}` |",
        f"| objective | {objective['objective']}, weights {weights}, beta {objective['beta']},"
        f" delta {objective['anchor_delta']} |",
        f"| adapter | r {model['lora_r']}, alpha {model['lora_alpha']}, dropout {model['lora_dropout']},"
        f" {' '.join(model['lora_target_modules'])} |",
        f"| optimization | {training['num_train_epochs']} epochs, learning rate {training['learning_rate']},"
        f" {training['per_device_train_batch_size']} x {training['gradient_accumulation_steps']} records a step"
        f" and process, seed {training['seed']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in run['versions'].items())} |",
        "",
        "All options stand in `run.json`, every logged value in `trainer_state.json`.",
        "",
        "## Training",
        "",
        *(["| logged | first | last |", "|---|---|---|", *rows] if rows else ["Nothing was logged."]),
        "",
        "These are values on the training data; this card holds no measurement of hallucination.",
        "",
        "## Citation",
        "",
        "```bibtex",
        _CITATION,
        "```",
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
