"""Results side by side, with the paper's own rows beside them: text, Markdown and a bar chart."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from listwise_preference.cli import Subcommands
from listwise_preference.data.validation import shown
from listwise_preference.errors import DataError
from listwise_preference.files import expecting, read_json, write_atomic
from listwise_preference.pages import charts
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.bootstrap import flatten
from listwise_preference.scoring.interface import Column

_ACROSS = 4  # panels in a line
_WIDTH = 8.0  # inches of a chart: at 800 pixels its letters are as large as a page's


@dataclass(frozen=True)
class Row:
    """One run or one row of the paper; values are as shown (scaled), absent where there is no number."""

    name: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


PAPER_KEYS = (
    ("object-halbench", "chair_s"),
    ("object-halbench", "chair_i"),
    ("mmhal", "score"),
    ("mmhal", "hallucination_rate"),
    ("amber", "generative.chair"),
    ("amber", "generative.cover"),
    ("amber", "generative.hal"),
    ("amber", "generative.cog"),
)
# The paper's main table (arXiv 2505.21061), columns as in PAPER_KEYS.
PAPER = {
    "LLaVA-v1.5-7B": {
        "": (49.7, 26.1, 2.02, 0.65, 7.7, 49.8, 31.9, 3.7),
        "DPO": (42.3, 23.2, 2.00, 0.69, 6.7, 53.2, 33.7, 3.3),
        "mDPO": (30.7, 16.0, 2.40, 0.59, 5.0, 52.5, 27.5, 2.4),
        "LPOI": (24.3, 14.6, 2.40, 0.59, 4.3, 51.9, 26.4, 2.0),
    },
    "LLaVA-v1.5-13B": {
        "": (44.3, 21.2, 2.09, 0.64, 6.3, 51.0, 30.2, 3.0),
        "DPO": (38.3, 19.4, 2.36, 0.61, 6.2, 54.3, 31.8, 2.6),
        "mDPO": (33.3, 16.6, 2.50, 0.57, 4.6, 52.6, 25.0, 2.0),
        "LPOI": (24.3, 11.7, 2.54, 0.57, 3.9, 52.9, 22.3, 1.8),
    },
    "Idefics2-8B": {
        "": (6.3, 4.2, 2.62, 0.43, 3.4, 36.5, 7.6, 0.4),
        "DPO": (6.0, 4.2, 2.48, 0.45, 3.5, 37.4, 8.1, 0.2),
        "mDPO": (7.3, 5.4, 2.80, 0.40, 2.7, 37.7, 6.2, 0.2),
        "LPOI": (5.3, 3.6, 2.88, 0.36, 2.6, 36.4, 5.7, 0.2),
    },
}


def paper_rows(benchmark: str, models: Sequence[str]) -> list[Row]:
    """The paper's rows for a benchmark, as the paper prints them; none for benchmarks it does not have."""
    places = {key: place for place, (name, key) in enumerate(PAPER_KEYS) if name == benchmark}
    return [
        Row(
            f"paper: {model}{f' + {method}' if method else ''}",
            {key: numbers[place] for key, place in places.items()},
        )
        for model in models
        for method, numbers in PAPER[model].items()
        if places
    ]


def read_result(path: Path) -> dict[str, Any]:
    """A scores file; DataError where it is something else."""
    result = read_json(path)
    if not isinstance(result, dict) or not isinstance(name := result.get("benchmark"), str) or name not in BENCHMARKS:
        raise DataError(f"{path}: not a scores file; write one with: python score.py ... --output scores.json")
    check_result(result, path)
    return result


def check_result(result: Mapping[str, Any], path: Path) -> None:
    """Raises DataError where a scores file was changed so that it cannot be shown."""
    with expecting("a scores file as score.py writes it", path):
        for name, kind in (("protocol", dict), ("counts", dict), ("bootstrap", dict | None), ("notes", list)):
            if name in result and not isinstance(result[name], kind):
                raise TypeError(f'"{name}" is {shown(result[name])}')
        if result["benchmark"] in BENCHMARKS:
            row, columns = run_row("", result), BENCHMARKS[result["benchmark"]].columns
            [cell(row, column) for column in columns]


def run_names(paths: Sequence[Path]) -> list[str]:
    """Names that tell files apart: the stem, or folder/stem where stems repeat."""
    stems = [path.stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{stem}"
        for path, stem in zip(paths, stems, strict=True)
    ]


def run_row(name: str, result: Mapping[str, Any]) -> Row:
    """A result as a row."""
    columns = BENCHMARKS[result["benchmark"]].columns
    flat = flatten({name: result.get(name) for name in (column.key.split(".")[0] for column in columns)})
    drawn = (result.get("bootstrap") or {}).get("intervals", {})
    values = {c.key: flat[c.key] * c.scale for c in columns if isinstance(flat.get(c.key), int | float)}  # type: ignore[operator]
    intervals = {
        c.key: (drawn[c.key][0] * c.scale, drawn[c.key][1] * c.scale)
        for c in columns
        if c.key in values and drawn.get(c.key)
    }
    return Row(name + (" (partial)" if result.get("partial") else ""), values, intervals)


def rows_by_benchmark(
    names: Sequence[str], results: Sequence[Mapping[str, Any]], paper_models: Sequence[str]
) -> dict[str, list[Row]]:
    """The runs of each benchmark in the order given, the paper's rows behind them."""
    rows: dict[str, list[Row]] = {}
    for name, result in zip(names, results, strict=True):
        rows.setdefault(result["benchmark"], []).append(run_row(name, result))
    return {name: runs + paper_rows(name, paper_models) for name, runs in rows.items()}


def notes(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes runs hard to compare: what was noted when each was scored, and protocols that differ."""
    found = [f"{name}: {note}" for name, result in zip(names, results, strict=True) for note in result.get("notes", [])]
    for benchmark in dict.fromkeys(result["benchmark"] for result in results):
        alike = {name: one for name, one in zip(names, results, strict=True) if one["benchmark"] == benchmark}
        found += protocol_differences(list(alike), list(alike.values()))
    return found


def protocol_differences(
    names: Sequence[str], results: Sequence[Mapping[str, Any]], *, only_in_common: bool = False
) -> list[str]:
    """In what the protocols of one benchmark's results differ, a sentence each; or only in what all of them state."""
    protocols = {name: flatten(result.get("protocol", {})) for name, result in zip(names, results, strict=True)}
    found = []
    for key in dict.fromkeys(key for protocol in protocols.values() for key in protocol):
        if only_in_common and any(key not in protocol for protocol in protocols.values()):
            continue
        values = {name: protocol.get(key) for name, protocol in protocols.items()}
        if len(set(map(str, values.values()))) > 1:
            listed = "; ".join(f"{name}: {value}" for name, value in values.items())
            found.append(f"{results[0]['benchmark']}: not scored alike: {key} is {listed}")
    return found


def markdown(rows: Mapping[str, Sequence[Row]]) -> str:
    """One Markdown table per benchmark; columns without any number are left out."""
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    blocks = []
    for benchmark, runs in rows.items():
        columns = [one for one in BENCHMARKS[benchmark].columns if any(one.key in row.values for row in runs)]
        lines = [[benchmark, *(column.heading + arrows[column.better] for column in columns)]]
        lines += [[row.name, *(cell(row, column) for column in columns)] for row in runs]
        widths = [max(len(line[place]) for line in lines) for place in range(len(columns) + 1)]
        forms = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
        heading, *texts = (f"| {' | '.join(map(format, line, forms))} |" for line in lines)
        rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
        blocks.append("\n".join([heading, rule, *texts]))
    return "\n\n".join(blocks)


def cell(row: Row, column: Column) -> str:
    """A number with its interval, as a text."""
    if column.key not in row.values:
        return "-"
    text = f"{row.values[column.key]:.{column.digits}f}"
    if column.key in row.intervals:
        low, high = row.intervals[column.key]
        text += f" [{low:.{column.digits}f}, {high:.{column.digits}f}]"
    return text


def plot(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A bar chart as PNG: a line of panels for each benchmark, one panel for each metric, all of a line on one scale.

    The rows' names stand once, at the left; values behind their bars, 95 % intervals as whiskers. Metrics that other
    rows have, as the paper's have no yes/no questions, begin a new line.

    Raises:
        DataError: there are no numbers, or the file cannot be written.
    """
    lines: list[tuple[str, Sequence[Column], Sequence[Row]]] = []
    for benchmark, runs in rows.items():
        which = [([one.key in row.values for row in runs], one) for one in BENCHMARKS[benchmark].columns]
        for known, alike in groupby(which, itemgetter(0)):
            if not any(known):
                continue
            shown, having = [column for _, column in alike], list(compress(runs, known))
            across = -(-len(shown) // -(-len(shown) // _ACROSS))  # lines of equal length
            lines += [(benchmark, shown[start : start + across], having) for start in range(0, len(shown), across)]
    if not lines:
        raise DataError("nothing to draw: the results hold no numbers")
    across = max(len(columns) for _, columns, _ in lines)
    arrows = {"higher": " \u2191", "lower": " \u2193", "neither": ""}
    size, heights = (_WIDTH / across, 0.0), [0.8 + 0.2 * len(runs) for _, _, runs in lines]
    with charts.chart(path, across=across, down=len(lines), size=size, heights=heights) as axes:
        for place, (benchmark, columns, runs) in enumerate(lines):
            panels = axes[place * across : (place + 1) * across]
            ends = [
                max([row.values[one.key], *row.intervals.get(one.key, ())])
                for one in BENCHMARKS[benchmark].columns
                for row in rows[benchmark]
                if one.key in row.values
            ]
            for number, (axis, column) in enumerate(zip(panels, columns, strict=False)):
                charts.bars(
                    axis,
                    [row.name for row in runs],
                    [row.values[column.key] for row in runs],
                    [row.intervals.get(column.key) for row in runs],
                    [charts.LIGHT.quiet if row.name.startswith("paper: ") else charts.LIGHT.lines[0] for row in runs],
                    title=(benchmark if number == 0 else "") + f"\n{column.heading}{arrows[column.better]}",
                    digits=column.digits,
                )
                axis.set_xlim(0, 1.4 * max(max(ends), 1e-9))  # room for the numbers
                axis.locator_params(axis="x", nbins=3)
                axis.tick_params(labelleft=number == 0)
            for axis in panels[len(columns) :]:
                axis.axis("off")


# ---- the command ----


def add_command(commands: Subcommands) -> None:
    """Add ``compare`` to the program's commands."""
    one = commands.add_parser("compare", help="scores files side by side", description="Scores files side by side.")
    one.set_defaults(run=_run)
    add = one.add_argument
    add("scores", type=Path, nargs="+", help="files written by --output")
    add("--names", nargs="+", help="names of the runs (default: file names)")
    add("--paper", action="store_true", help="add the paper's rows")
    add("--paper_model", action="append", choices=tuple(PAPER), help="add the paper's rows for this model only")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    add("--plot", type=Path, metavar="FILE.png", help="draw a bar chart")


def _run(args: Namespace) -> dict[str, Any]:
    names = args.names or run_names(args.scores)
    if len(names) != len(args.scores):
        raise DataError(f"--names: {len(names)} names for {len(args.scores)} files")
    results = [read_result(path) for path in args.scores]
    models = list(PAPER) if args.paper and not args.paper_model else args.paper_model or []
    rows = rows_by_benchmark(names, results, models)
    text = "\n\n".join([markdown(rows), *(f"Note: {remark}" for remark in notes(names, results))])
    print(text)
    if args.markdown:
        write_atomic(args.markdown, text + "\n")
        print(f"\nWritten to {args.markdown}")
    if args.plot:
        plot(rows, args.plot)
        print(f"\nDrawn in {args.plot}")
    return {name: {row.name: dict(row.values) for row in runs} for name, runs in rows.items()}
