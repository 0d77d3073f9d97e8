"""Small random checkpoints of nineteen types of model, in the files that the published ones have; no network.

Real classes of config, model, tokenizer and processor; what is small are widths, depths, images and vocabularies. The
chat templates are written by hand after the published ones (SmolVLM's is transformers' own copy): the text around user
and assistant turns, where an image stands, generation prompts and end tokens are theirs, tools and videos are left out.

    save(tmp_path / "gemma3", "gemma3")
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE as SMOLVLM_TEMPLATE

from listwise_preference.small_world.model import SAMPLE_TEXTS, build_tokenizer, save_small_model

PATCH = 14
SIDE = 56  # pixels of an image or of a tile of it: 4 x 4 patches
SPREAD = {"initializer_range": 0.1}  # the usual 0.02 leaves models this narrow with next to equal logits
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    **SPREAD,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
    **SPREAD,
}
SQUARE = {"height": SIDE, "width": SIDE}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


@dataclass(frozen=True)
class Small:
    """What a checkpoint is made of.

    Attributes:
        preprocessor: preprocessor_config.json.
        processor: processor_config.json.
        video: of checkpoints that have it, what video_preprocessor_config.json names.
        end_token: what the template writes behind a response.
    """

    config: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerFast
    preprocessor: Mapping[str, Any]
    processor: Mapping[str, Any]
    template: str
    end_token: str
    video: str | None = None


def _tokenizer(*special: str, bos: bool = True, eos: str = "</s>", **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer with these special tokens, of which ``named`` become attributes; ``bos``: opens every text itself."""
    tokenizer = build_tokenizer(SAMPLE_TEXTS, 560 + len(special), special)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Bytes are text in published tokenizers.
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Tokenizer.from_str(json.dumps(state))
    if not bos:
        backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
        extra_special_tokens=named,
    )


def _ids(tokenizer: PreTrainedTokenizerFast, **names: str) -> dict[str, int]:
    """Config entries: ids of special tokens by the names that the config has for them."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _parts(image: str) -> str:
    return (
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}"
    )


def _chatml(image: str, generation_prompt: str = "<|im_start|>assistant\n") -> str:
    """Of Qwen2.5-VL, Qwen3-VL, InternVL3, LLaVA-OneVision, Ovis2 and Molmo 2, without their system turns."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        f"{_parts(image)}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{generation_prompt}{{% endif %}}"
    )


_THOUGHTS = "{{ '<think>\n\n</think>\n\n' }}"
TEMPLATES = {
    # A response that is not thought about has an empty thought; the generation prompt leaves it open unless told.
    "qwen3_5": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        + _THOUGHTS
        + "{% endif %}"
        + _parts("<|vision_start|><|image_pad|><|vision_end|>")
        + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}"
        + _THOUGHTS
        + "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
    ),
    "gemma3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
        "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "gemma4": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
        "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
    ),
    "idefics3": (
        "<|begin_of_text|>{% for message in messages %}{{ message['role'].capitalize() }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        + _parts("<image>")
        + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    # Of the checkpoints on Vicuna.
    "llava_next": (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    # Nothing stands behind a response: the next user turn ends it.
    "glm4v": (
        "[gMASK]<sop>\n{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
        + _parts("<|begin_of_image|><|image|><|end_of_image|>")
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # It has no generation prompt, and needs none: "[/INST]" ends the user's turn.
    "mistral3": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
        + _parts("[IMG]")
        + "[/INST]{% else %}"
        + _parts("")
        + "{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "mllama": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        + _parts("<|image|>")
        + "<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
}


def _qwen(model_type: str) -> Small:
    tokenizer = _tokenizer(
        *("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        *("<think>", "</think>"),
        bos=False,
        eos="<|im_end|>",
    )
    ids = _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    text: dict[str, Any] = TEXT | {"vocab_size": len(tokenizer), "head_dim": 16, "rope_parameters": MROPE}
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_heads": 4,
        "spatial_merge_size": 2,
        "out_hidden_size": 64,
        **SPREAD,
    }
    if model_type == "qwen2_5_vl":
        patch = PATCH
        text |= {"layer_types": ["full_attention"] * 2}
        vision |= {"patch_size": PATCH, "window_size": 56, "fullatt_block_indexes": [1]}
    else:
        patch = 16
        vision |= {"patch_size": 16, "num_position_embeddings": 16}
    if model_type.startswith("qwen3_vl"):
        vision |= {"deepstack_visual_indexes": [0]}
    if model_type == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": []}
    if model_type == "qwen3_5":
        text |= {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "rope_parameters": MROPE
            | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5, "mrope_interleaved": True},
        }
    pixels = {"shortest_edge": 4 * patch**2, "longest_edge": 24 * patch**2}
    return Small(
        config={"model_type": model_type, "text_config": text, "vision_config": vision, **ids},
        tokenizer=tokenizer,
        preprocessor={"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": patch, "size": pixels},
        processor={"processor_class": "Qwen2_5_VLProcessor" if patch == PATCH else "Qwen3VLProcessor"},
        template=TEMPLATES.get(model_type, _chatml("<|vision_start|><|image_pad|><|vision_end|>")),
        end_token="<|im_end|>",
        video="Qwen2VLVideoProcessor" if patch == PATCH else "Qwen3VLVideoProcessor",
    )


def _glm4v(model_type: str) -> Small:
    tokenizer = _tokenizer(
        *("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>"),
        *("<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "<think>", "</think>"),
        bos=False,
    )
    ids = _ids(
        tokenizer,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": MROPE | {"partial_rotary_factor": 1.0}}
    vision = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": PATCH,
        "image_size": SIDE,
        "out_hidden_size": 64,
        **SPREAD,
    }
    pixels = {"shortest_edge": 2 * 4 * PATCH**2, "longest_edge": 2 * 24 * PATCH**2}
    return Small(
        config={"model_type": model_type, "text_config": text, "vision_config": vision, **ids},
        tokenizer=tokenizer,
        preprocessor={"image_processor_type": "Glm4vImageProcessor", "patch_size": PATCH, "size": pixels},
        processor={"processor_class": "Glm4vProcessor"},
        template=TEMPLATES["glm4v"],
        end_token="</s>",
        video="Glm4vVideoProcessor",
    )


def _idefics3(model_type: str) -> Small:
    smol = model_type == "smolvlm"
    tokenizer = _tokenizer(
        *("<|im_start|>", "<|begin_of_text|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        *("<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))),
        bos=False,
        eos="<end_of_utterance>",
    )
    return Small(
        config={
            "model_type": model_type,
            "vision_config": VISION,
            "text_config": TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)},
            "scale_factor": 2,
            "pad_token_id": 0,
            **_ids(tokenizer, image_token_id="<image>"),
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "SmolVLMImageProcessor" if smol else "Idefics3ImageProcessor",
            "size": {"longest_edge": 2 * SIDE},
            "max_image_size": {"longest_edge": SIDE},
        },
        processor={"processor_class": "SmolVLMProcessor" if smol else "Idefics3Processor", "image_seq_len": 4},
        template=SMOLVLM_TEMPLATE if smol else TEMPLATES["idefics3"],
        end_token="<end_of_utterance>",
        video="SmolVLMVideoProcessor" if smol else None,
    )


def _llava_next(model_type: str) -> Small:
    tokenizer = _tokenizer("<image>")
    tiles = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    return Small(
        config={
            "model_type": model_type,
            "vision_config": VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 3},
            "text_config": TEXT | {"model_type": "llama", "vocab_size": len(tokenizer)},
            "image_grid_pinpoints": tiles,
            "image_seq_length": 16,
            **_ids(tokenizer, image_token_index="<image>"),
            **SPREAD,
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": SQUARE,
            "image_grid_pinpoints": tiles,
        },
        processor={
            "processor_class": "LlavaNextProcessor",
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        template=TEMPLATES["llava_next"],
        end_token="</s>",
    )


def _llava_onevision(model_type: str) -> Small:
    tokenizer = _tokenizer("<|im_start|>", "<|im_end|>", "<image>", "<video>", bos=False, eos="<|im_end|>")
    tiles = [[SIDE * rows, SIDE * columns] for rows in range(1, 4) for columns in range(1, 4)]
    return Small(
        config={
            "model_type": model_type,
            "vision_config": VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "text_config": TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
            "image_grid_pinpoints": tiles,
            "vision_aspect_ratio": "anyres_max_4",
            **_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
            **SPREAD,
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": SQUARE,
            "image_grid_pinpoints": tiles,
        },
        processor={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_4",
        },
        template=_chatml("{{ '<image>\n' }}"),
        end_token="<|im_end|>",
        video="LlavaOnevisionVideoProcessor",
    )


def _internvl(model_type: str) -> Small:
    tokenizer = _tokenizer(
        *("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        bos=False,
        eos="<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    return Small(
        config={
            "model_type": model_type,
            "vision_config": VISION | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
            "text_config": TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
            "image_seq_length": 4,
            **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": SQUARE,
            "crop_to_patches": False,  # as published; transformers' class of the processor tiles all the same
            "min_patches": 1,
            "max_patches": 4,
        },
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
        template=_chatml("{{ '<IMG_CONTEXT>\n' }}"),
        end_token="<|im_end|>",
        video="InternVLVideoProcessor",
    )


def _ovis2(model_type: str) -> Small:
    indicators = [f"<IMG_{name}>" for name in ("START", "GRID", "COL", "ROW", "END")]
    tokenizer = _tokenizer(
        "<|im_start|>", "<|im_end|>", "<image>", "<IMG_ATOM>", *indicators, bos=False, eos="<|im_end|>"
    )
    return Small(
        config={
            "model_type": model_type,
            "vision_config": VISION | {"vocab_size": 32, "hidden_stride": 2, "num_visual_indicator_tokens": 5},
            "text_config": TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer)},
            "visual_indicator_token_ids": tokenizer.convert_tokens_to_ids(indicators),
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            **_ids(tokenizer, image_token_id="<IMG_ATOM>"),
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "Ovis2ImageProcessor",
            "size": SQUARE,
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
        },
        processor={"processor_class": "Ovis2Processor", "image_seq_length": 4},
        template=_chatml("{{ '<image>\n' }}"),
        end_token="<|im_end|>",
    )


def _molmo2(model_type: str) -> Small:
    tokenizer = _tokenizer(
        *("<|im_start|>", "<|im_end|>", "<|image|>", "<|video|>", "<im_patch>", "<im_col>", "<im_start>"),
        *("<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>", "<im_low>"),
        bos=False,
        eos="<|im_end|>",
    )
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
    return Small(
        config={
            "model_type": model_type,
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "image_size": [SIDE, SIDE],
                "patch_size": PATCH,
                "num_position_embeddings": 16,
                **heads,
                **SPREAD,
            },
            "adapter_config": {
                "vision_feature_layer": [-1, -2],
                "hidden_size": 48,
                "intermediate_size": 64,
                "text_hidden_size": 64,
                **heads,
                **SPREAD,
            },
            "text_config": TEXT | {"head_dim": 16, "vocab_size": len(tokenizer), "additional_vocab_size": 8},
            **_ids(
                tokenizer,
                image_start_token_id="<im_start>",
                low_res_image_start_token_id="<low_res_im_start>",
                image_end_token_id="<im_end>",
                image_patch_id="<im_patch>",
                frame_start_token_id="<frame_start>",
                frame_end_token_id="<frame_end>",
            ),
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "Molmo2ImageProcessor",
            "size": SQUARE,
            "max_crops": 2,
            "overlap_margins": [0, 0],
            "patch_size": PATCH,
            "pooling_size": [2, 2],
        },
        processor={"processor_class": "Molmo2Processor"},
        template=_chatml("<|image|>"),
        end_token="<|im_end|>",
        video="Molmo2VideoProcessor",
    )


def _gemma3(model_type: str) -> Small:
    tokenizer = _tokenizer(
        *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    return Small(
        config={
            "model_type": model_type,
            "text_config": TEXT
            | {
                "vocab_size": len(tokenizer),
                "head_dim": 16,
                "query_pre_attn_scalar": 16,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": VISION | {"vision_use_head": False},
            "mm_tokens_per_image": 4,
            **_ids(
                tokenizer,
                boi_token_index="<start_of_image>",
                eoi_token_index="<end_of_image>",
                image_token_index="<image_soft_token>",
            ),
            **SPREAD,
        },
        tokenizer=tokenizer,
        preprocessor={"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 4},
        template=TEMPLATES["gemma3"],
        end_token="<end_of_turn>",
    )


def _gemma4(model_type: str) -> Small:
    tokenizer = _tokenizer(
        *("<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|video|>", "<|audio>", "<audio|>", "<|audio|>"),
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
        audio_token="<|audio|>",
    )
    image = {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 8, "pooling_kernel_size": 2}
    return Small(
        config={
            "model_type": model_type,
            "text_config": TEXT
            | {
                "vocab_size": len(tokenizer),
                "head_dim": 16,
                "global_head_dim": 16,
                "sliding_window": 8,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": len(tokenizer),
                "num_kv_shared_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"],
                "use_bidirectional_attention": "vision",
            },
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 12,
                "patch_size": 8,
                "pooling_kernel_size": 2,
                "position_embedding_size": 512,
                **SPREAD,
            },
            "audio_config": None,
            **_ids(
                tokenizer,
                boi_token_id="<|image>",
                eoi_token_id="<image|>",
                image_token_id="<|image|>",
                video_token_id="<|video|>",
                boa_token_id="<|audio>",
                eoa_token_index="<audio|>",
                audio_token_id="<|audio|>",
            ),
            **SPREAD,
        },
        tokenizer=tokenizer,
        preprocessor={},
        processor={
            "processor_class": "Gemma4Processor",
            "image_seq_length": 70,
            "image_processor": image | {"max_soft_tokens": 70},
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor"},
        },
        template=TEMPLATES["gemma4"],
        end_token="<turn|>",
    )


def _paligemma(model_type: str) -> Small:
    tokenizer = _tokenizer("<image>")
    return Small(
        config={
            "model_type": model_type,
            "text_config": TEXT
            | {
                "model_type": "gemma2",
                "vocab_size": len(tokenizer),
                "head_dim": 16,
                "query_pre_attn_scalar": 16,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": VISION | {"vision_use_head": False},
            "projection_dim": 64,
            "hidden_size": 64,
            **_ids(tokenizer, image_token_index="<image>"),
        },
        tokenizer=tokenizer,
        preprocessor={"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "image_seq_length": 16},
        processor={"processor_class": "PaliGemmaProcessor"},
        template="",  # the published ones have none
        end_token="</s>",
    )


def _mistral3(model_type: str) -> Small:
    tokenizer = _tokenizer("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return Small(
        config={
            "model_type": model_type,
            "vision_config": VISION | {"model_type": "pixtral", "image_size": 6 * PATCH, "head_dim": 12},
            "text_config": TEXT | {"model_type": "mistral", "head_dim": 16, "vocab_size": len(tokenizer)},
            "spatial_merge_size": 2,
            **_ids(tokenizer, image_token_index="[IMG]"),
        },
        tokenizer=tokenizer,
        preprocessor={
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": PATCH,
            "size": {"longest_edge": 6 * PATCH},
        },
        processor={"processor_class": "PixtralProcessor", "patch_size": PATCH, "spatial_merge_size": 2},
        template=TEMPLATES["mistral3"],
        end_token="</s>",
    )


def _mllama(model_type: str) -> Small:
    tokenizer = _tokenizer(
        "<|image|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", eos="<|eot_id|>"
    )
    return Small(
        config={
            "model_type": model_type,
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "vision_output_dim": 96,
                "image_size": SIDE,
                "patch_size": PATCH,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [1],
                "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
                **SPREAD,
            },
            "text_config": TEXT
            | {
                "vocab_size": len(tokenizer),
                "cross_attention_layers": [1],
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            **_ids(tokenizer, image_token_index="<|image|>"),
        },
        tokenizer=tokenizer,
        preprocessor={"image_processor_type": "MllamaImageProcessor", "size": SQUARE, "max_image_tiles": 4},
        processor={"processor_class": "MllamaProcessor"},
        template=TEMPLATES["mllama"],
        end_token="<|eot_id|>",
    )


_SMALL: dict[str, Callable[[str], Small]] = {
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "gemma3": _gemma3,
    "smolvlm": _idefics3,
    "idefics3": _idefics3,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "gemma4": _gemma4,
    "paligemma": _paligemma,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "glm4v": _glm4v,
    "mistral3": _mistral3,
    "ovis2": _ovis2,
    "molmo2": _molmo2,
    "mllama": _mllama,
}
TYPES = ("idefics2", "llava", *_SMALL)


def save(folder: Path, model_type: str) -> Path:
    """A small checkpoint of this type, the same for the same versions of libraries."""
    if model_type in ("idefics2", "llava"):
        return save_small_model(folder, model_type)
    small = _SMALL[model_type](model_type)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**small.config), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What starts as zeros, ones or empty memory would make images and experts all alike.
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(0.5)
            elif name.endswith(_STARTS_EMPTY):
                torch.nn.init.normal_(parameter, std=0.1)
    ends = sorted({2, *_ids(small.tokenizer, end=small.end_token).values()})
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=ends, pad_token_id=0)
    model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    files = {
        "preprocessor_config.json": small.preprocessor,
        "processor_config.json": small.processor,
        "video_preprocessor_config.json": {"video_processor_type": small.video} if small.video else {},
    }
    for name, content in files.items():
        if content:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    if small.template:
        (folder / "chat_template.jinja").write_text(small.template, encoding="utf-8")
    return folder


_STARTS_EMPTY = (
    "image_newline",
    "mm_input_projection_weight",
    "position_embedding_table",
    "gate_up_proj",
    "down_proj",
    "cls_token",
    "position_embeddings",
)


def end_token(model_type: str) -> str:
    """What ends a response of this type, by its published template or else its tokenizer."""
    own = {"idefics2": "<end_of_utterance>", "llava": "</s>"}
    return own.get(model_type) or _SMALL[model_type](model_type).end_token
