"""Proofs against a tree by the RFC's own recursion; nothing but the true statement verifies."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest

from protocol.errors import ProofError
from protocol.merkle import leaf_hash, merkle_root
from protocol.transparency.proofs import (
    consistency_path,
    inclusion_path,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

# The tree that Certificate Transparency's implementations test with.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves(size: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(size)]


def by_recursion(hashes: list[bytes]) -> bytes:
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    halves = by_recursion(hashes[:split]) + by_recursion(hashes[split:])
    return hashlib.sha256(b"\x01" + halves).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_known_roots(size: int) -> None:
    assert merkle_root(LEAVES[:size]).hex() == ROOTS[size - 1]
    assert tree_root([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size - 1]


def test_every_size_is_the_recursion() -> None:
    hashes = leaves(300)
    for size in range(301):
        assert tree_root(hashes[:size]) == by_recursion(hashes[:size])


def test_every_leaf_of_every_tree_up_to_64_and_no_other_place() -> None:
    hashes = leaves(64)
    for size in range(1, 65):
        root = tree_root(hashes[:size])
        for index in range(size):
            path = inclusion_path(hashes[:size], index)
            verify_inclusion(hashes[index], index, size, path, root)
            for wrong in {index - 1, index + 1, size, -1} - {index}:
                with pytest.raises(ProofError):
                    verify_inclusion(hashes[index], wrong, size, path, root)


def test_every_pair_of_trees_up_to_64() -> None:
    hashes = leaves(64)
    roots = [tree_root(hashes[:size]) for size in range(65)]
    for new in range(65):
        for old in range(new + 1):
            path = consistency_path(hashes[:new], old)
            verify_consistency(old, new, roots[old], roots[new], path)
            if 0 < old < new:
                with pytest.raises(ProofError):
                    verify_consistency(old, new, roots[old - 1], roots[new], path)
                with pytest.raises(ProofError):
                    verify_consistency(new, old, roots[new], roots[old], path)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (3, 7), (4, 8), (6, 13), (32, 50)])
def test_a_changed_missing_or_additional_node_is_noticed(old: int, new: int) -> None:
    hashes = leaves(new)
    roots = tree_root(hashes[:old]), tree_root(hashes)
    path = consistency_path(hashes, old)
    inside = inclusion_path(hashes, old)
    for mutant in mutants(path):
        with pytest.raises(ProofError):
            verify_consistency(old, new, *roots, mutant)
    for mutant in mutants(inside):
        with pytest.raises(ProofError):
            verify_inclusion(hashes[old], old, new, mutant, roots[1])


def mutants(path: list[bytes]) -> list[list[bytes]]:
    found = [path[:-1], [*path, path[-1]], path[1:], [path[0], *path]]
    for at, node in enumerate(path):
        flipped = bytes([node[0] ^ 1]) + node[1:]
        found.append([*path[:at], flipped, *path[at + 1 :]])
    if any(one != other for one, other in pairwise(path)):
        found.append(path[::-1])
    return [mutant for mutant in found if mutant != path]
