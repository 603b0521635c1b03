"""Laws by which the tensors of round 0 are drawn: the same bytes for whoever draws them. (P-2.3)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from protocol.draws import DEVIATE, normal, orthonormal_columns, uniform

Made = Callable[[int, tuple[int, ...]], npt.NDArray[np.floating]]  # of a seed and a shape


@dataclass(frozen=True, slots=True)
class Law:
    """``uniform`` is on (-scale, scale), ``normal`` has the standard deviation ``scale``.

    The rows or columns of an orthonormal matrix have length 1. ``codes`` are int8, row-major, and a number
    is one of them times ``scale``. What is ``made`` is a method's own law: numbers of at most 1 in magnitude,
    each times ``scale``.
    """

    kind: Literal[
        "zeros",
        "ones",
        "uniform",
        "normal",
        "orthonormal rows",
        "orthonormal columns",
        "codes",
        "made",
    ]
    scale: float = 1.0
    codes: bytes = b""
    made: Made | None = None

    @property
    def bound(self) -> float:
        """What no number that is drawn exceeds in magnitude."""
        match self.kind:
            case "zeros":
                return 0.0
            case "normal":
                return DEVIATE * self.scale
            case "uniform" | "made":
                return self.scale
            case "codes":
                codes = np.frombuffer(self.codes, np.int8).astype(np.int64)
                # In float32, as a tensor has it.
                return float(np.float32(int(np.abs(codes).max(initial=0)) * self.scale))
            case _:
                return 1.0

    def draw(self, seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A tensor of ``shape``, row-major."""
        value: npt.NDArray[np.floating]
        match self.kind:
            case "zeros":
                value = np.zeros(shape)
            case "ones":
                value = np.ones(shape)
            case "uniform":
                value = uniform(seed, shape) * self.scale
            case "normal":
                value = normal(seed, shape) * self.scale
            case "orthonormal rows":
                value = orthonormal_columns(seed, shape[1], shape[0]).T
            case "orthonormal columns":
                value = orthonormal_columns(seed, *shape)
            case "codes":
                value = np.frombuffer(self.codes, np.int8).reshape(shape) * self.scale
            case "made":
                assert self.made is not None
                value = self.made(seed, shape) * self.scale
        return value.astype(np.float32, order="C")


ZEROS, ONES = Law("zeros"), Law("ones")
