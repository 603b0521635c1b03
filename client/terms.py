"""Terms of the loss that hang on the weights alone: FedProx, L2-SP, orthogonal factors. (P-4.3)

Their gradients are added to a step's before it is clipped. Products are numpy's own sums, not BLAS's: no
thread count changes a bit of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.engine.interface import Values
from protocol.layout import Layout, Vector
from protocol.methods.base import rank_axis
from protocol.plan_sections import Local
from protocol.recipe import Recipe

Matrix = npt.NDArray[np.float32]


class Terms:
    """The terms that a plan has, on vectors of one layout."""

    def __init__(
        self,
        layout: Layout,
        local: Local,
        start: Vector,
        recipe: Recipe | None,
        round_0: Values | None = None,
    ) -> None:
        """``start`` (d,): what the round began with, of ``layout``, which is of the recipe's tensors.

        ``round_0``: what L2-SP pulls to; without one what the plan's seed gives. Raises ValueError without a
        recipe, where a term needs what only a plan on a base says, and for a plan with a start without
        ``round_0``.
        """
        self._layout, self._orthogonality = layout, np.float32(local.orthogonality)
        self._pulls = [(start, local.proximal_mu)]
        self._ranks: dict[str, int] = {}
        if not (local.l2_sp or local.orthogonality):
            return
        if recipe is None:
            raise ValueError("`l2_sp` and `orthogonality` are of a plan on a base")
        if local.l2_sp:
            if round_0 is None and recipe.plan.start is not None:
                raise ValueError("round 0 of a run that goes on does not follow from its seed")
            initial = recipe.start() if round_0 is None else round_0
            centre = layout.flatten({spec.name: initial[spec.name] for spec in layout.specs})
            self._pulls.append((centre, local.l2_sp))
        if local.orthogonality:
            axes = {spec.name: rank_axis(recipe.dimensions(spec)) for spec in layout.specs}
            self._ranks = {name: axis for name, axis in axes.items() if axis is not None}

    def add(self, gradient: Vector, weights: Vector) -> None:
        """Add the terms' gradients at ``weights`` (d,) to ``gradient`` (d,), in place."""
        for centre, strength in self._pulls:
            add_pull(gradient, weights, centre, strength=strength)
        if not self._ranks:
            return
        moved, factors = self._layout.views(gradient), self._layout.views(weights)
        for name, axis in self._ranks.items():
            along = np.moveaxis(factors[name], axis, 0)
            moved[name] += np.moveaxis(self._orthogonality * overlap(along), 0, axis)


def add_pull(gradient: Vector, weights: Vector, centre: Vector, *, strength: float) -> None:
    """Add the gradient of ``strength / 2 * |w - centre|^2``, in place.

    FedProx (arXiv 1812.06127) where the centre is the round's start, L2-SP (arXiv 1802.01483) where it is
    what training began with.
    """
    if strength > 0:
        gradient += np.float32(strength) * (weights - centre)


def overlap(rows: Matrix) -> Matrix:
    """(r, n): the gradient of half the sum, over pairs of ``rows`` (r, n), of their inner product squared.

    Each pair counts once; lengths are left alone.
    """
    rows = np.ascontiguousarray(rows)
    products = np.einsum("ik,jk->ij", rows, rows)
    np.fill_diagonal(products, 0)
    gradient: Matrix = np.einsum("ij,jk->ik", products, rows)
    return gradient
