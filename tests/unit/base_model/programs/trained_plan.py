"""A plan on the tiny base, and the graph that trains it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import onnx

from base_model.programs.folder import Program
from protocol.plan import Plan, plan_from
from tests.methods import adapter_of

TRAIN = "train-head.lora_A.lora_B.onnx"
Change = Callable[[onnx.ModelProto], None]


def plan_for(
    fingerprint: str, *, program: str = "", method: str = "lora", **adapter: object
) -> Plan:
    return plan_from(
        {
            "name": "t",
            "base": {"fingerprint": fingerprint, "program": program},
            "task": {"labels": ["light", "music", "timer"], "max_length": 16},
            "adapter": adapter_of(method) | adapter,
            "rule": {"name": "mean"},
        },
        source="test",
    )


def forged(program: Program, change: Change) -> Program:
    """The training graph changed, and a document that agrees with it in everything it can."""
    model = onnx.load_model_from_string(program.graphs[TRAIN])
    change(model)
    data = model.SerializeToString()
    entry = program.document.graphs[TRAIN].model_copy(
        update={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    )
    graphs = program.document.graphs | {TRAIN: entry}
    document = program.document.model_copy(update={"graphs": graphs})
    return Program(document=document, graphs=program.graphs | {TRAIN: data})
