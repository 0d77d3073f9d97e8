"""Tables and figures from ``results.json``, in which ``objectives.py`` keeps what it measured, seed by seed.

python benchmarks/objectives_report.py [FOLDER, docs/evidence by default]
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing

from listwise_preference.cli import run_program  # noqa: E402
from listwise_preference.files import read_json, write_atomic  # noqa: E402
from listwise_preference.pages.charts import LIGHT, chart  # noqa: E402

DROPS = (2, 4)  # points of CHAIR below the base at which the methods' Cover is compared
AGAINST = ("dpo+anchor", "mdpo", "lpoi-5")
CHANGED = ("chair", "cover", "f")
HEADINGS = {"chair": "CHAIR", "cover": "Cover", "f": "F", "hal": "Hal", "cog": "Cog"}
CONDITIONS = ("hidden", "background", "blur", "mean", "black", "removed")
TITLES = {
    "naive": "Naive bases, at the learning rates and steps chosen on robust ones (three seeds)",
    "distractor": "With a distractor: another image, an equal box masked where nothing is (three seeds)",
    "natural pairs": "Natural pairs: whatever the base hallucinated, not matched in length (three seeds)",
    "beta": "Other betas, at the learning rate and step chosen for 0.1 (three seeds)",
    "other pairs": "Pairs from other scenes (three seeds)",
}
LEGEND = """Made by `python benchmarks/objectives.py`. CHAIR, Cover, Hal, Cog and yes/no scores in per cent by
`score.py amber`'s rules; F is the harmonic mean of 100 - CHAIR and Cover. In brackets 95 % intervals of Student's t
over seeds: five, or three where it says so; those of percentages are cut off at 0 and 100. lr and step were chosen by
F on validation scenes of seeds 0 and 1. p values are of single paired t tests, not corrected for their number.

"""
# Methods that are shown together, and the colour of each in every figure.
OBJECTIVES = ("dpo", "dpo+anchor", "mdpo", "lpoi-3", "lpoi-5", "lpoi-5 /(L-1)")
MASKS = ("mdpo", "lpoi-5", "lpoi-5 no ellipse", "lpoi-5 mean", "lpoi-5 blur", "lpoi-5 /(L-1)", "lpoi-5 /(L-1) mean")
NAIVE = (*AGAINST, "lpoi-5 /(L-1)", "lpoi-5 mean", "lpoi-5 /(L-1) mean", "lpoi-5 /(L-1) distractor")
_BLUE, _ORANGE, _GREEN, _PURPLE, _TEAL, _MAGENTA, _OLIVE, _BROWN = LIGHT.lines
COLOURS = {
    "dpo": LIGHT.quiet,
    "dpo+anchor": _ORANGE,
    "mdpo": _GREEN,
    "lpoi-3": _OLIVE,
    "lpoi-5": _BLUE,
    "lpoi-5 no ellipse": _OLIVE,
    "lpoi-5 mean": _MAGENTA,
    "lpoi-5 blur": _BROWN,
    "lpoi-5 /(L-1)": _PURPLE,
    "lpoi-5 /(L-1) mean": _TEAL,
    "lpoi-5 /(L-1) distractor": _BROWN,
}

# What one method gave on some seeds: learning_rate, step, seeds; "at step": values of each percentage, one a seed;
# "curve": the same of CHAIR, Cover and F at every checkpoint, the base's first.
Method = Mapping[str, Any]
Values = Sequence[float]


# ---- statistics ----


def t_upper(df: int, t: float) -> float:
    """P(T > t) of Student's t, t >= 0: with t = sqrt(df) tan(a) the integral of cos(a)^(df - 1), by Simpson's rule."""
    angles = np.linspace(math.atan(t / math.sqrt(df)), math.pi / 2, 2001)
    weights = np.where(np.arange(2001) % 2, 4.0, 2.0)
    weights[0] = weights[-1] = 1
    constant = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    return constant * float((weights * np.cos(angles) ** (df - 1)).sum()) * (angles[1] - angles[0]) / 3


def t_quantile(df: int, upper: float = 0.025) -> float:
    """The t with P(T > t) = upper."""
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_upper(df, middle) > upper else (low, middle)
    return low


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, its 95 % interval by Student's t, and the two-sided p of a mean of 0."""

    mean: float
    low: float
    high: float
    p: float


def spread(values: Values) -> Spread:
    """Of two values or more."""
    array = np.array(values, dtype=float)
    mean, error = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(len(array))
    half = t_quantile(len(array) - 1) * error
    p = 2 * t_upper(len(array) - 1, abs(mean) / error) if error else float(mean == 0)
    return Spread(mean, mean - half, mean + half, p)


def minus(one: Values, other: Values) -> list[float]:
    """The differences, seed by seed."""
    return [a - b for a, b in zip(one, other, strict=True)]


def cover_after(chair: Values, cover: Values, drop: float) -> float | None:
    """Cover, minus the base's, where training first has CHAIR this much below the base's, linearly between checkpoints.

    Args:
        chair, cover: of one seed at every checkpoint, the base's first.

    Returns:
        None where CHAIR never falls so far.
    """
    wanted = chair[0] - drop
    for (chair_1, cover_1), (chair_2, cover_2) in pairwise(zip(chair, cover, strict=True)):
        if chair_1 > wanted >= chair_2:
            return cover_1 + (chair_1 - wanted) / (chair_1 - chair_2) * (cover_2 - cover_1) - cover[0]
    return None


def covers_after(method: Method, drop: float) -> list[float | None]:
    """The same of every seed of a method."""
    chairs, covers = (zip(*(point[name] for point in method["curve"]), strict=True) for name in ("chair", "cover"))
    return [cover_after(chair, cover, drop) for chair, cover in zip(chairs, covers, strict=True)]


def changes(method: Method) -> dict[str, list[float]]:
    """What training changed at the method's step, seed by seed."""
    return {name: minus(method["at step"][name], method["curve"][0][name]) for name in CHANGED}


def of_first_seeds(method: Method, count: int) -> Method:
    """A method as if only its first seeds had been run."""
    return {
        **method,
        "seeds": method["seeds"][:count],
        "at step": {name: values[:count] for name, values in method["at step"].items()},
        "curve": [{"step": point["step"], **{of: point[of][:count] for of in CHANGED}} for point in method["curve"]],
    }


# ---- tables ----


def percentage(values: Values) -> str:
    """``12.3 [11.0, 13.6]``, the interval within 0 and 100."""
    of = spread(values)
    return f"{of.mean:.1f} [{max(0.0, of.low):.1f}, {min(100.0, of.high):.1f}]"


def difference(values: Values) -> str:
    """``+1.3 [-0.2, +2.8]``."""
    of = spread(values)
    return f"{of.mean:+.1f} [{of.low:+.1f}, {of.high:+.1f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def methods_table(methods: Mapping[str, Method], bases: Mapping[str, Mapping[str, Values]] | None = None) -> str:
    """The percentages of bases and methods."""
    columns = list(next(iter(methods.values()))["at step"])
    rows = [[f"base, {name}", "", "", *map(percentage, of.values())] for name, of in (bases or {}).items()]
    rows += [
        [name, f"{of['learning_rate']:g}", str(of["step"]), *(percentage(of["at step"][column]) for column in columns)]
        for name, of in methods.items()
    ]
    return table(["", "lr", "step", *(HEADINGS.get(name, name) for name in columns)], rows)


def changes_table(methods: Mapping[str, Mapping[str, Values]]) -> str:
    """Differences of CHAIR, Cover and F, and the p of F's."""
    rows = [
        [name, *(difference(of[column]) for column in CHANGED), f"{spread(of['f']).p:.3f}"]
        for name, of in methods.items()
    ]
    return table(["", *(HEADINGS[name] for name in CHANGED), "p of F"], rows)


def paired_table(methods: Mapping[str, Method], against: str) -> str:
    """Each method minus one of them, seed by seed."""
    rows = []
    for name, of in methods.items():
        if name != against:
            found = {column: minus(of["at step"][column], methods[against]["at step"][column]) for column in CHANGED}
            after = []
            for drop in DROPS:
                both = zip(covers_after(of, drop), covers_after(methods[against], drop), strict=True)
                after.append([a - b for a, b in both if a is not None and b is not None])
            texts = [
                "-" if len(known) < 3 else difference(known) + _few(known, of["seeds"], ", {} seeds") for known in after
            ]
            rows.append([name, *map(difference, found.values()), *texts, f"{spread(found['f']).p:.3f}"])
    head = [*(HEADINGS[name] for name in CHANGED), *(f"Cover, CHAIR {drop} lower" for drop in DROPS), "p of F"]
    return table(["", *head], rows)


def _few(known: Sequence[Any], seeds: Sequence[int], text: str) -> str:
    return "" if len(known) == len(seeds) else text.format(len(known))


def drops_table(methods: Mapping[str, Method]) -> str:
    """Mean and interval where at least three seeds got there, and how many did."""

    def reached(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{difference(known) if len(known) > 2 else '-'} ({len(known)} of {len(values)})"

    rows = [[name, *(reached(covers_after(of, drop)) for drop in DROPS)] for name, of in methods.items()]
    return table(["", *(f"{drop} points" for drop in DROPS)], rows)


def awareness_table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The change of the log-ratio under each condition, and the artefact ratios."""
    rows = [
        [
            name,
            *(difference(of[condition]) if condition in of else "-" for condition in CONDITIONS),
            ", ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in of.get("background / hidden", ())),
        ]
        for name, of in methods.items()
    ]
    return table(["", "masked", *CONDITIONS[1:], "background / masked, by seed"], rows)


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    methods, naive = results["methods"], results["variations"]["naive"]
    few = len(results["settings"]["seeds of the variations"])
    first = {name: of_first_seeds(of, few) for name, of in methods.items()}
    both = [(name, changes(naive[name]), changes(first[name])) for name in naive if name in first]
    parts = {
        "Methods, robust bases, test scenes": methods_table(methods, results["bases"]),
        "What training changed, seed by seed": changes_table({name: changes(of) for name, of in methods.items()}),
        "The change on naive bases minus that on robust ones (three seeds)": changes_table(
            {name: {of: minus(one[of], other[of]) for of in CHANGED} for name, one, other in both}
        ),
        "Change of Cover where training first has CHAIR so many points below the base, and how many seeds get there":
            drops_table(methods),
        **{f"Minus {against}, seed by seed": paired_table(methods, against) for against in AGAINST},
        **{f"Naive bases, minus {one}, seed by seed": paired_table(naive, one) for one in ("mdpo", "lpoi-5")},
        **{title: methods_table(results["variations"][name]) for name, title in TITLES.items()},
        "For comparison: robust bases, matched pairs, the same seeds as the variations": methods_table(first),
    }  # fmt: skip
    for base, of in results["probes"].items():
        title = f"Awareness, {base} bases: change of the log-ratio in nats (of log p for the base itself)"
        parts[title] = awareness_table(of)
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items()) + "\n"


# ---- figures ----


def frontier(file: Path, groups: Mapping[str, Mapping[str, Method]]) -> None:
    """CHAIR against Cover over training, one panel a group, one curve a method."""
    with chart(file, across=len(groups), size=(6.4, 5.0), shared=True) as axes:
        for axis, (title, methods) in zip(axes, groups.items(), strict=True):
            for name, of in methods.items():
                base, colour = of["curve"][0], COLOURS[name]
                x, y = ([spread(minus(at[key], base[key])) for at in of["curve"]] for key in ("chair", "cover"))
                axis.plot([at.mean for at in x], [at.mean for at in y], "-o", markersize=3, color=colour, label=name)
                at_x, at_y = next((x[n], y[n]) for n, at in enumerate(of["curve"]) if at["step"] == of["step"])
                axis.errorbar(
                    at_x.mean, at_y.mean, xerr=at_x.high - at_x.mean, yerr=at_y.high - at_y.mean,
                    color=colour, marker="D", markersize=6, linewidth=1,
                )  # fmt: skip
            axis.set_title(title)
            note = "Over training, from the base at 0, 0; diamonds: the chosen step, with 95 % intervals over seeds"
            axis.set_xlabel(f"CHAIR minus the base's (lower is better)\n\n{note}")
            axis.set_ylabel("Cover minus the base's (higher is better)")
            axis.legend()


def awareness(file: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """The change of the log-ratio by condition, one panel for each sort of base."""
    conditions = [name for name in CONDITIONS if name != "black"]
    with chart(file, across=len(results), size=(6.8, 4.4), shared=True) as axes:
        for axis, (base, methods) in zip(axes, results.items(), strict=True):
            for place, name in enumerate(NAIVE):
                # Where a condition is the method's own way to mask, it is the first one.
                measured = {at: spread(methods[name][of]) for at, of in enumerate(conditions) if of in methods[name]}
                axis.bar(
                    [at + 0.8 * ((place + 0.5) / len(NAIVE) - 0.5) for at in measured],
                    [of.mean for of in measured.values()],
                    yerr=[of.high - of.mean for of in measured.values()],
                    width=0.8 / len(NAIVE),
                    label=name,
                    color=COLOURS[name],
                    error_kw={"linewidth": 0.8, "ecolor": LIGHT.ink, "capsize": 0},
                )
            axis.axhline(0, color=LIGHT.ink, linewidth=0.8)
            axis.set_xticks(range(len(conditions)), ["masked", *conditions[1:]])
            axis.grid(axis="x", visible=False)
            axis.set_title(f"{base} bases")
            axis.set_ylabel("change of the chosen response's log-ratio, nats")
            axis.legend(loc="lower right")


def report(folder: Path) -> None:
    """Write tables.md and the figures beside results.json."""
    results = read_json(folder / "results.json")
    methods, naive = results["methods"], results["variations"]["naive"]
    write_atomic(folder / "tables.md", LEGEND + markdown(results))
    groups = {"Objectives": OBJECTIVES, "Ways to mask": MASKS}
    frontier(folder / "frontier.png", {title: {name: methods[name] for name in of} for title, of in groups.items()})
    robust = {name: of_first_seeds(methods[name], 3) for name in NAIVE if name in methods}
    frontier(
        folder / "naive.png",
        {"Robust bases (three seeds)": robust, "Naive bases, which never saw a masked image (three seeds)": naive},
    )
    awareness(folder / "awareness.png", results["probes"])
    print(f"wrote {folder}/tables.md, frontier.png, naive.png and awareness.png")


if __name__ == "__main__":
    run_program(lambda: report(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "evidence")))
