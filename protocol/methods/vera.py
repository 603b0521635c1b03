"""VeRA: vectors scale factors that stay as they were drawn (Kopiczko et al., arXiv 2310.11454).

``W + s * diag(b) B diag(d) A``: ``PATH.lora_A`` (r, in) and ``.lora_B`` (out, r) are drawn and never sent,
``.vera_d`` (r,) and ``.vera_b`` (out,) are trained. Each linear has factors of its own, where the paper
slices one pair for all: they follow from the seed, so that sharing them would save nobody anything. A PEFT
folder has the products with the vectors, which is LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.forms import DOWN, UP
from protocol.initial import ONES, ZEROS, Law
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free
from protocol.methods.lora import LORA_A, LORA_B, A, B, Factors, RankSettings
from protocol.methods.targets import target_linears
from protocol.section import Rank

D, VERA_B = "vera_d", "vera_b"


class VeraSettings(RankSettings):
    """The parameters that are trained: vectors between and behind fixed low-rank factors."""

    method: Literal["vera"] = Field(
        default="vera", description="what is trained; `fedge methods` lists all"
    )
    rank: Rank = Field(
        default=64, description="columns of a factor, r; a number is trained for each"
    )


class Vera(Factors[VeraSettings]):
    """Vectors that scale fixed low-rank factors."""

    name = "vera"
    summary = (
        "vectors that scale fixed random factors: rank + out numbers a linear are trained and sent; devices "
        "get the products, a LoRA of that rank"
    )
    source = "VeRA, arXiv 2310.11454; with factors of its own for each linear"
    settings = VeraSettings
    measured: ClassVar[Mapping[str, str]] = {"adapter.rank": "64", "local.learning_rate": "1e-2"}
    turns = (frozenset({VERA_B}), frozenset({D}))
    free: ClassVar[Free] = {A: ("rank", None), B: (None, "rank"), D: ("rank",), VERA_B: (None,)}
    reader = "lora"
    sequence = (D, B, VERA_B)
    folded = frozenset({D, VERA_B})

    def specs(self, settings: VeraSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """A and B as PEFT draws them; d is one, as s is in the place of the paper's 0.1; b is zero."""
        for linear in target_linears(settings, manifest):
            width, out, r = linear.in_features, linear.out_features, settings.rank
            laws = Law("uniform", math.sqrt(6 / width)), Law("uniform", math.sqrt(6 / r))
            yield TensorSpec(name=linear.path + LORA_A, shape=(r, width), part=A, law=laws[0])
            yield TensorSpec(name=linear.path + LORA_B, shape=(out, r), part=B, law=laws[1])
            yield TensorSpec(name=f"{linear.path}.{D}", shape=(r,), part=D, law=ONES)
            yield TensorSpec(name=f"{linear.path}.{VERA_B}", shape=(out,), part=VERA_B, law=ZEROS)

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """``A.T d`` (in, r) and ``s * B.T b`` (r, out), d and b column by column."""
        slots = {}
        for name, columns in tensors.items():
            if name.endswith(f".{D}"):
                path = name.removesuffix(f".{D}")
                scaled = tensors[path + LORA_B].T * tensors[f"{path}.{VERA_B}"]
                slots[path + DOWN] = tensors[path + LORA_A].T * columns
                slots[path + UP] = scaled * constants["scaling"]
        return slots

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Plain LoRA: ``diag(d) A`` and ``diag(b) B``, each number a product of two in float32."""
        plain = {n: v for n, v in tensors.items() if not n.endswith((f".{D}", f".{VERA_B}"))}
        for name in tensors.keys() - plain.keys():
            path, _, part = name.rpartition(".")
            factor = path + (LORA_A if part == D else LORA_B)
            plain[factor] = tensors[factor] * tensors[name][:, None]
        return plain
