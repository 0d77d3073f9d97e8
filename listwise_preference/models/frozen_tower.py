"""A vision tower that is not trained: no gradients through it, and one pass for images that are encoded again.

Gradient checkpointing makes a tower's patch embeddings require gradients, so that a frozen tower costs a backward pass
for nothing; and with an online reference policy and reference encode the same images one after the other.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def vision_tower(model: PreTrainedModel) -> str:
    """The name of the module that encodes images; empty where transformers does not know it."""
    tower = model.get_encoder(modality="image")
    return next((name for name, module in model.named_modules() if module is tower), "")


def freeze_tower(model: PreTrainedModel, name: str) -> bool:
    """Run the module ``name`` under ``no_grad``, once for the same images; whether that was possible.

    It is possible where nothing in it is trained and nothing in it is random.
    """
    if not name:
        return False
    tower = model.get_submodule(name)
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    random = getattr(getattr(tower, "config", None), "attention_dropout", 0.0) > 0 or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in tower.modules()
    )
    if trained or random:
        return False
    tower.forward = _Once(tower)
    return True


def forget_images(model: nn.Module) -> None:
    """Encode the next images even if they are the last ones."""
    for module in model.modules():
        if isinstance(module.forward, _Once):
            module.forward.inputs = None


class _Once:
    """The tower's own forward under ``no_grad``; the last result again where the inputs are the same."""

    def __init__(self, tower: nn.Module) -> None:
        self.tower = tower
        self.inputs: tuple[Any, ...] | None = None
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inputs = (*args, *(value for _, value in sorted(kwargs.items())))
        if self.inputs is None or not _same(self.inputs, inputs):
            self.inputs = self.output = None  # the memory of the last images goes before the next ones need it
            with torch.no_grad():
                self.output = type(self.tower).forward(self.tower, *args, **kwargs)
            self.inputs = inputs
        # A copy, since some models split the tower's output by images in place.
        return copy.copy(self.output)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    if len(one) != len(other):
        return False
    for a, b in zip(one, other, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif type(a) is not type(b) or a != b:
            return False
    return True
