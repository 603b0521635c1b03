"""What peft lacks, in torch: methods with a sequence in B's place, biases alone, heads of low rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from protocol.forms import HEAD
from protocol.head_tensors import BIAS, WEIGHT, whole_head
from protocol.methods.base import Method
from protocol.methods.lora import B
from protocol.peft_format import is_head


def freeze_idle(model: nn.Module, adapter: str, method: Method[Any]) -> None:
    """Leave weights of peft's factors that the method has not as they are; biases are trained. (``idle``)"""
    for layer in _layers(model, adapter):
        for part in method.idle:
            getattr(layer, part)[adapter].weight.requires_grad_(False)


def insert_sequence(
    model: nn.Module, adapter: str, method: Method[Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Put what a method trains in a row as one module where peft expects B. (``sequence``)

    What has two dimensions is a linear of the rank, what has three one of each group of features, what has
    one scales features; ``shapes`` are those of the adapter's tensors. peft's forward calls that
    module and does no more with it; whatever else of peft reads ``lora_B[name].weight`` (merging, saving)
    fails instead of leaving something out.
    """
    if len(method.sequence) < 2:
        return
    inner = {
        name.rpartition(".")[2]: shape for name, shape in shapes.items()
    }  # alike in all linears
    at = method.sequence.index(B)
    for layer in _layers(model, adapter):
        outer = layer.lora_B[adapter]
        modules: list[nn.Module] = []
        for place, part in enumerate(method.sequence):
            shape = inner[part] if place < at else (outer.out_features,)
            modules.append(outer if part == B else _module(shape, outer.weight.device))
        layer.lora_B[adapter] = nn.Sequential(*modules)


def _module(shape: tuple[int, ...], device: torch.device) -> nn.Module:
    if len(shape) == 1:
        return _Scale(shape[0], device)
    if len(shape) == 3:
        return _Blocks(shape, device)
    return nn.Linear(shape[1], shape[0], bias=False, device=device)


class MixedHead(nn.Module):
    """A head of low rank: every label's row is mixed of directions. (P-2.7)"""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """``shapes`` of an adapter's tensors, the head's among them."""
        super().__init__()
        for name, shape in shapes.items():
            if is_head(name):
                self.register_parameter(
                    name.removeprefix(f"{HEAD}."), nn.Parameter(torch.zeros(shape))
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, in) to (rows, labels)."""
        tensors = whole_head({f"{HEAD}.{name}": own for name, own in self.named_parameters()})
        return nn.functional.linear(x, tensors[WEIGHT], tensors[BIAS])


class _Blocks(nn.Module):
    """Groups of features, each through a linear of its own: what one with blocks on its diagonal does."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(-1, self.weight.shape[::2])
        return torch.einsum("...hi,hoi->...ho", groups, self.weight).flatten(-2)


class _Scale(nn.Module):
    """Every feature times a number of its own: what a linear with a diagonal weight does."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def _layers(model: nn.Module, adapter: str) -> list[LoraLayer]:
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [layer for layer in layers if adapter in layer.lora_B]
