"""The README.md that goes with an adapter: what it is, what it was made from, and what was measured while it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from listwise_preference.files import write_atomic
from listwise_preference.training.objective import PRESETS, Objective

_CITATION = """@inproceedings{pesaranzadeh2025lpoi,
  title     = {LPOI: Listwise Preference Optimization for Vision Language Models},
  author    = {Pesaran Zadeh, Fatemeh and Oh, Yoojin and Kim, Gunhee},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational Linguistics},
  year      = {2025},
}"""

# Logged values that say how a run went, in the order of the table, behind the loss and its terms.
_SHOWN = (
    "rewards/accuracies",
    "rewards/margins",
    "list/adjacent_accuracy",
    "list/top1",
    "list/kendall_tau",
)


def _images(run: Mapping[str, Any], objective: Objective) -> str:
    data = run["arguments"]["data"]
    if not objective.uses_list:
        return "as they are, no ranked images"
    if objective.list_source == "crops":
        return f"each against a crop of it, seed {run['arguments']['training']['seed']}"
    if lists := run["data"].get("image_lists"):
        drawn = f"{data['list_size']} images, visual prompt {data['visual_prompt']}, grown {data['grow']}"
        return f"drawn from boxes: `{lists['file']}`, sha256 `{lists['sha256']}`; {drawn}"
    return "ranked folders: " + ", ".join(f"`{folder}`" for folder in data["ranked_image_folders"])


def _started_from(adapter: Mapping[str, Any]) -> str:
    return f"`{adapter['started_from']['folder']}`, sha256 `{adapter['started_from']['sha256']}`"


def _targets(names: Sequence[str] | str) -> str:
    """Names, or the pattern that they match."""
    return f"`{names.replace('|', '&#124;')}`" if isinstance(names, str) else " ".join(names)


def write_model_card(
    file: Path, run: Mapping[str, Any], objective: Objective, log_history: Sequence[Mapping[str, float]]
) -> None:
    """Write the card of a finished run.

    Args:
        file: the adapter folder's README.md.
        run: what run.json holds: arguments, adapter, data hashes, weights' identity, versions.
        objective: that was optimized.
        log_history: the Trainer's.
    """
    model, training = run["arguments"]["model"], run["arguments"]["training"]
    adapter, name = run["adapter"], run["arguments"]["objective"]["objective"]
    smoothing = f", label smoothing {objective.label_smoothing:g}" if objective.label_smoothing else ""
    reference = {"base": "the base model", "init_adapter": "this adapter"}[run["arguments"]["objective"]["reference"]]
    weights = ", ".join(f"{term} {weight:g}" for term, weight in objective.weights.items())
    steps = [entry for entry in log_history if "loss" in entry]
    rows = [
        f"| {shown} | {steps[0][shown]:.4f} | {steps[-1][shown]:.4f} |"
        for shown in ("loss", *(f"loss_{term}" for term in objective.terms), *_SHOWN)
        if steps and shown in steps[0] and shown in steps[-1]
    ]
    pairs = run["data"].get("pairs", {})
    ends = [entry for entry in log_history if "train_runtime" in entry] or [{}]
    lines = [
        "---",
        f"base_model: {model['model_name_or_path']}",
        "library_name: peft",
        "pipeline_tag: image-text-to-text",
        "tags: [lora, lpoi, preference-optimization, hallucination]",
        "---",
        "",
        f"# {name.upper()} adapter for {model['model_name_or_path']}",
        "",
        f"A LoRA adapter trained by {PRESETS[name].method}. Load it with PEFT on its base model.",
        "",
        "| | |",
        "|---|---|",
        f"| base weights | `{run['base_weights']}` |",
        f"| pairs | `{pairs.get('file')}`, sha256 `{pairs.get('sha256')}`,"
        f" {run['data']['training_records']:,} records trained on |",
        f"| images | {_images(run, objective)} |",
        f"| objective | {name}, weights {weights}, beta {objective.beta}, delta {objective.anchor_delta}{smoothing} |",
        f"| adapter | r {adapter['r']}, alpha {adapter['alpha']}, dropout {adapter['dropout']}, on"
        f" {_targets(adapter['target_modules'])} |",
        *([f"| started from | {_started_from(adapter)}; reference: {reference} |"] if adapter["started_from"] else []),
        f"| optimization | {ends[-1].get('step', 0)} steps, {ends[-1].get('epoch', 0):g} epochs,"
        f" learning rate {training['learning_rate']},"
        f" {training['per_device_train_batch_size']} x {training['gradient_accumulation_steps']} records a step"
        f" and process, seed {training['seed']} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in run['versions'].items())} |",
        "",
        "All options are in `run.json`, every logged value in `trainer_state.json`.",
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
    write_atomic(file, "\n".join(lines) + "\n")
