"""A tree that grows: RFC 6962's, kept as levels of complete subtrees. (P-8.1)

Level L holds the roots of the subtrees over leaves ``[i * 2^L, (i + 1) * 2^L)``; it never changes but at
its end. Everything else is a few hashes of these, whatever the size.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.merkle import EMPTY
from protocol.transparency.proofs import node_hash, peak_sizes

HASH = 32  # bytes


class Tree:
    """Over leaf hashes; an older tree is asked for by its ``size``."""

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self._levels = [bytearray()]  # hashes, one behind the other
        for leaf in hashes:
            self.append(leaf)

    @property
    def size(self) -> int:
        """Leaves."""
        return len(self._levels[0]) // HASH

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash."""
        level, node = 0, leaf
        self._levels[0] += node
        while len(self._levels[level]) // HASH % 2 == 0:
            last = len(self._levels[level]) // HASH
            node = node_hash(self._node(level, last - 2), node)
            level += 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += node

    def leaf(self, index: int) -> bytes:
        """A leaf's hash."""
        if not 0 <= index < self.size:
            raise IndexError(f"leaf {index} of {self.size}")
        return self._node(0, index)

    def _node(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][HASH * index : HASH * (index + 1)])

    def complete(self, level: int, start: int, stop: int) -> list[bytes]:
        """Roots ``start`` to ``stop`` of complete subtrees of ``2^level`` leaves."""
        if level >= len(self._levels):
            return []
        stop = min(stop, len(self._levels[level]) // HASH)
        return [self._node(level, index) for index in range(start, stop)]

    def root(self, size: int | None = None) -> bytes:
        """Root of the tree of the first ``size`` leaves, or of all."""
        size = self._within(size)
        return self._range(0, size) if size else EMPTY

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """The path of leaf ``index`` in the tree of ``size``. Raises IndexError outside it."""
        size = self._within(size)
        if not 0 <= index < size:
            raise IndexError(f"leaf {index} of {size}")
        path: list[bytes] = []
        start, stop = 0, size
        while stop - start > 1:
            split = start + _split(stop - start)
            if index < split:
                path.append(self._range(split, stop))
                stop = split
            else:
                path.append(self._range(start, split))
                start = split
        return path[::-1]

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """What shows that the tree of ``old`` leaves became that of ``size``."""
        size = self._within(size)
        if not 0 <= old <= size:
            raise IndexError(f"a tree of {old} in one of {size}")
        if old in (0, size):
            return []
        path: list[bytes] = []
        start, stop, whole = 0, size, True
        while stop != old:
            split = start + _split(stop - start)
            if old <= split:
                path.append(self._range(split, stop))
                stop = split
            else:
                path.append(self._range(start, split))
                start, whole = split, False
        return path[::-1] if whole else [self._range(start, stop), *path[::-1]]

    def peaks(self, size: int) -> list[bytes]:
        """Roots of the complete subtrees that the tree of ``size`` consists of, from the left."""
        size = self._within(size)
        roots, start = [], 0
        for count in peak_sizes(size):
            roots.append(self._range(start, start + count))
            start += count
        return roots

    def _range(self, start: int, stop: int) -> bytes:
        """Root over leaves ``[start, stop)``, where ``start`` is a multiple of the first split."""
        count = stop - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._node(level, start >> level)
        split = start + _split(count)
        return node_hash(self._range(start, split), self._range(split, stop))

    def _within(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise IndexError(f"a tree of {size} in one of {self.size}")
        return size


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << (count - 1).bit_length() - 1
