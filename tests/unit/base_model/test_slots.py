"""A base whose graph was optimised or quantised once more is refused, however well its manifest fits."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from base_model.slot_check import verify_slots
from base_model.store import GRAPH
from base_model.verify import read_manifest, verify_base
from protocol.errors import ArtefactError
from protocol.manifest import MANIFEST_NAME

Change = Callable[[onnx.ModelProto, str], None]


def as_constant(model: onnx.ModelProto, slot: str) -> None:
    """What optimisers do first: a default that nobody overrides is a constant."""
    inputs = model.graph.input
    inputs.remove(next(value for value in inputs if value.name == slot))


def folded(model: onnx.ModelProto, slot: str) -> None:
    """The slot is still there, and a copy of its default is what is computed with."""
    default = next(tensor for tensor in model.graph.initializer if tensor.name == slot)
    copy = onnx.TensorProto()
    copy.CopyFrom(default)
    copy.name = f"{slot}_folded"
    model.graph.initializer.append(copy)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == slot:
                node.input[at] = copy.name


def without_default(model: onnx.ModelProto, slot: str) -> None:
    default = next(tensor for tensor in model.graph.initializer if tensor.name == slot)
    model.graph.initializer.remove(default)


def of_fixed_shape(model: onnx.ModelProto, slot: str) -> None:
    value = next(value for value in model.graph.input if value.name == slot)
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_value = 4


def undeclared(model: onnx.ModelProto, slot: str) -> None:
    model.graph.input.append(helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))
    model.graph.initializer.append(helper.make_tensor("extra", onnx.TensorProto.FLOAT, [1], [0.0]))


def changed(base: Path, folder: Path, change: Change, slot: str) -> Path:
    """A copy with another graph, and a manifest that names its digest."""
    shutil.copytree(base, folder)
    path = folder / GRAPH
    model = onnx.load(str(path))
    change(model, slot)
    onnx.save(model, str(path))
    return renamed(folder)


def renamed(folder: Path) -> Path:
    data, manifest = (folder / GRAPH).read_bytes(), folder / MANIFEST_NAME
    body = json.loads(manifest.read_text())
    body["files"][GRAPH] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest.write_text(json.dumps(body))
    return folder


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (as_constant, "is a constant"),
        (folded, "leads to no answer"),
        (without_default, "has no default"),
        (of_fixed_shape, "has another form"),
        (undeclared, "does not declare"),
    ],
)
def test_a_slot_that_cannot_be_filled_is_named(
    change: Change, cause: str, tiny_base: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(tiny_base)
    verify_slots(tiny_base, manifest)
    names = [slot.name for slot in manifest.graph.slots]
    free = [
        slot.name for slot in manifest.graph.slots if any(isinstance(d, str) for d in slot.shape)
    ]
    for number, slot in enumerate((free[0], free[-1])):
        folder = changed(tiny_base, tmp_path / str(number), change, slot)
        verify_base(folder)  # every digest fits
        with pytest.raises(ArtefactError, match=cause) as caught:
            verify_slots(folder, read_manifest(folder))
        assert (slot if change is not undeclared else "extra") in str(caught.value)
        assert slot in names


def test_a_graph_that_was_quantised_again_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """By ONNX Runtime's own tool, which takes every default for a weight."""
    from onnxruntime.quantization import quantize_dynamic

    folder = tmp_path / "again"
    shutil.copytree(tiny_base, folder)
    quantize_dynamic(str(tiny_base / GRAPH), str(folder / GRAPH))
    command = [sys.executable, "-m", "fedge", "base", "verify"]
    done = subprocess.run([*command, str(renamed(folder))], capture_output=True, text=True)
    assert (done.returncode, "quantised once more" in done.stderr) == (5, True), done.stderr
    assert subprocess.run([*command, str(tiny_base)], capture_output=True).returncode == 0
