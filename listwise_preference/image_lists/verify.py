"""Is the chosen response still right with its object masked? A vision-language model is asked.

The model sees the image with the whole box masked and ``QUESTION``. The answer is not generated: the model's
probabilities of "Yes" and "No" decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from listwise_preference.errors import DataError, ModelError
from listwise_preference.image_lists.question import QUESTION, YES_AND_NO, Check
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import family_of
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.models.prompt_tensors import encode_prompts, extended, per_token


@dataclass(frozen=True)
class Prepared:
    """``inputs`` of a batch of prompts, padded on the right, and the tokens of "Yes" and "No" behind them."""

    inputs: dict[str, Tensor]
    answers: tuple[tuple[int, ...], tuple[int, ...]]


class Verifier:
    """``p_yes(prepare(checks))``: how probable "Yes" is against "No"; ``prepare`` may run on another thread.

    Args:
        model: any image-text model of transformers with a chat template, on its device.
        processor: of the model.

    Raises:
        ModelError: the processor has no usable chat template.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model = model.eval()
        self.processor = processor
        # Without an end token: "Yes." and "Yes, it is." count for yes as well.
        self.chat = ChatFormat(processor, end_token="")
        self.response_token_type = family_of(model.config.model_type).response_token_type

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        processor_settings: Mapping[str, object] | None = None,
    ) -> "Verifier":
        """The checkpoint on ``device``, in ``dtype`` there if it is a GPU and in float32 otherwise.

        Raises:
            ModelError: there is no such checkpoint, or it is no image-text model.
        """
        try:
            processor = load_processor(name_or_path, settings=processor_settings)
        except ModelError as error:
            raise ModelError(f"--verifier {name_or_path}: {error}") from error
        model = load_base_model(name_or_path, dtype=dtype if device.type == "cuda" else torch.float32)
        model.to(device)  # type: ignore[arg-type]
        return cls(model, processor)

    def prepare(self, checks: Sequence[Check]) -> Prepared:
        """Prompts and images as tensors."""
        texts = [self.chat.prompt_text(QUESTION.format(prompt=check.prompt, chosen=check.chosen)) for check in checks]
        yes, no = (tuple(self.chat.completion_ids(texts[:1], [answer])[0]) for answer in YES_AND_NO)
        inputs = encode_prompts(self.processor, texts, [check.image for check in checks])
        return Prepared(inputs, (yes, no))

    @torch.inference_mode()
    def p_yes(self, prepared: Prepared) -> list[float]:
        """Per check the softmax over the log-probabilities of "Yes" and "No", its first part.

        Raises:
            DataError: the GPU has too little memory.
        """
        try:
            return self._p_yes(prepared)
        except torch.OutOfMemoryError as error:
            raise DataError("out of GPU memory in the verifier: lower --verifier_batch_size") from error

    def _p_yes(self, prepared: Prepared) -> list[float]:
        inputs = {
            name: value.to(self.model.device, self.model.dtype if value.is_floating_point() else value.dtype)
            for name, value in prepared.inputs.items()
        }
        # When each answer is a single token, one forward gives both: nothing but the prompt stands before them.
        heads = sorted({answer[:-1] for answer in prepared.answers})
        logps = {head: self._next_logps(inputs, head) for head in heads}
        scores = [
            sum(
                (logps[answer[:-1]][:, position, token] for position, token in enumerate(answer)),
                start=torch.zeros((), device=self.model.device),
            )
            for answer in prepared.answers
        ]
        return torch.stack(scores, dim=-1).softmax(-1)[:, 0].tolist()

    def _next_logps(self, inputs: dict[str, Tensor], head: tuple[int, ...]) -> Tensor:
        """(checks, len(head) + 1, vocabulary) log-probabilities behind the prompt and behind each token of ``head``."""
        lengths = inputs["attention_mask"].sum(-1).tolist()
        width = inputs["input_ids"].shape[1] + len(head)
        grown = dict(inputs)
        for name in per_token(inputs):
            token_type = self.response_token_type if name == "token_type_ids" else None
            rows = []
            for row, length in zip(inputs[name], lengths, strict=True):
                new = extended(row[:length], len(head), token_type)
                if name == "input_ids":
                    new[length:] = torch.tensor(head, dtype=new.dtype)
                rows.append(torch.cat([new, row[length:]]))
            grown[name] = torch.stack(rows)
        keep = max(lengths) - min(lengths) + len(head) + 1
        logits = self.model(**grown, logits_to_keep=keep).logits
        offset = width - logits.shape[1]
        rows = [
            row[length - 1 - offset : length + len(head) - offset] for row, length in zip(logits, lengths, strict=True)
        ]
        return torch.stack(rows).float().log_softmax(-1)
