"""Programs of decoders: loss and gradients of the counted tokens of texts, or each row's loss. (P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from base_model.decoder.products import BLOCK, Stores
from base_model.decoder.sequence import HIDDEN, sequence_graph
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight
from base_model.decoder.stored import StoredShape
from base_model.programs.build import Forms, Objective, flat_codes, training_graph
from base_model.programs.tape import Tape
from base_model.programs.token_loss import ELEMENT, TARGET, OutputLayer, token_loss
from protocol.errors import ArtefactError


def language_graph(
    shape: DecoderShape,
    weights: Stores,
    *,
    tensors: Mapping[str, int],
    trained: Iterable[str],
    forms: Forms,
) -> onnx.ModelProto:
    """Loss and gradients of an adapter's tensors. Inputs: ids, mask, :data:`TARGET` and the tensors.

    Args:
        shape: what the decoder computes.
        weights: its tensors as a base stores them, by Hugging Face's names.
        tensors: dimensions of each tensor of the adapter.
        trained: those whose gradients are outputs.
        forms: what the tensors put into which slots.

    Raises ArtefactError for a shape that cannot be trained here.
    """
    if shape.fused or shape.logits_cap:
        raise ArtefactError(
            f"a {shape.family} cannot be trained here: its projections are one, or its logits capped",
            "use it without training, or another family",
        )
    answering = sequence_graph(shape, weights).nodes.model()

    def loss(tape: Tape, outputs: str) -> Objective:
        layer = output_layer(tape, shape, weights)
        scalar, slope = token_loss(tape, outputs, layer)
        return Objective(scalar=scalar, at=outputs, slope=slope)

    assert answering.graph.output[0].name == HIDDEN
    return training_graph(
        answering,
        tensors=tensors,
        trained=trained,
        forms=forms,
        loss=loss,
        targets={TARGET: (ELEMENT, ["rows", "tokens"])},
    )


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
