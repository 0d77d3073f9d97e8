"""Merge in float32, cast once, save; then read what was saved and compare it with base + adapter.

Log-probabilities of responses are computed by base + adapter in float32, which is the truth here; by the base alone,
which tells what the adapter changes; by base + adapter in the merged weights' dtype, which tells what that dtype's
rounding changes whether one merges or not; and by the merged model from disk, which must not be further from the truth
than rounding explains. One model is in memory at a time.
"""

import json
import logging
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ProcessorMixin

from listwise_preference import __version__
from listwise_preference.data.pairs import Record
from listwise_preference.errors import ModelError
from listwise_preference.files import expecting, read_json, sha256_of, write_atomic, write_json
from listwise_preference.models import adapters, loading
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import family_of
from listwise_preference.training.batch import Collator, ListwiseDataset, on_device
from listwise_preference.training.completion_logps import completion_logps

logger = logging.getLogger("listwise_preference")

_LEAST_BOUND, _TIMES = 0.01, 3  # nats; of what rounding changes
_LONGEST = 384  # tokens of a response that are compared


@dataclass(frozen=True)
class Proof:
    """What the comparison found, in nats, each the largest over ``responses`` of ``records``.

    ``difference`` is between the merged model on disk and base + adapter in float32, ``rounding`` between base +
    adapter in the merged weights' dtype and in float32, ``effect`` between base + adapter and the base, ``bound`` what
    the difference may be.
    """

    records: int
    responses: int
    difference: float
    rounding: float
    effect: float
    bound: float

    def __str__(self) -> str:
        return (
            f"largest difference between the merged model on disk and base + adapter: {self.difference:.4f} nats (bound"
            f" {self.bound:.4g}); unmerged in the same dtype: {self.rounding:.4f}; the adapter changes up to"
            f" {self.effect:.4f}; {self.responses} responses of {self.records} records"
        )


def merge_and_prove(options: Namespace, records: Sequence[Record]) -> Proof:
    """Write the merged model to ``options.output`` and return the proof that it is one.

    Raises:
        ModelError: the model or the adapter cannot be loaded or merged, or the proof failed. Nothing is left then.
    """
    name, revision = options.model_name_or_path, options.model_revision
    processor = loading.load_processor(name, revision, options.processor_settings)

    def logps(model: nn.Module) -> Tensor:
        return _logps(model, processor, records, options.system_prompt)

    partial = options.output.with_name(f".{options.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a run that was killed left
    partial.mkdir(parents=True)
    try:
        logger.info(f"base and adapter in float32: {len(records)} records, then merging")
        adapted = _adapted(options, "float32")
        exact_RA = rounded_RA = logps(adapted)
        with adapted.disable_adapter():
            base_RA = logps(adapted)
        tied = _write(adapted, processor, partial, options)
        del adapted
        if options.dtype != "float32":
            rounded_RA = logps(_adapted(options, options.dtype))
        merged = loading.load_base_model(
            str(partial), dtype=loading.DTYPES[options.dtype], device=loading.local_device()
        ).eval()
        proof = compare(logps(merged), exact_RA, rounded_RA, base_RA, options.largest_difference)
        logger.info(str(proof))
        if not proof.difference <= proof.bound:  # not a number is refused as well
            raise ModelError(f"the merged model is not what base and adapter are: {proof}; nothing was written")
        _describe(options, partial, proof, tied)
        if options.output.exists():
            options.output.rmdir()  # empty, as checked
        partial.rename(options.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info(f"the merged model is in {options.output}")
    return proof


def is_merged(options: Namespace) -> bool:
    """Whether ``options.output`` holds what :func:`merge_and_prove` would write, by its ``merge.json``."""
    made = read_json(options.output / "merge.json")
    with expecting("the record of a merged model", options.output / "merge.json"):
        found = {
            "base": made["base"]["weights"],
            "adapter": made["adapter"]["sha256"],
            "dtype": made["dtype"],
            "processor_settings": made.get("processor_settings"),
        }
    return found == _decides(options)


def _decides(options: Namespace) -> dict[str, Any]:
    """All that decides the merged model; the weights are read for their hash."""
    return {
        "base": loading.weights_identity(options.model_name_or_path, options.model_revision),
        "adapter": sha256_of([options.adapter / "adapter_config.json", adapters.adapter_file(options.adapter)]),
        "dtype": options.dtype,
        "processor_settings": options.processor_settings,
    }


def compare(merged: Tensor, exact: Tensor, rounded: Tensor, base: Tensor, bound: float | None = None) -> Proof:
    """The proof from log-probabilities, each of shape (records, 2)."""

    def largest(one: Tensor, other: Tensor) -> float:
        return (one - other).abs().max().item()

    rounding = largest(rounded, exact)
    if bound is None:
        bound = max(_LEAST_BOUND, _TIMES * rounding)
    return Proof(len(exact), exact.numel(), largest(merged, exact), rounding, largest(exact, base), bound)


def _adapted(options: Namespace, dtype: str) -> PeftModel:
    """In float32 on the CPU, where it is merged; else where there is a GPU, there."""
    base = loading.load_base_model(
        options.model_name_or_path,
        revision=options.model_revision,
        dtype=loading.DTYPES[dtype],
        device=None if dtype == "float32" else loading.local_device(),
    )
    return adapters.load_adapter(base, options.adapter).eval()


def _logps(model: nn.Module, processor: ProcessorMixin, records: Sequence[Record], system_prompt: str | None) -> Tensor:
    """Of the chosen and the rejected response to each record: (records, 2), on the CPU."""
    config: Any = model.config
    token_type = family_of(config.model_type).response_token_type
    weights = next(model.parameters())
    dataset = ListwiseDataset(records, ChatFormat(processor, system_prompt=system_prompt), _LONGEST)
    collate = Collator(processor, ragged=False, response_token_type=token_type)
    rows = []
    with torch.no_grad():
        for index in tqdm(range(len(dataset)), desc="Comparing", unit=" records", disable=None):
            rows.append(completion_logps(model, on_device(collate([dataset[index]]), weights)).cpu())
    return torch.cat(rows)


def _write(adapted: PeftModel, processor: ProcessorMixin, folder: Path, options: Namespace) -> bool:
    """Merge and save; whether the vocabulary shares its weights with the embeddings."""
    tied = adapters.untie(adapted)
    if not adapters.merge(adapted):
        raise ModelError(f"{options.adapter} has layers other than linear ones, which are not merged")
    model: Any = adapted.get_base_model().to(loading.DTYPES[options.dtype])
    try:
        model.save_pretrained(folder, max_shard_size=options.max_shard_size)
        processor.save_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the merged model cannot be saved: {error}; nothing was written") from error
    return tied


def _describe(options: Namespace, folder: Path, proof: Proof, tied: bool) -> None:
    """The card, and the same for machines."""
    decides = _decides(options)
    record = {
        "base": {
            "name": options.model_name_or_path,
            "revision": options.model_revision,
            "weights": decides["base"],
        },
        "adapter": {"folder": str(options.adapter), "sha256": decides["adapter"]},
        "dtype": options.dtype,
        "processor_settings": options.processor_settings,
        "system_prompt": options.system_prompt,
        "tied_vocabulary": tied,
        "proof": asdict(proof),
        "versions": {
            "listwise_preference": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    write_json(folder / "merge.json", record)
    at = f" at `{options.model_revision}`" if options.model_revision else ""
    system, turn = options.system_prompt, ""
    if system is not None:
        turn = f'{{"role": "system", "content": [{{"type": "text", "text": {json.dumps(system)}}}]}}, '
    card = f"""---
library_name: transformers
pipeline_tag: image-text-to-text
base_model: {options.model_name_or_path}
base_model_relation: merge
tags: [lpoi]
---

# {options.output.name}

`{options.model_name_or_path}`{at} with an adapter of [LPOI](https://arxiv.org/abs/2505.21061) merged into its
weights: added in float32, rounded once to {options.dtype}.

```python
from transformers import pipeline

ask = pipeline("image-text-to-text", model="{options.output.name}", dtype="auto")
content = [{{"type": "image", "url": "photo.jpg"}}, {{"type": "text", "text": "What is in the image?"}}]
messages = [{turn}{{"role": "user", "content": content}}]
print(ask(text=messages, max_new_tokens=200, return_full_text=False)[0]["generated_text"])
```

**Proof.** {str(proof)[0].upper()}{str(proof)[1:]}. `merge.json` has the same with hashes and versions.
"""
    write_atomic(folder / "README.md", card)
