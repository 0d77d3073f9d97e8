"""Rows, labels and images of a batch, read token by token."""

from pathlib import Path

import pytest
import torch

from listwise_preference.data.pairs import Pair, Record
from listwise_preference.data.ranked_images import Box, Drawing, MaskedBox
from listwise_preference.errors import ModelError
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import FAMILIES
from listwise_preference.models.loading import end_token, load_processor
from listwise_preference.training.batch import CHOSEN, PAD, PROMPT, REJECTED, Collator, ListwiseDataset

from .conftest import SAMPLE

CAT = SAMPLE / "images" / "cat.jpg"
COFFEE = SAMPLE / "images" / "coffee.jpg"


def record(image: Path = CAT, prompt: str = "What is it?", chosen: str = "A cat.", rejected: str = "A dog") -> Record:
    images = MaskedBox(image, Box(40, 30, 160, 120), Drawing(list_size=3))
    return Record(Pair(image.name, image.name, prompt, chosen, rejected), images)


def chat_of(checkpoint: Path) -> ChatFormat:
    processor = load_processor(str(checkpoint))
    return ChatFormat(processor, end_token(processor, FAMILIES[checkpoint.name]))


@pytest.mark.parametrize(
    ("family", "prompt_text", "answer_tokens"),
    [
        (
            "idefics2",
            "User:<image>What is it?<end_of_utterance>\nAssistant:",
            ["▁A", "▁cat", ".", "<end_of_utterance>"],
        ),
        ("llava", "USER: <image>\nWhat is it? ASSISTANT:", ["▁A", "▁cat", ".", "</s>"]),
    ],
)
def test_labels_are_the_answers_tokens_and_its_end(
    small_checkpoints: dict[str, Path], family: str, prompt_text: str, answer_tokens: list[str]
) -> None:
    chat = chat_of(small_checkpoints[family])
    assert chat.prompt_text("What is it?") == prompt_text
    dataset = ListwiseDataset([record()], chat, max_completion_length=100)
    tokenizer = chat.processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(dataset.chosen_ids[0]) == answer_tokens
    assert tokenizer.convert_ids_to_tokens(dataset.rejected_ids[0]) == ["▁A", "▁dog", answer_tokens[-1]]

    batch = Collator(chat.processor)([dataset[0]])
    row = batch["input_ids"][0][batch["segments"][0] == PROMPT]
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    assert (row == image_token).sum() == {"idefics2": 8, "llava": 16}[family]
    # What the model reads before the answer is what it reads when it generates.
    expected = chat.processor(text=[prompt_text], images=[dataset[0].images[0]], return_tensors="pt")
    assert row.tolist() == expected["input_ids"][0].tolist()


def test_targets_stand_at_the_position_before_each_answer_token(checkpoint: Path) -> None:
    """Every target is the token that follows its source; the rejected answer's first follows the prompt's end."""
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record(), record(COFFEE, chosen="A cup of coffee.")], chat, 100)
    batch = Collator(chat.processor)([dataset[0], dataset[1]])
    kept_rows, kept_positions = batch["keep"].nonzero(as_tuple=True)
    targets_of: dict[int, list[int]] = {}
    for source, token, answer in zip(
        batch["target_source"].tolist(), batch["targets"].tolist(), batch["target_completion"].tolist(), strict=True
    ):
        row, position = int(kept_rows[source]), int(kept_positions[source])
        targets_of.setdefault(answer, []).append(token)
        segments = batch["segments"][row]
        if answer % 4 == 1 and len(targets_of[answer]) == 1:
            assert segments[position] == PROMPT and segments[position + 1] == CHOSEN
            assert batch["input_ids"][row][segments == REJECTED][0] == token
        else:
            assert batch["input_ids"][row, position + 1] == token
    answers = [
        dataset.rejected_ids[i] if answer == 1 else dataset.chosen_ids[i] for i in range(2) for answer in range(4)
    ]
    assert [targets_of[answer] for answer in range(8)] == answers


def test_rows_positions_and_padding(checkpoint: Path) -> None:
    """Three rows a record; the rejected answer's positions start where the chosen one's did; padding is right."""
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record()], chat, 100)
    batch = Collator(chat.processor)([dataset[0]])
    assert batch["input_ids"].shape[0] == 3
    segments, positions = batch["segments"], batch["position_ids"]
    prompt_length = int((segments[0] == PROMPT).sum())
    assert positions[0][segments[0] == CHOSEN].tolist() == list(range(prompt_length, prompt_length + 4))
    assert positions[0][segments[0] == REJECTED].tolist() == list(range(prompt_length, prompt_length + 3))
    assert segments[1].tolist() == [PROMPT] * prompt_length + [CHOSEN] * 4 + [PAD] * 3
    assert batch["images"]["pixel_values"].shape[0] == 3


def test_plain_layout_gives_the_rejected_answer_a_row_with_the_first_image(checkpoint: Path) -> None:
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record()], chat, 100)
    packed, plain = (Collator(chat.processor, packed=packed)([dataset[0]]) for packed in (True, False))
    assert plain["input_ids"].shape[0] == 4
    assert plain["input_ids"][1][plain["segments"][1] == REJECTED].tolist() == dataset.rejected_ids[0]
    for name, pixels in packed["images"].items():
        assert torch.equal(plain["images"][name], pixels[[0, 0, 1, 2]])


def test_without_rejected_answers_no_row_holds_one(checkpoint: Path) -> None:
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record()], chat, 100)
    batch = Collator(chat.processor, with_rejected=False)([dataset[0]])
    assert batch["completion_count"] == 3
    assert not (batch["segments"] == REJECTED).any()


def test_long_answers_are_cut_and_counted_and_prompts_are_not(checkpoint: Path) -> None:
    """Of two answers one is longer than four tokens; the cut one keeps its beginning and loses its end token."""
    chat = chat_of(checkpoint)
    long = record(prompt="Describe it. " * 200, chosen="A cat on the chair and a cup.", rejected="A dog")
    whole = ListwiseDataset([long], chat, 100)
    cut = ListwiseDataset([long], chat, 4)
    assert (whole.completions_cut, cut.completions_cut) == (0, 1)
    assert cut.chosen_ids[0] == whole.chosen_ids[0][:4]
    assert cut.rejected_ids[0] == whole.rejected_ids[0]
    batch = Collator(chat.processor)([cut[0]])
    prompt = chat.processor.tokenizer.decode(batch["input_ids"][0][batch["segments"][0] == PROMPT])
    assert prompt.count("Describe it.") == 200


@pytest.mark.parametrize("answer", ["", " A cat. ", "Łódź 🙂 \n\n1. one", "</s> A", "猫"])
def test_answers_of_any_text_come_back_from_their_tokens(checkpoint: Path, answer: str) -> None:
    chat = chat_of(checkpoint)
    ids = chat.completion_ids([chat.prompt_text("What?")], [answer])[0]
    tokenizer = chat.processor.tokenizer
    assert tokenizer.decode(ids[-1:]) == chat.end_token
    if "</s>" not in answer:  # special tokens are special wherever they stand
        assert tokenizer.decode(tokenizer.encode("x")[:1] + ids[:-1]).removeprefix("<s>").strip(" ") == answer.strip(
            " "
        )


def test_a_template_that_does_not_continue_its_prompt_is_refused(checkpoint: Path) -> None:
    processor = load_processor(str(checkpoint))
    processor.chat_template = "{% if add_generation_prompt %}Answer:{% else %}{{ messages[0]['role'] }}{% endif %}"
    with pytest.raises(ModelError, match="does not continue"):
        ChatFormat(processor, "</s>")
    processor.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        ChatFormat(processor, "</s>")
