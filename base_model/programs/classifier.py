"""Programs of text classifiers: which slots an adapter of a plan fills, and the loss. (P-2, P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from base_model.programs.build import adapted_graph, training_graph, unsigned_weights
from base_model.programs.document import LABELS
from base_model.programs.frozen import refer_to_weights
from base_model.programs.tape import Symbol, Tape
from base_model.verify import WEIGHTS
from protocol.adapter import LORA_A, LORA_B, LORA_R, adapter_layout, lora_scaling
from protocol.manifest import Manifest
from protocol.plan import Plan


def classifier_graphs(
    base: Path, manifest: Manifest, plan: Plan, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the plan's adapter; of no name, logits.

    Frozen tensors are read from ``base``. Inputs: ``input_ids`` and ``attention_mask`` (rows, tokens) and, to
    train, ``labels`` (rows,), all int64, and every tensor of the layout. Outputs: ``loss``, the sum of the
    rows' cross-entropy in nats, and ``gradient.NAME`` of it for the names; or the graph's own ``logits``.
    """
    layout = adapter_layout(plan, manifest)
    answering = onnx.load(str(base / manifest.graph.file))
    tensors = {spec.name: len(spec.shape) for spec in layout.specs}

    def forms(symbols: Mapping[str, Symbol]) -> dict[str, Symbol]:
        return slots_of(symbols, scaling=lora_scaling(plan))

    def graph(names: frozenset[str]) -> onnx.ModelProto:
        if not names:
            model = adapted_graph(answering, tensors=tensors, forms=forms)
        else:
            model = training_graph(
                answering,
                tensors=tensors,
                trained=[spec.name for spec in layout.specs if spec.name in names],
                forms=forms,
                loss=cross_entropy,
                targets={LABELS: (TensorProto.INT64, ["batch"])},
                weights=unsigned_weights(manifest.bits, manifest.block),
            )
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]


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
