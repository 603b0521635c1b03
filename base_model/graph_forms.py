"""Slots of an exported graph: low-rank branches, bottlenecks, shifts, scales, as optional inputs. (P-1.11)

Shifts, and scales of norms, act on vectors of one number per feature: no pass over the activations. A
linear's scale is such a pass, 2 to 3 % of an answer also where nobody fills it: bases have it on request
(docs/adr/0044, 0046).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from base_model.graph_linears import module_of
from protocol.forms import BOTTLENECK, DOWN, SCALE, SHIFT, UP
from protocol.manifest import Linear


def add_slot(
    graph: onnx.GraphProto, name: str, shape: list[Any], default: npt.NDArray[np.float32]
) -> None:
    """An optional float32 input: an initializer that a caller may override. A shared module has one."""
    if any(tensor.name == name for tensor in graph.initializer):
        return
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.initializer.append(numpy_helper.from_array(default, name))


def add_linear_slots(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    linear: Linear,
    *,
    shifted: bool,
    scaled: bool,
) -> str:
    """What an adapter may do to ``linear`` itself, whose product ``node`` is; the name of its output."""
    if scaled and linear.narrows:
        node.input[0] = _scaled(graph, linear, linear.in_features, node.input[0])
    source, last = node.input[0], node
    if node.op_type != "MatMulNBits":  # its bias is an Add of its own
        constants = {tensor.name for tensor in graph.initializer}
        readers = [n for n in graph.node if n.op_type == "Add" and node.output[0] in n.input]
        last = next((n for n in readers if constants & set(n.input)), node)
        at = next((i for i, name in enumerate(last.input) if name in constants), -1)
    else:
        at = 5 if len(node.input) > 5 else -1
    if shifted and (last is not node or at == 5):
        slot, size = linear.path + SHIFT, linear.out_features
        add_slot(graph, slot, [size], np.zeros(size, np.float32))
        last.input[at] = _vector(graph, "Add", last.input[at], slot, "sum")
    if scaled and not linear.narrows:
        output = last.output[0]
        last.output[0] = f"{output}/unscaled"
        _scaled(graph, linear, linear.out_features, last.output[0], output)
        last = graph.node[-1]
    return _add_branch(graph, last, source, linear)


def _scaled(graph: onnx.GraphProto, linear: Linear, size: int, value: str, output: str = "") -> str:
    """``value`` times the linear's scale: a pass over the activations, also where nobody fills it."""
    output = output or f"{value}/{linear.path}/scaled"
    add_slot(graph, linear.path + SCALE, [size], np.ones(size, np.float32))
    graph.node.append(helper.make_node("Mul", [value, linear.path + SCALE], [output]))
    return output


def _add_branch(graph: onnx.GraphProto, last: onnx.NodeProto, source: str, linear: Linear) -> str:
    """``y`` becomes ``y + (x A) B``; each module has its own rank symbol.

    With one shared symbol the memory planner would assume equal ranks everywhere.
    """
    a, b, rank = linear.path + DOWN, linear.path + UP, f"r_{linear.path}"
    add_slot(graph, a, [linear.in_features, rank], np.zeros((linear.in_features, 0), np.float32))
    add_slot(graph, b, [rank, linear.out_features], np.zeros((0, linear.out_features), np.float32))
    output = last.output[0]
    last.output[0] = f"{output}/base"
    graph.node.extend(
        [
            helper.make_node("MatMul", [source, a], [f"{output}/down"]),
            helper.make_node("Gemm", [f"{output}/down", b, last.output[0]], [output]),
        ]
    )
    return output


def add_bottleneck(graph: onnx.GraphProto, path: str, source: str, output: str, size: int) -> None:
    """``y``, which is called ``output``, becomes ``y + relu(x down + bias) up``, x being ``source``.

    The first product takes the bias and, in the engine, the activation; the second one adds. Both are (rows,
    ``size``). As of branches, each module has its own symbol of a width.
    """
    down, bias, up = (path + end for end in BOTTLENECK)
    width = f"w_{path}"
    add_slot(graph, down, [size, width], np.zeros((size, 0), np.float32))
    add_slot(graph, bias, [width], np.zeros(0, np.float32))
    add_slot(graph, up, [width, size], np.zeros((0, size), np.float32))
    before, name = f"{output}/{path}/before", f"{output}/{path}/bottleneck"
    maker = next(node for node in graph.node if output in node.output)
    maker.output[0] = before
    graph.node.extend(
        [
            helper.make_node("Gemm", [before if source == output else source, down, bias], [name]),
            helper.make_node("Relu", [name], [f"{name}/relu"]),
            helper.make_node("Gemm", [f"{name}/relu", up, before], [output]),
        ]
    )


def add_norm_slots(graph: onnx.GraphProto, front: tuple[str, ...] = ()) -> None:
    """``scale * (norm(x) + shift)`` of every LayerNormalization, in its weight and bias.

    But of those whose path begins with one of ``front``.

    A norm is known by its module: where two have equal numbers, the exporter keeps these once.
    """
    for node in [node for node in graph.node if node.op_type == "LayerNormalization"]:
        path = module_of(node)
        if path.startswith(front):
            continue
        weight = next(t for t in graph.initializer if t.name == node.input[1])
        size = weight.dims[0]
        add_slot(graph, path + SCALE, [size], np.ones(size, np.float32))
        node.input[1] = _vector(graph, "Mul", node.input[1], path + SCALE, "weight")
        if len(node.input) > 2 and node.input[2]:
            add_slot(graph, path + SHIFT, [size], np.zeros(size, np.float32))
            shifted = _vector(graph, "Add", node.input[2], path + SHIFT, "sum")
            node.input[2] = _vector(graph, "Mul", shifted, path + SCALE, "bias")


def _vector(graph: onnx.GraphProto, kind: str, value: str, slot: str, name: str) -> str:
    """A vector of one number per feature, computed once however often its module is called."""
    output = f"{slot}/{name}"
    if not any(output in node.output for node in graph.node):
        graph.node.append(helper.make_node(kind, [value, slot], [output]))
    return output
