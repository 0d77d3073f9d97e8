"""docs/models.md: what its table says of each type is what the tests found and what the real processors do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import load_processor
from listwise_preference.models.prompt_tensors import encode_prompts

from . import zoo
from .conftest import ROOT
from .test_models_zoo import LOADABLE, RAGGED, Checkpoint

# Settings of published checkpoints: of preprocessor_config.json, and of processor_config.json.
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
        {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
        {"image_seq_length": 256},
    ),
    "ovis2": (
        {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "min_patches": 1, "max_patches": 9},
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
        needed = {"smolvlm": "num2words"} | dict.fromkeys(zoo.NEED_TORCHVISION, "torchvision")
        assert package == needed.get(model_type, "")


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


@pytest.mark.parametrize("model_type", LOADABLE)
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
