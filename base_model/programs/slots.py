"""The program of an adapter as a device has it: what is trained are the slots that it fills. (P-11.5)

A device knows no method: of low-rank factors, bottlenecks, scales, shifts, a prompt or a head it has what the
answering graph takes (P-1.11), so that is what its program gives the gradients of. Made of the base alone, in
memory.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from base_model.programs.answering import ask_for_types
from base_model.programs.build import OPSET, Objective, Symbols, training_graph
from base_model.programs.document import ProgramDocument, TensorRule, graph_name
from base_model.programs.float_weights import refer_to_matrices
from base_model.programs.folder import Program, deriving, graph_entry, verify_graphs
from base_model.programs.frozen import refer_to_weights
from base_model.tasks import OUTPUT_TASKS
from base_model.weights_file import WEIGHTS
from protocol.forms import BOTTLENECK, DOWN, SCALE, SHIFT, SOFT_PROMPT, UP
from protocol.layout import HEAD_PART, Layout, Tensors, TensorSpec
from protocol.manifest import TYPE_IDS, HeadManifest

METHOD = "slots"


def slot_layout(tensors: Tensors) -> Layout:
    """Where each slot of an adapter lies in a vector; ``tensors`` are checked against the graph's slots."""
    return Layout(
        tuple(
            TensorSpec(name=name, shape=tensors[name].shape, part=_part(name))
            for name in sorted(tensors)
        )
    )


def _part(slot: str) -> str:
    if slot == SOFT_PROMPT:
        return SOFT_PROMPT
    return next(
        (end[1:] for end in (DOWN, UP, SCALE, SHIFT, *BOTTLENECK) if slot.endswith(end)), HEAD_PART
    )


def slot_program(
    base: Path, manifest: HeadManifest, layout: Layout, *, kind: str, pairs: bool
) -> Program:
    """A task's loss and the gradient of every slot of ``layout``, on the verified ``base``.

    ``pairs``: whether its rows have two texts.

    Raises ArtefactError for a base whose graph has no derivative, or is none that may be run.
    """
    parts, task = frozenset(spec.part for spec in layout.specs), OUTPUT_TASKS[kind]
    with deriving(base):
        answering = onnx.load(str(base / manifest.graph.file))
        refer_to_matrices(answering, manifest.tensors)
        if pairs and TYPE_IDS in manifest.graph.inputs:
            ask_for_types(answering.graph)
        model = training_graph(
            answering,
            tensors={spec.name: len(spec.shape) for spec in layout.specs},
            trained=[spec.name for spec in layout.specs],
            forms=_as_they_are,
            loss=lambda tape, outputs: Objective(scalar=task.loss(tape, outputs)),
            targets={task.TARGET: (task.ELEMENT, ["batch"])},
        )
    refer_to_weights(model, base / WEIGHTS)
    name, data = graph_name(parts), model.SerializeToString(deterministic=True)
    shapes = {slot.name: slot.shape for slot in manifest.graph.slots}
    document = ProgramDocument(
        base=manifest.fingerprint,
        task=kind,
        pairs=pairs,
        method=METHOD,
        constants={},
        opset=OPSET,
        weights=manifest.files[WEIGHTS],
        tensors=[
            TensorRule(name=spec.name, part=spec.part, shape=shapes[spec.name])
            for spec in layout.specs
        ],
        graphs={name: graph_entry(model, parts, data)},
    )
    program = Program(document=document, graphs={name: data})
    verify_graphs(program, manifest, source=str(base))
    return program


def _as_they_are(tensors: Symbols) -> Symbols:
    return tensors
