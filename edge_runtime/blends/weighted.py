"""The arithmetic of a blend, form by form, on what adapters put into the graph's slots. (docs/adr/0067)

A blend's low-rank change of a linear is the weighted sum of its parts' changes, its shifts are weighted sums
and its scales ``1 + sum of weight * (scale - 1)``; units of bottlenecks stand side by side. What a part
leaves out changes nothing, and counts so. A linear gives ``scale * (x W^T + bias + shift)``: two of them have
no sum of that form, so where a linear has both, they are one part's, as it is. One with fewer outputs than
inputs scales what it reads, also what factors read: those of a part are scaled to read what they read there.
A head is a whole, no change of one; its weighted sum is on the parts' scale only where weights sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.adapter import Tensors
from protocol.errors import ArtefactError, DataError
from protocol.forms import (
    BOTTLENECK,
    BOTTLENECK_UP,
    DOWN,
    PREFIX,
    SCALE,
    SHIFT,
    SOFT_PROMPT,
    UP,
)
from protocol.manifest import Linear
from protocol.peft_format import is_head

Array = npt.NDArray[Any]
WHOLE = 1e-6  # how far from 1 the weights of heads may sum: decimals are no binary fractions
UNMIXED = {SOFT_PROMPT: "a soft prompt", PREFIX: "a prefix"}


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """An adapter's ``tensors``, float32 in the shapes of slots; errors call it ``source``."""

    source: str
    weight: float
    tensors: Tensors


def blended(parts: Sequence[Weighted], linears: Sequence[Linear]) -> Tensors:
    """One adapter's tensors of several, float32. Sums are made in float64.

    Raises ArtefactError for a part that cannot be weighted or a sum beyond float32, DataError for weights
    that no head, or no linear with scale and shift, allows.
    """
    for part in parts:
        _verify_mixes(part)
    _verify_outputs(parts, linears)
    _verify_heads(parts)
    names = sorted({name for part in parts for name in part.tensors})
    tensors: Tensors = {}
    for linear in linears:
        pairs = [
            (part.weight, _down(part, parts, linear), part.tensors[linear.path + UP])
            for part in parts
            if linear.path + DOWN in part.tensors
        ]
        if pairs:
            down, up = low_rank_sum(pairs)
            tensors |= {linear.path + DOWN: down, linear.path + UP: up}
    for name in names:
        if name.endswith(BOTTLENECK):
            tensors[name] = _side_by_side(name, parts)
        elif not name.endswith((DOWN, UP)):
            tensors[name] = _sum(name, parts)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ArtefactError(f"{name} of the blend is beyond float32", "give smaller weights")
    return tensors


def _down(part: Weighted, parts: Sequence[Weighted], linear: Linear) -> Array:
    """(in, r): a part's first factor, to read in the blend what it reads in that part. Raises DataError."""
    name, down = linear.path + SCALE, part.tensors[linear.path + DOWN]
    if not linear.narrows or not any(name in each.tensors for each in parts):
        return down
    own = part.tensors.get(name, np.ones(len(down), np.float32)).astype(np.float64)
    whole = _sum(name, parts).astype(np.float64)
    reads = own[:, None] * down
    lost = (whole == 0) & reads.any(axis=1)
    if lost.any():
        raise DataError(
            f"{part.source}: {linear.path} would read nothing of input {int(np.argmax(lost))}, which this "
            "adapter reads",
            "give the adapters with scales (`ia3`) other weights",
        )
    return _single(reads / np.where(whole == 0, 1.0, whole)[:, None])


def low_rank_sum(pairs: Sequence[tuple[float, Array, Array]]) -> tuple[Array, Array]:
    """(in, r) and (r, out) whose product is that of (weight, down, up), weighted and summed.

    Factors stand side by side, those with the same ``down`` as one. Ranks above what a matrix of this size
    can have become the matrix itself beside the identity.
    """
    ups: dict[bytes, tuple[Array, Array]] = {}
    for weight, down, up in pairs:
        key = repr(down.shape).encode() + down.tobytes()
        before = ups[key][1] if key in ups else 0.0
        ups[key] = down, before + weight * up.astype(np.float64)
    down = np.concatenate([down for down, _ in ups.values()], axis=1)
    up = np.concatenate([up for _, up in ups.values()], axis=0)
    (width, rank), out = down.shape, up.shape[1]
    if rank > min(width, out):
        change = down.astype(np.float64) @ up
        down, up = (change, np.eye(out)) if out <= width else (np.eye(width), change)
    return _single(down), _single(up)


def _side_by_side(name: str, parts: Iterable[Weighted]) -> Array:
    """Of a bottleneck: units of all parts, each with its weight where it comes out."""
    own = [(part.weight, part.tensors[name]) for part in parts if name in part.tensors]
    if name.endswith(BOTTLENECK_UP):
        return _single(np.concatenate([weight * up.astype(np.float64) for weight, up in own]))
    return _single(np.concatenate([value for _, value in own], axis=-1))


def _sum(name: str, parts: Iterable[Weighted]) -> Array:
    """Of a slot that holds no factor."""
    rest = 1.0 if name.endswith(SCALE) else 0.0  # the value that changes nothing
    terms = (
        part.weight * (part.tensors[name].astype(np.float64) - rest)
        for part in parts
        if name in part.tensors
    )
    return _single(rest + sum(terms, np.float64(0.0)))


def _single(values: Any) -> Array:
    with np.errstate(over="ignore"):  # infinity is refused, by name
        return np.ascontiguousarray(values, np.float32)


def _verify_mixes(part: Weighted) -> None:
    """Every tensor is of a form with a weighted sum. Raises ArtefactError."""
    for name, words in UNMIXED.items():
        if name in part.tensors:
            raise ArtefactError(
                f"{part.source}: {words} cannot be blended: its rows stand one behind the other, and "
                "the first of one adapter is not about what the first of another is",
                "use this adapter alone, or train one of linears, such as `lora`",
            )
    known = (DOWN, UP, SCALE, SHIFT, *BOTTLENECK)
    odd = [name for name in part.tensors if not (name.endswith(known) or is_head(name))]
    if odd:
        raise ArtefactError(
            f"{part.source}: nothing is known of how {min(odd)} is blended",
            "use this adapter alone, or a newer fedge",
        )


def _verify_outputs(parts: Sequence[Weighted], linears: Sequence[Linear]) -> None:
    """What scales a linear's outputs scales its shift too: both are one part's of weight 1, or one is absent.

    Where the scale is one of inputs it is apart from the shift. Raises DataError.
    """
    for linear in linears:
        ends = [linear.path + end for end in (SCALE, SHIFT)]
        own = [part for part in parts if any(name in part.tensors for name in ends)]
        both = all(any(name in part.tensors for part in own) for name in ends)
        if linear.narrows or not both or (len(own) == 1 and own[0].weight == 1):
            continue
        raise DataError(
            f"{' and '.join(dict.fromkeys(part.source for part in own))}: the linear {linear.path} would "
            "have a scale and a shift, and a sum of each is not the sum of what both do",
            "give an adapter with both (`dora`) weight 1, beside others that leave scale and shift of this "
            "linear alone, or blend others, such as of `lora`",
        )


def _verify_heads(parts: Sequence[Weighted]) -> None:
    """All parts have a head, or none; weights of heads sum to 1. Raises ArtefactError, DataError."""
    heads = [{name for name in part.tensors if is_head(name)} for part in parts]
    for part, names in zip(parts, heads, strict=True):
        if names != heads[0]:
            raise ArtefactError(
                f"{part.source} and {parts[0].source}: one has a head that the other has not",
                "blend adapters of one kind",
            )
    total = sum(part.weight for part in parts)
    if heads[0] and abs(total - 1.0) > WHOLE:
        raise DataError(
            f"the weights sum to {total:g}; these adapters have heads, and a head is a whole, no change of "
            "the base's: only weights that sum to 1 leave its answers on their scale",
            "give weights that sum to 1; a negative one counts too",
        )
