"""Operations on the linears of an exported ONNX graph, found by module path.

Each linear becomes MatMulNBits on the very bytes of ``weights.safetensors`` and gets a low-rank branch whose
factors are optional inputs (``graph_forms``). What the branch costs is memory traffic, not arithmetic, so the
encoder runs on rows (tokens of all texts below each other): there the branch's last product can add onto the
base's result in one Gemm, where three dimensions would need a product and an Add, each with a pass of its own
over the activations (measured by ``benchmarks/slots.py``).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from protocol.manifest import Linear

Codes = dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]
# Ops that treat each token alone when every other operand is a constant.
ROW_WISE = {"MatMulNBits", "MatMul", "Gemm", "LayerNormalization"} | {
    *("Add", "Sub", "Mul", "Div", "Pow"),
    *("Gelu", "Erf", "Tanh", "Relu", "Sigmoid"),
}


def linear_nodes(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The matrix products of each module path: several where layers share a module."""
    weights = {initializer.name for initializer in graph.initializer}
    products: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
            continue
        products[module_of(node)].append(node)
    return products


def module_of(node: onnx.NodeProto) -> str:
    """Path of the module that an exported node comes from."""
    scopes = next(p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes")
    path: str = ast.literal_eval(scopes)[-2]
    return path.removeprefix("model.")


def quantise(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    linear: Linear,
    codes: tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]],
    bits: int,
    block: int,
    accuracy_level: int,
) -> None:
    """Turn ``node`` into MatMulNBits on ``codes``, with the linear's bias inside."""
    if node.op_type != "MatMul":
        raise ValueError(f"{linear.path}: exported as {node.op_type}, expected MatMul")
    names = [f"{linear.path}.qweight", f"{linear.path}.scales"]
    there = {tensor.name for tensor in graph.initializer}
    for name, value in zip(names, codes, strict=True):
        if name in there:  # a shared module, at its second place
            continue
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    node.input[1] = names[0]
    node.input.append(names[1])
    for key, number in (
        ("K", linear.in_features),
        ("N", linear.out_features),
        ("bits", bits),
        ("block_size", block),
        ("accuracy_level", accuracy_level),
    ):
        node.attribute.append(helper.make_attribute(key, number))
    _absorb_bias(graph, node)


def _absorb_bias(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """``Add(MatMulNBits(x), bias)`` becomes the operator's own bias (its sixth input)."""
    constants = {initializer.name for initializer in graph.initializer}
    readers = [reader for reader in graph.node if node.output[0] in reader.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return
    bias = [name for name in readers[0].input if name in constants]
    if len(bias) != 1:
        return
    node.input.extend(["", "", bias[0]])  # no zero points, no group index
    node.output[0] = readers[0].output[0]
    graph.node.remove(readers[0])


def flatten_rows(graph: onnx.GraphProto, linears: Iterable[onnx.NodeProto]) -> None:
    """From the first linear to the pooling, (texts, tokens, width) becomes (texts*tokens, width).

    Where a norm stands before the linears, and what it reads is added again behind them, rows begin there.
    Attention's own reshapes read absolute shapes and stay as they are; the one after attention is
    pointed at rows. Raises ValueError when a linear would be left in three dimensions.
    """
    outputs = {node.output[0] for node in linears}
    linears = [node for node in graph.node if node.output[0] in outputs]
    if not linears:
        return
    makers = {name: node for node in graph.node for name in node.output}
    entry = _entry(graph, linears[0].input[0], makers)
    rows = f"{entry}/rows"
    flat, tokens = {rows}, ""
    for node in linears:
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type == "Reshape":
            tokens = maker.input[1]
            maker.input[1] = _constant(graph, f"{node.input[0]}/shape", [-1, _width(graph, node)])
            flat.add(node.input[0])
    shape = _constant(graph, f"{rows}/shape", [-1, _width(graph, linears[0])])
    for node in graph.node:
        if node.op_type in ROW_WISE:
            _replace_input(node, entry, rows)
    _return_to_tokens(graph, flat, tokens)
    graph.node.append(helper.make_node("Reshape", [entry, shape], [rows]))
    if stray := [node.output[0] for node in linears if node.input[0] not in flat]:
        raise ValueError(f"not reached row by row: {stray[0]}")


def _entry(graph: onnx.GraphProto, name: str, makers: dict[str, onnx.NodeProto]) -> str:
    """What the first linear reads, or what the norm before it reads if a residual goes round both."""
    norm = makers.get(name)
    if norm is None or norm.op_type != "LayerNormalization":
        return name
    around = any(node.op_type == "Add" and norm.input[0] in node.input for node in graph.node)
    return norm.input[0] if around else name


def _return_to_tokens(graph: onnx.GraphProto, flat: set[str], tokens: str) -> None:
    """Grow ``flat`` through row-wise nodes; whatever else reads rows gets ``tokens``' shape back."""
    constants = {initializer.name for initializer in graph.initializer} | {""}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    returned: dict[str, onnx.NodeProto] = {}
    for node in graph.node:  # the exporter's order is topological
        read = flat.intersection(node.input)
        if not read or node.op_type == "Reshape":
            continue
        if node.op_type in ROW_WISE and all(i in flat or i in constants for i in node.input):
            flat.update(node.output)
            continue
        for name in read:
            back = f"{name}/tokens"
            returned[name] = helper.make_node("Reshape", [name, tokens], [back])
            _replace_input(node, name, back)
    graph.node.extend(returned.values())


def sort_topologically(graph: onnx.GraphProto) -> None:
    """Order the nodes so that each comes after what it reads, and no earlier than it has to."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    before = [[makers[name] for name in node.input if name in makers] for node in graph.node]
    ordered: list[int] = []
    placed, waiting = set[int](), set[int]()
    for first in range(len(before)):
        stack = [first]
        while stack:
            index = stack[-1]
            lacking = [maker for maker in before[index] if maker not in placed]
            if index in placed or not lacking:
                stack.pop()
                if index not in placed:
                    placed.add(index)
                    ordered.append(index)
                continue
            if index in waiting:
                raise ValueError("the exported graph has a cycle")
            waiting.add(index)
            stack.extend(reversed(lacking))
    nodes = [graph.node[index] for index in ordered]
    del graph.node[:]
    graph.node.extend(nodes)


def _replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def _constant(graph: onnx.GraphProto, name: str, values: list[int]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def _width(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    """Input features of a linear: MatMulNBits' K, or the rows of a float weight."""
    for attribute in node.attribute:
        if attribute.name == "K":
            return attribute.i
    return next(i.dims[0] for i in graph.initializer if i.name == node.input[1])
