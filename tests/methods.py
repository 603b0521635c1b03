"""A setting of every PEFT method for tiny bases: tests over all methods begin here."""

from __future__ import annotations

from typing import Any

from protocol.methods import METHODS
from protocol.rules import RULES

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "alpha": 8.0},
    "dylora": {"rank": 4, "alpha": 8.0},
    "lora-sb": {"rank": 4, "alpha": 8.0},
    "vera": {"rank": 4, "alpha": 8.0},
    "adalora": {"rank": 4, "alpha": 8.0, "target_rank": 2},
    "loha": {"rank": 2, "alpha": 4.0},
    "lokr": {"rank": 1, "alpha": 2.0},
    "ia3": {},
    "bias": {},
    "norm": {},
    "bottleneck": {"places": "houlsby", "width": 4, "scaling": 2.0, "gated": True},
    "prompt": {"tokens": 5},
    "prefix": {"tokens": 5},
    "head": {},
    "hybrid": {
        "members": [
            {"method": "lora", "rank": 4, "alpha": 8.0},
            {"method": "prompt", "tokens": 5},
        ]
    },
}
CORES = {"method": "lora-sb", "rank": 2, "alpha": 4.0, "targets": ["query"]}  # on a small manifest
assert SETTINGS.keys() == METHODS.keys()
SORTING = [name for name, method in METHODS.items() if not method.writes]  # of texts


def adapter_of(method: str, **others: Any) -> dict[str, Any]:
    """``[adapter]`` of a plan; of ``others`` the keys that the method has."""
    known = METHODS[method].settings.model_fields.keys()
    return {"method": method} | SETTINGS[method] | {k: v for k, v in others.items() if k in known}


def sections_of(name: str) -> dict[str, Any]:
    """The plan's tables of a rule on LoRA, or of a method under the default rule."""
    if name in RULES:
        return {"adapter": adapter_of("lora"), "rule": {"name": name}}
    return {"adapter": adapter_of(name), "rule": {"name": "alternating"}}
