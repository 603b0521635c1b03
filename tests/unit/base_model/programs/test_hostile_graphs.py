"""Graphs that somebody else wrote: of a program, and of a base of which one would be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from base_model.programs.folder import (
    Program,
    open_program,
    program_for,
    write_program,
)
from base_model.verify import read_manifest
from protocol.errors import ArtefactError
from protocol.manifest import MANIFEST_NAME
from protocol.plan import Plan
from protocol.recipe import Recipe
from storage.regular import sha256_of
from tests.unit.base_model.programs.trained_plan import Change, forged


def add_node(kind: str, *inputs: str, domain: str = "", **attributes: object) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node(kind, list(inputs), ["odd"], domain=domain, **attributes)
        model.graph.node.append(node)
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def with_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["odd"], body=body))


def with_graph_in_known_operator(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("extra", body))


def with_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["a", "b"])
    )


def with_renamed_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("Identity", [model.graph.output[1].name], ["gradient.x"])
    )
    model.graph.output[1].name = "gradient.x"


def with_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["a"]))


def with_default_for_an_input(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int64), "input_ids"))


def outside(**place: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for item in tensor.external_data:
            item.value = place.get(item.key, item.value)

    return change


def with_outside_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.append(helper.make_node("Constant", [], ["odd"], value=tensor))


def with_weights_of_its_own(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2**22 + 1, np.float32), "own"))


def with_weights_in_an_attribute(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(2**22 + 1, np.float32), "own")
    model.graph.node.append(helper.make_node("Constant", [], ["odd"], value=value))


def with_a_name_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def with_other_operators(model: onnx.ModelProto) -> None:
    model.opset_import[0].version += 1


def with_huge_claim(model: onnx.ModelProto) -> None:
    tensor = TensorProto(
        name="huge", data_type=TensorProto.FLOAT, dims=[2**30, 2**10], raw_data=b"1234"
    )
    model.graph.initializer.append(tensor)


def with_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("f", "Gelu", [], [], [], []))


def with_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


CONVOLUTION = {
    **{"kernel_shape": [3], "strides": [1], "pads": [1, 1], "dilations": [1], "group": 1},
    "auto_pad": "NOTSET",
}


def with_convolution(**others: object) -> Change:
    """One as exporters write it but for ``others``, of which None is left out."""
    said = {name: value for name, value in (CONVOLUTION | others).items() if value is not None}
    return add_node("Conv", "x", "w", **said)


ODD_CONVOLUTIONS: dict[str, tuple[dict[str, object], str]] = {
    "in a plane": ({"kernel_shape": [3, 3], "pads": [1] * 4}, "not along one axis"),
    "with gaps": ({"dilations": [2]}, "has gaps"),
    "padded as it likes": ({"auto_pad": "SAME_UPPER"}, "not along one axis"),
    "that says no stride": ({"strides": None}, "not along one axis"),
    "that says no groups": ({"group": None}, "group is out of bounds"),
    "with more than it has": ({"alpha": 1.0}, "not along one axis"),
    "far beyond its rows": ({"pads": [4, 0]}, "pads is out of bounds"),
    "before its rows": ({"pads": [-1, 0]}, "pads is out of bounds"),
    "of no stride": ({"strides": [0]}, "strides is out of bounds"),
    "of no kernel": ({"kernel_shape": [0], "pads": [0, 0]}, "kernel_shape is out of bounds"),
    "of a huge kernel": ({"kernel_shape": [4097]}, "kernel_shape is out of bounds"),
    "of no groups": ({"group": 0}, "group is out of bounds"),
}
HOSTILE: dict[str, tuple[Change, str]] = {
    **{
        f"a convolution {name}": (with_convolution(**others), reason)
        for name, (others, reason) in ODD_CONVOLUTIONS.items()
    },
    "a loop": (with_loop, "Loop has no place"),
    "a branch": (add_node("If", "x"), "If has no place"),
    "random numbers": (add_node("RandomNormal", shape=[1]), "RandomNormal has no place"),
    "text": (add_node("StringNormalizer", "x"), "StringNormalizer has no place"),
    "another domain": (add_node("Gelu", "x", domain="ai.onnx.contrib"), "ai.onnx.contrib"),
    "another operator of microsoft": (
        add_node("Attention", "x", domain="com.microsoft"),
        "Attention has no place",
    ),
    "a graph within": (with_graph_in_known_operator, "a graph within"),
    "a function": (with_function, "functions"),
    "a sparse tensor": (with_sparse, "sparse"),
    "an extra output": (with_output, "outputs are not those listed"),
    "another output": (with_renamed_output, "outputs are not those listed"),
    "an extra input": (with_input, "inputs are not those listed"),
    "an input with a default": (with_default_for_an_input, "inputs are not those listed"),
    "data elsewhere": (outside(location="../secrets"), "outside the base's"),
    "data at an absolute path": (outside(location="/etc/passwd"), "outside the base's"),
    "data behind the end": (outside(offset=str(2**40)), "behind the end"),
    "data at no number": (outside(offset="-8"), "at no place"),
    "data of another length": (outside(length="4"), "another length"),
    "a constant outside": (with_outside_constant, "lies outside"),
    "weights of its own": (with_weights_of_its_own, "weights of its own"),
    "weights in an attribute": (with_weights_in_an_attribute, "weights of its own"),
    "a name twice": (with_a_name_twice, "one name"),
    "operators of another version": (with_other_operators, "operators of version"),
    "a claim": (with_huge_claim, "claims more"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_graph_is_refused_although_its_digest_fits(
    tiny_base: Path, plan: Plan, program: Program, tmp_path: Path, case: str
) -> None:
    change, cause = HOSTILE[case]
    write_program(forged(program, change), tmp_path / "p")
    with pytest.raises(ArtefactError, match=cause):
        open_program(tmp_path / "p", Recipe(plan=plan, manifest=read_manifest(tiny_base)))


def hostile_base(tiny_base: Path, out: Path, change: Change) -> Path:
    """The same fingerprint, which does not cover the graph, and a manifest that agrees with it."""
    shutil.copytree(tiny_base, out)
    path = out / "graph.onnx"
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    manifest = read_manifest(tiny_base)
    entry = manifest.files["graph.onnx"].model_copy(
        update={"sha256": sha256_of(path), "bytes": path.stat().st_size}
    )
    changed = manifest.model_copy(update={"files": manifest.files | {"graph.onnx": entry}})
    (out / MANIFEST_NAME).write_text(changed.to_json())
    return out


def with_other_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["a", "b"])
    )


def without_inputs(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    del node.input[:]


def with_other_weights(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith("qweight"))
    tensor.raw_data = bytes(len(tensor.raw_data))


@pytest.mark.parametrize(
    "change", [with_loop, with_other_output, with_other_weights, with_function, without_inputs]
)
def test_a_hostile_graph_of_a_base_gives_no_program(
    tiny_base: Path, plan: Plan, tmp_path: Path, change: Change
) -> None:
    base = hostile_base(tiny_base, tmp_path / "base", change)
    with pytest.raises(ArtefactError):
        program_for(base, Recipe(plan=plan, manifest=read_manifest(base)), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
