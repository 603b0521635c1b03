"""Bottleneck adapters in torch, which peft lacks: hooks around the base's own linears (P-1.11).

What ``protocol.methods.bottleneck`` says, of trained tensors and of published ones, which have no gate.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from protocol.bottlenecks import feed_forwards
from protocol.forms import HEAD
from protocol.layout import Tensors

Shapes = dict[str, tuple[int, ...]]


class Bottleneck(nn.Module):
    """``s * g * relu(x D + b) U`` of x (..., hidden); parameters are called as tensors behind their path."""

    def __init__(self, shapes: Shapes, scaling: float, device: torch.device) -> None:
        super().__init__()
        self._scaling = scaling
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))

    def forward(self, x: Tensor) -> Tensor:
        """What is added."""
        own = dict(self.named_parameters())
        inner = torch.relu(x @ own["bottleneck_down"] + own["bottleneck_bias"])
        up: Tensor = own["bottleneck_up"]
        if "bottleneck_gate" in own:
            up = up * own["bottleneck_gate"]
        return inner @ (up * self._scaling)


def insert_bottlenecks(
    model: nn.Module, shapes: Iterable[tuple[str, tuple[int, ...]]], scaling: float, name: str
) -> None:
    """Zero ones, each a module ``name`` of the linear at its path, for ``shapes`` of tensors by name."""
    by_path: dict[str, Shapes] = {}
    for tensor, shape in shapes:
        path, _, part = tensor.rpartition(".")
        by_path.setdefault(path, {})[part] = shape
    beside = feed_forwards(path for path, _ in model.named_modules())
    for path, own in by_path.items():
        linear = model.get_submodule(path)
        device = next(iter([*linear.parameters(), *linear.buffers()])).device
        bottleneck = Bottleneck(own, scaling, device)
        if path in beside:
            _run_beside(bottleneck, linear, model.get_submodule(beside[path]))
        else:
            _run_behind(bottleneck, linear)
        linear.add_module(name, bottleneck)


def _run_behind(bottleneck: Bottleneck, linear: nn.Module) -> None:
    linear.register_forward_hook(lambda _module, _inputs, y: y + bottleneck(y))


def _run_beside(bottleneck: Bottleneck, first: nn.Module, second: nn.Module) -> None:
    """From what goes into ``first`` to what comes out of ``second``, which follows it."""
    entered: list[Tensor] = []

    def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        entered.append(inputs[0])

    first.register_forward_pre_hook(enter)
    second.register_forward_hook(lambda _module, _inputs, y: y + bottleneck(entered.pop()))


def open_bottlenecks(model: nn.Module, tensors: Tensors, scaling: float) -> nn.Module:
    """``model`` with the published ``tensors``, its head among them, in eval mode."""
    head = {name: value for name, value in tensors.items() if name.startswith(f"{HEAD}.")}
    own = {name: value for name, value in tensors.items() if name not in head}
    insert_bottlenecks(model, ((name, value.shape) for name, value in own.items()), scaling, "own")
    with torch.no_grad():
        for name, value in tensors.items():
            path, _, part = name.rpartition(".")
            place = name if name in head else f"{path}.own.{part}"
            model.get_parameter(place).copy_(torch.from_numpy(value))
    return model.eval()
