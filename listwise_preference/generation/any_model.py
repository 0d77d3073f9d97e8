"""Responses of any image-text-to-text model: every batch goes through its processor, every image is encoded once.

``engine`` puts prompts together from text and an image's tokens, which needs to know the processor. Here the processor
gives all of a batch, token types, sizes and grids included, and only the vision tower's work is shared: an image's
features are computed by themselves and given to the model with every question on the image, where its forward takes
``mm_encoder_outputs``.
"""

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
from listwise_preference.models.prompt_tensors import encode_prompts


def response_generator(model: PreTrainedModel, processor: ProcessorMixin, decoding: Decoding) -> ResponseGenerator:
    """The generator for a model: that which shares an image's prompt where the model's family allows it."""
    shares = family_of(model.config.model_type).shares_prefix
    return (ResponseGenerator if shares else AnyModelGenerator)(model, processor, decoding)


class AnyModelGenerator(ResponseGenerator):
    """As :class:`ResponseGenerator`; a group's images stay images, and no prompts are shared."""

    def prepare(self, questions: Sequence[Question]) -> Group:
        """Open the images. The tokens, of the text alone, only order the rows."""
        if all(question.image is None for question in questions):
            return super().prepare(questions)
        texts = [self.chat.prompt_text(question.text) for question in questions]
        place = {image: index for index, image in enumerate(dict.fromkeys(question.image for question in questions))}
        rows = (
            Row(question, place[question.image], ids)
            for question, ids in zip(questions, self._text_ids(texts), strict=True)
        )
        return Group(tuple(rows), {"images": [open_image(image) for image in place if image is not None]})

    @torch.inference_mode()
    def encode(self, group: Group) -> Encoded:
        """The images, each with its features where the model takes them."""
        images = group.pixels.get("images", [])
        if "mm_encoder_outputs" not in inspect.signature(self.model.forward).parameters:
            return Encoded([(image, None) for image in images], 0, ())
        first_of = {row.image: row for row in reversed(group.rows)}
        encode = self.model.base_model.get_image_features
        takes = inspect.signature(encode).parameters
        features = []
        for place, image in enumerate(images):
            inputs = self._on_device([first_of[place]], [image])
            given = {name: value for name, value in inputs.items() if name in takes}
            features.append((image, encode(**given, return_dict=True)))
        return Encoded(features, 0, ())

    def inputs(self, encoded: Encoded, rows: Sequence[Row]) -> dict[str, Any]:
        """What the processor returns for one batch, padded on the left; features in the place of pixels."""
        if len(encoded.features) == 0:
            return super().inputs(encoded, rows)
        images, features = zip(*(encoded.features[row.image] for row in rows), strict=True)
        inputs = self._on_device(rows, images)
        if features[0] is None:
            return inputs
        without_pixels = {name: value for name, value in inputs.items() if not name.startswith("pixel_")}
        return without_pixels | {"mm_encoder_outputs": {"image": _joined(features)}}

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

    def _on_device(self, rows: Sequence[Row], images: Sequence[Any]) -> dict[str, Any]:
        texts = [self.chat.prompt_text(row.question.text) for row in rows]
        device, dtype = self.model.device, self.model.get_input_embeddings().weight.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in encode_prompts(self.processor, texts, images, padding_side="left").items()
        }


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
