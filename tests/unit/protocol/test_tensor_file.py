"""Our files of tensors are byte for byte those of the safetensors library, and only those are read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.tensor_file import decode_tensors, encode_tensors

names = st.text(st.characters(codec="utf-8"), max_size=8).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=3)
files = st.dictionaries(names, shapes, max_size=5)


def filled(shapes_of: dict[str, list[int]]) -> Tensors:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=s).astype(np.float32) for name, s in shapes_of.items()}


SMALL = filled({"a": [2, 3], "b": [0, 5], "c": [], "d": [4]})
WHOLE = encode_tensors(SMALL, {"format": "pt"})


@given(files, st.dictionaries(names, st.text(st.characters(codec="utf-8")), max_size=1))
def test_the_bytes_are_those_of_the_library_and_come_back(
    shapes_of: dict[str, list[int]], metadata: dict[str, str]
) -> None:
    tensors = filled(shapes_of)
    data = encode_tensors(tensors, metadata)
    assert data == safetensors.numpy.save(tensors, metadata=metadata or None)
    found, said = decode_tensors(data, source="x")
    assert said == metadata
    assert list(found) == sorted(tensors)
    for name, value in found.items():
        assert value.dtype == np.float32
        assert value.shape == tensors[name].shape
        assert value.tobytes() == tensors[name].tobytes()


def test_bits_that_are_no_number_come_back_too() -> None:
    odd = np.array([0x7FC00001, 0xFFFFFFFF, 0x80000000, 1], np.uint32).view(np.float32)
    found, _ = decode_tensors(encode_tensors({"x": odd}, {}), source="x")
    assert found["x"].tobytes() == odd.tobytes()


def test_a_changed_bit_is_refused_or_in_a_tensor() -> None:
    head, refused = 8 + int.from_bytes(WHOLE[:8], "little"), set()
    for at in range(len(WHOLE)):
        for bit in range(8):
            changed = bytearray(WHOLE)
            changed[at] ^= 1 << bit
            try:
                found, said = decode_tensors(bytes(changed), source="f")
            except ArtefactError:
                refused.add(at)
                continue
            # What was read is exactly what was written: nothing in the file is left unread.
            assert encode_tensors(found, said) == changed
    assert refused <= set(range(head))
    assert len(refused) > head / 2


@pytest.mark.parametrize("size", [*range(9), 100, len(WHOLE) - 1])
def test_a_cut_file_is_refused(size: int) -> None:
    with pytest.raises(ArtefactError, match=r"^f: "):
        decode_tensors(WHOLE[:size], source="f")


def forged(header: Any, body: bytes = bytes(8)) -> bytes:
    text = (
        header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    )
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def entry(start: int, end: int, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]} | more


TWICE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DEEP = b'{"a":' + b"[" * 100_000
ALIKE = {"a": entry(0, 8)}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (forged(ALIKE) + b"x", "follow the last"),
        (forged({"a": entry(0, 4), "b": entry(0, 4)}), "overlaps"),
        (forged({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "leaves a gap"),
        (forged({"a": entry(4, 8)}), "leaves a gap"),
        (forged({"a": entry(0, 8, shape=[1])}), "length of its own"),
        (forged({"a": entry(0, 12)}), "cut off"),
        (forged({"a": entry(0, 8, dtype="F64")}), "dtype"),
        (forged({"a": entry(0, 8, dtype="X")}), "dtype"),
        (forged({"a": entry(0, 8, shape=[2.0])}), "no usable shape"),
        (forged({"a": entry(0, 8, shape=[True, 2])}), "no usable shape"),
        (forged({"a": entry(0, 8, shape=[-1, -2])}), "no usable shape"),
        (forged({"a": entry(0, 8, shape=[1] * 8 + [2])}), "no usable shape"),
        (forged({"a": entry(0, 8, shape="2")}), "no usable shape"),
        (forged({"a": entry(0, 8, note="x")}), "not described"),
        (forged({"a": [0, 8]}), "not described"),
        (forged({"a\n\x1b": [0, 8]}), r"tensor 'a\\n\\x1b' is not"),
        (forged({"b": entry(0, 4), "a": entry(4, 8)}), "ordered in another way"),
        (forged(ALIKE | {"__metadata__": {"k": "v"}}), "spelled or ordered"),
        (forged({"__metadata__": {}} | ALIKE), "spelled or ordered"),
        (forged({"__metadata__": {"k": 1}} | ALIKE), "metadata"),
        (forged({"__metadata__": "k"} | ALIKE), "metadata"),
        (forged({"\ud800": entry(0, 8)}), "surrogate"),
        (forged(json.dumps(ALIKE).encode()), "spelled or ordered"),
        (forged(b"{" + TWICE + b"," + TWICE + b"}"), "listed twice"),
        (forged(b"[]"), "no object"),
        (forged(b"{"), "not JSON"),
        (forged(b'{"\xff":1}'), "not UTF-8"),
        (forged(DEEP), "nested too deeply"),
        ((2**63).to_bytes(8, "little") + b"{}", "absurd"),
        ((2**24 + 8).to_bytes(8, "little") + b"{}" + b" " * 2**24 + bytes(8), "absurd"),
    ],
)
def test_another_form_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ArtefactError, match=why):
        decode_tensors(data, source="f")
