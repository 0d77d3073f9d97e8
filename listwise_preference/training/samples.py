"""``--sample_questions``: what base and adapter respond to a few questions, at each evaluation of a run.

A loss says nothing about a policy that forgets how to describe; its responses do.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import GenerationConfig, ProcessorMixin, TrainerCallback

from listwise_preference.data.own_questions import OwnQuestion
from listwise_preference.data.ranked_images import open_image
from listwise_preference.files import json_line
from listwise_preference.models import ragged_attention
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.prompt_tensors import encode_prompts

_MAX_NEW_TOKENS = 128


class Samples(TrainerCallback):
    """Prints the responses and appends them to a file, a line each.

    Args:
        questions: that are asked, each by itself.
        model: the policy; with its adapter off it is the base.
        ragged: whether its language model has ragged attention, which knows no generation.
        file: ``{"step", "image", "question", "base", "adapter"}`` as JSON lines.
    """

    def __init__(
        self,
        questions: Sequence[OwnQuestion],
        model: PeftModel,
        processor: ProcessorMixin,
        chat: ChatFormat,
        file: Path,
        *,
        ragged: bool,
    ) -> None:
        self.questions, self.processor, self.chat, self.file, self.ragged = questions, processor, chat, file, ragged
        self.model: Any = model
        self._of_base: list[str] | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask all questions; of the base once, since it stays as it is."""
        if not state.is_world_process_zero:
            return
        with self._for_generation():
            if self._of_base is None:
                with self.model.disable_adapter():
                    self._of_base = [self._respond(question) for question in self.questions]
            of_adapter = [self._respond(question) for question in self.questions]
        for question, base, adapter in zip(self.questions, self._of_base, of_adapter, strict=True):
            tqdm.write(f"\nstep {state.global_step}, {question.image.name}: {question.question}")
            tqdm.write(f"  base     {base}")
            tqdm.write(f"  adapter  {'the same' if adapter == base else adapter}")
            asked = {"step": state.global_step, "image": str(question.image), "question": question.question}
            with self.file.open("a", encoding="utf-8", errors="replace") as lines:
                lines.write(json_line(asked | {"base": base, "adapter": adapter}))

    @contextlib.contextmanager
    def _for_generation(self) -> Iterator[None]:
        training, base = self.model.training, self.model.get_base_model()
        self.model.eval()
        if self.ragged:
            base.set_attn_implementation({"text_config": "sdpa"})
        try:
            with torch.inference_mode():
                yield
        finally:
            if self.ragged:
                base.set_attn_implementation({"text_config": ragged_attention.NAME})
            self.model.train(training)

    def _respond(self, question: OwnQuestion) -> str:
        tokenizer, model = self.processor.tokenizer, self.model
        prompt = self.chat.prompt_text(question.question)
        dtype = model.get_input_embeddings().weight.dtype
        inputs = {
            name: value.to(model.device, dtype if value.is_floating_point() else value.dtype)
            for name, value in encode_prompts(self.processor, [prompt], [open_image(question.image)]).items()
        }
        ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(self.chat.end_token)} - {None})
        pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        config = GenerationConfig(max_new_tokens=_MAX_NEW_TOKENS, eos_token_id=ends, pad_token_id=pad, use_cache=True)
        generated = model.generate(**inputs, generation_config=config)
        text: str = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip()
