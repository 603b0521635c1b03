"""The boxes that the masks of lost clients came from, as an auditor gets them. (P-8.3)"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from protocol.merkle import leaf_hash
from protocol.secagg.graph import Graph
from protocol.secagg.transcript import PairBox
from protocol.transparency.proofs import inclusion_path


def pair_boxes(
    members: Collection[bytes],
    alive: Collection[bytes],
    *,
    graph: Graph,
    sealed: Mapping[bytes, Mapping[bytes, bytes]],
) -> list[PairBox]:
    """The box of each pair of a lost member and an alive neighbour, with its path to the signed root.

    ``sealed`` are the boxes by sender and receiver.
    """
    boxes = []
    for sender, receiver in graph.lost_pairs(members, alive):
        hashes = [leaf_hash(box) for box in sealed[sender].values()]
        path = inclusion_path(hashes, graph.holders[sender].index(receiver))
        boxes.append(
            PairBox(
                sender=sender.hex(),
                receiver=receiver.hex(),
                box=sealed[sender][receiver].hex(),
                path=[node.hex() for node in path],
            )
        )
    return boxes
