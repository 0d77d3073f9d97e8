"""docs/models.md: what its table says of each type is what the tests found and what the real processors do."""

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import family_of
from listwise_preference.models.loading import load_base_model, load_config, load_processor
from listwise_preference.models.prompt_tensors import encode_prompts

from . import zoo
from .conftest import ROOT
from .test_models_zoo import RAGGED, Checkpoint, types

# Settings of published checkpoints: of preprocessor_config.json, and of processor_config.json. Where they are from:
# - the defaults of transformers' own class, written for the checkpoint: idefics2, idefics3, llava_onevision, molmo2,
#   gemma4, glm4v, paligemma, and the grid of llava_next;
# - transformers' conversion script: internvl (its size), ovis2 (src/transformers/models/*/convert_*_weights_to_hf.py);
# - a copy of the checkpoint's files on GitHub: qwen2_5_vl (remodlai/qwen-2.5-vl-7b-instruct-lexiq);
# - the file as public repositories quote it: qwen3_vl (16,777,216 and 65,536 pixels), mistral3 (1,540), mllama (560,
#   4), internvl (crop_to_patches off);
# - vLLM's test of SmolVLM2-2.2B: 1,377 tokens for 17 images of 384 pixels; gemma3: 896 pixels and 256 tokens by its
#   report (arXiv:2503.19786);
# - the name of the vision tower, CLIP ViT-L/14 at 336 pixels: llava, llava_next.
# qwen3_vl_moe and qwen3_5 are taken to have those of qwen3_vl.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "idefics2": ({"size": {"longest_edge": 980, "shortest_edge": 378}}, {"image_seq_len": 64}),
    "llava": (
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "idefics3": (
        {"size": {"longest_edge": 4 * 364}, "max_image_size": {"longest_edge": 364}},
        {"image_seq_len": 169},
    ),
    "smolvlm": (
        {"size": {"longest_edge": 4 * 384}, "max_image_size": {"longest_edge": 384}},
        {"image_seq_len": 81},
    ),
    "llava_next": (
        {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_onevision": (
        {
            "size": {"height": 384, "width": 384},
            "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
        },
        {
            "num_image_tokens": 729,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    ),
    "internvl": (
        # Off, and on all the same: transformers' class calls the image processor so.
        {"size": {"height": 448, "width": 448}, "crop_to_patches": False, "min_patches": 1, "max_patches": 12},
        {"image_seq_length": 256},
    ),
    "ovis2": (
        {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
        {"image_seq_length": 256},
    ),
    "molmo2": (
        {
            "size": {"height": 378, "width": 378},
            "max_crops": 8,
            "overlap_margins": [4, 4],
            "patch_size": 14,
            "pooling_size": [2, 2],
        },
        {},
    ),
    "gemma3": ({"size": {"height": 896, "width": 896}}, {"image_seq_length": 256}),
    "gemma4": (
        {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 16, "pooling_kernel_size": 3},
        {"image_seq_length": 280},
    ),
    "paligemma": ({"size": {"height": 224, "width": 224}, "image_seq_length": 256}, {}),
    "qwen2_5_vl": ({"patch_size": 14, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}}, {}),
    "qwen3_vl": ({"patch_size": 16, "size": {"shortest_edge": 256 * 256, "longest_edge": 32 * 32 * 16384}}, {}),
    "glm4v": ({"patch_size": 14, "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}}, {}),
    "mistral3": ({"patch_size": 14, "size": {"longest_edge": 1540}}, {"patch_size": 14, "spatial_merge_size": 2}),
    "mllama": ({"size": {"height": 560, "width": 560}, "max_image_tiles": 4}, {}),
}
PUBLISHED["qwen3_vl_moe"] = PUBLISHED["qwen3_5"] = PUBLISHED["qwen3_vl"]


# What makes fewer tokens of an image, for --processor_settings.
FEWER: dict[str, dict[str, Any]] = {
    "idefics3": {"do_image_splitting": False},
    "smolvlm": {"do_image_splitting": False},
    "internvl": {"crop_to_patches": False},
    "ovis2": {"crop_to_patches": False},
    "llava_next": {"image_grid_pinpoints": [[336, 336]]},
    "llava_onevision": {"image_grid_pinpoints": [[384, 384]]},
    "gemma4": {"max_soft_tokens": 70},
    "qwen2_5_vl": {"max_pixels": 100352},
    "qwen3_vl": {"max_pixels": 100352},
    "qwen3_vl_moe": {"max_pixels": 100352},
    "qwen3_5": {"max_pixels": 100352},
    "glm4v": {"size": {"shortest_edge": 12544, "longest_edge": 200704}},
    "mistral3": {"size": {"longest_edge": 448}},
    "molmo2": {"max_crops": 1},
}


def table() -> dict[str, list[str]]:
    """The cells of each type's row."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    return {
        name: [cell.strip() for cell in cells.split(" | ")]
        for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE)
    }


def test_the_table_has_every_type_and_says_what_it_takes() -> None:
    """Rows and packages are those of the tests that train each type."""
    rows = table()
    assert rows.keys() == set(zoo.TYPES)
    for model_type, (_, layout, package, *_) in rows.items():
        assert layout == ("ragged" if model_type in RAGGED else "unpacked")
        assert package == {"smolvlm": "num2words"}.get(model_type, "")


def published(folder: Path, model_type: str, checkpoint: Path, settings: dict[str, Any]) -> Any:
    """A processor with published settings; the tokenizer is the small checkpoint's."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    images, own = PUBLISHED[model_type]
    parts = json.loads((folder / "processor_config.json").read_text())
    for name in ("image_processor", "feature_extractor", "video_processor"):
        if name in parts and model_type != "gemma4":
            images = parts.pop(name) | images
    if model_type == "gemma4":
        parts["image_processor"] = images
    elif (folder / "preprocessor_config.json").is_file():
        before = json.loads((folder / "preprocessor_config.json").read_text())
        images = {"image_processor_type": before["image_processor_type"]} | images
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps(parts | own))
    return load_processor(str(folder), settings=settings)


def image_tokens(processor: Any) -> tuple[int, list[str]]:
    """Special tokens that a photograph of 640 x 480 pixels adds to a prompt, and the tensors beside its pixels."""
    chat, tokenizer = ChatFormat(processor), processor.tokenizer
    special = {
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token_id != tokenizer.bos_token_id and not token.content.startswith("<0x")
    }
    encoded = encode_prompts(processor, [chat.prompt_text("What?")], [Image.new("RGB", (640, 480), "red")])
    text = tokenizer(chat.prompt_text("What?", with_image=False))["input_ids"]
    with_image, alone = (
        sum(token_id in special for token_id in ids) for ids in (encoded["input_ids"][0].tolist(), text)
    )
    return with_image - alone, sorted(encoded.keys() - {"input_ids", "attention_mask", "pixel_values"})


@pytest.mark.parametrize("model_type", types(zoo.TYPES))
def test_tokens_of_an_image(model_type: str, zoo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With the published settings, and with a setting that makes fewer."""
    _, _, _, tokens, fewer, tensors, *_ = table()[model_type]
    checkpoint = zoo_checkpoint(model_type)
    counted, others = image_tokens(published(tmp_path / "own", model_type, checkpoint, {}))
    assert (tokens, tensors) == (f"{counted:,}", ", ".join(f"`{name}`" for name in others))
    if model_type in FEWER:
        settings = FEWER[model_type]
        less, _ = image_tokens(published(tmp_path / "fewer", model_type, checkpoint, settings))
        assert fewer == f"{less:,}: `{json.dumps(settings)}`"
        assert less < counted
    else:
        assert fewer == ""


# ---- the column "mind" ----


@dataclass(frozen=True)
class Case:
    """What a sentence is checked on: a type's small checkpoint and its processor, with published settings."""

    model_type: str
    checkpoint: Path
    processor: Any

    def inputs(self) -> dict[str, Any]:
        """Of a prompt with a photograph, with the small settings."""
        processor = load_processor(str(self.checkpoint))
        return encode_prompts(
            processor, [ChatFormat(processor).prompt_text("What is it?")], [Image.new("RGB", (80, 60))]
        )

    def model(self) -> Any:
        return load_base_model(str(self.checkpoint), dtype=torch.float32).eval()


def unsplit(case: Case) -> bool:
    settings = family_of(case.model_type).processor_settings
    return settings == {"do_image_splitting": False} and case.processor.image_processor.do_image_splitting is False


def in_parts(case: Case) -> bool:
    """With the setting of the column before, a photograph is at most two thirds of the tokens."""
    fewer = load_processor(case.processor.tokenizer.name_or_path, settings=FEWER[case.model_type])
    return image_tokens(fewer)[0] < image_tokens(case.processor)[0] / 1.5


def in_parts_whatever_is_saved(case: Case) -> bool:
    return in_parts(case) and case.processor.image_processor.crop_to_patches is False


def needs_no_generation_prompt(case: Case) -> bool:
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    with_prompt, without = (
        case.processor.apply_chat_template(turns, add_generation_prompt=add, tokenize=False) for add in (True, False)
    )
    return with_prompt == without == ChatFormat(case.processor).prompt_text("What?")


def up_to_16384_tokens(case: Case) -> bool:
    """Rounding to whole tokens takes a few."""
    processor = case.processor.image_processor
    return 16_000 < processor.get_number_of_image_patches(9000, 9000, {}) // processor.merge_size**2 <= 16_384


def experts_are_one_parameter(case: Case) -> bool:
    """``test_experts_get_an_adapter_by_name_or_are_said_to_have_none`` trains them."""
    names = [name for name, _ in case.model().named_parameters()]
    return any(name.endswith("experts.gate_up_proj") for name in names)


def linear_attention_without_thoughts(case: Case) -> bool:
    layers = load_config(str(case.checkpoint))[0].get_text_config().layer_types
    prompt = ChatFormat(case.processor).prompt_text("What?")
    return "linear_attention" in layers and prompt.endswith("<think>\n\n</think>\n\n")


def ended_by_the_tokenizer(case: Case) -> bool:
    turns = [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in ("user", "assistant")]
    end = case.processor.tokenizer.eos_token
    rendered = case.processor.apply_chat_template(turns, tokenize=False)
    return end not in rendered and ChatFormat(case.processor).end_token == end


def image_tokens_see_each_other(case: Case) -> bool:
    """What an image's first token becomes changes with the features of its last one."""
    model, inputs = case.model(), case.inputs()
    takes = inspect.signature(model.base_model.get_image_features).parameters
    given = {name: inputs.pop(name) for name in [*inputs] if name.startswith("pixel_") or name in takes}
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**given, return_dict=True)
    found = encoded.pooler_output  # of all images together, or of each
    features = (found if isinstance(found, torch.Tensor) else found[0]).detach().requires_grad_()
    encoded.pooler_output = features if isinstance(found, torch.Tensor) else (features,)
    states = model(**inputs, mm_encoder_outputs={"image": encoded}, output_hidden_states=True).hidden_states[-1]
    first = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0, 0]
    states[0, first].square().sum().backward()
    return bool(features.grad.reshape(-1, features.shape[-1])[-1].abs().max() > 0)


def prompts_are_read_both_ways(case: Case) -> bool:
    """What stands at a prompt's beginning changes with its last token."""
    model, inputs = case.model(), case.inputs()
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, -2] += 1
    with torch.no_grad():
        one, two = (model(**given).logits[0, 0] for given in (inputs, other))
    own = not zoo.TEMPLATES.get(case.model_type) and not (case.checkpoint / "chat_template.jinja").is_file()
    return own and bool((one - two).abs().max() > 1e-4)


def by_cross_attention(case: Case) -> bool:
    return "cross_attention_mask" in case.inputs() and image_tokens(case.processor)[0] == 1


MIND = {
    "images are not split, as in the paper": unsplit,
    "an image in parts is many tokens": in_parts,
    "an image in parts is many tokens, whatever `crop_to_patches` says in `preprocessor_config.json`": (
        in_parts_whatever_is_saved
    ),
    "its template has no generation prompt and needs none": needs_no_generation_prompt,
    "large images become up to 16,384 tokens": up_to_16384_tokens,
    "experts get an adapter only by `--lora_target_parameters`; the log says so": experts_are_one_parameter,
    "linear attention; responses are trained and given without thoughts": linear_attention_without_thoughts,
    "its template ends no response: the tokenizer's end token does": ended_by_the_tokenizer,
    "an image's tokens see each other": image_tokens_see_each_other,
    "no template of its own; prompts are read both ways": prompts_are_read_both_ways,
    "the text reads the image by cross-attention": by_cross_attention,
}


def test_every_sentence_is_one_that_is_checked() -> None:
    assert {row[6] for row in table().values()} == {"", *MIND}


@pytest.mark.parametrize("model_type", types([name for name in zoo.TYPES if name != "llava"]))
def test_what_to_mind(model_type: str, zoo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint = zoo_checkpoint(model_type)
    case = Case(model_type, checkpoint, published(tmp_path / "published", model_type, checkpoint, {}))
    assert MIND[table()[model_type][6]](case)
