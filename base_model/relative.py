"""Numbers of a PEFT folder that are relative to the base's, in the place of peft's own.

peft keeps the new values of a norm's weight and bias, and of the lengths of a weight's rows; who publishes
those would need the base. (``protocol.methods.norm``, ``Method.reads_base``)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from torch import nn


class RelativeNorm(nn.Module):
    """``weight * (norm(x) + bias)``: the two are relative to the frozen ``norm``, which it does not own."""

    def __init__(self, norm: nn.LayerNorm, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._norm = [norm]  # in a list: no second place for the base's numbers
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the answering graph computes it: the scale is in the vectors. (P-1.11)"""
        (norm,) = self._norm
        bias = None
        if norm.bias is not None and self.bias is not None:
            bias = (norm.bias + self.bias) * self.weight
        return F.layer_norm(x, norm.normalized_shape, norm.weight * self.weight, bias, norm.eps)


class RelativeMagnitude(nn.Module):
    """peft's layer with ``lengths + weight`` for its magnitude; ``weight`` (out,) is what is trained."""

    def __init__(self, layer: DoraLinearLayer, lengths: torch.Tensor) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: no second place for its parameter
        self.weight = layer.weight
        self.register_buffer("lengths", lengths, persistent=False)

    def forward(self, x: torch.Tensor, **others: Any) -> torch.Tensor:
        """What peft adds to the output of the base's linear."""
        magnitude = {"weight": self.lengths + self.weight}
        added = torch.func.functional_call(self._layer[0], magnitude, (x,), others)
        assert isinstance(added, torch.Tensor)
        return added


def relate(model: nn.Module, adapter: str) -> None:
    """Take what peft holds of ``adapter`` for scales and shifts of norms, and for offsets of lengths."""
    for layer in list(model.modules()):
        if isinstance(layer, LNTuningLayer) and adapter in layer.ln_tuning_layers:
            own = layer.ln_tuning_layers[adapter]
            relative = RelativeNorm(layer.base_layer, own.weight, own.bias)
            layer.ln_tuning_layers[adapter] = relative
        elif isinstance(layer, LoraLayer) and adapter in layer.lora_magnitude_vector:
            weight = layer.get_base_layer().weight.detach().as_subclass(torch.Tensor)
            lengths = torch.linalg.norm(weight.double(), dim=1).float()
            magnitude = RelativeMagnitude(layer.lora_magnitude_vector[adapter], lengths)
            layer.lora_magnitude_vector[adapter] = magnitude
