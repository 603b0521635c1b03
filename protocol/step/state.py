"""The global model of a run, and how a mean update moves it. (P-4.7)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.layout import Layout, Tensors, Vector
from protocol.manifests import AnyManifest
from protocol.plan import Plan
from protocol.recipe import Recipe, initial_adapter
from protocol.step.optimizers import Moments, step


@dataclass(frozen=True, kw_only=True)
class State:
    """The global model of a run after a round: the adapter, moments over its layout."""

    adapter: Tensors
    moments: Moments


def initial_state(plan: Plan, manifest: AnyManifest) -> State:
    """Round 0. (P-2.3)"""
    recipe = Recipe(plan=plan, manifest=manifest)
    tensors = initial_adapter(recipe.layout, seed=plan.seed)
    return State(adapter=tensors, moments=Moments.zeros(recipe.layout.size))


def apply_mean(state: State, mean: Vector, *, recipe: Recipe, number: int) -> State:
    """The state after round ``number``, whose clients' mean update is ``mean``, of the round's layout.

    The server optimiser's step moves the coordinates of the round's parts; what follows from the adapter
    as a whole is the method's.
    """
    plan, layout = recipe.plan, recipe.layout
    index = _coordinates(layout, recipe.round_layout(number))
    mine = Moments(first=state.moments.first[index], second=state.moments.second[index])
    moved, after = step(plan.server, mean, mine)
    vector, first, second = (
        layout.flatten(state.adapter),
        state.moments.first.copy(),
        state.moments.second.copy(),
    )
    vector[index] += moved
    first[index], second[index] = after.first, after.second
    adapter = layout.unflatten(vector)
    return State(
        adapter=recipe.method.settled(adapter, plan.adapter, number, plan.rounds),
        moments=Moments(first=first, second=second),
    )


def _coordinates(layout: Layout, part: Layout) -> npt.NDArray[np.int64]:
    """Where the coordinates of ``part`` lie in ``layout``."""
    where = layout.slices
    ranges = [np.arange(where[s.name].start, where[s.name].stop) for s in part.specs]
    return np.concatenate(ranges).astype(np.int64)
