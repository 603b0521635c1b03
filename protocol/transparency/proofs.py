"""Proofs about a Merkle tree: a leaf is in it, a later tree only grew. (P-8.1; RFC 9162, 2.1.3 and 2.1.4)

Trees are given by their leaf hashes, in order. ``verify_*`` raises ProofError and never returns a
truth value that somebody could forget to look at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from protocol.errors import ProofError
from protocol.merkle import EMPTY

REMEDY = "the log, or whoever passed it on, is faulty or dishonest: keep what you have as evidence"


def node_hash(left: bytes, right: bytes) -> bytes:
    """``SHA-256(0x01 left right)``."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_root(hashes: Sequence[bytes]) -> bytes:
    """Root (32 bytes) of the tree over leaf ``hashes``."""
    level = list(hashes)
    if not level:
        return EMPTY
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def peak_sizes(size: int) -> list[int]:
    """Leaves under each of the complete subtrees that a tree of ``size`` consists of, from the left."""
    return [1 << bit for bit in range(size.bit_length() - 1, -1, -1) if size >> bit & 1]


def root_after(start: int, peaks: Sequence[bytes], leaves: Iterable[bytes]) -> bytes:
    """Root of the tree whose first ``start`` leaves have these ``peaks``, and then ``leaves`` (hashes).

    Nothing else of the tree is needed: whoever knows its root knows that these leaves are its last.
    Raises ProofError for another number of peaks than ``start`` has.
    """
    sizes = peak_sizes(start)
    if len(sizes) != len(peaks):
        raise ProofError(f"{len(peaks)} peaks of a tree of {start} leaves", REMEDY)
    stack = list(zip(sizes, peaks, strict=True))
    for leaf in leaves:
        size, node = 1, leaf
        while stack and stack[-1][0] == size:
            size, node = 2 * size, node_hash(stack.pop()[1], node)
        stack.append((size, node))
    if not stack:
        return EMPTY
    root = stack.pop()[1]
    while stack:
        root = node_hash(stack.pop()[1], root)
    return root


def inclusion_path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes beside the way from leaf ``index`` up. Raises IndexError outside the tree."""
    if not 0 <= index < len(hashes):
        raise IndexError(f"leaf {index} of {len(hashes)}")
    path, level = [], list(hashes)
    while len(level) > 1:
        beside = index ^ 1
        if beside < len(level):
            path.append(level[beside])
        level, index = _parents(level), index // 2
    return path


def consistency_path(hashes: Sequence[bytes], old: int) -> list[bytes]:
    """What shows that the tree of the first ``old`` leaves became this one. Empty for 0 and all."""
    if not 0 <= old <= len(hashes):
        raise IndexError(f"a tree of {old} in one of {len(hashes)}")
    if old in (0, len(hashes)):
        return []
    return _subproof(list(hashes), old, whole=True)


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> None:
    """``leaf`` (a leaf hash) is at ``index`` of the tree of ``size`` with ``root``."""
    if not 0 <= index < size:
        raise ProofError(f"leaf {index} is not in a tree of {size}", REMEDY)
    fn, sn, found = index, size - 1, leaf
    for node in path:
        if sn == 0:
            raise ProofError("the inclusion proof is too long", REMEDY)
        if fn & 1 or fn == sn:
            found = node_hash(node, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, node)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ProofError("the inclusion proof is too short", REMEDY)
    if found != root:
        raise ProofError(f"leaf {index} is not what the tree of {size} holds there", REMEDY)


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]
) -> None:
    """The tree of ``new`` leaves begins with the tree of ``old`` leaves."""
    if not 0 <= old <= new:
        raise ProofError(f"the log shrank from {old} to {new} leaves", REMEDY)
    if old in (0, new):
        expected = new_root if old else EMPTY
        if path or old_root != expected or (new == 0 and new_root != EMPTY):
            raise ProofError(f"two different trees of {old} leaves", REMEDY)
        return
    nodes = list(path)
    if old & (old - 1) == 0:
        nodes.insert(0, old_root)
    if not nodes:
        raise ProofError("the consistency proof is empty", REMEDY)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    first = second = nodes[0]
    for node in nodes[1:]:
        if sn == 0:
            raise ProofError("the consistency proof is too long", REMEDY)
        if fn & 1 or fn == sn:
            first, second = node_hash(node, first), node_hash(node, second)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            second = node_hash(second, node)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ProofError("the consistency proof is too short", REMEDY)
    if first != old_root or second != new_root:
        raise ProofError(f"the tree of {new} leaves does not begin with that of {old}", REMEDY)


def _parents(level: list[bytes]) -> list[bytes]:
    # Pairing neighbours and carrying an odd last node up gives the same tree as RFC 6962's recursion.
    paired = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return [*paired, level[-1]] if len(level) % 2 else paired


def _subproof(hashes: list[bytes], old: int, *, whole: bool) -> list[bytes]:
    """SUBPROOF(m, D_n, b) of RFC 9162, 2.1.4.1."""
    size = len(hashes)
    if old == size:
        return [] if whole else [tree_root(hashes)]
    split = 1 << (size - 1).bit_length() - 1
    if old <= split:
        return [*_subproof(hashes[:split], old, whole=whole), tree_root(hashes[split:])]
    return [*_subproof(hashes[split:], old - split, whole=False), tree_root(hashes[:split])]
