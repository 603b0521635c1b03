"""LoHa: ``W + s * (W1a @ W1b) * (W2a @ W2b)``, an elementwise product of two low-rank ones.

Hyeon-Woo et al., FedPara, arXiv 2108.06098. ``PATH.hada_w1_a`` and ``.hada_w2_a`` are (out, r),
``.hada_w1_b`` and ``.hada_w2_b`` (r, in). To the answering graph it is a product of rank r^2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.forms import DOWN, UP, reshaped, widened
from protocol.initial import ZEROS, Law
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free
from protocol.methods.lora import RankSettings
from protocol.methods.products import Products, free_factors
from protocol.methods.targets import target_linears

W1A, W1B, W2A, W2B = PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LAWS = {W1A: Law("normal", 0.1), W1B: Law("normal"), W2A: ZEROS, W2B: Law("normal")}  # peft's


class LohaSettings(RankSettings):
    """The parameters that are trained: an elementwise product of two low-rank matrices."""

    method: Literal["loha"] = Field(
        default="loha", description="what is trained; `fedge methods` lists all"
    )


class Loha(Products[LohaSettings]):
    """An elementwise product of two low-rank matrices beside linears."""

    name, peft_type = "loha", "LOHA"
    summary = (
        "an elementwise product of two low-rank matrices: rank r^2 from twice the numbers of LoRA"
    )
    source = "FedPara, arXiv 2108.06098"
    settings = LohaSettings
    tried: ClassVar[Mapping[str, Any]] = {"rank": 2, "alpha": 4.0}
    measured: ClassVar[Mapping[str, str]] = {"adapter.rank": "4", "adapter.alpha": "8.0"}
    turns = tuple(frozenset({part}) for part in (W2A, W1A, W2B, W1B))  # W2a is zero: it moves first
    free: ClassVar[Free] = free_factors((W1A, W2A), (W1B, W2B))

    def specs(self, settings: LohaSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """Drawn as peft draws them: W2a is zero, so the base is what it was."""
        for linear in target_linears(settings, manifest):
            left, right = (linear.out_features, settings.rank), (settings.rank, linear.in_features)
            for part in PARTS:
                shape = left if part in (W1A, W2A) else right
                name = f"{linear.path}.{part}"
                yield TensorSpec(name=name, shape=shape, part=part, law=LAWS[part])

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """(in, r^2) and (r^2, out): of every pair of columns the elementwise product."""
        slots = {}
        for name, left in tensors.items():
            if name.endswith(f".{W1A}"):
                path = name.removesuffix(f".{W1A}")
                right, left2, right2 = (tensors[f"{path}.{part}"] for part in (W1B, W2A, W2B))
                slots[path + DOWN] = columnwise_products(right.T, right2.T)
                slots[path + UP] = columnwise_products(left, left2).T * constants["scaling"]
        return slots


def columnwise_products(left: Any, right: Any) -> Any:
    """(n, r) and (n, s) to (n, r * s): each column of ``left`` times each of ``right``, elementwise.

    Of arrays, or of symbols, whose sizes stay free.
    """
    return reshaped(widened(left, 2) * widened(right, 1), 0, -1)
