"""Every PEFT method with settings for tiny bases, its own: tests over all methods begin here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from base_model.frozen_linears import stored_linears
from protocol.layout import Tensors
from protocol.methods import METHODS
from protocol.peft_format import Published, to_edge
from protocol.recipe import Recipe
from protocol.rules import RULES

SETTINGS = {name: dict(method.tried) for name, method in METHODS.items()}
CORES = {"method": "lora-sb", "rank": 2, "alpha": 4.0, "targets": ["query"]}  # on a small manifest
SORTING = [name for name, method in METHODS.items() if not method.writes]  # of texts


def adapter_of(method: str, **others: Any) -> dict[str, Any]:
    """``[adapter]`` of a plan; of ``others`` the keys that the method has."""
    known = METHODS[method].settings.model_fields.keys()
    return {"method": method} | SETTINGS[method] | {k: v for k, v in others.items() if k in known}


def rule_of(method: str) -> str:
    """The rule that trains most of it in a round."""
    return next(name for name in ("mean", "alternating") if RULES[name].takes(METHODS[method]))


def slots_on(base: Path, recipe: Recipe, tensors: Tensors) -> Tensors:
    """What an adapter that was trained on ``base`` puts into the answering graph's slots."""
    linears = stored_linears(base, recipe.manifest)
    published = Published.by(recipe.plan.adapter)
    return to_edge(recipe.published(tensors), published=published, linears=linears)


def sections_of(name: str) -> dict[str, Any]:
    """The plan's tables of a rule on LoRA, or of a method under the default rule."""
    if name in RULES:
        return {"adapter": adapter_of("lora"), "rule": {"name": name}}
    return {"adapter": adapter_of(name), "rule": {"name": "alternating"}}
