"""Methods that peft lacks, made of its LoRA: ``protocol.methods.lora_sb`` and ``.bias`` in torch."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from torch import nn


def freeze_factors(model: nn.Module, adapter: str) -> None:
    """Leave the bias of B alone to be trained; the product of the factors stays zero."""
    for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        layer.lora_A[adapter].weight.requires_grad_(False)
        layer.lora_B[adapter].weight.requires_grad_(False)


def insert_cores(model: nn.Module, adapter: str) -> None:
    """Put a core (r, r) in front of every B, as one module where peft expects B.

    peft's forward calls that module and does no more with it; whatever else of peft reads
    ``lora_B[name].weight`` (merging, saving) fails instead of leaving the core out.
    """
    for layer in [module for module in model.modules() if isinstance(module, LoraLayer)]:
        outer = layer.lora_B[adapter]
        core = nn.Linear(
            outer.in_features, outer.in_features, bias=False, device=outer.weight.device
        )
        layer.lora_B[adapter] = nn.Sequential(core, outer)
