"""Low-rank factors of linears that are one product in a graph, and which ranks are a row's own. (P-1.13)

Such a product, `joined`, has one pair of inputs: the first factors of its linears side by side, (in, ranks),
and the second ones on the diagonal of (ranks, out), zeros elsewhere. Adapters know nothing of it: they hold a
pair for each linear. (P-1.11)

An input ``ranks.N`` multiplies what the first factor of a product of N linears gives, (rows * new, ranks):
ones where a rank is of the row's own adapter, zeros elsewhere. Its default is a one for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from protocol.forms import DOWN, UP
from protocol.manifest import Linear, Slot

RANKS = "ranks."
Joined = Mapping[str, Sequence[str]]  # paths of linears, in order, by the path of their product


def low_rank_slots(path: str, out: int, width: int) -> list[Slot]:
    """Both factors of a product of ``width`` inputs. The symbol of its rank is its own.

    With one symbol ONNX Runtime's memory planner assumes equal ranks everywhere.
    """
    rank = f"r_{path}"
    return [
        Slot(name=path + DOWN, dtype="float32", shape=[width, rank]),
        Slot(name=path + UP, dtype="float32", shape=[rank, out]),
    ]


def ranks_slot(linears: int) -> Slot:
    """The input that says which ranks are a row's own, of products of so many linears."""
    name = f"{RANKS}{linears}"
    return Slot(name=name, dtype="float32", shape=[f"{name}.rows", f"{name}.width"])


def products(linears: Sequence[Linear], joined: Joined) -> dict[str, list[Linear]]:
    """The linears of every product by its path: that of the joined ones, else the linear's own."""
    by_path = {linear.path: linear for linear in linears}
    parts = {part for paths in joined.values() for part in paths}
    alone = {path: [linear] for path, linear in by_path.items() if path not in parts}
    return alone | {path: [by_path[part] for part in paths] for path, paths in joined.items()}


def rank_inputs(linears: Sequence[Linear], joined: Joined) -> list[str]:
    """Names of the inputs that say which ranks are a row's own."""
    counts = {len(parts) for parts in products(linears, joined).values()}
    return [ranks_slot(count).name for count in sorted(counts)]


def verify_joined(linears: Sequence[Linear], joined: Joined) -> None:
    """Raises ValueError unless a product is of two linears or more that read the same, and no other's."""
    by_path = {linear.path: linear for linear in linears}
    parts = [part for paths in joined.values() for part in paths]
    if len(parts) > len(set(parts)) or not set(parts) <= by_path.keys():
        raise ValueError("a linear is part of two products, or is none of the base's")
    for path, paths in joined.items():
        widths = {by_path[part].in_features for part in paths}
        if len(paths) < 2 or len(widths) > 1 or path in by_path:
            raise ValueError(f"{path} is no product of linears that read the same")


def joined_slots(slots: Sequence[Slot], linears: Sequence[Linear], joined: Joined) -> list[Slot]:
    """The inputs that ``slots`` of adapters are in a graph."""
    parts = {part + end for paths in joined.values() for part in paths for end in (DOWN, UP)}
    kept = [slot for slot in slots if slot.name not in parts]
    for path, members in products(linears, joined).items():
        if path in joined:
            out = sum(linear.out_features for linear in members)
            kept += low_rank_slots(path, out, members[0].in_features)
    return kept


def joined_tensors(
    tensors: Mapping[str, Any], linears: Sequence[Linear], joined: Joined
) -> dict[str, Any]:
    """An adapter's tensors, float32, as a graph takes them. Linears without factors have no ranks."""
    inputs = dict(tensors)
    for path, members in products(linears, joined).items():
        if path not in joined:
            continue
        pairs = [_pair(inputs, linear) for linear in members]
        ranks = sum(down.shape[1] for down, _ in pairs)
        if not ranks:
            continue
        up, row, column = np.zeros((ranks, sum(u.shape[1] for _, u in pairs)), np.float32), 0, 0
        for _, part in pairs:
            up[row : row + part.shape[0], column : column + part.shape[1]] = part
            row, column = row + part.shape[0], column + part.shape[1]
        inputs[path + DOWN] = np.concatenate([down for down, _ in pairs], axis=1)
        inputs[path + UP] = up
    return inputs


def _pair(tensors: dict[str, Any], linear: Linear) -> tuple[Any, Any]:
    """Both factors of a linear, which are then no longer among ``tensors``."""
    down = tensors.pop(linear.path + DOWN, np.zeros((linear.in_features, 0), np.float32))
    up = tensors.pop(linear.path + UP, np.zeros((0, linear.out_features), np.float32))
    return down, up
