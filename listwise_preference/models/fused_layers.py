"""LoRA on frozen layers with less saved for the backward pass, and less recomputed: the same values as peft's layers.

For a frozen weight W with adapter B A and scale s, y = W x + s B (A x). Under bf16 autocast peft's layer keeps x in
float32, one copy a layer; here the layers that read the same x (query, key, value; gate, up) run as one function that
keeps x once, in the dtype of the weights. A root mean square norm keeps its input and one number a token; a gated MLP
keeps gate and up and computes ``silu(gate) * up`` again.

Only what is proved equal on a random input is replaced, and only in memory: parameters, names and saved files are
peft's. What peft wraps in another way (dropout, DoRA, quantized weights, several adapters) keeps peft's own layers.

Shapes: N token, I input width, O output width, R rank.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

ADAPTER = "default"
# Layers that read the same input, where a module has them.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Linears(torch.autograd.Function):
    """Several frozen linear layers on one input, each with its adapter; the A matrices as one product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scales: tuple[float, ...],
        weights: tuple[Tensor, ...],
        biases: tuple[Tensor | None, ...],
        a: Tensor,
        *bs: Tensor,
    ) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            dtype = weights[0].dtype
            ctx.x_dtype, ctx.a_dtype = x.dtype, a.dtype
            x, a = x.to(dtype), a.to(dtype)
            bs = tuple(b.to(dtype) for b in bs)
            h = F.linear(x, a)
            outputs, start = [], 0
            for scale, weight, bias, b in zip(scales, weights, biases, bs, strict=True):
                y = F.linear(x, weight, bias)
                rank = b.shape[1]
                y.view(-1, y.shape[-1]).addmm_(h[..., start : start + rank].reshape(-1, rank), b.T, alpha=scale)
                outputs.append(y)
                start += rank
        ctx.save_for_backward(x, h, a, *bs)
        ctx.weights, ctx.scales = weights, scales
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h, a, *bs = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            h_NR = h.reshape(-1, h.shape[-1])
            dx: Tensor | None = None
            dbs, dhs, start = [], [], 0
            for grad, weight, b, scale in zip(grads, ctx.weights, bs, ctx.scales, strict=True):
                rank = b.shape[1]
                grad_NO = grad.reshape(-1, grad.shape[-1])
                dbs.append((grad_NO.T @ h_NR[:, start : start + rank]).to(ctx.a_dtype).mul_(scale))
                dhs.append((grad_NO @ b).mul_(scale))
                if ctx.needs_input_grad[0]:
                    dx = grad_NO @ weight if dx is None else dx.addmm_(grad_NO, weight)
                start += rank
            dh_NR = torch.cat(dhs, dim=-1)
            da = (dh_NR.T @ x.reshape(-1, x.shape[-1])).to(ctx.a_dtype)
            if dx is not None:
                dx = dx.addmm_(dh_NR, a).view(x.shape).to(ctx.x_dtype)
        return dx, None, None, None, da, *dbs


class _GatedMLP(torch.autograd.Function):
    """``down(silu(gate(x)) * up(x))``, each of the three with its adapter; keeps x, gate and up."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scales: tuple[float, float, float],
        weights: tuple[Tensor, Tensor, Tensor],
        a_gate_up: Tensor,
        b_gate: Tensor,
        b_up: Tensor,
        a_down: Tensor,
        b_down: Tensor,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            dtype = weights[0].dtype
            ctx.x_dtype, ctx.a_dtype = x.dtype, a_down.dtype
            x = x.to(dtype)
            a_gate_up, b_gate, b_up, a_down, b_down = (
                one.to(dtype) for one in (a_gate_up, b_gate, b_up, a_down, b_down)
            )
            rank = b_gate.shape[1]
            h = F.linear(x, a_gate_up)
            gate, up = F.linear(x, weights[0]), F.linear(x, weights[1])
            h_NR = h.reshape(-1, h.shape[-1])
            gate.view(-1, gate.shape[-1]).addmm_(h_NR[:, :rank], b_gate.T, alpha=scales[0])
            up.view(-1, up.shape[-1]).addmm_(h_NR[:, rank:], b_up.T, alpha=scales[1])
            product = F.silu(gate).mul_(up)
            h_down = F.linear(product, a_down)
            y = F.linear(product, weights[2])
            y.view(-1, y.shape[-1]).addmm_(h_down.reshape(-1, h_down.shape[-1]), b_down.T, alpha=scales[2])
        ctx.save_for_backward(x, gate, up, h, h_down, a_gate_up, b_gate, b_up, a_down, b_down)
        ctx.weights, ctx.scales = weights, scales
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved, a_gate_up, b_gate, b_up, a_down, b_down = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            gate, up, h, h_down = (one.reshape(-1, one.shape[-1]) for one in saved)
            rank, master = b_gate.shape[1], ctx.a_dtype
            scale_gate, scale_up, scale_down = ctx.scales
            w_gate, w_up, w_down = ctx.weights
            grad_NO = grad.reshape(-1, grad.shape[-1])
            db_down = (grad_NO.T @ h_down).to(master).mul_(scale_down)
            dh_down = (grad_NO @ b_down).mul_(scale_down)
            dproduct = (grad_NO @ w_down).addmm_(dh_down, a_down)
            silu = F.silu(gate)
            da_down = (dh_down.T @ (silu * up)).to(master)
            dup = dproduct * silu
            dgate = torch.ops.aten.silu_backward(dproduct.mul_(up), gate)
            db_gate = (dgate.T @ h[:, :rank]).to(master).mul_(scale_gate)
            db_up = (dup.T @ h[:, rank:]).to(master).mul_(scale_up)
            dh = torch.cat([(dgate @ b_gate).mul_(scale_gate), (dup @ b_up).mul_(scale_up)], dim=-1)
            da_gate_up = (dh.T @ x.reshape(-1, x.shape[-1])).to(master)
            dx: Tensor | None = None
            if ctx.needs_input_grad[0]:
                dx = (dgate @ w_gate).addmm_(dup, w_up).addmm_(dh, a_gate_up).view(x.shape).to(ctx.x_dtype)
        return dx, None, None, da_gate_up, db_gate, db_up, da_down, db_down


class _RMSNorm(torch.autograd.Function):
    """``weight * x / rms(x)`` with a frozen weight, the mean square in float32; keeps x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, inverse)
        ctx.weight = weight
        return weight * (x.float() * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, inverse = ctx.saved_tensors
        grad = (grad * ctx.weight).float()
        normed = x.float() * inverse
        dx = inverse * (grad - normed * (grad * normed).mean(-1, keepdim=True))
        return dx.to(x.dtype), None, None


# ---- which layers ----


def _eligible(layer: Any) -> bool:
    """Whether it is peft's plain LoRA on a frozen linear layer, with one adapter and no dropout."""
    return (
        type(layer) is LoraLinear
        and type(layer.base_layer) is nn.Linear
        and list(layer.lora_A) == [ADAPTER]
        and isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and layer.lora_B[ADAPTER].bias is None
        and not layer.base_layer.weight.requires_grad
        and (layer.base_layer.bias is None or not layer.base_layer.bias.requires_grad)
    )


def _in_use(layers: Sequence[Any], x: Tensor) -> bool:
    """Whether the adapters are on, and the arithmetic is in the dtype of the weights."""
    dtype = layers[0].base_layer.weight.dtype
    device = x.device.type
    computes_in = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return computes_in == dtype and all(
        not layer.disable_adapters and not layer.merged and layer.active_adapters == [ADAPTER] for layer in layers
    )


def _a(layer: Any) -> Tensor:
    return layer.lora_A[ADAPTER].weight


def _b(layer: Any) -> Tensor:
    return layer.lora_B[ADAPTER].weight


def _weights(layers: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(layer.base_layer.weight for layer in layers)


def _scales(layers: Sequence[Any]) -> tuple[float, ...]:
    return tuple(layer.scaling[ADAPTER] for layer in layers)


class _Together:
    """Layers called one after the other on the same input: the first call computes all, the others fetch.

    Where a call comes with another input than the one before (the queries of a cross-attention), the layers are taken
    apart from then on.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}
        self._apart = len(layers) == 1

    def forward(self, index: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of one layer."""
        layer = self.layers[index]
        if args or kwargs or not _in_use(self.layers, x):
            return type(layer).forward(layer, x, *args, **kwargs)
        if index in self._waiting:
            output, same = self._waiting.pop(index), self._input is x
            if not self._waiting:
                self._input = None  # else it would outlive a layer whose activations are computed again
            if same:
                return output
            self._apart = True
        if self._apart:
            self._input, self._waiting = None, {}
            return self._compute([layer], x)[0]
        outputs = self._compute(self.layers, x)
        self._input = x
        self._waiting = {place: output for place, output in enumerate(outputs) if place != index}
        return outputs[index]

    @staticmethod
    def _compute(layers: Sequence[Any], x: Tensor) -> tuple[Tensor, ...]:
        return _Linears.apply(
            x,
            _scales(layers),
            _weights(layers),
            tuple(layer.base_layer.bias for layer in layers),
            torch.cat([_a(layer) for layer in layers]) if len(layers) > 1 else _a(layers[0]),
            *map(_b, layers),
        )


@dataclass
class FusedLayers:
    """What was replaced: linear layers, norms, MLPs, and how many LoRA layers stay peft's own."""

    linears: int = 0
    norms: int = 0
    mlps: int = 0
    left: int = 0
    _replaced: list[nn.Module] = field(default_factory=list)

    def replace(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        """Give one module another forward."""
        module.forward = forward
        self._replaced.append(module)

    def restore(self) -> None:
        """Give every module its own forward back."""
        for module in self._replaced:
            module.__dict__.pop("forward", None)
        self._replaced.clear()

    def __str__(self) -> str:
        said = f"fused LoRA: {self.linears} linear layers, {self.mlps} of their MLPs, {self.norms} norms"
        return said + (f"; {self.left} stay as peft wraps them (dropout, quantized or special)" if self.left else "")


def fuse_layers(model: PeftModel) -> FusedLayers:
    """Replace the forward of every layer that is proved equal; ``restore()`` of the result takes it back."""
    fused = FusedLayers()
    done: set[int] = set()
    for module in list(model.modules()):
        if _is_gated_mlp(module):
            _fuse_mlp(module, fused)
            done |= {id(module.gate_proj), id(module.up_proj), id(module.down_proj)}
            fused.mlps += 1
        elif _is_rms_norm(module):
            fused.replace(module, _norm_forward(module))
            fused.norms += 1
    for module in list(model.modules()):
        for names in _TOGETHER:
            layers = [getattr(module, name, None) for name in names]
            if all(_eligible(layer) and id(layer) not in done for layer in layers):
                _fuse_linears(layers, fused)
                done |= set(map(id, layers))
        if isinstance(module, LoraLinear) and id(module) not in done and _eligible(module):
            # Those that read an input of their own; q, k and v come before, with the module that holds them.
            _fuse_linears([module], fused)
            done.add(id(module))
    lora = [module for module in model.modules() if hasattr(module, "lora_A")]
    fused.linears = sum(id(module) in done for module in lora)
    fused.left = len(lora) - fused.linears
    return fused


def _fuse_linears(layers: Sequence[Any], fused: FusedLayers) -> None:
    together = _Together(layers)
    for index, layer in enumerate(layers):
        fused.replace(layer, lambda x, *args, _index=index, **kwargs: together.forward(_index, x, *args, **kwargs))


def _fuse_mlp(module: Any, fused: FusedLayers) -> None:
    layers = (module.gate_proj, module.up_proj, module.down_proj)
    own_forward = type(module).forward

    def forward(x: Tensor) -> Tensor:
        if not _in_use(layers, x):
            return own_forward(module, x)
        return _GatedMLP.apply(
            x,
            _scales(layers),
            _weights(layers),
            torch.cat([_a(module.gate_proj), _a(module.up_proj)]),
            _b(module.gate_proj),
            _b(module.up_proj),
            _a(module.down_proj),
            _b(module.down_proj),
        )

    fused.replace(module, forward)


def _norm_forward(module: Any) -> Callable[[Tensor], Tensor]:
    return lambda hidden_states: _RMSNorm.apply(hidden_states, module.weight, module.variance_epsilon)


def _is_gated_mlp(module: Any) -> bool:
    layers: dict[str, Any] = {name: getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")}
    if not all(_eligible(layer) and layer.base_layer.bias is None for layer in layers.values()):
        return False
    if sum(1 for _ in module.parameters()) > 9:  # more than a weight, an A and a B of each
        return False
    # How the three are put together is seen with any functions in their places.
    gate, up, down = nn.Tanh(), nn.Softsign(), nn.Sigmoid()
    copied = _copy(module, dict(zip(layers, (gate, up, down), strict=True)))
    probe = _random_input(8)
    with torch.no_grad():
        return torch.equal(type(module).forward(copied, probe), down(F.silu(gate(probe)) * up(probe)))


def _is_rms_norm(module: Any) -> bool:
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or weight.requires_grad or epsilon is None:
        return False
    if len(inspect.signature(type(module).forward).parameters) != 2:  # another input beside x, a gate for example
        return False
    probe = _random_input(len(weight)).to(weight.dtype)
    weight = nn.Parameter(_random_input(len(weight))[0, 0].to(weight.dtype), requires_grad=False)
    with torch.no_grad():
        expected = type(module).forward(_copy(module, {"weight": weight}), probe)
        return torch.equal(expected, _RMSNorm.apply(probe, weight, epsilon))


def _copy(module: nn.Module, parts: Mapping[str, Any]) -> nn.Module:
    """The module with other layers or parameters than its own, which may be large, or not there yet."""
    copied = copy.copy(module)
    copied._modules, copied._parameters = dict(module._modules), dict(module._parameters)
    for name, part in parts.items():
        setattr(copied, name, part)
    return copied


def _random_input(width: int) -> Tensor:
    return torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0))
