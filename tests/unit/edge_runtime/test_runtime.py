from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.adapter import load_adapter, read_tensors
from edge_runtime.base import EdgeBase
from edge_runtime.bench import bench
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError
from protocol.peft_format import EDGE_FILE, RELEASE_FILE

TEXTS = ["turn on the kitchen light", "play some music", "the"]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> EdgeBase:
    return EdgeBase.open(tiny_base, threads=1)


def alone(base: EdgeBase, folder: Path | None) -> np.ndarray[Any, Any]:
    runtime = EdgeRuntime(EdgeBase.open(base.folder, threads=1))
    if folder:
        runtime.activate(folder)
    return runtime.logits(TEXTS)


def test_swapping_gives_what_fresh_sessions_give(base: EdgeBase, released: dict[str, Path]) -> None:
    runtime = EdgeRuntime(base)
    for name in (None, "a", "b", "c", "a"):
        if name:
            runtime.activate(released[name], probe=TEXTS)
        gc.collect()
        assert (runtime.logits(TEXTS) == alone(base, released[name] if name else None)).all()
    assert runtime.infer(TEXTS)[0].label in ("light", "music", "timer")
    assert runtime.infer([]) == []


def test_rollback_returns_to_the_one_before(base: EdgeBase, released: dict[str, Path]) -> None:
    runtime = EdgeRuntime(base)
    runtime.activate(released["a"])
    runtime.activate(released["b"])
    runtime.rollback()
    assert (runtime.logits(TEXTS) == alone(base, released["a"])).all()


def test_many_threads_and_swaps_never_mix_adapters(
    base: EdgeBase, released: dict[str, Path]
) -> None:
    allowed = [alone(base, released[name])[0] for name in "abc"]
    runtime = EdgeRuntime(base)
    runtime.activate(released["a"])
    wrong: list[object] = []

    def ask() -> None:
        for _ in range(40):
            got = runtime.logits(TEXTS[:1])[0]
            if not any(np.allclose(got, want, atol=1e-5) for want in allowed):
                wrong.append(got)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        runtime.activate(released["abc"[turn % 3]])
        if turn % 5 == 0:
            gc.collect()
    for thread in threads:
        thread.join()
    assert wrong == []


Change = Callable[[dict[str, Any], dict[str, Any]], None]


def drop(name: str) -> Change:
    return lambda tensors, _note: tensors.__delitem__(name)


def replace(name: str, value: np.ndarray[Any, Any]) -> Change:
    return lambda tensors, _note: tensors.update({name: value})


def note(**fields: Any) -> Change:
    return lambda _tensors, content: content.update(fields)


A = "bert.encoder.layer.0.attention.self.query.lora_A"
B = A.replace("lora_A", "lora_B")


def ranked(rank: int) -> Change:
    factors = {A: np.zeros((32, rank), "f"), B: np.zeros((rank, 32), "f")}
    return lambda tensors, _note: tensors.update(factors)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (replace("bert.pooler.lora_A", np.zeros((2, 2), "f")), "no slot bert.pooler.lora_A"),
        (replace(A, np.zeros((33, 4), "f")), "has shape"),
        (replace(A, np.zeros((32, 5), "f")), "has shape"),  # another rank than B's
        (replace(A, np.full((32, 4), np.nan, "f")), "NaN"),
        (drop(A), "comes in a pair"),
        (drop("classifier.bias"), "comes in a pair"),
        (replace("classifier.bias", np.zeros(4, "f")), "has shape"),
        (note(labels=["x", "y"]), "3 labels, release.json lists 2"),
        (note(base_fingerprint="f" * 64), "belongs to base"),
        (note(max_length=9999), "positions"),
        (replace("soft_prompt", np.zeros((60, 32), "f")), "positions"),
        (ranked(100), "above"),
        (note(surprise=1), "surprise"),
        (note(files={}), "was not released"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_old_one_stays(
    base: EdgeBase, released: dict[str, Path], tmp_path: Path, change: Change, cause: str
) -> None:
    runtime = EdgeRuntime(base)
    runtime.activate(released["b"])
    before = runtime.logits(TEXTS)
    bad = tmp_path / "bad"
    shutil.copytree(released["a"], bad)
    tensors, content = read_tensors(bad / EDGE_FILE), json.loads((bad / RELEASE_FILE).read_text())
    change(tensors, content)
    write_edge_adapter(tensors, bad / EDGE_FILE)
    if content["files"]:
        import hashlib

        content["files"][EDGE_FILE] = hashlib.sha256((bad / EDGE_FILE).read_bytes()).hexdigest()
    (bad / RELEASE_FILE).write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=cause):
        runtime.activate(bad)
    assert (runtime.logits(TEXTS) == before).all()


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "no note", "note is not JSON"])
def test_a_damaged_folder_is_refused(
    base: EdgeBase, released: dict[str, Path], tmp_path: Path, harm: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(released["a"], bad)
    path = bad / EDGE_FILE
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-5] ^= 1
        path.write_bytes(data)
    elif harm == "truncate":
        path.write_bytes(data[:200])
    elif harm == "remove":
        path.unlink()
    elif harm == "no note":
        (bad / RELEASE_FILE).unlink()
    else:
        (bad / RELEASE_FILE).write_text("{")
    with pytest.raises(ArtefactError) as caught:
        load_adapter(bad, base)
    assert caught.value.remedy


def test_a_probe_that_fails_keeps_the_adapter(
    base: EdgeBase, released: dict[str, Path], tmp_path: Path
) -> None:
    """Finite factors whose product overflows: only running it shows."""
    import hashlib

    bad = tmp_path / "bad"
    shutil.copytree(released["a"], bad)
    tensors, content = read_tensors(bad / EDGE_FILE), json.loads((bad / RELEASE_FILE).read_text())
    tensors["classifier.weight"] = np.full((3, 32), 3e38, "f")
    write_edge_adapter(tensors, bad / EDGE_FILE)
    content["files"][EDGE_FILE] = hashlib.sha256((bad / EDGE_FILE).read_bytes()).hexdigest()
    (bad / RELEASE_FILE).write_text(json.dumps(content))
    runtime = EdgeRuntime(base)
    runtime.activate(released["b"])
    with pytest.raises(ArtefactError, match="probe"):
        runtime.activate(bad, probe=TEXTS)
    assert runtime.active is not None
    assert runtime.active.folder == released["b"]


@pytest.mark.parametrize("name", ["graph.onnx", "tokenizer.json", "manifest.json"])
def test_a_damaged_base_is_refused(tiny_base: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtefactError):
        EdgeBase.open(copy)
    if name != "manifest.json":
        with pytest.raises(ArtefactError):
            EdgeBase.open(copy, verify=False)


def test_the_bench_reports_ratios_to_its_first_variant(
    tiny_base: Path, released: dict[str, Path]
) -> None:
    result = bench(
        tiny_base,
        released["a"],
        batch=2,
        length=8,
        repeats=3,
        threads=1,
        plain_graph=tiny_base / "graph.onnx",
    )
    assert [timing.name for timing in result.timings] == [
        "graph without slots",
        "adapter off",
        "adapter on",
    ]
    assert result.timings[0].ratio == 1.0
    assert all(timing.median_ms > 0 for timing in result.timings)
