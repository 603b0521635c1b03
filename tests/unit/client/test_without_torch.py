"""A client needs no torch: it takes part with torch, transformers, peft and datasets kept from being imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.data import Rows
from client.engine import choice
from client.opened_base import opened_base
from protocol.errors import MachineError
from protocol.layout import Vector
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.wire import Instruction, to_record

SCRIPT = """
import importlib, json, pkgutil, sys
NONE = ("torch", "transformers", "peft", "datasets", "pandas", "pyarrow")
sys.modules.update(dict.fromkeys(NONE))
import client, numpy as np
import os
from client.node import _load_app
_load_app()
assert "onnxruntime" not in sys.modules  # its threads would not be in a fork
if child := os.fork():  # as a site answers a message
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
TORCH = {f"client.engine.{name}" for name in ("torch_engine", "adapter_model", "device")}
for module in pkgutil.walk_packages(client.__path__, "client."):
    if module.name not in TORCH:
        importlib.import_module(module.name)
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.app import app
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
given = json.loads(sys.argv[1])
records = {"instruction": ConfigRecord(given["instruction"]),
           "adapter": ArrayRecord({"adapter": Array(np.load(given["adapter"]))})}
reply = app(Message(RecordDict(records), 2, "train.mask"), Context(1, 2, given["node"], RecordDict(), {}))
assert list(reply.content) == ["masked"], reply.content
assert all(sys.modules[name] is None for name in NONE)
print("masked", reply.content["masked"]["masked"].numpy().size)
"""


def test_a_client_takes_part_without_torch(
    tiny_base: Path,
    make_plan: Callable[..., Plan],
    instruct: Callable[..., tuple[Instruction, Vector]],
    rows: Rows,
    tmp_path: Path,
) -> None:
    plan = make_plan(evaluation={"holdout": 0.2})
    instruction, vector = instruct(plan, evaluate=True)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    np.save(tmp_path / "adapter.npy", vector)
    lines = (
        json.dumps({"text": text, "label": plan.task.labels[label]})
        for text, label in zip(rows.texts, rows.targets, strict=True)
    )
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    given = {
        "instruction": to_record(instruction),
        "adapter": str(tmp_path / "adapter.npy"),
        "node": {
            "client-id": "site",
            "plan": str(tmp_path / "plan.json"),
            "base": str(tiny_base),
            "data-path": str(tmp_path / "rows.jsonl"),
            "threads": 1,
        },
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("masked ")


def test_torch_is_asked_for_where_it_is_not(
    tiny_base: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_installed", lambda: False)
    plan = make_plan(local={"engine": "torch"})
    base = opened_base(plan, tiny_base)
    with pytest.raises(MachineError, match="not installed") as caught:
        choice.engine_for(Recipe(plan=plan, manifest=base.manifest), base)
    assert "client-torch" in caught.value.remedy


def test_the_engine_is_the_plans_or_what_the_machine_has(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choice.chosen(make_plan(local={"engine": "torch"})) == "torch"
    for cuda, expected in ((True, "torch"), (False, "onnx")):
        monkeypatch.setattr(choice, "_cuda", lambda cuda=cuda: cuda)
        assert choice.chosen(make_plan()) == expected
        assert choice.chosen(make_plan(local={"engine": "onnx"})) == "onnx"
