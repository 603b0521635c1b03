"""The head of round 0 as a plan carries it: a vector for each label, which nobody has to learn. (P-2.7)

With many labels the head is most of what is sent (93 % of a small adapter's on 77 labels). Vectors of the
labels' names, as the base itself reads them, tell classes apart from the first round on, so that a head may
even stay as it is.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from protocol.section import MOST_LABELS, PositiveReal, Section

MOST_WIDTH = 65_536  # bytes of a row
LARGEST_CODE = 127
MOST_TEXT = 4 * -(-MOST_WIDTH // 3)
Row = Annotated[str, Field(min_length=4, max_length=MOST_TEXT, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class HeadStart(Section):
    """The head's weight in round 0, and whether rounds train it; its bias is trained in any case."""

    rows: Annotated[list[Row], Field(min_length=2, max_length=MOST_LABELS)] = Field(
        description="of each label in its order the codes of a vector, int8 in base64; "
        "`fedge plan head` writes them"
    )
    scale: PositiveReal = Field(description="a code times this is a number of the head")
    trained: bool = Field(
        default=True, description="false: the vectors stay, only the bias is sent"
    )

    @model_validator(mode="after")
    def _rows_are_codes(self) -> HeadStart:
        widths = set()
        for number, row in enumerate(self.rows):
            try:
                widths.add(len(base64.b64decode(row, validate=True)))
            except binascii.Error:
                raise ValueError(f"row {number} is not base64") from None
        if len(widths) > 1:
            raise ValueError(
                f"rows have {min(widths)} to {max(widths)} codes, all must have as many"
            )
        return self

    @property
    def codes(self) -> npt.NDArray[np.int8]:
        """(labels, in)."""
        return np.stack([np.frombuffer(base64.b64decode(row), np.int8) for row in self.rows])


def head_of(vectors: npt.NDArray[np.floating], *, length: float, trained: bool) -> HeadStart:
    """The head of ``vectors`` (labels, in): each less their mean, which no answer hangs on, of ``length``.

    Raises ValueError for two labels of one vector, which nothing could tell apart.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        raise ValueError("a label's vector is the mean of all, or not finite")
    rows = centred / lengths * length
    scale = float(np.abs(rows).max()) / LARGEST_CODE
    codes = np.rint(rows / scale).astype(np.int8)
    if len(np.unique(codes, axis=0)) < len(codes):
        raise ValueError("two labels have one vector")
    return HeadStart(
        rows=[base64.b64encode(row.tobytes()).decode() for row in codes],
        scale=scale,
        trained=trained,
    )
