"""The probe's numbers as a table and as a chart; the condition ``hidden`` is called masked there."""

from collections.abc import Mapping
from pathlib import Path

from listwise_preference.pages import charts
from listwise_preference.probe.measure import CONDITIONS, Artefact, Change, Quantity, Summary

_HEADINGS: dict[Quantity, str] = {
    "log_ratio": "log-ratio",
    "policy": "policy alone",
    "reference": "reference alone",
}
_WIDTH = 26


def condition_names(fill: str, visual_prompt: str) -> dict[str, str]:
    """What each condition shows, in a few words, where training masks by ``fill`` and ``visual_prompt``."""
    marker = "ellipse" if visual_prompt == "ellipse" else "no ellipse"
    return {
        "hidden": f"masked ({fill}, {marker})",
        "background": "background, masked so too",
        "blur": "blur, no ellipse",
        "mean": "mean colour, no ellipse",
        "black": "black, no ellipse",
        "removed": "object removed",
    }


def table(summary: Summary, names: Mapping[str, str]) -> str:
    """One row a condition, one column a quantity; below, the artefact ratios."""
    quantities = list(summary.changes)
    intervals = f" [95 % interval over {summary.images} images]" if summary.images > 1 else ""
    lines = [
        f"Change of the chosen response's log-probability against the clean image, nats: mean{intervals}",
        "",
        f"{'':{_WIDTH}} {'records':>8}" + "".join(f"  {_heading(summary, quantity):>24}" for quantity in quantities),
    ]
    for name, row in _rows(summary, names):
        cells = "".join(f"  {_shown(row[quantity]):>24}" for quantity in quantities)
        lines.append(f"{name:{_WIDTH}} {_count(row):8}{cells}")
    if summary.artefact:
        ratios = "".join(f"  {_ratio(artefact):>24}" for artefact in summary.artefact.values())
        both = next(iter(summary.artefact.values())).background.records
        lines += ["", f"{'background / masked':{_WIDTH}} {both:8}{ratios}"]
    return "\n".join(lines)


def _rows(summary: Summary, names: Mapping[str, str]) -> list[tuple[str, dict[Quantity, Change]]]:
    """Name and changes of each condition; behind a background that not all records have, masked on those that have."""
    rows = []
    for condition in CONDITIONS:
        row = {quantity: changes[condition] for quantity, changes in summary.changes.items() if condition in changes}
        if row:
            rows.append((names[condition], row))
        if row and condition == "background" and _count(row) < summary.records:
            rows.append(("masked, the same records", {of: one.hidden for of, one in summary.artefact.items()}))
    return rows


def _heading(summary: Summary, quantity: Quantity) -> str:
    return _HEADINGS[quantity] if "reference" in summary.changes else "the model itself"


def _count(row: dict[Quantity, Change]) -> int:
    return next(iter(row.values())).records


def _shown(change: Change) -> str:
    return f"{change.mean:.3f}" + (f" [{change.interval[0]:.3f}, {change.interval[1]:.3f}]" if change.interval else "")


def _ratio(artefact: Artefact) -> str:
    if artefact.ratio is None:
        return "none: masked may be 0" if artefact.hidden.interval else "none: one image"
    return f"{artefact.ratio:.3f}" + (
        f" [{artefact.interval[0]:.3f}, {artefact.interval[1]:.3f}]" if artefact.interval else ""
    )


def plot(summary: Summary, names: Mapping[str, str], path: Path) -> None:
    """A bar chart as PNG: one panel a quantity, one bar a condition, 95 % intervals as whiskers; raises DataError."""
    rows = _rows(summary, names)
    across = len(summary.changes)
    with charts.chart(path, across=across, size=(3.4 + 2.2 / across, 1.6 + 0.42 * len(rows)), shared=True) as axes:
        for axis, quantity in zip(axes, summary.changes, strict=True):
            ratio = summary.artefact[quantity].ratio if quantity in summary.artefact else None
            changes = [row[quantity] for _, row in rows]
            charts.bars(
                axis,
                [f"{name} ({_count(row)})" for name, row in rows],
                [change.mean for change in changes],
                [change.interval for change in changes],
                # The one bar that a policy which looks at the object leaves at 0.
                [charts.LIGHT.lines[name == names["background"]] for name, _ in rows],
                title=_heading(summary, quantity) + ("" if ratio is None else f"\nbackground / masked {ratio:.2f}"),
            )
            axis.axvline(0, color=charts.LIGHT.quiet, linewidth=0.8)
            axis.set_xlabel("change against clean, nats")
