"""Small real checkpoints, the sample data, the programs run as a user runs them, and a browser for the pages."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from .english_data import write_english_data
from .scoring_data import DATA, Score, ScoreRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from listwise_preference.english.text import English

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models this small only lose by threads that wait for each other; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def small_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small Idefics2 and a small LLaVA on disk."""
    from listwise_preference.small_world.model import save_small_model

    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: save_small_model(folder / family, family) for family in ("idefics2", "llava")}


@pytest.fixture(params=["idefics2", "llava"])
def checkpoint(request: pytest.FixtureRequest, small_checkpoints: dict[str, Path]) -> Path:
    return small_checkpoints[request.param]


@pytest.fixture(scope="session")
def zoo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``zoo_checkpoint("qwen3_vl")`` is the folder of a small checkpoint of that type; see tests/zoo.py."""
    from . import zoo

    folder = tmp_path_factory.mktemp("zoo")

    def checkpoint(model_type: str) -> Path:
        place = folder / model_type
        return place if place.is_dir() else zoo.save(place, model_type)

    return checkpoint


def sample_pairs(count: int) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = json.loads((SAMPLE / "pairs.json").read_text(encoding="utf-8"))
    return pairs[:count]


@pytest.fixture
def few_pairs(tmp_path: Path) -> Path:
    """The first eight sample pairs, in a file."""
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(sample_pairs(8)), encoding="utf-8")
    return file


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_program() -> Run:
    """Run a program of the top level on the CPU; returns what it printed."""

    def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and finished.returncode != 0:
            raise AssertionError(f"{command} exited with {finished.returncode}\n{finished.stdout}\n{finished.stderr}")
        return finished

    return run


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Score:
    """``score("amber", path, ...)`` runs score.py with these arguments and --json."""
    from listwise_preference.probe.command import main

    def run(*arguments: object) -> ScoreRun:
        monkeypatch.setattr(sys, "argv", ["score.py", *map(str, arguments), "--json"])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            status = stop.code
        out, err = capsys.readouterr()
        return ScoreRun(status, out, err)

    return run


@pytest.fixture(scope="session")
def benchmark_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/data with its packed files unpacked."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for file in DATA.rglob("*.*"):
        target = folder / file.relative_to(DATA)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        if file.suffix == ".gz":
            target.with_suffix("").write_bytes(gzip.decompress(content))
        else:
            target.write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def english_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the recorded English data, which this process and the programs it starts find first from here on.

    So every machine reads the tests' texts in the same way, whether it has NLTK's data or not.
    """
    import nltk.data

    folder = tmp_path_factory.mktemp("nltk_data")
    write_english_data(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NLTK_DATA", str(folder))
        patch.setattr(nltk.data, "path", [str(folder), *nltk.data.path])
        yield folder


@pytest.fixture
def live_english(english_data: Path, monkeypatch: pytest.MonkeyPatch) -> "English":
    """English by NLTK's own data; the test is skipped where it is not installed."""
    import nltk.data

    from listwise_preference.english.nltk_data import COMMAND
    from listwise_preference.english.text import English

    monkeypatch.setattr(nltk.data, "path", [place for place in nltk.data.path if place != str(english_data)])
    for resource in ("tokenizers/punkt_tab/english/", "taggers/averaged_perceptron_tagger_eng/"):
        try:
            nltk.data.find(resource)
        except LookupError:
            pytest.skip(f"NLTK's English data is not installed: {COMMAND}")
    return English()


def no_browser(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"no {what}: the pages would go untested")
    pytest.skip(f"no {what} to open the pages in; apt-get install chromium, pip install -r requirements-dev.txt")


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        no_browser("playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        no_browser("chromium")
    quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: "Browser") -> Iterator["BrowserContext"]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)
    requests: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    context.on("console", lambda said: complaints.append(said.text) if "Security Policy" in said.text else None)
    yield context
    context.close()
    # Every test that opens a page shows with it that the page stays on the disk and raises nothing.
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert (outside, complaints) == ([], [])


def wait_until(page: "Page", expression: str) -> None:
    """Until it is true in the page. Playwright's own way evaluates text there, which the pages' policy forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)
