"""Tables and the figure of ``image_terms.json``, in which ``image_terms.py`` keeps what it measured, seed by seed.

python benchmarks/image_terms_report.py [FOLDER, docs/evidence by default]
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objectives_report import CHANGED, HEADINGS, difference, minus, spread, table
from own_pairs_report import holm, measured, on_edge

from listwise_preference.cli import run_program
from listwise_preference.files import read_json, write_atomic
from listwise_preference.pages.charts import LIGHT, chart

ROOT = Path(__file__).parents[1]
LEGEND = """Made by `python benchmarks/image_terms.py`. CHAIR and Cover in per cent by `score.py amber`'s rules on test
scenes; F is the harmonic mean of 100 - CHAIR and Cover. Differences are means of paired ones, seed by seed, in brackets
95 % intervals of Student's t over seeds, not corrected. p of a question is the largest of three, against each of the
references, and 1 where a reference's F is not below the variant's; Holm's correction is over all questions, those that
were not run among them.

"""


def question_p(methods: Mapping[str, Any], variant: str, references: Mapping[str, Any]) -> float:
    """The largest p of a variant's F above each reference's; 1 where it is not above."""
    ps = []
    for reference in references:
        of = spread(minus(methods[variant]["test"]["f"], methods[reference]["test"]["f"]))
        ps.append(of.p if of.mean > 0 else 1.0)
    return max(ps)


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    methods, base, settings = results["methods"], results["base"], results["settings"]
    references, variants = settings["references"], settings["variants"]
    parts = {}
    if all(name in methods for name in references):
        asked = [name for name in variants if name in methods]
        ps = [question_p(methods, name, references) for name in asked]
        adjusted = holm([*ps, *[1.0] * (len(variants) - len(ps))])
        parts["Is a variant's F above that of all references?"] = table(
            ["", *(f"F minus {name}" for name in references), "p", "p by Holm"],
            [
                [
                    name,
                    *(difference(minus(methods[name]["test"]["f"], methods[of]["test"]["f"])) for of in references),
                    f"{p:.3f}",
                    f"{corrected:.3f}",
                ]
                for name, p, corrected in zip(asked, ps, adjusted, strict=False)
            ],
        )
        for reference in [*references, *(name for name in settings["plain"] if name in methods)]:
            against = methods[reference]["test"]
            parts[f"Minus {reference}"] = table(
                ["", *(HEADINGS[name] for name in CHANGED)],
                [
                    [name, *(difference(minus(of["test"][column], against[column])) for column in CHANGED)]
                    for name, of in methods.items()
                    if name != reference
                ],
            )
    parts["What training changed"] = table(
        ["", *(HEADINGS[name] for name in CHANGED)],
        [
            [name, *(difference(minus(of["test"][column], base[column])) for column in CHANGED)]
            for name, of in methods.items()
        ],
    )
    rows = [["base", "", "", "", *measured(base)]]
    rows += [
        [name, f"{of['learning_rate']:g}", str(of["step"]), on_edge(of), *measured(of["test"])]
        for name, of in methods.items()
    ]
    head = ["", "lr", "step", "on the grid's edge", *(HEADINGS[name] for name in CHANGED)]
    parts["Test scenes"] = table(head, rows)
    text = "\n\n".join(f"## {title}\n\n{of}" for title, of in parts.items()) + "\n"
    if left := [name for name in (*references, *variants, *settings["plain"]) if name not in methods]:
        text += f"\nNot run yet: {'; '.join(left)}.\n"
    return text


def figure(file: Path, results: Mapping[str, Any]) -> None:
    """What each method changed, CHAIR against Cover."""
    base, references = results["base"], results["settings"]["references"]
    colours = iter(LIGHT.lines)
    with chart(file, size=(7.2, 5.2)) as (axis,):
        for name, of in results["methods"].items():
            x, y = (spread(minus(of["test"][column], base[column])) for column in ("chair", "cover"))
            # Squares for what the variants are compared with.
            axis.errorbar(
                x.mean, y.mean, xerr=x.high - x.mean, yerr=y.high - y.mean, label=name, linewidth=1, markersize=6,
                marker="s" if name in references else "o", color=next(colours, LIGHT.quiet),
            )  # fmt: skip
        axis.set_xlabel(
            "CHAIR minus the base's (lower is better)\n\nSquares: references; 95 % intervals over five seeds"
        )
        axis.set_ylabel("Cover minus the base's (higher is better)")
        axis.legend()


def report(folder: Path) -> None:
    """Write tables and figure beside their numbers."""
    results = read_json(folder / "image_terms.json")
    write_atomic(folder / "image_terms_tables.md", LEGEND + markdown(results))
    figure(folder / "image_terms.png", results)


if __name__ == "__main__":
    run_program(lambda: report(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "evidence")))
