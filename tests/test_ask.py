"""generate.py --ask: the responses of base and adapter, and the page that shows what they rest on."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from listwise_preference.data.pairs import Pair, Record
from listwise_preference.data.ranked_images import Box, Drawing, MaskedBox
from listwise_preference.errors import DataError
from listwise_preference.generation.ask import Asked, side_by_side
from listwise_preference.generation.command import main
from listwise_preference.generation.engine import Decoding
from listwise_preference.models.adapters import load_adapter
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.completion_logps import completion_logps

from .conftest import SAMPLE
from .test_merge import save_adapter

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "photo.png"
    picture = Image.new("RGB", (200, 100), "white")
    picture.paste((200, 30, 30), (20, 20, 100, 80))
    picture.save(file)
    return file


def ask(checkpoint: Path, image: Path, adapter: Path | None) -> Asked:
    model = load_base_model(str(checkpoint), dtype=torch.float32).eval()
    adapted = adapter and load_adapter(model, adapter).eval()
    return Asked(model, adapted, load_processor(str(checkpoint)), image, QUESTION, Decoding(max_new_tokens=8))


def test_falls_are_the_differences_that_training_sees(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    """Summed over its tokens, a response's fall is log p on the image minus log p on the masked image of a list of two,
    as the batches of training give them, of base and adapter each."""
    adapter = save_adapter(checkpoint, tmp_path / "adapter")
    asked = ask(checkpoint, image, adapter)
    base, adapted = asked.policies
    assert (base.name, adapted.name) == ("base", "adapter") and base.response != adapted.response
    box = Box(20, 20, 100, 80)
    falls = asked.falls(box)
    processor = load_processor(str(checkpoint))
    for policy in asked.policies:
        assert "".join(policy.texts).strip() == policy.response
        masked = MaskedBox(image, box, Drawing(list_size=2, visual_prompt="none"))
        record = Record(Pair(1, image.name, QUESTION, policy.response, "no"), masked)
        dataset = ListwiseDataset([record], ChatFormat(processor), 99)
        batch: Any = Collator(processor, with_rejected=False, ragged=False)([dataset[0]])
        model: Any = load_base_model(str(checkpoint), dtype=torch.float32).eval()
        if policy.name == "adapter":
            model = load_adapter(model, adapter).eval()
        with torch.no_grad():
            first, last = completion_logps(model, batch)[0].tolist()
        assert sum(falls[policy.name]) == pytest.approx(first - last, abs=1e-4) and abs(first - last) > 1e-3
    with pytest.raises(ValueError, match="inside"):
        asked.falls(Box(0, 0, 201, 100))


def test_two_texts_side_by_side() -> None:
    shown = side_by_side({"base": "a dog on a sofa", "adapter": "a cat\n\non it"}, 43)
    assert shown.split("\n") == [
        "base                 | adapter",
        "                     |",
        "a dog on a sofa      | a cat",
        "                     |",
        "                     | on it",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask", "no.png", "What?"], "no.png"),
        (["--ask", "{image}", " "], "the question is blank"),
        (["--ask", "{image}", "<image> What?"], "<image> in the question"),
        (["--serve", "0"], "--serve needs --ask"),
        (["--ask", "{image}", "What?", "--adapter", "none/here"], "holds no adapter"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    image: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = ["--model_name_or_path", "someone/none", "--adapter", "none"]
    with pytest.raises(SystemExit) as ended:
        main({}, [*given, *(one.format(image=image) for one in arguments)])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_program_prints_the_base_alone_without_an_adapter(
    small_checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next((SAMPLE / "images").glob("*.jpg"))
    given = ["--model_name_or_path", str(small_checkpoints["llava"]), "--adapter", "none", "--dtype", "float32"]
    main({}, [*given, "--max_new_tokens", "4", "--ask", str(photo), "What is in the image?"])
    assert capsys.readouterr().out.startswith("base")


# ---- the page ----


@pytest.fixture
def served(small_checkpoints: dict[str, Path], image: Path, tmp_path: Path) -> Iterator[tuple[Asked, str]]:
    """What was asked, and the address of its page."""
    from listwise_preference.generation.ask_page.server import application, listen, server

    checkpoint = small_checkpoints["llava"]
    asked = ask(checkpoint, image, save_adapter(checkpoint, tmp_path / "adapter"))
    listening = listen(0)
    running = server(application(asked, tmp_path / "page"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield asked, f"http://127.0.0.1:{listening.getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture
def page(served: tuple[Asked, str], browser: "Browser") -> Iterator["Page"]:
    """The page, which asks its own server and no other."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)
    requests: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    page = context.new_page()
    page.goto(served[1])
    yield page
    context.close()
    outside = [url for url in requests if not url.startswith((served[1], "data:"))]
    assert (outside, complaints) == ([], [])


def test_a_dragged_box_colours_the_tokens(served: tuple[Asked, str], page: "Page") -> None:
    asked, _ = served
    page.locator("#image").evaluate("image => image.decode()")
    assert page.locator("h1").inner_text() == QUESTION
    tokens = {one.name: page.locator(f"#policy-{one.name} .token") for one in asked.policies}
    assert {name: "".join(token.all_text_contents()) for name, token in tokens.items()} == {
        one.name: "".join(one.texts) for one in asked.policies
    }
    frame = page.locator("#image").bounding_box()
    assert frame is not None

    def at(x: int, y: int) -> tuple[float, float]:
        return frame["x"] + frame["width"] * x / 200, frame["y"] + frame["height"] * y / 100

    page.mouse.move(*at(100, 80))  # from the right lower corner to the left upper one
    page.mouse.down()
    page.mouse.move(*at(20, 20), steps=4)
    page.mouse.up()
    page.wait_for_selector(".token[data-fall]", state="attached")
    values = [page.locator(f"#box [name={edge}]").input_value() for edge in ("left", "top", "right", "bottom")]
    assert list(map(int, values)) == [20, 20, 100, 80]
    expected = asked.falls(Box(20, 20, 100, 80))
    for name, token in tokens.items():
        shown = token.evaluate_all("tokens => tokens.map(token => Number(token.dataset.fall))")
        assert shown == pytest.approx(expected[name])
        assert f"{sum(expected[name]):.2f} nats" in page.locator(f"#policy-{name} .sum").inner_text()
    # The token that falls most is the most coloured one, and others are less so.
    name = max(expected, key=lambda one: max(expected[one]))
    most = tokens[name].nth(expected[name].index(max(expected[name])))
    paint = "node => getComputedStyle(node).backgroundColor"
    assert (most.get_attribute("data-strength") == "5") == (max(expected[name]) >= 1)
    colours = {most.evaluate(paint), *tokens[name].evaluate_all(f"nodes => nodes.map({paint})")}
    assert len(colours) > 1

    page.get_by_role("button", name="Clear").click()
    assert page.locator(".token[data-fall]").count() == 0 and page.locator("#region").is_hidden()


def test_edges_can_be_typed_and_a_wrong_box_is_said(served: tuple[Asked, str], page: "Page") -> None:
    asked, _ = served
    for name, value in (("left", 0), ("top", 0), ("right", 50), ("bottom", 100)):
        page.locator(f"#box [name={name}]").fill(str(value))
    page.get_by_role("button", name="Mask").click()
    page.wait_for_selector(".token[data-fall]", state="attached")
    shown = page.locator("#policy-base .token").evaluate_all("all => all.map(one => Number(one.dataset.fall))")
    assert shown == pytest.approx(asked.falls(Box(0, 0, 50, 100))["base"])
    page.locator("#box [name=left]").fill("50")  # no column is left
    page.get_by_role("button", name="Mask").click()
    page.wait_for_selector("#status:not(.unseen)")
    assert "no box inside the image" in page.locator("#status").inner_text()
    assert page.locator(".token[data-fall]").count() == 0


def test_only_this_machine_is_served_and_a_taken_port_is_said(served: tuple[Asked, str]) -> None:
    import httpx2

    from listwise_preference.generation.ask_page.server import listen

    _, address = served
    assert httpx2.get(address, headers={"Host": "127.0.0.1"}).status_code == 200
    assert httpx2.get(address, headers={"Host": "elsewhere.example"}).status_code == 400
    for wrong in ("no json", json.dumps({"box": [1, 2]}), json.dumps({"box": [0, 0, 999, 9]}), json.dumps([])):
        answer = httpx2.post(f"{address}/falls", content=wrong)
        assert answer.status_code == 400 and "error" in answer.json()
    with pytest.raises(DataError, match="take another port"):
        listen(int(address.rpartition(":")[2]))
