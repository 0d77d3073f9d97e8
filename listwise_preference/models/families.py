"""What is special to a type of model: one entry of ``FAMILIES``, under the ``model_type`` of its config.

A type without an entry is taken as it comes: its own template, its own processor, an ordinary attention mask, its own
positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Up to transformers 4.51 LLaVA kept a causal language model and its head inside and stood one level higher; up to 5.0
# CLIP's vision tower had a level of its own.
_LLAVA_UP_TO_4_51 = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
_LLAVA_LAYOUTS = (
    _LLAVA_UP_TO_4_51,
    _LLAVA_UP_TO_4_51 | {"model.vision_tower.": "vision_tower."},  # towers without that level
    {"model.vision_tower.": "model.vision_tower.vision_model."},
)

# The text around a user's turn and before a response, for checkpoints without a template of their own.
_IDEFICS2_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_PALIGEMMA_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """What is special to one type of model.

    Attributes:
        chat_template: of checkpoints that have none themselves.
        special_tokens: that a user's text must not contain: they would stand for an image that is not there, or end a
            response in its middle. Where none are named the tokenizer's are refused, once the model is known.
        ragged_rows: whether rows behind one another (``models.ragged_attention``) are exact, as a test shows. ``None``
            is not known: the first record of a run decides (``training.row_proof``).
        response_token_type: a response's entry in the processor's ``token_type_ids``; ``None`` goes on with that of
            the prompt's last token.
        processor_settings: values that the method sets on the processor.
        shares_prefix: whether prompts can be put together from text and an image's tokens, so that the beginning that
            an image's prompts share is read once when many questions are asked on it.
        expands_text_alone: whether the processor puts all of an image's tokens into a prompt without seeing the image.
        complete_processor: takes the processor and the model's config, and sets what old checkpoints leave unsaid.
        former_layouts: of the model in older versions of transformers, under which adapters were saved: what module
            names began with, by today's beginning.
        unused_modules: of a config, the modules whose output nothing reads; they get no adapter.
    """

    chat_template: str | None = None
    special_tokens: Sequence[str] = ()
    ragged_rows: bool | None = None
    response_token_type: int | None = None
    processor_settings: Mapping[str, object] = field(default_factory=dict)
    shares_prefix: bool = False
    expands_text_alone: bool = False
    complete_processor: Callable[[Any, Any], None] | None = None
    former_layouts: Sequence[Mapping[str, str]] = ()
    unused_modules: Callable[[Any], Sequence[str]] | None = None


def _complete_llava(processor: Any, config: Any) -> None:
    """How many tokens an image becomes, which processors of old checkpoints do not say."""
    processor.patch_size = processor.patch_size or config.vision_config.patch_size
    processor.vision_feature_select_strategy = (
        processor.vision_feature_select_strategy or config.vision_feature_select_strategy
    )
    if config.vision_config.model_type == "clip_vision_model":
        processor.num_additional_image_tokens = 1  # CLIP's class token, which "default" drops again


def _unused_in_llava(config: Any) -> list[str]:
    """The vision tower's layers behind the last one whose hidden states are read: of LLaVA-1.5 its last layer."""
    layers, read = config.vision_config.num_hidden_layers, config.vision_feature_layer
    # Hidden states are those before the first layer and behind each, so that -1 is behind all of them.
    used = max(one if one >= 0 else layers + 1 + one for one in ([read] if isinstance(read, int) else read))
    return [f"model.vision_tower.encoder.layers.{layer}" for layer in range(used, layers)]


FAMILIES: dict[str, Family] = {
    "idefics2": Family(
        chat_template=_IDEFICS2_TEMPLATE,
        special_tokens=("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<s>", "</s>", "<unk>"),
        ragged_rows=True,
        processor_settings={"do_image_splitting": False},
        shares_prefix=True,
        expands_text_alone=True,
    ),
    "llava": Family(
        chat_template=_LLAVA_TEMPLATE,
        special_tokens=("<image>", "<s>", "</s>", "<pad>", "<unk>"),
        ragged_rows=True,
        shares_prefix=True,
        complete_processor=_complete_llava,
        former_layouts=_LLAVA_LAYOUTS,
        unused_modules=_unused_in_llava,
    ),
    "gemma3": Family(ragged_rows=False),  # images attend both ways, in layers with a window too
    "gemma4": Family(ragged_rows=False),  # the same
    "glm4v": Family(ragged_rows=True),
    "idefics3": Family(ragged_rows=True),
    "internvl": Family(ragged_rows=True),
    "llava_next": Family(ragged_rows=True),
    "llava_onevision": Family(ragged_rows=True),
    "mistral3": Family(ragged_rows=True),
    "mllama": Family(ragged_rows=False),  # text attends to images across
    "molmo2": Family(ragged_rows=False),  # images attend both ways
    "ovis2": Family(ragged_rows=True),
    # Its prompts are read both ways, its responses from left to right; the processor writes <bos> and "\n" itself.
    "paligemma": Family(chat_template=_PALIGEMMA_TEMPLATE, ragged_rows=False, response_token_type=1),
    "qwen2_5_vl": Family(ragged_rows=True),
    "qwen3_5": Family(ragged_rows=False),  # linear attention runs on from row to row
    "qwen3_vl": Family(ragged_rows=True),
    "qwen3_vl_moe": Family(ragged_rows=True),
    "smolvlm": Family(ragged_rows=True),
}


def family_of(model_type: str) -> Family:
    """What is special to models of this type."""
    return FAMILIES.get(model_type, Family())


def special_tokens() -> tuple[str, ...]:
    """Those of all entries, since data is checked before the model is looked at."""
    return tuple(dict.fromkeys(token for family in FAMILIES.values() for token in family.special_tokens))
