"""What is written into an adapter's file is what was given: ONNX Runtime's values do not own their arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edge_runtime.base import EdgeBase
from edge_runtime.bench import write_random_adapter
from edge_runtime.edge_adapter import write_edge_adapter

MANY = 64  # enough that freed memory is used again before it is read


def read(path: Path) -> dict[str, Any]:
    form = ort.AdapterFormat.read_adapter(str(path))  # lives as long as its values are read
    return {name: value.numpy().copy() for name, value in form.get_parameters().items()}


@pytest.mark.parametrize("form", ["float32", "float64", "transposed", "sliced", "big-endian"])
def test_tensors_of_any_form_are_written_as_they_are(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors: dict[str, Any] = {}
    for number in range(MANY):
        value = rng.normal(0, 1, (48, 40)).astype(np.float32)
        tensors[f"t{number:03d}"] = {
            "float32": value,
            "float64": value.astype(np.float64),
            "transposed": value.T,
            "sliced": value[::2, 1::3],
            "big-endian": value.astype(">f4"),
        }[form]
    write_edge_adapter(tensors, tmp_path / "a.onnx_adapter")
    written = read(tmp_path / "a.onnx_adapter")
    assert written.keys() == tensors.keys()
    wrong = [n for n, v in tensors.items() if not np.array_equal(written[n], v.astype(np.float32))]
    assert wrong == []


def test_the_benchs_own_adapter_is_the_one_that_it_drew(tiny_base: Path, tmp_path: Path) -> None:
    base = EdgeBase.open(tiny_base)
    tensors = write_random_adapter(base, tmp_path / "a.onnx_adapter", 8)
    written = read(tmp_path / "a.onnx_adapter")
    assert written.keys() == tensors.keys()
    assert [n for n, v in tensors.items() if not np.array_equal(written[n], v)] == []
    assert all(np.abs(value).max() < 0.2 for value in written.values())
