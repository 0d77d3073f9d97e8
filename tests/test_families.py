"""A type of model that has no entry of its own: Idefics3, trained, evaluated and generated with."""

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from listwise_preference.data.pairs import BoxLists, Pair, Record, load_records
from listwise_preference.data.ranked_images import Drawing, ImageFiles
from listwise_preference.errors import DataError, ModelError
from listwise_preference.generation.command import main as generate
from listwise_preference.models.adapters import load_adapter, merge
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import FAMILIES
from listwise_preference.models.loading import load_base_model, load_processor, processor_identity
from listwise_preference.models.prompt_tensors import encode_prompts
from listwise_preference.models.ragged_attention import use_ragged_attention
from listwise_preference.small_world.model import SAMPLE_TEXTS, build_tokenizer
from listwise_preference.training.batch import Collator, ListwiseDataset
from listwise_preference.training.command import main as train
from listwise_preference.training.command import read_data
from listwise_preference.training.completion_logps import completion_logps
from listwise_preference.training.dataset import refuse_special_tokens
from listwise_preference.training.options import parse
from listwise_preference.training.run import Run

from .conftest import SAMPLE, sample_pairs

SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


@pytest.fixture
def idefics3(tmp_path: Path) -> Path:
    """A small checkpoint; an image becomes <fake_token_around_image><global-img>, 4 <image>, and a fake token again."""
    tokenizer = build_tokenizer(SAMPLE_TEXTS, 600, list(SPECIAL))
    side = {"longest_edge": 56}
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(size=side, max_image_size=side),
        tokenizer,
        image_seq_len=4,
        chat_template=FAMILIES["idefics2"].chat_template,
    )
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.1}
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=Idefics3VisionConfig(
                hidden_size=48, intermediate_size=96, image_size=56, patch_size=14, **sizes
            ),
            text_config=LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, pad_token_id=0, **sizes
            ),
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=False,
        )
    )
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(tmp_path / "idefics3")
    processor.save_pretrained(tmp_path / "idefics3")
    return tmp_path / "idefics3"


def test_ragged_rows_score_as_each_completion_alone(idefics3: Path) -> None:
    source = BoxLists(SAMPLE / "image_lists.jsonl", Drawing(list_size=2))
    records = load_records(SAMPLE / "pairs.json", SAMPLE, source).records[:2]
    processor = load_processor(str(idefics3))
    dataset = ListwiseDataset(records, ChatFormat(processor), 384)
    model = load_base_model(str(idefics3), dtype=torch.float32)
    with torch.no_grad():
        use_ragged_attention(model)
        together = completion_logps(model, Collator(processor)([dataset[0], dataset[1]]))
        model.set_attn_implementation("sdpa")
        for index, logps_A in enumerate(together):
            example = dataset[index]
            first, second = example.images
            rows = ((first, example.chosen_ids), (first, example.rejected_ids), (second, example.chosen_ids))
            for (image, ids), logp in zip(rows, logps_A, strict=True):
                inputs = processor(text=[example.prompt_text], images=[image], return_tensors="pt")
                inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                logps = model(**inputs).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
                assert logp.item() == pytest.approx(logps[range(len(ids)), ids].sum().item(), abs=1e-3)


def test_a_type_without_an_entry_is_trained_and_answers(idefics3: Path, tmp_path: Path, few_pairs: Path) -> None:
    train(
        {
            "model_name_or_path": str(idefics3),
            "dtype": "float32",
            "output_dir": str(tmp_path / "run"),
            "pairs": str(few_pairs),
            "image_root": str(SAMPLE),
            "image_lists": str(SAMPLE / "image_lists.jsonl"),
            "do_train": True,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
        [],
    )
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(2 * math.log(2) + math.log(120), abs=1e-4) and losses[-1] < losses[0]

    texts = ("Describe this image.", "What is on the table?")
    images = ("cat.jpg", "coffee.jpg")
    queries = [{"image": image, "query": text} for image in images for text in texts]
    (tmp_path / "questions.json").write_text(json.dumps([{"id": i + 1} | query for i, query in enumerate(queries)]))
    options = ["--model_name_or_path", idefics3, "--adapter", "none", "--dtype", "float32", "--max_new_tokens", "6"]
    options += ["--benchmark", "amber", "--questions", tmp_path / "questions.json", "--image_root", SAMPLE / "images"]
    generate({}, [str(option) for option in [*options, "--output", tmp_path / "base.json"]])
    responses = [line["response"] for line in json.loads((tmp_path / "base.json").read_text())]

    # Each by itself, by transformers' own generate().
    processor, model = load_processor(str(idefics3)), load_base_model(str(idefics3), dtype=torch.float32)
    chat = ChatFormat(processor)
    ends = [2, processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")]
    expected = []
    for query in queries:
        with Image.open(SAMPLE / "images" / query["image"]) as image:
            inputs = processor(text=[chat.prompt_text(query["query"])], images=[image], return_tensors="pt")
        new = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=ends)[0]
        new = new[inputs["input_ids"].shape[1] :]
        expected.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert responses == expected and len(set(expected)) > 1

    options[3] = tmp_path / "run" / "final"
    generate({}, [str(option) for option in [*options, "--output", tmp_path / "trained.json"]])
    assert len(json.loads((tmp_path / "trained.json").read_text())) == len(queries)


def test_its_special_tokens_may_not_stand_in_a_text(idefics3: Path) -> None:
    pair = sample_pairs(1)[0]
    tokenizer = load_processor(str(idefics3)).tokenizer
    image = ImageFiles((SAMPLE / pair["img_path"],))
    good, bad = (
        Record(Pair("7", pair["img_path"], pair["prompt"], chosen, pair["rejected"]), image)
        for chosen in (pair["chosen"], pair["chosen"] + " <global-img>")
    )
    refuse_special_tokens([good], tokenizer)
    with pytest.raises(DataError, match='record 7: "chosen" contains <global-img>'):
        refuse_special_tokens([good, bad], tokenizer)


# ---- tokens of an image ----


def image_tokens(processor: Any) -> int:
    """Of a photograph."""
    with Image.open(SAMPLE / "images" / "cat.jpg") as image:
        ids = encode_prompts(processor, [ChatFormat(processor).prompt_text("What?")], [image.convert("RGB")])
    return int((ids["input_ids"] == processor.image_token_id).sum())


def test_tiling_is_turned_off_by_a_setting(zoo_checkpoint: Callable[[str], Path]) -> None:
    """InternVL's image of two tiles and a thumbnail is the thumbnail alone then: a third of the tokens."""
    folder = str(zoo_checkpoint("internvl"))
    untiled = load_processor(folder, settings={"crop_to_patches": False})
    tiled = load_processor(folder)
    assert image_tokens(tiled) == 3 * image_tokens(untiled)
    assert processor_identity(tiled) != processor_identity(untiled)


def test_a_setting_that_there_is_none_of_is_named(zoo_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"has no crop_to_patch; it has .*crop_to_patches, "):
        load_processor(str(zoo_checkpoint("internvl")), settings={"crop_to_patch": False})


def short_run(checkpoint: Path, output: Path, pairs: Path, **options: object) -> None:
    train(
        {
            "model_name_or_path": str(checkpoint),
            "dtype": "float32",
            "output_dir": str(output),
            "pairs": str(pairs),
            "image_root": str(SAMPLE),
            "image_lists": str(SAMPLE / "image_lists.jsonl"),
            "do_train": True,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
            **options,
        },
        [],
    )


def test_the_tokens_of_a_record_are_said_and_many_are_warned_of(
    zoo_checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A square of four tiles and a thumbnail, 4 tokens each, between <img> and </img>; they stand for one token."""
    caplog.set_level(logging.INFO, logger="listwise_preference")
    pair = sample_pairs(1)[0]
    lines = {}
    for name, prompt in (("short", "What?"), ("long", "What? " * 2500)):
        (tmp_path / f"{name}.json").write_text(json.dumps([pair | {"prompt": prompt}]))
        arguments = parse(
            {
                "model_name_or_path": str(zoo_checkpoint("internvl")),
                "output_dir": str(tmp_path / "run"),
                "pairs": str(tmp_path / f"{name}.json"),
                "image_root": str(SAMPLE),
                "image_lists": str(SAMPLE / "image_lists.jsonl"),
                "list_size": 2,
                "do_train": True,
                "use_cpu": True,
            },
            [],
        )
        caplog.clear()
        Run(arguments, *read_data(arguments))
        lines[name] = "\n".join(caplog.messages)
    assert "tokens of the first record: about 21 for its image of 512 x 512 pixels" in lines["short"]
    assert "tokens a record are many" not in lines["short"]
    assert re.search(
        r"[1-9]\d,\d{3} tokens a record are many: --processor_settings .*crop_to_patches true", lines["long"]
    )


# ---- mixtures of experts ----


def test_experts_get_an_adapter_by_name_or_are_said_to_have_none(
    zoo_checkpoint: Callable[[str], Path], tmp_path: Path, few_pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved, loaded and merged, the adapter of experts gives the same values."""
    checkpoint = zoo_checkpoint("qwen3_vl_moe")
    short_run(checkpoint, tmp_path / "without", few_pairs)
    said = next(line for line in caplog.messages if line.startswith("no adapter on the experts'"))
    targets = said.partition("--lora_target_parameters ")[2].partition(" gives")[0].split()
    assert targets == ["experts.down_proj", "experts.gate_up_proj"]

    caplog.clear()
    short_run(checkpoint, tmp_path / "with", few_pairs, lora_target_parameters=targets)
    assert not any("no adapter on the experts" in line for line in caplog.messages)
    processor = load_processor(str(checkpoint))
    with Image.open(SAMPLE / "images" / "cat.jpg") as image:
        inputs = encode_prompts(processor, [ChatFormat(processor).prompt_text("What?")], [image.convert("RGB")])
    with torch.no_grad():
        adapted = load_adapter(
            load_base_model(str(checkpoint), dtype=torch.float32), tmp_path / "with" / "final"
        ).eval()
        trained = {name for name, value in adapted.named_parameters() if "lora_B" in name and value.abs().max() > 0}
        assert any(".experts." in name for name in trained)
        expected = adapted(**inputs).logits
        with adapted.disable_adapter():
            assert (adapted(**inputs).logits - expected).abs().max() > 1e-3
        assert merge(adapted)
        torch.testing.assert_close(adapted.get_base_model()(**inputs).logits, expected)
