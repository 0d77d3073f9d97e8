"""A checkpoint's config, processor and weights, and what identifies them."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_MODELS
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import get_video_processor_config
from transformers.utils import VIDEO_PROCESSOR_NAME
from transformers.utils.hub import cached_file

from listwise_preference.errors import ModelError
from listwise_preference.files import sha256_of, write_json
from listwise_preference.models.families import Family, family_of
from listwise_preference.models.without_torchvision import PixtralProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_config(name_or_path: str, revision: str | None = None) -> tuple[PreTrainedConfig, Family]:
    """The checkpoint's config and what is special to its type.

    Raises:
        ModelError: there is no such checkpoint, or it is no model that continues a text with images in it.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model {name_or_path}: {' '.join(str(error).split())}") from error
    if config.model_type not in IMAGE_TEXT_MODELS or config.is_encoder_decoder:
        raise ModelError(
            f"{name_or_path} is a {config.model_type!r} model; supported are the image-text-to-text models of"
            f" transformers {transformers.__version__} that continue a text, Qwen3-VL, Gemma 3 or LLaVA for example"
        )
    return config, family_of(config.model_type)


def load_processor(
    name_or_path: str, revision: str | None = None, settings: Mapping[str, object] | None = None
) -> ProcessorMixin:
    """The checkpoint's processor, Pillow-backed, set and completed as its family wants it.

    A checkpoint without a chat template gets its family's.
    Args:
        settings: of the image processor, over the checkpoint's and the family's.

    Raises:
        ModelError: the checkpoint's processor cannot be loaded, or has no such setting.
    """
    config, family = load_config(name_or_path, revision)
    settings = {**family.processor_settings, **(settings or {})}
    # One backend everywhere: torchvision's resizes differ a little, and it need not be installed.
    try:
        processor = _processor_class(config).from_pretrained(name_or_path, revision=revision)
        if isinstance(processor, _WithoutVideos):
            processor.video_settings = get_video_processor_config(name_or_path, revision=revision)
        if hasattr(processor, "image_processor"):
            # Not by backend="pil" for all of it: video processors have no such backend.
            processor.image_processor = AutoImageProcessor.from_pretrained(
                name_or_path, revision=revision, backend="pil", **settings
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        said = " ".join(str(error).split())
        if "Can't load image processor" in said:
            raise _no_images(name_or_path) from error
        for package in ("torchvision", "num2words"):
            if package in said.lower() and find_spec(package) is None:
                said = f"transformers reads images of {config.model_type} models with {package}: pip install {package}"
        raise ModelError(f"cannot load the processor of {name_or_path}: {said}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise _no_images(name_or_path)
    _set(processor, settings)
    if processor.tokenizer.convert_ids_to_tokens(getattr(config, "image_token_id", None) or 0) is None:
        raise ModelError(f"{name_or_path}: the tokenizer does not know the model's image token; are its files there?")
    if family.complete_processor is not None:
        family.complete_processor(processor, config)
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template or family.chat_template
    return processor


def _no_images(name_or_path: str) -> ModelError:
    return ModelError(f"{name_or_path}: its processor takes no images; is its preprocessor_config.json there?")


def _set(processor: Any, settings: Mapping[str, object]) -> None:
    """Check that the image processor knows these settings, and let them stand against its processor's own."""
    known = {*processor.image_processor.to_dict(), *processor.image_processor.valid_kwargs.__annotations__}
    if unknown := sorted(set(settings) - known):
        raise ModelError(
            f"--processor_settings: {type(processor.image_processor).__name__} has no {', '.join(unknown)};"
            f" it has {', '.join(sorted(known))}"
        )
    # Some classes of processors call the image processor with values of their own, InternVL's with crop_to_patches.
    # What the tokenizer was made with goes before these, and is saved (findings/saved_tiling_is_overruled.sh).
    own = getattr(type(processor), "images_kwargs", {})
    processor.tokenizer.init_kwargs.update({name: settings[name] for name in own if name in settings})


def image_settings(processor: Any) -> dict[str, Any]:
    """The image processor's settings that are in use, whatever its attributes say (``_set``)."""
    own = getattr(processor, "images_kwargs", {})
    in_call = {name: processor.tokenizer.init_kwargs.get(name, value) for name, value in own.items()}
    return {**processor.image_processor.to_dict(), **in_call}


class _WithoutVideos(ProcessorMixin):
    """A processor without its part for videos, which wants torchvision even where images do not.

    Attributes:
        video_settings: of that part, saved as they were found, so that others can load what is saved here.
    """

    video_settings: Mapping[str, Any] = {}
    # SmolVLM's asks it for these two wherever a template is applied.
    video_processor = SimpleNamespace(num_frames=None, fps=None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        parts = dict(zip(super().get_attributes(), args, strict=False)) | kwargs
        super().__init__(**{name: part for name, part in parts.items() if name != "video_processor"})

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        if self.video_settings:
            write_json(Path(save_directory) / VIDEO_PROCESSOR_NAME, self.video_settings)

    @classmethod
    def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> ProcessorMixin:
        parts = dict(zip(cls.get_attributes(), args, strict=True))
        every = [parts.get(name) for name in super().get_attributes()]
        return super().from_args_and_dict(every, processor_dict, **kwargs)


def _processor_class(config: PreTrainedConfig) -> Any:
    """What loads the checkpoint's processor: its own class, for images alone where it knows videos.

    So a processor is the same, and saves the same, with torchvision and without.
    """
    own: Any = PROCESSOR_MAPPING.get(type(config), None)
    if own is not None and own.__name__ == PixtralProcessor.__name__:
        return PixtralProcessor
    if own is None or "video_processor" not in own.get_attributes():
        return AutoProcessor
    # Behind ``own`` and before ProcessorMixin, so that own's __init__ hands it the parts.
    return type(own.__name__, (own, _WithoutVideos), {"__module__": own.__module__})


def read_generation_config(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """What is in the checkpoint's generation_config.json, nothing where there is none.

    As it stands: transformers refuses settings that contradict each other, which decide nothing here.
    """
    file = "generation_config.json"
    try:
        content, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, _configuration_file=file)
    except OSError:
        return {}
    return dict(content)


def load_base_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str | None = None,
    device: torch.device | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    generation_config: GenerationConfig | None = None,
) -> PreTrainedModel:
    """The checkpoint's weights, from safetensors only.

    Args:
        device: where they are put; ``None`` leaves them on the CPU.
        load_in_4bit: quantize the linear layers to NF4 while loading, ``dtype`` being that of the computation.
        load_in_8bit: quantize them to 8 bits.
        generation_config: instead of the checkpoint's own.

    Raises:
        ModelError: no safetensors weights, or an attention implementation or a package that is not there.
    """
    quantization = None
    if load_in_4bit or load_in_8bit:
        if find_spec("bitsandbytes") is None:
            bits = "4bit" if load_in_4bit else "8bit"
            raise ModelError(f"--load_in_{bits} needs a package that is not installed: pip install bitsandbytes")
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    if load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
        )
    try:
        model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            revision=revision,
            dtype=dtype,
            attn_implementation=_or_eager(attn_implementation),
            device_map=None if device is None else {"": device},
            quantization_config=quantization,
            generation_config=generation_config,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the model {name_or_path}: {error}") from error
    if load_in_4bit and model.device.type == "cpu":
        _stay_differentiable(model)
    return model


def _stay_differentiable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU at the first pass without gradients.

    Once packed there are no gradients through them, and training goes on without
    (``findings/packed_4bit_layers_lose_gradients.sh``).
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def empty_model(
    config: PreTrainedConfig, *, dtype: torch.dtype = torch.bfloat16, attn_implementation: str | None = None
) -> PreTrainedModel:
    """A model of the config's shapes on the meta device, without weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=_or_eager(attn_implementation)
        )


def _or_eager(attn_implementation: str | None) -> str | None:
    """``None`` for sdpa: transformers takes it where a model has it, and eager attention in the few that do not."""
    return None if attn_implementation == "sdpa" else attn_implementation


def rope_index(config: PreTrainedConfig) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What gives an image's tokens positions in height and width, for models that have such; it needs no weights."""
    return getattr(empty_model(config).base_model, "get_rope_index", None)


def local_device() -> torch.device:
    """The GPU of this process among those that a launcher started, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def weights_identity(name_or_path: str, revision: str | None = None) -> str:
    """What tells one set of base weights from another: a folder's content hash, or a hub name and its commit."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return "sha256:" + sha256_of([folder / "config.json", *sorted(folder.glob("*.safetensors"))])
    config_file = cached_file(name_or_path, "config.json", revision=revision)
    # The hub's cache keeps each commit's files in a folder of its name.
    return f"{name_or_path}@{Path(str(config_file)).parent.name}"


def processor_identity(processor: ProcessorMixin) -> str:
    """A hash of all that turns a text and an image into tensors.

    Padding and truncation are not among it: the tokenizer remembers those of its last call, and each call gives them.
    """
    tokenizer = copy.deepcopy(processor.tokenizer.backend_tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings = {
        "image_processor": [type(processor.image_processor).__name__, image_settings(processor)],
        "processor": processor.to_dict(),
        "chat_template": processor.chat_template,
        "tokenizer": tokenizer.to_str(),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
