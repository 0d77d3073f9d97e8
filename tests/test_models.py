"""Adapters load whole or not at all; processors of old checkpoints are completed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from listwise_preference.errors import ModelError
from listwise_preference.models.adapters import add_adapter, load_adapter
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.loading import (
    load_base_model,
    load_config,
    load_processor,
    processor_identity,
    weights_identity,
)


def to_old_layout(key: str) -> str:
    """A LLaVA adapter's key as transformers 4.43 had it."""
    for today, old in (
        ("base_model.model.model.language_model.", "base_model.model.language_model.model."),
        ("base_model.model.lm_head.", "base_model.model.language_model.lm_head."),
        ("base_model.model.model.vision_tower.", "base_model.model.vision_tower.vision_model."),
        ("base_model.model.model.multi_modal_projector.", "base_model.model.multi_modal_projector."),
    ):
        if key.startswith(today):
            return old + key.removeprefix(today)
    raise AssertionError(key)


def save_adapter(checkpoint: Path, folder: Path, *, lm_head: bool = False) -> dict[str, Tensor]:
    """An adapter with random weights on every linear layer, saved; returns its tensors."""
    adapted = add_adapter(
        load_base_model(str(checkpoint), dtype=torch.float32),
        r=4,
        alpha=8,
        dropout=0.0,
        target_modules=["all-linear"],
    )
    if lm_head:
        targets = [*adapted.peft_config["default"].target_modules, "lm_head"]
        base = load_base_model(str(checkpoint), dtype=torch.float32)
        adapted = add_adapter(base, r=4, alpha=8, dropout=0.0, target_modules=targets)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    adapted.save_pretrained(str(folder))
    return load_file(folder / "adapter_model.safetensors")


def logits(model: Any, checkpoint: Path) -> Tensor:
    processor = load_processor(str(checkpoint))
    image = Image.linear_gradient("L").convert("RGB")
    inputs = processor(text=["<image> What?"], images=[image], return_tensors="pt")
    with torch.no_grad():
        values: Tensor = model.eval()(**inputs).logits
    return values


def fresh(checkpoint: Path) -> Any:
    return load_base_model(str(checkpoint), dtype=torch.float32)


def test_a_saved_adapter_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(checkpoint, tmp_path)
    adapted = load_adapter(fresh(checkpoint), tmp_path)
    peft_own = PeftModel.from_pretrained(fresh(checkpoint), str(tmp_path))
    torch.testing.assert_close(logits(adapted, checkpoint), logits(peft_own, checkpoint))
    assert (logits(adapted, checkpoint) - logits(fresh(checkpoint), checkpoint)).abs().max() > 0.1
    assert not any(parameter.requires_grad for parameter in adapted.parameters())
    trainable = load_adapter(fresh(checkpoint), tmp_path, trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, _ in trainable.named_parameters() if "lora_" in n
    }


def test_an_adapter_in_llavas_older_layout_scores_as_todays(small_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Projector and vocabulary projection included, which peft's own loader leaves at zero with a warning."""
    checkpoint, today, old = small_checkpoints["llava"], tmp_path / "today", tmp_path / "old"
    tensors = save_adapter(checkpoint, today, lm_head=True)
    shutil.copytree(today, old)
    renamed = {to_old_layout(key): tensor for key, tensor in tensors.items()}
    assert {key.split("lm_head.")[1] for key in renamed if "lm_head" in key} == {
        "lora_A.weight",
        "lora_B.weight",
        "base_layer.weight",  # peft writes the frozen layer along
    }
    assert sum("multi_modal_projector" in key for key in renamed) == 4
    save_file(renamed, old / "adapter_model.safetensors")
    expected = logits(load_adapter(fresh(checkpoint), today), checkpoint)
    torch.testing.assert_close(logits(load_adapter(fresh(checkpoint), old), checkpoint), expected)


def change_config(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("targets", "excluded"),
    [
        pytest.param(["language_model.model.layers.0.self_attn.q_proj", "k_proj"], None, id="in full"),
        pytest.param(r"language_model\.model\..*self_attn\.(q|k)_proj", None, id="pattern"),
        pytest.param(["q_proj", "k_proj"], r"vision_tower\.vision_model\..*", id="exclude pattern"),
        pytest.param(
            ["q_proj", "k_proj"], ["vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"], id="exclude"
        ),
    ],
)
def test_an_older_layouts_config_is_read_with_the_names_that_it_was_saved_with(
    small_checkpoints: dict[str, Path], tmp_path: Path, targets: list[str] | str, excluded: list[str] | str | None
) -> None:
    """alpha 8, rank 4: scale 2; but 32 / 4 = 8 in layer 0's q_proj, and 8 / 2 = 4 in layer 1's k_proj."""
    checkpoint, old = small_checkpoints["llava"], tmp_path / "old"
    language, first, second = "model.language_model.layers.", "0.self_attn.q_proj", "1.self_attn.k_proj"
    tower = "model.vision_tower."
    modules = {name for name, _ in fresh(checkpoint).named_modules()}

    def targeted(name: str) -> bool:
        if not name.endswith(("q_proj", "k_proj")):
            return False
        if isinstance(targets, str) or (isinstance(excluded, str)):
            return name.startswith(language)
        if excluded:
            return name != f"{tower}encoder.layers.0.self_attn.q_proj"
        return name.endswith("k_proj") or name == language + first

    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=[name for name in modules if targeted(name)],
        rank_pattern={f"^{re.escape(language + second)}": 2},
        alpha_pattern={f"^{re.escape(language + first)}": 32},
        init_lora_weights=False,
    )
    today = get_peft_model(fresh(checkpoint), config)
    today.save_pretrained(str(old))
    tensors = load_file(old / "adapter_model.safetensors")
    save_file({to_old_layout(key): tensor for key, tensor in tensors.items()}, old / "adapter_model.safetensors")
    change_config(
        old,
        target_modules=targets,
        exclude_modules=excluded,
        rank_pattern={f"language_model.model.layers.{second}": 2},
        alpha_pattern={f"language_model.model.layers.{first}": 32},
    )
    loaded = load_adapter(fresh(checkpoint), old)
    torch.testing.assert_close(logits(loaded, checkpoint), logits(today, checkpoint))
    scales = {
        name.removeprefix("base_model.model."): module.scaling["default"]
        for name, module in loaded.named_modules()
        if hasattr(module, "lora_A")
    }
    assert scales == {
        name: {language + first: 8.0, language + second: 4.0}.get(name, 2.0) for name in modules if targeted(name)
    }

    key = to_old_layout(f"base_model.model.{language}{second}.lora_A.weight")
    tensors = load_file(old / "adapter_model.safetensors")
    save_file(
        {k: t for k, t in tensors.items() if k.split(".lora_")[0] != key.split(".lora_")[0]}, old / "a.safetensors"
    )
    (old / "a.safetensors").rename(old / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=rf"not in the file:\s+base_model.model.{language}{second}"):
        load_adapter(fresh(checkpoint), old)  # a layer that the config targets is gone with all its tensors


def test_a_scale_for_a_layer_that_is_not_there_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Keys in today's layout, the scale in another: no layer would have it."""
    save_adapter(checkpoint, tmp_path)
    change_config(tmp_path, alpha_pattern={"language_model.model.layers.0.self_attn.q_proj": 32})
    with pytest.raises(ModelError, match=r"alpha_pattern .* names language_model\.model\.layers\.0\.self_attn\.q_proj"):
        load_adapter(fresh(checkpoint), tmp_path)


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}])
def test_an_adapter_that_changes_the_base_is_no_start_with_the_base_as_reference(
    small_checkpoints: dict[str, Path], tmp_path: Path, settings: dict[str, Any]
) -> None:
    checkpoint = small_checkpoints["idefics2"]  # whose vision tower has biases
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **settings)
    torch.manual_seed(0)
    adapted = get_peft_model(fresh(checkpoint), config)
    for name, parameter in adapted.named_parameters():
        if name.endswith(".bias") and parameter.requires_grad:
            parameter.data += 0.5
    adapted.save_pretrained(str(tmp_path))
    (setting,) = settings
    with pytest.raises(ModelError, match=rf"changes \d+ of the base weights, .* \({setting} is '{settings[setting]}'"):
        load_adapter(fresh(checkpoint), tmp_path, trainable=True, base_is_reference=True)
    loaded = load_adapter(fresh(checkpoint), tmp_path)
    torch.testing.assert_close(logits(loaded, checkpoint), logits(adapted, checkpoint))  # it still responds
    with loaded.disable_adapter():
        assert (logits(loaded, checkpoint) - logits(fresh(checkpoint), checkpoint)).abs().max() > 0.01


def test_with_the_adapter_off_the_model_is_the_base(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(checkpoint, tmp_path)
    loaded = load_adapter(fresh(checkpoint), tmp_path, trainable=True, base_is_reference=True)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, checkpoint), logits(fresh(checkpoint), checkpoint))


def change_missing(tensors: dict[str, Tensor]) -> str:
    key = next(key for key in tensors if "q_proj.lora_B" in key)
    del tensors[key]
    return key


def change_extra(tensors: dict[str, Tensor]) -> str:
    tensors["base_model.model.model.somewhere.lora_A.weight"] = torch.zeros(4, 4)
    return "base_model.model.model.somewhere.lora_A.weight"


def change_shape(tensors: dict[str, Tensor]) -> str:
    key = next(key for key in tensors if "q_proj.lora_B" in key)
    tensors[key] = tensors[key][:-1].clone()
    return key


def test_a_copy_of_other_base_weights_is_refused(small_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tensors = save_adapter(small_checkpoints["llava"], tmp_path, lm_head=True)
    tensors["base_model.model.lm_head.base_layer.weight"] += 0.1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"copies of base weights[^:]*:\s+base_model.model.lm_head.base_layer.weight"):
        load_adapter(fresh(small_checkpoints["llava"]), tmp_path)


@pytest.mark.parametrize("change", [change_missing, change_extra, change_shape])
def test_a_broken_adapter_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], str]
) -> None:
    tensors = save_adapter(checkpoint, tmp_path)
    key = change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError) as refused:
        load_adapter(fresh(checkpoint), tmp_path)
    assert key in str(refused.value)
    assert str(refused.value).count("base_model.model") == 1


def test_an_adapter_of_another_model_or_none_is_refused(small_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    save_adapter(small_checkpoints["idefics2"], tmp_path / "idefics2")
    with pytest.raises(ModelError, match="not a whole adapter") as refused:
        load_adapter(fresh(small_checkpoints["llava"]), tmp_path / "idefics2")
    said = str(refused.value).splitlines()
    assert len(said) <= 12 and f"it was trained on {small_checkpoints['idefics2']}" in said[0]
    assert any(line.startswith("    and ") and line.endswith(" more") for line in said)
    with pytest.raises(ModelError, match="holds no adapter"):
        load_adapter(fresh(small_checkpoints["llava"]), tmp_path / "nothing")


def test_pickled_adapter_weights_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    tensors = save_adapter(checkpoint, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match="safetensors only"):
        load_adapter(fresh(checkpoint), tmp_path)


def test_the_adapters_weights_are_float32_on_a_bfloat16_base(checkpoint: Path) -> None:
    base = load_base_model(str(checkpoint), dtype=torch.bfloat16)
    adapted = add_adapter(base, r=2, alpha=2, dropout=0.0, target_modules=["all-linear"])
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_which_layers_get_an_adapter(checkpoint: Path) -> None:
    """All linear layers: vision tower, connector and language model, not the vocabulary projection.

    LLaVA reads the hidden states before its tower's last layer: that layer gets none.
    """
    tower = {"idefics2": "vision_model", "llava": "vision_tower"}[checkpoint.name]
    connector = {"idefics2": "connector", "llava": "multi_modal_projector"}[checkpoint.name]

    def adapted_modules(frozen: str | None) -> set[str]:
        adapted = add_adapter(
            fresh(checkpoint), r=2, alpha=2, dropout=0.0, target_modules=["all-linear"], frozen_module=frozen
        )
        keys = get_peft_model_state_dict(adapted)
        return {key.removeprefix("base_model.model.").split(".lora_")[0] for key in keys}

    everywhere, frozen = adapted_modules(None), adapted_modules(f"model.{tower}")
    linear = {n for n, m in fresh(checkpoint).named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    tower_layers = sorted({name.split(".")[4] for name in linear if name.startswith("model.vision_tower.encoder.")})
    unread = f"model.vision_tower.encoder.layers.{tower_layers[-1]}." if checkpoint.name == "llava" else "none"
    assert everywhere == {name for name in linear if not name.startswith(unread)}
    assert frozen == {name for name in linear if f"model.{tower}." not in name}
    assert any(connector in name for name in frozen)


def test_llavas_unread_layer_changes_no_draw_and_old_adapters_with_it_load(
    small_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Adapters of earlier versions have weights there; without them all others are drawn as before."""
    import peft

    checkpoint = small_checkpoints["llava"]
    torch.manual_seed(3)
    new = add_adapter(fresh(checkpoint), r=2, alpha=2, dropout=0.0, target_modules=["all-linear"])
    torch.manual_seed(3)
    old = peft.get_peft_model(fresh(checkpoint), peft.LoraConfig(r=2, lora_alpha=2, target_modules="all-linear"))
    today, before = get_peft_model_state_dict(new), get_peft_model_state_dict(old)
    assert all(torch.equal(before[key], tensor) for key, tensor in today.items())
    only_before = before.keys() - today.keys()
    assert only_before and {key.split("vision_tower.encoder.layers.")[1][0] for key in only_before} == {"2"}
    for name, adapted in {"new": new, "old": old}.items():
        adapted.save_pretrained(str(tmp_path / name))
        loaded = load_adapter(fresh(checkpoint), tmp_path / name, trainable=True)
        assert get_peft_model_state_dict(loaded).keys() == get_peft_model_state_dict(adapted).keys()


def test_a_target_that_no_module_has_is_named(checkpoint: Path) -> None:
    """Beside others that are there, which peft lets pass."""
    said = r"--lora_target_modules qproj: no module of this model ends so; its linear layers end in .*q_proj"
    with pytest.raises(ModelError, match=said):
        add_adapter(fresh(checkpoint), r=4, alpha=8, dropout=0.0, target_modules=["k_proj", "qproj"])


def test_a_system_prompt_is_a_turn_before_the_question(checkpoint: Path) -> None:
    """Where the template has no place for one it is refused, not left out."""
    processor = load_processor(str(checkpoint))
    said = ChatFormat(processor, system_prompt="Be brief.").prompt_text("What is it?")
    plain = ChatFormat(processor).prompt_text("What is it?")
    assert said.endswith(plain) and "Be brief." in said.removesuffix(plain)
    with pytest.raises(
        ModelError, match="--system_prompt contains <image>, a special token of this model: take it out"
    ):
        ChatFormat(processor, system_prompt="Look at <image>.")
    user_alone = "{% for m in messages if m['role'] != 'system' %}"
    processor.chat_template = str(processor.chat_template).replace("{% for message in messages %}", user_alone, 1)
    processor.chat_template = processor.chat_template.replace("message[", "m[").replace("in message ", "in m ")
    assert ChatFormat(processor).prompt_text("What is it?") == plain
    with pytest.raises(ModelError, match="--system_prompt: the model's chat template has no place for a system turn"):
        ChatFormat(processor, system_prompt="Be brief.")


def test_a_llava_processor_without_patch_size_is_completed(small_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = small_checkpoints["llava"]
    shutil.copytree(checkpoint, tmp_path / "old")
    file = tmp_path / "old" / "processor_config.json"
    settings = json.loads(file.read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del settings[name]
    file.write_text(json.dumps(settings))
    image = Image.new("RGB", (90, 60), "white")

    def ids(folder: Path) -> list[int]:
        processor = load_processor(str(folder))
        return processor(text=["<image> What?"], images=[image], return_tensors="pt")["input_ids"][0].tolist()

    assert ids(tmp_path / "old") == ids(checkpoint)


def test_a_checkpoint_without_a_template_gets_its_familys(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    texts = [
        load_processor(str(folder)).apply_chat_template(turns, add_generation_prompt=True)
        for folder in (checkpoint, tmp_path / "bare")
    ]
    assert texts[0] == texts[1]
    assert (
        texts[0]
        == {
            "idefics2": "User:<image>What?<end_of_utterance>\nAssistant:",
            "llava": "USER: <image>\nWhat? ASSISTANT:",
        }[checkpoint.name]
    )


def test_a_checkpoint_without_a_tokenizer_is_named(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"cannot load the processor|tokenizer does not know"):
        load_processor(str(tmp_path / "bare"))


def test_checkpoints_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the model nowhere/at-all"):
        load_config("nowhere/at-all")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="'bert' model; supported are the image-text-to-text models"):
        load_config(str(tmp_path))


def test_weights_are_told_apart_by_their_content(small_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    original = small_checkpoints["llava"]
    shutil.copytree(original, tmp_path / "copy")
    assert weights_identity(str(tmp_path / "copy")) == weights_identity(str(original))
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors["language_model.lm_head.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    assert weights_identity(str(tmp_path / "copy")) != weights_identity(str(original))


def test_a_processor_stays_the_same_whatever_it_padded_and_changes_with_its_settings(checkpoint: Path) -> None:
    """A tokenizer remembers the padding of its last call; a cache of reference values must not be missed for it."""
    processor = load_processor(str(checkpoint))
    identity, state = processor_identity(processor), processor.tokenizer.backend_tokenizer.to_str()
    images = [[Image.new("RGB", (50, 40))]] * 2
    processor(text=["<image> a b c", "<image> a"], images=images, padding=True, return_tensors="pt")
    processor.tokenizer("a b c", truncation=True, max_length=2)
    assert processor.tokenizer.backend_tokenizer.to_str() != state
    assert processor_identity(processor) == identity == processor_identity(load_processor(str(checkpoint)))
    processor.image_processor.image_mean = [0.5, 0.5, 0.4]
    assert processor_identity(processor) != identity
