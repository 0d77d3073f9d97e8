import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from listwise_preference.pages import charts
from listwise_preference.scoring import compare
from listwise_preference.scoring.bootstrap import bootstrap
from listwise_preference.scoring.command import main

from .scoring_data import SAMPLE, Score

pytestmark = pytest.mark.usefixtures("english_data")

AMBER = {
    "benchmark": "amber",
    "partial": False,
    "generative": {"chair": 4.2, "cover": 51.0, "hal": 26.0, "cog": 2.1},
    "discriminative": None,
    "protocol": {"yes_no": "word"},
    "bootstrap": {"intervals": {"generative.chair": [3.9, 4.8]}},
}
OBJECT_HALBENCH = {
    "benchmark": "object-halbench",
    "partial": False,
    "chair_s": 0.053,
    "chair_i": 0.036,
    "protocol": {},
}


def write(path: Path, result: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def test_runs_stand_beside_the_papers_rows(score: Score, tmp_path: Path) -> None:
    files = [write(tmp_path / "ours.json", AMBER), write(tmp_path / "ohb.json", OBJECT_HALBENCH)]
    markdown = tmp_path / "tables" / "all.md"
    run = score("compare", *files, "--paper_model", "LLaVA-v1.5-7B", "--markdown", markdown)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.out.splitlines()]
    assert ["amber", "CHAIR ↓", "Cover ↑", "Hal ↓", "Cog ↓"] in lines
    assert ["ours", "4.2 [3.9, 4.8]", "51.0", "26.0", "2.1"] in lines
    assert ["paper: LLaVA-v1.5-7B + LPOI", "4.3", "51.9", "26.4", "2.0"] in lines
    assert ["ohb", "5.3", "3.6"] in lines
    assert ["paper: LLaVA-v1.5-7B", "49.7", "26.1"] in lines
    assert markdown.read_text().strip() in run.out
    assert run.result["amber"]["ours"]["generative.chair"] == 4.2


def test_the_table_is_printed_without_json_unless_asked_for(
    score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What people read says where the JSON is; with --json it goes to standard error, and the JSON stands alone."""
    command = ["amber", str(SAMPLE / "answers.json"), "--data", str(SAMPLE)]
    main(command)
    plain = capsys.readouterr().out
    assert plain.startswith("Descriptions ") and "{" not in plain
    assert plain.endswith("\nNot written: --output FILE.json keeps these numbers, --json prints them as JSON.\n")
    asked = score(*command)
    assert asked.err == plain and asked.result["benchmark"] == "amber"
    scores = tmp_path / "a.json"
    main([*command, "--output", str(scores)])
    assert capsys.readouterr().out.endswith(f"\nWritten to {scores}\n")
    main(["compare", str(scores)])
    assert "{" not in capsys.readouterr().out


def test_paper_brings_all_twelve_rows(score: Score, tmp_path: Path) -> None:
    result = score("compare", write(tmp_path / "a.json", AMBER), "--paper").result
    assert len(result["amber"]) == 1 + 12
    assert result["amber"]["paper: Idefics2-8B + LPOI"] == {
        "generative.chair": 2.6,
        "generative.cover": 36.4,
        "generative.hal": 5.7,
        "generative.cog": 0.2,
    }


def test_different_protocols_and_partial_runs_are_named(score: Score, tmp_path: Path) -> None:
    other = {**AMBER, "partial": True, "protocol": {"yes_no": "release"}}
    files = [write(tmp_path / "a" / "scores.json", AMBER), write(tmp_path / "b" / "scores.json", other)]
    run = score("compare", *files)
    assert "amber: not scored alike: yes_no is a/scores: word; b/scores: release" in run.out
    assert "b/scores (partial)" in run.out


def test_other_files_are_refused(score: Score, tmp_path: Path) -> None:
    run = score("compare", write(tmp_path / "answers.json", {"id": 1}))
    assert run.status == 2
    assert "answers.json: not a scores file" in run.err


def test_plot_is_a_png_with_a_panel_for_each_metric_on_one_scale(score: Score, tmp_path: Path) -> None:
    """Four panels of ours and three rows of the paper each; a bar of 51.0 is as long as one of 51.0 elsewhere."""
    chart = tmp_path / "charts" / "chart.png"
    result = {**AMBER, "generative": {"chair": 51.0, "cover": 51.0, "hal": 25.5, "cog": 51.0}, "bootstrap": None}
    score("compare", write(tmp_path / "a.json", result), "--paper_model", "LLaVA-v1.5-7B", "--plot", chart)
    pixels = np.asarray(Image.open(chart).convert("RGB"))
    assert pixels.shape[1] == 1600  # shown at 800
    ours, papers = (np.array(ImageColor.getrgb(colour)) for colour in (charts.LIGHT.lines[0], charts.LIGHT.quiet))
    of_ours = (pixels == ours).all(axis=2)
    row = of_ours[of_ours.any(axis=1)][5]  # across our bars
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    lengths = edges[1::2] - edges[::2]
    assert len(lengths) == 4 and np.ptp(lengths[[0, 1, 3]]) <= 2
    assert lengths[2] == pytest.approx(lengths[0] / 2, abs=2)
    assert (pixels == papers).all(axis=2).sum() > 4 * 1000


def test_a_plot_has_no_room_for_numbers_that_are_not_there(score: Score, tmp_path: Path) -> None:
    """A line is 0.8 inches and 0.2 for each run: six metrics of one run are two lines; of the paper's four rows, which
    have no yes/no questions, the first line alone is higher."""
    chart, heights = tmp_path / "chart.png", []
    file = write(tmp_path / "a.json", AMBER | {"discriminative": {"accuracy": 80.0, "f1": 81.0}})
    for paper in ((), ("--paper_model", "LLaVA-v1.5-7B")):
        score("compare", file, *paper, "--plot", chart)
        with Image.open(chart) as drawn:
            heights.append(drawn.height / charts.DOTS)
    assert heights == [pytest.approx(2 * (0.8 + 0.2)), pytest.approx(0.8 + 5 * 0.2 + 0.8 + 0.2)]


def test_a_plot_that_cannot_be_written_is_one_line(score: Score, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = score("compare", write(tmp_path / "a.json", AMBER), "--plot", tmp_path / "file" / "chart.png")
    assert run.status == 2
    assert "file/chart.png: cannot be written: " in run.err.splitlines()[-1] and "Traceback" not in run.err


def test_every_paper_row_has_every_column() -> None:
    for methods in compare.PAPER.values():
        assert list(methods) == ["", "DPO", "mDPO", "LPOI"]
        assert {len(numbers) for numbers in methods.values()} == {8}


def share(sums: Any) -> dict[str, float | None]:
    return {"share": sums["hits"] / sums["tries"] if sums["tries"] else None, "never": None}


def test_bootstrap_agrees_with_the_textbook() -> None:
    """The share of 400 independent trials with 100 hits: standard error sqrt(.25 * .75 / 400) = .02165."""
    images = [{"tries": 1, "hits": int(place < 100)} for place in range(400)]
    result = bootstrap(images, share, resamples=4000, seed=1)
    low, high = result["intervals"]["share"]
    assert low == pytest.approx(0.25 - 1.96 * 0.02165, abs=0.004)
    assert high == pytest.approx(0.25 + 1.96 * 0.02165, abs=0.004)
    assert "never" not in result["intervals"]
    assert bootstrap(images, share, 4000, seed=1) == result


def test_bootstrap_draws_images_not_questions() -> None:
    """Ten images whose 40 questions are all right or all wrong: as uncertain as ten trials, not as 400."""
    images = [{"tries": 40, "hits": 40 * (place % 2)} for place in range(10)]
    low, high = bootstrap(images, share, resamples=2000, seed=1)["intervals"]["share"]
    assert (low, high) == (0.2, 0.8)


def test_what_was_noted_about_a_run_stands_beside_it(score: Score, tmp_path: Path) -> None:
    """One answer of the sample cannot be read, which its table of numbers does not show."""
    scores = tmp_path / "sample.json"
    score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--output", scores)
    assert any("unreadable yes/no responses" in note for note in json.loads(scores.read_text())["notes"])
    assert "Note: sample: unreadable yes/no responses" in score("compare", scores).out
