"""What a new user meets when something is not in place: one message that says what to do, before the heavy work."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from listwise_preference.errors import DataError, ModelError
from listwise_preference.generation import command as generation
from listwise_preference.models.hub import check_model, check_upload
from listwise_preference.training.command import read_data
from listwise_preference.training.options import parse

from .asking import generate_responses
from .conftest import ROOT, SAMPLE, Run


def test_papers_row_says_all_that_is_missing_and_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"adapter": "checkpoints/paper/final", "questions": "data/AMBER/query_all.json", "image_root": "images"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        generation.main(recipe | {"model_name_or_path": "no/model", "benchmark": "amber", "output": "out.json"}, [])
    _, adapter, questions = capsys.readouterr().err.splitlines()
    assert "--adapter checkpoints/paper/final: no such folder; training leaves it there" in adapter
    assert "checkpoints/README.md" in adapter and (ROOT / "checkpoints" / "README.md").is_file()
    assert "--questions data/AMBER/query_all.json: no such file; git clone https://github.com/" in questions


@pytest.mark.parametrize("folders", [None, ["no/clean", "no/masked"]])
def test_pairs_without_lists_are_shown_two_ways_on(folders: list[str] | None) -> None:
    recipe = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "ranked_image_folders": folders}
    arguments = parse(recipe, ["--pairs", str(SAMPLE / "pairs.json"), "--image_root", str(SAMPLE)])
    with pytest.raises(DataError, match=r"make_image_lists\.py .*--image_lists.*--objective dpo"):
        read_data(arguments)
    assert len(read_data(parse(recipe, ["--objective", "dpo", "--pairs", str(SAMPLE / "pairs.json"),
                                        "--image_root", str(SAMPLE)]))[0]) == 31  # fmt: skip


# ---- the hub ----


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does those whom it does not know."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that can be reached."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield constants.ENDPOINT
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_that_is_nowhere_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    """Left to the hub's own client where there is a hub, which may have it; refused where there is none."""
    check_model("runs/nothing")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    said = "cannot load the model runs/nothing: no such folder, and not in the hub's cache; "
    with pytest.raises(ModelError, match=said + "the hub cannot be reached"):
        check_model("runs/nothing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=said + "HF_HUB_OFFLINE is set"):
        check_model("runs/nothing")
    with pytest.raises(ModelError, match="no such folder, and no name that the hub can have"):
        check_model("my model")


def test_a_model_in_the_hubs_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check_model("some/model")
    check_model("some/model", "abc")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        check_model("some/model", "another-commit")


def test_an_upload_that_cannot_succeed_is_refused_before_training(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/no/token")
    later = r"; or train without it, and upload the adapter later: hf upload NAME runs/a/final$"
    with pytest.raises(ModelError, match="--push_to_hub: there is no token; get one with: hf auth login" + later):
        check_upload(None, "runs/a/final")
    check_upload("hf_token", "runs/a/final")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"--push_to_hub: the hub cannot be reached \(.*\)" + later):
        check_upload("hf_token", "runs/a/final")


# ---- small things ----


def test_questions_of_ones_own_are_an_image_and_a_question(tmp_path: Path, small_checkpoints: dict[str, Path]) -> None:
    """As docs/generating.md has them; what else a record holds stays in it."""
    asked = [{"image": "images/cat.jpg", "question": "What is it?", "from": "me"}, {"question": "Who are you?"}]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    answers = generate_responses(small_checkpoints["llava"], "own", file, SAMPLE, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [{key: row[key] for key in row if key != "response"} for row in rows] == asked
    assert all(isinstance(row["response"], str) for row in rows)


@pytest.mark.parametrize("command", [["asset/make_ranked_list.py", "--help"]])
def test_the_figures_program_has_a_help(run_program: Run, command: list[str]) -> None:
    assert run_program(*command).stdout.startswith("usage: make_ranked_list.py")


@pytest.mark.parametrize(
    ("module", "needed"),
    [("small_world.model", ("--family", "llava", "--output", "x")), ("small_world.detector", ("--output", "x"))],
)
def test_every_program_says_unknown_options_alike(run_program: Run, module: str, needed: tuple[str, ...]) -> None:
    done = run_program("-m", f"listwise_preference.{module}", *needed, "--ouptut", "x", check=False)
    assert done.returncode == 2 and "unknown option --ouptut; did you mean --output?" in done.stderr
