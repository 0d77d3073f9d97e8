"""Rows are compared with one completion at a time before a type of model that no test knows is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from listwise_preference.data.pairs import BoxLists, load_records
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.errors import ModelError
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.models.ragged_attention import use_ragged_attention
from listwise_preference.training.batch import Collator, Example, ListwiseDataset
from listwise_preference.training.completion_logps import completion_logps
from listwise_preference.training.row_proof import RowProof, prove_rows

from .conftest import SAMPLE


def proof_of(checkpoint: Path, change: Callable[[Any], None] = lambda model: None, seen: float = 0.0) -> RowProof:
    """Of the sample's first record by a changed model; ``seen`` is what a row adds to the others beside it."""
    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(SAMPLE / "image_lists.jsonl", Drawing(3))).records
    processor = load_processor(str(checkpoint))
    model = load_base_model(str(checkpoint), dtype=torch.float32)
    change(model)

    @torch.no_grad()
    def score(examples: Sequence[Example], collator: Collator) -> Tensor:
        batch = collator(examples)
        return completion_logps(model, batch) + seen * (batch["completion_count"] - 1)

    example = ListwiseDataset(records, ChatFormat(processor), 384)[0]
    return prove_rows(example, Collator(processor), score, lambda: use_ragged_attention(model), torch.float32)


def test_ragged_rows_are_taken_where_they_are_exact(checkpoint: Path) -> None:
    proof = proof_of(checkpoint)
    assert proof.ragged_rows and isinstance(proof.ragged, float) and proof.ragged < 1e-4 and proof.unpacked < 1e-4
    assert str(proof).startswith("rows: ragged, ")


def test_unpacked_rows_are_taken_where_ragged_ones_cannot_be_scored(small_checkpoints: dict[str, Path]) -> None:
    """A window of 32 tokens over rows that are longer."""

    def narrow(model: Any) -> None:
        for layer in model.model.text_model.layers:
            layer.self_attn.sliding_window = layer.self_attn.config.sliding_window = 32

    proof = proof_of(small_checkpoints["idefics2"], narrow)
    assert not proof.ragged_rows and proof.unpacked < 1e-4
    assert "rows: unpacked" in str(proof) and "ragged ones cannot be scored (ragged rows know neither" in str(proof)


def test_unpacked_rows_are_taken_where_ragged_ones_have_other_values(small_checkpoints: dict[str, Path]) -> None:
    """A model that reads all its tokens causally, whatever row they are of."""

    def one_row(model: Any) -> None:
        model.set_attn_implementation = lambda _: None

    proof = proof_of(small_checkpoints["llava"], one_row)
    assert not proof.ragged_rows and isinstance(proof.ragged, float) and proof.ragged > 0.1
    assert f"ragged ones are {proof.ragged:.2g} nats from it (up to " in str(proof)


def test_a_model_that_no_rows_are_exact_for_is_refused_with_the_numbers(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"unpacked ones are 1\.5 nats from .*, ragged ones 1\.5$"):
        proof_of(checkpoint, seen=0.5)  # four completions: 3 x 0.5


def test_a_model_that_does_not_look_at_the_image_is_refused(small_checkpoints: dict[str, Path]) -> None:
    def blind(model: Any) -> None:
        model.model.multi_modal_projector.linear_2.weight.data.zero_()

    with pytest.raises(ModelError, match="does not look at the image"):
        proof_of(small_checkpoints["llava"], blind)
