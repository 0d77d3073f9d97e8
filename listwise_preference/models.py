"""Model, processor and adapter: load them, prove that the adapter is whole, and know what is special to a family."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as load_into_adapter
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils.hub import cached_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Renamings of adapter keys, old layout -> today's, applied in order to what follows "base_model.model.".
# Up to transformers 4.51 LLaVA kept a causal language model and its head inside and stood one level higher; up to 5.0
# CLIP's vision tower had a level of its own.
_LLAVA_RENAMINGS = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"^model\.vision_tower\.vision_model\."), "model.vision_tower."),
)


# What stands around a user's turn and before an answer, for checkpoints that bring no template of their own.
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


@dataclass(frozen=True)
class Family:
    """What is special to one family of models.

    Attributes:
        chat_template: of checkpoints that have none themselves.
        end_token: ends an answer; ``None`` takes the tokenizer's end-of-sequence token.
        vision_tower: name of the module that ``--freeze_vision_tower`` leaves without adapter.
        packed_rows: whether a custom attention mask and custom positions reach its language model unchanged.
        processor_settings: how the method wants the processor set.
        expands_text_alone: whether the processor puts the image tokens into a prompt without seeing the picture.
        adapter_renamings: of adapters saved under an older layout of the model.
    """

    chat_template: str
    end_token: str | None
    vision_tower: str
    packed_rows: bool = True
    processor_settings: Mapping[str, object] = field(default_factory=dict)
    expands_text_alone: bool = False
    adapter_renamings: Sequence[tuple[re.Pattern[str], str]] = ()


FAMILIES = {
    "idefics2": Family(
        chat_template=_IDEFICS2_TEMPLATE,
        end_token="<end_of_utterance>",
        vision_tower="model.vision_model",
        processor_settings={"do_image_splitting": False},
        expands_text_alone=True,
    ),
    "llava": Family(
        chat_template=_LLAVA_TEMPLATE,
        end_token=None,
        vision_tower="model.vision_tower",
        adapter_renamings=_LLAVA_RENAMINGS,
    ),
}


class ModelError(Exception):
    """A checkpoint or an adapter cannot be used; the message says which and why."""


def load_config(name_or_path: str, revision: str | None = None) -> tuple[PreTrainedConfig, Family]:
    """The checkpoint's config and its family.

    Raises:
        ModelError: there is no such checkpoint, or its family is not one of ``FAMILIES``.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model {name_or_path}: {error}") from error
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"{name_or_path} is a {config.model_type!r} model; supported are {', '.join(sorted(FAMILIES))}"
        )
    return config, FAMILIES[config.model_type]


def load_processor(name_or_path: str, revision: str | None = None) -> ProcessorMixin:
    """The checkpoint's processor, Pillow-backed, set as the method wants it.

    Processors of old LLaVA checkpoints do not say how many image tokens a picture becomes; that is then taken from
    the model's config. A checkpoint without a chat template gets its family's.

    Raises:
        ModelError: the checkpoint's processor cannot be loaded.
    """
    config, family = load_config(name_or_path, revision)
    # One backend everywhere: torchvision's resizes differ a little, and it need not be installed.
    try:
        processor = AutoProcessor.from_pretrained(
            name_or_path, revision=revision, backend="pil", **family.processor_settings
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"cannot load the processor of {name_or_path}: {' '.join(str(error).split())}") from error
    if processor.tokenizer.convert_tokens_to_ids(processor.image_token) != config.image_token_id:
        raise ModelError(f"{name_or_path}: the tokenizer does not know the model's image token; are its files there?")
    if config.model_type == "llava":
        processor.patch_size = processor.patch_size or config.vision_config.patch_size
        processor.vision_feature_select_strategy = (
            processor.vision_feature_select_strategy or config.vision_feature_select_strategy
        )
        if config.vision_config.model_type == "clip_vision_model":
            processor.num_additional_image_tokens = 1  # CLIP's class token, which "default" drops again
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template or family.chat_template
    return processor


def end_token(processor: ProcessorMixin, family: Family) -> str:
    """What the model ends an answer with."""
    return family.end_token or processor.tokenizer.eos_token


def load_base_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str | None = None,
    device: torch.device | None = None,
    load_in_4bit: bool = False,
) -> PreTrainedModel:
    """The checkpoint's weights, from safetensors only.

    Args:
        device: where they are put; ``None`` leaves them on the CPU.
        load_in_4bit: quantize the linear layers to NF4 while loading, ``dtype`` being that of the computation.

    Raises:
        ModelError: no safetensors weights, or an attention implementation or a package that is not there.
    """
    quantization = None
    if load_in_4bit:
        if find_spec("bitsandbytes") is None:
            raise ModelError("--load_in_4bit needs a package that is not installed: pip install bitsandbytes")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
    try:
        return AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            revision=revision,
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map=None if device is None else {"": device},
            quantization_config=quantization,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the model {name_or_path}: {error}") from error


def add_adapter(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str],
    frozen_module: str | None = None,
) -> PeftModel:
    """A fresh LoRA adapter on ``model``: float32 master weights whatever the base's dtype, B = 0.

    Args:
        target_modules: module name endings, or ``["all-linear"]`` for every linear layer but the vocabulary projection.
        frozen_module: a module whose layers get no adapter, e.g. the vision tower.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if list(target_modules) == ["all-linear"] else list(target_modules),
        exclude_modules=rf".*{re.escape(frozen_module)}\..*" if frozen_module else None,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"--lora_target_modules {' '.join(target_modules)}: {error}") from error


def adapter_file(folder: Path) -> Path:
    """The weights' file of an adapter folder.

    Raises:
        ModelError: there is no adapter.
    """
    file = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not file.is_file():
        raise ModelError(
            f"{folder} holds no adapter: adapter_config.json and adapter_model.safetensors must be there"
            " (weights are read from safetensors only)"
        )
    return file


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """A saved adapter on its base model, proved to be whole.

    Adapters saved under an older layout of the model, those of the paper's release among them, are renamed to
    today's. After loading, every tensor of the file has been found in the model with the file's value, and every
    adapter parameter of the model has come from the file.

    Raises:
        ModelError: no adapter there; or tensors that are left over, missing, or of another shape, each named.
    """
    file = adapter_file(folder)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    try:
        adapted: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"{folder}: the adapter does not fit this model: {error}") from error

    saved = load_file(file)
    family = FAMILIES[model.config.model_type]
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {key if key in wanted else _todays_key(key, family): tensor for key, tensor in saved.items()}
    # With lm_head among its targets peft writes that layer's frozen weights along; they are the base model's to give.
    copies = {key: tensors.pop(key) for key in list(tensors) if key.endswith(".base_layer.weight")}
    base = adapted.state_dict()
    problems = [
        *_key_report(f"{len(saved)} tensors of the file, not in the model", set(tensors) - set(wanted)),
        *_key_report(f"{len(wanted)} adapter parameters of the model, not in the file", set(wanted) - set(tensors)),
        *_key_report(
            "tensors of another shape than the model's",
            {key for key in set(tensors) & set(wanted) if tensors[key].shape != wanted[key].shape},
        ),
        *_key_report(
            "copies of base weights, other than this model's",
            {key for key, tensor in copies.items() if not _about_equal(base.get(key), tensor)},
        ),
    ]
    if len(tensors) + len(copies) != len(saved):
        problems.append("  two keys of the file name the same parameter")
    if problems:
        raise ModelError("\n".join([f"{file} is not a whole adapter for this model:", *problems]))
    load_into_adapter(adapted, tensors)
    loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    changed = {key for key, tensor in tensors.items() if not _same_values(loaded[key], tensor)}
    if changed:
        raise ModelError("\n".join([f"{file} did not load:", *_key_report("tensors not taken over", changed)]))
    return adapted


def _todays_key(key: str, family: Family) -> str:
    prefix, rest = "base_model.model.", key.removeprefix("base_model.model.")
    for pattern, replacement in family.adapter_renamings:
        rest = pattern.sub(replacement, rest)
    return prefix + rest


def _key_report(what: str, keys: set[str]) -> list[str]:
    return [f"  {len(keys)} of the {what}:", *(f"    {key}" for key in sorted(keys))] if keys else []


def _about_equal(weights: Tensor | None, copy: Tensor) -> bool:
    """Equal but for rounding to another precision, bfloat16 being the coarsest."""
    return (
        weights is not None
        and weights.shape == copy.shape
        and torch.allclose(weights.cpu().float(), copy.float(), rtol=2**-7, atol=1e-6)
    )


def _same_values(loaded: Tensor, saved: Tensor) -> bool:
    return torch.equal(loaded.cpu(), saved.to(loaded.dtype))


def sha256_of(files: Sequence[Path]) -> str:
    """Of one file what ``sha256sum`` prints; of several one hash over theirs, in the order given."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def weights_identity(name_or_path: str, revision: str | None = None) -> str:
    """What tells one set of base weights from another: a folder's content hash, or a hub name and its commit."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return "sha256:" + sha256_of([folder / "config.json", *sorted(folder.glob("*.safetensors"))])
    config_file = cached_file(name_or_path, "config.json", revision=revision)
    # The hub's cache keeps each commit's files in a folder of its name.
    return f"{name_or_path}@{Path(str(config_file)).parent.name}"


def processor_identity(processor: ProcessorMixin) -> str:
    """A hash of all that turns a text and a picture into tensors."""
    settings = {
        "image_processor": [type(processor.image_processor).__name__, processor.image_processor.to_dict()],
        "processor": processor.to_dict(),
        "chat_template": processor.chat_template,
        "tokenizer": processor.tokenizer.backend_tokenizer.to_str(),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
