"""What surprises in ONNX Runtime 1.31, and that nothing of it reaches an answer of ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edge_runtime.adapter import load_adapter
from edge_runtime.base import EdgeBase
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.runtime import EdgeRuntime
from protocol.peft_format import EDGE_FILE, RELEASE_FILE

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["turn on the kitchen light", "play some music", "the"]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> EdgeBase:
    return EdgeBase.open(tiny_base, threads=1)


def test_a_base_alone_answers_as_with_an_adapter_of_zeros(
    base: EdgeBase, released: dict[str, Path], tmp_path: Path
) -> None:
    """Empty products are zero: in integers, of rank 0, ONNX Runtime gives whatever lay in memory."""
    zeros = {}
    for slot in base.manifest.graph.slots:
        if ".lora_" in slot.name:
            shape = [3 if isinstance(dim, str) else dim for dim in slot.shape]
            zeros[slot.name] = np.zeros(shape, np.float32)
    assert zeros
    folder = shutil.copytree(released["a"], tmp_path / "zeros")
    write_edge_adapter(zeros, folder / EDGE_FILE)
    note = json.loads((folder / RELEASE_FILE).read_text())
    note["files"][EDGE_FILE] = hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()
    note["labels"] = base.own_labels()
    (folder / RELEASE_FILE).write_text(json.dumps(note))
    alone, with_zeros = EdgeRuntime(base), EdgeRuntime(base)
    with_zeros.activate(folder)
    for _ in range(20):  # memory that was used for something else meanwhile
        assert np.array_equal(alone.logits(TEXTS), with_zeros.logits(TEXTS))
        EdgeRuntime(base).activate(released["a"])


@pytest.mark.parametrize("change", ["rewritten", "cut", "replaced", "removed"])
def test_a_file_that_changes_leaves_what_runs_as_it_is(
    change: str, base: EdgeBase, released: dict[str, Path], tmp_path: Path
) -> None:
    """ONNX Runtime maps an adapter's file: written to in place, it changes, or ends, the process."""
    folder = shutil.copytree(released["a"], tmp_path / "a")
    runtime = EdgeRuntime(base)
    runtime.activate(folder)
    before, path = runtime.logits(TEXTS), folder / EDGE_FILE
    other = (released["b"] / EDGE_FILE).read_bytes()
    if change == "rewritten":
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    elif change == "cut":
        os.truncate(path, 0)
    elif change == "replaced":
        (folder / "new").write_bytes(other)
        (folder / "new").replace(path)
    else:
        path.unlink()
    assert np.array_equal(runtime.logits(TEXTS), before)


def test_what_is_checked_is_what_is_loaded(
    base: EdgeBase, released: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes between its check and its use is loaded as it was checked."""
    folder = shutil.copytree(released["a"], tmp_path / "a")
    honest, path = EdgeRuntime(base), folder / EDGE_FILE
    honest.activate(released["a"])
    read = ort.AdapterFormat.read_adapter

    def then_rewritten(name: str) -> object:
        values = read(name)
        path.write_bytes((released["b"] / EDGE_FILE).read_bytes())
        return values

    monkeypatch.setattr(ort.AdapterFormat, "read_adapter", then_rewritten)
    adapter = load_adapter(folder, base)
    runtime = EdgeRuntime(base)
    found = [answer.logits for answer in runtime.infer(TEXTS, adapter)]
    assert np.array_equal(np.array(found, np.float32), honest.logits(TEXTS))


def test_an_adapter_has_an_effect_only_where_it_is_run_as_we_run_it(
    base: EdgeBase, released: dict[str, Path]
) -> None:
    """`run` applies it; bound inputs ignore it without a word. Every answer of ours is `run`'s."""
    adapter = load_adapter(released["a"], base)
    feeds = base.batch(TEXTS, max_length=16)
    output = base.manifest.graph.output
    (applied,) = base.session.run([output], feeds, adapter.run_options)
    binding = base.session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value)
    binding.bind_output(output)
    base.session.run_with_iobinding(binding, adapter.run_options)
    (bound,) = binding.copy_outputs_to_cpu()
    ignored = bound.shape != applied.shape or not np.array_equal(bound, applied)
    assert ignored, "ONNX Runtime applies it now: say so in the guide"
    runtime = EdgeRuntime(base)
    runtime.activate(released["a"])
    found = runtime.infer(TEXTS)
    assert np.allclose([answer.logits for answer in found], applied, atol=1e-5)


@pytest.mark.parametrize("package", ["edge_runtime.base", "base_model.slot_check"])
def test_onnx_runtime_reports_to_nobody(package: str, tmp_path: Path) -> None:
    """Its wheels report to their maker from the first session on, by a number kept in the home folder."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")
    }
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    code = f"import {package}\nimport onnxruntime as ort\nort.SessionOptions()\n"
    code += "try:\n    ort.InferenceSession(b'x')\nexcept Exception:\n    pass\n"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert [path.name for path in tmp_path.rglob("*onnxruntime*")] == []
