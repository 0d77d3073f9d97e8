#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, on a CPU with AVX512-BF16. A 4-bit linear layer whose weights are frozen, as QLoRA has it:
# its input's gradient is what trains the adapters below. Calling it once in evaluation mode without gradients, to compute a
# reference or an evaluation, should change nothing. It packs the weights for inference, for good: from then on the input gets
# no gradient, with no error (torch warns once), so adapters behind the last packed layer go on training and all others stop.
# Seen:
#   gradient before: 2.3, after one pass in evaluation mode: None
# Exits non-zero when that changes, and on a CPU where the layer does not pack.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet bitsandbytes==0.50.2
cd "$folder"
cat > run.py <<'PY'
import sys
import warnings

import torch
from bitsandbytes.nn import Linear4bit

warnings.simplefilter("ignore")
torch.manual_seed(0)
layer = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
layer.requires_grad_(False)
layer.to("cpu")
if not layer.support_avx512bf16_for_cpu:
    sys.exit("this CPU has no AVX512-BF16: the layer does not pack its weights here")


def gradient():
    x = torch.ones(3, 64, requires_grad=True)
    layer.train()(x).sum().backward()
    return None if x.grad is None else round(x.grad.abs().max().item(), 1)


before = gradient()
with torch.no_grad():
    layer.eval()(torch.ones(3, 64))
after = gradient()
print(f"gradient before: {before}, after one pass in evaluation mode: {after}")
sys.exit(0 if before and after is None else 1)
PY
"$folder/venv/bin/python" run.py
