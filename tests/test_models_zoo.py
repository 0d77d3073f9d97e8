"""Nineteen types of model through the programs, each a small checkpoint of the real classes (tests/zoo.py)."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from listwise_preference.errors import ModelError
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_processor
from listwise_preference.models.prompt_tensors import encode_prompts

from . import zoo
from .conftest import SAMPLE

Checkpoint = Callable[[str], Path]
TORCHVISION = find_spec("torchvision") is not None
# What this environment can load.
LOADABLE = [name for name in zoo.TYPES if TORCHVISION or name not in zoo.NEED_TORCHVISION]


@pytest.mark.parametrize("model_type", LOADABLE)
def test_a_checkpoint_loads_and_answers_an_image(model_type: str, zoo_checkpoint: Checkpoint) -> None:
    folder = zoo_checkpoint(model_type)
    processor = load_processor(str(folder))
    chat = ChatFormat(processor)
    assert chat.end_token == zoo.end_token(model_type)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with Image.open(SAMPLE / "images" / "cat.jpg") as image:
        inputs = encode_prompts(processor, [chat.prompt_text("What is on the chair?")], [image.convert("RGB")])
    response = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert 1 <= len(response) <= 4 and response.max() < model.config.get_text_config().vocab_size
    # The image is read: another one gives other logits.
    with Image.open(SAMPLE / "images" / "coffee.jpg") as image:
        others = encode_prompts(processor, [chat.prompt_text("What is on the chair?")], [image.resize((512, 512))])
    with torch.no_grad():
        first, second = (model(**given).logits[0, -1] for given in (inputs, others))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.skipif(TORCHVISION, reason="optional: torchvision is there")
@pytest.mark.parametrize("model_type", zoo.NEED_TORCHVISION)
def test_missing_torchvision_is_said(model_type: str, zoo_checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match=f"{model_type} models with torchvision: pip install torchvision$"):
        load_processor(str(zoo_checkpoint(model_type)))
