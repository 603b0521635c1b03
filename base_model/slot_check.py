"""Whether the slots of a base's graph can still be filled; no torch is loaded.

An optimiser, or a second quantisation, that takes default values for constants leaves a graph in which
adapters have no effect. Its manifest may be as good as any: what is looked at is the graph.
"""

from __future__ import annotations

from pathlib import Path

from protocol.errors import ArtefactError
from protocol.manifest import TYPE_IDS, TYPES_SHAPE, Graph, Slot
from protocol.manifests import AnyManifest
from protocol.seq2seq_manifest import Seq2SeqManifest

REMEDY = (
    "build the base again, and leave its graph as it is: a released graph is neither optimised nor "
    "quantised once more"
)
FLOAT, INTEGER = 1, 7  # of TensorProto


def verify_slots(folder: Path, manifest: AnyManifest) -> None:
    """Every slot that the manifest declares is an input with a default, and leads to an output.

    Raises ArtefactError that names the first one that does not, or that the manifest does not declare.
    """
    for graph in manifest.graphs():
        outputs = [graph.output]
        if isinstance(manifest, Seq2SeqManifest) and graph is manifest.encoder:
            outputs += manifest.cross_names()
        _verify_graph(folder / graph.file, graph, manifest.input_slots(graph), outputs)


def _verify_graph(path: Path, declaration: Graph, slots: list[Slot], outputs: list[str]) -> None:
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # of protobuf: whatever it raises for bytes that are no graph
        raise ArtefactError(
            f"{path}: not a graph ({type(error).__name__})", "build the base again"
        ) from None
    defaults = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    used = _leading_to(graph, outputs)
    declared = {slot.name: (FLOAT, slot.shape) for slot in slots}
    if TYPE_IDS in declaration.inputs:
        declared[TYPE_IDS] = (INTEGER, TYPES_SHAPE)
    for name in sorted(declared.keys() | (inputs.keys() & defaults)):
        if name not in declared:
            fault = "is a slot that the manifest does not declare"
        elif name not in inputs:
            fault = "is a constant: an adapter cannot fill it"
        elif name not in defaults:
            fault = "has no default: without an adapter the graph does not run"
        elif (inputs[name].elem_type, _shape(inputs[name])) != declared[name]:
            fault = f"has another form than the manifest's {declared[name][1]}"
        elif name not in used:
            fault = "leads to no answer: whatever an adapter brings has no effect"
        else:
            continue
        raise ArtefactError(f"{path}: {name} {fault}", REMEDY)


def _shape(kind: object) -> list[int | str]:
    dims = kind.shape.dim  # type: ignore[attr-defined]
    return [dim.dim_param or int(dim.dim_value) for dim in dims]


def _leading_to(graph: object, outputs: list[str]) -> set[str]:
    """Names of all values on which ``outputs`` depend."""
    maker = {name: node for node in graph.node for name in node.output}  # type: ignore[attr-defined]
    needed, waiting = set(outputs), list(outputs)
    while waiting:
        node = maker.get(waiting.pop())
        for name in node.input if node is not None else ():
            if name not in needed:
                needed.add(name)
                waiting.append(name)
    return needed
