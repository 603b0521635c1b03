"""Which shares of a secret are wrong, by those that agree. (P-6.8)

Shares are a Reed-Solomon code; Gao's decoder ("A new algorithm for decoding Reed-Solomon codes", 2003) finds
the polynomial by an extended Euclidean division. Polynomials are lists of coefficients, the lowest first;
zero is the empty list.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from protocol.secagg.shamir import PRIME, evaluate

Polynomial = list[int]


def wrong_places(shares: Mapping[int, int], threshold: int) -> set[int] | None:
    """Places of ``{place: share}`` that are off the polynomial of degree below ``threshold``.

    Of m shares up to ``floor((m - threshold) / 2)`` may be wrong. With more of them None, or other
    places than theirs: the caller compares the secret.
    """
    upper, lower = _zero_at(list(shares)), _through(shares)
    before: Polynomial = []
    factor: Polynomial = [1]
    while 2 * len(lower) - 2 >= len(shares) + threshold:
        quotient, rest = _divided(upper, lower)
        upper, lower = lower, rest
        before, factor = factor, _minus(before, _times(quotient, factor))
    polynomial, rest = _divided(lower, factor)
    if rest or len(polynomial) > threshold:
        return None
    return {place for place, share in shares.items() if evaluate(polynomial, place) != share}


def _zero_at(places: list[int]) -> Polynomial:
    product: Polynomial = [1]
    for place in places:
        product = _times(product, [-place % PRIME, 1])
    return product


def _through(shares: Mapping[int, int]) -> Polynomial:
    """Newton's interpolation."""
    inverse = cache(lambda difference: pow(difference, -1, PRIME))
    places, column = list(shares), list(shares.values())
    for order in range(1, len(places)):
        for at in range(len(places) - 1, order - 1, -1):
            difference = inverse(places[at] - places[at - order])
            column[at] = (column[at] - column[at - 1]) * difference % PRIME
    polynomial: Polynomial = []
    for place, coefficient in zip(reversed(places), reversed(column), strict=True):
        polynomial = _times(polynomial, [-place % PRIME, 1]) or [0]
        polynomial[0] = (polynomial[0] + coefficient) % PRIME
    return _trimmed(polynomial)


def _divided(above: Polynomial, below: Polynomial) -> tuple[Polynomial, Polynomial]:
    """(quotient, rest)."""
    rest, quotient = list(above), [0] * max(0, len(above) - len(below) + 1)
    inverse = pow(below[-1], -1, PRIME)
    for at in range(len(quotient) - 1, -1, -1):
        quotient[at] = rest[at + len(below) - 1] * inverse % PRIME
        for place, coefficient in enumerate(below):
            rest[at + place] = (rest[at + place] - quotient[at] * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    product = [0] * max(0, len(one) + len(other) - 1)
    for at, coefficient in enumerate(one):
        for place, value in enumerate(other):
            product[at + place] = (product[at + place] + coefficient * value) % PRIME
    return _trimmed(product)


def _minus(one: Polynomial, other: Polynomial) -> Polynomial:
    size = max(len(one), len(other))
    padded = (values + [0] * (size - len(values)) for values in (one, other))
    return _trimmed([(value - less) % PRIME for value, less in zip(*padded, strict=True)])


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial
