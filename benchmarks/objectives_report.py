"""From the results of ``objectives.py`` to tables, figures and one JSON file; called by it at the end."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from objectives import (
    DISTRACTOR,
    FEW,
    FEW_SEEDS,
    LEARNING_RATES,
    METHODS,
    RECIPES,
    SEEDS,
    SETTINGS,
    Bench,
    Run,
    choose,
    choose_step,
    final_runs,
    grid,
    summary,
    variations,
)

from listwise_preference.files import write_atomic
from listwise_preference.scoring.amber import metrics_of_sums

DROPS = (2.0, 4.0)  # points of CHAIR below the base at which the methods' Cover is compared
AGAINST = ("dpo+anchor", "mdpo", "lpoi-5")


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


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, 95 % interval by Student's t, two-sided p of a mean of 0, and the values, one a seed."""
    array = np.array(values, dtype=float)
    result: dict[str, Any] = {"mean": float(array.mean()), "values": [float(value) for value in array]}
    if len(array) > 1:
        error = float(array.std(ddof=1)) / math.sqrt(len(array))
        half = t_quantile(len(array) - 1) * error
        result |= {"low": result["mean"] - half, "high": result["mean"] + half}
        result["p"] = 2 * t_upper(len(array) - 1, abs(result["mean"]) / error) if error else float(result["mean"] == 0)
    return result


def cover_after(curve: Sequence[Mapping[str, float]], drop: float) -> float | None:
    """Cover, minus the base's, where training first has CHAIR this much below the base's, linearly between checkpoints.

    None where it never has.
    """
    points = [summary(point) for point in curve]
    chair = points[0]["chair"] - drop
    for before, after in pairwise(points):
        if before["chair"] > chair >= after["chair"]:
            share = (before["chair"] - chair) / (before["chair"] - after["chair"])
            return before["cover"] + share * (after["cover"] - before["cover"]) - points[0]["cover"]
    return None


def at_step(curve: Sequence[Mapping[str, float]], step: int, yes_no: Mapping[str, float]) -> dict[str, float]:
    """All percentages of one checkpoint, the yes/no ones from their own counters."""
    counters = next(point for point in curve if point["step"] == step)
    official = metrics_of_sums({**counters, **yes_no})
    return summary(counters) | {
        "hal": official["generative"]["hal"],
        "cog": official["generative"]["cog"],
        "yes/no accuracy": official["existence"]["accuracy"],
        "yes/no F1": official["existence"]["f1"],
    }


def of_runs(bench: Bench, runs: Sequence[Run]) -> dict[str, Any]:
    """One method on several seeds: every percentage at its step, Cover at equal gains, and the whole curve."""
    curves = [bench.scores(run, "test") for run in runs]
    step = choose_step(bench, runs[0])
    points = [at_step(curve, step, bench.yes_no(run, step)) for run, curve in zip(runs, curves, strict=True)]
    result: dict[str, Any] = {
        "learning_rate": runs[0].learning_rate,
        "step": step,
        "seeds": [run.seed for run in runs],
        "at step": {name: spread([point[name] for point in points]) for name in points[0]},
        "curve": [
            {"step": int(same[0]["step"])}
            | {name: spread([summary(point)[name] for point in same]) for name in ("chair", "cover", "f")}
            for same in zip(*curves, strict=True)
        ],
    }
    for drop in DROPS:
        result[after(drop)] = [cover_after(curve, drop) for curve in curves]
    return result


def paired(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """One method minus another, seed by seed."""
    result: dict[str, Any] = {}
    for name in ("chair", "cover", "f"):
        mine, theirs = one["at step"][name]["values"], other["at step"][name]["values"]
        result[name] = spread([a - b for a, b in zip(mine, theirs, strict=True)])
    for name in map(after, DROPS):
        both = [a - b for a, b in zip(one[name], other[name], strict=True) if a is not None and b is not None]
        result[name] = spread(both) if len(both) > 2 else None
    return result


def change(bench: Bench, runs: Sequence[Run]) -> dict[str, Any]:
    """What training changed, seed by seed."""
    curves = [bench.scores(run, "test") for run in runs]
    step = choose_step(bench, runs[0])
    pairs = [(summary(curve[0]), summary(next(point for point in curve if point["step"] == step))) for curve in curves]
    return {name: spread([last[name] - first[name] for first, last in pairs]) for name in ("chair", "cover", "f")}


def validation(bench: Bench, method: str) -> list[dict[str, Any]]:
    """What the choice was made from: mean F of each learning rate and step over the choice seeds."""
    runs = [(run.learning_rate, bench.scores(run, "validation")[1:]) for run in grid(method)]
    return [
        {"learning_rate": rate, "step": point["step"], "f": [summary(same)["f"] for same in points]}
        for rate in LEARNING_RATES
        for points in zip(*(curve for of, curve in runs if of == rate), strict=True)
        for point in points[:1]
    ]


def collect(bench: Bench) -> dict[str, Any]:
    """Everything that is reported."""
    methods = {method: of_runs(bench, final_runs(bench, [method], SEEDS)) for method in METHODS}
    bases = {}
    for kind, seeds in (("robust", SEEDS), ("naive", FEW_SEEDS)):
        points = [
            at_step([bench.base_scores(kind, seed, "test")], 0, bench.yes_no(Run("dpo", seed, 0.0, base=kind), 0))
            for seed in seeds
        ]
        bases[kind] = {name: spread([point[name] for point in points]) for name in BASE_COLUMNS}
    others: dict[str, Any] = {}
    for name, runs in variations(bench).items():
        kinds = dict.fromkeys((run.method, run.beta) for run in runs)
        others[name] = {
            f"{method}, beta {beta:g}" if name == "beta" else method: of_runs(
                bench, [run for run in runs if (run.method, run.beta) == (method, beta)]
            )
            for method, beta in kinds
        }
    naive = others["naive"]
    first = {method: of_runs(bench, final_runs(bench, [method], FEW_SEEDS)) for method in METHODS}
    return {
        "settings": SETTINGS,
        "validation": {method: validation(bench, method) for method in METHODS},
        "bases": bases,
        "methods": methods,
        "change from the base": {method: change(bench, final_runs(bench, [method], SEEDS)) for method in METHODS},
        "paired": {
            against: {method: paired(one, methods[against]) for method, one in methods.items() if method != against}
            for against in AGAINST
        },
        "paired, naive": {
            against: {method: paired(one, naive[against]) for method, one in naive.items() if method != against}
            for against in ("mdpo", "lpoi-5")
        },
        "robust base, first seeds": first,
        "variations": others,
        "probes": probes(bench),
    }  # fmt: skip


def probes(bench: Bench) -> dict[str, Any]:
    """The change of the log-ratio under each condition, and the artefact ratio, a spread over seeds each."""
    runs = {("robust", method): final_runs(bench, [method], FEW_SEEDS) for method in (*METHODS, DISTRACTOR)}
    runs |= {("naive", method): final_runs(bench, [method], FEW_SEEDS, base="naive") for method in NAIVE}
    result: dict[str, Any] = {"robust": {}, "naive": {}}
    for (base, method), same in runs.items():
        found = [bench.probe(run, choose_step(bench, run)) for run in same]
        changes = [one["changes"]["log_ratio"] for one in found]
        result[base][method] = {name: spread([one[name]["mean"] for one in changes]) for name in changes[0]}
        ratios = [one["artefact"]["log_ratio"]["ratio"] for one in found]
        result[base][method]["background / hidden"] = ratios
        if method == "lpoi-5":  # hidden as in the paper
            reference = [one["changes"]["reference"] for one in found]
            itself = {name: spread([one[name]["mean"] for one in reference]) for name in reference[0]}
            result[base]["the base itself"] = itself
    return result


TITLES = {
    "naive": "Naive bases, at the learning rates and steps chosen on robust ones (three seeds)",
    "distractor": "With a distractor: another image, an equal box hidden where nothing is (three seeds)",
    "natural pairs": "Natural pairs: whatever the base made up, not matched in length (three seeds)",
    "beta": "Other betas, at the learning rate and step chosen for 0.1 (three seeds)",
    "other pairs": "Pairs from other scenes (three seeds)",
}
LEGEND = """Made by `python benchmarks/objectives.py`. CHAIR, Cover, Hal, Cog and yes/no scores in per cent by
`score.py amber`'s rules; F is the harmonic mean of 100 - CHAIR and Cover. In brackets 95 % intervals of Student's t
over seeds: five, or three where it says so. lr and step were chosen by F on validation scenes of seeds 0 and 1.
p values are of single paired t tests, not corrected for their number.

"""
NAIVE = (*FEW, "lpoi-5 mean", "lpoi-5 /(L-1) mean", DISTRACTOR)
BASE_COLUMNS = ("chair", "cover", "f", "hal", "cog", "yes/no accuracy", "yes/no F1")


# ---- tables ----


def interval(value: Mapping[str, Any] | None, signed: bool = False) -> str:
    """``12.3 [11.0, 13.6]``."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{value['mean']:{sign}.1f} [{value['low']:{sign}.1f}, {value['high']:{sign}.1f}]"
    return text if len(value["values"]) in (len(SEEDS), len(FEW_SEEDS)) else f"{text}, {len(value['values'])} seeds"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def after(drop: float) -> str:
    """A column's name."""
    return f"Cover, CHAIR {drop:g} lower"


def reached(values: Sequence[float | None]) -> str:
    """Mean and interval where at least three seeds got there, and how many did."""
    known = [value for value in values if value is not None]
    count = f"{len(known)} of {len(values)}"
    return f"{interval(spread(known), True)}, {count}" if len(known) > 2 else f"- ({count})"


def paired_table(methods: Mapping[str, Any]) -> str:
    """Differences, and the p of F's."""
    names = ("chair", "cover", "f", *map(after, DROPS))
    rows = [
        [method, *(interval(one[name], True) for name in names), f"{one['f']['p']:.3f}"]
        for method, one in methods.items()
    ]
    return table(["", "CHAIR", "Cover", "F", *names[3:], "p of F"], rows)


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    columns = BASE_COLUMNS
    bases = [
        [f"base, {kind}", "", "", *(interval(of[name]) for name in columns)] for kind, of in results["bases"].items()
    ]

    def rows(methods: Mapping[str, Any]) -> list[list[str]]:
        return [
            [
                name,
                f"{one['learning_rate']:g}",
                str(one["step"]),
                *(interval(one["at step"][column]) for column in columns),
            ]
            for name, one in methods.items()
        ]

    head = ["", "lr", "step", "CHAIR", "Cover", "F", "Hal", "Cog", "yes/no accuracy", "yes/no F1"]
    parts = ["## Methods, robust bases, test scenes", table(head, [*bases, *rows(results["methods"])])]
    changes = results["change from the base"]
    parts += [
        "## What training changed, seed by seed",
        table(
            ["", "CHAIR", "Cover", "F", "p of F"],
            [
                [name, *(interval(one[column], True) for column in ("chair", "cover", "f")), f"{one['f']['p']:.3f}"]
                for name, one in changes.items()
            ],
        ),
    ]
    parts += [
        "## Change of Cover where training first has CHAIR so many points below the base, and how many seeds get there",
        table(
            ["", *(f"{drop:g} points" for drop in DROPS)],
            [[name, *(reached(one[after(drop)]) for drop in DROPS)] for name, one in results["methods"].items()],
        ),
    ]
    for against, methods in results["paired"].items():
        parts += [f"## Minus {against}, seed by seed", paired_table(methods)]
    for against, methods in results["paired, naive"].items():
        parts += [f"## Naive bases, minus {against}, seed by seed", paired_table(methods)]
    for name, methods in results["variations"].items():
        parts += [f"## {TITLES[name]}", table(head, rows(methods))]
    parts += [
        "## For comparison: robust bases, matched pairs, the same seeds as the variations",
        table(head, rows(results["robust base, first seeds"])),
    ]
    for base, methods in results["probes"].items():
        conditions = ("hidden", "background", "blur", "mean", "black", "removed")
        parts += [
            f"## Awareness, {base} bases: change of the log-ratio in nats (of log p for the base itself)",
            table(
                ["", *conditions, "background / hidden, by seed"],
                [
                    [
                        name,
                        *(interval(one.get(condition), True) for condition in conditions),
                        ", ".join(
                            "-" if ratio is None else f"{ratio:.2f}" for ratio in one.get("background / hidden", ())
                        ),
                    ]
                    for name, one in methods.items()
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


# ---- figures ----


def frontier(file: Path, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """CHAIR against Cover over training, one panel a group, one curve a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(groups), figsize=(7 * len(groups), 6), sharex=True, sharey=True, squeeze=False)
    for axis, (title, methods) in zip(axes[0], groups.items(), strict=True):
        for name, one in methods.items():
            colour = plt.get_cmap("tab20")([*RECIPES].index(name))
            x, y = ([_minus(point[key], one["curve"][0][key]) for point in one["curve"]] for key in ("chair", "cover"))
            axis.plot([at["mean"] for at in x], [at["mean"] for at in y], "-o", markersize=3, color=colour, label=name)
            at_x, at_y = next((x[n], y[n]) for n, point in enumerate(one["curve"]) if point["step"] == one["step"])
            axis.errorbar(
                at_x["mean"], at_y["mean"], xerr=at_x["high"] - at_x["mean"], yerr=at_y["high"] - at_y["mean"],
                color=colour, marker="D", markersize=6, capsize=2, linewidth=1,
            )  # fmt: skip
        axis.set(
            title=title,
            xlabel="CHAIR minus the base's (lower is better)",
            ylabel="Cover minus the base's (higher is better)",
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(
        "Over training, the base at 0, 0. Diamonds: the step chosen on validation scenes, 95 % intervals over seeds"
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _minus(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The spread of the difference, seed by seed."""
    return spread([a - b for a, b in zip(one["values"], other["values"], strict=True)])


def awareness(file: Path, results: Mapping[str, Any]) -> None:
    """The change of the log-ratio by condition, one panel for each sort of base."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    conditions = ("hidden", "background", "blur", "mean", "removed")
    figure, axes = plt.subplots(1, 2, figsize=(15, 5.5), sharey=True, squeeze=False)
    for axis, (base, methods) in zip(axes[0], results.items(), strict=True):
        shown = [name for name in NAIVE if name in methods]
        for place, name in enumerate(shown):
            values = [methods[name].get(condition) for condition in conditions]
            measured = [at for at, value in enumerate(values) if value]  # its own way to hide is "hidden"
            x = np.array(measured) + 0.8 * (place / len(shown) - 0.5)
            axis.bar(
                x,
                [values[at]["mean"] for at in measured],
                yerr=[values[at]["high"] - values[at]["mean"] for at in measured],
                width=0.8 / len(shown),
                label=name,
                color=plt.get_cmap("tab20")([*RECIPES].index(name)),
                error_kw={"linewidth": 0.8},
            )
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(np.arange(len(conditions)), conditions)
        axis.set(title=f"{base} bases", ylabel="change of the chosen answer's log-ratio, nats")
        axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def report(bench: Bench, output: Path) -> None:
    """Write results.json, tables.md and the figures."""
    output.mkdir(parents=True, exist_ok=True)
    results = collect(bench)
    results["choices"] = {method: asdict(choose(bench, method)) for method in METHODS}
    write_atomic(output / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomic(output / "tables.md", LEGEND + markdown(results))
    methods = results["methods"]
    plain = ("dpo", "dpo+anchor", "mdpo", "lpoi-3", "lpoi-5", "lpoi-5 /(L-1)")
    ways = ("mdpo", "lpoi-5", "lpoi-5 no ellipse", "lpoi-5 mean", "lpoi-5 blur", "lpoi-5 /(L-1)", "lpoi-5 /(L-1) mean")
    frontier(
        output / "frontier.png",
        {"Objectives": {name: methods[name] for name in plain}, "Ways to hide": {name: methods[name] for name in ways}},
    )
    frontier(
        output / "naive.png",
        {
            "Robust bases (three seeds)": {
                name: results["robust base, first seeds"][name] for name in NAIVE if name in METHODS
            },
            "Naive bases: nothing ever stood before anything": results["variations"]["naive"],
        },
    )
    awareness(output / "awareness.png", results["probes"])
    print(f"wrote {output}/results.json, tables.md, frontier.png, naive.png and awareness.png")
