"""Norms scaled and shifted against the base's, in the place of peft's copies (``protocol.methods.norm``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft.tuners.ln_tuning.layer import LNTuningLayer
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


def relate_norms(model: nn.Module, adapter: str) -> None:
    """Take the numbers of peft's copies of norms for scales and shifts."""
    layers = [module for module in model.modules() if isinstance(module, LNTuningLayer)]
    for layer in [layer for layer in layers if adapter in layer.ln_tuning_layers]:
        own = layer.ln_tuning_layers[adapter]
        relative = RelativeNorm(layer.base_layer, own.weight, own.bias)
        layer.ln_tuning_layers[adapter] = relative
