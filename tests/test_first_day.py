"""What a new user meets when something is not in place: one message that says what to do, before the heavy work."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from listwise_preference.errors import DataError, ModelError
from listwise_preference.generation import command as generation
from listwise_preference.models.hub import check_model, check_upload
from listwise_preference.training.command import read_data, train
from listwise_preference.training.options import parse

from .asking import generate_responses
from .conftest import ROOT, SAMPLE, Run, sample_pairs, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext


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


def test_the_same_two_responses_in_both_orders_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the image is named in another way; not where image or prompt is another one."""
    one, *others = json.loads((SAMPLE / "pairs.json").read_text())
    other = next(pair for pair in others if pair["img_path"] != one["img_path"])
    swapped = one | {"id": "again", "chosen": one["rejected"], "rejected": one["chosen"]}
    swapped["img_path"] = str((SAMPLE / one["img_path"]).resolve())
    pairs = [one, other, swapped, swapped | {"id": "else", "prompt": "Another?"}]
    pairs.append(swapped | {"id": "there", "img_path": other["img_path"]})
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(pairs))
    recipe = {"model_name_or_path": "m", "output_dir": "o", "do_train": True, "objective": "dpo"}
    options = ["--pairs", str(file), "--image_root", str(SAMPLE)]
    assert len(read_data(parse(recipe, options))[0]) == 5
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "training: 1 record chooses the response that another record of the same image and prompt rejects" in said
    assert f"record again against {one['id']};" in said and "--exclude" in said
    caplog.clear()
    read_data(parse(recipe, [*options, "--loss_weights", "dpo=0", "sft=1"]))  # no rejected response is read
    assert not caplog.records


# ---- --dry_run ----


def dry_run(model: Path, folder: Path, *options: str) -> Path:
    recipe = {"model_name_or_path": str(model), "output_dir": str(folder), "do_train": True, "dtype": "float32"}
    train(parse(recipe, ["--dry_run", "--image_root", str(SAMPLE), "--report_to", "none", "--use_cpu", *options]))
    return folder / "dry_run" / "index.html"


def test_a_dry_run_shows_the_first_record_as_the_model_will_see_it(
    context: "BrowserContext", tmp_path: Path, small_checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows, tokens and masks are those of the batch; texts of strangers stay texts; nothing is trained or loaded."""
    model = shutil.copytree(small_checkpoints["idefics2"], tmp_path / "model")
    (model / "model.safetensors").unlink()
    (pair,) = sample_pairs(1)
    pair |= {"prompt": "<img src=x onerror=alert(1)> What is it?", "rejected": "A </script><b>dog</b>."}
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([pair]))
    lists = ("--pairs", str(pairs), "--image_lists", str(SAMPLE / "image_lists.jsonl"), "--list_size", "3")
    file = dry_run(model, tmp_path / "out", *lists)
    assert f"record {pair['id']} as the model will see it" in capsys.readouterr().out
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["dry_run"]
    page = context.new_page()
    page.goto(file.as_uri())
    wait_until(page, "document.querySelectorAll('.segment').length === 7")
    kinds = page.eval_on_selector_all(".segment", "all => all.map(one => one.className.split(' ')[1])")
    assert kinds == ["prompt", "chosen", "rejected", "prompt", "chosen", "prompt", "chosen"]
    assert page.locator("b, img[src=x]").count() == 0
    rejected = page.locator(".segment.rejected .tokens").inner_text()
    assert "</script><b>" in "".join(rejected.split()) and rejected.rstrip().endswith("<end_of_utterance>")
    first = [row.split("\t") for row in page.locator(".sees").first.inner_text().splitlines()]
    assert first[1:] == [
        ["prompt", "up to itself", "nothing", "nothing"],
        ["chosen", "all of it", "up to itself", "nothing"],
        ["rejected", "all of it", "nothing", "up to itself"],
    ]
    chosen, other = page.locator(".segment h3").all_inner_texts()[1:3]
    assert re.findall(r"positions (\d+)-", chosen) == re.findall(r"positions (\d+)-", other) != []
    captions = page.locator("figcaption").all_inner_texts()
    assert [one.rpartition(", ")[2] for one in captions[::2]] == [
        f"{share} % of the box masked" for share in (0, 50, 100)
    ]
    assert all(one.startswith("what the model gets, ") for one in captions[1::2])
    loaded = page.eval_on_selector_all("img", "all => all.every(one => one.complete && one.naturalWidth > 0)")
    assert loaded and page.locator("img").count() == 6


def test_a_dry_run_of_unpacked_rows_has_their_padding(
    context: "BrowserContext", tmp_path: Path, small_checkpoints: dict[str, Path]
) -> None:
    """The rejected completion is in a row of its own, on the first image; no token sees the padding."""
    options = ("--pairs", str(SAMPLE / "pairs.json"), "--objective", "mdpo", "--row_layout", "unpacked")
    page = context.new_page()
    page.goto(dry_run(small_checkpoints["llava"], tmp_path / "out", *options).as_uri())
    wait_until(page, "document.querySelectorAll('.segment').length > 0")
    rows = page.locator("section h2").all_inner_texts()[1:-1]
    assert rows == ["Row 1: image 1, chosen", "Row 2: image 1, rejected", "Row 3: image 2, chosen"]
    counts = [int(one.split(": ")[1].split()[0]) for one in page.locator(".segment h3").all_inner_texts()]
    width = int(re.findall(r"input_ids\s+3 x (\d+)", page.locator(".tensors").inner_text())[0])
    assert sum(counts) == 3 * width
    tables = [table.inner_text() for table in page.locator(".sees").all()]
    padded = [table.splitlines()[1:] for table in tables if "padding" in table]
    assert padded and all(line.endswith("nothing") for lines in padded for line in lines)


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
