"""Checked records made a data set for one model; and what is said of them before the model is loaded."""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from listwise_preference.data.pairs import Record
from listwise_preference.data.stored import some
from listwise_preference.errors import DataError
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import image_settings
from listwise_preference.models.prompt_tensors import encode_prompts
from listwise_preference.training.batch import Collator, ListwiseDataset

logger = logging.getLogger("listwise_preference")


# Of a record; ragged rows of LLaVA-1.5 with five images have 3,500.
_MANY_TOKENS = 8192
# What decides how many tokens an image takes, by the names that image processors have for it.
_TOKEN_SETTINGS = (
    "do_image_splitting",
    "crop_to_patches",
    "do_pan_and_scan",
    "max_patches",
    "max_crops",
    "max_image_tiles",
    "max_pixels",
    "size",
    "max_image_size",
)


def make_dataset(
    what: str, records: Sequence[Record], chat: ChatFormat, cut: int, *, compares_responses: bool, drop: bool
) -> ListwiseDataset:
    """Tokenize records, without those whose two completions are the same tokens where these are compared.

    Args:
        what: what they are for, for messages.
        records: at least one.
        chat: how the model's template writes them.
        cut: tokens that a completion is cut at.
        compares_responses: whether the objective has a term on chosen against rejected.
        drop: leave out a record that teaches nothing, where otherwise it is refused.

    Raises:
        DataError: a record of equal completions, unless dropped; or nothing is left.
    """
    dataset = _dataset(records, chat, cut)
    if compares_responses and dataset.alike:
        report = f"{what}: {_alike(dataset, cut)}"
        kept = some(records, [index for index in range(len(records)) if index not in dataset.alike])
        if not drop or not kept:
            raise DataError(f"{report}; --on_bad_record drop leaves such records out, {len(kept)} others are there")
        logger.warning(f"{report}; left out (--on_bad_record drop)")
        dataset = _dataset(kept, chat, cut)
    images, about = len(records[0].images), "about " if dataset.is_estimate else ""
    logger.info(
        f"{what}: {len(dataset):,} records of {images} image{'s' if images > 1 else ''};"
        f" {about}{dataset.completions_cut:,} of {2 * len(dataset):,} completions cut at {cut} tokens"
    )
    return dataset


def _dataset(records: Sequence[Record], chat: ChatFormat, cut: int) -> ListwiseDataset:
    """Looked at by one process, whose tokens the others need not make again."""
    look = [ListwiseDataset(records, chat, cut).look if PartialState().is_main_process else None]
    broadcast_object_list(look)
    return ListwiseDataset(records, chat, cut, look[0])


def say_tokens(dataset: ListwiseDataset, collator: Collator, processor: Any) -> None:
    """How many tokens an image and a record take; with a warning where tiles times list length explode."""
    example, tokenizer = dataset[0], processor.tokenizer
    batch = collator([example])
    text = len(tokenizer(example.prompt_text, add_special_tokens=False).input_ids)
    if "spans" in batch:
        prompt, record = batch["spans"][0][0], batch["input_ids"].numel()
    else:
        lengths = batch["attention_mask"].sum(1).tolist()
        prompt, record = lengths[0] - len(example.chosen_ids), sum(lengths)
    width, height = example.images[0].size
    logger.info(
        f"tokens of the first record: about {max(prompt - text, 1):,} for its image of {width} x {height} pixels,"
        f" {record:,} in all with {len(example.images)} images"
    )
    if record > _MANY_TOKENS:
        has = image_settings(processor)
        settings = ", ".join(f"{name} {json.dumps(has[name])}" for name in _TOKEN_SETTINGS if has.get(name))
        logger.warning(
            f"{record:,} tokens a record are many: --processor_settings changes how many an image takes"
            f" ({settings or 'its image processor has no setting for that'}), --list_size how many images there are"
        )


def say_settings(dataset: ListwiseDataset, processor: Any, plain: Any, settings: Mapping[str, object]) -> None:
    """Warn of settings of the image processor that change nothing.

    Args:
        processor: with the settings.
        plain: the same without them.
    """
    example = dataset[0]
    texts, images = [example.prompt_text], example.images[:1]
    with_settings, without = (encode_prompts(one, texts, images) for one in (processor, plain))
    if with_settings.keys() == without.keys() and all(
        torch.equal(value, without[name]) for name, value in with_settings.items()
    ):
        logger.warning(f"--processor_settings {json.dumps(settings)} changes nothing for the first record's image")


def _alike(dataset: ListwiseDataset, cut: int) -> str:
    """Which records have a chosen and a rejected completion of the same tokens, and what would keep them apart."""
    lengths = [length for length in dataset.alike.values() if length is not None]
    ids = [str(dataset.records[index].pair.id) for index in dataset.alike]
    shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
    said = f"{len(ids):,} of {len(dataset):,} records have the same tokens as chosen and as rejected"
    said += f" once cut at {cut} tokens: {shown}; they teach nothing"
    return f"{said}. --max_completion_length {max(lengths)} keeps {len(lengths):,} of them apart" if lengths else said


def refuse_special_tokens(records: Iterable[Record], tokenizer: Any) -> None:
    """Refuse texts that a tokenizer would not take as text. One process looks for all.

    Raises:
        DataError: a record's text contains one of the tokenizer's special tokens.
    """
    found = [_special_token(records, tokenizer) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    if found[0] is not None:
        raise DataError(found[0])


def _special_token(records: Iterable[Record], tokenizer: Any) -> str | None:
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
    for record in records:
        texts = {"prompt": record.pair.prompt, "chosen": record.pair.chosen, "rejected": record.pair.rejected}
        for key in texts:
            if found := pattern.search(texts[key]):
                return (
                    f'record {record.pair.id}: "{key}" contains {found[0]}, a special token of this model: take it out'
                )
    return None
