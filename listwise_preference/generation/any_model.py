"""Responses of any image-text-to-text model: each image is processed once and encoded once, whatever is asked on it.

``engine`` puts prompts together from text and an image's tokens, which needs to know the processor. Here the processor
gives all of a prompt, token types, sizes and grids included. It is called for one prompt at a time, and what its image
processor makes of an image is kept for all prompts on it. An image's features are computed by themselves and given to
the model with every question on the image, where its forward takes ``mm_encoder_outputs``. Where it does not, the
processor is called for a batch as a whole: how images of several prompts stand beside one another is its own affair.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.utils.generic import ModelOutput

from listwise_preference.data.ranked_images import open_image
from listwise_preference.generation.engine import Decoding, Encoded, Group, ResponseGenerator, Row
from listwise_preference.generation.questions import Question
from listwise_preference.models.families import family_of
from listwise_preference.models.prompt_tensors import encode_prompts, per_token


def response_generator(model: PreTrainedModel, processor: ProcessorMixin, decoding: Decoding) -> ResponseGenerator:
    """The generator for a model: that which shares an image's prompt where the model's family allows it."""
    shares = family_of(model.config.model_type).shares_prefix
    return (ResponseGenerator if shares else AnyModelGenerator)(model, processor, decoding)


class AnyModelGenerator(ResponseGenerator):
    """As :class:`ResponseGenerator`; no prompts are shared.

    Attributes:
        takes_features: whether the model takes an image's features in the place of its pixels.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, decoding: Decoding) -> None:
        super().__init__(model, processor, decoding)
        self.takes_features = "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters
        if self.takes_features:
            base = self.model.base_model
            self._encoder_takes = set(inspect.signature(base.get_image_features).parameters)
            # What the encoder takes is not needed beside features, but for positions.
            rope = inspect.signature(base.get_rope_index).parameters if hasattr(base, "get_rope_index") else ()
            self._of_pixels = self._encoder_takes - set(rope)

    def prepare(self, questions: Sequence[Question]) -> Group:
        """Open and process the images, each once, and tokenize the prompts; where features are not shared, open them
        and tokenize the text alone, which orders the rows."""
        if all(question.image is None for question in questions):
            return super().prepare(questions)
        texts = [self.chat.prompt_text(question.text) for question in questions]
        place = {image: index for index, image in enumerate(dict.fromkeys(question.image for question in questions))}
        images = [open_image(image) for image in place if image is not None]
        of_row = [place[question.image] for question in questions]
        if not self.takes_features:
            text_ids = self._text_ids(texts)
            return Group(tuple(map(Row, questions, of_row, text_ids)), {"images": images})
        of_image = [_for_one_image(self.processor) for _ in images]
        first: dict[int, dict[str, Tensor]] = {}
        rows = []
        for question, text, index in zip(questions, texts, of_row, strict=True):
            encoded = encode_prompts(of_image[index], [text], [images[index]])
            first.setdefault(index, encoded)
            beside = {name: value for name, value in encoded.items() if not self._is_of_pixels(name)}
            rows.append(Row(question, index, encoded["input_ids"][0].tolist(), beside))
        return Group(tuple(rows), {"encoded": [first[index] for index in range(len(images))]})

    def _is_of_pixels(self, name: str) -> bool:
        return name.startswith("pixel_") or name in self._of_pixels

    @torch.inference_mode()
    def encode(self, group: Group) -> Encoded:
        """The images' features; the images themselves where the model does not take features."""
        if not self.takes_features or not group.pixels:
            return Encoded(group.pixels.get("images", []), 0, ())
        features = []
        for encoded in group.pixels["encoded"]:
            given = {name: value for name, value in encoded.items() if name in self._encoder_takes}
            features.append(self.model.base_model.get_image_features(**self._on_device(given), return_dict=True))
        return Encoded(features, 0, ())

    def inputs(self, encoded: Encoded, rows: Sequence[Row]) -> dict[str, Any]:
        """What the processor returns for one batch, padded on the left; features in the place of pixels."""
        if len(encoded.features) == 0:
            return super().inputs(encoded, rows)
        of_row = [encoded.features[row.image] for row in rows]
        if not self.takes_features:
            texts = [self.chat.prompt_text(row.question.text) for row in rows]
            return self._on_device(encode_prompts(self.processor, texts, of_row, padding_side="left"))
        return self._on_device(self._side_by_side(rows)) | {"mm_encoder_outputs": {"image": _joined(of_row)}}

    def _side_by_side(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The rows' tensors as the processor gives them for all at once: those of tokens padded on the left, all others
        behind one another."""
        width = max(len(row.ids) for row in rows)
        tokens = per_token(dict(rows[0].encoded))
        pad_id = self.processor.tokenizer.pad_token_id
        joined = {}
        for name in rows[0].encoded:
            values = [row.encoded[name] for row in rows]
            if name in tokens:
                fill = pad_id if name == "input_ids" else 0
                values = [
                    torch.cat([value.new_full((1, width - value.shape[1], *value.shape[2:]), fill), value], dim=1)
                    for value in values
                ]
            joined[name] = torch.cat(values)
        return joined

    @torch.inference_mode()
    def first_logits(self, group: Group, rows: Sequence[Row]) -> Tensor:
        """The logits of each row's first new token, (R, vocabulary), as generation computes them."""
        config = GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=self.pad_id)
        generated = self.model.generate(
            **self.inputs(self.encode(group), rows),
            generation_config=config,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits: Tensor = generated.logits[0]
        return logits

    def _on_device(self, encoded: dict[str, Tensor]) -> dict[str, Any]:
        device, dtype = self.model.device, self.model.get_input_embeddings().weight.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in encoded.items()
        }


class _Once:
    """Before an image processor's class: all calls return what the first one computed, as all have the same image."""

    computed: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.computed is None:
            self.computed = super().__call__(*args, **kwargs)  # type: ignore[misc]
        return copy.copy(self.computed)  # processors take entries out of it


def _for_one_image(processor: Any) -> Any:
    """The processor for prompts on one and the same image."""
    processor, image_processor = copy.copy(processor), copy.copy(processor.image_processor)
    own = type(image_processor)
    image_processor.__class__ = type(own.__name__, (_Once, own), {})
    processor.image_processor = image_processor
    return processor


def _joined(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """Features of several images, each encoded by itself, as the model's encoder returns them for all at once."""
    joined: dict[str, Any] = {}
    for name, value in outputs[0].items():
        parts = [output[name] for output in outputs]
        if name in ("last_hidden_state", "hidden_states", "attentions"):
            continue  # nobody reads them, and their shapes differ
        if name == "deepstack_features":  # a list of layers
            joined[name] = [_behind_one_another(layer) for layer in zip(*parts, strict=True)]
        elif value is not None:
            joined[name] = _behind_one_another(parts)
    return type(outputs[0])(**joined)


def _behind_one_another(parts: Sequence[Any]) -> Any:
    """One tensor of all tensors along their first axis, or one list of all lists."""
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [one for part in parts for one in part]
