"""Programs of bases with a head: which slots an adapter fills, and the task's loss. (P-2, P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from base_model.frozen_linears import stored_linears
from base_model.programs.answering import ask_for_types
from base_model.programs.build import Objective, adapted_graph, training_graph
from base_model.programs.float_weights import refer_to_matrices
from base_model.programs.frozen import refer_to_weights
from base_model.programs.linears import LinearsOfProgram
from base_model.programs.tape import Symbol
from base_model.tasks import OUTPUT_TASKS
from base_model.weights_file import WEIGHTS
from protocol.head_tensors import whole_head
from protocol.peft_format import slots_of
from protocol.recipe import Recipe


def classifier_graphs(
    base: Path, recipe: Recipe, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the recipe's adapter; of no name, logits.

    Frozen tensors are read from ``base``. Inputs: what the answering graph reads of rows, of pairs with
    token types, every tensor of the layout and, to train, the task's targets (rows,).
    Outputs: ``loss``, the sum over rows of the task's, and ``gradient.NAME`` of it for the names;
    or the graph's own ``logits``.
    """
    layout, manifest, task = recipe.layout, recipe.manifest, OUTPUT_TASKS[recipe.plan.task.kind]
    answering = onnx.load(str(base / manifest.graph.file))
    refer_to_matrices(answering, manifest.tensors)
    if recipe.typed:
        ask_for_types(answering.graph)
    tensors = {spec.name: len(spec.shape) for spec in layout.specs}
    stored = stored_linears(base, manifest)

    def forms(symbols: Mapping[str, Symbol]) -> dict[str, Symbol]:
        method, constants = recipe.method, recipe.constants
        linears = LinearsOfProgram(stored, manifest, next(iter(symbols.values())).tape)
        return slots_of(whole_head(symbols), method=method, constants=constants, linears=linears)

    def graph(names: frozenset[str]) -> onnx.ModelProto:
        if not names:
            model = adapted_graph(answering, tensors=tensors, forms=forms)
        else:
            model = training_graph(
                answering,
                tensors=tensors,
                trained=[spec.name for spec in layout.specs if spec.name in names],
                forms=forms,
                loss=lambda tape, outputs: Objective(scalar=task.loss(tape, outputs)),
                targets={task.TARGET: (task.ELEMENT, ["batch"])},
            )
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]
