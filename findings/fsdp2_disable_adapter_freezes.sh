#!/usr/bin/env bash
# torch 2.13.0, peft 0.21.2, accelerate 1.15.0; two processes over gloo on CPUs. A LoRA model is sharded by FSDP2 as
# accelerate does it: the blocks on their own, what is left (here a head) as the root, with torch's default for the root,
# which keeps its weights whole between forward and backward. One forward pass runs inside peft's disable_adapter(), as a
# DPO reference does, then a step is trained. One expects the adapter to be whole afterwards. The first step is right. But
# disable_adapter() turns requires_grad off on the sharded tensors and on again on the whole ones that stand in their
# place by then; when the shards return after backward, the root's adapters are frozen. accelerate's checkpoint (trained
# tensors alone) leaves them out, and a next step without a reference pass does not train them. Nothing is said.
# A vision tower's MLPs are such leftovers in several models of transformers, which wrap only what _no_split_modules names.
# Seen (after a step: trained, saved; adapters that a second step moves), without and with the reference pass:
# 4 4 block head / 2 2 block
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0 peft==0.21.2
cd "$folder"
cat > run.py <<'PY'
import os

import torch
import torch.distributed as dist
from accelerate.utils.fsdp_utils import _get_model_state_dict
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8))
        self.head = nn.Linear(8, 8)

    def forward(self, inputs):
        return self.head(self.block(inputs))


def seen(reference_pass):
    torch.manual_seed(0)
    policy = get_peft_model(Model(), LoraConfig(r=2, target_modules=["block.0", "head"]))
    fully_shard(policy.base_model.model.block, mesh=mesh, reshard_after_forward=True)
    fully_shard(policy, mesh=mesh)
    optimizer = torch.optim.SGD([one for one in policy.parameters() if one.requires_grad], lr=0.1)
    inputs = torch.randn(2, 8)

    def step():
        optimizer.zero_grad()
        policy(inputs).sum().backward()
        optimizer.step()

    if reference_pass:
        with policy.disable_adapter(), torch.no_grad():
            policy(inputs)
    step()
    trained = sum(one.requires_grad for one in policy.parameters())
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = len(_get_model_state_dict(policy, adapter_only=True, sd_options=whole))
    counts = torch.tensor([trained, saved])
    dist.broadcast(counts, 0)  # the saved ones are the first process's
    adapters = {name: one for name, one in policy.named_parameters() if "lora_B" in name}
    before = {name: one.full_tensor().clone() for name, one in adapters.items()}
    step()
    after = {name: one.full_tensor() for name, one in policy.named_parameters() if name in before}
    moved = [name.split(".")[2] for name in before if not torch.equal(before[name], after[name])]
    return " ".join([*map(str, counts.tolist()), *moved])


dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
said = f"{seen(False)} / {seen(True)}"
if dist.get_rank() == 0:
    print(said, flush=True)
dist.barrier()
os._exit(0)  # gloo's threads may abort an interpreter's end
PY
seen=$(OMP_NUM_THREADS=1 "$folder/venv/bin/torchrun" --nproc_per_node 2 run.py 2> log || { cat log >&2; exit 1; })
echo "$seen"
[ "$seen" = "4 4 block head / 2 2 block" ]
