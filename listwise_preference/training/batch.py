"""Records -> tensors, one row per image.

For a record with L images a packed batch holds L rows. Row k is [prompt with image k | chosen response]; row 1 carries
the rejected response too, behind the chosen one:

    row 1   prompt, image 1 | chosen | rejected
    row 2   prompt, image 2 | chosen
    ...
    row L   prompt, image L | chosen

The rejected tokens do not see the chosen ones (``segments`` become the attention mask, see ``completion_logps``) and
their positions start where the chosen response's did, so row 1 scores two completions as if each stood alone. Unpacked
rows give the rejected response a row of its own, with its image again: L + 1 rows, an ordinary mask.

Shapes: B record, R row, T token, N completion token,
A completion (chosen on image 1, rejected, chosen on image 2 ... L).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from listwise_preference.data.pairs import Record
from listwise_preference.errors import ImageError
from listwise_preference.models.chat_format import ChatFormat

# What a token of a row belongs to.
PAD, PROMPT, CHOSEN, REJECTED = range(4)


class Batch(TypedDict):
    """The tensors of one micro-batch. ``record`` stands first: trainers take the batch size from the first tensor."""

    record: Tensor  # (B,) index of each record in its dataset
    input_ids: Tensor  # (R, T)
    position_ids: Tensor  # (R, T)
    segments: Tensor  # (R, T) PAD, PROMPT, CHOSEN or REJECTED
    keep: Tensor  # (R, T) bool: positions whose hidden state goes to the vocabulary
    target_source: Tensor  # (N,) which kept position predicts the token
    targets: Tensor  # (N,) the token
    target_completion: Tensor  # (N,) which completion it belongs to, of B * A
    images: dict[str, Tensor]  # what the image processor returns, first axis R
    packed: bool  # whether a row may hold two completions
    completion_count: int  # A
    reference_logps: NotRequired[Tensor]  # (B, A)


@dataclass(frozen=True)
class Example:
    """One record, its images open and its responses tokenized."""

    index: int
    prompt_text: str
    chosen_ids: list[int]
    rejected_ids: list[int]
    images: tuple[Image.Image, ...]
    reference_logps: tuple[float, ...] | None


class ListwiseDataset(Dataset[Example]):
    """Records, tokenized at the start (texts are small), their images opened and drawn when a record is asked for.

    Attributes:
        completions_cut: how many of the ``2 * len(self)`` responses were longer than ``max_completion_length`` tokens.
            A cut response loses its end token with its end: the model shall not learn to stop in mid-sentence.
        reference_logps: per record the reference's log-probabilities in the order of the completions, once known.
    """

    def __init__(self, records: Sequence[Record], chat: ChatFormat, max_completion_length: int) -> None:
        self.records = records
        self.reference_logps: list[tuple[float, ...]] | None = None
        self.prompt_texts = [chat.prompt_text(record.pair.prompt) for record in records]
        responses = [record.pair.chosen for record in records] + [record.pair.rejected for record in records]
        completions = chat.completion_ids(self.prompt_texts * 2, responses)
        self.completions_cut = sum(len(ids) > max_completion_length for ids in completions)
        cut = [ids[:max_completion_length] for ids in completions]
        self.chosen_ids, self.rejected_ids = cut[: len(records)], cut[len(records) :]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        try:
            images = self.records[index].images.load()
        except ImageError as error:  # the header was checked at the door, the body is read only here
            raise ImageError(f"record {self.records[index].pair.id}: {error}") from error
        return Example(
            index=index,
            prompt_text=self.prompt_texts[index],
            chosen_ids=self.chosen_ids[index],
            rejected_ids=self.rejected_ids[index],
            images=images,
            reference_logps=self.reference_logps[index] if self.reference_logps is not None else None,
        )


@dataclass(frozen=True)
class Collator:
    """Examples -> :class:`Batch`. Each image goes through the image processor once.

    Args:
        processor: of the model.
        with_rejected: score the rejected response too.
        packed: the rejected response behind the chosen one in row 1 (else in a row of its own).
    """

    processor: ProcessorMixin
    with_rejected: bool = True
    packed: bool = True

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Build the rows; prompts and image tokens are never cut."""
        encoded = self.processor(
            text=[example.prompt_text for example in examples for _ in example.images],
            images=[image for example in examples for image in example.images],
            padding=True,
            return_tensors="pt",
        )
        # The tokenizer pads on a side of its own choice; unpad, and pad on the right below.
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
        images = {name: value for name, value in encoded.items() if name.startswith("pixel_")}

        rows = _Rows()
        image_rows: list[int] = []
        first_image, completion = 0, 0
        for example in examples:
            for level in range(len(example.images)):
                prompt = prompts[first_image + level]
                rows.add(prompt, example.chosen_ids, CHOSEN, completion)
                image_rows.append(first_image + level)
                completion += 1
                if level == 0 and self.with_rejected:
                    if self.packed:
                        rows.extend(len(prompt), example.rejected_ids, completion)
                    else:
                        rows.add(prompt, example.rejected_ids, REJECTED, completion)
                        image_rows.append(first_image)
                    completion += 1
            first_image += len(example.images)

        if image_rows != list(range(first_image)):
            images = {name: value[image_rows] for name, value in images.items()}
        width = max(map(len, rows.tokens))

        def padded(values: list[list[int]], value: int) -> Tensor:
            return torch.tensor([row + [value] * (width - len(row)) for row in values])

        keep = torch.zeros(len(rows.tokens), width, dtype=torch.bool)
        for row, positions in enumerate(rows.kept):
            keep[row, positions] = True
        batch = Batch(
            record=torch.tensor([example.index for example in examples]),
            input_ids=padded(rows.tokens, self.processor.tokenizer.pad_token_id or 0),
            position_ids=padded(rows.positions, 0),
            segments=padded(rows.segments, PAD),
            images=images,
            keep=keep,
            target_source=torch.tensor(rows.target_source),
            targets=torch.tensor(rows.targets),
            target_completion=torch.tensor(rows.target_completion),
            packed=self.packed and self.with_rejected,
            completion_count=completion // len(examples),
        )
        references = [example.reference_logps for example in examples if example.reference_logps is not None]
        if references:
            batch["reference_logps"] = torch.tensor(references, dtype=torch.float32)
        return batch


class _Rows:
    """Rows under construction: their tokens, and for each completion token the kept position that predicts it."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.positions: list[list[int]] = []
        self.segments: list[list[int]] = []
        self.kept: list[list[int]] = []
        self.kept_count = 0
        self.targets: list[int] = []
        self.target_source: list[int] = []
        self.target_completion: list[int] = []

    def add(self, prompt: list[int], completion_ids: list[int], segment: int, completion: int) -> None:
        """A new row: a prompt and one completion."""
        count = len(prompt) + len(completion_ids)
        self.tokens.append(prompt + completion_ids)
        self.positions.append(list(range(count)))
        self.segments.append([PROMPT] * len(prompt) + [segment] * len(completion_ids))
        # A token is predicted at the position before it, the first one at the end of the prompt.
        self.kept.append(list(range(len(prompt) - 1, count - 1)))
        self._target(completion_ids, completion, list(range(self.kept_count, self.kept_count + len(completion_ids))))
        self.kept_count += len(completion_ids)

    def extend(self, prompt_length: int, completion_ids: list[int], completion: int) -> None:
        """The rejected response behind the chosen one of the last row; both begin at the prompt's last position."""
        start = len(self.tokens[-1])
        first_kept = self.kept_count - len(self.kept[-1])
        self.tokens[-1] += completion_ids
        self.positions[-1] += range(prompt_length, prompt_length + len(completion_ids))
        self.segments[-1] += [REJECTED] * len(completion_ids)
        self.kept[-1] += range(start, start + len(completion_ids) - 1)
        self._target(
            completion_ids, completion, [first_kept, *range(self.kept_count, self.kept_count + len(completion_ids) - 1)]
        )
        self.kept_count += len(completion_ids) - 1

    def _target(self, completion_ids: list[int], completion: int, sources: list[int]) -> None:
        self.targets += completion_ids
        self.target_source += sources
        self.target_completion += [completion] * len(completion_ids)
