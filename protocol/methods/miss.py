"""MiSS: a linear's input is cut into pieces of r numbers, and their sum goes through a trained (r, out).

Kang & Yin, arXiv 2409.15371, in peft's default form: ``W + B @ A`` with ``PATH.lora_A`` (r, in), zeros but
for ``A[j, i] = 1`` where i is j modulo r: identities side by side, the last one cut off where the input
ends, as peft fills it up with zeros. ``.lora_B`` (out, r), peft's ``miss_block`` transposed, is trained from
zeros, and it alone is sent. There is no alpha: nothing is scaled. A PEFT folder has A written out, which is
LoRA: of peft's own type it would have B alone, and whoever reads it would need the base's widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from protocol.initial import ZEROS, Law
from protocol.layout import Tensors, TensorSpec
from protocol.manifest import BaseManifest
from protocol.methods.lora import LORA_A, LORA_B, A, B, FactorSettings, PlainFactors
from protocol.methods.targets import target_linears
from protocol.section import Rank


class MissSettings(FactorSettings):
    """The parameters that are trained: a factor behind sums of pieces of what goes into a linear."""

    method: Literal["miss"] = Field(
        default="miss", description="what is trained; `fedge methods` lists all"
    )
    rank: Rank = Field(default=16, description="numbers of a piece, r")


class Miss(PlainFactors[MissSettings]):
    """One factor for all pieces of a linear's input."""

    name = "miss"
    summary = (
        "a factor that pieces of a linear's input share: half of LoRA's numbers at one rank, every round "
        "exact; devices get a LoRA of that rank"
    )
    source = "MiSS, arXiv 2409.15371; without its variants bat and mini"
    settings = MissSettings
    tried: ClassVar[Mapping[str, Any]] = {"rank": 4}
    elsewhere: ClassVar[Mapping[str, str]] = {"bone": "it is called `miss`"}
    turns = (frozenset({B}),)
    reader = "lora"

    def specs(self, settings: MissSettings, manifest: BaseManifest) -> Iterator[TensorSpec]:
        """See the module."""
        law = Law("made", made=identities)
        for linear in target_linears(settings, manifest):
            width, out, r = linear.in_features, linear.out_features, settings.rank
            yield TensorSpec(name=linear.path + LORA_A, shape=(r, width), part=A, law=law)
            yield TensorSpec(name=linear.path + LORA_B, shape=(out, r), part=B, law=ZEROS)

    def in_peft(
        self, settings: MissSettings, manifest: BaseManifest, tensors: Tensors
    ) -> tuple[dict[str, Any], Tensors]:
        """B alone, transposed."""
        targets = [linear.path for linear in target_linears(settings, manifest)]
        config = {"peft_type": "MISS", "r": settings.rank, "target_modules": targets}
        blocks = {name: value.T for name, value in tensors.items() if name.endswith(LORA_B)}
        return config, {
            f"{self.saved_prefix}{name.removesuffix(LORA_B)}.miss_block": value
            for name, value in blocks.items()
        }


def identities(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """(r, in), the same from every seed: 1 where the column modulo r is the row, else 0."""
    rows, columns = (np.arange(size) for size in shape)
    ones: npt.NDArray[np.bool_] = columns % shape[0] == rows[:, None]
    return ones.astype(np.float64)
