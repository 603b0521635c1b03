"""Berlekamp and Massey over GF(2): the shortest linear recurrence that a bit sequence obeys."""

from __future__ import annotations

from typing import Any


def linear_complexity(bits: Any) -> int:
    """Its length; near n/2 for n random bits. Polynomials are integers, one XOR per step."""
    connection, previous = 1, 1
    length, gap = 0, 1
    window = 0  # the sequence so far, latest bit lowest
    for number, bit in enumerate(bits.tolist()):
        window = window << 1 | bit
        if not (window & connection).bit_count() & 1:
            gap += 1
        elif 2 * length <= number:
            connection, previous = connection ^ previous << gap, connection
            length, gap = number + 1 - length, 1
        else:
            connection ^= previous << gap
            gap += 1
    return length
