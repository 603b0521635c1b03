"""LoKr: ``W + s * kron(W1a @ W1b, W2a @ W2b)``, a Kronecker product of two low-rank matrices.

Yeh et al., LyCORIS, arXiv 2309.14859. A width is ``m * n``, m being its largest divisor up to the square
root: of the outputs (out_m, out_n), of the inputs (in_m, in_n). ``PATH.lokr_w1_a`` is (out_m, r),
``.lokr_w1_b`` (r, in_m), ``.lokr_w2_a`` (out_n, r), ``.lokr_w2_b`` (r, in_n). To the answering graph it is a
product of rank r^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.forms import DOWN, UP, reshaped, widened
from protocol.initial import ZEROS, Law
from protocol.layout import TensorSpec
from protocol.manifest import BaseManifest, Linear
from protocol.methods.base import Constants, Free, Remark
from protocol.methods.lora import RankSettings
from protocol.methods.products import Products, free_factors
from protocol.methods.targets import target_linears
from protocol.section import PositiveReal, Rank

W1A, W1B, W2A, W2B = PARTS = ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b")


class LokrSettings(RankSettings):
    """The parameters that are trained: a Kronecker product of two low-rank matrices."""

    method: Literal["lokr"] = Field(
        default="lokr", description="what is trained; `fedge methods` lists all"
    )
    rank: Rank = Field(
        default=4, description="columns of a factor, r; the product's rank is r squared"
    )
    alpha: PositiveReal = Field(default=8.0, description="the change is scaled by alpha / rank")


class Lokr(Products[LokrSettings]):
    """A Kronecker product of two low-rank matrices beside linears."""

    name, peft_type = "lokr", "LOKR"
    summary = (
        "a Kronecker product of two low-rank matrices: rank r^2 from far fewer numbers than LoRA, which "
        "grow with the square root of a layer's width"
    )
    source = "LyCORIS, arXiv 2309.14859; with peft's decompose_both"
    settings = LokrSettings
    tried: ClassVar[Mapping[str, Any]] = {"rank": 1, "alpha": 2.0}
    measured: ClassVar[Mapping[str, str]] = {"adapter.rank": "4", "adapter.alpha": "8.0"}
    turns = tuple(frozenset({part}) for part in (W1A, W2A, W1B, W2B))  # W1a is zero: it moves first
    free: ClassVar[Free] = free_factors((W1A, W2A), (W1B, W2B))

    def specs(self, settings: LokrSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """Drawn as peft draws them: W1a is zero, so the base is what it was."""
        for linear in target_linears(settings, manifest):
            shapes = _shapes(linear, settings.rank)
            for part in PARTS:
                # uniform in ±1/sqrt(columns) is PEFT's Kaiming start
                law = ZEROS if part == W1A else Law("uniform", 1.0 / math.sqrt(shapes[part][1]))
                name = f"{linear.path}.{part}"
                yield TensorSpec(name=name, shape=shapes[part], part=part, law=law)

    def remarks(self, settings: LokrSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """Also a rank from which on peft no longer takes the factors apart."""
        rank = settings.rank
        remarks = list(super().remarks(settings, manifest))
        yield from remarks
        if any(severity == "error" for severity, *_ in remarks):
            return
        for linear in target_linears(settings, manifest):
            out, width = factors(linear.out_features), factors(linear.in_features)
            # peft takes a matrix apart only where that saves numbers, by this measure
            least = min(max(out[0], width[0]), max(out[1], width[1]))
            if 2 * rank >= least:
                cause = (
                    f"rank {rank} is not below half of what the widths of {linear.path} are products of, "
                    f"{out[0]} x {out[1]} and {width[0]} x {width[1]}"
                )
                most = (least - 1) // 2
                remedy = f"at most {most}" if most else "leave this linear out of adapter.targets"
                yield "error", "adapter.rank", cause, remedy
                return

    def reads(self, config: Mapping[str, Any]) -> bool:
        """See :class:`Method`; another factor makes other shapes, which no reader here expects."""
        return (
            super().reads(config)
            and config.get("decompose_both") is True
            and config.get("decompose_factor", -1) == -1
        )

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """(in, r^2) and (r^2, out), as ``kron(AB, CD) = kron(A, C) kron(B, D)``."""
        slots = {}
        for name, left in tensors.items():
            if name.endswith(f".{W1A}"):
                path = name.removesuffix(f".{W1A}")
                right, left2, right2 = (tensors[f"{path}.{part}"] for part in (W1B, W2A, W2B))
                slots[path + DOWN] = transposed_kronecker(right, right2)
                slots[path + UP] = transposed_kronecker(left, left2) * constants["scaling"]
        return slots

    def peft_config(self, settings: LokrSettings, manifest: BaseManifest) -> dict[str, Any]:
        """See :class:`Method`."""
        factors = {"decompose_both": True, "decompose_factor": -1}
        return super().peft_config(settings, manifest) | factors


def transposed_kronecker(left: Any, right: Any) -> Any:
    """(a, b) and (c, d) to (b * d, a * c): the transpose of their Kronecker product.

    Of arrays, or of symbols, whose sizes stay free.
    """
    products = widened(left, 1, 3) * widened(right, 0, 2)  # (a, c, b, d)
    return reshaped(reshaped(products, 0, 0, -1).transpose(2, 0, 1), 0, -1)


def _shapes(linear: Linear, rank: int) -> dict[str, tuple[int, int]]:
    out, width = factors(linear.out_features), factors(linear.in_features)
    return {
        W1A: (out[0], rank),
        W1B: (rank, width[0]),
        W2A: (out[1], rank),
        W2B: (rank, width[1]),
    }


def factors(width: int) -> tuple[int, int]:
    """``(m, width / m)``, m being the largest divisor up to the square root."""
    smaller = next(m for m in range(math.isqrt(width), 0, -1) if width % m == 0)
    return smaller, width // smaller
