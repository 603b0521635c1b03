"""Rules that need individual updates, and how far a round moved the model. (P-4.7)

One contribution is read at a time; factors are kept, never a dense product. Rules that need the mean
only are :mod:`protocol.step`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from protocol.adapter import (
    LORA_A,
    LORA_B,
    adapter_layout,
    as_plain_lora,
    client_rank,
    cut_to_rank,
    initial_adapter,
)
from protocol.encoding import seed_from
from protocol.exchange import Contribution
from protocol.layout import Layout, Tensors
from protocol.manifest import Manifest
from protocol.plan import Plan
from protocol.rules import Role, RuleContract
from protocol.step.optimizers import Moments
from protocol.step.state import State, global_rank

Wide = npt.NDArray[np.float64]


def apply_individuals(
    state: State,
    contributions: Iterator[tuple[str, Contribution]],
    *,
    plan: Plan,
    manifest: Manifest,
    contract: RuleContract,
    round_number: int,
) -> State:
    """The next state from single updates, in the order of client names."""
    factors: dict[str, list[tuple[float, Wide, Wide]]] = {}
    heads: dict[str, Wide] = {}
    total = 0
    received = adapter_layout(plan, manifest, rank=state.rank)
    for client, contribution in contributions:
        layout = adapter_layout(plan, manifest, rank=client_rank(plan, client))
        start = _start(state, received, layout, plan, manifest, contract, client, round_number)
        update = layout.only(contract.roles(round_number)).unflatten(contribution.update)
        total += contribution.weight
        for spec in layout.specs:
            if spec.role is Role.HEAD:
                move = contribution.weight * update[spec.name].astype(np.float64)
                heads[spec.name] = heads.get(spec.name, 0) + move
            elif spec.role is Role.LORA_A:
                path = spec.name.removesuffix(LORA_A)
                a = start[path + LORA_A].astype(np.float64) + update[path + LORA_A]
                b = start[path + LORA_B].astype(np.float64) + update[path + LORA_B]
                factors.setdefault(path, []).append((float(contribution.weight), a, b))
    adapter = {
        name: (state.adapter[name] + move / total).astype(np.float32)
        for name, move in heads.items()
    }
    for path, parts in factors.items():
        a = np.concatenate([part[1] for part in parts])
        b = np.concatenate([part[2] * (part[0] / total) for part in parts], axis=1)
        if contract.combine == "svd":
            a, b = best_factors(a, b, rank=global_rank(plan))
        else:
            a = np.concatenate([state.adapter[path + LORA_A], a])
            b = np.concatenate([state.adapter[path + LORA_B], b], axis=1)
        adapter[path + LORA_A], adapter[path + LORA_B] = a.astype(np.float32), b.astype(np.float32)
    rank = len(next(v for k, v in adapter.items() if k.endswith(LORA_A)))
    size = adapter_layout(plan, manifest, rank=rank).size
    return State(adapter=adapter, rank=rank, moments=Moments.zeros(size))


def best_factors(a: Wide, b: Wide, *, rank: int) -> tuple[Wide, Wide]:
    """The best rank-``rank`` factors of ``b @ a``: A (rank, in) orthonormal rows, B (out, rank).

    QR of both factors, then the SVD of a small square: the product itself is never formed. Signs are
    made canonical (the largest entry of each row of A is positive), so that others get the same
    bytes. Fewer than ``rank`` directions are padded with zeros.
    """
    q_b, r_b = np.linalg.qr(b)
    q_a, r_a = np.linalg.qr(a.T)
    u, sigma, vt = np.linalg.svd(r_b @ r_a.T)
    keep = min(rank, len(sigma))
    new_b, new_a = q_b @ (u[:, :keep] * sigma[:keep]), vt[:keep] @ q_a.T
    peaks = np.take_along_axis(new_a, np.abs(new_a).argmax(1)[:, None], 1)
    signs = np.where(peaks < 0, -1.0, 1.0)
    new_a, new_b = new_a * signs, new_b * signs.T
    short = rank - keep
    return np.pad(new_a, ((0, short), (0, 0))), np.pad(new_b, ((0, 0), (0, short)))


def change_norm(before: Tensors, after: Tensors, *, scaling: float) -> float:
    """L2 norm of what a round changed in the head and in the products ``scaling`` * B @ (R @) A.

    Ranks may differ. ``B1 A1 - B0 A0`` is one product of stacked factors, whose Frobenius norm
    only needs the triangles of their QR.
    """
    before, after = as_plain_lora(before), as_plain_lora(after)
    square = 0.0
    for name, value in after.items():
        if name.endswith(LORA_B):
            continue
        if name.endswith(LORA_A):
            path = name.removesuffix(LORA_A)
            a = np.concatenate([value, before[name]]).astype(np.float64)
            b = np.concatenate([after[path + LORA_B], -before[path + LORA_B]], axis=1)
            _, left = np.linalg.qr(b.astype(np.float64))
            _, right = np.linalg.qr(a.T)
            change = scaling * (left @ right.T)
        else:
            change = value.astype(np.float64) - before[name]
        square += float(np.sum(change * change))
    return float(np.sqrt(square))


def _start(
    state: State,
    received: Layout,
    layout: Layout,
    plan: Plan,
    manifest: Manifest,
    contract: RuleContract,
    client: str,
    round_number: int,
) -> Tensors:
    """What ``client`` started from, as it derives it itself (``client.worker``)."""
    if contract.fresh_each_round:
        seed = seed_from("fresh", plan.seed, round_number)
        return initial_adapter(layout, seed=seed, embedding_std=manifest.embedding_std)
    return cut_to_rank(state.adapter, received, client_rank(plan, client))
