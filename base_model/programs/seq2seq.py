"""Programs of encoders with a decoder: loss and gradients of counted tokens, or each row's loss. (P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper

from base_model.decoder.products import Stores
from base_model.graph_linears import sort_topologically
from base_model.programs.build import Forms, Objective, adapted_graph, training_graph
from base_model.programs.language import output_layer
from base_model.programs.row_loss import ROW_LOSS, row_loss
from base_model.programs.tape import Tape
from base_model.programs.token_loss import ELEMENT, TARGET, token_loss
from base_model.seq2seq.graph import HIDDEN, TARGETS, whole_graph
from base_model.seq2seq.shape import Seq2SeqShape


def seq2seq_graph(
    shape: Seq2SeqShape,
    weights: Stores,
    *,
    tensors: Mapping[str, int],
    trained: Iterable[str],
    forms: Forms,
) -> onnx.ModelProto:
    """Loss and gradients of an adapter's tensors. Inputs: ids, mask, the tensors and :data:`TARGET`.

    The loss is summed over targets that count, each from the true tokens before it.

    Args:
        shape: what encoder and decoder compute.
        weights: their tensors as a base stores them, by Hugging Face's names.
        tensors: dimensions of each tensor of the adapter.
        trained: those whose gradients are outputs.
        forms: what the tensors put into which slots.
    """
    answering = whole_graph(shape, weights).nodes.model()
    assert answering.graph.output[0].name == HIDDEN
    assert TARGETS == TARGET

    def loss(tape: Tape, outputs: str) -> Objective:
        layer = output_layer(tape, shape, weights)
        scalar, slope = token_loss(tape, outputs, layer)
        return Objective(scalar=scalar, at=outputs, slope=slope)

    return training_graph(
        answering,
        tensors=tensors,
        trained=trained,
        forms=forms,
        loss=loss,
        targets={TARGET: (ELEMENT, ["rows", "tokens"])},
    )


def seq2seq_row_graph(
    shape: Seq2SeqShape, weights: Stores, *, tensors: Mapping[str, int], forms: Forms
) -> onnx.ModelProto:
    """Each row's loss and counted tokens, :data:`ROW_LOSS`, under an adapter. Inputs as above."""
    answering = whole_graph(shape, weights).nodes.model()
    model = adapted_graph(answering, tensors=tensors, forms=forms)
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info(TARGET, ELEMENT, ["rows", "tokens"]))
    tape = Tape(graph, "loss.")
    losses = row_loss(tape, HIDDEN, output_layer(tape, shape, weights))
    graph.node.append(helper.make_node("Identity", [losses], [ROW_LOSS]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(ROW_LOSS, TensorProto.FLOAT, ["rows", 2]))
    sort_topologically(graph)
    return model
