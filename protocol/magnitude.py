"""Magnitude pruning: the numbers nearest to zero become zero, and are not sent to devices. (P-5.6)

A share of each tensor stays, not of all together: a LoRA's A begins at random and its B at zero, so one
threshold for both would take B away and leave A.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.layout import Tensors


def pruned(tensors: Tensors, names: Iterable[str], keep: float) -> Tensors:
    """``tensors`` with those of ``names`` cut down to their share ``keep``, above 0 and at most 1."""
    if keep == 1:
        return tensors
    return tensors | {name: largest_alone(tensors[name], keep) for name in names}


def largest_alone(values: npt.NDArray[Any], keep: float) -> npt.NDArray[np.float32]:
    """Float32 ``values`` of any shape: the largest in magnitude to the bit, +0 in the place of all others.

    :func:`kept_count` of them stay; of equal magnitudes the earlier place, row-major.
    """
    flat = values.reshape(-1)
    places = np.argsort(-np.abs(flat), kind="stable")[: kept_count(flat.size, keep)]
    kept = np.zeros(flat.shape, np.float32)
    kept[places] = flat[places]
    return kept.reshape(values.shape)


def kept_count(size: int, keep: float) -> int:
    """How many of ``size`` numbers stay: ``keep * size``, a float64 product, rounded up."""
    return math.ceil(keep * size)
