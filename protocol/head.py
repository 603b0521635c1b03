"""The head of round 0 as a plan carries it: a vector for each label, which nobody has to learn. (P-2.7)

With many labels the head is most of what is sent (93 % of a small adapter's on 77 labels). Vectors of the
labels' names, as the base itself reads them, tell classes apart from the first round on, so that a head may
even stay as it is, or move in a few directions alone: those in which the names differ most.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from protocol.encoding import base64_bytes, base64_text
from protocol.errors import PlanError
from protocol.initial import Law
from protocol.layout import HEAD_TURNS
from protocol.section import MOST_LABELS, PositiveReal, Section

MOST_WIDTH = 65_536  # bytes of a row
LARGEST_CODE = 127
MOST_TEXT = 4 * -(-MOST_WIDTH // 3)
Row = Annotated[str, Field(min_length=4, max_length=MOST_TEXT, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class CodedRows(Section):
    """A matrix of int8 codes and their scale."""

    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_LABELS)]
    scale: PositiveReal

    @model_validator(mode="after")
    def _rows_are_codes(self) -> CodedRows:
        widths = set()
        for number, row in enumerate(self.rows):
            try:
                widths.add(len(base64_bytes(row)))
            except ValueError as error:
                raise ValueError(f"row {number} {error}") from None
        if len(widths) > 1:
            raise ValueError(
                f"rows have {min(widths)} to {max(widths)} codes, all must have as many"
            )
        return self

    @property
    def law(self) -> Law:
        """What the matrix begins with."""
        return self.law_of(self.codes)

    def law_of(self, part: npt.NDArray[np.int8]) -> Law:
        """The same of some of the codes."""
        return Law("codes", self.scale, np.ascontiguousarray(part).tobytes())

    @property
    def codes(self) -> npt.NDArray[np.int8]:
        """(rows, width)."""
        return np.stack([np.frombuffer(base64_bytes(row), np.int8) for row in self.rows])


class Directions(CodedRows):
    """What a head of low rank is mixed of: vectors (rank, in) that no round trains."""

    rows: Annotated[list[Row], Field(min_length=1, max_length=MOST_LABELS)] = Field(
        description="of each direction the codes of a vector, int8 in base64"
    )
    scale: PositiveReal = Field(description="a code times this is a number of a direction")
    turns: Annotated[int, Field(ge=1, le=len(HEAD_TURNS))] = Field(
        default=1,
        description="rounds that share the directions: each trains every so many-th of them",
    )


class HeadStart(CodedRows):
    """The head's weight in round 0, and whether rounds train it; its bias is trained in any case.

    With ``directions`` the weight is ``rows @ directions``, and rounds train the rows (labels, rank).
    """

    rows: Annotated[list[Row], Field(min_length=2, max_length=MOST_LABELS)] = Field(
        description="of each label in its order the codes of a vector, or of what directions are mixed "
        "with, int8 in base64; `fedge plan head` writes them"
    )
    scale: PositiveReal = Field(description="a code times this is a number of a row")
    trained: bool = Field(
        default=True, description="false: the vectors stay, only the bias is sent"
    )
    directions: Directions | None = Field(
        default=None, description="of a head of low rank: what its rows are mixed of"
    )

    @property
    def unsaid(self) -> set[str]:
        """Keys that say nothing and came later: digests and texts of plans leave them out. (P-1.2)"""
        return set() if self.directions else {"directions"}

    @model_validator(mode="after")
    def _rows_fit_directions(self) -> HeadStart:
        if self.directions is None:
            return self
        if (rank := len(self.directions.rows)) != (width := self.codes.shape[1]):
            raise ValueError(f"rows have {width} codes for {rank} directions")
        if self.directions.turns > rank:
            raise ValueError(f"{self.directions.turns} turns share {rank} directions")
        if not self.trained:
            raise ValueError("with directions it is trained: leave them out, or `trained`")
        return self

    @property
    def width(self) -> int:
        """Inputs of the head."""
        rows = self.directions or self
        return int(rows.codes.shape[1])


def head_of(
    vectors: npt.NDArray[np.floating],
    *,
    length: float,
    trained: bool = True,
    rank: int = 0,
    turns: int = 1,
) -> HeadStart:
    """The head of ``vectors`` (labels, in): each less their mean, which no answer hangs on, of ``length``.

    ``rank``: it moves in so many directions alone, the first singular vectors, and beyond their number what
    stands at right angles to all; 0 for a whole head. ``turns``: rounds that share them. Raises PlanError for
    settings that exclude each other, ValueError for two labels of one vector, which nothing could tell apart.
    """
    _verify_settings(vectors.shape[1], trained=trained, rank=rank, turns=turns)
    centred = vectors.astype(np.float64) - vectors.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        raise ValueError("a label's vector is the mean of all, or not finite")
    whole = centred / lengths * length
    if not rank:
        rows, scale = _coded(whole)
        return HeadStart(rows=_distinct(rows), scale=scale, trained=trained)
    # As long as a step of all rows together: a learning rate then means what it means to a whole head.
    size = math.sqrt(whole.shape[1] / rank)
    directions = np.linalg.svd(whole)[2][:rank] * size
    mix, scale = _coded(whole @ directions.T / size**2)
    codes, of_codes = _coded(directions)
    return HeadStart(
        rows=_distinct(mix),
        scale=scale,
        trained=trained,
        directions=Directions(rows=_texts(codes), scale=of_codes, turns=turns),
    )


def _verify_settings(width: int, *, trained: bool, rank: int, turns: int) -> None:
    if not rank:
        if turns > 1:
            raise PlanError(
                f"{turns} turns share a head's directions, and none are asked for",
                "name their number too, the rank",
            )
    elif not trained:
        raise PlanError(
            f"a head of rank {rank} is trained, and one that is fixed is not",
            "leave the rank out, or let the head be trained",
        )
    elif rank > width:
        raise PlanError(
            f"vectors of {width} numbers have {width} directions, not {rank}",
            f"take a rank of at most {width}, or leave it out",
        )
    elif turns > rank:
        raise PlanError(f"{turns} turns share {rank} directions", f"take at most {rank} turns")


def _coded(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int8], float]:
    scale = float(np.abs(values).max()) / LARGEST_CODE
    return np.rint(values / scale).astype(np.int8), scale


def _distinct(codes: npt.NDArray[np.int8]) -> list[str]:
    if len(np.unique(codes, axis=0)) < len(codes):
        raise ValueError("two labels have one vector")
    return _texts(codes)


def _texts(codes: npt.NDArray[np.int8]) -> list[str]:
    return [base64_text(row.tobytes()) for row in codes]
