"""The command ``score.py awareness``: pairs with boxes and a model -> the object-awareness probe's numbers.

    python score.py awareness --pairs pairs.json --image_lists lists.jsonl --model_name_or_path MODEL --adapter FOLDER

The definition is in ``measure``. Data and options are checked before torch is imported. ``score.py`` begins
here: the scorers know nothing of models, so the probe is beside them and not among them.
"""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from listwise_preference.cli import Subcommands, count, json_object
from listwise_preference.data.pairs import BoxLists, Records, load_records, read_exclusions
from listwise_preference.data.ranked_images import Drawing, Fill, VisualPrompt
from listwise_preference.errors import DataError
from listwise_preference.files import sha256_of
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.models.adapters import check_folders, processor_settings, trained_with
from listwise_preference.models.families import special_tokens
from listwise_preference.models.hub import check_model
from listwise_preference.probe import beaf_pairs
from listwise_preference.probe.measure import (
    CONDITIONS,
    Measurement,
    ModelScorer,
    Probe,
    measure,
    plan,
    summarize,
)
from listwise_preference.probe.report import condition_names, plot, table
from listwise_preference.scoring.command import main as score
from listwise_preference.scoring.result import Result, file_identity, report, versions


def main(argv: Sequence[str] | None = None) -> None:
    """score.py: the scorers' commands, and this one. Exits with code 2 on an error that the user can correct."""
    score(argv, [add_command, beaf_pairs.add_command])


def add_command(commands: Subcommands) -> None:
    """Add ``awareness`` to the program's commands."""
    asks = "does a model look at the object, or does it detect masks?"
    one = commands.add_parser(
        "awareness",
        help=asks,
        description=f"{asks.capitalize()} Scores the chosen response with the object masked, with an equal box masked"
        " beside it, and with the object masked in other ways (docs/scoring.md).",
    )
    one.set_defaults(run=score_awareness)
    add = one.add_argument
    form = "{img_path, prompt, chosen, rejected}"
    add("--pairs", type=Path, required=True, help=f"as for training: JSON, CSV or parquet of {form}")
    add("--image_root", type=Path, default=Path(), help="folder that the records' img_path is relative to")
    add("--image_lists", type=Path, required=True, help="JSONL with a box per record")
    add("--exclude", type=Path, metavar="FILE", help='ids to leave out: {"rejected": [ids]} or a list')
    stop = "stop with a report, or probe the other records"
    add("--on_bad_record", choices=("stop", "drop"), default="stop", help=stop)
    marker = "training's marker of the masked part"
    add("--visual_prompt", choices=get_args(VisualPrompt), default="ellipse", help=marker)
    add("--fill", choices=get_args(Fill), default="black", help="training's fill")
    boxes = "boxes that the one beside the object must not overlap: COCO instances, or JSONL of {img_path, label, box}"
    add("--annotations", type=Path, metavar="FILE", help=boxes)
    removed = "images of the same paths and sizes without the object, as one more condition"
    add("--removed_root", type=Path, metavar="DIR", help=removed)
    add("--model_name_or_path", required=True, help="base model: a folder or a name on the hub")
    add("--model_revision", help="branch, tag or commit of the model on the hub")
    add("--adapter", required=True, metavar="FOLDER|none", help="adapter of the policy; none probes the base alone")
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the base weights")
    add("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="attention")
    settings = "JSON over the checkpoint's settings of its image processor (default: those of the adapter's training)"
    add("--processor_settings", type=json_object, metavar="JSON", help=settings)
    add("--system_prompt", metavar="TEXT", help="a turn before every prompt (default: that of the adapter's training)")
    add("--batch_size", type=count, default=1, help="records at a time, each with all its images")
    add("--max_completion_length", type=count, default=384, help="tokens after which a response is cut")
    add("--seed", type=int, default=0, help="of the boxes' places and of the resamples")
    add("--bootstrap", type=count, default=1000, metavar="N", help="resamples of images")
    add("--output", type=Path, help="write the result and every record's numbers there as JSON")
    add("--plot", type=Path, metavar="FILE.png", help="draw a bar chart")


def score_awareness(args: Namespace) -> Result:
    """Check, probe, report; returns what is reported."""
    adapter = None if args.adapter == "none" else Path(args.adapter)
    records, probes, notes = _read(args)
    check_folders(args.model_name_or_path, adapter)
    if args.system_prompt is None and adapter is not None:
        args.system_prompt = trained_with(adapter, "data").get("system_prompt")
    check_model(args.model_name_or_path, args.model_revision)
    args.processor_settings = processor_settings(args.processor_settings, adapter)
    measurements, model = _probe(args, adapter, probes)
    summary = summarize(measurements, resamples=args.bootstrap, seed=args.seed)
    if summary.images == 1:
        notes.append("one image gives no interval, and without one there is no artefact ratio.")
    names = condition_names(args.fill, args.visual_prompt)
    result: Result = {
        "benchmark": args.benchmark,
        "partial": False,
        **{name: value for name, value in dataclasses.asdict(summary).items() if name in ("changes", "artefact")},
        "intervals": {"level": 0.95, "unit": "picture", "resamples": summary.resamples, "seed": summary.seed},
        "counts": {
            "records": summary.records,
            "pictures": summary.images,
            "without_background": summary.without_background,
            "without_box": records.without_box,
            "excluded": len(records.excluded),
            "dropped": records.dropped,
        },
        "protocol": {
            "rules": "listwise_preference.probe.measure",
            "unit": "nats",
            "conditions": [name for name in CONDITIONS if any(name in probe.conditions for probe in probes)],
            "visual_prompt": args.visual_prompt,
            "fill": args.fill,
            "seed": args.seed,
            **_identities(args),
            **model,
        },
        "versions": versions() | {name: version(name) for name in ("torch", "transformers", "peft", "pillow")},
    }
    if args.plot:
        plot(summary, names, args.plot)
        print(f"Drawn in {args.plot}", file=sys.stderr)
    values = [
        {**dataclasses.asdict(one), "background_box": probe.background and list(dataclasses.astuple(probe.background))}
        for one, probe in zip(measurements, probes, strict=True)
    ]
    return report(result, lambda _: table(summary, names), notes, args.output, {"per_record": values})


def _read(args: Namespace) -> tuple[Records, Sequence[Probe], list[str]]:
    """The records, their probes, and what a reader of the numbers should know of them."""
    excluded = read_exclusions(args.exclude) if args.exclude else frozenset()
    records = load_records(
        args.pairs,
        args.image_root,
        BoxLists(args.image_lists, Drawing(visual_prompt=args.visual_prompt, fill=args.fill)),
        on_bad_record=args.on_bad_record,
        placeholders=special_tokens(),
        excluded=excluded,
    )
    notes = [records.report] if records.report else []
    if unknown := sorted(excluded - records.excluded):
        notes.append(f"--exclude names {len(unknown)} ids that no record has: {', '.join(unknown[:3])}")
    annotations = None
    if args.annotations:
        paths = [record.pair.img_path for record in records.records]
        annotations = Annotations(args.annotations, paths, image_root=args.image_root)
        if said := annotations.report(paths):
            notes.append(said)
    probes = plan(records.records, seed=args.seed, annotations=annotations, removed_root=args.removed_root)
    if without := sum(probe.background is None for probe in probes):
        notes.append(
            f"{without} of {len(probes)} records have no place for a box of the object's size beside it; they are left"
            " out of background and of the artefact ratio."
        )
    return records, probes, notes


def _probe(args: Namespace, adapter: Path | None, probes: Sequence[Probe]) -> tuple[Sequence[Measurement], Result]:
    """The measurements, and what they are of."""
    import torch
    from accelerate import PartialState

    from listwise_preference.models import adapters, loading

    name, revision = args.model_name_or_path, args.model_revision
    try:
        processor = loading.load_processor(name, revision, args.processor_settings)
        model: Any = loading.load_base_model(
            name,
            revision=revision,
            dtype=loading.DTYPES[args.dtype],
            attn_implementation=args.attn_implementation,
            device=PartialState(cpu=not torch.accelerator.is_available()).device,
        )
        if adapter is not None:
            model = adapters.load_adapter(model, adapter, base_is_reference=True)
        identity = {
            "model": loading.weights_identity(name, revision),
            "adapter": adapter and adapters.identity(adapter),
            "pictures": sha256_of(sorted({file for probe in probes for file in probe.record.images.files()})),
            "dtype": args.dtype,
            "attn_implementation": args.attn_implementation,
            "processor_settings": args.processor_settings,
            "system_prompt": args.system_prompt,
            "max_completion_length": args.max_completion_length,
        }
        scorer = ModelScorer(model, processor, args.batch_size, args.max_completion_length, args.system_prompt)
        return measure(probes, scorer), identity
    except ArithmeticError as error:
        raise DataError(f"{error}; try another --dtype than {args.dtype}") from error
    except torch.OutOfMemoryError as error:
        raise DataError(f"not enough memory for --batch_size {args.batch_size}; try a smaller one") from error


def _identities(args: Namespace) -> Result:
    files = {"pairs": args.pairs, "image_lists": args.image_lists, "exclude": args.exclude}
    known: Result = {name: file_identity(file) for name, file in files.items() if file}
    known["annotations"] = file_identity(args.annotations) if args.annotations else None
    return known
