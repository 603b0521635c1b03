"""LoRA-SB in torch: a core in front of every B of peft's LoRA. (``protocol.methods.lora_sb``)"""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from torch import nn


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
