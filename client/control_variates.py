"""SCAFFOLD: a client's training is corrected by what its rows alone make it do. (P-4.13, docs/adr/0078)

Karimireddy and others, arXiv 1910.06378, option II, in units of a round's movement instead of gradients, so
that it holds for every local optimiser and for clients with unlike numbers of steps; under SGD with as many
steps each the two are the same. The server's control variate is the mean of the clients' movements, followed
by the share of clients in a cohort. What a round moved is what its clients' mean was, so each client follows
it by the adapters that it is sent, and nothing more is sent either way. Its own variate never leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.engine.interface import Values
from protocol.layout import Layout, Tensors, TensorSpec, Vector
from protocol.recipe import Recipe

HELD = 0.9  # of a correction: what a lost update leaves in it dies out by as much a round
REMEMBERED = 2  # passages of a tensor: the last one may have come to nothing
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A tensor in a round in which this client trained it; all float32 of its shape.

    ``turn``: the round, counted over the runs before. ``received``: as it was sent. ``shared``: what rounds
    move it by, as far as this client has followed; None at first. ``own``: what the client's training would
    have moved it by.
    """

    turn: int
    received: Matrix
    shared: Matrix | None
    own: Matrix


Memory = Mapping[str, tuple[Passage, ...]]  # by tensor, oldest first


class Correction:
    """What one round's training is corrected by, and what is remembered of that round."""

    def __init__(self, recipe: Recipe, number: int, received: Values, memory: Memory) -> None:
        """``received``: the adapter of round ``number``; ``memory`` is left as it is."""
        self._recipe, self._turn = recipe, recipe.plan.turn(number)
        self._layout: Layout = recipe.round_layout(number)
        self._received, self._memory = received, memory
        self._before = {spec.name: self._passages(spec) for spec in self._layout.specs}
        self._shared = {spec.name: self._moved(spec) for spec in self._layout.specs}
        self.shift: Vector = self._layout.flatten(
            {spec.name: self._shift(spec) for spec in self._layout.specs}
        )

    def _passages(self, spec: TensorSpec) -> tuple[Passage, ...]:
        """Those of earlier rounds, without a last one after which nothing moved: its sum was never used."""
        known = [each for each in self._memory.get(spec.name, ()) if each.turn < self._turn]
        if known and np.array_equal(known[-1].received, self._received[spec.name]):
            known.pop()
        return tuple(known)

    def _moved(self, spec: TensorSpec) -> Matrix | None:
        """What a round moves a tensor by: the server's control variate."""
        if not (known := self._before[spec.name]):
            return None
        last, local = known[-1], self._recipe.plan.local
        rounds = sum(
            spec.part in self._recipe.parts_of_turn(t) for t in range(last.turn, self._turn)
        )
        rate = self._recipe.plan.server.learning_rate
        mean: Matrix = (self._received[spec.name] - last.received) / np.float32(rounds * rate)
        if last.shared is None:
            return mean
        return last.shared + np.float32(1 - (1 - local.scaffold) ** rounds) * (mean - last.shared)

    def _shift(self, spec: TensorSpec) -> Matrix:
        shared = self._shared[spec.name]
        if shared is None:
            return np.zeros(spec.shape, np.float32)
        return np.float32(HELD) * (shared - self._before[spec.name][-1].own)

    def remembered(self, update: Vector) -> Memory:
        """The memory after a training that moved the round's parts by ``update`` (d,)."""
        own: Tensors = self._layout.unflatten(update - self.shift)
        passed = {
            spec.name: (
                *self._before[spec.name][1 - REMEMBERED :],
                Passage(
                    turn=self._turn,
                    received=self._received[spec.name],
                    shared=self._shared[spec.name],
                    own=own[spec.name],
                ),
            )
            for spec in self._layout.specs
        }
        return {**self._memory, **passed}
