"""Charts in one style, light and dark, drawn by matplotlib (imported when the first one is drawn).

with chart(Path("loss.png"), across=2) as (left, right):
    lines(left, [Series("LPOI", [(1, 6.2), (30, 4.8)])], title="Loss", xlabel="step")
"""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from listwise_preference.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS = 200  # an inch of the file; pages show it at half of that, which is sharp on dense screens

Interval = tuple[float, float]


@dataclass(frozen=True)
class Palette:
    """Colours: of the ground, of text, of secondary text, of rules; and of lines and bars in their order."""

    ground: str
    ink: str
    quiet: str
    rule: str
    lines: tuple[str, ...]


LIGHT = Palette(
    "#ffffff", "#1c1e21", "#62676d", "#e0e0db",
    ("#2b5fc7", "#c2571a", "#24744a", "#8a4fb5", "#1193a5", "#c03a7e", "#94831a", "#7a5a3c"),
)  # fmt: skip
DARK = Palette(
    "#1b1d20", "#e3e4e6", "#9ba1a8", "#34373c",
    ("#82a8f5", "#eb9a5f", "#6cc493", "#c196ea", "#58c4d3", "#ec86b8", "#cdbb55", "#c9a37e"),
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line: its points in order and the interval of each y, if known; a baseline has the quiet colour."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[Interval] = ()
    baseline: bool = False


@contextlib.contextmanager
def chart(
    file: Path,
    *,
    across: int = 1,
    down: int = 1,
    size: tuple[float, float] = (5.6, 3.3),
    heights: Sequence[float] = (),
    palette: Palette = LIGHT,
    shared: bool = False,
) -> Iterator[list["Axes"]]:
    """The panels of one PNG, row by row; what the block draws on them is written, whole or not at all, at its end.

    Args:
        size: width and height of a panel in inches, of DOTS pixels each.
        heights: of the panels of each line instead, in inches.
        shared: all panels have the same range across and up.

    Raises:
        DataError: the file cannot be written.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: dict[Any, Any] = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), palette.ground),
        **dict.fromkeys(("text.color", "axes.titlecolor"), palette.ink),
        **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), palette.quiet),
        **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), palette.rule),
        **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
        **dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 8.5),
        **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
        "axes.prop_cycle": cycler(color=palette.lines),
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "errorbar.capsize": 2.5,
    }
    with matplotlib.rc_context(style):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
        heights = heights or [size[1]] * down
        figure = Figure(figsize=(size[0] * across, sum(heights)), dpi=DOTS, layout=layout)
        axes = figure.subplots(down, across, squeeze=False, sharex=shared, sharey=shared, height_ratios=heights)
        yield list(axes.flat)
        content = io.BytesIO()
        FigureCanvasAgg(figure).print_png(content)
    write_atomic(file, content.getvalue())


def lines(axis: "Axes", series: Sequence[Series], *, title: str, xlabel: str) -> None:
    """Lines with their intervals as whiskers and the legend above; few different x have a tick each."""
    xs = sorted({x for one in series for x, _ in one.points})
    for place, one in enumerate(series):
        # Beside each other, so that one interval does not cover another.
        aside = (place - (len(series) - 1) / 2) * 0.01 * (xs[-1] - xs[0]) if one.intervals else 0.0
        x, y = [x + aside for x, _ in one.points], [y for _, y in one.points]
        marker = "o" if len(x) <= 20 else ""
        colour = axis.xaxis.label.get_color() if one.baseline else None
        (line,) = axis.plot(x, y, marker=marker, label=one.name, color=colour)
        if one.intervals:
            whiskers = _whiskers(y, one.intervals)
            axis.errorbar(x, y, yerr=whiskers, fmt="none", ecolor=line.get_color(), elinewidth=1.2, alpha=0.65)
    if 1 < len(xs) <= 8:
        axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.grid(axis="x", visible=False)
    axis.set_title(title, pad=24)
    axis.set_xlabel(xlabel)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), borderaxespad=0.3, handlelength=1.6)


def bars(
    axis: "Axes",
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Interval | None],
    colours: Sequence[str],
    *,
    title: str,
    digits: int | None = None,
    room_for: int = 0,
) -> None:
    """Horizontal bars, the first on top, with their intervals as whiskers.

    Args:
        digits: write each value with so many behind its bar, and a dash where it is not a number.
        room_for: leave room for so many bars, so that those of several panels are equally thick.
    """
    axis.barh(range(len(names)), values, color=colours)
    for place, (value, interval) in enumerate(zip(values, intervals, strict=True)):
        if interval is not None:
            axis.errorbar(
                value, place, xerr=_whiskers([value], [interval]), fmt="none", ecolor=LIGHT.ink, elinewidth=1.2
            )
        if digits is not None:
            known = not math.isnan(value)
            end, text = (max(value, interval[1] if interval else value), f"{value:.{digits}f}") if known else (0, "-")
            axis.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=7.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(room_for, len(names)) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_title(title)


def _whiskers(values: Sequence[float], intervals: Sequence[Interval]) -> list[list[float]]:
    """How far each interval reaches below and above its value."""
    return [
        [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
    ]
