#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, CPU. A LoRA adapter on two layers, of which one is frozen by hand (requires_grad off), as one
# keeps the adapter of a vision tower; and an adapter that is loaded for inference. One forward pass runs inside
# disable_adapter(), as the reference of DPO does. One expects the flags afterwards to be those before. All of the active
# adapter's tensors require gradients then, the frozen ones too and those loaded for inference. An optimizer that was made
# before does not move them, but backward computes their gradients, and the norm by which all parameters are clipped
# counts them: where the frozen layer's gradients are the larger ones, the trained layer's are cut to a fraction.
# Seen (tensors that require gradients, before and after: frozen by hand, loaded for inference; the share of the trained
# layer's gradient that clipping to norm 1 keeps, before and after): 2 4 0 4 0.38 0.03
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet peft==0.21.2
cd "$folder"
cat > run.py <<'PY'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs):
        return 5 * self.tower(inputs).sum() + self.head(inputs).sum()


def trained(model):
    return sum(parameter.requires_grad for parameter in model.parameters())


def kept(model):
    """The share of the head's gradient that clipping to norm 1 leaves."""
    model.zero_grad()
    model(torch.ones(1, 4)).backward()
    head = model.base_model.model.head.lora_B["default"].weight
    before = head.grad.norm().item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return f"{head.grad.norm().item() / before:.2f}"


model = get_peft_model(Model(), LoraConfig(r=2, target_modules=["tower", "head"]))
for name, parameter in model.named_parameters():
    if ".tower." in name:
        parameter.requires_grad_(False)
model.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(Model(), "adapter")
seen = [trained(model), trained(loaded), kept(model)]
for one in (model, loaded):
    with one.disable_adapter(), torch.no_grad():
        one(torch.ones(1, 4))
after = [trained(model), trained(loaded), kept(model)]
print(*(value for both in zip(seen, after) for value in both))
PY
seen=$(OMP_NUM_THREADS=1 venv/bin/python run.py 2> log) || { cat log >&2; exit 1; }
echo "$seen"
[ "$seen" = "2 4 0 4 0.38 0.03" ]
