"""The boxes that the masks of lost clients came from, as an auditor gets them. (P-8.3)"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from protocol.merkle import leaf_hash
from protocol.secagg.transcript import PairBox
from protocol.transparency.proofs import inclusion_path


def pair_boxes(
    members: Collection[bytes],
    alive: Collection[bytes],
    *,
    near: Mapping[bytes, tuple[bytes, ...]],
    sealed: Mapping[bytes, Mapping[bytes, bytes]],
) -> list[PairBox]:
    """The box of each pair of a lost member and an alive neighbour, with its path to the signed root.

    ``near`` are each client's neighbours, ``sealed`` the boxes by sender and receiver.
    """
    pairs = [
        sorted((lost, neighbour))
        for lost in members
        if lost not in alive
        for neighbour in near[lost]
        if neighbour in alive
    ]
    boxes = []
    for lower, higher in pairs:
        hashes = [leaf_hash(box) for box in sealed[lower].values()]
        path = inclusion_path(hashes, near[lower].index(higher))
        boxes.append(
            PairBox(
                sender=lower.hex(),
                receiver=higher.hex(),
                box=sealed[lower][higher].hex(),
                path=[node.hex() for node in path],
            )
        )
    return boxes
