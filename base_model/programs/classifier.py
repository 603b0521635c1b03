"""Programs of text classifiers: which slots an adapter of a plan fills, and the loss. (P-2)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from base_model.programs.build import training_graph, unsigned_weights
from base_model.programs.frozen import refer_to_weights
from base_model.programs.tape import Symbol, Tape
from base_model.verify import WEIGHTS
from protocol.adapter import LORA_A, LORA_B, LORA_R, adapter_layout, lora_scaling
from protocol.manifest import Manifest
from protocol.plan import Plan

LABELS = "labels"


def classifier_program(
    base: Path, manifest: Manifest, plan: Plan, *, trained: frozenset[str]
) -> onnx.ModelProto:
    """Loss and gradients of the plan's adapter on ``base``; frozen tensors are read from its folder.

    Inputs: ``input_ids`` and ``attention_mask`` (rows, tokens), ``labels`` (rows,), all int64, and every
    tensor of the layout. Outputs: ``loss``, the sum of the rows' cross-entropy in nats, and
    ``gradient.NAME`` of it for the names in ``trained``.
    """
    layout = adapter_layout(plan, manifest)
    model = training_graph(
        onnx.load(str(base / manifest.graph.file)),
        tensors={spec.name: len(spec.shape) for spec in layout.specs},
        trained=[spec.name for spec in layout.specs if spec.name in trained],
        forms=lambda tensors: slots_of(tensors, scaling=lora_scaling(plan)),
        loss=cross_entropy,
        targets={LABELS: (TensorProto.INT64, ["batch"])},
        weights=unsigned_weights(manifest.bits, manifest.block),
    )
    refer_to_weights(model, base / WEIGHTS)
    return model


def slots_of(tensors: Mapping[str, Symbol], *, scaling: float) -> dict[str, Symbol]:
    """A.T (in, r) and ``s * (B [@ R]).T`` (r, out) of each linear; a prompt and a head as they are."""
    slots = {}
    for name, value in tensors.items():
        if name.endswith(LORA_A):
            slots[name] = value.T
        elif name.endswith(LORA_B):
            core = tensors.get(name.removesuffix(LORA_B) + LORA_R)
            slots[name] = (value @ core if core else value).T * scaling
        elif not name.endswith(LORA_R):
            slots[name] = value
    return slots


def cross_entropy(tape: Tape, logits: str) -> str:
    """The sum over rows of -log softmax(logits)[label]."""
    chosen = tape.op(
        "GatherElements",
        tape.op("LogSoftmax", logits, axis=-1),
        tape.op("Unsqueeze", LABELS, tape.axes(1)),
        axis=1,
    )
    return tape.op("Neg", tape.op("ReduceSum", chosen, keepdims=0))
