"""What a training run leaves in its folder: whose work it is, which checkpoints are whole, where the run goes on.

The *record* of a run holds what decides its adapter, name by name. It goes into the ``run.json`` of the output folder,
of every checkpoint and of ``final/``. A folder of these is complete once its ``manifest.json``, written last, has the
sizes and hashes of all its files. Nothing here imports torch: a folder is looked at before anything is loaded.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from listwise_preference.data.pairs import Record
from listwise_preference.data.ranked_images import MaskedBox, RankedImages
from listwise_preference.errors import DataError, ModelError
from listwise_preference.files import held_alone, read_json, sha256_of, sync, write_json
from listwise_preference.models.adapters import adapter_file
from listwise_preference.training.options import Arguments

logger = logging.getLogger("listwise_preference")

MANIFEST = "manifest.json"
RUN_FILE = "run.json"
FINAL = "final"

RunRecord = dict[str, Any]

# Options that change what a run costs, or only the last bits of a number; or that say where to find what the record
# holds by its content.
_SAME_RESULT = {
    "model_name_or_path", "model_revision", "attn_implementation", "init_adapter", "loss_weights", "row_layout",
    "fused_layers", "precompute_ref_log_probs", "precompute_ref_batch_size", "ref_cache", "estimate", "dry_run",
    "pairs", "image_root", "image_lists", "ranked_image_folders", "on_bad_record", "exclude",
    "eval_pairs", "eval_image_lists", "eval_share", "sample_questions",
}  # fmt: skip
_OPTIMIZATION = (
    "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "bf16", "fp16", "neftune_noise_alpha", "seed", "data_seed", "dataloader_drop_last",
    "train_sampling_strategy", "length_column_name", "ignore_data_skip", "load_best_model_at_end", "accelerator_config",
    "fsdp", "fsdp_config", "deepspeed",
)  # fmt: skip
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "pillow")

# What --allow_changed takes beside the names of a record.
NO_MANIFEST, NO_OPTIMIZER, PROCESSES = "manifest", "optimizer", "processes"

_WAYS_ON = (
    "Give the options of that run to go on with it (or --allow_changed NAME ... where the change is meant), name"
    " another --output_dir, or delete what is there with --overwrite_output_dir."
)


# ---- the record ----


def record_of(arguments: Arguments, records: Sequence[Record]) -> RunRecord:
    """All that decides the adapter, but the base weights: those are known once their files are read."""
    options, training = (
        vars(arguments.model) | vars(arguments.data) | vars(arguments.objective),
        vars(arguments.training),
    )
    start = arguments.model.init_adapter
    record = {
        **{name: value for name, value in options.items() if name not in _SAME_RESULT},
        **{name: training[name] for name in _OPTIMIZATION},
        "loss_weights": dict(arguments.objective.resolve().weights),
        "init_adapter": sha256_of([adapter_file(Path(start))]) if start else None,
        "training_records": len(records),
        **_hashes(records),
        "records_a_step": training["per_device_train_batch_size"]
        * training["gradient_accumulation_steps"]
        * process_count(),
        **{library: version(library) for library in _LIBRARIES},
    }
    return json.loads(json.dumps(record))


def process_count() -> int:
    """How many processes a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _hashes(records: Sequence[Record]) -> dict[str, str]:
    """Of the texts and of the images of all records, in their order."""
    pairs, images = hashlib.sha256(), hashlib.sha256()
    for record in records:
        pair = record.pair
        value = {"id": pair.id, "img_path": pair.img_path, "prompt": pair.prompt, "chosen": pair.chosen,
                 "rejected": pair.rejected}  # fmt: skip
        pairs.update(json.dumps(value).encode() + b"\n")
        images.update(json.dumps(_image(record.images)).encode() + b"\n")
    return {"pairs": f"sha256:{pairs.hexdigest()}", "images": f"sha256:{images.hexdigest()}"}


def _image(images: RankedImages) -> str:
    """The box; or the files, by name and folder alone, so that data may move."""
    if isinstance(images, MaskedBox):
        return str(images.box)
    return " ".join("/".join(file.parts[-2:]) for file in images.files())


def refuse_changes(where: Path, now: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Compare the record of what is in a folder with the names and values of ``now``.

    Raises:
        DataError: names every value that differs and is not allowed to.
    """
    before = read_record(where)
    if before is None:
        raise DataError(
            f"{where}: nothing there records which run made it, as versions before this did not. {_WAYS_ON}"
        )
    lines = {name: f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in now}
    changed = [name for name in now if before.get(name) != now[name]]
    if refused := [lines[name] for name in changed if name not in allowed]:
        raise DataError("\n  ".join([f"{where} is the work of another run:", *refused]) + f"\n{_WAYS_ON}")
    for name in changed:
        logger.warning(f"going on from {where} with a change: {lines[name]}")


def read_record(folder: Path) -> RunRecord | None:
    """The record in a folder's ``run.json``; ``None`` where there is none."""
    file = folder / RUN_FILE
    if not file.is_file():
        return None
    run = read_json(file)
    record = run.get("record") if isinstance(run, dict) else None
    return record if isinstance(record, dict) else None


# ---- whole or not ----


def complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Put all files of a folder on the disk, then the manifest that declares it complete.

    Args:
        facts: what the manifest holds beside the files.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    content = {}
    for file in files:
        sync(file)
        content[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256_of([file])}
    for place in {folder, *(file.parent for file in files)}:
        sync(place)
    write_json(folder / MANIFEST, {**facts, "files": content})
    sync(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; ``None`` where there is none that can be read."""
    try:
        manifest = read_json(folder / MANIFEST)
    except DataError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def damage(folder: Path, allowed: Collection[str] = ()) -> list[str]:
    """What is missing or changed in a folder that should be complete, a line each; none where it is whole.

    Args:
        allowed: NO_MANIFEST takes a folder without one as it is, NO_OPTIMIZER one whose optimizer state is gone.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        found = [f"no {MANIFEST}: its writing was cut short, or an earlier version wrote it"]
        return [] if NO_MANIFEST in allowed and folder.is_dir() else found
    lines = []
    for name, known in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            if not (NO_OPTIMIZER in allowed and name.startswith("optimizer")):
                lines.append(f"{name} is missing")
        elif file.stat().st_size != known["bytes"]:
            lines.append(f"{name} has {file.stat().st_size:,} bytes of {known['bytes']:,}")
        elif sha256_of([file]) != known["sha256"]:
            lines.append(f"{name} is not what was written")
    if not manifest.get("optimizer", True) and NO_OPTIMIZER not in allowed:
        lines.append(
            f"it was saved without the optimizer's state; --allow_changed {NO_OPTIMIZER} goes on with a new one"
        )
    return lines


def identity(folder: Path) -> str:
    """A checkpoint's name, and a few letters of a hash that tells it from others of that name."""
    manifest = folder / MANIFEST
    return f"{folder.name} ({sha256_of([manifest])[:8] if manifest.is_file() else 'no manifest'})"


# ---- where a run begins ----


def check_named(arguments: Arguments) -> None:
    """Refuse ``--resume_from_checkpoint DIR`` where there is none, before data is read.

    Raises:
        ModelError: there is no checkpoint.
    """
    folder = named_folder(arguments)
    if folder is not None and not (folder / "trainer_state.json").is_file() and read_manifest(folder) is None:
        raise ModelError(f"--resume_from_checkpoint {folder}: no checkpoint there; 'auto' takes the run's last one")


def named_folder(arguments: Arguments) -> Path | None:
    """The folder that ``--resume_from_checkpoint`` names, if it names one."""
    option = arguments.training.resume_from_checkpoint or "false"
    named = arguments.training.do_train and option.lower() not in ("auto", "true", "false")
    return Path(option).expanduser() if named else None


def find_checkpoint(arguments: Arguments, record: RunRecord) -> Path | None:
    """Where the run goes on: a complete checkpoint of the same run, or ``final/`` of one that is finished; or nowhere.

    Nothing is written or deleted. An incomplete checkpoint is named and passed over.

    Raises:
        DataError: the output folder holds the work of another run.
        ModelError: the checkpoint that is named cannot be resumed from.
    """
    option = (arguments.training.resume_from_checkpoint or "false").lower()
    output, run = Path(str(arguments.training.output_dir)).expanduser(), arguments.run
    allowed, batch = set(run.allow_changed or ()), arguments.training.per_device_train_batch_size
    if unknown := allowed - {*record, "base_weights", NO_MANIFEST, NO_OPTIMIZER, PROCESSES}:
        raise DataError(f"--allow_changed {' '.join(sorted(unknown))}: nothing of that name decides a run's result")
    if named := named_folder(arguments):
        return _named(named, output, record, allowed, batch, overwrite=run.overwrite_output_dir)
    there = _work(output)
    if not there or run.overwrite_output_dir:
        return None
    if option == "false":
        for folder in there:
            if read_manifest(folder) is not None:
                refuse_changes(folder, record, ())
        raise DataError(
            f"{output} holds work of a run with these options ({', '.join(folder.name for folder in there)}):"
            " --resume_from_checkpoint auto goes on with it, --output_dir takes another folder,"
            " --overwrite_output_dir deletes what is there"
        )
    final = output / FINAL
    if final in there and not damage(final) and _unchanged(read_record(final), record):
        logger.info(f"the run is finished: {final} holds its adapter, nothing is trained")
        return final
    for folder in there:
        if folder == final:
            continue
        if lines := damage(folder, allowed - {NO_MANIFEST}):
            logger.warning(f"{folder} is incomplete and passed over: {'; '.join(lines)}")
            continue
        _refuse_other(folder, record, allowed, batch)
        logger.info(f"resuming from {folder}")
        return folder
    # What is left of a run that was stopped before its first checkpoint was whole.
    refuse_changes(output, record, allowed)
    logger.info(f"no complete checkpoint in {output}: starting at the beginning")
    return None


def _work(output: Path) -> list[Path]:
    """The folders that a training run leaves, the last step first."""
    steps = [folder for folder in output.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdigit()]
    steps.sort(key=lambda folder: int(folder.name.removeprefix("checkpoint-")), reverse=True)
    return [*([output / FINAL] if (output / FINAL).exists() else []), *steps]


def _named(
    folder: Path, output: Path, record: RunRecord, allowed: Collection[str], batch: int, *, overwrite: bool
) -> Path:
    inside = folder.resolve().parent == output.resolve()
    if lines := damage(folder, allowed):
        ways = f"--allow_changed {NO_MANIFEST} takes a checkpoint without one as it is; 'auto' takes the last whole one"
        raise ModelError(f"--resume_from_checkpoint {folder} is incomplete: {'; '.join(lines)}. {ways}")
    if inside and overwrite:
        raise DataError(f"--overwrite_output_dir would delete {folder}, which is to be resumed from")
    if not inside and not overwrite and _work(output):
        refuse_changes(_work(output)[0], record, ())
    if read_manifest(folder) is not None:
        _refuse_other(folder, record, allowed, batch)
    return folder


def _unchanged(before: RunRecord | None, now: RunRecord) -> bool:
    return before is not None and all(before.get(name) == value for name, value in now.items())


def _refuse_other(folder: Path, record: RunRecord, allowed: Collection[str], batch: int) -> None:
    """Refuse a checkpoint of another run, or of so many processes that the rest would not be the same run."""
    refuse_changes(folder, record, allowed)
    manifest = read_manifest(folder) or {}
    before, now = int(manifest.get("processes", 1)), process_count()
    if before == now:
        return
    random = record["lora_dropout"] or record["neftune_noise_alpha"]
    passes = (int(manifest.get("records_a_pass", 1)), batch * now)
    if (random or any(record["training_records"] % size for size in passes)) and PROCESSES not in allowed:
        raise DataError(
            f"{folder} was trained by {before} processes and would go on by {now}: with dropout, or with records that"
            f" do not fill the last pass, that is another run. Start {before}, or allow it: --allow_changed {PROCESSES}"
        )
    logger.info(f"{folder} was trained by {before} processes and goes on by {now}, with the same records in each step")


def clear(output: Path) -> None:
    """Delete what a training run left; reference values and evaluations stay."""
    for folder in _work(output):
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    for name in ("trainer_state.json", "all_results.json", "train_results.json", RUN_FILE):
        (output / name).unlink(missing_ok=True)


# ---- the folder ----


def folder_of_one_run(output: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the output folder for this run alone, and show that it can be written.

    Raises:
        DataError: another run is at work there, or the folder cannot be written.
    """
    return held_alone(
        output / ".lock", f"{output}: another run is at work in this folder; wait for it, or name another"
    )
