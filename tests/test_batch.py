"""Rows, labels and images of a batch, read token by token."""

from pathlib import Path

import pytest
import torch

from listwise_preference.data.pairs import Pair, Record
from listwise_preference.data.ranked_images import Box, Drawing, MaskedBox
from listwise_preference.errors import ModelError
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_processor
from listwise_preference.training.batch import Collator, ListwiseDataset

from .conftest import SAMPLE

CAT = SAMPLE / "images" / "cat.jpg"
COFFEE = SAMPLE / "images" / "coffee.jpg"


def record(image: Path = CAT, prompt: str = "What is it?", chosen: str = "A cat.", rejected: str = "A dog") -> Record:
    images = MaskedBox(image, Box(40, 30, 160, 120), Drawing(list_size=3))
    return Record(Pair(image.name, image.name, prompt, chosen, rejected), images)


def chat_of(checkpoint: Path) -> ChatFormat:
    processor = load_processor(str(checkpoint))
    return ChatFormat(processor)


@pytest.mark.parametrize(
    ("family", "prompt_text", "completion_tokens"),
    [
        (
            "idefics2",
            "User:<image>What is it?<end_of_utterance>\nAssistant:",
            ["▁A", "▁cat", ".", "<end_of_utterance>"],
        ),
        ("llava", "USER: <image>\nWhat is it? ASSISTANT:", ["▁A", "▁cat", ".", "</s>"]),
    ],
)
def test_labels_are_the_completions_tokens_and_its_end(
    small_checkpoints: dict[str, Path], family: str, prompt_text: str, completion_tokens: list[str]
) -> None:
    chat = chat_of(small_checkpoints[family])
    assert chat.prompt_text("What is it?") == prompt_text
    dataset = ListwiseDataset([record()], chat, max_completion_length=100)
    tokenizer = chat.processor.tokenizer
    assert tokenizer.convert_ids_to_tokens(dataset.chosen_ids[0]) == completion_tokens
    assert tokenizer.convert_ids_to_tokens(dataset.rejected_ids[0]) == ["▁A", "▁dog", completion_tokens[-1]]

    batch = Collator(chat.processor)([dataset[0]])
    row = batch["input_ids"][0, : batch["spans"][0][0]]
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    assert (row == image_token).sum() == {"idefics2": 8, "llava": 16}[family]
    # What the model reads before the response is what it reads when it generates.
    expected = chat.processor(text=[prompt_text], images=[dataset[0].images[0]], return_tensors="pt")
    assert row.tolist() == expected["input_ids"][0].tolist()


def test_targets_stand_at_the_position_before_each_completion_token(checkpoint: Path) -> None:
    """Every target is the token that follows its source; the rejected completion's first follows the prompt's end."""
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record(), record(COFFEE, chosen="A cup of coffee.")], chat, 100)
    batch = Collator(chat.processor)([dataset[0], dataset[1]])
    kept = batch["keep"][0].nonzero()[:, 0].tolist()
    targets_of: dict[int, list[int]] = {}
    for source, token, completion in zip(
        batch["target_source"].tolist(), batch["targets"].tolist(), batch["target_completion"].tolist(), strict=True
    ):
        position = kept[source]
        targets_of.setdefault(completion, []).append(token)
        if completion % 4 == 1 and len(targets_of[completion]) == 1:
            # The first of a rejected one: predicted at the prompt's end, behind which the chosen one stands.
            position += batch["spans"][completion // 4 * 3][1]
        assert batch["input_ids"][0, position + 1] == token
    completions = [
        dataset.rejected_ids[i] if completion == 1 else dataset.chosen_ids[i]
        for i in range(2)
        for completion in range(4)
    ]
    assert [targets_of[completion] for completion in range(8)] == completions


def test_ragged_rows_stand_behind_one_another(checkpoint: Path) -> None:
    """Three rows a record, no padding; the rejected completion's positions start where the chosen one's did."""
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record()], chat, 100)
    batch = Collator(chat.processor)([dataset[0]])
    prompt = batch["spans"][0][0]
    assert batch["spans"] == ((prompt, 4, 3), (prompt, 4, 0), (prompt, 4, 0))
    row = list(range(prompt + 4))
    assert batch["position_ids"].tolist() == [[*row, prompt, prompt + 1, prompt + 2, *row, *row]]
    assert batch["input_ids"].shape == (1, 3 * prompt + 15)
    tokens = batch["input_ids"][0, prompt : prompt + 7].tolist()
    assert tokens == dataset.chosen_ids[0] + dataset.rejected_ids[0]
    assert len(batch["images"]["pixel_values"]) == 3


def test_unpacked_rows_give_the_rejected_response_a_row_with_the_first_image(checkpoint: Path) -> None:
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record()], chat, 100)
    ragged, unpacked = (Collator(chat.processor, ragged=ragged)([dataset[0]]) for ragged in (True, False))
    prompt = ragged["spans"][0][0]
    assert unpacked["attention_mask"].sum(dim=1).tolist() == [prompt + 4, prompt + 3, prompt + 4, prompt + 4]
    assert unpacked["input_ids"][1, prompt : prompt + 3].tolist() == dataset.rejected_ids[0]
    for name, pixels in ragged["images"].items():
        assert torch.equal(unpacked["images"][name], pixels[[0, 0, 1, 2]])


def test_without_rejected_responses_no_row_holds_one(checkpoint: Path) -> None:
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset([record()], chat, 100)
    batch = Collator(chat.processor, with_rejected=False)([dataset[0]])
    assert batch["completion_count"] == 3
    assert [rejected for _, _, rejected in batch["spans"]] == [0, 0, 0]


def test_long_responses_are_cut_and_counted_and_prompts_are_not(checkpoint: Path) -> None:
    """Of two responses one is longer than four tokens; the cut one keeps its beginning and loses its end token."""
    chat = chat_of(checkpoint)
    long = record(prompt="Describe it. " * 200, chosen="A cat on the chair and a cup.", rejected="A dog")
    whole = ListwiseDataset([long], chat, 100)
    cut = ListwiseDataset([long], chat, 4)
    assert (whole.completions_cut, cut.completions_cut) == (0, 1)
    assert cut.chosen_ids[0] == whole.chosen_ids[0][:4]
    assert cut.rejected_ids[0] == whole.rejected_ids[0]
    batch = Collator(chat.processor)([cut[0]])
    prompt = chat.processor.tokenizer.decode(batch["input_ids"][0, : batch["spans"][0][0]])
    assert prompt.count("Describe it.") == 200


def test_completions_are_the_same_one_by_one_and_in_blocks_and_only_unsure_ones_are_tokenized_at_the_start(
    checkpoint: Path,
) -> None:
    """ "fl" in one letter is two in another spelling of it, and no tokenizer may cut a response unseen."""
    texts = [("A cat.", "A dog."), ("Łódź 🙂 " * 9, "one"), ("A cat. " * 30, "A cat. " * 31), ("ﬂat", "flat")]
    records = [record(chosen=chosen, rejected=rejected) for chosen, rejected in texts]
    chat = chat_of(checkpoint)
    dataset = ListwiseDataset(records, chat, 40)
    prompts = list(dataset.prompt_texts)
    at_once = list(zip(chat.completion_ids(prompts, [one for one, _ in texts]),
                       chat.completion_ids(prompts, [other for _, other in texts]), strict=True))  # fmt: skip
    assert list(dataset.completions(range(4))) == [(one[:40], other[:40]) for one, other in at_once]
    assert list(zip(dataset.chosen_ids, dataset.rejected_ids, strict=True)) == list(dataset.completions(range(4)))
    assert dataset.completions_cut == sum(len(ids) > 40 for both in at_once for ids in both)
    alike = {index for index, (one, other) in enumerate(at_once) if one[:40] == other[:40]}
    assert set(dataset.alike) == alike and 2 in alike


PROMPTS = ["What is it?", " What? ", "Łódź 🙂 \n\n1. one", "What is it?", "<b> & {{ x }} 'q'", "", "\nA\n"]


def test_prompts_and_completions_are_those_of_the_plain_way(checkpoint: Path) -> None:
    """The template rendered and the prompt tokenized for every response anew, one text at a time."""
    chat = chat_of(checkpoint)
    processor, tokenizer = chat.processor, chat.processor.tokenizer
    responses = ["A cat.", " A dog ", "", "猫 \n", "Yes", "1", "."]
    texts = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        texts.append(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    assert [chat.prompt_text(prompt) for prompt in PROMPTS] == texts
    expected = []
    for text, response in zip(texts, responses, strict=True):
        head, whole = (tokenizer(t).input_ids for t in (text, f"{text} {response}{chat.end_token}"))
        assert whole[: len(head)] == head
        expected.append(whole[len(head) :])
    assert chat.completion_ids(texts, responses) == expected


def test_a_template_that_changes_texts_is_rendered_for_each(checkpoint: Path) -> None:
    processor = load_processor(str(checkpoint))
    processor.chat_template = "{% for message in messages %}{{ message['content'][-1]['text'] | trim }}:{% endfor %}"
    chat = ChatFormat(processor, "</s>")
    assert [chat.prompt_text(prompt) for prompt in (" What? ", "{{ x }}\n")] == ["What?:", "{{ x }}:"]


@pytest.mark.parametrize("response", ["", " A cat. ", "Łódź 🙂 \n\n1. one", "</s> A", "猫"])
def test_responses_of_any_text_come_back_from_their_tokens(checkpoint: Path, response: str) -> None:
    chat = chat_of(checkpoint)
    ids = chat.completion_ids([chat.prompt_text("What?")], [response])[0]
    tokenizer = chat.processor.tokenizer
    assert tokenizer.decode(ids[-1:]) == chat.end_token
    if "</s>" not in response:  # special tokens are special wherever they stand
        assert tokenizer.decode(tokenizer.encode("x")[:1] + ids[:-1]).removeprefix("<s>").strip(" ") == response.strip(
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


# ---- what a template writes around a response ----

_TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'][-1]['text'] }}END{% endfor %}"
_PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize(
    ("end", "expected"),
    [("</s>\n", "</s>"), ("\n<image>", "<image>"), ("", "</s>"), (" the end", "</s>")],
)
def test_a_response_ends_as_the_template_ends_it(checkpoint: Path, end: str, expected: str) -> None:
    """With the special token that is written behind it, or with the tokenizer's end where none is."""
    processor = load_processor(str(checkpoint))
    processor.chat_template = _TURNS.replace("END", end) + _PROMPT
    chat = ChatFormat(processor)
    assert (chat.prompt_text("What?"), chat.response_lead, chat.end_token) == (
        f"<user>What?{end}<assistant>",
        "",
        expected,
    )


def test_a_template_without_a_generation_prompt_is_refused(checkpoint: Path) -> None:
    """One that always leads on to a response, as Mistral's [/INST] does, needs none."""
    processor = load_processor(str(checkpoint))
    processor.chat_template = _TURNS
    with pytest.raises(ModelError, match=r"writes no generation prompt: '<assistant>' stands before a response"):
        ChatFormat(processor)
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    assert ChatFormat(processor).response_lead == ""


def test_a_template_that_can_leave_out_thoughts_does(checkpoint: Path) -> None:
    processor = load_processor(str(checkpoint))
    thought = "<think>{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    answer = "{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    processor.chat_template = (
        _TURNS.replace("<{{ m['role'] }}>", "<{{ m['role'] }}>" + answer).replace("END", "</s>")
        + "{% if add_generation_prompt %}<assistant>"
        + thought
        + "{% endif %}"
    )
    chat = ChatFormat(processor)
    assert chat.prompt_text("What?") == "<user>What?</s><assistant><think></think>"
    assert chat.response_lead == ""


def test_a_beginning_token_that_the_template_writes_is_not_written_twice(checkpoint: Path) -> None:
    processor = load_processor(str(checkpoint))
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    chat = ChatFormat(processor)
    dataset = ListwiseDataset([record()], chat, 100)
    begin = processor.tokenizer.bos_token_id
    for ragged in (True, False):
        ids = Collator(processor, ragged=ragged)([dataset[0]])["input_ids"]
        assert (ids == begin).sum() == (3 if ragged else 4)  # one a row
    assert processor.tokenizer.decode(dataset.chosen_ids[0]).startswith("A cat")
