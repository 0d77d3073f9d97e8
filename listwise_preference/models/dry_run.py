"""A model without weights: what a pass over it computes and keeps, from the shapes of its tensors alone.

The model is built on torch's meta device, and :func:`without_weights` makes fake tensors of its parameters: an
operation on them gives shape, dtype and layout of its result by the rules of the CPU, autocast and the choice of an
attention kernel among them, and computes nothing. Token ids, masks and images are real, so that what depends on their
values goes its usual way. :func:`measure` works on models with weights too.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
VISION, LANGUAGE, VOCABULARY = "vision tower and connector", "language model", "vocabulary"
# Bytes of a weight in NF4: half a byte, and for 64 weights a scale that is quantized to a byte itself.
BYTES_IN_4BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
# Of LLM.int8() a byte, and for each row of the weights a scale in float32.
_SCALE_IN_8BIT = 4


@dataclass(frozen=True)
class PassCost:
    """What one forward pass costs, with its backward pass where gradients are asked for.

    Attributes:
        saved_bytes: what autograd keeps from forward to backward.
        peak_bytes: the most that is alive at a time beside parameters and gradients; what a kernel needs for itself
            is not seen.
        forward_flops: floating point operations (a multiplication and an addition are two) by part of the model.
        backward_flops: the same of the backward pass, what is computed again for it included.
    """

    saved_bytes: int
    peak_bytes: int
    forward_flops: Mapping[str, int]
    backward_flops: Mapping[str, int]


class Quantized(nn.Linear):
    """Stands for a linear layer in 4 or 8 bits, which keeps for the backward pass what this one does."""

    bits: int

    @property
    def weight_bytes(self) -> float:
        """Of the weights and their scales."""
        count = self.weight.numel()
        return count * BYTES_IN_4BIT if self.bits == 4 else count + _SCALE_IN_8BIT * self.out_features


def stand_for_quantized(model: PeftModel, bits: int) -> None:
    """Make the layers that loading in 4 or 8 bits quantizes known as such, with peft's way of calling them."""
    base: Any = model.get_base_model()
    head = base.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.cast_input_dtype_enabled = False  # peft's own quantized layers leave that to autocast
        if type(module) is nn.Linear and module is not head and not module.weight.requires_grad:
            module.__class__ = Quantized
            assert isinstance(module, Quantized)
            module.bits = bits


def weight_bytes(model: nn.Module) -> int:
    """Of the parameters that are not trained."""
    quantized = {id(module.weight): module.weight_bytes for module in model.modules() if isinstance(module, Quantized)}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return round(sum(quantized.get(id(p), p.numel() * p.element_size()) for p in frozen))


def without_weights(model: PeftModel) -> PeftModel:
    """The same model, built on the meta device, with fake tensors as parameters and buffers."""
    fakes: dict[int, Any] = {}  # tied parameters stay tied
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in fakes:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        trained = tensor.requires_grad
                        fakes[id(tensor)] = nn.Parameter(fake, trained) if isinstance(tensor, nn.Parameter) else fake
                    tensors[name] = fakes[id(tensor)]
    return model


def measure(model: PeftModel, loss: Callable[[], Tensor]) -> PassCost:
    """The cost of ``loss()`` by this model, and of its backward pass unless it has no gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # there from the second step on
    meter = _Meter(model)
    base: Any = model.get_base_model()
    decoder = base.get_decoder()
    hooks = (
        decoder.register_forward_pre_hook(meter.enter_decoder, with_kwargs=True),
        decoder.register_forward_hook(meter.leave_decoder),
    )
    try:
        with meter:
            with saved_tensors_hooks(meter.save, lambda tensor: tensor):
                value = loss()
            meter.saved.clear()
            meter.flops = backward_flops = Counter[str]()
            if value.requires_grad:
                value.backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
    return PassCost(meter.saved_bytes, meter.peak_bytes, meter.forward_flops, backward_flops)


class _Meter(TorchDispatchMode):
    """Sees every operation: counts what it computes, and the storages that are alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.part = VISION
        self.forward_flops: Counter[str] = Counter()
        self.flops = self.forward_flops
        self.saved_bytes = self.peak_bytes = self.alive_bytes = 0
        self.saved: dict[int, Tensor] = {}  # kept, so that no storage takes the place of another
        own = [*model.parameters(), *model.buffers()]
        own += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.own = {_storage(tensor) for tensor in own}
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten.index.Tensor and isinstance(args[0], FakeTensor):
            # How many places a mask names depends on its values, which are real.
            places = [index.nonzero().unbind(1) if _is_mask(index) else (index,) for index in args[1]]
            args = (args[0], [place for some in places for place in some])
        result = func(*args, **kwargs)
        operation = _IN_PLACE.get(func._overloadpacket, func._overloadpacket)
        if str(operation) in _ATTENTION:
            self.flops[self.part] += _ATTENTION[str(operation)](*args)
        elif operation in flop_registry:
            self.flops[self.part] += flop_registry[operation](*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        key, storage = _storage(tensor), tensor.untyped_storage()
        if key in self.own or key in self.alive:
            return
        size = storage.nbytes()
        self.alive.add(key)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

        def gone() -> None:
            self.alive.discard(key)
            self.alive_bytes -= size

        finalize(storage, gone)

    def save(self, tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        if key not in self.own and key not in self.saved:
            self.saved[key] = tensor
            self.saved_bytes += tensor.untyped_storage().nbytes()
        return tensor

    # The backward pass runs through the parts in the other order: each begins when its output's gradient is there.

    def enter_decoder(self, _: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        self.part = LANGUAGE
        if kwargs["inputs_embeds"].requires_grad:
            kwargs["inputs_embeds"].register_hook(lambda _: self._turn(VISION))

    def leave_decoder(self, _: nn.Module, args: Any, output: Any) -> None:
        self.part = VOCABULARY
        if output[0].requires_grad:
            output[0].register_hook(lambda _: self._turn(LANGUAGE))

    def _turn(self, part: str) -> None:
        self.part = part


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


# Operations that torch's table of FLOPs has under their other name.
_IN_PLACE = {aten.addmm_: aten.addmm, aten.baddbmm_: aten.baddbmm}

# ---- attention kernels, which torch's table of FLOPs lacks or counts without their causal mask ----


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, causal: bool = False, *_: Any) -> int:
    (batch, heads, queries, width), keys = query.shape, key.shape[2]
    pairs = queries * (queries + 1) // 2 if causal else queries * keys
    return 4 * batch * heads * width * pairs  # two products


def _flash_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, *rest: Any) -> int:
    return _flash(query, key, value, *rest) * 5 // 2  # five products, the scores being computed again


def _varlen(query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, *_: Any) -> int:
    queries, keys = query_ends.diff(), key_ends.diff()
    pairs = queries * (keys - queries) + queries * (queries + 1) // 2  # causal from the lower right corner
    return 4 * query.shape[1] * query.shape[2] * int(pairs.sum())


def _varlen_backward(
    _: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, *rest: Any
) -> int:
    return _varlen(query, key, value, *rest) * 5 // 2


_ATTENTION: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": _flash,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _flash_backward,
    "torch_attn._varlen_attn": _varlen,
    "torch_attn._varlen_attn_backward": _varlen_backward,
}
