"""The command ``score.py awareness``: pairs with boxes and a model -> the object-awareness probe's numbers.

The definition is in ``listwise_preference.awareness``. Data and options are checked before anything heavy is loaded.
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
    Artefact,
    Change,
    Measurement,
    ModelScorer,
    Probe,
    Quantity,
    Summary,
    measure,
    plan,
    summarize,
)
from listwise_preference.scoring.compare import require_matplotlib
from listwise_preference.scoring.result import Result, file_identity, report, versions

_HEADINGS: dict[Quantity, str] = {
    "log_ratio": "log-ratio",
    "policy": "policy alone",
    "reference": "reference alone",
}
_WIDTH = 26


def score_awareness(args: argparse.Namespace) -> None:
    """Check, probe, report."""
    if args.plot:
        require_matplotlib()
    records, probes, notes = _read(args)
    measurements, model = _probe(args, probes)
    summary = summarize(measurements, resamples=args.bootstrap, seed=args.seed)
    if summary.images == 1:
        notes.append("one image gives no interval, and without one there is no artefact ratio.")
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
        plot(summary, args.plot, _ways(args))
        print(f"Drawn in {args.plot}", file=sys.stderr)
    values = [
        {**dataclasses.asdict(one), "background_box": probe.background and list(dataclasses.astuple(probe.background))}
        for one, probe in zip(measurements, probes, strict=True)
    ]
    report(result, lambda _: table(summary, _ways(args)), notes, args.output, {"per_record": values})


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


def _ways(args: argparse.Namespace) -> dict[str, str]:
    """What each condition shows, in a few words."""
    marker = "ellipse" if args.visual_prompt == "ellipse" else "no ellipse"
    return {
        "hidden": f"hidden ({args.fill}, {marker})",
        "background": "background, hidden so too",
        "blur": "blur, no ellipse",
        "mean": "mean colour, no ellipse",
        "black": "black, no ellipse",
        "removed": "object removed",
    }


# Table and plot


def table(summary: Summary, ways: dict[str, str]) -> str:
    """One row a condition, one column a quantity; below, the artefact ratios."""
    quantities = list(summary.changes)
    intervals = f" [95 % interval over {summary.images} images]" if summary.images > 1 else ""
    lines = [
        f"Change of the chosen answer's log-probability against the clean image, nats: mean{intervals}",
        "",
        f"{'':{_WIDTH}} {'records':>8}" + "".join(f"  {_heading(summary, quantity):>24}" for quantity in quantities),
    ]
    for name, row in _rows(summary, ways):
        cells = "".join(f"  {_shown(row[quantity]):>24}" for quantity in quantities)
        lines.append(f"{name:{_WIDTH}} {_count(row):8}{cells}")
    if summary.artefact:
        ratios = "".join(f"  {_ratio(artefact):>24}" for artefact in summary.artefact.values())
        both = next(iter(summary.artefact.values())).background.records
        lines += ["", f"{'background / hidden':{_WIDTH}} {both:8}{ratios}"]
    return "\n".join(lines)


def _rows(summary: Summary, ways: dict[str, str]) -> list[tuple[str, dict[Quantity, Change]]]:
    """Name and changes of each condition; behind a background that not all records have, hidden on those that have."""
    rows = []
    for condition in CONDITIONS:
        row = {quantity: changes[condition] for quantity, changes in summary.changes.items() if condition in changes}
        if row:
            rows.append((ways[condition], row))
        if row and condition == "background" and _count(row) < summary.records:
            rows.append(("hidden, the same records", {of: one.hidden for of, one in summary.artefact.items()}))
    return rows


def _heading(summary: Summary, quantity: Quantity) -> str:
    return _HEADINGS[quantity] if "reference" in summary.changes else "the model itself"


def _count(row: dict[Quantity, Change]) -> int:
    return next(iter(row.values())).records


def _shown(change: Change) -> str:
    return f"{change.mean:.3f}" + (f" [{change.interval[0]:.3f}, {change.interval[1]:.3f}]" if change.interval else "")


def _ratio(artefact: Artefact) -> str:
    if artefact.ratio is None:
        return "none: hidden may be 0" if artefact.hidden.interval else "none: one image"
    return f"{artefact.ratio:.3f}" + (
        f" [{artefact.interval[0]:.3f}, {artefact.interval[1]:.3f}]" if artefact.interval else ""
    )


def plot(summary: Summary, path: Path, ways: dict[str, str]) -> None:
    """A bar chart as PNG: one panel a quantity, one bar a condition, 95 % intervals as whiskers."""
    import matplotlib.pyplot as plt

    rows = _rows(summary, ways)
    figure, axes = plt.subplots(
        1,
        len(summary.changes),
        figsize=(2.2 + 3.4 * len(summary.changes), 1.6 + 0.42 * len(rows)),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, quantity in zip(axes.flat, summary.changes, strict=True):
        for place, (name, row) in enumerate(rows):
            change = row[quantity]
            # The one bar that a policy which looks at the object leaves at 0.
            axis.barh(place, change.mean, color="#c46a2b" if name == ways["background"] else "#2f6f9f")
            if change.interval:
                low, high = change.interval
                whisker = [[max(0.0, change.mean - low)], [max(0.0, high - change.mean)]]
                axis.errorbar(change.mean, place, xerr=whisker, color="black", capsize=3, linewidth=1)
        ratio = summary.artefact[quantity].ratio if quantity in summary.artefact else None
        says = "" if ratio is None else f"\nbackground / hidden {ratio:.2f}"
        axis.set_title(_heading(summary, quantity) + says, fontsize=10)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(rows)), [f"{name} ({_count(row)})" for name, row in rows], fontsize=9)
        axis.set_ylim(len(rows) - 0.4, -0.6)  # the first condition on top
        axis.set_xlabel("change against clean, nats", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        plt.close(figure)
