"""A program: the answering graph, a loss, and the gradient of every trained tensor.

Nothing here needs torch. The forward half is the base's own graph, the backward half its derivative,
and frozen tensors are read from the base's ``weights.safetensors`` where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from base_model.graph_linears import sort_topologically
from base_model.programs.answering import drop_slots, infer_shapes, take_out_unfilled
from base_model.programs.derivatives import append_gradients
from base_model.programs.frozen import ROWS
from base_model.programs.tape import MICROSOFT, Symbol, Tape

OPSET = 21
IR_VERSION = 10
LOSS, GRADIENT = "loss", "gradient."
Symbols = Mapping[str, Symbol]
Targets = Mapping[
    str, tuple[int, Sequence[str | int]]
]  # inputs by name: ONNX element type and dimensions
NO_TARGETS: Targets = {}
Forms = Callable[[Symbols], Mapping[str, Symbol]]  # trained tensors -> slots of the answering graph


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss in a graph: the ``scalar``, and where its derivative begins.

    ``slope`` is its gradient by the tensor ``at``; without these it begins at the scalar itself.
    """

    scalar: str
    at: str = ""
    slope: str = ""


Loss = Callable[[Tape, str], Objective]  # (tape, output of the answering graph)


def training_graph(
    answering: onnx.ModelProto,
    *,
    tensors: Mapping[str, int],
    trained: Iterable[str],
    forms: Forms,
    loss: Loss,
    targets: Targets,
) -> onnx.ModelProto:
    """The graph of a program.

    Args:
        answering: the base's edge graph.
        tensors: dimensions of each tensor of the adapter; all are inputs, float32, of free sizes.
        trained: those whose gradients are outputs, ``gradient.NAME``.
        forms: what the tensors put into which slots.
        loss: of the answering graph's output and the targets.
        targets: further inputs by name: ONNX element type and dimensions.
    """
    model, tape = _adapted(answering, tensors, forms)
    graph = model.graph
    _add_inputs(graph, targets)
    objective = loss(tape, graph.output[0].name)
    sort_topologically(graph)
    gradients = append_gradients(
        graph,
        scalar=objective.at or objective.scalar,
        seed=objective.slope,
        wanted=trained,
        shapes=infer_shapes(model, {}),
        weights=partial(expanded_weights, Tape(graph, f"{GRADIENT}weight.")),
    )
    _name_outputs(
        graph,
        {LOSS: objective.scalar} | {f"{GRADIENT}{n}": g for n, g in gradients.items()},
        tensors,
    )
    sort_topologically(graph)
    del graph.value_info[:]
    return model


def adapted_graph(
    answering: onnx.ModelProto,
    *,
    tensors: Mapping[str, int],
    forms: Forms,
    answer: Callable[[Tape, str], str] | None = None,
    targets: Targets = NO_TARGETS,
    output: str = "",
) -> onnx.ModelProto:
    """The forward half alone: the answering graph with the tensors of an adapter as its inputs.

    ``answer`` computes from its output and ``targets`` what is given instead, (rows, figures) as ``output``.
    """
    model, tape = _adapted(answering, tensors, forms)
    graph = model.graph
    _add_inputs(graph, targets)
    if answer is not None:
        value = answer(tape, graph.output[0].name)
        del graph.output[:]
        graph.node.append(helper.make_node("Identity", [value], [output]))
        dims = [f"{output}.0", f"{output}.1"]
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, dims))
    sort_topologically(graph)
    del graph.value_info[:]
    return model


def _add_inputs(graph: onnx.GraphProto, targets: Targets) -> None:
    graph.input.extend(
        helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in targets.items()
    )


def _adapted(
    answering: onnx.ModelProto, tensors: Mapping[str, int], forms: Forms
) -> tuple[onnx.ModelProto, Tape]:
    """A copy whose slots are computed from the tensors, which become inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(answering)
    graph = model.graph
    tape, nodes = Tape(graph, "forward."), list(graph.node)
    filled = forms({name: Symbol(tape, name) for name in tensors})
    take_out_unfilled(graph, set(filled))
    _fill_slots(nodes, filled)
    drop_slots(graph, set(filled))
    graph.input.extend(
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, [f"{name}.{axis}" for axis in range(rank)]
        )
        for name, rank in sorted(tensors.items())
    )
    model.opset_import[0].version, model.ir_version = OPSET, IR_VERSION
    return model, tape


def _fill_slots(nodes: Iterable[onnx.NodeProto], filled: Mapping[str, Symbol]) -> None:
    """What reads a slot reads what is computed for it. A trained tensor may have the slot's name."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in filled:
                node.input[index] = filled[name].name


def _name_outputs(
    graph: onnx.GraphProto, outputs: Mapping[str, str], tensors: Mapping[str, int]
) -> None:
    """Exactly these, by name."""
    del graph.output[:]
    for name, source in outputs.items():
        graph.node.append(helper.make_node("Identity", [source], [name]))
        tensor = name.removeprefix(GRADIENT)
        dims = [f"{tensor}.{axis}" for axis in range(tensors.get(tensor, 0))]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))


def expanded_weights(tape: Tape, node: onnx.NodeProto, gradient: str) -> str:
    """Expand a node's codes [N, K] where its gradient needs them: all rows, gathered from the same bytes.

    GatherBlockQuantized takes half the time of DequantizeLinear, and the codes as MatMulNBits has them. How
    many rows there are is asked of the gradient: so weights are expanded one at a time, each in its turn.
    """
    settings = {item.name: item.i for item in node.attribute}
    n, bits, block = settings["N"], settings["bits"], settings["block_size"]
    blocks = -(-settings["K"] // block)
    codes, scales = flat_codes(
        tape.graph, *node.input[1:3], rows=n, bits=bits, width=blocks * block
    )
    count = tape.op("Shape", gradient, start=-1)
    rows = tape.op("Slice", tape.constant(np.arange(n), np.int32), tape.axes(0), count)
    expanded = tape.op(
        "GatherBlockQuantized",
        *(codes, rows, scales),
        domain=MICROSOFT,
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=1,
    )
    if blocks * block == settings["K"]:
        return expanded
    return tape.op("Slice", expanded, tape.axes(0), tape.axes(settings["K"]), tape.axes(1))


def flat_codes(
    graph: onnx.GraphProto, codes: str, scales: str, *, rows: int, bits: int, width: int
) -> tuple[str, str]:
    """Names of the same bytes as matrices: codes (rows, width * bits / 8) uint8, scales (rows, blocks)."""
    have = {item.name: item for item in graph.initializer}
    for source, columns in (
        (codes, width * bits // 8),
        (scales, math.prod(have[scales].dims) // rows),
    ):
        if f"{source}{ROWS}" not in have:
            matrix = graph.initializer.add()
            matrix.CopyFrom(have[source])
            matrix.name = f"{source}{ROWS}"
            del matrix.dims[:]
            matrix.dims.extend([rows, columns])
    return f"{codes}{ROWS}", f"{scales}{ROWS}"
