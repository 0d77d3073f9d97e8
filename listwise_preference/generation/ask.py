"""``generate.py --ask``: one question on one image, responses of base and adapter side by side, and what they rest on.

What a response rests on is how much the log-probability of each of its tokens falls when a region of the image is
masked, the method's own question.
"""

import logging
import shutil
import tempfile
import textwrap
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.generation.any_model import response_generator
from listwise_preference.generation.engine import Decoding
from listwise_preference.generation.questions import Question
from listwise_preference.models import adapters, loading
from listwise_preference.models.families import family_of
from listwise_preference.training.batch import Collator, Example, on_device
from listwise_preference.training.completion_logps import token_logps

logger = logging.getLogger("listwise_preference")

# All of the box masked, nothing drawn around it.
_MASK = Drawing(list_size=2, visual_prompt="none")


@dataclass(frozen=True)
class Policy:
    """A policy's response, the tokens of it, and each token's log-probability, nats; the last one ends the response."""

    name: str
    response: str
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    logps: tuple[float, ...]


class Asked:
    """One question on one image, asked of the base model and of the base model with its adapter.

    Args:
        model: the base model in evaluation mode on its device; the adapter's layers may be in it.
        adapted: the same with its adapter, or None: the base alone is asked.
        processor: the model's.
        image: EXIF-transposed.
        file: of the image.
        decoding: how responses are made.

    Attributes:
        policies: base first.
    """

    def __init__(self, model: Any, adapted: Any, processor: Any, file: Path, question: str, decoding: Decoding) -> None:
        self.model, self.adapted = model, adapted
        self.image = open_image(file)
        self.question = question
        self._processor = processor
        self._generator = response_generator(model, processor, decoding)
        token_type = family_of(model.config.model_type).response_token_type
        self._collate = Collator(processor, with_rejected=False, ragged=False, response_token_type=token_type)
        names = ("base",) if adapted is None else ("base", "adapter")
        self.policies = tuple(self._ask(name, file) for name in names)

    def _as(self, name: str) -> Any:
        """A context in which the model is the policy of this name."""
        return nullcontext() if name == "adapter" or self.adapted is None else self.adapted.disable_adapter()

    def _ask(self, name: str, file: Path) -> Policy:
        asked = Question(1, self.question, file, yes_no=False, record={})
        with self._as(name):
            ((response,),) = self._generator.respond(self._generator.prepare([asked]))
        chat = self._generator.chat
        (ids,) = chat.completion_ids([chat.prompt_text(self.question)], [response.text])
        logps = self._logps(name, ids, self.image)
        return Policy(name, response.text, tuple(ids), tuple(self._pieces(ids)), tuple(logps.tolist()))

    def _pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds; a character of several tokens comes with its last one."""
        tokenizer = self._processor.tokenizer
        pieces, before = [], ""
        for count in range(1, len(ids) + 1):
            text = tokenizer.decode(ids[:count], skip_special_tokens=True)
            whole = text if not text.endswith("\ufffd") else before
            pieces.append(whole[len(before) :])
            before = whole
        return pieces

    @torch.inference_mode()
    def _logps(self, name: str, ids: list[int], image: Image.Image) -> Tensor:
        prompt = self._generator.chat.prompt_text(self.question)
        batch = self._collate([Example(0, prompt, ids, [], (image,), None)])
        weights = self.model.get_input_embeddings().weight
        with self._as(name):
            return token_logps(self.model, on_device(batch, weights)).cpu()

    def falls(self, box: Box) -> dict[str, list[float]]:
        """By how many nats each token's log-probability falls, of each policy, when the box is masked.

        Raises:
            ValueError: the box does not lie inside the image.
        """
        masked = ranked_images(self.image, box, _MASK)[1]
        return {
            one.name: (torch.tensor(one.logps) - self._logps(one.name, list(one.ids), masked)).tolist()
            for one in self.policies
        }


def run(options: Namespace, file: Path, question: str, decoding: Decoding) -> None:
    """Ask, print, and serve the page where that was asked for."""
    name, revision = options.model_name_or_path, options.model_revision
    processor = loading.load_processor(name, revision, options.processor_settings)
    model = loading.load_base_model(
        name,
        revision=revision,
        dtype=loading.DTYPES[options.dtype],
        attn_implementation=options.attn_implementation,
        device=loading.local_device(),
        load_in_4bit=options.load_in_4bit,
        load_in_8bit=options.load_in_8bit,
    ).eval()
    adapted = None if options.adapter == "none" else adapters.load_adapter(model, Path(options.adapter)).eval()
    asked = Asked(model, adapted, processor, file, question, decoding)
    print(side_by_side({one.name: one.response for one in asked.policies}, shutil.get_terminal_size().columns))
    if options.serve is not None:
        from listwise_preference.generation.ask_page.server import serve

        with tempfile.TemporaryDirectory() as folder:
            serve(asked, Path(folder) / "page", options.serve)


def side_by_side(texts: dict[str, str], columns: int) -> str:
    """Texts in columns of equal width below their names."""
    width = max(20, (columns - 3 * (len(texts) - 1)) // len(texts))
    wrapped = [
        [name, "", *(line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""])]
        for name, text in texts.items()
    ]
    height = max(map(len, wrapped))
    rows = zip(*(lines + [""] * (height - len(lines)) for lines in wrapped), strict=True)
    return "\n".join(" | ".join(f"{cell:{width}}" for cell in row).rstrip() for row in rows)
