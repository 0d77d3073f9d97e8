"""A model's chat template as this method needs it."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin

from listwise_preference.errors import ModelError


class ChatFormat:
    """A model's chat template as this method needs it: a prompt's text, and an answer's tokens behind it.

    Args:
        processor: of the model; its template must render a conversation as its generation prompt continued.
        end_token: what the model ends an answer with.

    Raises:
        ModelError: there is no template, or it does not continue its generation prompt.
    """

    def __init__(self, processor: ProcessorMixin, end_token: str) -> None:
        if not processor.chat_template:
            raise ModelError("the checkpoint's processor has no chat template (chat_template.jinja)")
        self.processor = processor
        self.end_token = end_token
        probe = "answer"
        prompt = self.prompt_text("question")
        turns = [
            self._user_turn("question"),
            {"role": "assistant", "content": [{"type": "text", "text": probe}]},
        ]
        whole = processor.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(prompt) or probe not in whole[len(prompt) :]:
            raise ModelError(
                f"the chat template does not continue its generation prompt: {prompt!r} is no beginning of {whole!r}"
            )
        # What stands between the generation prompt and the answer, a space in both families' templates.
        self.answer_lead = whole[len(prompt) :].partition(probe)[0]

    @staticmethod
    def _user_turn(prompt: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}

    def prompt_text(self, prompt: str) -> str:
        """The text of one user turn with one image, up to and with the generation prompt."""
        return self.processor.apply_chat_template([self._user_turn(prompt)], add_generation_prompt=True, tokenize=False)

    def completion_ids(self, prompt_texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer behind its prompt, its end token included.

        An answer is tokenized together with its prompt, since a tokenizer may treat a beginning differently; should
        the two merge at the seam, the answer alone is tokenized, so that prompts are the same for every answer.
        """
        tokenizer = self.processor.tokenizer
        tails = [f"{self.answer_lead}{answer}{self.end_token}" for answer in answers]
        heads = tokenizer(list(prompt_texts)).input_ids
        wholes = tokenizer([head + tail for head, tail in zip(prompt_texts, tails, strict=True)]).input_ids
        return [
            whole[len(head) :] if whole[: len(head)] == head else tokenizer(tail, add_special_tokens=False).input_ids
            for head, whole, tail in zip(heads, wholes, tails, strict=True)
        ]
