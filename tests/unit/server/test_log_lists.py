"""Lists of a run's own log: kept before their leaf, in a folder that a failure of power leaves there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import server.log
from protocol.errors import ProofError
from protocol.transparency.leaf_codec import sha256
from protocol.transparency.leaves import Alive
from protocol.transparency.lists import list_path, of_clients
from server.log import RunLog

IDS = [f"{number:032x}" for number in range(200)]


def made(tmp_path: Path) -> tuple[RunLog, str]:
    log = RunLog(tmp_path, Ed25519PrivateKey.generate(), "fedge/run/0123")
    digest = of_clients(IDS, log.keep_list)
    assert isinstance(digest, str)
    leaf = Alive(seq=1, group=0, rid="0" * 64, clients=digest, signatures={})
    log.append([log.write(leaf, {"round": "0" * 64})])
    return log, digest


def test_a_list_is_read_back(tmp_path: Path) -> None:
    log, digest = made(tmp_path)
    leaf = log.whole(0).leaf
    assert isinstance(leaf, Alive)
    assert leaf.ids == IDS
    assert sha256((tmp_path / list_path(digest)).read_bytes()) == digest


def test_the_folder_of_lists_is_on_disk_before_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, write = server.log.sync, server.log.write_whole

    def synced(path: Path) -> None:
        steps.append(f"sync {path.name} with {sorted(os.listdir(path)).count('lists')}")
        sync(path)

    def written(path: Path, *arguments: bytes) -> None:
        steps.append(f"write to {path.parent.name}")
        write(path, *arguments)

    log = RunLog(tmp_path, Ed25519PrivateKey.generate(), "fedge/run/0123")
    monkeypatch.setattr("server.log.sync", synced)
    monkeypatch.setattr("server.log.write_whole", written)
    of_clients(IDS, log.keep_list)
    of_clients(IDS[1:], log.keep_list)
    assert steps == ["sync log with 1", "write to lists", "write to lists"]


def test_whatever_lies_in_its_place_is_no_list(tmp_path: Path) -> None:
    log, digest = made(tmp_path)
    path = tmp_path / list_path(digest)
    path.unlink()
    with pytest.raises(ProofError, match=digest):
        log.whole(0)
    os.mkfifo(path)
    with pytest.raises(ProofError, match=digest):
        log.whole(0)
