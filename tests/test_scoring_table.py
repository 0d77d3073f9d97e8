"""One table of all runs: order, protocols, intervals, paired differences, forms."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from listwise_preference.scoring.bootstrap import paired_bootstrap
from listwise_preference.scoring.result import write_counts

from .scoring_data import Score

AMBER = {
    "benchmark": "amber",
    "generative": {"chair": 4.2, "cover": 51.0, "hal": 26.0, "cog": 2.1},
    "discriminative": None,
    "protocol": {"rules": "AMBER inference.py", "yes_no": "word"},
    "bootstrap": {"intervals": {"generative.chair": [3.9, 4.8]}},
}
OBJECT_HALBENCH = {"benchmark": "object-halbench", "chair_s": 0.053, "chair_i": 0.036, "protocol": {"objects": "words"}}
MMHAL = {"benchmark": "mmhal", "score": 2.4, "hallucination_rate": 0.59, "protocol": {"judge": "wise_1"}}


def write(root: Path, run: str, name: str, result: dict[str, Any]) -> Path:
    path = root / "runs" / run / "scores" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in result.items() if key != "images"}))
    if "images" in result:
        write_counts(path, result["images"])
    return path


def lines_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_runs_are_rows_and_benchmarks_columns_in_the_papers_order(score: Score, tmp_path: Path) -> None:
    files = [write(tmp_path, "lpoi", "amber", AMBER), write(tmp_path, "lpoi", "mmhal", MMHAL),
             write(tmp_path, "dpo", "ohb", OBJECT_HALBENCH), write(tmp_path, "dpo", "amber", AMBER)]  # fmt: skip
    heading, _, lpoi, dpo, *paper = lines_of(score("table", *files, "--paper_model", "LLaVA-v1.5-7B").out)
    assert heading[1:] == [
        "object-halbench (1): CHAIR_s ↓", "CHAIR_i ↓", "recall ↑", "mmhal (2): score ↑", "hal. rate ↓",
        "amber (3): CHAIR ↓", "Cover ↑", "Hal ↓", "Cog ↓",
    ]  # fmt: skip
    assert lpoi == ["lpoi", "-", "-", "-", "2.40", "0.59", "4.2 [3.9, 4.8]", "51.0", "26.0", "2.1"]
    # How much is named stands beside CHAIR even where a file does not say it.
    assert dpo == ["dpo", "5.3", "3.6", "-", "-", "-", "4.2 [3.9, 4.8]", "51.0", "26.0", "2.1"]
    assert paper[-1] == [
        "paper: LLaVA-v1.5-7B + LPOI",
        "24.3",
        "14.6",
        "-",
        "2.40",
        "0.59",
        "4.3",
        "51.9",
        "26.4",
        "2.0",
    ]


def test_what_a_column_rests_on_stands_below(score: Score, tmp_path: Path) -> None:
    out = score("table", write(tmp_path, "a", "amber", {**AMBER, "partial": True})).out
    assert "(1) amber: rules AMBER inference.py; yes_no word" in out
    assert "a: partial, not all of a benchmark was scored." in out


def test_different_protocols_are_refused(score: Score, tmp_path: Path) -> None:
    other = {**AMBER, "protocol": {"rules": "AMBER inference.py", "yes_no": "release"}}
    files = [write(tmp_path, "a", "amber", AMBER), write(tmp_path, "b", "amber", other)]
    run = score("table", *files)
    assert run.status == 2 and run.out == ""
    assert "do not go into one column:\n  - amber: not scored alike: yes_no is a: word; b: release" in run.err


def pope(file: str, images: dict[str, dict[str, int]], **more: Any) -> dict[str, Any]:
    sums = {name: sum(counts.get(name, 0) for counts in images.values()) for name in ("TP", "FP", "TN", "FN")}
    accuracy = (sums["TP"] + sums["TN"]) / sum(sums.values())
    return {"benchmark": "pope", "accuracy": accuracy, "protocol": {"questions": file}, "images": images} | more


def answered(right: int, images: int = 40) -> dict[str, dict[str, int]]:
    """One question an image, the first ``right`` of them right."""
    return {str(number): {"TN" if number < right else "FP": 1} for number in range(images)}


def test_question_files_are_columns_of_their_own(score: Score, tmp_path: Path) -> None:
    files = [write(tmp_path, "a", name, pope(f"coco_pope_{name}.json", answered(30))) for name in ("random", "popular")]
    run = score("table", *files)
    assert run.result == {
        "a": {f"pope coco_pope_{name} ({n})": {"accuracy ↑": "75.0"} for n, name in ((1, "popular"), (2, "random"))}
    }
    heading = lines_of(run.out)[0]
    assert heading[1:] == ["pope coco_pope_popular (1): accuracy ↑", "pope coco_pope_random (2): accuracy ↑"]
    again = write(tmp_path, "a", "again", pope("coco_pope_random.json", answered(3)))
    assert "are both pope scores of a" in score("table", *files, again).err
    assert score("table", *files, again, "--names", "a", "a", "b").status == 0


def test_a_paired_difference_without_zero_is_marked(score: Score, tmp_path: Path) -> None:
    """Of 40 images 20 and 38 right, 18 differ: marked. 20 and 21, one differs: drawn or not, not marked.

    A third run has other images, and is not tested.
    """
    counts = {"base": answered(20), "better": answered(38), "alike": answered(21)}
    files = [write(tmp_path, name, "pope", pope("q.json", images)) for name, images in counts.items()]
    files.append(write(tmp_path, "other", "pope", pope("q.json", answered(39, images=41))))
    run = score("table", *files, "--bootstrap", 200)
    cells = dict(lines_of(run.out)[2:])
    assert cells == {"base": "50.0", "better": "95.0\\*", "alike": "52.5", "other": "95.1"}
    assert "paired difference from base, 200 resamples" in run.out
    assert "pope: other and base have no counts of the same images and are not tested." in run.out
    turned = score("table", *files[:3], "--baseline", "better", "--bootstrap", 200)
    assert [cell for _, cell in lines_of(turned.out)[2:]] == ["95.0", "50.0\\*", "52.5\\*"]


def test_pairing_takes_out_what_images_have_in_common() -> None:
    """Two runs with the same errors but for 8 of 200 images: each alone is 50 +- 7 %, the difference 4 +- 3 %."""
    first = {str(n): {"right": int(n < 100), "all": 1} for n in range(200)}
    second = {str(n): {"right": int(n < 108), "all": 1} for n in range(200)}

    def metrics(sums: Any) -> dict[str, float]:
        return {"share": sums["right"] / sums["all"]}

    low, high = paired_bootstrap(first, second, metrics, resamples=2000, seed=1)["share"]
    # A binomial of 200 draws at 4 %: standard deviation sqrt(0.04 * 0.96 / 200) = 1.39 %.
    assert low == pytest.approx(0.04 - 1.96 * 0.0139, abs=0.006)
    assert high == pytest.approx(0.04 + 1.96 * 0.0139, abs=0.006)
    assert paired_bootstrap(first, first, metrics, resamples=50, seed=1)["share"] == (0, 0)


def test_all_three_forms_hold_the_same_numbers(score: Score, tmp_path: Path) -> None:
    files = [write(tmp_path, "run_1 & <2>", "mmhal", MMHAL), write(tmp_path, "b", "amber", AMBER)]
    outputs = [tmp_path / "tables" / f"all.{kind}" for kind in ("md", "tex", "html")]
    score("table", *files, "--output", *outputs)
    markdown, latex, page = (output.read_text() for output in outputs)
    for text in (markdown, latex, page):
        assert "4.2 [3.9, 4.8]" in text and "51.0" in text
    assert r"run\_1 \& \textless{}2\textgreater{} & 2.40 & 0.59 & - & - & - & - \\" in latex
    assert r"\multicolumn{2}{c}{mmhal (1)} & \multicolumn{4}{c}{amber (2)} \\" in latex
    assert r"CHAIR $\downarrow$" in latex and r"judge wise\_1" in latex
    assert "<th>run_1 &amp; &lt;2&gt;</th><td>2.40</td>" in page
    assert len(re.findall("<tr>", page)) == 4 and "<script" not in page
    assert "a table is written as .md, .tex, .html" in score("table", *files, "--output", tmp_path / "t.pdf").err


def test_other_files(score: Score, tmp_path: Path) -> None:
    amber = write(tmp_path, "a", "amber", AMBER)
    probe = write(tmp_path, "a", "awareness", {"benchmark": "awareness"})
    assert "awareness has no columns in this table" in score("table", amber, probe).out
    assert "no scores to show" in score("table", probe).err
    assert "not a scores file" in score("table", write(tmp_path, "a", "answers", {"id": 1})).err
    assert "no such run; there are a" in score("table", amber, "--baseline", "b").err
