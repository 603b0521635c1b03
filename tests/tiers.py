"""Which members of a parameter the default suite has: the others are for the slower commands of the Makefile."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

EXHAUSTIVE = (pytest.mark.slow, pytest.mark.exhaustive)  # of `make test-slow` alone


def some_by_default(chosen: Collection[object], members: Iterable[object]) -> list[Any]:
    """All members as parameters; those that are not ``chosen`` are slow."""
    return [
        member if member in chosen else pytest.param(member, marks=pytest.mark.slow)
        for member in members
    ]


def one_by_default(chosen: object, members: Iterable[object]) -> list[Any]:
    return some_by_default([chosen], members)


def each_once(some: Sequence[object], others: Sequence[object]) -> list[Any]:
    """All pairs as parameters; those beyond the first with each member are for `make test-slow`."""
    pairs = []
    for at, one in enumerate(some):
        for place, other in enumerate(others):
            longer = max(len(some), len(others))
            first = any(n % len(some) == at and n % len(others) == place for n in range(longer))
            pairs.append(pytest.param(one, other, marks=[] if first else pytest.mark.exhaustive))
    return pairs


def first_and_another(some: Sequence[object], others: Sequence[object]) -> list[Any]:
    """All pairs as parameters; beyond the first of ``others`` and one more, in turn, for `make test-slow`."""
    return [
        pytest.param(
            one,
            other,
            marks=[] if place in (0, 1 + at % (len(others) - 1)) else pytest.mark.exhaustive,
        )
        for at, one in enumerate(some)
        for place, other in enumerate(others)
    ]
