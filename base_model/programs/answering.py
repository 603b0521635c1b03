"""The answering graph as the forward half of a program: slots filled with symbols, or taken out.

A slot that no method fills costs a product per linear although it adds nothing; here it goes. The others
become tensors that the program computes from what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from protocol.forms import BOTTLENECK_UP, SCALE, SHIFT, UP
from protocol.manifest import TYPE_IDS

Shapes = dict[str, tuple[int | str, ...]]
SAME_SHAPE = (
    "SimplifiedLayerNormalization",
    "RotaryEmbedding",
    "QuickGelu",
)  # as their first input


def take_out_unfilled(graph: onnx.GraphProto, filled: set[str]) -> None:
    """Branches, bottlenecks, scales, shifts that nothing fills leave the graph; other slots keep defaults."""
    makers = {name: node for node in graph.node for name in node.output}
    instead: dict[str, str] = {}
    for node in list(graph.node):
        slot = node.input[1] if len(node.input) > 1 else ""
        if slot in filled:
            continue
        if node.op_type == "Gemm" and slot.endswith((UP, BOTTLENECK_UP)):
            instead[node.output[0]] = node.input[2]
            inner = makers[node.input[0]]
            if inner.op_type == "Relu":
                graph.node.remove(makers[inner.input[0]])
            graph.node.remove(inner)
            graph.node.remove(node)
        elif node.op_type in ("Mul", "Add") and slot.endswith((SCALE, SHIFT)):
            instead[node.output[0]] = node.input[0]
            graph.node.remove(node)
    for node in graph.node:
        for index, name in enumerate(node.input):
            while name in instead:
                name = instead[name]
            node.input[index] = name


def drop_slots(graph: onnx.GraphProto, filled: set[str]) -> None:
    """No slot is an input of a program: what is filled is computed, the rest is constant or gone."""
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used and item.name not in filled]
    slots = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in slots]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(kept)
    graph.input.extend(inputs)


def ask_for_types(graph: onnx.GraphProto) -> None:
    """Token types become an input of the rows, behind the others, in the place of their default."""
    default = next(tensor for tensor in graph.initializer if tensor.name == TYPE_IDS)
    graph.initializer.remove(default)
    types = next(value for value in graph.input if value.name == TYPE_IDS)
    graph.input.remove(types)
    types.type.CopyFrom(graph.input[0].type)
    graph.input.insert(2, types)


def _stand_for(graph: onnx.GraphProto, node: onnx.NodeProto, kind: str, weight: list[int]) -> None:
    """``node`` as MatMul or Gather with a float weight, an input that only this has."""
    name = f"{node.output[0]}/shadow"
    graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, weight))
    kept = [node.input[0], name] if kind == "MatMul" else [name, node.input[1]]
    node.op_type, node.domain = kind, ""
    del node.input[:], node.attribute[:]
    node.input.extend(kept)


def infer_shapes(model: onnx.ModelProto, known: Mapping[str, tuple[int | str, ...]]) -> Shapes:
    """Shapes of every tensor; a dimension is a number or a name of its own where none is known.

    Some are no operators of the standard: here a product or a table of codes stands as one of floats, and
    what leaves shapes alone as Identity.
    """
    shadow = onnx.ModelProto()
    shadow.CopyFrom(model)
    graph = shadow.graph
    sizes_of = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        settings = {item.name: item.i for item in node.attribute}
        if node.op_type == "MatMulNBits":
            _stand_for(graph, node, "MatMul", [settings["K"], settings["N"]])
        elif node.op_type == "GatherBlockQuantized":
            *outer, inner = sizes_of[node.input[0]]
            _stand_for(graph, node, "Gather", [*outer, inner * 8 // settings["bits"]])
        elif node.op_type in SAME_SHAPE:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.output[1:], node.attribute[:]
    for name, shape in known.items():
        shadow.graph.value_info.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        )
    inferred = onnx.shape_inference.infer_shapes(shadow, data_prop=True).graph
    shapes: Shapes = {item.name: tuple(item.dims) for item in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_param
                or (dim.dim_value if dim.HasField("dim_value") else f"{value.name}.{at}")
                for at, dim in enumerate(value.type.tensor_type.shape.dim)
            )
    return shapes
