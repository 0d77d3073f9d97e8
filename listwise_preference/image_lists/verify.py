"""Is the chosen response still right with its object masked? A vision-language model is asked.

The model sees the image with the whole box masked and ``QUESTION``. The answer is not generated: the model's
probabilities of "Yes" and "No" decide.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
)

from listwise_preference.errors import DataError, ModelError
from listwise_preference.image_lists.question import QUESTION, YES_AND_NO, Check
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import FAMILIES
from listwise_preference.models.loading import load_base_model, load_processor


@dataclass(frozen=True)
class Prepared:
    """``inputs`` of a batch of prompts, padded on the right, and the tokens of "Yes" and "No" behind them."""

    inputs: BatchFeature
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
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @classmethod
    def load(cls, name_or_path: str, *, device: torch.device, dtype: torch.dtype) -> "Verifier":
        """The checkpoint on ``device``, in ``dtype`` there if it is a GPU and in float32 otherwise.

        Raises:
            ModelError: there is no such checkpoint, or it is no image-text model.
        """
        try:
            config = AutoConfig.from_pretrained(name_or_path)
            model_type = config.model_type
            if model_type in FAMILIES:
                processor = load_processor(name_or_path)
            else:
                processor = AutoProcessor.from_pretrained(name_or_path)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"cannot load the verifier {name_or_path}: {error}") from error
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise ModelError(f"cannot load the verifier {name_or_path}: {model_type} is no model of images and text")
        model = load_base_model(name_or_path, dtype=dtype if device.type == "cuda" else torch.float32)
        model.to(device)  # type: ignore[arg-type]
        return cls(model, processor)

    def prepare(self, checks: Sequence[Check]) -> Prepared:
        """Prompts and images as tensors."""
        texts = [self.chat.prompt_text(QUESTION.format(prompt=check.prompt, chosen=check.chosen)) for check in checks]
        yes, no = (tuple(self.chat.completion_ids(texts[:1], [answer])[0]) for answer in YES_AND_NO)
        inputs = self.processor(
            text=texts,
            images=[[check.image] for check in checks],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
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
        inputs = prepared.inputs.to(self.model.device)
        inputs = inputs.to(self.model.dtype)  # floating tensors only
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

    def _next_logps(self, inputs: BatchFeature, head: tuple[int, ...]) -> Tensor:
        """(checks, len(head) + 1, vocabulary) log-probabilities behind the prompt and behind each token of ``head``."""
        lengths = inputs["attention_mask"].sum(-1).tolist()
        shape = inputs["input_ids"].shape
        extended = dict(inputs)
        for name, values in inputs.items():
            if isinstance(values, Tensor) and values.shape == shape and name != "pixel_values":
                tail = {"input_ids": list(head), "attention_mask": [1] * len(head)}.get(name, [0] * len(head))
                extended[name] = _insert(values, lengths, tail)
        keep = max(lengths) - min(lengths) + len(head) + 1
        if self._keeps_logits:
            extended["logits_to_keep"] = keep
        logits = self.model(**extended).logits
        offset = shape[1] + len(head) - logits.shape[1]
        rows = [
            row[length - 1 - offset : length + len(head) - offset] for row, length in zip(logits, lengths, strict=True)
        ]
        return torch.stack(rows).float().log_softmax(-1)


def _insert(values: Tensor, lengths: Sequence[int], tail: list[int]) -> Tensor:
    """Each row's ``tail`` behind its own ``lengths`` entries, before the padding."""
    added = torch.tensor(tail, dtype=values.dtype, device=values.device)
    rows = [torch.cat((row[:length], added, row[length:])) for row, length in zip(values, lengths, strict=True)]
    return torch.stack(rows)
