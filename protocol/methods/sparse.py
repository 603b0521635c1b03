"""Sparse tuning: of every linear some rows are trained, which all clients' first sum shows to matter most.

``W + s * B @ A`` with ``PATH.lora_A`` (r, in) and ``.lora_B`` (out, r), as LoRA begins. In the run's first
round B is trained: what moves of its row i is the gradient of the weight's row i, seen through A, so a row's
norm in the sum estimates how much the loss asks of that row (Johnson-Lindenstrauss). The coordinator then
keeps the r rows of the largest norms: B becomes their selection, A zeros, and from the second round on A
alone is trained and sent, the change of just these rows (P-4.7). Nobody's own choice is seen, only the sum's.
Choosing rows and not single weights keeps the change a low-rank form, which every slot and reader has.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from protocol.halving import sum_by_halves
from protocol.layout import Tensors
from protocol.methods.lora import LORA_A, LORA_B, PlainFactors, RankSettings
from protocol.section import Rank


class SparseSettings(RankSettings):
    """The parameters that are trained: rows of linears."""

    method: Literal["sparse"] = Field(
        default="sparse", description="what is trained; `fedge methods` lists all"
    )
    rank: Rank = Field(default=8, description="rows of a linear that are trained, r")


class Sparse(PlainFactors[SparseSettings]):
    """Rows of linears, chosen once from the first round's sum."""

    name = "sparse"
    summary = (
        "some rows of each linear: the first round's sum says which, later ones train and send "
        "these alone"
    )
    source = (
        "FISH mask, arXiv 2111.09839, of rows and from a sum; structured as S2FT, arXiv 2412.06289"
    )
    settings = SparseSettings
    reader = "lora"
    opening: ClassVar[int] = 1

    def settled(
        self, tensors: Tensors, settings: SparseSettings, number: int, rounds: int
    ) -> Tensors:
        """Every B that is no selection yet becomes that of its largest rows, its A zero.

        Of equal rows the first. Where the first round was void all rows are equal. (P-4.7)
        """
        chosen: Tensors = {}
        for name in (name for name in tensors if name.endswith(LORA_B)):
            if not is_selection(tensors[name]):
                factor = name.removesuffix(LORA_B) + LORA_A
                chosen[name] = selection(tensors[name])
                chosen[factor] = np.zeros_like(tensors[factor])
        return tensors | chosen


def selection(scout: Any) -> Any:
    """(out, r), a 1 a column: where the r rows of ``scout`` (out, r) of the largest norms are, in order."""
    squares = sum_by_halves((scout.astype(np.float64) ** 2).T)
    rows = np.sort(np.argsort(-squares, kind="stable")[: scout.shape[1]])
    chosen = np.zeros_like(scout)
    chosen[rows, np.arange(len(rows))] = 1
    return chosen


def is_selection(factor: Any) -> bool:
    """Whether (out, r) numbers are what :func:`selection` gives."""
    return bool(np.array_equal(factor, selection(factor)))
