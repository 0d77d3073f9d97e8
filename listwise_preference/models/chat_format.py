"""A model's chat template as this method needs it."""

from collections.abc import Sequence
from typing import Any

from transformers import ProcessorMixin

from listwise_preference.errors import ModelError

# Anything that a template might strip, escape or write in other letters.
_PROBE = " \n<b>A & 'c'\t"


def add_special_tokens(tokenizer: Any, prompt_text: str) -> bool:
    """Whether the tokenizer shall open prompts like this one: not where the chat template has done so already."""
    return not (tokenizer.bos_token and prompt_text.startswith(tokenizer.bos_token))


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


class ChatFormat:
    """A prompt's text in the model's chat template, and the tokens of a response behind it.

    Args:
        processor: of the model; its template must render a conversation as its generation prompt continued.
        end_token: what a response ends with. By default the special token that the template writes behind a response,
            or the tokenizer's end-of-sequence token where it writes none.
        system_prompt: of a system turn before every prompt.

    Raises:
        ModelError: there is no template, it writes no generation prompt, or it does not continue it; or the system
            prompt has no place in it, or contains a special token.
    """

    def __init__(
        self, processor: ProcessorMixin, end_token: str | None = None, system_prompt: str | None = None
    ) -> None:
        name = processor.tokenizer.name_or_path
        if not processor.chat_template:
            raise ModelError(f"{name}: its processor has no chat template; put its model's chat_template.jinja there")
        self.processor = processor
        special = next((token for token in self._special_tokens() if token in (system_prompt or "")), None)
        if special is not None:
            raise ModelError(f"--system_prompt contains {special}, a special token of this model: take it out")
        self._before = [] if system_prompt is None else [_turn("system", system_prompt)]
        # Responses here have no thoughts in front of them; a template that can leave those out shall do so.
        self._options: dict[str, Any] = (
            {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}
        )
        # A template that does not change a text need not be rendered for each: what is around it is the same.
        self._around = self._render(_PROBE).split(_PROBE)
        prompt, probe = self.prompt_text("question"), "answer"
        if system_prompt is not None and system_prompt.strip() not in prompt:
            raise ModelError("--system_prompt: the model's chat template has no place for a system turn")
        turns = [*self._before, self._user_turn("question"), _turn("assistant", probe)]
        whole = processor.apply_chat_template(turns, tokenize=False, **self._options)
        if not whole.startswith(prompt) or probe not in whole[len(prompt) :]:
            raise ModelError(
                f"{name}: the chat template does not continue its generation prompt: {prompt!r} is no beginning of"
                f" {whole!r}"
            )
        # What is between the generation prompt and the response, as a space in Idefics2's and LLaVA's templates.
        self.response_lead, _, behind = whole[len(prompt) :].partition(probe)
        if self.response_lead.strip() and self._render("question", generation_prompt=False) == prompt:
            raise ModelError(
                f"{name}: the chat template writes no generation prompt: {self.response_lead!r} stands before a"
                " response, and add_generation_prompt does not write it; change chat_template.jinja there"
            )
        self.end_token = self._end_token(behind) if end_token is None else end_token

    def _end_token(self, behind: str) -> str:
        """The special token that text behind a response begins with, or the tokenizer's."""
        written = [token for token in self._special_tokens() if behind.strip().startswith(token)]
        return max(written, key=len, default=str(self.processor.tokenizer.eos_token))

    def _special_tokens(self) -> list[str]:
        return [str(token) for token in self.processor.tokenizer.added_tokens_decoder.values() if token.special]

    @staticmethod
    def _user_turn(prompt: str, with_image: bool = True) -> dict[str, Any]:
        image = [{"type": "image"}] if with_image else []
        return {"role": "user", "content": [*image, {"type": "text", "text": prompt}]}

    def _render(self, prompt: str, with_image: bool = True, generation_prompt: bool = True) -> str:
        turns = [*self._before, self._user_turn(prompt, with_image)]
        return self.processor.apply_chat_template(
            turns, add_generation_prompt=generation_prompt, tokenize=False, **self._options
        )

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
        opened = add_special_tokens(self.processor.tokenizer, prompt_texts[0])
        heads = self._ids(prompt_texts, add_special_tokens=opened)
        wholes = self._ids(
            [text + tail for text, tail in zip(prompt_texts, tails, strict=True)], add_special_tokens=opened
        )
        return [
            whole[len(head) :] if whole[: len(head)] == head else self._ids([tail], add_special_tokens=False)[0]
            for head, whole, tail in zip(heads, wholes, tails, strict=True)
        ]

    def _ids(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        distinct = list(dict.fromkeys(texts))
        # Masks that nobody reads would take half as long again.
        encoded = self.processor.tokenizer(distinct, add_special_tokens=add_special_tokens, return_attention_mask=False)
        ids_of = dict(zip(distinct, encoded.input_ids, strict=True))
        return [ids_of[text] for text in texts]
