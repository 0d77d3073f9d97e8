"""own_pairs_tables.md from ``own_pairs.json``, in which ``own_pairs.py`` keeps what it measured, seed by seed.

python benchmarks/own_pairs_report.py [FOLDER, docs/evidence by default]
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from objectives_report import CHANGED, HEADINGS, difference, minus, spread, table

from listwise_preference.cli import run_program
from listwise_preference.files import read_json, write_atomic

ROOT = Path(__file__).parents[1]
LEGEND = """Made by `python benchmarks/own_pairs.py`. CHAIR and Cover in per cent by `score.py amber`'s rules on test
scenes; F is the harmonic mean of 100 - CHAIR and Cover. Differences are means of paired ones, seed by seed, in brackets
95 % intervals of Student's t over seeds. Holm's correction is over the questions of F, one a method.

"""


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the k-th smallest of n times n - k + 1, none below an earlier."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def by_seed(values: Sequence[float]) -> str:
    """``12.3 (11.0, 13.6)``: the mean, and the seeds' values."""
    return f"{sum(values) / len(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def measured(of: Mapping[str, Sequence[float]]) -> list[str]:
    """CHAIR, Cover and F."""
    return [by_seed(of[name]) for name in CHANGED]


def on_edge(kind: Mapping[str, Any]) -> str:
    """Which of its settings is the smallest or largest of the grid."""
    names = {"learning_rate": "lr", "step": "step"}
    values = {name: sorted({of[name] for of in kind["validation"]}) for name in names}
    return ", ".join(names[name] for name, all_ in values.items() if kind[name] in (all_[0], all_[-1])) or "no"


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    methods, base, settings = results["methods"], results["base"], results["settings"]
    rows = [["base", "", "", "", "", *measured(base)]]
    rows += [
        [method, kind, f"{of['learning_rate']:g}", str(of["step"]), on_edge(of), *measured(of["test"])]
        for method, kinds in methods.items()
        for kind, of in kinds.items()
    ]
    head = [HEADINGS[name] for name in CHANGED]
    changed = [
        [method, kind, *(difference(minus(of["test"][name], base[name])) for name in CHANGED)]
        for method, kinds in methods.items()
        for kind, of in kinds.items()
    ]
    paired = {
        method: {name: minus(kinds["own"]["test"][name], kinds["truth"]["test"][name]) for name in CHANGED}
        for method, kinds in methods.items()
    }
    ps = [spread(of["f"]).p for of in paired.values()]
    # A question that is not answered yet counts as one.
    waiting = [1.0] * (len(settings["methods"]) - len(ps))
    judged = zip(paired.items(), ps, holm([*ps, *waiting]), strict=False)
    against = [
        [method, *map(difference, of.values()), f"{p:.3f}", f"{adjusted:.3f}"] for (method, of), p, adjusted in judged
    ]
    counts = [[kind, *map(str, of)] for kind, of in results["pairs"].items()]
    parts = {
        "Own minus truth": table(["", *head, "p of F", "p by Holm"], against),
        "What training changed": table(["", "pairs", *head], changed),
        "Test scenes": table(["", "pairs", "lr", "step", "on the grid's edge", *head], rows),
        f"Pairs that {settings['training scenes']} scenes gave, by seed; at most {settings['pairs']} are taken": table(
            ["", *map(str, settings["seeds"])], counts
        ),
    }
    text = "\n\n".join(f"## {title}\n\n{of}" for title, of in parts.items()) + "\n"
    if left := [name for name in settings["methods"] if name not in methods]:
        text += f"\nNot run yet: {', '.join(left)}.\n"
    return text


def report(folder: Path) -> None:
    """Write the tables beside their numbers."""
    write_atomic(folder / "own_pairs_tables.md", LEGEND + markdown(read_json(folder / "own_pairs.json")))


if __name__ == "__main__":
    run_program(lambda: report(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "evidence")))
