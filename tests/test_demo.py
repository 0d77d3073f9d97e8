"""demo.py from its command line to its page, at a reduced size, with the shipped checkpoint."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import demo
from listwise_preference.demo import command
from listwise_preference.demo import page as demo_page

from .conftest import ROOT, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

UNSEEN = 24
SIZES = ("--scenes", "80", "--unseen_scenes", str(UNSEEN), "--steps", "8")


class Made(NamedTuple):
    folder: Path
    printed: str
    errors: str


def run_demo(program: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, *program, "--output", str(folder), *SIZES],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "NLTK_DATA": str(folder)},  # the user has no tagger data
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One run, with what an earlier one and a user could have left in its folder."""
    folder = tmp_path_factory.mktemp("demo") / "it"
    demo_page.PAGE.start(folder)
    for name in ("training/image/9999.png", "adapter/final/old.txt", "mine.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left")
    finished = run_demo(["demo.py"], folder)
    return Made(folder, finished.stdout, finished.stderr)


def read(made: Made, name: str) -> Any:
    text = (made.folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else json.loads(text)


def opened(context: "BrowserContext", folder: Path) -> "Page":
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    return page


@pytest.mark.slow
def test_a_run_starts_afresh_and_leaves_what_it_says(made: Made) -> None:
    assert (made.folder / "mine.txt").read_text() == "left"
    assert not (made.folder / "training/image/9999.png").exists()
    assert not (made.folder / "adapter/final/old.txt").exists()
    places = re.findall(r"^  ([a-z]\S+?),?(?: (scores/))?   ", made.printed.split("Done in")[1], re.MULTILINE)
    assert len(places) >= 6
    for place in filter(None, (name for names in places for name in names)):
        assert list(made.folder.glob(place.rstrip("/"))), place
    assert len(list((made.folder / "training/image").iterdir())) == 80
    for commands in (r"\[1/8\]", r"\[8/8\]", "python lpoi.py --model_name_or_path checkpoints/small-idefics2 "):
        assert re.search(commands, made.printed)
    assert "it/s]" in made.errors  # the training's bar


@pytest.mark.slow
def test_the_installed_demo_makes_the_same_by_commands_of_its_own(made: Made, tmp_path: Path) -> None:
    """``lpoi-demo`` has no lpoi.py to take a recipe from: its commands give what differs from the defaults."""
    finished = run_demo(["-c", "from listwise_preference.demo.command import main; main()"], tmp_path / "it")
    expected, shown = (re.findall(r"^  \$ (.*)$", text, re.MULTILINE) for text in (made.printed, finished.stdout))
    names = {f"python {program} ": f"{name} " for program, name in command.INSTALLED.items()}
    names["python lpoi.py "] += " ".join(command.AS_IN_LPOI) + " "
    for old, new in (names | {str(made.folder): str(tmp_path / "it")}).items():
        expected = [one.replace(old, new) for one in expected]
    assert shown == expected
    for name in ("adapter/final/adapter_model.safetensors", "answers/trained.json", "table.md"):
        assert (tmp_path / "it" / name).read_bytes() == (made.folder / name).read_bytes(), name


@pytest.mark.slow
def test_training_lowers_the_loss_from_that_of_equal_policies(made: Made) -> None:
    losses = [one["loss"] for one in read(made, "adapter/trainer_state.json")["log_history"] if "loss" in one]
    weight = command.LIST_WEIGHT
    assert losses[0] == pytest.approx(2 * 0.6931 + weight * 4.7875, abs=1e-3)  # ln 2 + ln 2 + weight ln 5!
    assert losses[-1] < losses[0]
    assert f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last" in made.printed


@pytest.mark.slow
def test_the_pages_table_is_that_of_the_scores_files(made: Made, context: "BrowserContext") -> None:
    page = opened(context, made.folder)
    places = [f"generative.{metric}" for metric in ("chair", "cover", "hal", "cog")]
    places += ["discriminative.accuracy", "discriminative.f1"]
    expected = []
    for name in ("base", "trained"):
        result = read(made, f"scores/{name}.json")
        for place in places:
            group, metric = place.split(".")
            low, high = result["bootstrap"]["intervals"][place]
            expected.append([f"{result[group][metric]:.1f}", f"{low:.1f} – {high:.1f}"])
            assert f"{expected[-1][0]} ({low:.1f} - {high:.1f})" in made.printed
    rows = page.locator("#table tbody tr")
    cells = [
        [rows.nth(row).locator("td").nth(column).inner_text().split("\n") for row in range(rows.count())]
        for column in range(3)
    ]
    shown_f = [column.pop(2) for column in cells]  # which the scores files do not have
    assert cells[0] + cells[1] == expected
    values = [[float(cell[0]) for cell in column] for column in cells]
    assert values[2] == pytest.approx([after - before for before, after in zip(*values[:2], strict=True)], abs=0.051)
    for (chair, cover, *_), (f, interval) in zip(values[:2], shown_f[:2], strict=True):
        assert float(f) == pytest.approx(2 * (100 - chair) * cover / (100 - chair + cover), abs=0.051)
        low, high = map(float, interval.split(" – "))
        assert low < float(f) < high
    first = page.locator("main p").first.inner_text()
    assert first == demo_page.outcome(demo_page.table(made.folder))


def row(metric: str, base: str, trained: str, interval: tuple[str, str]) -> dict[str, Any]:
    return {"metric": metric, "base": {"value": base}, "trained": {"value": trained}, "change": {"interval": interval}}


def test_the_first_sentence_says_what_is_traded() -> None:
    fewer, f = row("CHAIR", "15.1", "12.0", ("-4.6", "-1.1")), row("F", "86.2", "87.0", ("-0.2", "+1.9"))
    kept, lost = row("Cover", "87.6", "87.0", ("-2.0", "+0.8")), row("Cover", "87.6", "71.0", ("-19.0", "-14.0"))
    said = demo_page.outcome([fewer, kept, f])
    assert said.endswith("about as many that are: CHAIR 15.1 to 12.0; Cover 87.6 to 87.0; F 86.2 to 87.0.")
    assert demo_page.outcome([fewer, lost, f]).startswith("Training traded: ")
    same = row("CHAIR", "15.1", "14.9", ("-1.6", "+1.1"))
    assert "did not measurably change" in demo_page.outcome([same, kept, f])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_image_and_link_of_the_page_is_there(made: Made, context: "BrowserContext", scheme: Any) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme=scheme)
    page.goto((made.folder / "index.html").as_uri())
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#answers-shown article").count() == UNSEEN
    wait_until(page, "[...document.images].every((image) => image.complete)")
    widths = page.evaluate("[...document.images].map((image) => [image.currentSrc.slice(-40), image.naturalWidth])")
    pairs = min(6, len(read(made, "pairs/training.jsonl")))
    lists = min(6, sum(line["box"] is not None for line in read(made, "lists/training.jsonl")))
    assert len(widths) == 16 + pairs + lists * 5 + UNSEEN + 2
    assert all(width > 0 for _, width in widths), widths
    figures = [source.rsplit("/")[-1] for source, width in widths if width > 1000]
    assert figures == (["loss.png", "ranking.png"] if scheme == "light" else ["loss-dark.png", "ranking-dark.png"])
    links = page.evaluate("[...document.links].map((link) => link.getAttribute('href'))")
    assert {"review/index.html", "reports/base/index.html", "reports/trained/index.html"} <= set(links)
    for link in links:
        if link.startswith("#"):
            assert page.locator(link).count() == 1
        else:
            assert (made.folder / link).is_file(), link


@pytest.mark.slow
def test_marked_words_agree_with_the_scorer(made: Made, context: "BrowserContext") -> None:
    """Hal is the share of descriptions that name anything absent, CHAIR that of absent things among those named."""
    page = opened(context, made.folder)
    page.get_by_role("button", name="Show more").click()
    for name in ("base", "trained"):
        texts = page.locator(f"#answers-shown .{name} p")
        marks = [texts.nth(at).locator("mark") for at in range(UNSEEN)]
        classes = [[mark.get_attribute("class") for mark in row.all()] for row in marks]
        scores = read(made, f"scores/{name}.json")["generative"]
        assert 100 * sum("hallucinated" in row for row in classes) / UNSEEN == pytest.approx(scores["hal"], abs=0.051)
        wrong = [one == "hallucinated" for row in classes for one in row]
        # AMBER counts a thing named twice once.
        assert 100 * statistics.fmean(wrong) == pytest.approx(scores["chair"], abs=3)
    page.locator("#which").select_option(label="Base hallucinates")
    hallucinated = round(read(made, "scores/base.json")["generative"]["hal"] * UNSEEN / 100)
    assert page.locator("#found").inner_text().startswith(f"{hallucinated} scene")
    assert page.locator("#answers-shown article").count() == min(hallucinated, 20)


@pytest.mark.slow
def test_ranking_is_the_mean_over_unseen_scenes(made: Made, context: "BrowserContext") -> None:
    records = read(made, "ranking/eval_records.jsonl")
    ids = {record["id"] for record in records}
    assert ids <= set(range(1, UNSEEN + 1))
    text = opened(context, made.folder).locator('[data-figure="ranking"] img').get_attribute("alt") or ""
    for name, key in (("base", "reference_logps"), ("trained", "policy_logps")):
        on_image_1 = statistics.fmean(record[key][0] for record in records)
        fully_hidden = statistics.fmean(record[key][-1] for record in records)
        found = re.search(f"right description, {name}: ([-0-9., ]+)", text)
        assert found
        numbers = [float(number) for number in found[1].rstrip(". ").split(", ")]
        assert len(numbers) == 5
        assert (numbers[0], numbers[-1]) == (
            pytest.approx(on_image_1, abs=0.006),
            pytest.approx(fully_hidden, abs=0.006),
        )


@pytest.mark.slow
def test_a_command_of_the_page_does_the_same(made: Made, context: "BrowserContext", tmp_path: Path) -> None:
    page = opened(context, made.folder)
    export, _ = page.locator('[data-step="pairs"] code').all_inner_texts()
    (text,) = page.locator('[data-step="lists"] code').all_inner_texts()
    command = " ".join(text.split())
    again = tmp_path / "again.jsonl"
    command = command.replace(f"{made.folder}/lists/training.jsonl", str(again)).split(" --review")[0]
    shell = f"{export}; {command.replace('python', sys.executable, 1)}"
    subprocess.run(["sh", "-c", shell], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert again.read_text() == (made.folder / "lists" / "training.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--model_name_or_path", "nowhere"], "nowhere: no such folder; name one by --model_name_or_path"),
        (["--model_name_or_path", "{checkpoint}", "--output", "{other}"], "the folder holds other files"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str],
    what: str,
    tmp_path: Path,
    small_checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine.txt").write_text("mine")
    places = {"checkpoint": small_checkpoints["idefics2"], "other": tmp_path}
    monkeypatch.setattr(sys, "argv", ["demo.py", *(one.format(**places) for one in arguments)])
    with pytest.raises(SystemExit) as stopped:
        demo.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("demo.py: error: ") and what in said and said.count("\n") == 1
    assert [file.name for file in tmp_path.rglob("*")] == ["adapter", "mine.txt"]


def test_without_the_checkpoint_it_says_where_that_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lpoi-demo"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("lpoi-demo: error: checkpoints/small-idefics2: no such folder; it lies in the repository")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_page_says_so(context: "BrowserContext", tmp_path: Path) -> None:
    demo_page.PAGE.start(tmp_path / "page")
    page = opened(context, tmp_path / "page")
    assert "demo_data.js is missing beside this page: it was not finished" in page.locator("main").inner_text()


def test_the_page_needs_nothing_but_its_folder() -> None:
    """No address of another machine in the page's own files."""
    own = [file for file in Path(demo_page.__file__).parent.iterdir() if file.suffix in (".html", ".css", ".js")]
    assert sorted(file.name for file in own) == ["demo.css", "demo.html", "demo.js"]
    for file in own:
        assert "://" not in file.read_text(encoding="utf-8")
