import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from listwise_preference.errors import ModelError
from listwise_preference.image_lists.question import QUESTION, Check
from listwise_preference.image_lists.verify import Verifier
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.small_world.detector import save_small_detector
from listwise_preference.small_world.model import FamilyName, save_small_model

# Tokenizers that have seen these write each answer as one token; without them it takes several.
ONE_TOKEN = ("Yes No Yes No Yes No",) * 20
SEVERAL_TOKENS = ("nothing of the kind stands here",)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small work only waits for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(folder: Path, family: FamilyName, texts: tuple[str, ...]) -> Verifier:
    save_small_model(folder, family, texts=texts)
    return Verifier.load(str(folder), device=torch.device("cpu"), dtype=torch.float32)


def checks() -> list[Check]:
    return [
        Check(Image.new("RGB", (90, 60), "red"), "What is it?", "A cat on a {mat}."),
        Check(Image.new("RGB", (50, 100), "blue"), "Is there a dog?", "Yes, a dog and two birds sit by the door."),
        Check(Image.new("RGB", (64, 64), "green"), "Where?", 'Кот 😀 sits "here".'),
    ]


def by_hand(verifier: Verifier, check: Check) -> float:
    """The two answers written out behind the prompt, one at a time, and every token's log-probability added up."""
    processor, model = verifier.processor, verifier.model
    turns = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": QUESTION.replace("{prompt}", check.prompt).replace("{chosen}", check.chosen)},
            ],
        }
    ]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    lead = ChatFormat(processor, "").response_lead
    scores = []
    for answer in ("Yes", "No"):
        head = processor(text=[prompt], images=[[check.image]], return_tensors="pt")
        whole = processor(text=[prompt + lead + answer], images=[[check.image]], return_tensors="pt")
        start = head["input_ids"].shape[1]
        ids = whole["input_ids"][0]
        logps = model(**whole).logits[0].log_softmax(-1)
        scores.append(sum(logps[place - 1, ids[place]].item() for place in range(start, len(ids))))
    return math.exp(scores[0]) / (math.exp(scores[0]) + math.exp(scores[1]))


@pytest.mark.parametrize("family", ["idefics2", "llava"])
@pytest.mark.parametrize("texts", [ONE_TOKEN, SEVERAL_TOKENS], ids=["one token", "several tokens"])
def test_the_yes_probability_is_the_softmax_over_the_two_answers_log_probabilities(
    tmp_path: Path, family: FamilyName, texts: tuple[str, ...]
) -> None:
    verifier = load(tmp_path, family, texts)
    prepared = verifier.prepare(checks())
    assert all((len(answer) == 1) == (texts == ONE_TOKEN) for answer in prepared.answers)
    together = verifier.p_yes(prepared)
    with torch.inference_mode():
        assert together == pytest.approx([by_hand(verifier, check) for check in checks()], abs=1e-5)
    assert together == pytest.approx([verifier.p_yes(verifier.prepare([check]))[0] for check in checks()], abs=1e-5)
    assert max(together) - min(together) > 1e-4  # the images and texts are really seen


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"--verifier .* cannot load the model"):
        Verifier.load(str(tmp_path / "nothing"), device=torch.device("cpu"), dtype=torch.float32)


def test_a_model_of_another_kind_is_named_in_one_line(tmp_path: Path) -> None:
    save_small_detector(tmp_path)
    with pytest.raises(ModelError, match="is a 'grounding-dino' model") as caught:
        Verifier.load(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    assert "\n" not in str(caught.value)
