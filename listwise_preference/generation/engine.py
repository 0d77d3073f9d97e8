"""Questions -> responses: many at a time, each image encoded once.

Work comes in groups of images with all their questions. Each image of a group goes through the image processor
and the vision tower once. Where the prompts begin alike up to and with the image, that beginning goes through the
language model once for each image; its key-value cache is then copied for every question on the image, and only
the questions' own tokens are left to read:

    image 1   <s>User:<image>...<image> |       Is there a dog?    -> Yes
                                          | Describe this image.     -> The image shows ...
    image 2   <s>User:<image>...<image> |       Is there a car?    -> No

Padding stands between the shared beginning and the question; the attention mask hides it, and positions count on from
the beginning, so that every row is what it would be alone.

Shapes: P image, R row (one question), T token, S token behind the shared beginning.
"""

import gc
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import ModelError
from listwise_preference.generation.questions import Question
from listwise_preference.models.chat_format import ChatFormat, add_special_tokens
from listwise_preference.models.families import family_of

Result = TypeVar("Result")

TOP_K = 50  # of the likeliest tokens one is drawn, where tokens are drawn


@dataclass(frozen=True)
class Decoding:
    """How responses are made.

    Attributes:
        batch_size: questions, and images, at a time.
        max_new_tokens: of a response in free text.
        max_new_tokens_yes_no: of a response to a yes/no question.
        decided: says of the beginning of a yes/no response that nothing behind it matters; ``None`` never stops early.
        temperature: 0 takes the likeliest token, above 0 draws.
        seed: of the draws.
        share_prefix: run the prompts' common beginning once for each image.
        system_prompt: of a system turn before every question.
    """

    batch_size: int = 16
    max_new_tokens: int = 512
    max_new_tokens_yes_no: int = 32
    decided: Callable[[str], bool] | None = None
    temperature: float = 0.0
    seed: int = 0
    share_prefix: bool = True
    system_prompt: str | None = None


def end_ids(processor: ProcessorMixin, chat: ChatFormat, configured: GenerationConfig) -> list[int]:
    """What ends a response: the end tokens of template, tokenizer and checkpoint."""
    own = configured.eos_token_id
    tokenizer = processor.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(chat.end_token)}
    return sorted((ends | set(own if isinstance(own, list) else [own])) - {None})


def of_checkpoint(content: Mapping[str, Any]) -> GenerationConfig:
    """What generation takes from a checkpoint's generation_config.json: its end tokens and its padding."""
    return GenerationConfig(eos_token_id=content.get("eos_token_id"), pad_token_id=content.get("pad_token_id"))


def decoding_record(processor: ProcessorMixin, content: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """What decides how tokens are chosen besides the options, and what the checkpoint asks for and does not get."""
    ends = end_ids(processor, ChatFormat(processor), of_checkpoint(content))
    used = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
    drawn = {"top_k": TOP_K, "top_p": 1.0} if temperature > 0 else {}
    return {
        "strategy": "sampling" if drawn else "greedy",
        **drawn,
        "end_tokens": processor.tokenizer.convert_ids_to_tokens(ends),
        "not_used": {name: value for name, value in content.items() if name not in used},
    }


@dataclass(frozen=True)
class Response:
    """The text of a response; ``cut`` when it had not ended at its greatest length."""

    question: Question
    text: str
    cut: bool


@dataclass(frozen=True)
class Row:
    """A question, its prompt's tokens with the image tokens among them, and its image's place in the group; ``encoded``
    is what else the processor gives for the prompt."""

    question: Question
    image: int
    ids: list[int]
    encoded: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rows, and the pixel tensors of their images, first axis P, or lists of P; on the CPU. Questions without an image
    are in groups of their own, which have no pixels."""

    rows: tuple[Row, ...]
    pixels: dict[str, Any]

    @property
    def image_count(self) -> int:
        """P; 1 where there are none."""
        return len(next(iter(self.pixels.values()))) if self.pixels else 1

    def halves(self) -> "tuple[Group, Group]":
        """The first and the second half of the images, with their rows."""
        middle = self.image_count // 2
        first = tuple(row for row in self.rows if row.image < middle)
        second = tuple(replace(row, image=row.image - middle) for row in self.rows if row.image >= middle)
        return (
            Group(first, {name: value[:middle] for name, value in self.pixels.items()}),
            Group(second, {name: value[middle:] for name, value in self.pixels.items()}),
        )

    def batches(self, size: int) -> list[list[Row]]:
        """At most ``size`` rows each, of one kind and of like length."""
        batches = []
        for yes_no in (False, True):
            rows = sorted((row for row in self.rows if row.question.yes_no == yes_no), key=lambda row: len(row.ids))
            batches += [rows[start : start + size] for start in range(0, len(rows), size)]
        return batches


@dataclass(frozen=True)
class Encoded:
    """What the model made of a group's images.

    Attributes:
        features: of each image, as the language model takes them.
        shared: how many tokens of every prompt are read already.
        cache: their keys and values, a pair a layer, first axis P.
    """

    features: Sequence[Any]
    shared: int
    cache: tuple[tuple[Tensor, Tensor], ...]


def plan(questions: Sequence[Question], images: int) -> list[list[Question]]:
    """Groups of at most ``images`` images with all their questions, images in the order they are first asked of; behind
    them the questions without an image, as many to a group.

    The plan rests on the questions alone, so that a run that is continued, or split over processes, makes the same
    batches as one that is not.
    """
    by_image: dict[object, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    text_only = by_image.pop(None, [])
    each = list(by_image.values())
    return [
        *(
            [question for asked in each[start : start + images] for question in asked]
            for start in range(0, len(each), images)
        ),
        *(text_only[start : start + images] for start in range(0, len(text_only), images)),
    ]


class ResponseGenerator:
    """A model that responds to groups of questions.

    Args:
        model: in evaluation mode on its device; an adapter's layers may be in it.
        processor: the model's.
        decoding: how.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, decoding: Decoding) -> None:
        self.model: Any = model  # its families' own methods are not PreTrainedModel's
        self.processor = processor
        self.decoding = decoding
        self.family = family_of(model.config.model_type)
        self.chat = ChatFormat(processor, system_prompt=decoding.system_prompt)
        configured: Any = model.generation_config
        self.end_ids = end_ids(processor, self.chat, configured)
        pads = (configured.pad_token_id, processor.tokenizer.pad_token_id, self.end_ids[0])
        self.pad_id = next(pad for pad in pads if pad is not None)
        # What generate() is not told it takes from the model's configuration, which may ask for anything.
        self.model.generation_config = GenerationConfig(eos_token_id=self.end_ids, pad_token_id=self.pad_id)
        # What fitted into memory when the sizes asked for did not.
        self.most_images = self.most_rows = decoding.batch_size

    # ---- on the CPU ----

    def prepare(self, questions: Sequence[Question]) -> Group:
        """Open and process the images, each once, and tokenize the prompts.

        Raises:
            ImageError: an image that could be opened at the start no longer can.
            ModelError: the processor gives other tokens with the image than without.
        """
        if all(question.image is None for question in questions):
            texts = [self.chat.prompt_text(question.text, with_image=False) for question in questions]
            rows = (Row(question, 0, ids) for question, ids in zip(questions, self._text_ids(texts), strict=True))
            return Group(tuple(rows), {})
        texts = [self.chat.prompt_text(question.text) for question in questions]
        first_asked: dict[Path, int] = {}
        for index, question in enumerate(questions):
            assert question.image is not None  # plan() puts them apart
            first_asked.setdefault(question.image, index)
        place: dict[Path | None, int] = {image: index for index, image in enumerate(first_asked)}
        firsts = list(first_asked.values())
        opened = add_special_tokens(self.processor.tokenizer, texts[0])
        encoded = self.processor(
            text=[texts[first] for first in firsts],
            images=[open_image(image) for image in first_asked],
            padding=True,
            add_special_tokens=opened,
            return_tensors="pt",
        )
        whole = [
            ids[mask.bool()].tolist() for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
        # What stands in the place of the image token once the image is known goes into all prompts on that image, so
        # that no image is processed twice.
        tokenize = self.processor if self.family.expands_text_alone else self.processor.tokenizer
        alone = tokenize(text=texts, add_special_tokens=opened)["input_ids"]
        starts = [ids.index(self.image_token) for ids in alone]
        expansions = [
            ids[starts[first] : starts[first] + 1 + len(ids) - len(alone[first])]
            for ids, first in zip(whole, firsts, strict=True)
        ]
        all_rows = tuple(
            Row(question, place[question.image], ids[:start] + expansions[place[question.image]] + ids[start + 1 :])
            for question, ids, start in zip(questions, alone, starts, strict=True)
        )
        for ids, first in zip(whole, firsts, strict=True):
            if all_rows[first].ids != ids:
                raise ModelError(f"{questions[first].text!r} has other tokens with its image than without")
        return Group(all_rows, {name: value for name, value in encoded.items() if name.startswith("pixel_")})

    @property
    def image_token(self) -> int:
        """The token that image features take the place of."""
        token: int = self.model.config.image_token_id
        return token

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts as text alone."""
        tokenizer = self.processor.tokenizer
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=add_special_tokens(tokenizer, texts[0]))["input_ids"]
        return ids

    # ---- on the device ----

    def respond(self, group: Group, done: Container[int] = ()) -> Iterator[list[Response]]:
        """A group's responses, batch by batch; batches whose question numbers are all in ``done`` are left out.

        A batch with only some of them done is made again as a whole, so that its numbers are those of the first time.
        When memory runs out, batches and then groups are halved, and stay so.

        Raises:
            ModelError: there is not enough memory for one question.
        """
        answered: set[int] = set()
        groups = [group]
        while groups:
            part = groups.pop()
            if part.image_count > self.most_images:
                groups += part.halves()[::-1]
                continue
            encoded = self._if_it_fits(partial(self.encode, part))
            batches = part.batches(self.decoding.batch_size)[::-1]
            while batches and encoded is not None:
                rows = batches.pop()
                numbers = {row.question.number for row in rows}
                if numbers <= answered or all(number in done for number in numbers):
                    continue
                if len(rows) > self.most_rows:
                    batches += [rows[self.most_rows :], rows[: self.most_rows]]
                    continue
                responses = self._if_it_fits(partial(self._decode, encoded, rows))
                if responses is not None:
                    answered |= numbers
                    yield responses
                elif len(rows) > 1:
                    self.most_rows = (len(rows) + 1) // 2
                    batches.append(rows)
                else:
                    encoded = None  # the other images may be what takes the memory
            if encoded is None:
                if part.image_count == 1:
                    raise ModelError("there is not enough memory for one question: try --load_in_4bit or --dtype")
                self.most_images = (part.image_count + 1) // 2
                groups.append(part)

    def _if_it_fits(self, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns, or ``None`` when memory ran out."""
        try:
            return work()
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Only here has the failed call let go of its tensors.
        gc.collect()
        clear_device_cache()
        return None

    @torch.inference_mode()
    def encode(self, group: Group) -> Encoded:
        """The vision tower on every image, and the language model on what their prompts have in common."""
        if not group.pixels:
            return Encoded((), 0, ())
        device, dtype = self.model.device, self.model.get_input_embeddings().weight.dtype
        pixels = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in group.pixels.items()
        }
        features = self.model.get_image_features(**pixels, return_dict=True).pooler_output
        shared = self._shared_length(group) if self.decoding.share_prefix else 0
        if shared == 0:
            return Encoded(features, 0, ())
        first_of = {row.image: row for row in reversed(group.rows)}
        beginnings = [first_of[image].ids[:shared] for image in range(group.image_count)]
        cache = DynamicCache(config=self.model.config)
        self.model(
            input_ids=torch.tensor(beginnings, device=device),
            mm_encoder_outputs=_encoder_outputs(features),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return Encoded(features, shared, tuple((keys, values) for keys, values, _ in cache))

    def _shared_length(self, group: Group) -> int:
        """How many tokens all prompts begin with alike, the image among them; 0 where there is nothing to gain."""
        if len(group.rows) == group.image_count:
            return 0  # nothing is asked twice
        shortest, longest = min(row.ids for row in group.rows), max(row.ids for row in group.rows)
        # Between the first and the last in dictionary order lie all others: what these two share, all share. One token
        # at least stays for each question, since the next one is predicted from it.
        limit = min(len(row.ids) for row in group.rows) - 1
        shared = next((at for at in range(limit) if shortest[at] != longest[at]), limit)
        return shared if all(self.image_token not in row.ids[shared:] for row in group.rows) else 0

    def inputs(self, encoded: Encoded, rows: Sequence[Row]) -> dict[str, Any]:
        """The model's inputs for one batch, padded on the left; a cache among them is theirs alone."""
        device = self.model.device
        tails = [row.ids[encoded.shared :] for row in rows]
        width = max(map(len, tails))
        input_ids_RS = torch.tensor([[self.pad_id] * (width - len(tail)) + tail for tail in tails])
        mask_RT = torch.tensor([[1] * encoded.shared + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails])
        inputs: dict[str, Any] = {"input_ids": input_ids_RS.to(device), "attention_mask": mask_RT.to(device)}
        images = [row.image for row in rows]
        if len(encoded.features) == 0:
            return inputs
        if encoded.shared == 0:
            inputs["mm_encoder_outputs"] = _encoder_outputs([encoded.features[image] for image in images])
            return inputs
        of_row = torch.tensor(images, device=device)
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(encoded.cache):
            cache.update(keys[of_row], values[of_row], layer)
        return inputs | {"cache": cache}

    @torch.inference_mode()
    def first_logits(self, group: Group, rows: Sequence[Row]) -> Tensor:
        """The logits of each row's first new token, (R, vocabulary)."""
        inputs = self.inputs(self.encode(group), rows)
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs["input_ids"].shape[1] :]
        logits: Tensor = self.model(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]
        return logits

    @torch.inference_mode()
    def _decode(self, encoded: Encoded, rows: Sequence[Row]) -> list[Response]:
        decoding, yes_no = self.decoding, rows[0].question.yes_no
        budget = decoding.max_new_tokens_yes_no if yes_no else decoding.max_new_tokens
        inputs = self.inputs(encoded, rows)
        start = inputs["input_ids"].shape[1]
        stopping = StoppingCriteriaList()
        if yes_no and decoding.decided is not None:
            stopping.append(_Decided(self.processor, start, decoding.decided))
        if decoding.temperature > 0:
            # By the batch, so that a continued run draws what an uninterrupted one does.
            torch.manual_seed(decoding.seed + rows[0].question.number)
        config = GenerationConfig(
            max_new_tokens=budget,
            do_sample=decoding.temperature > 0,
            temperature=decoding.temperature or None,
            top_k=TOP_K if decoding.temperature > 0 else None,
            num_beams=1,
            eos_token_id=self.end_ids,
            pad_token_id=self.pad_id,
        )
        sequences = self.model.generate(**inputs, generation_config=config, stopping_criteria=stopping)
        return [
            self._response_of(row, new, budget) for row, new in zip(rows, sequences[:, start:].tolist(), strict=True)
        ]

    def _response_of(self, row: Row, new: list[int], budget: int) -> Response:
        end = next((at for at, token in enumerate(new) if token in self.end_ids), None)
        kept = new[:end]
        while kept and kept[-1] == self.pad_id:  # behind an early stop
            kept.pop()
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Response(row.question, text, cut=end is None and len(kept) == budget)


def _encoder_outputs(features: Sequence[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Image features in the form in which the model takes them instead of pixels."""
    pooled: Any = list(features)  # a tensor by its type, a list of them by the models' code
    return {"image": BaseModelOutputWithPooling(pooler_output=pooled)}


class _Decided(StoppingCriteria):
    """Ends a row once its response is decided."""

    def __init__(self, processor: ProcessorMixin, start: int, decided: Callable[[str], bool]) -> None:
        self.tokenizer = processor.tokenizer
        self.start = start
        self.decided = decided

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        return torch.tensor([self.decided(text) for text in texts], device=input_ids.device)


def prove_adapter(generator: ResponseGenerator, adapted: PeftModel, question: Question) -> None:
    """Check that the adapter changes what the model says to a question.

    Raises:
        ModelError: the logits with and without it are the same.
    """
    group = generator.prepare([question])
    with_adapter = generator.first_logits(group, group.rows)
    with adapted.disable_adapter():
        without = generator.first_logits(group, group.rows)
    if torch.equal(with_adapter, without):
        raise ModelError(
            f"the adapter changes nothing: with and without it the model gives the same logits for {question.text!r}."
            " Is it an adapter that was saved before training?"
        )
