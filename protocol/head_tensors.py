"""A head's tensors: whole, or of low rank as what its directions are mixed with, by turns. (P-2.1, P-2.7)"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from protocol.errors import ArtefactError
from protocol.forms import HEAD, ordered_product
from protocol.head import HeadStart
from protocol.initial import ZEROS, Law
from protocol.layout import FIXED_HEAD_PART, HEAD_PART, HEAD_TURNS, TensorSpec

WEIGHT, BIAS = f"{HEAD}.weight", f"{HEAD}.bias"
MIX, DIRECTIONS = f"{HEAD}.mix_", f"{HEAD}.directions_"  # and the number of a turn, from 0
HEAD_LAW = Law("normal", 0.02)  # a head of zeros would pass no gradient to the adapter
MOST_PHASES = 15  # sets of parts: a program has a graph for each, and one that answers (P-11.3)
ROUNDING = 1e-5  # of a weight that was written in 32 bits


def head_specs(head: HeadStart | None, *, outputs: int, width: int) -> Iterator[TensorSpec]:
    """The tensors of a head of ``outputs`` on vectors of ``width``, as a plan begins it."""
    yield TensorSpec(name=BIAS, shape=(outputs,), part=HEAD_PART, law=ZEROS)
    if head is None:
        yield TensorSpec(name=WEIGHT, shape=(outputs, width), part=HEAD_PART, law=HEAD_LAW)
        return
    codes, directions = head.codes, head.directions
    if directions is None:
        part = HEAD_PART if head.trained else FIXED_HEAD_PART
        yield TensorSpec(name=WEIGHT, shape=(outputs, width), part=part, law=head.law)
        return
    of_directions = directions.codes
    for turn in range(directions.turns):
        chosen = slice(turn, None, directions.turns)
        mixed, fixed = codes[:, chosen], of_directions[chosen]
        part = HEAD_PART if directions.turns == 1 else HEAD_TURNS[turn]
        shape, law = (outputs, len(fixed)), head.law_of(mixed)
        yield TensorSpec(name=f"{MIX}{turn}", shape=shape, part=part, law=law)
        shape, law = (len(fixed), width), directions.law_of(fixed)
        yield TensorSpec(name=f"{DIRECTIONS}{turn}", shape=shape, part=FIXED_HEAD_PART, law=law)


def head_turns(head: HeadStart | None) -> tuple[frozenset[str], ...]:
    """Parts of the head that rounds train, by turns."""
    turns = head.directions.turns if head is not None and head.directions else 1
    if turns == 1:
        return (frozenset({HEAD_PART}),)
    return tuple(frozenset({HEAD_PART, part}) for part in HEAD_TURNS[:turns])


def turns_together(adapter: int, head: HeadStart | None) -> int:
    """Rounds after which the parts of ``adapter`` phases and of the head's turns come together again."""
    return math.lcm(adapter, len(head_turns(head)))


def with_whole_head(specs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """The same with a weight in the place of what is mixed."""
    shapes = {spec.name: spec.shape for spec in specs}
    yield from (spec for spec in specs if not spec.name.startswith((MIX, DIRECTIONS)))
    if f"{MIX}0" in shapes:
        shape = (shapes[f"{MIX}0"][0], shapes[f"{DIRECTIONS}0"][1])
        yield TensorSpec(name=WEIGHT, shape=shape, part=HEAD_PART)


def whole_head(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a weight in the place of what is mixed: arrays, or symbols of a program. (P-2.7)"""
    turns = sorted(name.removeprefix(MIX) for name in tensors if name.startswith(MIX))
    if not turns:
        return dict(tensors)
    mixes = [tensors[f"{MIX}{turn}"] for turn in turns]
    directions = [tensors[f"{DIRECTIONS}{turn}"] for turn in turns]
    if isinstance(mixes[0], np.ndarray):
        weight = ordered_product(np.concatenate(mixes, axis=1), np.concatenate(directions))
    else:
        products = [mix @ rows for mix, rows in zip(mixes, directions, strict=True)]
        weight = products[0]
        for product in products[1:]:
            weight = weight + product
    kept = {n: value for n, value in tensors.items() if not n.startswith((MIX, DIRECTIONS))}
    return kept | {WEIGHT: weight}


def mixed_head(tensors: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`whole_head`, up to rounding, by the directions of ``start``.

    Raises ArtefactError for another head.
    """
    names = sorted(name for name in start if name.startswith(DIRECTIONS))
    if not names:
        return dict(tensors)
    kept = {name: value for name, value in tensors.items() if name != WEIGHT}
    weight = tensors[WEIGHT].astype(np.float64)
    basis = np.concatenate([start[name] for name in names]).astype(np.float64)
    mix = np.linalg.lstsq(basis.T, weight.T)[0].T
    if not np.allclose(mix @ basis, weight, rtol=0, atol=ROUNDING * max(np.abs(weight).max(), 1)):
        raise ArtefactError(
            "the adapter's head is none of the plan's directions",
            "measure it under the plan that trained it",
        )
    at = 0
    for name in names:
        stop = at + len(start[name])
        kept[name] = start[name]
        kept[MIX + name.removeprefix(DIRECTIONS)] = mix[:, at:stop].astype(np.float32)
        at = stop
    return kept
