"""A growing tree and its tiles say what the plain recursion over all leaves says."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProofError
from protocol.merkle import leaf_hash
from protocol.transparency import proofs
from protocol.transparency.tiles import (
    WIDTH,
    entries_path,
    entry_tiles,
    pack_entries,
    parse_entries,
    tile_path,
    tiles_grown,
    tiles_needed,
)
from protocol.transparency.tree import Tree


def hashes(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def test_every_root_and_proof_of_every_size() -> None:
    leaves = hashes(66)
    tree = Tree(leaves)
    for size in range(67):
        assert tree.root(size) == proofs.tree_root(leaves[:size])
        for index in range(size):
            path = tree.inclusion(index, size)
            assert path == proofs.inclusion_path(leaves[:size], index)
        for old in range(size + 1):
            assert tree.consistency(old, size) == proofs.consistency_path(leaves[:size], old)


@given(st.integers(1, 3000), st.data())
def test_proofs_of_larger_trees_verify(size: int, data: st.DataObject) -> None:
    tree = Tree(hashes(size))
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    leaf = leaf_hash(str(index).encode())
    proofs.verify_inclusion(leaf, index, size, tree.inclusion(index), tree.root())
    path = tree.consistency(old)
    proofs.verify_consistency(old, size, tree.root(old), tree.root(), path)


def test_what_is_not_there_is_an_index_error() -> None:
    tree = Tree(hashes(5))
    for wrong in (lambda: tree.root(6), lambda: tree.inclusion(5), lambda: tree.consistency(6)):
        with pytest.raises(IndexError):
            wrong()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (tile_path(0, 0), "tile/0/000"),
        (tile_path(1, 1234067, 8), "tile/1/x001/x234/067.p/8"),
        (entries_path(1000), "tile/entries/x001/000"),
        (entries_path(999, 1), "tile/entries/999.p/1"),
    ],
)
def test_tiles_have_c2sps_names(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize(
    ("size", "counts"),
    [(0, []), (1, [1]), (255, [1]), (256, [1, 1]), (257, [2, 1]), (70_000, [274, 2, 1])],
)
def test_a_log_has_so_many_tiles(size: int, counts: list[int]) -> None:
    tiles = tiles_grown(Tree(hashes(size)), 0)
    levels = [path.split("/")[1] for path, _ in tiles]
    assert [levels.count(str(level)) for level in range(len(counts))] == counts
    assert len(tiles_needed(size)) == (counts or [0])[0]


def test_the_tiles_around_a_full_tree_of_tiles() -> None:
    tree = Tree(hashes(65_535))
    for size, above in ((65_535, 255), (65_536, 256), (65_537, 256)):
        names = [path for path, _ in tiles_grown(tree, 0)]
        partial = "" if above == WIDTH else f".p/{above}"
        assert [name for name in names if name.startswith("tile/1/")] == [f"tile/1/000{partial}"]
        assert ("tile/2/000.p/1" in names) == (size >= 65_536)
        assert ("tile/0/256.p/1" in names) == (size == 65_537)
        assert len(names) == {65_535: 257, 65_536: 258, 65_537: 259}[size]
        tree.append(leaf_hash(str(size).encode()))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_tiles_written_as_the_log_grows_are_those_of_the_whole(steps: list[int]) -> None:
    tree, files, bundles = Tree(), {}, {}
    entries: list[bytes] = []
    for step in steps:
        old = tree.size
        for number in range(old, old + step):
            entries.append(str(number).encode())
            tree.append(leaf_hash(entries[-1]))
        files |= dict(tiles_grown(tree, old))
        for path, first, stop in entry_tiles(old, tree.size):
            bundles[path] = pack_entries(entries[first:stop])
    for path, data in tiles_grown(tree, 0):
        assert files[path] == data
    read = [e for path, _ in tiles_needed(tree.size) for e in parse_entries(bundles[path])]
    assert read == entries
    upper = {path: data for path, data in files.items() if path.startswith("tile/1/")}
    for path, data in upper.items():  # a hash above is that of a full tile below
        assert ".p/" in path
        below = files[tile_path(0, len(data) // 32 - 1)]
        assert len(below) == 32 * WIDTH
        level = [below[at : at + 32] for at in range(0, len(below), 32)]
        while len(level) > 1:
            level = [
                hashlib.sha256(b"\x01" + level[at] + level[at + 1]).digest()
                for at in range(0, len(level), 2)
            ]
        assert level[0] == data[-32:]


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x05abc", b"\x00\x01a\x00"])
def test_a_broken_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(ProofError):
        parse_entries(data)


def test_a_bundle_holds_no_more_than_a_tile() -> None:
    assert len(parse_entries(b"\x00\x00" * 256)) == 256
    with pytest.raises(ProofError):
        parse_entries(b"\x00\x00" * 257)
    with pytest.raises(ValueError, match="65,535"):
        pack_entries([bytes(65_536)])
