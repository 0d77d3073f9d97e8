"""LoRA adapters: made, loaded whole or refused. torch and peft are imported where they are needed."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from listwise_preference.data.validation import shown
from listwise_preference.errors import DataError, ModelError
from listwise_preference.files import read_json, sha256_of
from listwise_preference.models.families import Family, family_of

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel


_EXAMPLES = 2  # of the keys of each kind, in a message
_PREFIX = "base_model.model."  # of all names in an adapter's file


def processor_settings(given: Mapping[str, Any] | None, adapter: Path | None) -> Mapping[str, Any] | None:
    """Settings of the image processor: those given, or else those that the adapter was trained with."""
    if given is not None or adapter is None:
        return given
    settings: Mapping[str, Any] | None = trained_with(adapter, "model").get("processor_settings")
    return settings


def add_adapter(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str],
    target_parameters: Sequence[str] = (),
    frozen_module: str | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> PeftModel:
    """A fresh LoRA adapter on ``model``: float32 master weights whatever the base's dtype, B = 0.

    Layers whose output nothing reads get none: they would be written to disk as they were drawn.

    Args:
        target_modules: module name endings, or ``["all-linear"]`` for every linear layer but the vocabulary projection.
        target_parameters: parameter name endings, for the experts of a mixture that are one parameter together.
        frozen_module: a module whose layers get no adapter, e.g. the vision tower.
        use_rslora: scale by ``alpha / sqrt(r)`` (arXiv:2312.03732).
        use_dora: train the magnitudes of the weights' columns too (arXiv:2402.09353).

    Raises:
        ModelError: a name that no module ends with, or none that can be adapted.
    """
    from peft import LoraConfig

    _check_targets(model, target_modules)

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if list(target_modules) == ["all-linear"] else list(target_modules),
        target_parameters=list(target_parameters) or None,
        exclude_modules=rf".*{re.escape(frozen_module)}\..*" if frozen_module else None,
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    try:
        adapted = _with_layers(model, config)
    except ValueError as error:
        targets = " ".join([*target_modules, *target_parameters])
        raise ModelError(f"--lora_target_modules {targets}: {error}") from error
    family = family_of(model.config.model_type)
    if family.unused_modules is not None:
        _take_off(adapted, family.unused_modules(model.config))
    return adapted


def _check_targets(model: PreTrainedModel, names: Sequence[str]) -> None:
    """peft refuses names only where none of them is found."""
    if list(names) == ["all-linear"]:
        return
    modules = [f".{name}" for name, _ in model.named_modules()]
    if unknown := [name for name in names if not any(module.endswith(f".{name}") for module in modules)]:
        from torch import nn

        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        raise ModelError(
            f"--lora_target_modules {' '.join(unknown)}: no module of this model ends so; its linear layers end in"
            f" {', '.join(sorted(name for name in linear if not name.isdigit()))}"
        )


def _take_off(adapted: PeftModel, modules: Sequence[str]) -> None:
    """Without the adapter's layers in ``modules``, in memory and in what is saved.

    They are made first and then taken off, so that the other layers' A are drawn as with them.
    """
    from peft.tuners.lora import LoraLayer

    model: Any = adapted.get_base_model()
    inside = tuple(f"{name}." for name in modules)
    names = [n for n, layer in model.named_modules() if isinstance(layer, LoraLayer) and n.startswith(inside)]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, model.get_submodule(name).get_base_layer())
    if names:
        config: Any = adapted.peft_config["default"]
        excluded = "|".join(rf".*{re.escape(name)}\..*" for name in modules)
        config.exclude_modules = f"{config.exclude_modules}|{excluded}" if config.exclude_modules else excluded


def _with_layers(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft 0.21 asks the model whether it is_gradient_checkpointing, which transformers calls otherwise since 5.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return get_peft_model(model, config)


def check_folders(model: str, adapter: Path | None) -> None:
    """Refuse missing folders before torch is imported; ``hub.check_model`` says of a name whether the hub has it.

    Raises:
        ModelError: ``model`` can be no name on the hub and is no folder, or ``adapter`` holds no adapter.
    """
    path = Path(model)
    beside_others = path.parent != Path() and path.parent.is_dir()  # runs/small-llava, where there is a folder runs
    if (model.startswith(("/", ".", "~")) or model.count("/") > 1 or beside_others) and not path.is_dir():
        raise ModelError(f"cannot load the model {model}: no such folder")
    if adapter is not None:
        check_adapter(adapter)


def trained_with(folder: Path, group: str) -> dict[str, Any]:
    """A group of the options that an adapter was trained with, by its run.json; empty where it has none."""
    file = folder / "run.json"
    run = read_json(file) if file.is_file() else {}
    arguments = run.get("arguments") if isinstance(run, dict) else None
    options = arguments.get(group) if isinstance(arguments, dict) else None
    return options if isinstance(options, dict) else {}


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


_Check = Callable[[Any], bool]
_IS_WHOLE: _Check = lambda value: type(value) is int and 0 < value < 10**6  # noqa: E731 - a table reads better
_IS_NUMBER: _Check = lambda value: type(value) in (int, float) and abs(value) < 10**9  # noqa: E731
_IS_TRUTH: _Check = lambda value: isinstance(value, bool)  # noqa: E731
_IS_TEXT: _Check = lambda value: isinstance(value, str)  # noqa: E731
_IS_NAMES: _Check = lambda value: _IS_TEXT(value) or (isinstance(value, list) and all(map(_IS_TEXT, value)))  # noqa: E731
_IS_PATTERNS: _Check = lambda value: (  # noqa: E731
    isinstance(value, dict) and all(map(_IS_WHOLE, value.values())) and all(map(_is_expression, value))
)
# What a LoRA's config says of its layers; null is allowed where peft's default is null.
_CONFIG: dict[str, tuple[str, _Check]] = {
    "r": ("a whole number above 0", _IS_WHOLE),
    "lora_alpha": ("a number", _IS_NUMBER),
    "lora_dropout": ("a number from 0 to 1", lambda value: _IS_NUMBER(value) and 0 <= value <= 1),
    "rank_pattern": ("names of layers with whole numbers", _IS_PATTERNS),
    "alpha_pattern": ("names of layers with whole numbers", _IS_PATTERNS),
    "bias": ("none, all or lora_only", lambda value: value in ("none", "all", "lora_only")),
    "use_rslora": ("true or false", _IS_TRUTH),
    "use_dora": ("true or false", _IS_TRUTH),
    "fan_in_fan_out": ("true or false", _IS_TRUTH),
    "inference_mode": ("true or false", _IS_TRUTH),
    "init_lora_weights": ("true, false or text", lambda value: _IS_TRUTH(value) or _IS_TEXT(value)),
}
_CONFIG_OR_NULL: dict[str, tuple[str, _Check]] = {
    "target_modules": ("text or a list of texts", lambda value: _IS_NAMES(value) and bool(value)),
    "exclude_modules": ("text or a list of texts", _IS_NAMES),
    "modules_to_save": ("a list of texts", lambda value: isinstance(value, list) and _IS_NAMES(value)),
    "task_type": ("text", _IS_TEXT),
    "base_model_name_or_path": ("text", _IS_TEXT),
    "revision": ("text", _IS_TEXT),
    "layers_pattern": ("text or a list of texts", _IS_NAMES),
}


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def check_adapter(folder: Path) -> None:
    """Refuse a damaged adapter before its base model is loaded. Needs no torch.

    Raises:
        ModelError: there is none; its config is no adapter's, or an entry of it is of the wrong kind; its weights' file
            is cut, or its header damaged.
    """
    from safetensors import SafetensorError, safe_open

    file, config_file = adapter_file(folder), folder / "adapter_config.json"
    try:
        config = read_json(config_file)
    except DataError as error:
        raise ModelError(str(error)) from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelError(f'{config_file}: not the config of an adapter: no text under "peft_type"')
    if config["peft_type"] == "LORA":
        for name, (wanted, check) in {**_CONFIG, **_CONFIG_OR_NULL}.items():
            value = config.get(name)
            if name in config and not (value is None and name in _CONFIG_OR_NULL) and not check(value):
                raise ModelError(f'{config_file}: "{name}" is {shown(value)}; it must be {wanted}')
            if isinstance(value, str) and name.endswith("_modules") and not _is_expression(value):
                raise ModelError(f'{config_file}: "{name}" is {shown(value)}, not a regular expression')
    try:
        with safe_open(str(file), framework="numpy") as weights:
            if not list(weights.keys()):
                raise ModelError(f"{file}: no weights in it")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file}: damaged, or no safetensors: {error}; copy it again") from error


def read_config(folder: Path) -> PeftConfig:
    """The adapter's config as peft has it; raises ModelError where peft cannot read it."""
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever a wrong entry does in it
        raise ModelError(f"{folder / 'adapter_config.json'}: peft cannot read it: {error}") from error


def identity(folder: Path) -> str:
    """What tells one adapter from another: the hash of its config and weights."""
    return sha256_of([folder / "adapter_config.json", adapter_file(folder)])


def targets(config: PeftConfig) -> list[str] | str | None:
    """The layers that an adapter's config names, or the pattern that it has for them."""
    named: set[str] | list[str] | str | None = vars(config).get("target_modules")
    return named if named is None or isinstance(named, str) else sorted(named)


def load_adapter(
    model: PreTrainedModel, folder: Path, *, trainable: bool = False, base_is_reference: bool | None = None
) -> PeftModel:
    """A saved adapter on its base model, proved to be whole.

    Adapters saved under an older layout of the model, those of the paper's release among them, are renamed to
    today's, in keys and config. After loading, every tensor of the file has been found in the model with the file's
    value, every adapter parameter of the model has come from the file, and every layer has the scale it was saved with.

    Args:
        base_is_reference: refuse an adapter that changes the base weights when it is loaded, since the model with the
            adapter off is not the base then. By default it is refused where the adapter is trained.

    Raises:
        ModelError: no adapter there; or tensors that are left over, missing, or of another shape, each named; or a
            scale that cannot be known; or changed base weights where they are the reference.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    if base_is_reference is None:
        base_is_reference = trainable
    check_adapter(folder)
    file = adapter_file(folder)
    as_saved = read_config(folder)
    trained_on = as_saved.base_model_name_or_path  # peft writes this model's name over it
    saved = load_file(file)
    modules = {name for name, _ in model.named_modules() if name}
    layout = _layout_of(saved, modules, family_of(model.config.model_type))
    names = {name: _former_name(name, layout) for name in modules}
    config = as_saved
    if layout and isinstance(as_saved, LoraConfig):
        config = _todays_config(as_saved, names, {_todays_name(layer, layout) for layer in _layers(saved)})
    config.inference_mode = not trainable
    base_before = _checksums(model) if base_is_reference and model.device.type != "meta" else {}
    try:
        adapted = _with_layers(model, config)
    except Exception as error:  # of whatever its config says of layers and their shapes
        raise ModelError(f"{folder}: the adapter does not fit this model: {error}") from error
    if model.device.type == "meta":
        return adapted  # a model without weights has its shape alone

    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    todays = {key: _PREFIX + _todays_name(key.removeprefix(_PREFIX), layout) for key in saved}
    tensors = {key if key in wanted else todays[key]: tensor for key, tensor in saved.items()}
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
        *_key_report(
            "tensors with values that are no finite numbers",
            {key for key, tensor in tensors.items() if not tensor.isfinite().all()},
        ),
    ]
    if len(tensors) + len(copies) != len(saved):
        problems.append("  two keys of the file name the same parameter")
    if problems:
        whose = f"; it was trained on {trained_on}" if trained_on else ""
        raise ModelError("\n".join([f"{file} is not a whole adapter for this model{whose}:", *problems]))
    set_peft_model_state_dict(adapted, tensors)
    loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    changed = {key for key, tensor in tensors.items() if not _same_values(loaded[key], tensor)}
    if changed:
        raise ModelError("\n".join([f"{file} did not load:", *_key_report("tensors not taken over", changed)]))
    if isinstance(as_saved, LoraConfig):
        _prove_scales(adapted, as_saved, names, folder)
    if base_is_reference:
        _prove_base(adapted, base_before, as_saved, folder)
    return adapted


def _layout_of(saved: Iterable[str], modules: set[str], family: Family) -> Mapping[str, str]:
    """The layout of the model under which most of an adapter's layers are layers of today's; empty for today's own."""
    layers = _layers(saved)
    layouts: tuple[Mapping[str, str], ...] = ({}, *family.former_layouts)
    return max(layouts, key=lambda layout: sum(_todays_name(layer, layout) in modules for layer in layers))


def _layers(saved: Iterable[str]) -> set[str]:
    return {key.removeprefix(_PREFIX).split(".lora_")[0] for key in saved if ".lora_" in key}


def _todays_name(name: str, layout: Mapping[str, str]) -> str:
    for today, former in layout.items():
        if f"{name}.".startswith(former):
            return (today + f"{name}.".removeprefix(former)).removesuffix(".")
    return name


def _former_name(name: str, layout: Mapping[str, str]) -> str:
    return _todays_name(name, {former: today for today, former in layout.items()})


def _todays_config(saved: LoraConfig, names: Mapping[str, str], layers: set[str]) -> LoraConfig:
    """The config with today's names. Where they do not give the file's layers, the former names are asked.

    Args:
        names: of the model's modules when it was saved, by today's.
        layers: that the file has, in today's names.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    config = copy.deepcopy(saved)
    targets = {today for today in names if check_target_module_exists(saved, today)}
    if targets != layers:
        targets = {today for today, former in names.items() if check_target_module_exists(saved, former)}
        config.target_modules, config.exclude_modules, config.layers_to_transform = list(targets), None, None
    if saved.rank_pattern:
        config.rank_pattern = {_exactly(name): _rank_of(saved, names[name]) for name in targets}
    if saved.alpha_pattern:
        config.alpha_pattern = {_exactly(name): _alpha_of(saved, names[name]) for name in targets}
    if saved.modules_to_save:
        todays = {former: today for today, former in names.items()}
        config.modules_to_save = [todays.get(name, name) for name in saved.modules_to_save]
    return config


def _exactly(name: str) -> str:
    """A key of peft's patterns, which may begin anywhere in a name, for one module alone."""
    return f"^{re.escape(name)}"


def _named(patterns: Mapping[str, int] | None, name: str) -> str | None:
    """The pattern that means a layer, found as peft finds it."""
    from peft.utils.other import get_pattern_key

    key = get_pattern_key(list(patterns or ()), name)
    return key if key in (patterns or {}) else None


def _rank_of(config: LoraConfig, name: str) -> int:
    key = _named(config.rank_pattern, name)
    return config.r if key is None else (config.rank_pattern or {})[key]


def _alpha_of(config: LoraConfig, name: str) -> float:
    key = _named(config.alpha_pattern, name)
    return config.lora_alpha if key is None else (config.alpha_pattern or {})[key]


def _prove_scales(adapted: PeftModel, saved: LoraConfig, names: Mapping[str, str], folder: Path) -> None:
    from peft.tuners.lora import LoraLayer

    layers = {n.removeprefix(_PREFIX): m for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    wrong, used = set(), set()
    for name, layer in layers.items():
        old = names.get(name, name)
        used.add(_named(saved.alpha_pattern, old))
        rank, alpha = _rank_of(saved, old), _alpha_of(saved, old)
        if not math.isclose(layer.scaling["default"], alpha / (math.sqrt(rank) if saved.use_rslora else rank)):
            wrong.add(name)
    if wrong:
        raise ModelError("\n".join([f"{folder} did not load:", *_key_report("layers with another scale", wrong)]))
    if idle := set(saved.alpha_pattern or ()) - used:
        raise ModelError(
            f"{folder}: alpha_pattern in adapter_config.json names {', '.join(sorted(idle))}, which no layer of the"
            " adapter is called: the scale of the layers that are meant is not known. Name them as the keys of"
            " adapter_model.safetensors do, or take them out if none is meant"
        )


def _checksums(model: PreTrainedModel) -> dict[str, tuple[Tensor, int]]:
    """Each weight with the sum of its bits."""
    return {name: (weight, _bit_sum(weight)) for name, weight in model.named_parameters()}


def _bit_sum(weight: Tensor) -> int:
    import torch

    flat = weight.detach().contiguous().view(-1).view(torch.uint8)
    return int((flat.view(torch.int64) if len(flat) % 8 == 0 else flat).sum(dtype=torch.int64))


def _prove_base(adapted: PeftModel, before: Mapping[str, tuple[Tensor, int]], saved: PeftConfig, folder: Path) -> None:
    kept = {id(weight) for weight in adapted.parameters()}
    changed = {name for name, (weight, bits) in before.items() if id(weight) not in kept or _bit_sum(weight) != bits}
    if not changed:
        return
    settings = ", ".join(
        f"{name} is {value!r}"
        for name in ("init_lora_weights", "bias")
        if (value := vars(saved).get(name)) not in (None, True, False, "none")
    )
    example = min(changed)
    raise ModelError(
        f"{folder}: loading the adapter changes {len(changed)} of the base weights, {example} for example"
        + (f" ({settings} in adapter_config.json)" if settings else "")
        + ": the model with the adapter off would not be the base, and so no reference. Convert it to a LoRA adapter"
        " of the base (peft: save_pretrained with path_initial_model_for_weight_conversion), or train with"
        " --reference init_adapter"
    )


def merge(adapted: PeftModel) -> bool:
    """Add the adapter to the base weights in memory, computed in float32 and rounded once; whether that was possible.

    Where it was, the model that was adapted computes what both did, without the adapter's layers. Quantized weights,
    and a vocabulary projection that shares its weights with the embeddings, would not: they keep their adapter.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import ParamWrapper
    from torch import nn

    shared = adapted.get_input_embeddings().weight
    for layer in adapted.modules():
        if not hasattr(layer, "lora_A") or (isinstance(layer, ParamWrapper) and layer.get_param().is_floating_point()):
            continue
        base: Any = layer.base_layer
        if not isinstance(layer, Linear) or type(base) is not nn.Linear or base.weight is shared:
            return False
    adapted.merge_and_unload()
    return True


def experts_without_adapter(adapted: PeftModel) -> str:
    """What to say of a mixture's experts that get no adapter; empty where all do, or where there are none.

    Each is one parameter for all experts together, (experts, in, out), which module names do not reach.
    """
    from peft.tuners.lora.layer import ParamWrapper

    wrapped = {id(module.get_param()) for module in adapted.modules() if isinstance(module, ParamWrapper)}
    left: dict[str, int] = {}
    for name, parameter in adapted.get_base_model().named_parameters():
        if ".experts." in name and parameter.ndim == 3 and "lora_" not in name and id(parameter) not in wrapped:
            ending = ".".join(name.split(".")[-2:])
            left[ending] = left.get(ending, 0) + parameter.numel()
    if not left:
        return ""
    count = sum(left.values())
    return (
        f"no adapter on the experts' {count:,} parameters, which module names do not reach;"
        f" --lora_target_parameters {' '.join(sorted(left))} gives them one"
    )


def untie(adapted: PeftModel) -> bool:
    """Give the vocabulary projection weights of its own where it shares the embeddings' and either has an adapter.

    Merged into shared weights, an adapter of the one would change the other. Returns whether they share weights still.
    The config says the same on all its levels, so that it stays so on disk, and when the vocabulary is resized.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    model: Any = adapted.get_base_model()
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    bare: list[Any] = [one.get_base_layer() if isinstance(one, BaseTunerLayer) else one for one in layers]
    shared = bare[0].weight is bare[1].weight
    if shared and any(isinstance(one, BaseTunerLayer) for one in layers):
        bare[1].weight = nn.Parameter(bare[1].weight.detach().clone(), requires_grad=False)
        shared = False
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = shared
    return shared


def _key_report(what: str, keys: set[str]) -> list[str]:
    if not keys:
        return []
    more = [f"    and {len(keys) - _EXAMPLES} more"] if len(keys) > _EXAMPLES else []
    return [f"  {len(keys)} of the {what}:", *(f"    {key}" for key in sorted(keys)[:_EXAMPLES]), *more]


def _about_equal(weights: Tensor | None, copy: Tensor) -> bool:
    """Equal but for rounding to another precision, bfloat16 being the coarsest."""
    import torch

    return (
        weights is not None
        and weights.shape == copy.shape
        and torch.allclose(weights.cpu().float(), copy.float(), rtol=2**-7, atol=1e-6)
    )


def _same_values(loaded: Tensor, saved: Tensor) -> bool:
    import torch

    return torch.equal(loaded.cpu(), saved.to(loaded.dtype))
