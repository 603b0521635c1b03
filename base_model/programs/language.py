"""Programs of decoders: loss and gradients of the counted tokens of texts, or each row's loss. (P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from base_model.decoder.nodes import Outside
from base_model.decoder.opened import mapped_decoder
from base_model.decoder.products import BLOCK, Stores
from base_model.decoder.sequence import HIDDEN, sequence_graph
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight
from base_model.decoder.stored import StoredShape
from base_model.programs.build import (
    Forms,
    Objective,
    adapted_graph,
    flat_codes,
    training_graph,
)
from base_model.programs.frozen import FrozenTensors, refer_to_weights
from base_model.programs.tape import Symbol, Tape
from base_model.programs.token_loss import (
    ELEMENT,
    TARGET,
    OutputLayer,
    token_loss,
    token_scores,
)
from base_model.weights_file import WEIGHTS
from protocol.errors import ArtefactError
from protocol.forms import PREFIX, SOFT_PROMPT
from protocol.peft_format import slots_of
from protocol.recipe import Recipe

TARGETS = {TARGET: (ELEMENT, ["rows", "tokens"])}
SCORES = "scores"  # (rows, 3)


def language_graph(
    shape: DecoderShape,
    weights: Stores,
    *,
    tensors: Mapping[str, int],
    trained: Iterable[str],
    forms: Forms,
    outside: Outside | None = None,
) -> onnx.ModelProto:
    """Loss and gradients of an adapter's tensors. Inputs: ids, mask, :data:`TARGET` and the tensors.

    Args:
        shape: what the decoder computes.
        weights: its tensors as a base stores them, by Hugging Face's names.
        tensors: dimensions of each tensor of the adapter.
        trained: those whose gradients are outputs.
        forms: what the tensors put into which slots.
        outside: has such of ``weights`` as need not be in the graph; without it all are.

    Raises ArtefactError for a shape that cannot be trained here.
    """
    verify_trainable(shape)

    def loss(tape: Tape, outputs: str) -> Objective:
        layer = output_layer(tape, shape, weights)
        scalar, slope = token_loss(tape, outputs, layer)
        return Objective(scalar=scalar, at=outputs, slope=slope)

    return training_graph(
        _hidden_states(shape, weights, outside, tensors, forms),
        tensors=tensors,
        trained=trained,
        forms=forms,
        loss=loss,
        targets=TARGETS,
    )


def scoring_graph(
    shape: DecoderShape,
    weights: Stores,
    *,
    tensors: Mapping[str, int],
    forms: Forms,
    outside: Outside | None = None,
) -> onnx.ModelProto:
    """What each row's counted tokens come to, under an adapter: :func:`token_scores` as ``scores``.

    Inputs and errors as of :func:`language_graph`.
    """
    verify_trainable(shape)
    return adapted_graph(
        _hidden_states(shape, weights, outside, tensors, forms),
        tensors=tensors,
        forms=forms,
        answer=lambda tape, hidden: token_scores(tape, hidden, output_layer(tape, shape, weights)),
        targets=TARGETS,
        output=SCORES,
    )


def language_graphs(
    base: Path, recipe: Recipe, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the recipe's adapter; of no name, rows' scores.

    Frozen tensors are read from ``base``. Raises ArtefactError as :func:`language_graph` does.
    """
    shape, weights = mapped_decoder(base)
    frozen = FrozenTensors(base / WEIGHTS)
    tensors = {spec.name: len(spec.shape) for spec in recipe.layout.specs}

    def forms(symbols: Mapping[str, Symbol]) -> dict[str, Symbol]:
        return slots_of(symbols, method=recipe.method, constants=recipe.constants)

    def graph(names: frozenset[str]) -> onnx.ModelProto:
        if not names:
            model = scoring_graph(shape, weights, tensors=tensors, forms=forms, outside=frozen)
        else:
            ordered = [spec.name for spec in recipe.layout.specs if spec.name in names]
            model = language_graph(
                shape, weights, tensors=tensors, trained=ordered, forms=forms, outside=frozen
            )
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]


def verify_trainable(shape: DecoderShape) -> None:
    """Raises ArtefactError for a shape that has no program."""
    if shape.logits_cap:
        raise ArtefactError(
            f"a {shape.family} cannot be trained here: its logits are capped",
            "use it without training, or another family",
        )


def _hidden_states(
    shape: DecoderShape,
    weights: Stores,
    outside: Outside | None,
    tensors: Iterable[str],
    forms: Forms,
) -> onnx.ModelProto:
    """The answering half, with what a prompt or a prefix needs where the tensors fill such a slot."""
    tape = Tape(onnx.GraphProto(), "")  # thrown away: only names are asked for
    filled = forms({name: Symbol(tape, name) for name in tensors})
    building = sequence_graph(shape, weights, prompt=SOFT_PROMPT in filled, prefix=PREFIX in filled)
    model = building.nodes.model(outside)
    assert model.graph.output[0].name == HIDDEN
    return model


def output_layer(tape: Tape, shape: StoredShape, weights: Stores) -> OutputLayer:
    """The matrix that gives logits, in the graph: the embeddings' own where they are tied."""
    weight, sizes = weights[f"{shape.head}.weight"], (shape.vocabulary, shape.hidden)
    vocabulary, width = sizes
    have = {item.name for item in tape.graph.initializer}
    if not isinstance(weight, CodedWeight):
        name = f"{shape.head}.weight"
        if name not in have:
            tape.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
        if f"{weight.dtype}" == "float16":
            name = tape.op("Cast", name, to=onnx.TensorProto.FLOAT)
        return OutputLayer(vocabulary=vocabulary, width=width, weight=name)
    codes, scales = f"{shape.head}.qweight", f"{shape.head}.scales"
    for name, value in ((codes, weight.codes), (scales, weight.scales)):
        if name not in have:
            tape.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    blocks = weight.scales.shape[1]
    codes, scales = flat_codes(
        tape.graph, codes, scales, rows=vocabulary, bits=weight.bits, width=blocks * BLOCK
    )
    return OutputLayer(
        vocabulary=vocabulary,
        width=width,
        codes=codes,
        scales=scales,
        bits=weight.bits,
        block=BLOCK,
    )
