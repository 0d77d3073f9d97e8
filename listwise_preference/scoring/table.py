"""All runs in one table, in the paper's order: Markdown, LaTeX or HTML, with intervals and what each column rests on.

    python score.py table runs/*/scores/*.json --output table.md table.tex table.html

A row is a run, a group of columns a benchmark. Scores of different protocols do not get into one column. A number whose
paired difference from the first row's has a 95 % interval without zero is marked with a star. Cover, or recall, always
stands beside CHAIR: a model that names less is wrong less often.
"""

import html
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from listwise_preference.cli import Subcommands, count
from listwise_preference.errors import DataError
from listwise_preference.files import read_json, write_atomic
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.bootstrap import flatten, paired_bootstrap
from listwise_preference.scoring.compare import (
    PAPER,
    PAPER_KEYS,
    Row,
    cell,
    check_result,
    paper_rows,
    protocol_differences,
    run_row,
)
from listwise_preference.scoring.interface import Column
from listwise_preference.scoring.result import Result, read_counts

COVERAGE = ("Cover", "recall")
# A group of columns: the benchmark, and which of its question files.
Part = tuple[str, str]


@dataclass(frozen=True)
class Table:
    """What is shown, before it has a form.

    Attributes:
        groups: title of a group of columns and its columns' headings.
        rows: name and cells, one for each column.
        notes: what stands below; the first ones are the groups' own, in their order.
    """

    groups: Sequence[tuple[str, Sequence[str]]]
    rows: Sequence[tuple[str, Sequence[str]]]
    notes: Sequence[str]

    def headings(self) -> list[str]:
        """The headings of all columns."""
        return [heading for _, headings in self.groups for heading in headings]

    def by_name(self) -> dict[str, dict[str, dict[str, str]]]:
        """The cells by row, group and heading."""
        found = {}
        for name, cells in self.rows:
            left = iter(cells)
            found[name] = {title: {heading: next(left) for heading in headings} for title, headings in self.groups}
        return found


@dataclass
class Runs:
    """Scores by run and part, and the files they were read from."""

    results: dict[str, dict[Part, Result]] = field(default_factory=dict)
    files: dict[tuple[str, Part], Path] = field(default_factory=dict)

    def parts(self) -> list[Part]:
        """In the paper's order, then in that of BENCHMARKS; question files by name."""
        order = list(dict.fromkeys((*(name for name, _ in PAPER_KEYS), *BENCHMARKS)))
        found = {part for results in self.results.values() for part in results}
        return sorted(found, key=lambda part: (order.index(part[0]), part[1]))

    def of(self, part: Part) -> dict[str, Result]:
        """The runs that have it."""
        return {name: results[part] for name, results in self.results.items() if part in results}


def part_of(result: Mapping[str, Any]) -> Part:
    """Which columns a result belongs to. POPE's random, popular and adversarial questions are different measures."""
    return result["benchmark"], str(result.get("protocol", {}).get("questions", ""))


def default_name(path: Path) -> str:
    """The run that a file belongs to: the folder that it is in, or that above ``scores``."""
    folder = path.resolve().parent
    return folder.parent.name if folder.name == "scores" else folder.name


def collect(paths: Sequence[Path], names: Sequence[str] | None) -> tuple[Runs, list[str]]:
    """The scores, and what was left out.

    Raises:
        DataError: a file is no scores file, or a run has two scores for the same columns, or a column would hold
            scores of different protocols.
    """
    runs, left_out = Runs(), []
    for path, name in zip(paths, names or map(default_name, paths), strict=True):
        result = read_json(path)
        if not isinstance(result, dict) or not isinstance(result.get("benchmark"), str):
            raise DataError(f"{path}: not a scores file; write one with: python score.py ... --output scores.json")
        check_result(result, path)
        if result["benchmark"] not in BENCHMARKS:
            left_out.append(f"{path}: left out, {result['benchmark']} has no columns in this table.")
            continue
        part = part_of(result)
        if (name, part) in runs.files:
            raise DataError(
                f"{runs.files[name, part]} and {path} are both {part[0]} scores of {name}: put them in folders of their"
                " own, or give each file the name of its run with --names"
            )
        runs.files[name, part] = path
        runs.results.setdefault(name, {})[part] = result
    refused = []
    for part in runs.parts():
        of_part = runs.of(part)
        # What only some state belongs to columns that the others do not have: POPE's corrected labels.
        refused += protocol_differences(list(of_part), list(of_part.values()), only_in_common=True)
    if refused:
        listed = "\n".join(f"  - {sentence}" for sentence in refused)
        raise DataError(f"scores of different protocols do not go into one column:\n{listed}\nScore them alike, or make"
                        " a table of each.")  # fmt: skip
    if not runs.results:
        raise DataError("no scores to show")
    return runs, left_out


def build(runs: Runs, paper_models: Sequence[str], resamples: int, seed: int) -> Table:
    """The table of all runs; the first is what the others are compared with."""
    first, *others = runs.results
    groups, notes, columns, footnotes = [], [], [], []
    cells: dict[str, list[str]] = {name: [] for name in runs.results}
    partial = {name for name, results in runs.results.items() if any(one.get("partial") for one in results.values())}
    paper: dict[str, list[str]] = {}
    starred = False
    for number, part in enumerate(runs.parts(), start=1):
        of_part = runs.of(part)
        rows = {name: run_row(name, result) for name, result in of_part.items()}
        printed = [] if part[1] else paper_rows(part[0], paper_models)
        shown = _shown(BENCHMARKS[part[0]].columns, [*rows.values(), *printed])
        arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
        groups.append((_title(part, number), [one.heading + arrows[one.better] for one in shown]))
        for name in runs.results:
            differs: set[str] = set()
            if name in others and name in of_part and first in of_part:
                found = differing(part[0], runs.files[first, part], runs.files[name, part], resamples, seed)
                if found is None:
                    footnotes.append(
                        f"{part[0]}: {name} and {first} have no counts of the same images and are not tested."
                    )
                differs = found or set()
            blank = Row(name, {})
            texts = [cell(rows.get(name, blank), one) + ("*" if one.key in differs else "") for one in shown]
            starred |= any(text.endswith("*") for text in texts)
            cells[name] += texts
        for row in printed:
            before = sum(len(headings) for _, headings in groups[:-1])
            texts = paper.setdefault(row.name, [])
            texts += ["-"] * (before - len(texts)) + [cell(row, one) for one in shown]
        columns += shown
        notes.append(f"({number}) {_protocol(next(iter(of_part.values())))}")
    if any(result.get("bootstrap") for results in runs.results.values() for result in results.values()):
        footnotes.append("[low, high]: 95 % interval over images.")
    if starred:
        footnotes.append(
            f"*: the 95 % interval of the paired difference from {first}, {resamples} resamples of the images, is"
            " without zero."
        )
    footnotes += [f"{name}: partial, not all of a benchmark was scored." for name in sorted(partial)]
    if paper:
        footnotes.append("paper: as printed there, with its own protocol.")
    padded = {name: texts + ["-"] * (len(columns) - len(texts)) for name, texts in paper.items()}
    return Table(groups, [*cells.items(), *padded.items()], [*notes, *footnotes])


def _shown(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns with a number; with CHAIR, how much is covered too, even where it is not known."""
    numbered = {one.key for one in columns if any(one.key in row.values for row in rows)}
    has_chair = any(one.key in numbered and one.heading.startswith("CHAIR") for one in columns)
    return [one for one in columns if one.key in numbered or (has_chair and one.heading in COVERAGE)]


def _title(part: Part, number: int) -> str:
    return f"{part[0]}{f' {Path(part[1]).stem}' if part[1] else ''} ({number})"


def _protocol(result: Mapping[str, Any]) -> str:
    protocol = flatten(result.get("protocol", {}))
    return f"{result['benchmark']}: " + "; ".join(f"{key} {value}" for key, value in protocol.items())


def differing(benchmark: str, first: Path, other: Path, resamples: int, seed: int) -> set[str] | None:
    """Keys of the columns in which two scores files differ; None where they do not have counts of the same images."""
    metrics, theirs, ours = BENCHMARKS[benchmark].metrics, read_counts(first), read_counts(other)
    if metrics is None or theirs is None or ours is None or ours.keys() != theirs.keys():
        return None
    intervals = paired_bootstrap(theirs, ours, metrics, resamples, seed)
    return {name for name, (low, high) in intervals.items() if low > 0 or high < 0}


# ---- forms ----


def markdown(table: Table) -> str:
    """A Markdown table; a heading names the group before the first of its columns."""
    headings = [
        f"{title}: {heading}" if place == 0 else heading
        for title, of_group in table.groups
        for place, heading in enumerate(of_group)
    ]
    lines = [["", *headings], *([name, *cells] for name, cells in table.rows)]
    lines = [[text.replace("|", "\\|").replace("*", "\\*") for text in line] for line in lines]
    widths = [max(len(line[place]) for line in lines) for place in range(len(headings) + 1)]
    forms = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
    heading, *texts = (f"| {' | '.join(map(format, line, forms))} |" for line in lines)
    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    notes = [note.replace("*", "\\*") for note in table.notes]
    return "\n".join([heading, rule, *texts, "", *(f"{note}  " for note in notes)])


_LATEX = {
    "\\": r"\textbackslash{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def latex(table: Table) -> str:
    """A tabular with booktabs rules, and the notes below."""

    def escape(text: str) -> str:
        return "".join(_LATEX.get(sign, sign) for sign in text)

    titles = [rf"\multicolumn{{{len(of_group)}}}{{c}}{{{escape(title)}}}" for title, of_group in table.groups]
    lines = [
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(table.headings())}}}",
        r"\toprule",
        rf" & {' & '.join(titles)} \\",
        rf" & {' & '.join(map(escape, table.headings()))} \\",
        r"\midrule",
        *(rf"{' & '.join(map(escape, (name, *cells)))} \\" for name, cells in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
        *(rf"{{\footnotesize {escape(note)}\par}}" for note in table.notes),
    ]
    return "\n".join(lines)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em;color-scheme:light dark}table{border-collapse:collapse}"
    "th,td{padding:.3em .8em;text-align:right;white-space:nowrap;border-bottom:1px solid #8884}"
    "th:first-child,td:first-child,th[colspan]{text-align:left}thead th{vertical-align:bottom}"
)


def page(table: Table) -> str:
    """A page of its own, without a script."""
    titles = "".join(f'<th colspan="{len(of_group)}">{html.escape(title)}</th>' for title, of_group in table.groups)
    headings = "".join(f"<th>{html.escape(heading)}</th>" for heading in table.headings())
    rows = "\n".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(one)}</td>' for one in cells)}</tr>"
        for name, cells in table.rows
    )
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{_POLICY}<title>Scores</title>'
        f"<style>{_STYLE}</style>\n"
        f"<table>\n<thead><tr><th></th>{titles}</tr>\n<tr><th></th>{headings}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n{notes}\n</html>"
    )


# What the page may load: its own style, and nothing else.
_POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
FORMS = {".md": markdown, ".tex": latex, ".html": page}


# ---- the command ----


def add_command(commands: Subcommands) -> None:
    """Add ``table`` to the program's commands."""
    says = "all runs and benchmarks in one table, with intervals, paired tests and protocols"
    one = commands.add_parser("table", help=says, description=f"{says.capitalize()}.")
    one.set_defaults(run=_run)
    add = one.add_argument
    add("scores", type=Path, nargs="+", help="files written by --output, such as runs/*/scores/*.json")
    add("--names", nargs="+", help="the run of each file (default: its folder, or that above scores/)")
    add("--baseline", metavar="RUN", help="the run that the others are compared with (default: that of the first file)")
    add("--paper_model", action="append", choices=tuple(PAPER), help="add the paper's rows for this model")
    add("--output", type=Path, nargs="+", default=[], metavar="FILE", help="write it as .md, .tex or .html")
    add("--bootstrap", type=count, default=1000, metavar="N", help="resamples of images for the paired differences")
    add("--seed", type=int, default=0, help="of the resamples")


def _run(args: Namespace) -> dict[str, Any]:
    if args.names and len(args.names) != len(args.scores):
        raise DataError(f"--names: {len(args.names)} names for {len(args.scores)} files")
    if wrong := [file for file in args.output if file.suffix not in FORMS]:
        raise DataError(f"--output {wrong[0]}: a table is written as {', '.join(FORMS)}")
    runs, left_out = collect(args.scores, args.names)
    if args.baseline is not None:
        if args.baseline not in runs.results:
            raise DataError(f"--baseline {args.baseline}: no such run; there are {', '.join(runs.results)}")
        runs.results = {args.baseline: runs.results.pop(args.baseline), **runs.results}
    made = build(runs, args.paper_model or [], args.bootstrap, args.seed)
    print(markdown(made))
    for note in left_out:
        print(f"\nNote: {note}")
    for file in args.output:
        write_atomic(file, FORMS[file.suffix](made) + "\n")
        print(f"\nWritten to {file}")
    return made.by_name()
