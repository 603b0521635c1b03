"""Programs of encoders: which slots an adapter of a plan fills, and the task's loss. (P-2, P-11)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from base_model.programs.build import adapted_graph, training_graph, unsigned_weights
from base_model.programs.frozen import refer_to_weights
from base_model.programs.tape import Symbol
from base_model.tasks import TASKS
from base_model.verify import WEIGHTS
from protocol.adapter import LORA_A, LORA_B, LORA_R, adapter_layout, lora_scaling, takes_types
from protocol.manifest import TYPE_IDS, Manifest
from protocol.plan import Plan


def classifier_graphs(
    base: Path, manifest: Manifest, plan: Plan, trained: Iterable[frozenset[str]]
) -> list[onnx.ModelProto]:
    """For each set of tensor names: loss and gradients of the plan's adapter; of no name, logits.

    Frozen tensors are read from ``base``. Inputs: ``input_ids``, ``attention_mask`` and, of pairs,
    token types (rows, tokens) and, to
    train, the task's targets (rows,), and every tensor of the layout. Outputs: ``loss``, the sum over rows
    of the task's, and ``gradient.NAME`` of it for the names; or the graph's own ``logits``.
    """
    layout, task = adapter_layout(plan, manifest), TASKS[plan.task.kind]
    answering = onnx.load(str(base / manifest.graph.file))
    if takes_types(plan, manifest):
        _ask_for_types(answering.graph)
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
                loss=task.loss,
                targets={task.TARGET: (task.ELEMENT, ["batch"])},
                weights=unsigned_weights(manifest.bits, manifest.block),
            )
        refer_to_weights(model, base / WEIGHTS)
        return model

    return [graph(names) for names in trained]


def _ask_for_types(graph: onnx.GraphProto) -> None:
    """Token types become an input of the rows, behind the others, in the place of their default."""
    default = next(tensor for tensor in graph.initializer if tensor.name == TYPE_IDS)
    graph.initializer.remove(default)
    types = next(value for value in graph.input if value.name == TYPE_IDS)
    graph.input.remove(types)
    types.type.CopyFrom(graph.input[0].type)
    graph.input.insert(2, types)


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
