"""Answers to benchmarks' questions: batched, shared, stopped, continued, they are those of one question at a time."""

import base64
import json
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import DataError, ModelError
from listwise_preference.files import read_records
from listwise_preference.generation.any_model import AnyModelGenerator
from listwise_preference.generation.command import main, parse
from listwise_preference.generation.engine import Decoding, Response, ResponseGenerator, plan
from listwise_preference.generation.questions import Question, read_questions, write_responses
from listwise_preference.models.adapters import add_adapter, merge
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.frozen_tower import vision_tower
from listwise_preference.models.loading import load_base_model, load_processor
from listwise_preference.scoring.answers import first_word_decided, first_yes_or_no
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.interface import QuestionFormat
from listwise_preference.scoring.mmhal import check as check_mmhal
from listwise_preference.scoring.object_halbench import read_captions
from listwise_preference.scoring.pope import decided as pope_decided
from listwise_preference.scoring.pope import says_yes

from .conftest import ROOT, SAMPLE, Run
from .scoring_data import read_data

# Of our own calls none is deprecated; peft's asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("error", "ignore:.*is_gradient_checkpointing.*:FutureWarning")

PICTURES = ("cat", "coffee", "astronaut", "rocket", "moose", "stairs")
YES_NO = (
    "Is there a dog in this image?",
    "Is there a person?",
    "Are there two trees in this image?",
    "Is the sky sunny in this image?",
    "Does the person stand in this image?",
    "Is there direct contact between the cup and the table, which stands in the middle of the room?",
    "Is the cat asleep?",
    "Are there three cars on the street in this image?",
    "Is the grass green in this image?",
)


def asked_by(name: str) -> QuestionFormat:
    form = BENCHMARKS[name].questions
    assert form is not None
    return form


def amber_records() -> list[dict[str, Any]]:
    """60 questions on 6 images in AMBER's form and order: descriptions first, then 9 yes/no questions on each."""
    asked = [(image, "Describe this image.") for image in PICTURES]
    asked += [(image, query) for image in PICTURES for query in YES_NO]
    return [{"id": n, "image": f"{name}.jpg", "query": query} for n, (name, query) in enumerate(asked, start=1)]


@pytest.fixture
def query_file(tmp_path: Path) -> Path:
    file = tmp_path / "query_all.json"
    file.write_text(json.dumps(amber_records()), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def sixty() -> tuple[Question, ...]:
    records = amber_records()
    read = [asked_by("amber").read(record, SAMPLE / "images") for record in records]
    return tuple(
        Question(number, *one, record) for number, (one, record) in enumerate(zip(read, records, strict=True), start=1)
    )


def generator_of(checkpoint: Path, **changes: Any) -> ResponseGenerator:
    sizes: dict[str, Any] = {"max_new_tokens": 12, "max_new_tokens_yes_no": 5}
    model = load_base_model(str(checkpoint), dtype=torch.float32).eval()
    return ResponseGenerator(model, load_processor(str(checkpoint)), Decoding(**sizes | changes))


def texts_of(generator: ResponseGenerator, questions: Sequence[Question]) -> dict[int, str]:
    return {
        answer.question.number: answer.text
        for group in plan(questions, generator.decoding.batch_size)
        for answers in generator.respond(generator.prepare(group))
        for answer in answers
    }


def plain_texts(generator: ResponseGenerator, questions: Sequence[Question]) -> dict[int, str]:
    """One question at a time with nothing of this project but the prompt's text."""
    texts = {}
    for question in questions:
        prompt = generator.chat.prompt_text(question.text)
        inputs = generator.processor(text=prompt, images=open_image(question.image), return_tensors="pt")
        budget = 5 if question.yes_no else 12
        made = generator.model.generate(**inputs, max_new_tokens=budget, do_sample=False)
        new = made[0, inputs["input_ids"].shape[1] :]
        texts[question.number] = generator.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return texts


# ---- batches ----


def test_batched_and_shared_answers_are_those_of_one_question_at_a_time(
    checkpoint: Path, sixty: tuple[Question, ...]
) -> None:
    shared = generator_of(checkpoint, batch_size=7)
    expected = plain_texts(shared, sixty)
    assert len(set(expected.values())) > 20  # the model says different things to different questions and images
    assert texts_of(shared, sixty) == expected
    assert texts_of(generator_of(checkpoint, batch_size=7, share_prefix=False), sixty) == expected
    assert texts_of(generator_of(checkpoint, batch_size=1), sixty) == expected


def test_shared_and_unshared_logits_agree(checkpoint: Path, sixty: tuple[Question, ...]) -> None:
    logits = {}
    for share in (True, False):
        generator = generator_of(checkpoint, share_prefix=share)
        group = generator.prepare(sixty)
        encoded = generator.encode(group)
        image = generator.image_token
        assert (encoded.shared > group.rows[0].ids.index(image)) == share
        assert all(image not in row.ids[encoded.shared :] for row in group.rows) == share
        logits[share] = generator.first_logits(group, group.rows)
    torch.testing.assert_close(logits[True], logits[False], rtol=0, atol=2e-5)
    assert logits[True].std(dim=0).mean() > 0.01  # far above the tolerance: questions have logits of their own


def test_a_prompt_that_does_not_begin_with_its_image_is_answered_all_the_same(
    small_checkpoints: dict[str, Path], sixty: tuple[Question, ...]
) -> None:
    generator = generator_of(small_checkpoints["llava"])
    template = generator.processor.chat_template
    image = "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    turn_end = "{% endfor %}{% if add_generation_prompt %}"
    assert image in template and turn_end in template
    generator.processor.chat_template = template.replace(image, "").replace(turn_end, image + turn_end)
    generator.chat = ChatFormat(generator.processor, "</s>")
    assert generator.chat.prompt_text("Is it?") == "USER: Is it? <image>\nASSISTANT:"
    few = sixty[:3] + sixty[6:12]
    assert generator.encode(generator.prepare(few)).shared == 0
    assert texts_of(generator, few) == plain_texts(generator, few)


def test_what_the_checkpoints_generation_config_asks_for_changes_no_response(
    small_checkpoints: dict[str, Path], sixty: tuple[Question, ...]
) -> None:
    """Whatever training, serving or a vendor left there; the end tokens alone are taken from it."""
    few = [*sixty[:2], *sixty[6:8]]
    generator = generator_of(small_checkpoints["idefics2"])
    expected = texts_of(generator, few)
    said = sorted(set(generator.processor.tokenizer(list(expected.values()), add_special_tokens=False).input_ids[0]))
    settings: list[dict[str, Any]] = [
        {"use_cache": False},
        {"min_new_tokens": 12, "min_length": 400},
        {"suppress_tokens": said},
        {"begin_suppress_tokens": said},
        {"bad_words_ids": [[token] for token in said]},
        {"forced_eos_token_id": 5, "forced_bos_token_id": 7},
        {"guidance_scale": 3.0},
        {"encoder_repetition_penalty": 3.0, "repetition_penalty": 2.0, "no_repeat_ngram_size": 1},
        {"exponential_decay_length_penalty": [1, 1.5]},
        {"return_dict_in_generate": True, "output_scores": True},
        {"num_return_sequences": 2, "num_beams": 2, "do_sample": True, "temperature": 2.0, "top_k": 3},
        {"stop_strings": ["a"]},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"max_time": 1e-6, "watermarking_config": {"bias": 5.0}},
    ]
    for setting in settings:
        model = generator.model
        model.generation_config = GenerationConfig(eos_token_id=generator.end_ids, pad_token_id=0)
        for name, value in setting.items():
            setattr(model.generation_config, name, value)
        assert texts_of(ResponseGenerator(model, generator.processor, generator.decoding), few) == expected, setting
        assert texts_of(AnyModelGenerator(model, generator.processor, generator.decoding), few) == expected, setting


def test_what_the_checkpoint_asks_for_in_vain_is_in_the_runs_record(
    small_checkpoints: dict[str, Path], query_file: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(small_checkpoints["idefics2"], checkpoint)
    file = checkpoint / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_return_sequences": 2, "use_cache": False}))
    main(
        {},
        [
            *("--model_name_or_path", str(checkpoint), "--adapter", "none", "--benchmark", "amber"),
            *("--questions", str(query_file), "--image_root", str(SAMPLE / "images"), "--dtype", "float32"),
            *("--output", str(tmp_path / "out.json"), "--max_new_tokens", "2", "--max_new_tokens_yes_no", "2"),
        ],
    )
    decoding = json.loads((tmp_path / "out.json.run.json").read_text())["decoding"]
    assert decoding == {
        "strategy": "greedy",
        "end_tokens": ["</s>", "<end_of_utterance>"],
        "not_used": {"num_return_sequences": 2, "use_cache": False},  # transformers would refuse the first
    }


def test_ambers_ids_decide_what_a_description_is() -> None:
    """Ids 1 to 1,004 are AMBER's descriptions. Questions of one's own may be numbered otherwise."""
    asked = {
        1: "Describe this image.",
        2: "Please describe this image in detail.",
        3: "What do you see in this image? Describe it.",
        1004: "Provide a detailed description of the picture.",
        1005: "Is the sky sunny in this image?",
        1006: "Describe with yes or no whether the sky is sunny.",
        4: "Is there a cat in this image?",
    }
    read = asked_by("amber").read
    kinds = {id_: read({"id": id_, "image": "a.jpg", "query": text}, Path())[2] for id_, text in asked.items()}
    assert kinds == {1: False, 2: False, 3: False, 1004: False, 1005: True, 1006: True, 4: True}


def test_prompts_begin_and_responses_end_as_the_template_says(checkpoint: Path, sixty: tuple[Question, ...]) -> None:
    """One that writes the beginning token itself, and ends turns with a token that is not the checkpoint's end."""
    generator = generator_of(checkpoint)
    tokenizer = generator.processor.tokenizer
    generator.processor.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '<unk>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    generator = ResponseGenerator(generator.model, generator.processor, generator.decoding)
    of_text = replace(sixty[0], image=None)
    for group in ([*sixty[:2]], [of_text]):
        for row in generator.prepare(group).rows:
            assert row.ids.count(tokenizer.bos_token_id) == 1 == row.ids.index(tokenizer.bos_token_id) + 1
    assert tokenizer.unk_token_id == 0 != tokenizer.eos_token_id
    torch.nn.init.zeros_(generator.model.lm_head.weight)  # all tokens are as likely: the first one is taken
    (responses,) = generator.respond(generator.prepare(sixty[:2]))
    assert [(response.text, response.cut) for response in responses] == [("", False), ("", False)]


def test_every_image_is_read_and_encoded_once(checkpoint: Path, sixty: tuple[Question, ...]) -> None:
    """Seven of the sixty questions to a batch, six images: the vision tower sees six rows in all."""
    generator = generator_of(checkpoint, batch_size=7)
    tower = generator.model.get_submodule(vision_tower(generator.model))
    seen, language_tokens = [], []
    tower.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out[0])), with_kwargs=True)
    generator.model.get_input_embeddings().register_forward_hook(
        lambda module, args, out: language_tokens.append(out.shape[:2].numel())
    )
    texts_of(generator, sixty)
    assert sum(seen) == 6
    rows = generator.prepare(sixty).rows
    with_image = max(row.ids.count(generator.image_token) for row in rows)
    # The image tokens of six prompts, not of sixty, went through the language model.
    assert sum(language_tokens) < 60 * 60 + 6 * with_image


def test_batches_hold_one_kind_in_order_of_length(
    small_checkpoints: dict[str, Path], sixty: tuple[Question, ...]
) -> None:
    group = generator_of(small_checkpoints["llava"]).prepare(sixty)
    batches = group.batches(8)
    assert [len(batch) for batch in batches] == [6, 8, 8, 8, 8, 8, 8, 6]
    assert all(len({row.question.yes_no for row in batch}) == 1 for batch in batches)
    lengths = [len(row.ids) for batch in batches[1:] for row in batch]
    assert lengths == sorted(lengths)


def test_when_memory_runs_out_batches_are_halved_and_the_answers_stay(
    small_checkpoints: dict[str, Path], sixty: tuple[Question, ...]
) -> None:
    """The language model refuses more than 3 rows and the vision tower more than 2 images, as a full GPU would."""
    expected = texts_of(generator_of(small_checkpoints["llava"]), sixty)
    generator = generator_of(small_checkpoints["llava"], batch_size=16)

    def refuse_above(limit: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            first = args[0] if args else kwargs["inputs_embeds"]
            if len(first) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        return hook

    generator.model.model.language_model.register_forward_pre_hook(refuse_above(3), with_kwargs=True)
    generator.model.model.vision_tower.register_forward_pre_hook(refuse_above(2), with_kwargs=True)
    assert texts_of(generator, sixty) == expected
    assert (generator.most_images, generator.most_rows) == (2, 3)

    # Nothing fits beside more than three images once six batches are done: the rest is asked group by smaller group.
    crowded = generator_of(small_checkpoints["llava"], batch_size=8)
    held: list[int] = []

    def refuse_beside_many(module: Any, args: Any, kwargs: Any) -> None:
        if held[-1] > 3 and len(answers) > 35:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    crowded.model.model.vision_tower.register_forward_pre_hook(lambda module, args: held.append(len(args[0])))
    crowded.model.model.language_model.register_forward_pre_hook(refuse_beside_many, with_kwargs=True)
    answers: list[Response] = []
    for batch in crowded.respond(crowded.prepare(sixty)):
        answers += batch
    assert held == [6, 3, 3]
    assert sorted(answer.question.number for answer in answers) == list(range(1, 61))  # none of them twice
    assert {answer.question.number: answer.text for answer in answers} == expected

    generator.model.model.language_model.register_forward_pre_hook(refuse_above(0), with_kwargs=True)
    with pytest.raises(ModelError, match="not enough memory for one question"):
        texts_of(generator, sixty)


def test_sampling_is_repeatable_and_random(small_checkpoints: dict[str, Path], sixty: tuple[Question, ...]) -> None:
    few = sixty[:12]
    once, again, other = (
        texts_of(generator_of(small_checkpoints["llava"], temperature=1.0, seed=seed), few) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other


def test_a_question_without_an_image_is_asked_by_its_text_alone(checkpoint: Path, sixty: tuple[Question, ...]) -> None:
    """Several at once, beside questions with images: what transformers generates for each alone, without an image."""
    texts = ("Is it?", "Is the sky green in this image, or is it another colour?", "Is there a dog?")
    without = [Question(100 + number, text, None, True, {}) for number, text in enumerate(texts)]
    generator = generator_of(checkpoint)
    groups = plan([sixty[10], *without, sixty[11]], images=2)
    assert [[question.number for question in group] for group in groups] == [[11, 12], [100, 101], [102]]
    responses = {one.question.number: one.text for group in groups for one in texts_by_batch(generator, group)}
    processor = generator.processor
    for question in without:
        turn = [{"role": "user", "content": [{"type": "text", "text": question.text}]}]
        prompt = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        inputs = processor.tokenizer(prompt, return_tensors="pt")
        tokens = generator.model.generate(**inputs, max_new_tokens=5, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        assert responses[question.number] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def texts_by_batch(generator: ResponseGenerator, questions: Sequence[Question]) -> list[Response]:
    return [response for batch in generator.respond(generator.prepare(questions)) for response in batch]


# ---- early stop ----

ENDINGS = ("Yes", "No", "Yes.", "No, there is no dog.", "Nothing is there", "no-one. Yes", "There is not any dog. No",
           "Not sure. Yes", "Yes, there is a cat and no dog.", "The answer, in 3.5 words, is yes or no",
           "Yesterday, no", "NO!", "A dog", "", "No, 3.5 of them", "Yes\nbut not so",
           "Is No. 5 here? Yes, not here.")  # fmt: skip


@pytest.mark.parametrize("text", ENDINGS)
def test_what_is_decided_is_scored_the_same_whatever_follows(text: str) -> None:
    """Wherever a beginning counts as decided, its score is that of the whole text, by AMBER's and by POPE's reading."""
    for end in range(len(text) + 1):
        for rest in (text[end:], "a", "-a", " not. no", ". Yes", "\n"):
            whole = text[:end] + rest
            if first_word_decided(text[:end]):
                assert first_yes_or_no(text[:end].strip()) == first_yes_or_no(whole)
                assert text[:end].strip() not in ("Yes", "No")  # AMBER's own program reads these, and no other, texts
            if pope_decided(text[:end]):
                assert says_yes(text[:end].strip()) == says_yes(whole)


@pytest.mark.parametrize(
    ("text", "word", "pope"),
    [("Yes", False, False), ("Yes,", True, False), ("No", False, False), ("No,", True, False), ("No, ", True, True),
     ("Yes.", True, True), ("no-", False, False), ("Noth", False, False), ("A cat is not ", False, True)],
)  # fmt: skip
def test_when_an_answer_is_decided(text: str, word: bool, pope: bool) -> None:
    assert (first_word_decided(text), pope_decided(text)) == (word, pope)


def test_a_decided_row_ends_and_the_others_go_on(checkpoint: Path, sixty: tuple[Question, ...]) -> None:
    """Decided by a letter that some answers have: those stop at the token that brings it, the others are unchanged."""
    whole = texts_of(generator_of(checkpoint), sixty)
    letter = max(
        "aeiourn", key=lambda one: min(sum(one in t for t in whole.values()), sum(one not in t for t in whole.values()))
    )
    stopped = texts_of(generator_of(checkpoint, decided=lambda text: letter in text), sixty)
    for question in sixty:
        text = whole[question.number]
        if question.yes_no and letter in text:
            assert text.startswith(stopped[question.number])
            assert letter in stopped[question.number]
        else:
            assert stopped[question.number] == text
    assert sum(map(len, stopped.values())) < sum(map(len, whole.values()))


# ---- questions and answers files ----


def test_amber_is_read_as_it_is() -> None:
    """A query of the kind that AMBER's annotations call generative is a description, every other a yes/no question."""
    folder = SAMPLE / "amber" / "data"
    kinds = {one["id"]: one["type"] == "generative" for one in json.loads((folder / "annotations.json").read_text())}
    read = asked_by("amber").read
    for record in json.loads((folder / "query" / "query_all.json").read_text()):
        assert read(record, Path("pictures")) == (
            record["query"],
            Path("pictures") / record["image"],
            not kinds[record["id"]],
        )


def test_kinds_of_all_of_ambers_questions() -> None:
    queries = read_data("amber/query_all.json.gz")
    kinds = [asked_by("amber").read(record, Path())[2] for record in queries]
    assert kinds == [False] * 1004 + [True] * 14216


def copy_of(name: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SAMPLE / "images" / f"{name}.jpg", to)


def test_forms_of_the_other_benchmarks(tmp_path: Path) -> None:
    """What is read from each official form, and written so that nothing of it is lost."""
    inline = base64.b64encode((SAMPLE / "images" / "pan.jpg").read_bytes()).decode()
    copy_of("cat", tmp_path / "COCO_val2014_000000000005.jpg")
    copy_of("cat", tmp_path / "images" / "7206072054_o.jpg")
    cases: dict[str, tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]] = {
        "object-halbench": (
            [
                {"image_id": 5, "question": "What?", "answer": "an old one", "extract_objs": []},
                {"image_id": "9", "question": "Who?", "image": inline},
                {"question": "Where?", "image": "COCO_val2014_000000000005.jpg"},
            ],
            ["COCO_val2014_000000000005.jpg", "000000000009.jpg", "COCO_val2014_000000000005.jpg"],
            [
                {"image_id": 5, "question": "What?", "answer": "A"},
                {"image_id": 9, "question": "Who?", "answer": "B"},
                {"image_id": 5, "question": "Where?", "answer": "C"},
            ],
        ),
        "mmhal": (
            [{"question_type": "other", "image_src": "https://host/7206072054_o.jpg", "image_id": "df", "question": "Q",
              "image_content": ["Cat"], "gt_answer": "Two.", "model_answer": ""}],
            ["images/7206072054_o.jpg"],
            [{"question_type": "other", "image_src": "https://host/7206072054_o.jpg", "image_id": "df", "question": "Q",
              "image_content": ["Cat"], "gt_answer": "Two.", "model_answer": "A"}],
        ),
        "pope": (
            [{"question_id": 1, "image": "images/7206072054_o.jpg", "text": "Is there a cat?", "label": "yes"}],
            ["images/7206072054_o.jpg"],
            [{"question_id": 1, "question": "Is there a cat?", "answer": "A"}],
        ),
    }  # fmt: skip
    for name, (records, images, written) in cases.items():
        form = asked_by(name)
        file, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-answers.json"
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        asked = read_questions(form, file, tmp_path).questions
        assert [question.image for question in asked] == [tmp_path / image for image in images]
        assert [question.yes_no for question in asked] == [name == "pope"] * len(asked)
        write_responses(form, zip(asked, "ABC", strict=False), output)
        text = output.read_text(encoding="utf-8")
        assert ([json.loads(line) for line in text.splitlines()] if form.json_lines else json.loads(text)) == written
    captions, problems = read_captions(tmp_path / "object-halbench-answers.json", None)
    assert [(caption.image_id, caption.text, caption.question) for caption in captions] == [
        (5, "A", "What?"), (9, "B", "Who?"), (5, "C", "Where?")
    ]  # fmt: skip
    assert problems.sentences == ()
    judged, problems = check_mmhal(read_records(tmp_path / "mmhal-answers.json"))
    assert [record["model_answer"] for record in judged] == ["A"]
    assert problems.sentences == ("1 records, and MMHal-Bench has 96",)
    assert (tmp_path / "000000000009.jpg").read_bytes() == (SAMPLE / "images" / "pan.jpg").read_bytes()


def test_all_that_cannot_be_asked_is_named_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_of("cat", tmp_path / "cat.jpg")
    whole = (tmp_path / "cat.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    images = ["cat.jpg", "gone.jpg", "torn.jpg", "gone.jpg"]
    records: list[Any] = [{"id": n, "image": image, "query": "Is it?"} for n, image in enumerate(images)]
    file = tmp_path / "query.json"
    file.write_text(json.dumps([*records, {"id": 7, "image": "cat.jpg"}]))
    options = ["--model_name_or_path", "no/such-model", "--adapter", "none", "--benchmark", "amber", "--questions",
               str(file), "--image_root", str(tmp_path), "--output", str(tmp_path / "answers.json")]  # fmt: skip
    with pytest.raises(SystemExit, match="2"):
        main({}, options)
    printed = capsys.readouterr().err
    assert "4 questions of 5 cannot be asked" in printed
    assert f"{tmp_path / 'gone.jpg'}: no such file (2 questions)" in printed
    assert f"{tmp_path / 'torn.jpg'}: cannot be decoded" in printed
    assert 'record 5: no text under "query"' in printed
    assert "--on_bad_record drop asks the other 1" in printed
    asked = read_questions(asked_by("amber"), file, tmp_path, "drop")
    assert [question.number for question in asked.questions] == [1]
    assert len(asked.dropped) == 3
    file.write_text(json.dumps([records[1]]))
    with pytest.raises(DataError, match="No question is left"):
        read_questions(asked_by("amber"), file, tmp_path, "drop")


def test_ids_used_twice_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "query.json"
    file.write_text(json.dumps([{"id": 3, "image": "cat.jpg", "query": "Is it?"}] * 2))
    with pytest.raises(DataError, match="more than once: 3"):
        read_questions(asked_by("amber"), file, SAMPLE / "images")


# ---- runs ----


Options = list[str]


@pytest.fixture
def options(small_checkpoints: dict[str, Path], query_file: Path) -> Callable[..., Options]:
    def made(output: Path, family: str = "llava", **changes: Any) -> Options:
        values = {
            "model_name_or_path": small_checkpoints[family],
            "adapter": "none",
            "benchmark": "amber",
            "questions": query_file,
            "image_root": SAMPLE / "images",
            "output": output,
            "dtype": "float32",
            "batch_size": 4,
            "max_new_tokens": 12,
            "max_new_tokens_yes_no": 5,
        } | changes
        return [text for name, value in values.items() for text in (f"--{name}", str(value))]

    return made


def test_an_answers_file_is_written_and_not_made_twice(
    tmp_path: Path, options: Callable[..., Options], caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "answers.json"
    main({}, options(output))
    answers = json.loads(output.read_text(encoding="utf-8"))
    assert [answer["id"] for answer in answers] == list(range(1, 61))
    run = json.loads((tmp_path / "answers.json.run.json").read_text())
    assert run["decides"]["settings"]["max_new_tokens"] == 12
    assert run["decides"]["adapter"] is None
    assert run["versions"]["torch"] == torch.__version__
    assert sum(run["answers_cut"].values()) > 0
    assert not list(tmp_path.glob("*.parts"))
    before = output.stat().st_mtime_ns
    with caplog.at_level("INFO", logger="listwise_preference"):
        main({}, options(output, batch_size=3))
    assert "is complete: nothing to do" in caplog.text
    assert output.stat().st_mtime_ns == before


@pytest.mark.parametrize(("option", "value"), [("max_new_tokens", 13), ("dtype", "bfloat16"), ("early_stop", None)])
def test_other_settings_are_refused(
    tmp_path: Path,
    options: Callable[..., Options],
    query_file: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: Any,
) -> None:
    output = tmp_path / "answers.json"
    query_file.write_text(json.dumps(amber_records()[:8]))
    main({}, options(output))
    before = output.read_bytes()
    changed = options(output, **{option: value}) if value else [*options(output), "--no-early_stop"]
    with pytest.raises(SystemExit, match="2"):
        main({}, changed)
    printed = capsys.readouterr().err
    assert "made with other options or from other inputs" in printed
    assert f"  {option} was " in printed
    assert output.read_bytes() == before
    main({}, [*changed, "--restart"])


def test_other_questions_and_answers_of_unknown_origin_are_refused(
    tmp_path: Path, options: Callable[..., Options], query_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.json"
    output.write_text("[]")
    for more in ([], ["--restart"]):
        with pytest.raises(SystemExit, match="2"):
            main({}, [*options(output), *more])
        assert "nothing records what made it" in capsys.readouterr().err
    assert output.read_text() == "[]"
    output.unlink()
    query_file.write_text(json.dumps(amber_records()[:3]))
    main({}, options(output))
    query_file.write_text(json.dumps(amber_records()[:4]))
    with pytest.raises(SystemExit, match="2"):
        main({}, options(output))
    assert "questions was " in capsys.readouterr().err


def test_an_unfinished_run_of_an_earlier_version_is_refused(
    tmp_path: Path, options: Callable[..., Options], query_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions kept unfinished answers in OUTPUT.partial.jsonl, OUTPUT.partial-1.jsonl ..."""
    query_file.write_text(json.dumps(amber_records()[:3]))
    partial = tmp_path / "answers.json.partial-1.jsonl"
    partial.write_text('{"number": 1, "answer": "No", "cut": false}\n')
    with pytest.raises(SystemExit, match="2"):
        main({}, options(tmp_path / "answers.json"))
    printed = capsys.readouterr().err
    assert f"{partial} is of an unfinished run of an earlier version" in printed and "--restart" in printed
    main({}, [*options(tmp_path / "answers.json"), "--restart"])
    assert not partial.exists()


def test_restart_keeps_the_older_answers(tmp_path: Path, options: Callable[..., Options], query_file: Path) -> None:
    """In their place until the new ones are whole, then beside them."""
    query_file.write_text(json.dumps(amber_records()[:3]))
    output = tmp_path / "answers.json"
    main({}, options(output))
    older = output.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main({}, [*options(output, model_name_or_path=tmp_path / "nowhere"), "--restart"])
    assert output.read_bytes() == older
    main({}, [*options(output, max_new_tokens=1), "--restart"])
    assert (tmp_path / "answers.json.old").read_bytes() == older != output.read_bytes()
    assert not (tmp_path / "answers.json.parts").exists()


def saved_adapter(checkpoint: Path, folder: Path, spread: float) -> Path:
    """A LoRA adapter whose B is random with this spread; 0 is one before training."""
    torch.manual_seed(0)
    adapted = add_adapter(
        load_base_model(str(checkpoint), dtype=torch.float32), r=2, alpha=8, dropout=0.0, target_modules=["q_proj"]
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and spread:
            torch.nn.init.normal_(parameter, std=spread)
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_that_changes_nothing_is_refused(
    tmp_path: Path,
    options: Callable[..., Options],
    query_file: Path,
    small_checkpoints: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "answers.json"
    query_file.write_text(json.dumps(amber_records()[:8]))
    untrained = saved_adapter(small_checkpoints["llava"], tmp_path / "untrained", spread=0.0)
    with pytest.raises(SystemExit, match="2"):
        main({}, options(output, adapter=untrained))
    assert "the adapter changes nothing" in capsys.readouterr().err
    assert not output.exists()
    with pytest.raises(SystemExit, match="2"):
        main({}, options(output, adapter=tmp_path / "nowhere"))
    assert "nowhere: no such folder" in capsys.readouterr().err

    trained = saved_adapter(small_checkpoints["llava"], tmp_path / "trained", spread=1.0)
    main({}, options(output, adapter=trained))
    main({}, options(tmp_path / "base.json"))
    assert output.read_bytes() != (tmp_path / "base.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main({}, options(output))
    assert "  adapter was " in capsys.readouterr().err


def test_merged_adapters_give_the_texts_of_adapters_beside_the_weights(
    checkpoint: Path, tmp_path: Path, options: Callable[..., Options]
) -> None:
    torch.manual_seed(0)
    adapted = add_adapter(
        load_base_model(str(checkpoint), dtype=torch.float32), r=4, alpha=8, dropout=0.0, target_modules=["all-linear"]
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    merged, apart, base = (tmp_path / f"{name}.json" for name in ("merged", "apart", "base"))
    main({}, options(merged, model_name_or_path=checkpoint, adapter=tmp_path / "adapter"))
    main({}, [*options(apart, model_name_or_path=checkpoint, adapter=tmp_path / "adapter"), "--no-merge"])
    main({}, options(base, model_name_or_path=checkpoint))
    assert merged.read_bytes() == apart.read_bytes() != base.read_bytes()


def test_an_adapter_on_a_vocabulary_shared_with_the_embeddings_stays_apart(small_checkpoints: dict[str, Path]) -> None:
    """Merging would change what the model reads, too."""
    model: Any = load_base_model(str(small_checkpoints["llava"]), dtype=torch.float32)
    model.lm_head.weight = model.get_input_embeddings().weight
    adapted = add_adapter(model, r=2, alpha=2, dropout=0.0, target_modules=["lm_head"])
    assert not merge(adapted)
    assert merge(add_adapter(load_base_model(str(small_checkpoints["llava"]), dtype=torch.float32), r=2, alpha=2,
                             dropout=0.0, target_modules=["q_proj"]))  # fmt: skip


def test_the_recipe_is_for_idefics2_on_amber_and_gives_way_to_the_command_line() -> None:
    import runpy

    recipe = runpy.run_path(str(ROOT / "generate-idefics-lpoi-amber.py"))["RECIPE"]
    settings = parse(recipe, ["--image_root", "elsewhere", "--no-share_prefix"])
    assert settings.model_name_or_path == "HuggingFaceM4/idefics2-8b"
    assert settings.adapter == "checkpoints/idefics2-8b-lpoi-list5-10k/final"
    assert (settings.benchmark, settings.temperature, settings.image_root) == ("amber", 0.0, Path("elsewhere"))
    assert settings.early_stop and not settings.share_prefix


# ---- whole programs ----


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "idefics2"])
def test_killed_ten_times_is_uninterrupted(tmp_path: Path, options: Callable[..., Options], family: str) -> None:
    """SIGKILL at ten random moments, also while a line is written: the same bytes in the end."""
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    main({}, options(whole, family, batch_size=2))
    part = tmp_path / "stopped.json.parts" / "0.jsonl"

    def lines() -> int:
        return part.read_bytes().count(b"\n") if part.exists() else 0

    # Its children find everything imported: ten starts cost seconds instead of a minute.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["listwise_preference.generation.engine"])
    draw = random.Random(family)
    for _ in range(10):
        process = server.Process(target=main, args=({}, options(stopped, family, batch_size=2)))
        process.start()
        goal = lines() + draw.randint(1, 3)
        while process.is_alive() and lines() < goal:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was at work
        with part.open("r+b") as stream:  # as if the kill had come while the last line was written
            stream.truncate(len(stream.read()) - draw.randint(0, 9))
    assert 0 < lines() < 60
    main({}, options(stopped, family, batch_size=2))
    assert stopped.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_two_processes_write_what_one_does(
    tmp_path: Path, options: Callable[..., Options], run_program: Run, small_checkpoints: dict[str, Path]
) -> None:
    adapter = saved_adapter(small_checkpoints["llava"], tmp_path / "adapter", spread=1.0)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    main({}, options(one, adapter=adapter, batch_size=2))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    run_program(*launch, "generate.py", *options(two, adapter=adapter, batch_size=2))
    assert two.read_bytes() == one.read_bytes()
    assert not list(tmp_path.glob("*.parts"))
    refused = run_program(*launch, "generate.py", *options(two, batch_size=2), check=False)
    assert refused.returncode != 0
    assert refused.stderr.count("made with other options") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("english_data")
def test_score_takes_the_answers_as_they_are(tmp_path: Path, options: Callable[..., Options], run_program: Run) -> None:
    """AMBER's two sample images and two POPE questions, answered and scored by the two commands."""
    images = tmp_path / "pictures"
    for number, name in ((1, "moose"), (3, "stairs")):
        copy_of(name, images / f"AMBER_{number}.jpg")
    amber = SAMPLE / "amber"
    answers = tmp_path / "amber.json"
    main({}, options(answers, questions=amber / "data" / "query" / "query_all.json", image_root=images))
    scored = run_program("score.py", "amber", answers, "--data", amber, "--json")
    counts = json.loads(scored.stdout)["counts"]
    assert (counts["descriptions"], counts["yes_no"]) == (2, 29)

    copy_of("cat", images / "COCO_val2014_000000000005.jpg")
    records = [
        {"question_id": n, "image": "COCO_val2014_000000000005.jpg", "text": f"Is there a {what}?", "label": label}
        for n, (what, label) in enumerate((("cat", "yes"), ("dog", "no")), start=1)
    ]  # fmt: skip
    questions = tmp_path / "pope.json"
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    answers = tmp_path / "pope-answers.jsonl"
    main({}, options(answers, benchmark="pope", questions=questions, image_root=images))
    scored = run_program("score.py", "pope", answers, "--questions", questions, "--json")
    assert sum(json.loads(scored.stdout)["counters"].values()) == 2
