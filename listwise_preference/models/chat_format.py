"""A model's chat template as this method needs it."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin

from listwise_preference.errors import ModelError

# Anything that a template might strip, escape or write in other letters.
_PROBE = " \n<b>A & 'c'\t"


class ChatFormat:
    """A prompt's text in the model's chat template, and the tokens of a response behind it.

    Args:
        processor: of the model; its template must render a conversation as its generation prompt continued.
        end_token: what the model ends a response with.

    Raises:
        ModelError: there is no template, or it does not continue its generation prompt.
    """

    def __init__(self, processor: ProcessorMixin, end_token: str) -> None:
        if not processor.chat_template:
            raise ModelError("the checkpoint's processor has no chat template (chat_template.jinja)")
        self.processor = processor
        self.end_token = end_token
        # A template that does not change a text need not be rendered for each: what is around it is the same.
        self._around = self._render(_PROBE).split(_PROBE)
        prompt, probe = self.prompt_text("question"), "answer"
        turns = [
            self._user_turn("question"),
            {"role": "assistant", "content": [{"type": "text", "text": probe}]},
        ]
        whole = processor.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(prompt) or probe not in whole[len(prompt) :]:
            raise ModelError(
                f"the chat template does not continue its generation prompt: {prompt!r} is no beginning of {whole!r}"
            )
        # What is between the generation prompt and the response, a space in both families' templates.
        self.response_lead = whole[len(prompt) :].partition(probe)[0]

    @staticmethod
    def _user_turn(prompt: str, with_image: bool = True) -> dict[str, Any]:
        image = [{"type": "image"}] if with_image else []
        return {"role": "user", "content": [*image, {"type": "text", "text": prompt}]}

    def _render(self, prompt: str, with_image: bool = True) -> str:
        turns = [self._user_turn(prompt, with_image)]
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def prompt_text(self, prompt: str, with_image: bool = True) -> str:
        """The text of one user turn with one image, or with none, up to and with the generation prompt."""
        if with_image and len(self._around) == 2:
            return prompt.join(self._around)
        return self._render(prompt, with_image)

    def completion_ids(self, prompt_texts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """Token ids of each response behind its prompt, its end token included.

        A response is tokenized together with its prompt, since a tokenizer may treat a beginning differently; should
        the two merge at the seam, the response alone is tokenized, so that prompts are the same for every response.
        """
        tails = [f"{self.response_lead}{response}{self.end_token}" for response in responses]
        heads = self._ids(prompt_texts)
        wholes = self._ids([text + tail for text, tail in zip(prompt_texts, tails, strict=True)])
        return [
            whole[len(head) :] if whole[: len(head)] == head else self._ids([tail], add_special_tokens=False)[0]
            for head, whole, tail in zip(heads, wholes, tails, strict=True)
        ]

    def _ids(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        distinct = list(dict.fromkeys(texts))
        # Masks that nobody reads would take half as long again.
        encoded = self.processor.tokenizer(distinct, add_special_tokens=add_special_tokens, return_attention_mask=False)
        ids_of = dict(zip(distinct, encoded.input_ids, strict=True))
        return [ids_of[text] for text in texts]
