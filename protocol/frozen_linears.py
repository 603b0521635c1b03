"""What forms of a method may ask of a base's own linears: lengths of rows, and biases. (P-2.5)

A method whose forms hang on the weights that stay says so (``Method.reads_base``); whoever computes them then
needs the base, where other methods' follow from the adapter alone. Sums are in one order, in float64, and are
rounded to float32 once: publisher and auditor get the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.codes import dequantise
from protocol.errors import ArtefactError
from protocol.forms import SHIFT
from protocol.manifest import BaseManifest

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


class FrozenLinears(ABC):
    """The linears of a base by module path; a weight W is (out, in). Nothing of it has a gradient."""

    @abstractmethod
    def lengths(self, path: str) -> Any:
        """(out,): the length of each row of W. Raises ArtefactError where one has none."""

    @abstractmethod
    def growth(self, path: str, down: Any, up: Any) -> Any:
        """(out,): lengths of rows of ``W + up @ down``, (out, r) by (r, in), over those of W."""

    @abstractmethod
    def bias(self, path: str) -> Any | None:
        """(out,); None of a linear that has no shift in the answering graph."""


class StoredLinears(FrozenLinears):
    """Of a base's stored tensors, as arrays of float32."""

    def __init__(self, manifest: BaseManifest, read: Callable[[str], Array]) -> None:
        """``read``: a tensor of ``weights.safetensors`` by name, as the manifest lists it."""
        self._manifest, self._read = manifest, read
        self._linears = {linear.path: linear for linear in manifest.linears}

    def weight(self, path: str) -> Vector:
        """(out, in) float32, the numbers that training and devices compute with."""
        manifest, linear = self._manifest, self._linears[path]
        if manifest.bits in (16, 32):
            return self.stored_weight(path).astype(np.float32)
        codes, scales = self._read(f"{path}.qweight"), self._read(f"{path}.scales")
        packed = codes.reshape(*scales.shape, manifest.block * manifest.bits // 8)
        return dequantise(packed, scales, bits=manifest.bits, in_features=linear.in_features)

    def stored_weight(self, path: str) -> Array:
        """The same as it lies, of a base of 16 or 32 bits."""
        return self._read(f"{path}.weight")

    def lengths(self, path: str) -> Vector:
        """See :class:`FrozenLinears`."""
        return self._lengths(path, self.weight(path).astype(np.float64)).astype(np.float32)

    def growth(self, path: str, down: Vector, up: Vector) -> Vector:
        """See :class:`FrozenLinears`."""
        weight = self.weight(path).astype(np.float64)
        before = self._lengths(path, weight)
        for column, row in zip(up.astype(np.float64).T, down.astype(np.float64), strict=True):
            weight += column[:, None] * row
        return (self._lengths(path, weight) / before).astype(np.float32)

    def bias(self, path: str) -> Vector | None:
        """See :class:`FrozenLinears`."""
        if path + SHIFT not in self._manifest.graph.slot_names:
            return None
        return self._read(f"{path}.bias").astype(np.float32)

    @staticmethod
    def _lengths(path: str, weight: Matrix) -> Matrix:
        squares = np.zeros(len(weight))
        for column in weight.T:
            squares += column * column
        if not (squares > 0).all():
            raise ArtefactError(
                f"{path}: row {int(np.argmin(squares))} of its weight has no length to be scaled by",
                "train other linears: `adapter.targets`, `adapter.layers`",
            )
        lengths: Matrix = np.sqrt(squares)
        return lengths
