"""The demo's page: scenes, pairs, lists, training, ranking and responses of one run, made from its files.

``start`` makes the folder with a page that says it is not finished, ``finish`` draws the charts and writes the data.
The page opens from disk, without a server or network; its images are those of the run's folders beside it.
"""

import base64
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.files import read_json, read_records
from listwise_preference.pages.charts import DARK, LIGHT, Series, chart, lines
from listwise_preference.pages.page import Page
from listwise_preference.scoring import amber_rules
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.bootstrap import bootstrap, paired_bootstrap
from listwise_preference.scoring.compare import read_result, run_row
from listwise_preference.scoring.result import read_counts
from listwise_preference.small_world.data import image_name, mentioned
from listwise_preference.small_world.scenes import KINDS, Scene

PAGE = Page(__package__, "demo", "LPOI in a small world", "demo_data.js", "DEMO")
# As many as are shown, always the first ones.
_SCENES, _PAIRS, _LISTS = 16, 6, 6
_RESAMPLES = 1000
_METRICS = {
    "generative.chair": "CHAIR",
    "generative.cover": "Cover",
    "generative.f": "F",
    "generative.hal": "Hal",
    "generative.cog": "Cog",
    "discriminative.accuracy": "yes/no accuracy",
    "discriminative.f1": "yes/no F1",
}
POLICIES = ("base", "trained")
# Charts that ``finish`` draws, each for light and for dark screens.
CHARTS = tuple(f"{name}{screen}.png" for name in ("ranking", "loss") for screen in ("", "-dark"))


@dataclass
class Step:
    """One step of the demo: its name on the page, its commands, its messages, its time."""

    name: str
    title: str
    commands: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def say(self, *lines: str) -> None:
        """Add messages."""
        self.messages += lines


@dataclass(frozen=True)
class Run:
    """What the files of a run do not hold."""

    model: str
    architecture: str
    parameters: int
    training: Sequence[Scene]
    unseen: Sequence[Scene]
    responses: int
    drawing: Drawing
    list_weight: float
    steps: Sequence[Step]
    on_8b: str


def finish(folder: Path, run: Run) -> Path:
    """Draw the charts, write the data and return the page's ``index.html``."""
    history = _history(folder)
    records = read_records(folder / "ranking" / "eval_records.jsonl")
    shares = [100 * level / (run.drawing.list_size - 1) for level in range(run.drawing.list_size)]
    figures = {
        "ranking": ([_ranking(records, shares, change=False), _ranking(records, shares, change=True)]),
        "loss": _losses(history),
    }
    trained_on = read_json(folder / "adapter" / "run.json")
    settings = trained_on["arguments"]["training"]
    content = {
        "model": run.model,
        "architecture": run.architecture,
        "parameters": run.parameters,
        "counts": {
            "training": len(run.training),
            "unseen": len(run.unseen),
            "pairs": len(_training_pairs(folder)),
            "responses": run.responses,
            "lists": trained_on["data"]["training_records"],
            "ranked": len(records),
            "questions": len(read_json(folder / "answers" / "base.json")) - len(run.unseen),
        },
        "training": {
            "steps": settings["max_steps"],
            "batch": settings["per_device_train_batch_size"],
            "learning_rate": settings["learning_rate"],
            "list_weight": run.list_weight,
            "fill": run.drawing.fill,
            "loss": [history[0]["loss"], history[-1]["loss"]],
        },
        "steps": {step.name: asdict(step) for step in run.steps},
        "table": table(folder),
        "outcome": outcome(table(folder)),
        "figures": {name: _draw(folder, name, panels) for name, panels in figures.items()},
        "scenes": [_scene(number, scene) for number, scene in enumerate(run.training[:_SCENES], start=1)],
        "pairs": [
            {
                "image": f"training/image/{pair['img_path']}",
                "chosen": _marked(pair["chosen"], run.training[pair["id"] - 1]),
                "rejected": _marked(pair["rejected"], run.training[pair["id"] - 1]),
                "reason": pair["reason"],
            }
            for pair in _training_pairs(folder)[:_PAIRS]
        ],
        "lists": _lists(folder, run.drawing),
        "shares": shares,
        "verdicts": verdicts(folder / "lists" / "training.jsonl"),
        "answers": _answers(folder, run.unseen),
        "on_8b": run.on_8b,
    }
    return PAGE.finish(folder, content)


# Messages of the steps


def verdicts(lists: Path) -> dict[str, int]:
    """How many records of an image-lists file have each verdict."""
    return dict(Counter(line["verdict"] for line in read_records(lists)).most_common())


def first_pair_lines(folder: Path) -> list[str]:
    """The chosen and the rejected response of the first pair, and the reason."""
    pair = _training_pairs(folder)[0]
    return [
        f"the first, on {pair['img_path']}:",
        *(f"  {key:8}  {pair[key]}" for key in ("chosen", "rejected", "reason")),
    ]


def first_answer_lines(folder: Path, unseen: Sequence[Scene]) -> list[str]:
    """The objects of an unseen scene and each policy's description; the first scene where they differ, if any."""
    responses = _responses(folder)
    other = [at for at in range(1, len(unseen) + 1) if len({responses[name][at] for name in POLICIES}) > 1]
    number, which = (other[0], "the first with different descriptions") if other else (1, "all are equal; the first")
    return [
        f"{which}, {image_name(number)}, shows {', '.join(unseen[number - 1].visible)}:",
        *(f"  {name:8}  {responses[name][number]}" for name in POLICIES),
    ]


def first_and_last_loss(folder: Path) -> tuple[float, float]:
    """Of the training."""
    history = _history(folder)
    return history[0]["loss"], history[-1]["loss"]


def table(folder: Path) -> list[dict[str, Any]]:
    """Base and trained by metric, with 95 % intervals, and the change with that of the same images drawn together."""
    better = {column.key: column.better for column in BENCHMARKS["amber"].columns} | {"generative.f": "higher"}
    numbers, intervals, counts = {}, {}, []
    for name in POLICIES:
        file = folder / "scores" / f"{name}.json"
        row, images = run_row(name, read_result(file)), read_counts(file)
        assert images is not None  # score.py writes them beside the scores
        counts.append(images)
        sums: Counter[str] = Counter()
        for of_image in images.values():
            sums.update(of_image)
        f = float(_metrics(sums)["generative"]["f"])
        # None would be a metric without a response; every scene is described, and every question answered.
        numbers[name] = {key: value for key, value in row.values.items() if value is not None} | {"generative.f": f}
        own = bootstrap(list(images.values()), _metrics, _RESAMPLES, 0)["intervals"]
        intervals[name] = {**row.intervals, "generative.f": own["generative.f"]}
    changes = paired_bootstrap(counts[0], counts[1], _metrics, _RESAMPLES, 0)
    return [
        {
            "metric": metric,
            "better": better[key],
            **{name: _cell(numbers[name][key], intervals[name][key]) for name in POLICIES},
            "change": _cell(numbers["trained"][key] - numbers["base"][key], changes[key], sign="+"),
        }
        for key, metric in _METRICS.items()
    ]


def _metrics(sums: Mapping[str, float]) -> dict[str, Any]:
    """AMBER's, and F, the harmonic mean of 100 - CHAIR and Cover."""
    found = amber_rules.metrics_of_sums(sums)
    of_descriptions = found["generative"]
    precision, cover = 100 - of_descriptions["chair"], of_descriptions["cover"]
    f = 2 * precision * cover / (precision + cover) if precision + cover else 0.0
    return {**found, "generative": {**of_descriptions, "f": f}}


def outcome(rows: Sequence[Mapping[str, Any]]) -> str:
    """What training did to the descriptions of unseen scenes, in a sentence that the intervals allow."""
    changes = {row["metric"]: [float(edge) for edge in row["change"]["interval"]] for row in rows}
    moved = "; ".join(f"{row['metric']} {row['base']['value']} to {row['trained']['value']}" for row in rows[:3])
    if changes["CHAIR"][1] >= 0:
        what = "In this run training did not measurably change how many things the model names that are not there"
    elif changes["Cover"][1] < 0:
        what = "Training traded: the model names fewer things that are not there, and fewer of those that are"
    else:
        what = (
            "Trained on its own mistakes, the model names fewer things that are not there, and about as many that are"
        )
    return f"{what}: {moved}."


def table_lines(folder: Path) -> list[str]:
    """The same as lines of text."""
    arrows = {"lower": "lower is better", "higher": "higher is better"}

    def shown(cell: Mapping[str, Any]) -> str:
        return f"{cell['value']:>5} ({' - '.join(cell['interval'])})"

    def change(cell: Mapping[str, Any]) -> str:
        return f"{cell['value']:>5} ({' to '.join(cell['interval'])})"

    return [f"{'':18}{'base':22}{'trained':22}change"] + [
        f"{row['metric']:16}{shown(row['base']):22}{shown(row['trained']):22}{change(row['change']):24}"
        f"{arrows[row['better']]}"
        for row in table(folder)
    ]


def _cell(value: float, interval: Sequence[float], sign: str = "") -> dict[str, Any]:
    value, *edges = (round(one, 1) + 0.0 for one in (value, *interval))  # no -0.0
    return {"value": f"{value:{sign}.1f}", "interval": [f"{edge:{sign}.1f}" for edge in edges]}


def _training_pairs(folder: Path) -> list[dict[str, Any]]:
    return read_records(folder / "pairs" / "training.jsonl")


# Charts


@dataclass(frozen=True)
class _Panel:
    title: str
    xlabel: str
    lines: Sequence[Series]


def _draw(folder: Path, name: str, panels: Sequence[_Panel]) -> dict[str, Any]:
    for file, palette in ((f"{name}.png", LIGHT), (f"{name}-dark.png", DARK)):
        with chart(folder / file, across=len(panels), palette=palette) as axes:
            for axis, panel in zip(axes, panels, strict=True):
                lines(axis, panel.lines, title=panel.title, xlabel=panel.xlabel)
    numbers = [
        f"{panel.title}, {line.name}: {', '.join(f'{y:.2f}' for _, y in line.points)}"
        for panel in panels
        for line in panel.lines
    ]
    with Image.open(folder / f"{name}.png") as drawn:
        width, height = (side // 2 for side in drawn.size)  # shown at half its size, for dense screens
    return {"name": name, "width": width, "height": height, "text": ". ".join(numbers)}


def _ranking(records: Sequence[Mapping[str, Any]], shares: Sequence[float], *, change: bool) -> _Panel:
    """Means over the records with 95 % intervals (normal approximation); the rejected response is second."""
    series = []
    for name, key in zip(POLICIES, ("reference_logps", "policy_logps"), strict=True):
        chosen = [[record[key][0], *record[key][2:]] for record in records]
        columns = list(zip(*([one - row[0] if change else one for one in row] for row in chosen), strict=True))
        means = [statistics.fmean(column) for column in columns]
        halves = [
            1.96 * statistics.stdev(column) / math.sqrt(len(column)) if len(column) > 1 else 0 for column in columns
        ]
        intervals = [(mean - half, mean + half) for mean, half in zip(means, halves, strict=True)]
        series.append(Series(name, list(zip(shares, means, strict=True)), intervals, baseline=name == "base"))
    title = "Its change against the unmasked image" if change else "Log-probability of the right description"
    return _Panel(title, "mask ratio of the object, %", series)


def _losses(history: Sequence[Mapping[str, float]]) -> list[_Panel]:
    def series(name: str, key: str) -> Series:
        return Series(name, [(one["step"], one[key]) for one in history])

    terms = [series("DPO", "loss_dpo"), series("anchor", "loss_anchor"), series("list", "loss_listwise")]
    return [_Panel("Loss", "step", [series("LPOI", "loss")]), _Panel("Its three terms", "step", terms)]


def _history(folder: Path) -> list[dict[str, float]]:
    state = read_json(folder / "adapter" / "trainer_state.json")
    return [one for one in state["log_history"] if "loss" in one]


# Scenes, lists, responses


def _scene(number: int, scene: Scene) -> dict[str, Any]:
    return {"image": f"training/image/{image_name(number)}", "place": scene.place, "objects": scene.visible}


def _lists(folder: Path, drawing: Drawing) -> list[dict[str, Any]]:
    texts = {pair["id"]: pair["chosen"] for pair in _training_pairs(folder)}
    listed = [line for line in read_records(folder / "lists" / "training.jsonl") if line["box"] is not None]
    return [
        {
            "images": [
                _inline_image(image)
                for image in ranked_images(
                    open_image(folder / "training" / "image" / line["img_path"]), Box(*line["box"]), drawing
                )
            ],
            "phrase": line["phrase"],
            "chosen": texts[line["id"]],
            "p_yes": line["tried"][-1].get("p_yes"),
        }
        for line in listed[:_LISTS]
    ]


def _inline_image(image: Any) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _answers(folder: Path, unseen: Sequence[Scene]) -> list[dict[str, Any]]:
    questions = read_json(folder / "unseen" / "data" / "query" / "query_all.json")
    truth = {one["id"]: one["truth"] for one in read_json(folder / "unseen" / "data" / "annotations.json")}
    responses = _responses(folder)
    rows = []
    for number, scene in enumerate(unseen, start=1):
        asked = [one for one in questions if one["image"] == image_name(number) and one["id"] > len(unseen)]
        descriptions = {}
        for name in POLICIES:
            text = responses[name][number]
            named = mentioned(text)
            descriptions[name] = {
                "parts": _marked(text, scene),
                "hallucinated": sum(kind not in scene.visible for kind in named),
                "missing": [kind for kind in scene.visible if kind not in named],
            }
        rows.append(
            {
                "image": f"unseen/image/{image_name(number)}",
                "objects": scene.visible,
                **descriptions,
                "questions": [
                    {
                        "kind": next(kind for kind in KINDS if kind in re.findall("[a-z]+", one["query"])),
                        "truth": truth[one["id"]],
                        **{name: responses[name][one["id"]] for name in POLICIES},
                    }
                    for one in asked
                ],
            }
        )
    return rows


def _responses(folder: Path) -> dict[str, dict[int, str]]:
    """Each policy's responses by the question's id, which is a description's number of the scene."""
    return {
        name: {one["id"]: one["response"] for one in read_json(folder / "answers" / f"{name}.json")}
        for name in POLICIES
    }


def _marked(text: str, scene: Scene) -> list[str | list[str]]:
    """The text in parts; a part that names an object is a list of the word and of "true" or "hallucinated"."""
    return [
        [part, "true" if part in scene.visible else "hallucinated"] if part in KINDS else part
        for part in re.split("([a-z]+)", text)
        if part
    ]
