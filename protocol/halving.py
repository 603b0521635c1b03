"""Sums in an order of their own: a library's reduction has another one on every processor. (P-6.14)"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.float64]


def sum_by_halves(parts: Wide) -> Wide:
    """The sum of ``parts`` (n, ...) along the first axis; ``parts`` is used up.

    Of n parts the last floor(n/2) are added to the first ones, until one is left; of none it is 0.
    """
    if not len(parts):
        return np.zeros(parts.shape[1:])
    while len(parts) > 1:
        half = -(-len(parts) // 2)
        parts[: len(parts) - half] += parts[half:]
        parts = parts[:half]
    total: Wide = parts[0]
    return total
