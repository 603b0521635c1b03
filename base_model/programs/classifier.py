"""Programs of text classifiers: which slots an adapter fills, and the loss. (P-2, P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from base_model.programs.build import adapted_graph, training_graph, unsigned_weights
from base_model.programs.document import LABELS
from base_model.programs.frozen import refer_to_weights
from base_model.programs.tape import Symbol, Tape
from base_model.verify import WEIGHTS
from protocol.peft_format import slots_of
from protocol.recipe import Recipe


def classifier_graphs(
    base: Path, recipe: Recipe, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the recipe's adapter; of no name, logits.

    Frozen tensors are read from ``base``. Inputs: ``input_ids`` and ``attention_mask`` (rows, tokens) and, to
    train, ``labels`` (rows,), all int64, and every tensor of the layout. Outputs: ``loss``, the sum of the
    rows' cross-entropy in nats, and ``gradient.NAME`` of it for the names; or the graph's own ``logits``.
    """
    layout, manifest = recipe.layout, recipe.manifest
    answering = onnx.load(str(base / manifest.graph.file))
    tensors = {spec.name: len(spec.shape) for spec in layout.specs}

    def forms(symbols: Mapping[str, Symbol]) -> dict[str, Symbol]:
        return slots_of(symbols, method=recipe.method, constants=recipe.constants)

    def graph(names: frozenset[str]) -> onnx.ModelProto:
        if not names:
            model = adapted_graph(answering, tensors=tensors, forms=forms)
        else:
            model = training_graph(
                answering,
                tensors=tensors,
                trained=[spec.name for spec in layout.specs if spec.name in names],
                forms=forms,
                loss=cross_entropy,
                targets={LABELS: (TensorProto.INT64, ["batch"])},
                weights=unsigned_weights(manifest.bits, manifest.block),
            )
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]


def cross_entropy(tape: Tape, logits: str) -> str:
    """The sum over rows of -log softmax(logits)[label]."""
    chosen = tape.op(
        "GatherElements",
        tape.op("LogSoftmax", logits, axis=-1),
        tape.op("Unsqueeze", LABELS, tape.axes(1)),
        axis=1,
    )
    return tape.op("Neg", tape.op("ReduceSum", chosen, keepdims=0))
