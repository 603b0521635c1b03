"""Steps that use an adapter's first ranks alone, where its method draws how many. (P-4.3)"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.engine.interface import Values
from protocol.layout import Layout, Tensors
from protocol.methods.base import Dimensions
from protocol.recipe import Recipe

Places = npt.NDArray[np.int64]


class Ranks:
    """Of which rank each number of an adapter is: its place along dimensions of the rank, or 0.

    What has no rank counts as of the first, which every step uses.
    """

    def __init__(self, layout: Layout, recipe: Recipe) -> None:
        self._places = {
            spec.name: places(spec.shape, recipe.dimensions(spec)) for spec in layout.specs
        }

    def first(self, tensors: Values, used: int) -> Tensors:
        """The same tensors with zeros beyond the first ``used`` ranks: copies."""
        return {
            name: np.where(self._places[name] < used, value, np.float32(0))
            for name, value in tensors.items()
        }

    def of(self, layout: Layout) -> Places:
        """(d,): of which rank each coordinate of ``layout`` is."""
        flat = [
            np.broadcast_to(self._places[spec.name], spec.shape).reshape(-1)
            for spec in layout.specs
        ]
        return np.concatenate(flat)


def places(shape: tuple[int, ...], dimensions: Dimensions) -> Places:
    """The place along dimensions of the rank, the furthest of several: it fits ``shape`` by broadcasting."""
    place = np.zeros((1,) * len(shape), np.int64)
    for axis, (size, name) in enumerate(zip(shape, dimensions, strict=False)):
        if name == "rank":
            along = [1] * len(shape)
            along[axis] = size
            place = np.maximum(place, np.arange(size).reshape(along))
    return place
