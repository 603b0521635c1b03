"""A file without its zeros: comes back to the byte, in one spelling, and nothing else is read. (P-9.10)"""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.bitmap_form import HEAD, MAGIC, decode_bitmap, encode_bitmap
from protocol.errors import ArtefactError
from tests.unit.published_vectors import load

# Runs of zeros among other bytes, as adapters are, at any length.
FILES = st.lists(st.one_of(st.binary(max_size=9), st.integers(0, 40).map(bytes)), max_size=12).map(
    b"".join
)


@given(FILES)
def test_a_file_comes_back(data: bytes) -> None:
    form = encode_bitmap(data)
    assert decode_bitmap(form, length=len(data), source="x") == data
    padded = data + bytes(-len(data) % 4)
    stated = sum(padded[at : at + 4] != bytes(4) for at in range(0, len(padded), 4))
    assert len(form) == HEAD + -(-len(padded) // 32) + 4 * stated


@given(FILES, st.data())
def test_no_other_bytes_are_a_form(data: bytes, draw: Any) -> None:
    """Whatever is read is what the file is written as."""
    form = bytearray(encode_bitmap(data))
    at = draw.draw(st.integers(0, 8 * len(form) - 1))
    form[at // 8] ^= 1 << at % 8
    changed = bytes(form[: draw.draw(st.sampled_from([len(form), len(form), at // 8]))])
    try:
        other = decode_bitmap(changed, length=len(data), source="x")
    except ArtefactError:
        return
    assert encode_bitmap(other) == changed
    assert other != data


@given(st.binary(max_size=80), st.integers(0, 2**40))
def test_strangers_bytes_are_refused_without_a_crash(data: bytes, length: int) -> None:
    for form in (data, MAGIC + data, MAGIC + length.to_bytes(8, "little") + data):
        try:
            whole = decode_bitmap(form, length=length, source="x")
        except ArtefactError:
            continue
        assert encode_bitmap(whole) == form


def test_nothing_is_allocated_for_a_length_that_the_form_does_not_have() -> None:
    form = MAGIC + (2**40).to_bytes(8, "little") + bytes(1000)
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match="cut off"):
            decode_bitmap(form, length=2**40, source="x")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", load("bitmap.json")["forms"], ids=lambda case: case["what"])
def test_vectors(case: dict[str, str]) -> None:
    """In Python's own bytes."""
    data, form = bytes.fromhex(case["file"]), bytes.fromhex(case["form"])
    padded = data + bytes(-len(data) % 4)
    words = [padded[at : at + 4] for at in range(0, len(padded), 4)]
    bits = [word != bytes(4) for word in words]
    bitmap = bytes(
        sum(bit << place for place, bit in enumerate(bits[at : at + 8]))
        for at in range(0, len(bits), 8)
    )
    stated = b"".join(word for word in words if word != bytes(4))
    assert struct.pack("<8sQ", b"fedgeB1\0", len(data)) + bitmap + stated == form
    assert decode_bitmap(form, length=len(data), source="x") == data


@pytest.mark.parametrize("case", load("bitmap.json")["refused"], ids=lambda case: case["why"])
def test_refused(case: dict[str, str]) -> None:
    length = load("bitmap.json")["length"]
    with pytest.raises(ArtefactError, match=f"home: .*{case['error']}") as caught:
        decode_bitmap(bytes.fromhex(case["form"]), length=length, source="home")
    assert "publisher" in caught.value.remedy
