"""Small networks that a client trains in the place of tensors, which are what they give. (P-4.12)

A network is of one client's training in one round. With f its output, t its values and t0 those that are
drawn, a tensor is ``received + f(t) - f(t0)``: the first step begins at the received one. Products are
numpy's own sums, not BLAS's: no thread count changes a bit of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.encoding import seed_from
from protocol.layout import Layout, Tensors, TensorSpec, Vector
from protocol.recipe import Recipe

Matrix = npt.NDArray[np.float32]


class Network:
    """``f = tanh(E W1 + b1) W2 + b2``, (tokens, columns), of the tensors of ``Rows.encoder``."""

    def __init__(self, values: Tensors) -> None:
        """``values`` by the last components of their names; they are read anew at every call."""
        self._values = values
        self._first = self._output()

    def moved(self) -> Matrix:
        """f less what it was at first, (tokens, columns)."""
        return self._output() - self._first

    def _output(self) -> Matrix:
        values = self._values
        features: Matrix = np.einsum("ti,iw->tw", values["inputs"], values["inner"])
        features += values["inner_bias"]
        self._features = np.tanh(features, out=features)
        output: Matrix = np.einsum("tw,wo->to", self._features, values["outer"])
        output += values["outer_bias"]
        return output

    def pulled_back(self, gradient: Matrix) -> Tensors:
        """Gradients by the values' names, of one of f (tokens, columns) where it was computed last."""
        values, features = self._values, self._features
        before = np.einsum("to,wo->tw", gradient, values["outer"]) * (1 - features * features)
        return {
            "inputs": np.einsum("tw,iw->ti", before, values["inner"]),
            "inner": np.einsum("ti,tw->iw", values["inputs"], before),
            "inner_bias": before.sum(axis=0),
            "outer": np.einsum("tw,to->wo", features, gradient),
            "outer_bias": gradient.sum(axis=0),
        }


class Encoders:
    """The networks of an adapter's tensors, and what has none as it is, in one flat vector.

    ``layout`` is that vector's; ``values`` (n,) float32 are moved by whoever trains.
    """

    def __init__(self, adapter: Layout, recipe: Recipe, start: Vector, seed: int) -> None:
        """``start`` (d,): what was received, of the layout ``adapter``; ``seed``: of the training."""
        self._adapter, self._start = adapter, start
        inner = {spec.name: recipe.encoder(spec) for spec in adapter.specs}
        plain = [spec for spec in adapter.specs if not inner[spec.name]]
        drawn = [each for specs in inner.values() for each in specs]
        self._plain = Layout(tuple(plain))
        self.layout = Layout(tuple(sorted([*plain, *drawn], key=lambda spec: spec.name)))
        begun = adapter.views(start)
        self.values = self.layout.flatten(
            {spec.name: begun[spec.name] for spec in plain}
            | {
                spec.name: spec.law.draw(seed_from("encoder", seed, spec.name), spec.shape)
                for spec in drawn
            }
        )
        self._networks = {
            name: Network(_of(self.layout.views(self.values), specs))
            for name, specs in inner.items()
            if specs
        }

    def pulled_back(self, gradient: Vector) -> Vector:
        """(n,) of one (d,) of the tensors, where they were computed last."""
        views = self._adapter.views(gradient)
        tensors = {spec.name: views[spec.name] for spec in self._plain.specs}
        for name, network in self._networks.items():
            for end, value in network.pulled_back(views[name]).items():
                tensors[f"{name}.{end}"] = value
        return self.layout.flatten(tensors)

    def put(self, weights: Vector) -> None:
        """Write the tensors that ``values`` give into ``weights`` (d,)."""
        into, begun = self._adapter.views(weights), self._adapter.views(self._start)
        own = self.layout.views(self.values)
        for spec in self._plain.specs:
            into[spec.name][...] = own[spec.name]
        for name, network in self._networks.items():
            into[name][...] = begun[name] + network.moved()


def _of(views: Tensors, specs: tuple[TensorSpec, ...]) -> Tensors:
    return {spec.name.rpartition(".")[2]: views[spec.name] for spec in specs}
