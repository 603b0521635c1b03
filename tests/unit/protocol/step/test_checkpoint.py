"""A checkpoint's bytes: those of the safetensors library, and whatever else they say is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from protocol.encoding import vector_digest
from protocol.errors import ArtefactError
from protocol.layout import Tensors, Vector
from protocol.step.checkpoint import Note, decode_checkpoint, encode_checkpoint
from protocol.step.optimizers import Moments
from protocol.step.state import State
from protocol.tensor_file import encode_tensors


def vector(size: int, seed: int) -> Vector:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


ADAPTER: Tensors = {
    "m.lora_A": vector(10, 0).reshape(2, 5),
    "m.lora_B": vector(12, 1).reshape(6, 2),
    "head.bias": vector(3, 2),
}
FLAT = np.concatenate([ADAPTER[name].reshape(-1) for name in sorted(ADAPTER)])
STATE = State(adapter=ADAPTER, moments=Moments(first=vector(25, 3), second=vector(25, 4)))
NOTE = Note(
    round=7, plan_digest="p" * 64, base_fingerprint="b" * 64, adapter_digest=vector_digest(FLAT)
)
SAID = {
    "format": "fedge-checkpoint-1",
    "round": "7",
    "plan_digest": "p" * 64,
    "base_fingerprint": "b" * 64,
    "adapter_digest": vector_digest(FLAT),
}
TENSORS: Tensors = {f"adapter/{name}": value for name, value in ADAPTER.items()} | {
    "moment1": STATE.moments.first,
    "moment2": STATE.moments.second,
}


def file(tensors: Tensors = TENSORS, said: Any = SAID) -> bytes:
    return encode_tensors(tensors, {"fedge": json.dumps(said, sort_keys=True)})


def test_the_bytes_are_those_of_the_library_and_come_back() -> None:
    data = encode_checkpoint(STATE, NOTE)
    metadata = {"fedge": json.dumps(SAID, sort_keys=True)}
    ordered = {name: TENSORS[name] for name in sorted(TENSORS)}
    assert data == file() == safetensors.numpy.save(ordered, metadata=metadata)
    state, note = decode_checkpoint(data, source="c")
    assert note == NOTE
    assert encode_checkpoint(state, note) == data
    assert {name: value.shape for name, value in state.adapter.items()} == {
        name: value.shape for name, value in ADAPTER.items()
    }


def without(name: str) -> Tensors:
    return {key: value for key, value in TENSORS.items() if key != name}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (file(without("moment2")), "two moments"),
        (file(TENSORS | {"more": vector(1, 0)}), "two moments"),
        (file({"moment1": vector(0, 0), "moment2": vector(0, 0)}), "two moments"),
        (file(TENSORS | {"moment1": vector(24, 3)}), "different sizes"),
        (file(TENSORS | {"moment1": vector(25, 3).reshape(5, 5)}), "different sizes"),
        (file(without("adapter/head.bias")), "different sizes"),
        (file(TENSORS | {"adapter/head.bias": vector(3, 9)}), "bytes have changed"),
        (file(said=SAID | {"round": 7}), "metadata"),
        (file(said=SAID | {"round": "07"}), "metadata"),
        (file(said=SAID | {"note": "x"}), "metadata"),
        (file(said=SAID | {"format": "fedge-checkpoint-2"}), "metadata"),
        (file(said=SAID | {"plan_digest": ["p"]}), "metadata"),
        (file(said=[]), "metadata"),
        (encode_tensors(TENSORS, {}), "metadata"),
        (encode_tensors(TENSORS, {"fedge": json.dumps(SAID)}), "metadata"),
        (file()[:-1], "cut off"),
    ],
)
def test_another_file_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ArtefactError, match=f"^c: .*{why}"):
        decode_checkpoint(data, source="c")
