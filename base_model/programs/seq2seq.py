"""Programs of encoders with a decoder: loss and gradients of counted tokens, or each row's scores. (P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from base_model.decoder.opened import opened_tensors
from base_model.decoder.products import Stores
from base_model.programs.build import Forms, Objective, adapted_graph, training_graph
from base_model.programs.frozen import refer_to_weights
from base_model.programs.language import SCORES, TARGETS, output_layer
from base_model.programs.tape import Symbol, Tape
from base_model.programs.token_loss import token_loss, token_scores
from base_model.seq2seq.families import shape_of
from base_model.seq2seq.graph import HIDDEN, whole_graph
from base_model.seq2seq.shape import Seq2SeqShape
from base_model.source_files import read_object
from base_model.weights_file import WEIGHTS
from protocol.manifest import CONFIG
from protocol.peft_format import slots_of
from protocol.recipe import Recipe


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

    def loss(tape: Tape, outputs: str) -> Objective:
        layer = output_layer(tape, shape, weights)
        scalar, slope = token_loss(tape, outputs, layer)
        return Objective(scalar=scalar, at=outputs, slope=slope)

    return training_graph(
        _hidden_states(shape, weights),
        tensors=tensors,
        trained=trained,
        forms=forms,
        loss=loss,
        targets=TARGETS,
    )


def seq2seq_scoring_graph(
    shape: Seq2SeqShape, weights: Stores, *, tensors: Mapping[str, int], forms: Forms
) -> onnx.ModelProto:
    """What each row's counted targets come to, under an adapter: :func:`token_scores` as ``scores``.

    Inputs as of :func:`seq2seq_graph`.
    """
    return adapted_graph(
        _hidden_states(shape, weights),
        tensors=tensors,
        forms=forms,
        answer=lambda tape, hidden: token_scores(tape, hidden, output_layer(tape, shape, weights)),
        targets=TARGETS,
        output=SCORES,
    )


def seq2seq_graphs(
    base: Path, recipe: Recipe, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the recipe's adapter; of no name, rows' scores.

    Frozen tensors are read from ``base``. Raises ArtefactError for a config that is not supported.
    """
    shape = shape_of(read_object(base / CONFIG))
    weights = opened_tensors(base, shape)
    tensors = {spec.name: len(spec.shape) for spec in recipe.layout.specs}

    def forms(symbols: Mapping[str, Symbol]) -> dict[str, Symbol]:
        return slots_of(symbols, method=recipe.method, constants=recipe.constants)

    def graph(names: frozenset[str]) -> onnx.ModelProto:
        if not names:
            model = seq2seq_scoring_graph(shape, weights, tensors=tensors, forms=forms)
        else:
            ordered = [spec.name for spec in recipe.layout.specs if spec.name in names]
            model = seq2seq_graph(shape, weights, tensors=tensors, trained=ordered, forms=forms)
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]


def _hidden_states(shape: Seq2SeqShape, weights: Stores) -> onnx.ModelProto:
    """The graph reads :data:`TARGET`, which is no input of it yet."""
    model = whole_graph(shape, weights).nodes.model()
    assert model.graph.output[0].name == HIDDEN
    return model
