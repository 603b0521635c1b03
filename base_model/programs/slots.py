"""The program of an adapter as a device has it: what is trained are the slots that it fills.

A device knows no method: of low-rank factors, scales, shifts, a prompt or a head it has what the answering
graph takes (P-1.11), so that is what its program gives the gradients of. Made of the base alone, in memory.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from base_model.programs.build import OPSET, Symbols, training_graph, unsigned_weights
from base_model.programs.classifier import cross_entropy
from base_model.programs.document import LABELS, ProgramDocument, TensorRule, graph_name
from base_model.programs.folder import Program, deriving, graph_entry, verify_graphs
from base_model.programs.frozen import refer_to_weights
from base_model.verify import WEIGHTS
from protocol.adapter import LORA_A, LORA_B, SOFT_PROMPT
from protocol.forms import SCALE, SHIFT
from protocol.layout import Layout, Tensors, TensorSpec
from protocol.manifest import Manifest
from protocol.rules import Role

ENDS = {LORA_A: Role.LORA_A, LORA_B: Role.LORA_B, SCALE: Role.SCALE, SHIFT: Role.SHIFT}
METHOD = "slots"


def slot_layout(tensors: Tensors) -> Layout:
    """Where each slot of an adapter lies in a vector; ``tensors`` are checked against the graph's slots."""
    return Layout(
        tuple(
            TensorSpec(name=name, shape=tensors[name].shape, role=_role(name))
            for name in sorted(tensors)
        )
    )


def _role(slot: str) -> Role:
    if slot == SOFT_PROMPT:
        return Role.PROMPT
    return next((role for end, role in ENDS.items() if slot.endswith(end)), Role.HEAD)


def slot_program(base: Path, manifest: Manifest, layout: Layout) -> Program:
    """Loss and the gradient of every slot of ``layout``, on the verified ``base``.

    Raises ArtefactError for a base whose graph has no derivative, or is none that may be run.
    """
    parts = frozenset(spec.role.value for spec in layout.specs)
    with deriving(base):
        model = training_graph(
            onnx.load(str(base / manifest.graph.file)),
            tensors={spec.name: len(spec.shape) for spec in layout.specs},
            trained=[spec.name for spec in layout.specs],
            forms=_as_they_are,
            loss=cross_entropy,
            targets={LABELS: (TensorProto.INT64, ["batch"])},
            weights=unsigned_weights(manifest.bits, manifest.block),
        )
    refer_to_weights(model, base / WEIGHTS)
    name, data = graph_name(parts), model.SerializeToString(deterministic=True)
    shapes = {slot.name: slot.shape for slot in manifest.graph.slots}
    document = ProgramDocument(
        base=manifest.fingerprint,
        task=manifest.task,
        method=METHOD,
        scaling=1.0,
        opset=OPSET,
        weights=manifest.files[WEIGHTS],
        tensors=[
            TensorRule(name=spec.name, part=spec.role.value, shape=shapes[spec.name])
            for spec in layout.specs
        ],
        graphs={name: graph_entry(model, parts, data)},
    )
    program = Program(document=document, graphs={name: data})
    verify_graphs(program, manifest, source=str(base))
    return program


def _as_they_are(tensors: Symbols) -> Symbols:
    return tensors
