"""RFC 6962 Merkle tree hash, SHA-256: one root for a list of byte strings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes | memoryview) -> bytes:
    """``SHA-256(0x00 leaf)``."""
    state = hashlib.sha256(b"\x00")
    state.update(leaf)
    return state.digest()


def merkle_root(leaves: Sequence[bytes | memoryview]) -> bytes:
    """Root (32 bytes) of RFC 6962 section 2.1: split at the largest power of two below the length."""
    level = [leaf_hash(leaf) for leaf in leaves]
    if not level:
        return EMPTY
    # Pairing neighbours and carrying an odd last node up gives the same tree as the recursion.
    while len(level) > 1:
        paired = [
            hashlib.sha256(b"\x01" + level[index] + level[index + 1]).digest()
            for index in range(0, len(level) - 1, 2)
        ]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]
