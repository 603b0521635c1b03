"""RAVAN: ``W + s * sum over heads of B_j @ R_j @ A_j``, only the cores R_j (r, r) are trained.

arXiv 2506.05568. ``PATH.lora_A`` (heads * r, in) and ``.lora_B`` (out, heads * r) are orthonormal over all
heads, as those of ``lora-sb``, and stay; ``.lora_R`` (heads, r, r) begins with zeros. The change has a rank
of heads * r for heads * r^2 numbers; one core of that rank has heads times as many. The paper's numbers s_j,
by which a client scales its cores while it trains, are 1 here: it sends the products, as cores alone would
be, and begins each round with 1. s is alpha / (heads * rank).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from protocol.forms import DOWN, UP, ordered_product, reshaped
from protocol.initial import ZEROS, Law
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Remark
from protocol.methods.lora import LORA_A, LORA_B, A, B, Factors, RankSettings, lora_config
from protocol.methods.lora_sb import LORA_R, R
from protocol.methods.targets import rank_remarks, target_linears
from protocol.section import Rank

MOST_HEADS = 64  # of a linear


class RavanSettings(RankSettings):
    """The parameters that are trained: several small cores between fixed low-rank factors."""

    method: Literal["ravan"] = Field(
        default="ravan", description="what is trained; `fedge methods` lists all"
    )
    rank: Rank = Field(default=4, description="rows of a core, r")
    heads: Annotated[int, Field(gt=0, le=MOST_HEADS)] = Field(
        default=4, description="cores of a linear; the change has rank heads * rank"
    )

    @property
    def whole(self) -> int:
        """Columns of a factor, over all heads."""
        return self.heads * self.rank


class Ravan(Factors[RavanSettings]):
    """Several small cores between fixed low-rank factors."""

    name = "ravan"
    summary = (
        "several cores (rank x rank) side by side between fixed random factors: more rank than `lora-sb` "
        "for the same upload"
    )
    source = (
        "RAVAN, arXiv 2506.05568; its scales are folded into the cores, as its clients send them"
    )
    settings = RavanSettings
    tried: ClassVar[Mapping[str, Any]] = {"rank": 2, "heads": 3, "alpha": 12.0}
    measured: ClassVar[Mapping[str, str]] = {
        "adapter.targets": "all-linear",
        "adapter.rank": "4",
        "local.learning_rate": "1e-2",
    }
    turns = (frozenset({R}),)
    free: ClassVar[Free] = {
        A: ("ranks", None),
        B: (None, "ranks"),
        R: ("heads", "rank", "rank"),
    }
    reader = "lora"
    sequence = (R, B)
    folded = frozenset({R})

    def specs(self, settings: RavanSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """See the module."""
        rows, columns = Law("orthonormal rows"), Law("orthonormal columns")
        for linear in target_linears(settings, manifest):
            path, whole, r = linear.path, settings.whole, settings.rank
            yield TensorSpec(
                name=path + LORA_A, shape=(whole, linear.in_features), part=A, law=rows
            )
            yield TensorSpec(
                name=path + LORA_B, shape=(linear.out_features, whole), part=B, law=columns
            )
            yield TensorSpec(name=path + LORA_R, shape=(settings.heads, r, r), part=R, law=ZEROS)

    def remarks(self, settings: RavanSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """Also one head, which is another method's."""
        rank, whole, how = settings.rank, settings.whole, f"in {settings.heads} heads"
        yield from rank_remarks(settings, manifest, rank=rank, low_rank=whole, how=how)
        if settings.heads == 1:
            yield "note", "adapter.heads", "one core is `lora-sb`", "more heads, or that method"

    def constants(self, settings: RavanSettings) -> Constants:
        """``scaling``, s, and ``heads``."""
        return {"scaling": settings.alpha / settings.whole, "heads": float(settings.heads)}

    def peft_config(self, settings: RavanSettings, manifest: BaseManifest) -> dict[str, Any]:
        """LoRA's, of all heads together."""
        targets = [linear.path for linear in target_linears(settings, manifest)]
        return lora_config(targets=targets, rank=settings.whole, alpha=settings.alpha)

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """``A.T`` (in, heads * r) and ``s * (B_1 R_1 | B_2 R_2 | ...).T`` (heads * r, out)."""
        slots = {}
        for name, cores in tensors.items():
            if name.endswith(LORA_R):
                path = name.removesuffix(LORA_R)
                heads = int(constants["heads"])
                up = blockwise_products(tensors[path + LORA_B], cores, heads)
                slots[path + DOWN] = tensors[path + LORA_A].T
                slots[path + UP] = up.T * constants["scaling"]
        return slots

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Plain LoRA: A, and ``B_j @ R_j`` side by side in B's place.

        The products are the same up to their rounding to float32.
        """
        plain = {name: value for name, value in tensors.items() if not name.endswith(LORA_R)}
        for name in tensors.keys() - plain.keys():
            factor = name.removesuffix(LORA_R) + LORA_B
            cores = tensors[name]
            columns = np.split(tensors[factor], len(cores), axis=1)
            products = map(ordered_product, columns, cores)
            plain[factor] = np.concatenate(list(products), axis=1)
        return plain


def blockwise_products(left: Any, blocks: Any, count: int) -> Any:
    """(n, count * r) and (count, r, r) to (n, count * r): ``count`` groups of columns, each times its block.

    Of arrays, or of symbols; but for ``count`` sizes stay free.
    """
    groups = reshaped(left, 0, count, -1).transpose(1, 0, 2)
    return reshaped((groups @ blocks).transpose(1, 0, 2), 0, -1)
