"""DyLoRA: low-rank factors of which any first ranks answer alone (Valipour et al., arXiv 2210.07558).

Tensors, start and forms are LoRA's, and so is a PEFT folder. Each step of a client trains the first b ranks
as if there were no others, with b uniform on 1 .. rank (P-4.3): the earlier a rank, the more often it is
trained, and the less it rests on those behind it. s is alpha / rank whatever b is, where the paper has
alpha / b: an adapter at a lower rank is then the first columns of this one, to the bit. (docs/adr/0070)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from protocol.manifest import BaseManifest
from protocol.methods.base import Remark
from protocol.methods.lora import PlainFactors, RankSettings


class DyloraSettings(RankSettings):
    """The parameters that are trained: low-rank factors that may be cut to any lower rank."""

    method: Literal["dylora"] = Field(
        default="dylora", description="what is trained; `fedge methods` lists all"
    )


class Dylora(PlainFactors[DyloraSettings]):
    """LoRA whose steps use ranks up to one that is drawn."""

    name = "dylora"
    summary = (
        "low-rank factors beside linears, of which a device may use any first ranks (`--rank`)"
    )
    source = "DyLoRA, arXiv 2210.07558; with alpha / rank at every rank"
    settings = DyloraSettings
    reader = "lora"
    nested = True

    def ranks_used(self, settings: DyloraSettings, generator: np.random.Generator) -> Iterator[int]:
        """Uniform on 1 .. rank."""
        while True:
            yield int(generator.integers(1, settings.rank, endpoint=True))

    def remarks(self, settings: DyloraSettings, manifest: BaseManifest) -> Iterator[Remark]:
        """Also a rank that leaves nothing to draw."""
        yield from super().remarks(settings, manifest)
        if settings.rank == 1:
            yield "note", "adapter.rank", "of one rank there is no lower one", "train `lora`"
