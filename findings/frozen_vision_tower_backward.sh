#!/usr/bin/env bash
# transformers 5.24.0, peft 0.21.2, torch 2.13.0, CPU. A LLaVA with LoRA on its language model alone, trained by the
# Trainer. No parameter of the vision tower is trained, so one expects no backward pass through it. With activation
# checkpointing there is one: the Trainer makes the outputs of every input embedding require gradients, the vision
# tower's patch embeddings among them, and each tower layer is then run a second time and differentiated for nothing.
# Seen (a step; runs of the tower's first layer, backward passes through it):
#   activation_checkpointing=False: runs 1, backward passes 0
#   activation_checkpointing=True:  runs 2, backward passes 1
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 peft==0.21.2 accelerate==1.15.0
cd "$folder"
cat > run.py <<'PY'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers import Trainer, TrainingArguments

IMAGE = 9


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        tokens = torch.tensor([1, *[IMAGE] * 4, 3, 4, 5])
        return {"input_ids": tokens, "labels": tokens, "pixel_values": torch.ones(3, 28, 28)}


def step(checkpointing):
    torch.manual_seed(0)
    text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=16)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_id=IMAGE)
    model = get_peft_model(
        LlavaForConditionalGeneration(config), LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)")
    )
    tower = model.get_base_model().model.vision_tower
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    layer = next(module for name, module in tower.named_modules() if name.endswith("layers.0"))
    counts = {"runs": 0, "backward": 0}

    def ran(module, args, output):
        counts["runs"] += 1
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: counts.__setitem__("backward", counts["backward"] + 1))

    layer.self_attn.register_forward_hook(ran)
    arguments = TrainingArguments(
        output_dir="out", max_steps=1, per_device_train_batch_size=1, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, activation_checkpointing=checkpointing,
    )
    Trainer(model=model, args=arguments, train_dataset=Data()).train()
    return counts["runs"], counts["backward"]


found = [step(False), step(True)]
for (runs, backward), checkpointing in zip(found, (False, True)):
    print(f"activation_checkpointing={checkpointing}: runs {runs}, backward passes {backward}")
sys.exit(found != [(1, 0), (2, 1)])
PY
"$folder/venv/bin/python" run.py 2> errors.txt || { status=$?; tail -5 errors.txt; exit "$status"; }
