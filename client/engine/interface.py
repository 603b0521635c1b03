"""The interface of an engine: loss and gradients of a batch, outputs of a batch, and no more.

Weights, optimiser and the order of rows are the caller's; an engine keeps nothing of a client between
two calls, so clients of one process share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from client.examples import RowBatch
from protocol.layout import Layout, Tensors
from protocol.rules import Parts

Values = Mapping[str, npt.NDArray[np.float32]]


class Engine(Protocol):
    """Computes with the frozen base and any adapter of ``layout``."""

    layout: Layout
    most: int | None  # padded tokens of one call, where the engine's memory is bounded

    def gradients(self, tensors: Values, batch: RowBatch, parts: Parts) -> tuple[float, Tensors]:
        """The sum over rows of the task's loss, and its gradients by name for ``parts``."""

    def outputs(self, tensors: Values, batch: RowBatch) -> npt.NDArray[np.float32]:
        """(rows, outputs): a head's logits, or of text that follows text what ``score`` adds up."""
