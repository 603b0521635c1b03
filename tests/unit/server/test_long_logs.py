"""Logs of many bundles: leaves from disk, found by their numbers, and no partial tile that a full one has replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust, read_log
from audit.sources import Folder
from protocol.errors import ArtefactError, ProofError
from protocol.merkle import leaf_hash
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort, Leaf, Pad, Retention, Spent
from protocol.transparency.tree import Tree
from server.leaves import Draft
from server.log import RunLog, read_published

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
BY_ROUND = 5  # leaves


def grow(log: RunLog, start: int, stop: int) -> None:
    """Rounds ``start`` to ``stop``, ten at a time."""
    for first in range(start, stop, 10):
        numbers = range(first, min(first + 10, stop))
        log.append([data for number in numbers for data in leaves_of(log, number)])


def leaves_of(log: RunLog, number: int) -> list[bytes]:
    aborts = [
        Abort(seq=3 * number + at, group=at % 2 or None, round=number, attempt=at + 1, revealed=[])
        for at in range(BY_ROUND - 2)
    ]
    every: list[Leaf] = [*aborts, Pad(), Retention(round=max(0, number - 7), vectors=number)]
    return [log.write(leaf, {"plan": "0" * 64}) for leaf in every]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    log = RunLog(folder, KEY, "fedge/long")
    grow(log, 0, 130)
    return folder


def test_leaves_are_the_same_from_disk_and_after_a_restart(long_run: Path) -> None:
    log = RunLog(long_run, KEY, "fedge/long")
    assert log.size == 130 * BY_ROUND
    written = [data for number in range(130) for data in leaves_of(log, number)]
    assert [log.entry(index) for index in range(log.size)] == written
    assert log.tree.root() == Tree(map(leaf_hash, written)).root()
    copy = read_log(Folder(long_run), Trust())
    assert list(copy.entries) == written
    assert read_published(long_run).size == log.size
    assert len(log._entries._held) < 256


def test_only_the_last_tiles_are_partial(long_run: Path) -> None:
    partial = [path.parent.name for path in (long_run / "log" / "tile").rglob("*.p/*")]
    assert set(partial) == {"002.p", "000.p"}
    names = {path.parent.relative_to(long_run).as_posix() for path in long_run.rglob("*.p/*")}
    assert names == {"log/tile/entries/002.p", "log/tile/0/002.p", "log/tile/1/000.p"}


def test_leaves_are_found_as_by_reading_all(long_run: Path) -> None:
    log = RunLog(long_run, KEY, "fedge/long")
    every = [decode_leaf(log.entry(index)).leaf for index in range(log.size)]
    draft = Draft(log)
    for data in leaves_of(log, 130):
        draft.accept(data)
    every_of_draft = every + [decode_leaf(data).leaf for data in leaves_of(log, 130)]
    for kind in (Abort, Pad, Retention, Spent):
        asked: list[dict[str, object]] = [{}]
        if kind is not Pad and kind is not Spent:
            asked += [{"round": 0}, {"round": 77}, {"round": 130}, {"round": 5000}]
        if kind is Abort:
            asked += [{"seq": 200}, {"seq": 200, "group": None}, {"round": 9, "attempt": 2}]
        for fields in asked:
            for since in (0, 1, 300, 651):
                for found, leaves in (
                    (log.find(kind, since=since, **fields), every),
                    (draft.find(kind, since=since, **fields), every_of_draft),
                ):
                    assert found == [
                        index
                        for index, leaf in enumerate(leaves)
                        if index >= since
                        and isinstance(leaf, kind)
                        and all(getattr(leaf, name) == value for name, value in fields.items())
                    ]
        assert log.count(kind) == len(log.find(kind))
        assert log.last(kind) == (log.find(kind) or [None])[-1]
        assert draft.last(kind) == (draft.find(kind) or [None])[-1]


def test_a_bundle_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    log = RunLog(tmp_path, KEY, "fedge/long")
    grow(log, 0, 60)
    bundle = tmp_path / "log" / "tile" / "entries" / "000"
    data = bytearray(bundle.read_bytes())
    data[200] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(ProofError, match="leaf 0 on disk is not the one that was logged"):
        log.entry(0)
    bundle.unlink()
    log._entries._bundle = (-1, [])
    with pytest.raises(ProofError, match="cannot be read"):
        log.entry(0)
    with pytest.raises(ArtefactError):
        RunLog(tmp_path, KEY, "fedge/long")


def test_a_checkpoint_whose_partial_tiles_are_gone_is_read_from_the_full_ones(
    tmp_path: Path,
) -> None:
    """Somebody reads the checkpoint, the log grows, and then the tiles are asked for."""
    log = RunLog(tmp_path, KEY, "fedge/long")
    grow(log, 0, 30)
    before = (tmp_path / "log" / "checkpoint").read_bytes()
    grow(log, 30, 80)
    (tmp_path / "log" / "checkpoint").write_bytes(before)
    assert read_published(tmp_path).size == 30 * BY_ROUND
    assert len(read_log(Folder(tmp_path), Trust()).entries) == 30 * BY_ROUND
