"""Programs of bases that draw: loss and gradients of the noise on images, or each row's error. (P-11)"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import onnx

from base_model.programs.build import Objective, Targets, adapted_graph, training_graph
from base_model.programs.frozen import refer_to_weights
from base_model.programs.language import SCORES
from base_model.programs.tape import Symbol, Tape
from base_model.tasks import denoising
from base_model.weights_file import WEIGHTS
from protocol.denoiser_manifest import DenoiserManifest
from protocol.peft_format import slots_of
from protocol.recipe import Recipe


def denoising_graphs(
    base: Path, recipe: Recipe, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the recipe's adapter; of no name, rows' errors.

    Frozen tensors are read from ``base``. Inputs: images under noise, steps, classes, every tensor of the
    layout, and the noise that is to be found. Outputs: ``loss``, the sum over rows of the mean square, and
    ``gradient.NAME`` of it for the names; or ``scores`` (rows, 1), each row's mean square.
    """
    shape, targets = _target(recipe)
    answering = onnx.load(str(base / recipe.manifest.graph.file))
    tensors = {spec.name: len(spec.shape) for spec in recipe.layout.specs}

    def forms(symbols: Mapping[str, Symbol]) -> dict[str, Symbol]:
        return slots_of(symbols, method=recipe.method, constants=recipe.constants)

    def graph(names: frozenset[str]) -> onnx.ModelProto:
        if not names:
            model = adapted_graph(
                answering,
                tensors=tensors,
                forms=forms,
                answer=denoising.errors,
                targets=targets,
                output=SCORES,
            )
        else:
            model = training_graph(
                answering,
                tensors=tensors,
                trained=[spec.name for spec in recipe.layout.specs if spec.name in names],
                forms=forms,
                loss=partial(_objective, values=math.prod(shape)),
                targets=targets,
            )
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]


def _target(recipe: Recipe) -> tuple[tuple[int, ...], Targets]:
    """The shape of an image, and the noise on some as an input."""
    manifest = recipe.manifest
    assert isinstance(manifest, DenoiserManifest)
    return manifest.shape, {denoising.TARGET: (denoising.ELEMENT, ["rows", *manifest.shape])}


def _objective(tape: Tape, noise: str, *, values: int) -> Objective:
    return Objective(scalar=denoising.loss(tape, noise, values=values))
