"""Records -> tensors, one row per image.

For a record with L images a packed batch holds L rows. Row k is [prompt with image k | chosen answer]; row 1 carries
the rejected answer too, behind the chosen one:

    row 1   prompt, image 1 | chosen | rejected
    row 2   prompt, image 2 | chosen
    ...
    row L   prompt, image L | chosen

The rejected tokens do not see the chosen ones (``segments`` become the attention mask, see ``answer_logps``) and their
positions start where the chosen answer's did, so row 1 scores two answers as if each stood alone. The plain layout has
a row of its own for the rejected answer, with its picture again: L + 1 rows, an ordinary mask.

Shapes: B record, R row, T token, N answer token, A answer (chosen on image 1, rejected, chosen on image 2 ... L).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from .pairs import Record
from .ranked_images import PictureError

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
    target_answer: Tensor  # (N,) which answer it belongs to, of B * A
    pictures: dict[str, Tensor]  # what the image processor returns, first axis R
    packed: bool  # whether a row holds two answers
    answer_count: int  # A
    reference_logps: NotRequired[Tensor]  # (B, A)


class ChatFormat:
    """A model's chat template as this method needs it: a prompt's text, and an answer's tokens behind it.

    Args:
        processor: of the model; its template must render a conversation as its generation prompt continued.
        end_token: what the model ends an answer with.

    Raises:
        ValueError: there is no template, or it does not continue its generation prompt.
    """

    def __init__(self, processor: ProcessorMixin, end_token: str) -> None:
        if not processor.chat_template:
            raise ValueError("the checkpoint's processor has no chat template (chat_template.jinja)")
        self.processor = processor
        self.end_token = end_token
        probe = "answer"
        prompt = self.prompt_text("question")
        turns = [
            self._user_turn("question"),
            {"role": "assistant", "content": [{"type": "text", "text": probe}]},
        ]
        whole = processor.apply_chat_template(turns, tokenize=False)
        if not whole.startswith(prompt) or probe not in whole[len(prompt) :]:
            raise ValueError(
                f"the chat template does not continue its generation prompt: {prompt!r} is no beginning of {whole!r}"
            )
        # What stands between the generation prompt and the answer, a space in both families' templates.
        self.answer_lead = whole[len(prompt) :].partition(probe)[0]

    @staticmethod
    def _user_turn(prompt: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}

    def prompt_text(self, prompt: str) -> str:
        """The text of one user turn with one image, up to and with the generation prompt."""
        return self.processor.apply_chat_template([self._user_turn(prompt)], add_generation_prompt=True, tokenize=False)

    def answer_ids(self, prompt_texts: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """Token ids of each answer behind its prompt, its end token included.

        An answer is tokenized together with its prompt, since a tokenizer may treat a beginning differently; should
        the two merge at the seam, the answer alone is tokenized, so that prompts are the same for every answer.
        """
        tokenizer = self.processor.tokenizer
        tails = [f"{self.answer_lead}{answer}{self.end_token}" for answer in answers]
        heads = tokenizer(list(prompt_texts)).input_ids
        wholes = tokenizer([head + tail for head, tail in zip(prompt_texts, tails, strict=True)]).input_ids
        return [
            whole[len(head) :] if whole[: len(head)] == head else tokenizer(tail, add_special_tokens=False).input_ids
            for head, whole, tail in zip(heads, wholes, tails, strict=True)
        ]


@dataclass(frozen=True)
class Example:
    """One record, its pictures open and its answers tokenized."""

    index: int
    prompt_text: str
    chosen_ids: list[int]
    rejected_ids: list[int]
    images: tuple[Image.Image, ...]
    reference_logps: tuple[float, ...] | None


class ListwiseDataset(Dataset[Example]):
    """Records, tokenized at the start (texts are small), their pictures opened and drawn when a record is asked for.

    Attributes:
        answers_cut: how many of the ``2 * len(self)`` answers were longer than ``max_completion_length`` tokens.
            A cut answer loses its end token with its end: the model shall not learn to stop in mid-sentence.
        reference_logps: per record the reference's log-probabilities in the order of the answers, once known.
    """

    def __init__(self, records: Sequence[Record], chat: ChatFormat, max_completion_length: int) -> None:
        self.records = records
        self.reference_logps: list[tuple[float, ...]] | None = None
        self.prompt_texts = [chat.prompt_text(record.pair.prompt) for record in records]
        chosen = chat.answer_ids(self.prompt_texts, [record.pair.chosen for record in records])
        rejected = chat.answer_ids(self.prompt_texts, [record.pair.rejected for record in records])
        self.answers_cut = sum(len(ids) > max_completion_length for ids in (*chosen, *rejected))
        self.chosen_ids = [ids[:max_completion_length] for ids in chosen]
        self.rejected_ids = [ids[:max_completion_length] for ids in rejected]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        try:
            images = self.records[index].images.load()
        except PictureError as error:  # the header was checked at the door, the body is read only here
            raise PictureError(f"record {self.records[index].pair.id}: {error}") from error
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
    """Examples -> :class:`Batch`. Each picture goes through the image processor once.

    Args:
        processor: of the model.
        with_rejected: score the rejected answer too.
        packed: the rejected answer behind the chosen one in row 1 (else in a row of its own).
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
        pictures = {name: value for name, value in encoded.items() if name.startswith("pixel_")}

        rows = _Rows()
        picture_rows: list[int] = []
        first_picture, answer = 0, 0
        for example in examples:
            for level in range(len(example.images)):
                prompt = prompts[first_picture + level]
                rows.add(prompt, example.chosen_ids, CHOSEN, answer)
                picture_rows.append(first_picture + level)
                answer += 1
                if level == 0 and self.with_rejected:
                    if self.packed:
                        rows.extend(len(prompt), example.rejected_ids, answer)
                    else:
                        rows.add(prompt, example.rejected_ids, REJECTED, answer)
                        picture_rows.append(first_picture)
                    answer += 1
            first_picture += len(example.images)

        if picture_rows != list(range(first_picture)):
            pictures = {name: value[picture_rows] for name, value in pictures.items()}
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
            pictures=pictures,
            keep=keep,
            target_source=torch.tensor(rows.target_source),
            targets=torch.tensor(rows.targets),
            target_answer=torch.tensor(rows.target_answer),
            packed=self.packed and self.with_rejected,
            answer_count=answer // len(examples),
        )
        references = [example.reference_logps for example in examples if example.reference_logps is not None]
        if references:
            batch["reference_logps"] = torch.tensor(references, dtype=torch.float32)
        return batch


class _Rows:
    """Rows under construction: their tokens, and for each answer token the kept position that predicts it."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.positions: list[list[int]] = []
        self.segments: list[list[int]] = []
        self.kept: list[list[int]] = []
        self.kept_count = 0
        self.targets: list[int] = []
        self.target_source: list[int] = []
        self.target_answer: list[int] = []

    def add(self, prompt: list[int], answer_ids: list[int], segment: int, answer: int) -> None:
        """A new row: a prompt and one answer."""
        count = len(prompt) + len(answer_ids)
        self.tokens.append(prompt + answer_ids)
        self.positions.append(list(range(count)))
        self.segments.append([PROMPT] * len(prompt) + [segment] * len(answer_ids))
        # A token is predicted at the position before it, the first one at the end of the prompt.
        self.kept.append(list(range(len(prompt) - 1, count - 1)))
        self._target(answer_ids, answer, list(range(self.kept_count, self.kept_count + len(answer_ids))))
        self.kept_count += len(answer_ids)

    def extend(self, prompt_length: int, answer_ids: list[int], answer: int) -> None:
        """The rejected answer behind the chosen one of the last row; both begin at the prompt's last position."""
        start = len(self.tokens[-1])
        first_kept = self.kept_count - len(self.kept[-1])
        self.tokens[-1] += answer_ids
        self.positions[-1] += range(prompt_length, prompt_length + len(answer_ids))
        self.segments[-1] += [REJECTED] * len(answer_ids)
        self.kept[-1] += range(start, start + len(answer_ids) - 1)
        self._target(answer_ids, answer, [first_kept, *range(self.kept_count, self.kept_count + len(answer_ids) - 1)])
        self.kept_count += len(answer_ids) - 1

    def _target(self, answer_ids: list[int], answer: int, sources: list[int]) -> None:
        self.targets += answer_ids
        self.target_source += sources
        self.target_answer += [answer] * len(answer_ids)
