"""``weights.safetensors`` is read in pieces, and what is odd in it is named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from base_model.weights_file import DTYPES, places_of, tensor_entries, tensor_entry
from protocol.errors import ArtefactError

MIB = 2**20


def test_a_tensor_in_a_file_has_the_entry_that_it_has_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "codes": rng.integers(0, 256, (3, 2, 16), np.uint8),
        "empty": np.zeros((0, 4), np.float32),
        "half": rng.normal(size=(5,)).astype(np.float16),
        "long": np.arange(3, dtype=np.int64),
        "more than a piece": rng.normal(size=(700, 500)).astype(np.float32),
        "scalar": np.array(3, np.float32),
    }
    save_file(tensors, tmp_path / "w")
    assert tensor_entries(tmp_path / "w") == {n: tensor_entry(a) for n, a in tensors.items()}


def test_each_place_holds_its_tensor(tmp_path: Path) -> None:
    tensors = {name: np.arange(n, dtype=np.int32) + n for n, name in enumerate("abc", 5)}
    save_file(tensors, tmp_path / "w", metadata={"of": "nobody"})
    data = (tmp_path / "w").read_bytes()
    places = places_of(tmp_path / "w")
    assert places.keys() == tensors.keys()
    for name, place in places.items():
        held = np.frombuffer(data[place.offset :][: place.length], DTYPES[place.kind]).reshape(
            place.shape
        )
        assert (held == tensors[name]).all()


def test_a_large_tensor_is_never_whole_in_memory(tmp_path: Path) -> None:
    save_file({"large": np.ones((32 * MIB,), np.uint8)}, tmp_path / "w")
    tracemalloc.start()
    try:
        tensor_entries(tmp_path / "w")
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_a_type_that_no_base_has_is_named(tmp_path: Path) -> None:
    save_torch({"w": torch.zeros(2, dtype=torch.float64)}, str(tmp_path / "w"))
    assert places_of(tmp_path / "w")["w"].kind == "F64"
    with pytest.raises(ArtefactError, match="F64"):
        tensor_entries(tmp_path / "w")


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\x05" + b"\x00" * 7 + b"{}"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(ArtefactError, match="is cut or damaged"):
        tensor_entries(tmp_path / "w")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read"):
        tensor_entries(tmp_path / "w")
