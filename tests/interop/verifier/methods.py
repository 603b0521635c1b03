"""P-2.1, P-2.3: what methods differ in, a row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .draws import orthonormal, words

FACTORS = (
    "lora_A",
    "lora_B",
    "lora_R",
    "lora_E",
    "lora_magnitude_vector",
    "vera_d",
    "vera_b",
    "ia3_l",
    "shift",
    "scale",
    "bottleneck_down",
    "bottleneck_bias",
    "bottleneck_up",
    "bottleneck_gate",
    *(f"{kind}_w{n}_{end}" for kind in ("hada", "lokr") for n in (1, 2) for end in "ab"),
)
Turns = tuple[tuple[str, ...], ...]  # parts, in the order that rules train them
Inner = dict[str, tuple[int, ...]]
Start = Callable[[int, tuple[int, ...]], Any]  # numbers in order, of a tensor's seed and shape


def nothing(heads: int, r: int, out: int) -> Inner:
    return {}


def rows(named: int, shape: tuple[int, ...]) -> Any:
    return orthonormal(named, shape[1], shape[0])


def columns(named: int, shape: tuple[int, ...]) -> Any:
    return orthonormal(named, *shape).T


def wide(named: int, shape: tuple[int, ...]) -> Any:
    return words(named, math.prod(shape)) / 2.0**32 * math.sqrt(6 / shape[1])


def repeated(named: int, shape: tuple[int, ...]) -> Any:
    return np.array(
        [[place % shape[0] == row for place in range(shape[1])] for row in range(shape[0])]
    )


@dataclass(frozen=True)
class Method:
    """``inner``: what a linear has beside `.lora_A` and `.lora_B`; ``starts``: by role, where it is its own."""

    turns: Turns
    inner: Callable[[int, int, int], Inner] = nothing
    starts: Mapping[str, Start] = field(default_factory=dict)


B_THEN_A: Turns = (("lora_B",), ("lora_A",))
CORES: Mapping[str, Start] = {"lora_A": rows, "lora_B": columns}
METHODS = {
    "lora": Method(B_THEN_A),
    "dora": Method(
        (("lora_B", "lora_magnitude_vector"), ("lora_A",)),
        lambda heads, r, out: {"lora_magnitude_vector": (out,)},
    ),
    "dylora": Method(B_THEN_A),
    "lora-sb": Method((("lora_R",),), lambda heads, r, out: {"lora_R": (r, r)}, CORES),
    "ravan": Method((("lora_R",),), lambda heads, r, out: {"lora_R": (heads, r, r)}, CORES),
    "vera": Method(
        (("vera_b",), ("vera_d",)),
        lambda heads, r, out: {"vera_d": (r,), "vera_b": (out,)},
        {"lora_A": wide, "lora_B": wide},
    ),
    "adalora": Method(
        (("lora_E",), ("lora_B",), ("lora_A",)), lambda heads, r, out: {"lora_E": (r,)}, CORES
    ),
    "sparse": Method(B_THEN_A),
    "miss": Method((("lora_B",),), starts={"lora_A": repeated}),
    "lokr": Method((("lokr_w1_a",), ("lokr_w2_a",), ("lokr_w1_b",), ("lokr_w2_b",))),
    "loha": Method((("hada_w2_a",), ("hada_w1_a",), ("hada_w2_b",), ("hada_w1_b",))),
    "ia3": Method((("ia3_l",),)),
    "bias": Method((("shift",),)),
    "norm": Method((("scale",), ("shift",))),
    "bottleneck": Method(
        (("bottleneck_gate",), ("bottleneck_up",), ("bottleneck_down", "bottleneck_bias"))
    ),
    "prompt": Method((("prompt",),)),
    "prefix": Method((("prefix",),)),
    "head": Method(((),)),
}
