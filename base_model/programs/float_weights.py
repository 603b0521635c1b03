"""Float matrices of an answering graph, under the names and in the order that the base's file has of them.

An exporter turns the weight [out, in] of a linear into a constant [in, out] of its own name. A program's file
holds no weight: here each such constant is found in the base's file again, by its bytes, and the product
reads it as it lies there, turned while it multiplies. Codes have their names from the start
(``graph_linears.quantise``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from base_model.programs.answering import infer_shapes
from base_model.programs.frozen import SMALLEST
from base_model.weights_file import tensor_entry
from protocol.manifest import TensorEntry

KINDS = (np.float32, np.float16)  # of bases of 32 and of 16 bits
Matrix = npt.NDArray[np.floating[Any]]


def refer_to_matrices(model: onnx.ModelProto, tensors: Mapping[str, TensorEntry]) -> None:
    """Point products of ``model`` at tensors of the base's file, in place.

    ``tensors``: the manifest's. Linears read rows of two dimensions (``graph_linears.flatten_rows``); what
    reads others, before them, in a pooling or a head, stays as it is, and so does what the file has not.
    """
    graph, shapes = model.graph, dict[str, tuple[int | str, ...]]()
    names = {entry.sha256: name for name, entry in tensors.items()}
    matrices = {t.name: t for t in graph.initializer if _is_matrix(t)}
    for node in list(graph.node):
        if node.op_type != "MatMul" or node.input[1] not in matrices:
            continue
        found = _stored(matrices[node.input[1]], tensors, names)
        if found is None:
            continue
        shapes = shapes or infer_shapes(model, {})
        if len(shapes.get(node.input[0], ())) == 2:
            _read(graph, node, *found)
    used = {name for node in graph.node for name in node.input}
    for name in matrices.keys() - used:
        graph.initializer.remove(matrices[name])


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    inside = tensor.data_location != TensorProto.EXTERNAL and len(tensor.raw_data) >= SMALLEST
    return inside and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def _stored(
    tensor: onnx.TensorProto, tensors: Mapping[str, TensorEntry], names: Mapping[str, str]
) -> tuple[str, Matrix] | None:
    """(name, value [out, in]) of a constant [in, out] in the base's file, if it is there."""
    turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
    for kind in KINDS:
        value: Matrix = turned.astype(kind)
        entry = tensor_entry(value)
        name = names.get(entry.sha256)
        if name is not None and tensors[name] == entry:
            return name, value
    return None


def _read(graph: onnx.GraphProto, node: onnx.NodeProto, name: str, value: Matrix) -> None:
    if not any(item.name == name for item in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    weight = name
    if value.dtype == np.float16:
        weight = f"{node.output[0]}/weight"
        cast = helper.make_node("Cast", [name], [weight], to=TensorProto.FLOAT)
        graph.node.insert(list(graph.node).index(node), cast)
    node.input[1], node.op_type = weight, "Gemm"
    node.attribute.append(helper.make_attribute("transB", 1))
