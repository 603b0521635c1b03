"""Methods that peft lacks, made of its LoRA: ``protocol.methods.lora_sb``,
``.vera``, ``.adalora`` and ``.bias`` in torch."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import nn


def freeze_factors(model: nn.Module, adapter: str) -> None:
    """Leave the bias of B alone to be trained; the product of the factors stays zero."""
    for layer in _layers(model):
        layer.lora_A[adapter].weight.requires_grad_(False)
        layer.lora_B[adapter].weight.requires_grad_(False)


def insert_cores(model: nn.Module, adapter: str) -> None:
    """Put a core (r, r) in front of every B, as one module where peft expects B.

    peft's forward calls that module and does no more with it; whatever else of peft reads
    ``lora_B[name].weight`` (merging, saving) fails instead of leaving the core out.
    """
    for layer in _layers(model):
        outer = layer.lora_B[adapter]
        core = nn.Linear(
            outer.in_features, outer.in_features, bias=False, device=outer.weight.device
        )
        layer.lora_B[adapter] = nn.Sequential(core, outer)


def insert_values(model: nn.Module, adapter: str) -> None:
    """Scale what goes into every B (r), in the same way."""
    for layer in _layers(model):
        outer = layer.lora_B[adapter]
        values = _Scale(outer.in_features, outer.weight.device)
        layer.lora_B[adapter] = nn.Sequential(values, outer)


def insert_vectors(model: nn.Module, adapter: str) -> None:
    """Scale what goes into every B (r) and what comes out of it (out), in the same way."""
    for layer in _layers(model):
        outer = layer.lora_B[adapter]
        sizes = outer.in_features, outer.out_features
        inner, behind = (_Scale(size, outer.weight.device) for size in sizes)
        layer.lora_B[adapter] = nn.Sequential(inner, outer, behind)


class _Scale(nn.Module):
    """Every feature times a number of its own: what a linear with a diagonal weight does."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def _layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
