"""LoRA-SB, as Fed-SB federates it: ``W + s * B @ R @ A``, only the core R (r, r) is trained.

Singhal et al., arXiv 2502.15436. A's rows and B's columns are orthonormal, unscaled, and the core is zero:
then ``|B R A| = |R|`` in the Frobenius and the spectral norm, so a learning rate means the same for layers
of every width, and the L2 norm that the exchange clips is that of the change over s. Another constant c
would be another learning rate: under AdamW, c and rate/c do the same. The factors are random where the paper
takes singular vectors of a gradient, which is data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from protocol.forms import DOWN, UP, ordered_product
from protocol.initial import ZEROS, Law
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.base import Constants, Free, Remark
from protocol.methods.lora import LORA_A, LORA_B, A, B, Factors, RankSettings
from protocol.methods.targets import target_linears

R = "lora_R"
LORA_R = f".{R}"


class LoraSbSettings(RankSettings):
    """The parameters that are trained: a small core between fixed low-rank factors."""

    method: Literal["lora-sb"] = Field(
        default="lora-sb", description="what is trained; `fedge methods` lists all"
    )


class LoraSb(Factors[LoraSbSettings]):
    """A small core between fixed low-rank factors."""

    name = "lora-sb"
    summary = (
        "a core (rank x rank) between fixed random factors: a very small upload that does not grow with "
        "the layers' width, less expressive"
    )
    source = "Fed-SB, arXiv 2502.15436; without its start from gradients of data"
    elsewhere: ClassVar[Mapping[str, str]] = {"fed-sb": "it is called `lora-sb`"}
    settings = LoraSbSettings
    measured: ClassVar[Mapping[str, str]] = {
        "adapter.targets": "all-linear",
        "local.learning_rate": "1e-2",
    }
    turns = (frozenset({R}),)
    free: ClassVar[Free] = {A: ("rank", None), B: (None, "rank"), R: ("rank", "rank")}
    reader = "lora"
    sequence = (R, B)
    folded = frozenset({R})

    def specs(self, settings: LoraSbSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """See the module."""
        rows, columns = Law("orthonormal rows"), Law("orthonormal columns")
        for linear in target_linears(settings, manifest):
            width, out, r = linear.in_features, linear.out_features, settings.rank
            yield TensorSpec(name=linear.path + LORA_A, shape=(r, width), part=A, law=rows)
            yield TensorSpec(name=linear.path + LORA_B, shape=(out, r), part=B, law=columns)
            yield TensorSpec(name=linear.path + LORA_R, shape=(r, r), part=R, law=ZEROS)

    def remarks(self, settings: LoraSbSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """See :class:`Method`."""
        yield from super().remarks(settings, manifest)
        if settings.rank < 2:
            yield "note", "adapter.rank", "rank 1 with fixed factors trains a number per layer", ""

    def forms(self, tensors: Mapping[str, Any], constants: Constants) -> dict[str, Any]:
        """``A.T`` (in, r) and ``s * (B @ R).T`` (r, out)."""
        slots = {}
        for name, core in tensors.items():
            if name.endswith(LORA_R):
                path = name.removesuffix(LORA_R)
                slots[path + DOWN] = tensors[path + LORA_A].T
                slots[path + UP] = (tensors[path + LORA_B] @ core).T * constants["scaling"]
        return slots

    def published(self, tensors: Tensors, specs: Iterable[TensorSpec]) -> Tensors:
        """Plain LoRA: A, and ``B @ R`` in B's place.

        The product is the same up to the rounding of B @ R to float32.
        """
        plain = {name: value for name, value in tensors.items() if not name.endswith(LORA_R)}
        for name in tensors.keys() - plain.keys():
            path = name.removesuffix(LORA_R)
            plain[path + LORA_B] = ordered_product(tensors[path + LORA_B], tensors[name])
        return plain
