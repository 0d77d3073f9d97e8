"""The model that is trained: the base with its adapter, its layers as fast as they can be."""

import json
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from listwise_preference.errors import ModelError
from listwise_preference.models import adapters, dry_run, ragged_attention
from listwise_preference.models.frozen_tower import freeze_tower, vision_tower
from listwise_preference.models.fused_layers import fuse_layers
from listwise_preference.training.options import Arguments


def make_policy(
    base: PreTrainedModel,
    arguments: Arguments,
    args: TrainingArguments,
    *,
    ragged: bool,
    bits: int | None = None,
    attention: str = ragged_attention.NAME,
) -> tuple[PeftModel, list[str]]:
    """The base model with a fresh adapter, or with the one to start from; and what is to say of it.

    Args:
        base: with weights, or of shapes alone.
        arguments: the run's.
        args: the Trainer's, settled for this machine.
        ragged: whether all rows of a micro-batch lie behind one another.
        bits: 4 or 8 where shapes alone stand for quantized weights.
        attention: form of the ragged one.

    Raises:
        ModelError: an adapter that cannot be loaded, a tower to freeze that transformers does not know, or one in which
            the adapter to start from has layers.
    """
    options = arguments.model
    set_seed(args.seed)
    tower = vision_tower(base)
    if options.freeze_vision_tower and not tower:
        raise ModelError(f"--freeze_vision_tower: transformers does not say what that is in {type(base).__name__}")
    if options.init_adapter is not None:
        folder, of_base = Path(options.init_adapter), arguments.objective.reference == "base"
        policy = adapters.load_adapter(base, folder, trainable=True, base_is_reference=of_base)
        if options.freeze_vision_tower and any(one.requires_grad for one in base.get_submodule(tower).parameters()):
            raise ModelError(
                f"--freeze_vision_tower: {folder} has adapters in the vision tower; leave the option out, or start"
                " from an adapter that was trained with it"
            )
    else:
        policy = adapters.add_adapter(
            base,
            r=options.lora_r,
            alpha=options.lora_alpha,
            dropout=options.lora_dropout,
            target_modules=options.lora_target_modules,
            target_parameters=options.lora_target_parameters or (),
            frozen_module=tower if options.freeze_vision_tower else None,
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
        )
    if ragged:
        ragged_attention.use_ragged_attention(base, attention)
    count = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    said = [f"{options.model_name_or_path}: {count:,} adapter parameters in training, base in {options.dtype}"]
    if options.init_adapter is not None and arguments.objective.reference == "base":
        said.append(
            f"reference: the base model without {options.init_adapter}, so that rewards need not start at 0;"
            " --reference init_adapter takes the adapter too"
        )
    elif options.init_adapter is not None:
        said.append(f"reference: the base model with {options.init_adapter}, as training starts")
    if options.init_adapter is not None:
        said += trained_otherwise(arguments, Path(options.init_adapter))
    if left := adapters.experts_without_adapter(policy):
        said.append(left)
    if freeze_tower(base, tower):
        said.append("the vision tower is not trained: no gradients through it, the same images encoded once")
    if bits is not None:
        dry_run.stand_for_quantized(policy, bits)
    if arguments.objective.fused_layers:
        autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else options.dtype
        if is_deepspeed_zero3_enabled():
            said.append("LoRA layers stay peft's: ZeRO-3 gathers weights layer by layer")
        elif autocast != options.dtype:
            said.append(f"LoRA layers stay peft's: the base is in {options.dtype}, autocast in {autocast}")
        else:
            said.append(str(fuse_layers(policy)))
    return policy, said


def trained_otherwise(arguments: Arguments, adapter: Path) -> list[str]:
    """What an adapter that training starts from was shown in another way: image settings, the system prompt."""
    now = {
        ("model", "processor_settings"): arguments.model.processor_settings,
        ("data", "system_prompt"): arguments.data.system_prompt,
    }
    said = []
    for (group, option), value in now.items():
        before = adapters.trained_with(adapter, group)
        if option in before and before[option] != value:
            other = "none" if before[option] is None else json.dumps(before[option], ensure_ascii=False)
            this = "none" if value is None else json.dumps(value, ensure_ascii=False)
            said.append(f"--{option}: {adapter} was trained with {other}, this run has {this}")
    return said
