"""A witness never cosigns two histories: over restarts, races, two processes, damaged state and forks."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.witness import Witness, begin
from protocol.errors import ArtefactError, MachineError, ProofError
from protocol.merkle import leaf_hash
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    cosign,
    sign_note,
    verify_note,
)
from protocol.transparency.tiles import tiles_grown
from protocol.transparency.tree import Tree
from protocol.transparency.witness import AddCheckpoint, Cosigned, Refused

ORIGIN = "fedge/run/0123"
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OWN = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PIN = VerifierKey(name=ORIGIN, type=KeyType.ED25519, public=LOG.public_key().public_bytes_raw())
NOW = 1_790_000_000


def grown(count: int, salt: str = "") -> Tree:
    return Tree(
        leaf_hash(f"{salt if number > 3 else ''}{number}".encode()) for number in range(count)
    )


def signed(tree: Tree, size: int | None = None) -> str:
    size = tree.size if size is None else size
    text = Checkpoint(origin=ORIGIN, size=size, root=tree.root(size)).text
    return f"{text}\n{sign_note(text, ORIGIN, LOG)}"


def asked(tree: Tree, old: int, size: int | None = None) -> bytes:
    size = tree.size if size is None else size
    path = tuple(tree.consistency(old, size))
    return AddCheckpoint(old=old, path=path, note=signed(tree, size)).encode()


def opened(folder: Path) -> Witness:
    return Witness(folder, OWN, [PIN], lambda: NOW)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    begin(tmp_path / "state", "w1", OWN)
    return tmp_path / "state"


def status(found: Cosigned | Refused) -> int:
    return found.status if isinstance(found, Refused) else 200


def test_it_remembers_over_a_restart(state: Path) -> None:
    tree, fork = grown(9), grown(9, "x")
    own = opened(state)
    assert status(own.add(asked(tree, 0, 5))) == 200
    assert status(own.add(asked(tree, 5))) == 200
    own.close()
    own = opened(state)
    assert own.latest(ORIGIN).size == 9
    assert status(own.add(asked(tree, 0, 7))) == 409
    assert status(own.add(asked(fork, 5))) == 409
    assert status(own.add(asked(fork, 9))) == 409
    own.close()


def test_what_it_keeps_is_a_checkpoint_that_others_can_check(state: Path) -> None:
    tree = grown(9)
    body = AddCheckpoint(old=0, path=(), note=signed(tree))
    junk = "".join(sign_note(body.claimed.text, f"s{number}", OWN) for number in range(98))
    own = opened(state)
    found = own.add(AddCheckpoint(old=0, path=(), note=body.note + junk).encode())
    assert isinstance(found, Cosigned)
    kept = (state / f"{hashlib.sha256(ORIGIN.encode()).hexdigest()}.checkpoint").read_text()
    assert kept == body.note + found.line
    assert set(verify_note(kept, [PIN, own.key]).by.values()) == {None, NOW}
    own.close()


def test_a_fork_is_kept_as_evidence(state: Path) -> None:
    tree, fork, other = grown(9), grown(9, "x"), grown(9, "y")
    own = opened(state)
    own.add(asked(tree, 0))
    for wrong in (fork, other):
        assert status(own.add(asked(wrong, 9))) == 409
    [evidence] = state.glob("*.fork")
    assert evidence.read_text() == signed(fork)
    own.close()


def test_requests_that_race_never_roll_it_back(state: Path) -> None:
    tree, own = grown(40), opened(state)
    own.add(asked(tree, 0, 1))
    start = threading.Barrier(8)

    def worker(number: int) -> list[int]:
        start.wait()
        sizes = []
        for size in range(2 + number, 41, 3):
            old = own.latest(ORIGIN).size
            if old <= size and status(own.add(asked(tree, old, size))) == 200:
                sizes.append(size)
        return sizes

    with ThreadPoolExecutor(8) as pool:
        cosigned = list(pool.map(worker, range(8)))
    for sizes in cosigned:
        assert sizes == sorted(sizes)
    assert own.latest(ORIGIN).size == max(size for sizes in cosigned for size in sizes)
    own.close()


def test_of_two_growths_from_one_size_exactly_one_is_cosigned(state: Path) -> None:
    for size in range(4, 24):
        one, other = grown(size + 1, f"a{size}"), grown(size + 1, f"b{size}")
        folder = state.parent / str(size)
        begin(folder, "w1", OWN)
        own = opened(folder)
        own.add(asked(one, 0, 4))
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(own.add, [asked(one, 4), asked(other, 4)]))
        assert sorted(map(status, found)) == [200, 409]
        own.close()


def test_one_process_at_a_time(state: Path) -> None:
    own = opened(state)
    with pytest.raises(ArtefactError, match="in use"):
        opened(state)
    own.close()
    opened(state).close()


def test_lost_damaged_or_foreign_state_is_never_begun_over(state: Path) -> None:
    own = opened(state)
    own.add(asked(grown(9), 0))
    [kept] = state.glob("*.checkpoint")
    text = kept.read_text()
    bent = text.replace("\n9\n", "\n8\n")
    checkpoint = Checkpoint(origin="elsewhere", size=1, root=bytes(32)).text
    foreign = f"{checkpoint}\n{cosign(checkpoint, 'w1', OWN, time=NOW)}"
    for damaged in ("", text[:-20], bent, foreign, signed(grown(9))):
        kept.write_text(damaged)
        with pytest.raises(ArtefactError, match="is damaged"):
            own.add(asked(grown(9), 0))
    own.close()
    with pytest.raises(ArtefactError, match="another witness"):
        Witness(state, LOG, [PIN], lambda: NOW)
    with pytest.raises(ArtefactError, match="not empty"):
        begin(state, "w1", OWN)
    (state / "witness").unlink()
    with pytest.raises(ArtefactError, match="no witness's folder"):
        opened(state)


def test_nothing_is_given_away_that_is_not_on_disk(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    own = opened(state)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(MachineError, match="No space"):
            own.add(asked(grown(9), 0))
    assert own.latest(ORIGIN).size == 0
    assert status(own.add(asked(grown(9), 0))) == 200
    own.close()


def test_logs_do_not_disturb_one_another(state: Path) -> None:
    key = VerifierKey(name="other", type=KeyType.ED25519, public=PIN.public)
    own = Witness(state, OWN, [PIN, key], lambda: NOW)
    tree = grown(9)
    own.add(asked(tree, 0))
    text = Checkpoint(origin="other", size=2, root=tree.root(2)).text
    note = f"{text}\n{sign_note(text, 'other', LOG)}"
    assert status(own.add(AddCheckpoint(old=0, path=(), note=note).encode())) == 200
    assert (own.latest(ORIGIN).size, own.latest("other").size) == (9, 2)
    own.close()


@pytest.mark.parametrize("name", ["", "a b", "a+b", "w" * 129])
def test_a_name_no_note_can_bear_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProofError):
        begin(tmp_path / "state", name, OWN)


# -- following published files ----------------------------------------------------------------------


def published(tree: Tree) -> dict[str, bytes]:
    return {"checkpoint": signed(tree).encode(), **dict(tiles_grown(tree, 0))}


def reader(files: dict[str, bytes]) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        if name not in files:
            raise ArtefactError(f"{name} is not there", "")
        return files[name]

    return read


def test_a_growing_log_is_followed_from_its_files(state: Path) -> None:
    own, seen = opened(state), []
    for size in (0, 5, 5, 256, 300, 700):
        note, changed = own.follow(reader(published(grown(size))))
        signers = verify_note(note, [PIN, own.key]).by
        assert len(signers) == 2
        seen.append(changed)
    assert seen == [False, True, False, True, True, True]
    assert own.latest(ORIGIN).size == 700
    own.close()


def test_the_tile_may_be_full_by_now(state: Path) -> None:
    files = published(grown(256))
    files["checkpoint"] = signed(grown(250)).encode()
    own = opened(state)
    own.follow(reader(files))
    assert own.latest(ORIGIN).size == 250
    own.close()


def test_followed_logs_are_held_to_what_was_cosigned(state: Path) -> None:
    own = opened(state)
    own.follow(reader(published(grown(300))))
    cases: list[tuple[dict[str, bytes], str]] = [
        (published(grown(301, "x")), "does not begin"),
        (published(grown(300, "x")), "another tree"),
        (published(grown(299)), "has not become"),
        ({"checkpoint": b"\xff"}, "no text"),
        ({"checkpoint": b"other\n0\nAAAA\n\nx"}, "no SHA-256"),
        ({"checkpoint": signed(grown(301)).replace(ORIGIN, "other").encode()}, "no key"),
        ({"checkpoint": signed(grown(301)).replace("\n301\n", "\n302\n").encode()}, "not valid"),
        (published(grown(301, "x")) | {"checkpoint": signed(grown(301)).encode()}, "not those"),
        (published(grown(301)) | {"tile/0/001.p/45": bytes(31)}, "31 bytes"),
    ]
    for files, why in cases:
        with pytest.raises(ProofError, match=why):
            own.follow(reader(files))
    with pytest.raises(ArtefactError, match="not there"):
        own.follow(reader({"checkpoint": signed(grown(301)).encode()}))
    [evidence] = state.glob("*.fork")
    assert evidence.read_text() == signed(grown(301, "x"))
    assert own.latest(ORIGIN).size == 300
    own.close()
