"""Tables and the figure of ``image_terms.json``, in which ``image_terms.py`` keeps what it measured, seed by seed.

python benchmarks/image_terms_report.py [FOLDER, docs/evidence by default]
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from objectives_report import CHANGED, HEADINGS, awareness_table, difference, minus, spread, table

from listwise_preference.cli import run_program
from listwise_preference.files import read_json, write_atomic
from listwise_preference.pages.charts import LIGHT, chart

ROOT = Path(__file__).parents[1]
LEGEND = """Made by `python benchmarks/image_terms.py`. CHAIR and Cover in per cent by `score.py amber`'s rules on test
scenes; F is the harmonic mean of 100 - CHAIR and Cover. Differences are means of paired ones, seed by seed, in brackets
95 % intervals of Student's t over seeds, not corrected. p by Holm is corrected over all rows of its table that ask a
question, those that were not run among them. p of a variant is the largest of three, against each of the references,
and 1 where a reference's F is not below the variant's. Percentages: the mean, and the seeds' values. Awareness: how the
log-ratio of the right description changes where its object is masked as in training, where an equal box on background
is, where the object is masked in three other ways, and where it is not drawn; "-" is training's own way, or a ratio
whose denominator may be 0.

"""
HEAD = [HEADINGS[name] for name in CHANGED]

Cell = Mapping[str, Any]  # what was measured of one


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the k-th smallest of n times n - k + 1, none below an earlier."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


def question_p(variant: Cell, references: Sequence[Cell]) -> float:
    """The largest p of a variant's F above each reference's; 1 where it is not above."""
    ps = []
    for reference in references:
        of = spread(minus(variant["test"]["f"], reference["test"]["f"]))
        ps.append(of.p if of.mean > 0 else 1.0)
    return max(ps)


def on_edge(cell: Cell) -> str:
    """Which of its settings is the smallest or largest that was tried; the base itself is at no edge."""
    if cell["step"] == 0:
        return "no"
    rates = sorted({of["learning_rate"] for of in cell["tried"]})
    last = max(of["step"] for of in cell["tried"] if of["learning_rate"] == cell["learning_rate"])
    edges = {"lr": cell["learning_rate"] in (rates[0], rates[-1]), "step": cell["step"] == last}
    return ", ".join(name for name, at in edges.items() if at) or "no"


def by_seed(values: Sequence[float]) -> str:
    """``12.3 (11.0, 13.6)``: the mean, and the seeds' values."""
    return f"{sum(values) / len(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def against(one: Cell, other: Cell) -> list[str]:
    """CHAIR, Cover and F of one minus the other's."""
    return [difference(minus(one["test"][name], other["test"][name])) for name in CHANGED]


class Measured:
    """The cells, found by what they are."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.settings, self.bases, self.pairs = results["settings"], results["bases"], results["pairs"]
        self.cells: Sequence[Cell] = results["cells"]

    def cell(self, method: str, base: str = "robust", pairs: str = "truth", beta: float | None = None) -> Cell | None:
        """None where it was not run yet."""
        wanted = (method, base, pairs, self.settings["beta"] if beta is None else beta)
        found = [of for of in self.cells if (of["method"], of["base"], of["pairs"], of["beta"]) == wanted]
        return found[0] if found else None

    def methods(self, base: str) -> dict[str, Cell]:
        """Those trained on pairs from truth at the paper's beta, in the order of the protocol."""
        s = self.settings
        found = {name: self.cell(name, base) for name in (*s["references"], *s["variants"], *s["plain"])}
        return {name: of for name, of in found.items() if of is not None}


def title(of: Cell, beta: float) -> str:
    """A cell's name in tables: what differs from a method on pairs from truth at the paper's beta."""
    name = of["method"] if of["pairs"] == "truth" else f"{of['method']}, own pairs"
    return name if of["beta"] == beta else f"{name}, beta {of['beta']:g}"


def questions(rows: Sequence[tuple[list[str], float | None]]) -> list[list[str]]:
    """Rows with p and Holm's; a row without a p asks nothing, one whose p is 1 because it was not run is not shown."""
    adjusted = iter(holm([p for _, p in rows if p is not None]))
    shown = []
    for cells, p in rows:
        tail = ["", ""] if p is None else [f"{p:.3f}", f"{next(adjusted):.3f}"]
        if cells:
            shown.append([*cells, *tail])
    return shown


def variants(of: Measured) -> str:
    """Each variant on each kind of base against the references."""
    rows: list[tuple[list[str], float | None]] = []
    for base in of.settings["bases"]:
        methods = of.methods(base)
        references = {name: methods[name] for name in of.settings["references"] if name in methods}
        complete = len(references) == len(of.settings["references"])
        for name in (*of.settings["variants"], *of.settings["plain"]):
            asked = name in of.settings["variants"]
            if complete and name in methods:
                f = [difference(minus(methods[name]["test"]["f"], one["test"]["f"])) for one in references.values()]
                p = question_p(methods[name], [*references.values()]) if asked else None
                rows.append(([base, name, *f], p))
            elif asked:
                rows.append(([], 1.0))
    return table(
        ["bases", "", *(f"F minus {name}" for name in of.settings["references"]), "p", "p by Holm"], questions(rows)
    )


def own_pairs(of: Measured) -> str:
    """Own pairs minus pairs from truth."""
    rows: list[tuple[list[str], float | None]] = []
    for base in of.settings["bases"]:
        for method in of.settings["own pairs"]:
            own, truth = of.cell(method, base, "own"), of.cell(method, base)
            if own and truth:
                p = spread(minus(own["test"]["f"], truth["test"]["f"])).p
                rows.append(([base, method, *against(own, truth)], p))
            else:
                rows.append(([], 1.0))
    return table(["bases", "", *HEAD, "p of F", "p by Holm"], questions(rows))


def betas(of: Measured) -> str:
    """Each other beta minus the paper's; the method without images beside it asks no question."""
    rows: list[tuple[list[str], float | None]] = []
    comparison = of.cell("dpo+anchor")
    for method in of.settings["other betas"]:
        for beta in of.settings["betas"]:
            other, paper = of.cell(method, beta=beta), of.cell(method)
            asks = method != "dpo+anchor"
            if other and paper and comparison:
                p = spread(minus(other["test"]["f"], paper["test"]["f"])).p if asks else None
                f = difference(minus(other["test"]["f"], comparison["test"]["f"]))
                rows.append(([method, f"{beta:g}", *against(other, paper), f], p))
            elif asks:
                rows.append(([], 1.0))
    head = [f"{name} minus beta {of.settings['beta']:g}'s" for name in HEAD]
    return table(["", "beta", *head, "F minus dpo+anchor", "p of F", "p by Holm"], questions(rows))


def sections(of: Measured) -> Iterator[tuple[str, str]]:
    """All tables, with their titles."""
    beta = of.settings["beta"]
    yield "Is a variant's F above that of all references?", variants(of)
    yield "Own pairs minus pairs from truth", own_pairs(of)
    yield f"Other betas minus {beta:g}, robust bases", betas(of)
    for base in of.settings["bases"]:
        methods = of.methods(base)
        for reference in (*of.settings["references"], *of.settings["plain"]):
            if reference in methods:
                rows = [[name, *against(one, methods[reference])] for name, one in methods.items() if name != reference]
                yield f"Minus {reference}, {base} bases", table(["", *HEAD], rows)
    for base in of.settings["bases"]:
        start = {"test": of.bases[base]}
        cells = [one for one in of.cells if one["base"] == base]
        rows = [[title(one, beta), *against(one, start)] for one in cells]
        yield f"What training changed, {base} bases", table(["", *HEAD], rows)
        rows = [["base", "", "", "", "", *(by_seed(of.bases[base][name]) for name in CHANGED)]]
        rows += [
            [
                title(one, beta),
                f"{one['learning_rate']:g}" if one["step"] else "",
                str(one["step"]),
                str(len(one["tried"])),
                on_edge(one),
                *(by_seed(one["test"][name]) for name in CHANGED),
            ]
            for one in cells
        ]
        head = ["", "lr", "step", "settings tried", "on their edge", *HEAD]
        yield f"Test scenes, {base} bases", table(head, rows)
        probed = {title(one, beta): one["awareness"] for one in cells if "awareness" in one}
        if probed:
            yield f"Awareness, {base} bases: change of the log-ratio in nats", awareness_table(probed)
    scenes, most = of.settings["training scenes"], of.settings["pairs"]
    rows = [[base, kind, *map(str, counts)] for base, kinds in of.pairs.items() for kind, counts in kinds.items()]
    yield (
        f"Pairs that {scenes} scenes gave, by seed; of both kinds as many are taken, at most {most}",
        table(["bases", "pairs", *map(str, of.settings["seeds"])], rows),
    )


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    return "\n\n".join(f"## {name}\n\n{of}" for name, of in sections(Measured(results))) + "\n"


def figure(file: Path, results: Mapping[str, Any]) -> None:
    """CHAIR, Cover and F of every method minus those of DPO + anchor, one panel each, both kinds of bases."""
    of = Measured(results)
    names = [name for name in of.methods("robust") if name != "dpo+anchor"]
    titles = {"chair": "CHAIR (lower is better)", "cover": "Cover (higher is better)", "f": "F (higher is better)"}
    bases = dict(zip(of.settings["bases"], (LIGHT.lines[0], LIGHT.lines[1]), strict=True))
    with chart(file, across=3, size=(4.0, 0.9 + 0.42 * len(names))) as axes:
        for axis, column in zip(axes, CHANGED, strict=True):
            for shift, (base, colour) in zip((-0.14, 0.14), bases.items(), strict=True):
                methods = of.methods(base)
                shown = [(place, name) for place, name in enumerate(names) if name in methods]
                if "dpo+anchor" not in methods or not shown:
                    continue
                values = [
                    spread(minus(methods[name]["test"][column], methods["dpo+anchor"]["test"][column]))
                    for _, name in shown
                ]
                axis.errorbar(
                    [one.mean for one in values], [place + shift for place, _ in shown],
                    xerr=[one.high - one.mean for one in values],
                    fmt="o", markersize=5, linewidth=1.4, color=colour, label=f"{base} bases",
                )  # fmt: skip
            axis.axvline(0, color=LIGHT.ink, linewidth=0.8)
            axis.set_title(titles[column])
            axis.set_xlabel("points minus DPO + anchor's")
            axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
            axis.set_ylim(max(1, len(names)) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
        if axes[2].containers:
            axes[2].legend(loc="lower left")


def report(folder: Path) -> None:
    """Write tables and figure beside their numbers."""
    results = read_json(folder / "image_terms.json")
    write_atomic(folder / "image_terms_tables.md", LEGEND + markdown(results))
    figure(folder / "image_terms.png", results)


if __name__ == "__main__":
    run_program(lambda: report(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "evidence")))
