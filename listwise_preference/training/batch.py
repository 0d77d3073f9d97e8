"""Records -> tensors, one row per image.

For a record with L images, row k is [prompt with image k | chosen completion]; the first also carries the rejected one:

    row 1   prompt, image 1 | chosen | rejected
    row 2   prompt, image 2 | chosen
    ...
    row L   prompt, image L | chosen

Ragged rows are behind one another in one sequence, without padding; the rejected completion does not see the chosen
one and its positions start where the chosen one's did (``models.ragged_attention``), so that row 1 scores two
completions as if each were alone. Unpacked rows give the rejected completion a row of its own, with its image again:
L + 1 rows, padded on the right, an ordinary mask. An objective may score the rejected completion on every image: then
every ragged row carries both, and there are 2 L unpacked ones.

Shapes: B record, R row, T token, N completion token,
A completion (chosen on image 1, rejected, chosen on image 2 ... L, rejected on image 2 ... L if it is scored on all),
D dimension of a position: one, or time, height and width.
"""

import inspect
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import ProcessorMixin

from listwise_preference.data.pairs import Pair, Record
from listwise_preference.errors import ImageError
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.prompt_tensors import encode_prompts, extended, per_token, unpadded
from listwise_preference.models.ragged_attention import Spans

_BLOCK = 512  # records that are tokenized at a time
_COUNTED = 20_000  # of records with long responses as many are tokenized at most, to say how many are cut


class Batch(TypedDict):
    """The tensors of one micro-batch. ``record`` is first: trainers take the batch size from the first tensor."""

    record: Tensor  # (B,) index of each record in its dataset
    input_ids: Tensor  # (R, T); ragged: (1, T)
    keep: Tensor  # bool, as input_ids: positions whose hidden state goes to the vocabulary
    target_source: Tensor  # (N,) which kept position predicts the token
    targets: Tensor  # (N,) the token
    target_completion: Tensor  # (N,) which completion it belongs to, of B * A
    images: dict[str, Tensor]  # all else that the processor returns for these rows: pixels, their sizes, token types
    completion_count: int  # A
    lengths: Tensor  # (B, A) tokens of each completion
    attention_mask: NotRequired[Tensor]  # (R, T), of unpacked rows
    position_ids: NotRequired[Tensor]  # (1, T) or (D, 1, T), of ragged rows
    spans: NotRequired[Spans]  # of ragged rows: lengths of prompt, chosen and rejected completion
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


@dataclass(frozen=True)
class FirstLook:
    """What is known of the completions of all records before training; see :class:`ListwiseDataset`."""

    completions_cut: int
    is_estimate: bool
    alike: dict[int, int | None]


class ListwiseDataset(Dataset[Example]):
    """Records; texts are tokenized, and images opened and drawn, when a record is asked for.

    At the start only those are tokenized, in blocks, of which a response may be longer than ``max_completion_length``
    (20,000 of them at most), or chosen and rejected the same; and nothing where another process has done so (``look``).

    Attributes:
        completions_cut: how many of the ``2 * len(self)`` responses were longer than ``max_completion_length`` tokens.
            A cut response loses its end token with its end: the model shall not learn to stop in mid-sentence. Of more
            than 20,000 records with long responses it is reckoned from some (``is_estimate``).
        alike: records, by index, of which chosen and rejected are the same tokens, with the ``max_completion_length``
            from which they would differ; ``None`` where they never do.
        reference_logps: (records, A) in float64, the reference's log-probabilities, once known.
    """

    def __init__(
        self, records: Sequence[Record], chat: ChatFormat, max_completion_length: int, look: FirstLook | None = None
    ) -> None:
        self.records = records
        self.reference_logps: Tensor | None = None
        self._chat, self._cut = chat, max_completion_length
        self.prompt_texts: Sequence[str] = _Texts(records, chat)
        self.chosen_ids: Sequence[list[int]] = _Completions(self, 0)
        self.rejected_ids: Sequence[list[int]] = _Completions(self, 1)
        self.look = look or self._look()
        self.completions_cut, self.is_estimate = self.look.completions_cut, self.look.is_estimate
        self.alike = self.look.alike

    def _look(self) -> FirstLook:
        room = self._cut - len(self._chat.response_lead) - 8  # the end token is a token, and may be more
        alike, long = array("q"), array("q")
        for index, record in enumerate(self.records):
            if _may_be_alike(record.pair, self._cut):
                alike.append(index)
            if any(_most_tokens(text) > room for text in (record.pair.chosen, record.pair.rejected)):
                long.append(index)
        same = {
            index: _first_difference(chosen, rejected)
            for index, (chosen, rejected) in zip(alike, self._whole(alike), strict=True)
            if chosen[: self._cut] == rejected[: self._cut]
        }
        step = -(-len(long) // _COUNTED) or 1
        counted = sum(len(ids) > self._cut for both in self._whole(long[::step], progress=True) for ids in both)
        return FirstLook(round(counted * len(long) / max(1, len(long[::step]))), step > 1, same)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        try:
            images = self.records[index].images.load()
        except ImageError as error:  # the header was checked before training, the body is read only here
            raise ImageError(f"record {self.records[index].pair.id}: {error}") from error
        ((chosen_ids, rejected_ids),) = self.completions([index])
        return Example(
            index=index,
            prompt_text=self.prompt_texts[index],
            chosen_ids=chosen_ids,
            rejected_ids=rejected_ids,
            images=images,
            reference_logps=None if self.reference_logps is None else tuple(self.reference_logps[index].tolist()),
        )

    def completions(self, indices: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """The token ids of chosen and rejected of each of these records, cut as they are for training."""
        for chosen, rejected in self._whole(indices):
            yield chosen[: self._cut], rejected[: self._cut]

    def _whole(self, indices: Sequence[int], progress: bool = False) -> Iterator[tuple[list[int], list[int]]]:
        starts = range(0, len(indices), _BLOCK)
        hidden = None if progress and len(starts) > 1 else True
        for start in tqdm(starts, desc="Tokenizing", unit=f" x {_BLOCK:,} records", disable=hidden):
            block = indices[start : start + _BLOCK]
            pairs = [self.records[index].pair for index in block]
            responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
            ids = self._chat.completion_ids([self.prompt_texts[index] for index in block] * 2, responses)
            yield from zip(ids[: len(block)], ids[len(block) :], strict=True)


def _most_tokens(text: str) -> int:
    """A bound: no token is less than a byte, and a tokenizer writes letters beyond ASCII as four times more at most."""
    return len(text) if text.isascii() else 4 * len(text.encode())


def _may_be_alike(pair: Pair, cut: int) -> bool:
    """Whether both responses may be the same tokens, or begin with the same ``cut`` tokens.

    Those would be as many bytes at least, so that the texts begin alike.
    """
    if pair.chosen[:8] != pair.rejected[:8] and pair.chosen.isascii() and pair.rejected.isascii():
        return cut <= 8 or _plain(pair.chosen[:64]) == _plain(pair.rejected[:64])
    return _plain(pair.chosen[: cut // 4 + 1]) == _plain(pair.rejected[: cut // 4 + 1])


def _plain(text: str) -> str:
    """Equal for texts that some tokenizer may take for the same."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class _Texts(Sequence[str]):
    """The text of each record's prompt, made when it is asked for."""

    records: Sequence[Record]
    chat: ChatFormat

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self.chat.prompt_text(self.records[index].pair.prompt)


@dataclass(frozen=True)
class _Completions(Sequence[list[int]]):
    """The token ids of each record's chosen (0) or rejected (1) response, made when they are asked for."""

    dataset: ListwiseDataset
    which: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        several = range(*index.indices(len(self))) if isinstance(index, slice) else [index]
        found = [both[self.which] for both in self.dataset.completions(several)]
        return found if isinstance(index, slice) else found[0]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """How many tokens of each it takes to see a difference."""
    return next((at for at in range(1, max(len(one), len(other)) + 1) if one[:at] != other[:at]), None)


@dataclass(frozen=True)
class Collator:
    """Examples -> :class:`Batch`. The processor is called with an image for each row.

    Args:
        processor: of the model.
        with_rejected: score the rejected response too.
        rejected_on_all: score it on every image, not only on the first.
        ragged: rows behind one another in one sequence (else one below the other, padded).
        response_token_type: of the model's family.
        rope_index: the model's own ``get_rope_index``, where it has positions of several dimensions; for ragged rows.
    """

    processor: ProcessorMixin
    with_rejected: bool = True
    ragged: bool = True
    response_token_type: int | None = None
    rope_index: Callable[..., tuple[Tensor, Tensor]] | None = None
    rejected_on_all: bool = False

    def rejected_count(self, levels: int) -> int:
        """On how many of a record's images the rejected completion is scored."""
        return levels if self.rejected_on_all else int(self.with_rejected)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Build the rows; prompts and image tokens are never cut."""
        row_images = [self._row_images(example) for example in examples]
        encoded = encode_prompts(
            self.processor,
            [example.prompt_text for example, images in zip(examples, row_images, strict=True) for _ in images],
            [image for images in row_images for image in images],
        )
        rows = _Rows()
        ids = [prompt.tolist() for prompt in unpadded(encoded, "input_ids")]
        prompts = zip(ids, self._prompt_positions(encoded), strict=True)
        completion = 0  # the first of the record
        for example in examples:
            levels = len(example.images)
            rejected = self.rejected_count(levels)
            for level in range(levels):
                prompt, positions = next(prompts)
                rows.add(prompt, positions, example.chosen_ids, completion + level + (self.with_rejected and level > 0))
                if level < rejected:
                    place = completion + (1 if level == 0 else levels + level)
                    if self.ragged:
                        rows.extend(len(prompt), example.rejected_ids, place)
                    else:
                        rows.add(*next(prompts), example.rejected_ids, place)
            completion += levels + rejected

        layout = self._ragged(rows) if self.ragged else self._unpacked(rows)
        batch: Any = {
            "record": torch.tensor([example.index for example in examples]),
            **layout,
            "images": self._images(encoded, rows),
            "target_source": torch.tensor(rows.target_source),
            "targets": torch.tensor(rows.targets),
            "target_completion": torch.tensor(rows.target_completion),
            "completion_count": completion // len(examples),
            "lengths": torch.tensor(rows.target_completion).bincount(minlength=completion).view(len(examples), -1),
        }
        references = [example.reference_logps for example in examples if example.reference_logps is not None]
        if references:
            batch["reference_logps"] = torch.tensor(references, dtype=torch.float64)
        return batch

    def _row_images(self, example: Example) -> Sequence[Image.Image]:
        """The image of each row; of unpacked rows an image comes again, for the rejected completion on it."""
        again = 0 if self.ragged else self.rejected_count(len(example.images))
        return [image for level, image in enumerate(example.images) for _ in range(1 + (level < again))]

    def _prompt_positions(self, encoded: dict[str, Tensor]) -> list[Tensor]:
        """The positions of each prompt, (D, T): one dimension, or those that the model itself gives to images."""
        if self.rope_index is None or not self.ragged:
            return [torch.arange(int(count))[None] for count in encoded["attention_mask"].sum(1)]
        takes = inspect.signature(self.rope_index).parameters
        positions_DRT, _ = self.rope_index(**{name: value for name, value in encoded.items() if name in takes})
        mask_RT = encoded["attention_mask"].bool()
        return [positions_DRT[:, row, real] for row, real in enumerate(mask_RT)]

    def _images(self, encoded: dict[str, Tensor], rows: "_Rows") -> dict[str, Tensor]:
        """What goes to the model beside the tokens; entries for each token grow with the rows."""
        others = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
        for name in set(per_token(encoded)) & set(others):
            token_type = self.response_token_type if name == "token_type_ids" else None
            grown = [
                extended(row, len(tokens) - len(row), token_type)
                for row, tokens in zip(unpadded(encoded, name), rows.tokens, strict=True)
            ]
            others[name] = torch.cat(grown)[None] if self.ragged else pad_sequence(grown, batch_first=True)
        return others

    @staticmethod
    def _ragged(rows: "_Rows") -> dict[str, Any]:
        starts = [0, *accumulate(map(len, rows.tokens))]
        keep = torch.zeros(1, starts[-1], dtype=torch.bool)
        for start, positions in zip(starts, rows.kept, strict=False):
            keep[0, [start + position for position in positions]] = True
        positions_DT = torch.cat(rows.positions, dim=1)
        return {
            "input_ids": torch.tensor([[token for row in rows.tokens for token in row]]),
            "position_ids": positions_DT if len(positions_DT) == 1 else positions_DT[:, None],
            "keep": keep,
            "spans": tuple(map(tuple, rows.spans)),
        }

    def _unpacked(self, rows: "_Rows") -> dict[str, Any]:
        width = max(map(len, rows.tokens))
        padding = self.processor.tokenizer.pad_token_id or 0
        keep = torch.zeros(len(rows.tokens), width, dtype=torch.bool)
        for row, positions in enumerate(rows.kept):
            keep[row, positions] = True
        return {
            "input_ids": torch.tensor([row + [padding] * (width - len(row)) for row in rows.tokens]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows.tokens]),
            "keep": keep,
        }


class _Rows:
    """Rows under construction: their tokens, and for each completion token the kept position that predicts it."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.positions: list[Tensor] = []
        self.spans: list[list[int]] = []
        self.kept: list[list[int]] = []
        self.kept_count = 0
        self.targets: list[int] = []
        self.target_source: list[int] = []
        self.target_completion: list[int] = []

    def add(self, prompt: list[int], positions: Tensor, ids: list[int], completion: int) -> None:
        """A new row: a prompt with its positions, (D, T), and one completion."""
        count = len(prompt) + len(ids)
        self.tokens.append(prompt + ids)
        self.positions.append(_continued(positions, positions, len(ids)))
        self.spans.append([len(prompt), len(ids), 0])
        # A token is predicted at the position before it, the first one at the end of the prompt.
        self.kept.append(list(range(len(prompt) - 1, count - 1)))
        self._target(ids, completion, list(range(self.kept_count, self.kept_count + len(ids))))
        self.kept_count += len(ids)

    def extend(self, prompt_length: int, ids: list[int], completion: int) -> None:
        """The rejected completion behind the chosen one of the last row; both begin at the prompt's last position."""
        start = len(self.tokens[-1])
        first_kept = self.kept_count - len(self.kept[-1])
        self.tokens[-1] += ids
        row = self.positions[-1]
        self.positions[-1] = _continued(row, row[:, :prompt_length], len(ids))
        self.spans[-1][2] = len(ids)
        self.kept[-1] += range(start, start + len(ids) - 1)
        self._target(ids, completion, [first_kept, *range(self.kept_count, self.kept_count + len(ids) - 1)])
        self.kept_count += len(ids) - 1

    def _target(self, ids: list[int], completion: int, sources: list[int]) -> None:
        self.targets += ids
        self.target_source += sources
        self.target_completion += [completion] * len(ids)


def _continued(row: Tensor, prompt: Tensor, count: int) -> Tensor:
    """A row's positions with those of a completion behind them, counted on from the prompt in every dimension."""
    start = int(prompt.max()) + 1
    return torch.cat([row, torch.arange(start, start + count).expand(len(row), -1)], dim=1)


def on_device(batch: Batch, weights: Tensor) -> Batch:
    """The batch where the model's weights are, its images in their dtype."""
    images = {
        name: value.to(weights.device, weights.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch["images"].items()
    }
    moved: Any = {name: value.to(weights.device) for name, value in batch.items() if isinstance(value, Tensor)}
    return {**batch, **moved, "images": images}
