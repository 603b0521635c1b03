"""Adapters as flat vectors: which tensor lies where.

Between training and the decoded sum every stage sees one float32 vector; the layout (name, shape,
offset), fixed by the plan, is the only thing that knows what its coordinates mean. (P-2)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from protocol.errors import ArtefactError
from protocol.initial import ZEROS, Law

Vector = npt.NDArray[np.float32]  # (d,)
Tensors = dict[str, npt.NDArray[np.float32]]
HEAD_PART = "head"  # of every method's adapter
FIXED_HEAD_PART = "fixed_head"  # what of a head stays as the plan has it
HEAD_TURNS = tuple(f"head_{turn}" for turn in range(8))  # what of a head rounds train by turns
TRAINED_HEAD_PARTS = frozenset({HEAD_PART, *HEAD_TURNS})
HEAD_PARTS = TRAINED_HEAD_PARTS | {FIXED_HEAD_PART}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor: canonical name (Hugging Face module path), shape, part, and the law of round 0.

    ``part`` is the method's word for what it is, or one of :data:`HEAD_PARTS`.
    """

    name: str
    shape: tuple[int, ...]
    part: str
    law: Law = ZEROS

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Tensors in the order of their names, one behind the other, row-major. (P-2.2)"""

    specs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.specs]
        if names != sorted(set(names)):
            raise ValueError("a layout's names are distinct and sorted")

    @cached_property
    def size(self) -> int:
        """Number of coordinates d."""
        return sum(spec.size for spec in self.specs)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the vector."""
        where, offset = {}, 0
        for spec in self.specs:
            where[spec.name] = slice(offset, offset + spec.size)
            offset += spec.size
        return where

    def only(self, parts: Iterable[str]) -> Layout:
        """The layout of the tensors that are of one of ``parts``."""
        wanted = frozenset(parts)
        return Layout(tuple(spec for spec in self.specs if spec.part in wanted))

    def flatten(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Vector:
        """One float32 vector (d,). Raises ArtefactError for a missing name or another shape."""
        self._check_names(tensors)
        for spec in self.specs:  # all of them first: a layout may be of any size
            shape = tuple(tensors[spec.name].shape)
            if shape != spec.shape:
                raise ArtefactError(
                    f"tensor {spec.name} has shape {shape}, the plan says {spec.shape}",
                    "use the adapter and the base that belong to this plan",
                )
        vector = np.empty(self.size, np.float32)
        for spec in self.specs:
            tensor = np.asarray(tensors[spec.name], np.float32)
            vector[self.slices[spec.name]] = tensor.reshape(-1)
        return vector

    def unflatten(self, vector: Vector) -> Tensors:
        """Tensors by name: copies. Raises ArtefactError when the length differs."""
        if vector.ndim != 1 or len(vector) != self.size:
            raise ArtefactError(
                f"a vector of shape {vector.shape} does not fit a layout of {self.size} coordinates",
                "use the adapter and the base that belong to this plan",
            )
        return {
            spec.name: vector[self.slices[spec.name]]
            .reshape(spec.shape)
            .astype(np.float32, copy=True)
            for spec in self.specs
        }

    def views(self, vector: Vector) -> Tensors:
        """Tensors by name that share the memory of ``vector`` (d,)."""
        return {
            spec.name: vector[self.slices[spec.name]].reshape(spec.shape) for spec in self.specs
        }

    def _check_names(self, tensors: Mapping[str, object]) -> None:
        missing = [spec.name for spec in self.specs if spec.name not in tensors]
        unknown = sorted(set(tensors) - set(self.slices))
        if missing or unknown:
            what = f"misses {missing[0]}" if missing else f"has the unknown tensor {unknown[0]}"
            raise ArtefactError(
                f"the adapter {what}", "use the adapter and the base that belong to this plan"
            )
