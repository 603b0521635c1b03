"""How far the answers of two engines may lie apart, and how far they do. (P-5.3)

A row's difference is relative to its largest logit, the scale that a decision is made on. A row that is
undecided has none: its logits are what is left where large terms cancel, and rounding is as large there as
in every other row. So a row is compared with its own largest logit or with the floor, an absolute
difference over the relative bound, whichever is larger. The floor follows from the median row: a few rows
with huge logits must not excuse the rest.

A row with another label counts as no nearer than the margin that the reference had between the two labels:
a decision that was clear must not be turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.peft_format import Parity, ParityError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """``relative`` to a row's largest logit; ``absolute`` in logits, 0 where it follows from the rows.

    It is then ``relative`` times the median over rows of the row's largest logit.
    """

    relative: float
    absolute: float = 0.0


def compare(expected: Array, answers: Array, bounds: Bounds) -> Parity:
    """Logits (rows, labels) of the reference and of the other engine, both float.

    Raises ParityError for values that are not finite; a bound that is missed is only reported.
    """
    reference, other = expected.astype(np.float64), answers.astype(np.float64)
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        raise ParityError("logits are NaN or infinite", "release an earlier round", None)
    largest = np.abs(reference).max(-1)
    absolute = bounds.absolute or bounds.relative * float(np.median(largest))
    scale = np.maximum(largest, absolute / bounds.relative)
    turned = np.take_along_axis(reference, other.argmax(-1)[:, None], -1)[:, 0]
    difference = np.maximum(np.abs(reference - other).max(-1), reference.max(-1) - turned)
    return Parity(
        rows=len(reference),
        max_relative=float((difference / np.maximum(scale, 1e-12)).max()),
        label_agreement=float(np.mean(reference.argmax(-1) == other.argmax(-1))),
        bound=bounds.relative,
        absolute=absolute,
    )
