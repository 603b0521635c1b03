"""Shamir's secret sharing over p = 2^255 - 19. (P-6.2)

Python's integers are not constant-time; each secret is shared once per attempt, locally.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol.secagg.primitives import RandomBytes

PRIME = 2**255 - 19
ELEMENT_BYTES = 32


def random_element(random: RandomBytes) -> int:
    """Uniform in [0, p), by rejection."""
    while True:
        value = int.from_bytes(random(ELEMENT_BYTES), "big") & (2**255 - 1)
        if value < PRIME:
            return value


def split(secret: int, places: Sequence[int], threshold: int, random: RandomBytes) -> list[int]:
    """One share per place; any ``threshold`` of them give the secret, fewer give nothing.

    Raises ValueError for a secret outside the field, places that repeat or are 0, or a threshold
    outside 1..len(places).
    """
    if not 0 <= secret < PRIME:
        raise ValueError("the secret is not a field element")
    if len(set(places)) != len(places) or not all(0 < place < PRIME for place in places):
        raise ValueError("places are distinct and not 0")
    if not 1 <= threshold <= len(places):
        raise ValueError("the threshold is between 1 and the number of places")
    coefficients = [secret, *(random_element(random) for _ in range(threshold - 1))]
    return [evaluate(coefficients, place) for place in places]


def combine(shares: Mapping[int, int], *, at: int = 0) -> int:
    """The polynomial through ``{place: share}`` at ``at`` (Lagrange); at 0 it is the secret."""
    if at in shares:
        return shares[at]
    above, below = 1, []
    for place in shares:
        above = above * (at - place) % PRIME
        product = at - place
        for other in shares:
            if other != place:
                product = product * (place - other) % PRIME
        below.append(product)
    value = 0
    for share, inverse in zip(shares.values(), _inverses(below), strict=True):
        value = (value + share * inverse) % PRIME
    return value * above % PRIME


def _inverses(values: Sequence[int]) -> list[int]:
    """All inverses at the price of one (Montgomery's trick): an inverse costs as much as 100 products."""
    before, product = [], 1
    for value in values:
        before.append(product)
        product = product * value % PRIME
    rest = pow(product, -1, PRIME)
    result = []
    for value, prefix in zip(reversed(values), reversed(before), strict=True):
        result.append(rest * prefix % PRIME)
        rest = rest * value % PRIME
    return result[::-1]


def to_bytes(element: int) -> bytes:
    """32 bytes, big-endian."""
    return element.to_bytes(ELEMENT_BYTES, "big")


def from_bytes(data: bytes) -> int | None:
    """The element, or None for bytes that are none."""
    value = int.from_bytes(data, "big")
    return value if len(data) == ELEMENT_BYTES and value < PRIME else None


def evaluate(coefficients: Sequence[int], place: int) -> int:
    """The polynomial with these coefficients, the lowest first, at ``place``."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value
