"""Base64 in its one spelling, here and in the second verifier. (P-1.1)"""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import base64_bytes, base64_text
from tests.interop.verifier.basics import octets

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@given(st.binary(max_size=40))
def test_what_is_written_is_read(data: bytes) -> None:
    assert base64_text(data) == base64.b64encode(data).decode()
    assert base64_bytes(base64_text(data)) == octets(base64_text(data)) == data


@given(st.text(ALPHABET + "=", max_size=12))
def test_a_text_is_read_by_both_or_by_neither_and_then_it_is_the_only_one(text: str) -> None:
    try:
        data = base64_bytes(text)
    except ValueError:
        with pytest.raises((ValueError, AssertionError)):
            octets(text)
    else:
        assert base64_text(data) == text
        assert octets(text) == data


@given(st.binary(min_size=1, max_size=40).filter(lambda data: len(data) % 3), st.data())
def test_bits_that_are_left_over_are_zero(data: bytes, drawn: st.DataObject) -> None:
    """Other decoders ignore them: one vector of codes would have 4 or 16 texts, and plans as many digests."""
    text = base64_text(data).rstrip("=")
    least = ALPHABET.index(text[-1])
    other = least + drawn.draw(st.integers(1, 15 if len(data) % 3 == 1 else 3))
    again = text[:-1] + ALPHABET[other] + "=" * (-len(text) % 4)
    assert base64.b64decode(again, validate=True) == data
    with pytest.raises(ValueError, match="one spelling"):
        base64_bytes(again)
    with pytest.raises(AssertionError):
        octets(again)


@pytest.mark.parametrize(
    "text", ["AAAA=", "AAAA==", "AA==AAAA", "AA=", "A", "AA\n==", "AA-_", "é="]
)
def test_padding_and_characters_are_those_of_the_rfc(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        base64_bytes(text)
