"""A log as static files: C2SP tlog-tiles, 256 hashes or entries each. (P-8.4)

A full tile never changes. The last tile of a level is partial and named with its width; nothing is
hashed from it into the level above.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from protocol.errors import ProofError
from protocol.transparency.tree import Tree

WIDTH, HEIGHT = 256, 8
MOST_LEAVES = 2**24  # of a log that an auditor or a witness reads whole
LENGTH = struct.Struct(">H")
REMEDY = "fetch it again; if that does not help, the log is faulty"


def tile_path(level: int, index: int, width: int = WIDTH) -> str:
    """The hash tile ``index`` of ``level``, relative to the log."""
    return f"tile/{level}/{_number(index)}{_partial(width)}"


def entries_path(index: int, width: int = WIDTH) -> str:
    """The bundle of entries ``[256 * index, 256 * index + width)``."""
    return f"tile/entries/{_number(index)}{_partial(width)}"


def pack_entries(entries: Sequence[bytes]) -> bytes:
    """A bundle: each entry behind its length. Raises ValueError for one above 65,535 bytes."""
    if any(len(entry) > 0xFFFF for entry in entries):
        raise ValueError("an entry of more than 65,535 bytes")
    return b"".join(LENGTH.pack(len(entry)) + entry for entry in entries)


def parse_entries(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises ProofError for one that ends early or holds too many."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        if at + LENGTH.size > len(data):
            raise ProofError("a bundle of entries ends early", REMEDY)
        size = LENGTH.unpack_from(data, at)[0]
        at += LENGTH.size
        if at + size > len(data) or len(entries) == WIDTH:
            raise ProofError("a bundle of entries ends early or holds too many", REMEDY)
        entries.append(data[at : at + size])
        at += size
    return entries


def tiles_grown(tree: Tree, old: int) -> list[tuple[str, bytes]]:
    """The hash tiles to write when the tree has grown from ``old`` leaves."""
    found = []
    for level in range((tree.size.bit_length() - 1) // HEIGHT + 1 if tree.size else 0):
        count, before = tree.size >> HEIGHT * level, old >> HEIGHT * level
        if count == before:
            continue
        for index in range(before // WIDTH, -(-count // WIDTH)):
            hashes = tree.complete(HEIGHT * level, index * WIDTH, min((index + 1) * WIDTH, count))
            found.append((tile_path(level, index, len(hashes)), b"".join(hashes)))
    return found


def entry_tiles(old: int, size: int) -> list[tuple[str, int, int]]:
    """(path, first entry, one behind the last) of the bundles to write after growing from ``old``."""
    if old == size:
        return []
    return [
        (entries_path(index, stop - index * WIDTH), index * WIDTH, stop)
        for index in range(old // WIDTH, -(-size // WIDTH))
        for stop in (min((index + 1) * WIDTH, size),)
    ]


def tiles_needed(size: int) -> list[tuple[str, int]]:
    """The bundles of a log of ``size`` entries, with how many each holds."""
    return [(path, stop - first) for path, first, stop in entry_tiles(0, size)]


def _number(index: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03d}")
    return "/".join(groups)


def _partial(width: int) -> str:
    return "" if width == WIDTH else f".p/{width}"
