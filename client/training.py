"""Local training, evaluation and prediction of one adapter: deterministic by seed, on any engine.

The trained tensors are views of one flat vector, which the optimiser moves; the engine is handed the
views. Rounding apart, the result is the same whichever engine computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from client.batches import by_length, micro_batches, training_batches
from client.encoders import Encoders
from client.engine.interface import Engine, Values
from client.examples import Examples
from client.optimizers import ByRank, Optimizer, clip, optimizer_for
from client.ranks import Ranks
from client.terms import Terms
from protocol.encoding import seed_from
from protocol.errors import UpdateError
from protocol.layout import Tensors, Vector
from protocol.plan_sections import Local
from protocol.recipe import Recipe
from protocol.rules import Parts

EVALUATION_BATCH = 64
MOST_TOKENS = 4096  # padded, of one call of the engine: what bounds the memory of a step
MOST_OF_TEXTS = 512  # the same where every token has a loss, on larger bases


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a training run reports.

    ``examples``: rows trained on, every epoch counted. ``loss_sum``: those rows times the last
    epoch's mean loss (without the terms of ``client.terms``) of a row, or of a token where tokens
    count, so that ``loss_sum / examples`` is a mean loss. ``seconds``: wall time. ``steps``: optimiser steps.
    ``tensors``: the adapter after them.
    """

    examples: int
    loss_sum: float
    seconds: float
    steps: int
    tensors: Tensors


def train(
    engine: Engine,
    start: Values,
    rows: Examples,
    *,
    local: Local,
    parts: Parts,
    seed: int,
    epochs: float | None = None,
    recipe: Recipe | None = None,
    round_0: Values | None = None,
    shift: Vector | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Callable[[int], None] | None = None,
) -> Trained:
    """Train the tensors of ``parts`` from ``start``, which is left as it is.

    ``epochs`` may be fractional and overrides ``local.epochs``; ``local.max_steps`` bounds both. ``recipe``
    says what steps hang on beside ``local``; without one the tensors are a device's slots, of no plan.
    ``round_0``: as :class:`client.terms.Terms` has it. ``shift`` (d,), of the layout of ``parts``, is
    added to the weights in equal shares behind every step.
    Raises ArtefactError when ``start`` is no adapter of the engine's, UpdateError when the loss is no
    longer finite.
    """
    started = clock()
    with np.errstate(over="ignore"):
        step = _step(engine, start, _Settings(local, parts, seed, recipe, round_0))
    batches = partial(
        training_batches,
        rows.lengths,
        batch_size=local.batch_size,
        seed=seed,
        epochs=float(local.epochs if epochs is None else epochs),
    )
    share = None
    if shift is not None:
        count = sum(1 for _ in batches())
        share = shift / np.float32(min(count, local.max_steps or count))
    counted = rows.counted
    steps = examples = current = seen = 0
    total = 0.0
    with np.errstate(all="ignore"):  # one that diverges is seen by its loss
        for epoch, index in batches():
            if epoch != current:  # one that diverged goes on: how long it takes would tell (P-4.4)
                current, seen, total = epoch, 0, 0.0
            total += step(rows.drawn(seed_from("draws", seed, steps)), index)
            if share is not None:
                step.weights += share
            seen += int(counted[index].sum())
            examples, steps = examples + len(index), steps + 1
            if on_step is not None:
                on_step(steps)
            if steps == local.max_steps:
                break
    return Trained(
        examples=examples,
        loss_sum=_mean(total, seen) * examples,
        seconds=clock() - started,
        steps=steps,
        tensors={name: value.copy() for name, value in step.tensors.items()},
    )


def _mean(total: float, counted: int) -> float:
    value = total / max(counted, 1)
    if not math.isfinite(value):
        raise UpdateError(
            "this client's training diverged: the loss is not finite",
            "lower local.learning_rate and local.head_learning_rate",
        )
    return value


@dataclass(frozen=True, slots=True)
class _Settings:
    """What steps hang on, as :func:`train` has them."""

    local: Local
    parts: Parts
    seed: int
    recipe: Recipe | None
    round_0: Values | None


class _Step:
    """One optimiser step; returns the batch's summed loss."""

    def __init__(self, engine: Engine, start: Values, settings: _Settings) -> None:
        self._engine, self._local, self._parts = engine, settings.local, settings.parts
        self._layout = engine.layout.only(settings.parts)
        engine.layout.flatten(start)  # checks names and shapes
        trained = {spec.name: start[spec.name] for spec in self._layout.specs}
        self.weights = self._layout.flatten(trained)
        self._terms = Terms(
            self._layout, self._local, self.weights.copy(), settings.recipe, settings.round_0
        )
        self.tensors = {
            name: np.ascontiguousarray(value, np.float32) for name, value in start.items()
        } | self._layout.views(self.weights)

    @cached_property
    def _optimizer(self) -> Optimizer:
        return optimizer_for(self._layout, self._local)

    def __call__(self, rows: Examples, index: npt.NDArray[np.int64]) -> float:
        gradient, total = self._gradient(self.tensors, rows, index)
        self._terms.add(gradient, self.weights)
        clip(gradient, most=self._local.clip_norm)
        self._move(gradient)
        return total

    def _move(self, gradient: Vector) -> None:
        self._optimizer.step(self.weights, gradient)

    def _gradient(
        self, tensors: Values, rows: Examples, index: npt.NDArray[np.int64]
    ) -> tuple[Vector, float]:
        """The mean gradient at ``tensors``, and the summed loss."""
        gradient, total = np.zeros_like(self.weights), 0.0
        most = MOST_OF_TEXTS if rows.by_token else MOST_TOKENS
        most = min(most, self._engine.most or most)
        for piece in micro_batches(rows.lengths[index], index, most=most, rows=rows.together):
            loss, parts = self._engine.gradients(tensors, rows.batch(piece), self._parts)
            gradient += self._layout.flatten(parts)
            total += loss
        gradient /= np.float32(rows.counted[index].sum())
        return gradient, total


class _FirstRanks(_Step):
    """The same of an adapter's first ranks, as many as are drawn for a step: as if there were no others."""

    def __init__(
        self,
        engine: Engine,
        start: Values,
        settings: _Settings,
        recipe: Recipe,
        drawn: Iterator[int],
    ) -> None:
        super().__init__(engine, start, settings)
        self._drawn, self._ranks = drawn, Ranks(engine.layout, recipe)
        self._by_rank = ByRank(self._ranks.of(self._layout), self._layout, self._local)

    def __call__(self, rows: Examples, index: npt.NDArray[np.int64]) -> float:
        used = next(self._drawn)
        tensors = self._ranks.first(self.tensors, used)
        gradient, total = self._gradient(tensors, rows, index)
        cut = self._layout.flatten({spec.name: tensors[spec.name] for spec in self._layout.specs})
        self._terms.add(gradient, cut)
        gradient[self._by_rank.left_out(used)] = 0  # of a pull: the centre is elsewhere
        clip(gradient, most=self._local.clip_norm)
        self._by_rank.step(self.weights, gradient, used)
        return total


class _Reparametrised(_Step):
    """The same, by the weights of networks that give tensors; terms and clipping are of what is sent."""

    def __init__(self, engine: Engine, start: Values, settings: _Settings, recipe: Recipe) -> None:
        super().__init__(engine, start, settings)
        self._encoders = Encoders(self._layout, recipe, self.weights.copy(), settings.seed)

    @cached_property
    def _optimizer(self) -> Optimizer:
        return optimizer_for(self._encoders.layout, self._local)

    def _move(self, gradient: Vector) -> None:
        encoders = self._encoders
        self._optimizer.step(encoders.values, encoders.pulled_back(gradient))
        encoders.put(self.weights)


def _step(engine: Engine, start: Values, settings: _Settings) -> _Step:
    recipe = settings.recipe
    if recipe is not None:
        generator = np.random.default_rng(seed_from("ranks", settings.seed))
        drawn = recipe.method.ranks_used(recipe.plan.adapter, generator)
        if drawn is not None:
            return _FirstRanks(engine, start, settings, recipe, drawn)
        if any(map(recipe.encoder, engine.layout.only(settings.parts).specs)):
            return _Reparametrised(engine, start, settings, recipe)
    return _Step(engine, start, settings)


def predict(
    engine: Engine, tensors: Values, rows: Examples, *, batch_size: int = EVALUATION_BATCH
) -> npt.NDArray[np.float32]:
    """The engine's outputs (rows, outputs) float32, in the order of ``rows``.

    Of rows of which something is drawn, those of :attr:`client.examples.Examples.measured`.
    """
    rows = rows.measured
    most = MOST_OF_TEXTS if rows.by_token else MOST_TOKENS * batch_size
    most = min(most, engine.most or most)
    pieces = [
        piece
        for index in by_length(rows.lengths, batch_size=batch_size)
        for piece in micro_batches(rows.lengths[index], index, most=most, rows=rows.together)
    ]
    answers = [engine.outputs(tensors, rows.batch(index)) for index in pieces]
    outputs = np.zeros((len(rows), answers[0].shape[1] if answers else 0), np.float32)
    for index, answer in zip(pieces, answers, strict=True):
        outputs[index] = answer
    return outputs
