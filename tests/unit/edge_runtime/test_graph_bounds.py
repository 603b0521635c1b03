"""A graph's tensors lie in its own file and are as large as they say: looked at before ONNX Runtime is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.base import EdgeBase, read_manifest
from edge_runtime.graph_bounds import verify_graph
from protocol.errors import ArtefactError

Change = Callable[[onnx.ModelProto], None]


def external(tensor: TensorProto) -> None:
    """As ONNX says that a tensor's bytes lie in another file."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "beside.bin"), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def first(model: onnx.ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def listed_only(model: onnx.ModelProto) -> None:
    entry = first(model).external_data.add()
    entry.key, entry.value = "location", "beside.bin"


def claimed(model: onnx.ModelProto) -> None:
    first(model).dims[:] = [2**40, 2**20]


def negative(model: onnx.ModelProto) -> None:
    first(model).dims[:] = [-1]


def in_a_constant(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32), "c")
    external(value)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))


def in_a_branch(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32), "c")
    external(value)
    inner = helper.make_graph([], "inner", [], [], [value])
    model.graph.node.append(
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    )


def in_a_function(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32), "c")
    external(value)
    node = helper.make_node("Constant", [], ["c"], value=value)
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], model.opset_import))


def sparse(model: onnx.ModelProto) -> None:
    found = model.graph.sparse_initializer.add()
    found.dims[:] = [2**40]


def nested(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(12):
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [])
    model.graph.node.append(graph.node[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda model: external(first(model)),
        listed_only,
        claimed,
        negative,
        in_a_constant,
        in_a_branch,
        in_a_function,
        sparse,
        nested,
    ],
)
def test_what_a_graph_may_not_hold(tiny_base: Path, tmp_path: Path, change: Change) -> None:
    model = onnx.load(tiny_base / "graph.onnx")
    change(model)
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError):
        verify_graph(path, size=path.stat().st_size)


def test_our_own_graph_is_taken(tiny_base: Path) -> None:
    size = read_manifest(tiny_base).files["graph.onnx"].bytes
    verify_graph(tiny_base / "graph.onnx", size=size)
    with pytest.raises(ArtefactError, match="longer"):
        verify_graph(tiny_base / "graph.onnx", size=size - 1)
    assert EdgeBase.open(tiny_base).manifest.graph.file == "graph.onnx"


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xff" * 40, b"\x3a\x7f\x01", b"\x0b", b"\x09\x01"]
)
def test_bytes_that_are_no_graph(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(data)
    with pytest.raises(ArtefactError):
        verify_graph(tmp_path / "graph.onnx", size=100)


def test_a_cut_graph_ends_in_one_error_wherever_it_is_cut(tiny_base: Path, tmp_path: Path) -> None:
    data = (tiny_base / "graph.onnx").read_bytes()
    path = tmp_path / "graph.onnx"
    end = (
        len(data) - 100
    )  # behind the graph are sets of operators: cut between two, it is a message still
    for at in range(1, end, len(data) // 50):
        path.write_bytes(data[:at])
        with pytest.raises(ArtefactError):
            verify_graph(path, size=len(data))
