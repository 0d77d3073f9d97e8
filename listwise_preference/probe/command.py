"""The command ``score.py awareness``: pairs with boxes and a model -> the object-awareness probe's numbers.

The definition is in ``listwise_preference.probe.measure``. Data and options are checked before anything heavy loads.
"""

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from listwise_preference.data.pairs import BoxLists, Records, load_records, read_exclusions
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.errors import DataError
from listwise_preference.files import sha256_of
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.models.families import PLACEHOLDERS
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
from listwise_preference.scoring.result import Result, file_identity, report, versions


def score_awareness(args: argparse.Namespace) -> None:
    """Check, probe, report."""
    records, probes, notes = _read(args)
    measurements, model = _probe(args, probes)
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
            "rules": "listwise_preference.awareness",
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
    report(result, lambda _: table(summary, names), notes, args.output, {"per_record": values})


def _read(args: argparse.Namespace) -> tuple[Records, Sequence[Probe], list[str]]:
    """The records, their probes, and what a reader of the numbers should know of them."""
    excluded = read_exclusions(args.exclude) if args.exclude else frozenset()
    records = load_records(
        args.pairs,
        args.image_root,
        BoxLists(args.image_lists, Drawing(visual_prompt=args.visual_prompt, fill=args.fill)),
        on_bad_record=args.on_bad_record,
        placeholders=PLACEHOLDERS,
        excluded=excluded,
    )
    notes = [records.report] if records.report else []
    if unknown := sorted(excluded - records.excluded):
        notes.append(f"--exclude names {len(unknown)} ids that no record has: {', '.join(unknown[:3])}")
    annotations = None
    if args.annotations:
        paths = [record.pair.img_path for record in records.records]
        annotations = Annotations(args.annotations, paths)
        if said := annotations.report(paths):
            notes.append(said)
    probes = plan(records.records, seed=args.seed, annotations=annotations, removed_root=args.removed_root)
    if without := sum(probe.background is None for probe in probes):
        notes.append(
            f"{without} of {len(probes)} records have no place for a box of the object's size beside it; they are left"
            " out of background and of the artefact ratio."
        )
    return records, probes, notes


def _probe(args: argparse.Namespace, probes: Sequence[Probe]) -> tuple[Sequence[Measurement], Result]:
    """The measurements, and what they are of."""
    # peft asks transformers by the old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    import torch
    from accelerate import PartialState

    from listwise_preference.models import adapters, loading

    name, revision = args.model_name_or_path, args.model_revision
    adapter = None if args.adapter == "none" else Path(args.adapter)
    try:
        if adapter is not None:
            adapters.adapter_file(adapter)
        processor = loading.load_processor(name, revision)
        model: Any = loading.load_base_model(
            name,
            revision=revision,
            dtype=loading.DTYPES[args.dtype],
            attn_implementation=args.attn_implementation,
            device=PartialState(cpu=not torch.accelerator.is_available()).device,
        )
        if adapter is not None:
            model = adapters.load_adapter(model, adapter)
        identity = {
            "model": loading.weights_identity(name, revision),
            "adapter": None
            if adapter is None
            else sha256_of([adapter / "adapter_config.json", adapters.adapter_file(adapter)]),
            "pictures": sha256_of(sorted({file for probe in probes for file in probe.record.images.files()})),
            "dtype": args.dtype,
            "attn_implementation": args.attn_implementation,
            "max_completion_length": args.max_completion_length,
        }
        scorer = ModelScorer(model, processor, args.batch_size, args.max_completion_length)
        return measure(probes, scorer), identity
    except ArithmeticError as error:
        raise DataError(f"{error}; try another --dtype than {args.dtype}") from error
    except torch.OutOfMemoryError as error:
        raise DataError(f"not enough memory for --batch_size {args.batch_size}; try a smaller one") from error


def _identities(args: argparse.Namespace) -> Result:
    files = {"pairs": args.pairs, "image_lists": args.image_lists, "exclude": args.exclude}
    known: Result = {name: file_identity(file) for name, file in files.items() if file}
    known["annotations"] = file_identity(args.annotations) if args.annotations else None
    return known
