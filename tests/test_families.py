"""What holds for all types of model: checkpoints that cannot be used, tokens of an image, experts."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from listwise_preference.data.pairs import Pair, Record
from listwise_preference.data.ranked_images import ImageFiles
from listwise_preference.errors import DataError, ModelError
from listwise_preference.generation.command import main as generate
from listwise_preference.image_lists.verify import Verifier
from listwise_preference.merging.command import main as merge_adapter
from listwise_preference.models.adapters import load_adapter, merge
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_base_model, load_processor, processor_identity
from listwise_preference.models.prompt_tensors import encode_prompts
from listwise_preference.probe.command import main as score
from listwise_preference.training.command import main as train
from listwise_preference.training.command import read_data
from listwise_preference.training.dataset import refuse_special_tokens
from listwise_preference.training.options import parse
from listwise_preference.training.run import Run

from .conftest import SAMPLE, sample_pairs

Checkpoint = Callable[[str], Path]


def test_its_special_tokens_may_not_stand_in_a_text(zoo_checkpoint: Checkpoint) -> None:
    pair = sample_pairs(1)[0]
    tokenizer = load_processor(str(zoo_checkpoint("idefics3"))).tokenizer
    image = ImageFiles((SAMPLE / pair["img_path"],))
    good, bad = (
        Record(Pair("7", pair["img_path"], pair["prompt"], chosen, pair["rejected"]), image)
        for chosen in (pair["chosen"], pair["chosen"] + " <global-img>")
    )
    refuse_special_tokens([good], tokenizer)
    with pytest.raises(DataError, match='record 7: "chosen" contains <global-img>'):
        refuse_special_tokens([good, bad], tokenizer)


# ---- what cannot be used ----


def of_another_type(folder: Path) -> None:
    change(folder / "config.json", model_type="bert")


def without_an_image(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def without_a_generation_prompt(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("if add_generation_prompt", "if false"))


def with_torchvision_alone(folder: Path) -> None:
    change(folder / "config.json", model_type="cohere2_vision")
    change(folder / "processor_config.json", processor_class="Cohere2VisionProcessor")
    change(folder / "preprocessor_config.json", image_processor_type="Cohere2VisionImageProcessorFast")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


UNUSABLE = {
    of_another_type: "{folder} is a 'bert' model; supported are the image-text-to-text models of transformers",
    without_an_image: "{folder}: its processor takes no images; is its preprocessor_config.json there?",
    without_a_generation_prompt: "{folder}: the chat template writes no generation prompt: '<|im_start|>assistant",
    with_torchvision_alone: "transformers reads images of cohere2_vision models with torchvision: pip install torchv",
}


@pytest.mark.parametrize("unusable", UNUSABLE)
def test_what_cannot_be_used_is_said_in_one_line_before_weights_are_read(
    unusable: Callable[[Path], None],
    zoo_checkpoint: Checkpoint,
    tmp_path: Path,
    few_pairs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In training and in generation, by a checkpoint that has no weights."""
    if unusable is with_torchvision_alone and find_spec("torchvision") is not None:
        pytest.skip("optional: torchvision is there")
    folder = tmp_path / "checkpoint"
    shutil.copytree(zoo_checkpoint("qwen3_vl"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    unusable(folder)
    (tmp_path / "questions.json").write_text('[{"id": 1, "image": "cat.jpg", "query": "What is it?"}]')
    generation = {
        "model_name_or_path": str(folder),
        "adapter": "none",
        "benchmark": "amber",
        "questions": tmp_path / "questions.json",
        "image_root": SAMPLE / "images",
        "output": tmp_path / "responses.json",
    }
    for program in (lambda: short_run(folder, tmp_path / "run", few_pairs), lambda: generate(generation, [])):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            program()
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and UNUSABLE[unusable].format(folder=folder) in line


# ---- tokens of an image ----


def image_tokens(processor: Any) -> int:
    """Of a photograph."""
    with Image.open(SAMPLE / "images" / "cat.jpg") as image:
        ids = encode_prompts(processor, [ChatFormat(processor).prompt_text("What?")], [image.convert("RGB")])
    return int((ids["input_ids"] == processor.image_token_id).sum())


def test_tiling_is_turned_off_by_a_setting(zoo_checkpoint: Checkpoint) -> None:
    """InternVL's image of two tiles and a thumbnail is the thumbnail alone then: a third of the tokens."""
    folder = str(zoo_checkpoint("internvl"))
    untiled = load_processor(folder, settings={"crop_to_patches": False})
    tiled = load_processor(folder)
    assert image_tokens(tiled) == 3 * image_tokens(untiled)
    assert processor_identity(tiled) != processor_identity(untiled)


def test_settings_of_an_adapters_training_go_with_it(zoo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """To generation, to the probe and into a merged model, by which transformers too does not tile."""
    untiled = {"crop_to_patches": False}
    checkpoint, adapter, merged = zoo_checkpoint("internvl"), tmp_path / "run" / "final", tmp_path / "merged"
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps(sample_pairs(2)))
    short_run(checkpoint, tmp_path / "run", pairs, processor_settings=untiled, list_size=2, max_steps=1)
    expected = load_processor(str(checkpoint), settings=untiled)

    (tmp_path / "questions.json").write_text('[{"id": 1, "image": "cat.jpg", "query": "What is it?"}]')
    options = f"--model_name_or_path {checkpoint} --adapter {adapter} --dtype float32"
    asked = f"--benchmark amber --questions {tmp_path / 'questions.json'} --image_root {SAMPLE / 'images'}"
    generate({}, f"{options} {asked} --max_new_tokens 2 --output {tmp_path / 'responses.json'}".split())
    run = json.loads((tmp_path / "responses.json.run.json").read_text())
    assert run["decides"]["processor"] == processor_identity(expected)
    data = f"--pairs {pairs} --image_root {SAMPLE} --image_lists {SAMPLE / 'image_lists.jsonl'} --bootstrap 1"
    score(f"awareness {options} {data} --output {tmp_path / 'probe.json'}".split())
    assert json.loads((tmp_path / "probe.json").read_text())["protocol"]["processor_settings"] == untiled

    merge_adapter(f"--adapter {adapter} --output {merged} --dtype float32 --records 1".split())
    assert image_tokens(load_processor(str(merged))) == image_tokens(expected)
    assert image_tokens(type(expected).from_pretrained(merged)) == image_tokens(expected)
    verifier = Verifier.load(
        str(checkpoint), device=torch.device("cpu"), dtype=torch.float32, processor_settings=untiled
    )
    assert image_tokens(verifier.processor) == image_tokens(expected)


def test_a_setting_that_there_is_none_of_is_named(zoo_checkpoint: Checkpoint) -> None:
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
    zoo_checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A square of four tiles and a thumbnail, 4 tokens each, between <img> and </img>; they stand for one token."""
    caplog.set_level(logging.INFO, logger="listwise_preference")
    pair = sample_pairs(1)[0]
    lines = {}
    cases: tuple[tuple[str, str, dict[str, object] | None], ...] = (
        ("short", "What?", {"max_patches": 4}),
        ("long", "What? " * 2500, None),
        ("untiled", "What?", {"crop_to_patches": False}),
    )
    for name, prompt, settings in cases:
        (tmp_path / f"{name}.json").write_text(json.dumps([pair | {"prompt": prompt}]))
        arguments = parse(
            {
                "model_name_or_path": str(zoo_checkpoint("internvl")),
                "output_dir": str(tmp_path / "run"),
                "pairs": str(tmp_path / f"{name}.json"),
                "image_root": str(SAMPLE),
                "image_lists": str(SAMPLE / "image_lists.jsonl"),
                "list_size": 2,
                "processor_settings": settings,
                "do_train": True,
                "use_cpu": True,
            },
            [],
        )
        caplog.clear()
        Run(arguments, *read_data(arguments))
        lines[name] = "\n".join(caplog.messages)
    assert "tokens of the first record: about 21 for its image of 512 x 512 pixels" in lines["short"]
    assert "tokens of the first record: about 5 for its image" in lines["untiled"]
    assert '--processor_settings {"max_patches": 4} changes nothing for the first record\'s image' in lines["short"]
    assert "changes nothing" not in lines["long"] + lines["untiled"]
    assert "tokens a record are many" not in lines["short"]
    assert re.search(
        r"[1-9]\d,\d{3} tokens a record are many: --processor_settings .*crop_to_patches true", lines["long"]
    )


# ---- mixtures of experts ----


def test_experts_get_an_adapter_by_name_or_are_said_to_have_none(
    zoo_checkpoint: Checkpoint, tmp_path: Path, few_pairs: Path, caplog: pytest.LogCaptureFixture
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
