"""A coordinator that lies about its log meets honest clients, in whole runs: the next round says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import server.publishing
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from client.receipts import Held
from protocol.errors import RoundError
from protocol.exchange import Phase
from protocol.transparency.leaf_codec import decode_leaf, encode_message
from protocol.transparency.leaves import Abort, Vector
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.receipts import Receipt, sign_receipt
from protocol.transparency.submissions import sign_complaint
from protocol.transparency.witness import (
    Refused,
    Witnessed,
    consider,
    parse_add_checkpoint,
    witness_key,
)
from server.log import RunLog, open_log
from server.rounds import deal_groups
from server.store import RunStore
from server.witnessing import Answer
from tests.unit.audit.runs import Sites, make_run, small_plan

SIX: dict[str, Any] = {"rounds": 3, "cohort": {"size": 6, "quorum": 3, "deadline_s": 30.0}}
GROUPS = {"rounds": 3, "cohort": {"size": 15, "quorum": 9, "deadline_s": 30.0}}


class Killed(Exception):
    """The coordinator ends here."""


def sites_of(folder: Path, count: int = 6, **sections: Any) -> Sites:
    return Sites(*small_plan(**(SIX | sections)), folder / "sites", count)


def detail(run: Path, number: int, site: int) -> str:
    """Why a site was dropped from a round; empty when it was not."""
    record = json.loads((run / f"rounds/{number:04d}/record.json").read_text())
    drops = {drop["client"]: drop["detail"] for drop in record["dropped"]}
    return str(drops.get(f"site-{site}", ""))


def kinds(held: Sequence[Held]) -> list[str]:
    """What accounts for each receipt."""
    proofs = [parse_offline_proof(one.proof) for one in held if one.proof is not None]
    return [decode_leaf(proof.extra or b"").leaf.kind for proof in proofs]


def killed_in(
    monkeypatch: pytest.MonkeyPatch, folder: Path, sites: Sites, number: int, **sections: Any
) -> None:
    """Run until clients would be asked to open round ``number``: they have receipts by then."""
    honest = RunStore.note_revealing

    def note_revealing(self: RunStore, at: int, *asked: Any) -> None:
        if at == number:
            raise Killed
        honest(self, at, *asked)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "note_revealing", note_revealing)
        with pytest.raises(Killed):
            make_run(folder, sites=sites, count=len(sites.keys), **(SIX | sections))


# -- honest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["x25519", "x25519+ml-kem-768"])
def test_every_vector_is_accounted_for_across_groups_losses_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    sections = GROUPS | {"secrecy": {"groups": 3, "keys": keys}}
    sites = sites_of(tmp_path, 15, **sections)
    run = tmp_path / "run"
    killed_in(monkeypatch, run, sites, 2, **sections)
    names = [f"site-{site}" for site in range(15)]
    group = deal_groups(names, groups=3, seed=5, round_number=2, attempt=1)[0]
    gone = group[:2]

    def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return number == 2 and phase is Phase.MASK and f"site-{site}" in gone

    make_run(run, sites=sites, count=15, lost=lost, **sections)
    ends = []
    for site in range(15):
        held = sites.receipts(site).held()
        # The last round's receipts wait for a round that does not come.
        assert [one.proof is None for one in held] == [False] * (len(held) - 1) + [True]
        assert kinds(held)[:2] == ["vector", "abort"]  # the second attempt was the killed one
        ends.append(kinds(held)[2:])
    assert ends.count([]) == 2
    assert ends.count(["abort"]) == 3  # the rest of that group had too few neighbours left
    assert ends.count(["vector"]) == 10


def test_a_failed_attempts_receipts_are_accounted_for_by_its_abort(tmp_path: Path) -> None:
    """Everybody masks, too few agree: the second attempt shows that the first was aborted."""
    sites = sites_of(tmp_path)

    def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return (number, attempt) == (1, 1) and phase is Phase.AGREE and site > 1

    make_run(tmp_path / "run", sites=sites, lost=lost, **SIX)
    assert kinds(sites.receipts(0).held()) == ["abort", "vector", "vector"]


# -- lies -------------------------------------------------------------------------------------------


def test_a_dropped_vector_is_missed_in_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = sites_of(tmp_path)
    victim = ""
    honest = server.publishing.before_alive

    def dropping(*args: Any) -> list[bytes]:
        nonlocal victim
        leaves = honest(*args)
        read = [decode_leaf(data).leaf for data in leaves]
        first = next(at for at, leaf in enumerate(read) if isinstance(leaf, Vector))
        victim = victim or getattr(read[first], "client", "")
        return [
            d for d, leaf in zip(leaves, read, strict=True) if getattr(leaf, "client", "") != victim
        ]

    monkeypatch.setattr(server.publishing, "before_alive", dropping)
    run = make_run(tmp_path / "run", sites=sites, **SIX)
    refused = [site for site in range(6) if detail(run, 2, site)]
    assert len(refused) == 1
    assert detail(run, 2, refused[0]).startswith("share: SecrecyError: log.missing: attempt 1")
    # It goes on refusing: its evidence is not forgotten.
    assert detail(run, 3, refused[0]).startswith("share: SecrecyError: log.missing: attempt 1")
    (held,) = sites.receipts(refused[0]).held()
    assert (held.receipt.client, held.proof) == (victim, None)
    complaint = sign_complaint(
        client=bytes.fromhex(victim),
        about="left out",
        receipt=held.text,
        key=sites.keys[refused[0]],
    )
    (run / "log/inbox").mkdir()
    (run / "log/inbox/left-out.json").write_bytes(encode_message(complaint))
    make_run(run, sites=sites, **SIX)  # finished: it only tends its log
    assert list((run / "log/inbox").iterdir()) == []
    faults = audit(Folder(run), Trust()).faults
    assert any(f"gave {victim} a receipt for its vector in attempt 1" in each for each in faults)


def test_a_forged_receipt_is_refused_before_the_alive_set_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = sites_of(tmp_path)
    honest = RunLog.receipt
    forger = Ed25519PrivateKey.generate()
    calls = 0

    def forging(self: RunLog, receipt: Any) -> str:
        nonlocal calls
        calls += 1
        return sign_receipt(receipt, forger) if calls == 1 else honest(self, receipt)

    monkeypatch.setattr(RunLog, "receipt", forging)
    run = make_run(tmp_path / "run", sites=sites, **SIX)
    record = json.loads((run / "rounds/0001/record.json").read_text())
    (refused,) = record["lost"]  # its vector is in the sum, and it signed and revealed nothing
    assert record["lost"][refused] == "alive"
    held = [[one.receipt.round for one in sites.receipts(site).held()] for site in range(6)]
    assert held[int(refused[-1])] == [2, 3]
    assert held.count([1, 2, 3]) == 5


class InProcess:
    """A witness of the log with ``verifier``: the real core, without a network."""

    name = "w.example"

    def __init__(self, verifier: VerifierKey) -> None:
        self.key, self.latest, self.verifier = Ed25519PrivateKey.generate(), Witnessed(), verifier

    def post(self, body: bytes) -> Answer:
        request = parse_add_checkpoint(body)
        found = consider(request, self.latest, [self.verifier], self.name, self.key, time=1)
        if isinstance(found, Refused):
            return Answer(status=found.status, body=f"{found.size}\n")
        self.latest = found.latest
        return Answer(status=200, body=found.line)


def test_under_witnesses_the_receipt_comes_with_unmask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    log = VerifierKey(
        name="log.example", type=KeyType.ED25519, public=key.public_key().public_bytes_raw()
    )
    witness = InProcess(log)
    sections = SIX | {
        "audit": {
            "log": log.encode(),
            "witnesses": [witness_key(witness.name, witness.key).encode()],
            "witness_quorum": 1,
        }
    }
    sites, honest, calls = sites_of(tmp_path, **sections), RunLog.receipt, 0

    def altering(self: RunLog, receipt: Receipt) -> str:
        nonlocal calls
        calls += 1
        return honest(
            self, receipt.model_copy(update={"root": "0" * 64}) if calls == 1 else receipt
        )

    monkeypatch.setattr(RunLog, "receipt", altering)
    run = make_run(tmp_path / "run", sites=sites, log_key=key, witnesses=[witness], **sections)
    record = json.loads((run / "rounds/0001/record.json").read_text())
    (refused,) = record["lost"]
    assert record["lost"][refused] == "unmask"
    for site in range(6):
        missed = f"site-{site}" == refused
        assert kinds(sites.receipts(site).held()) == ["vector"] * (1 if missed else 2)


def rewritten(
    folder: Path, sites: Sites, change: Callable[[list[bytes], RunLog], list[bytes]]
) -> None:
    """The coordinator writes its log anew, with its own key."""
    store = RunStore(folder)
    try:
        log = open_log(store, sites.plan)
        leaves = change([log.entry(at) for at in range(log.size)], log)
        shutil.rmtree(folder / "log")
        (folder / "log").mkdir()
        open_log(store, sites.plan).append(leaves)
    finally:
        store.close()


def forked(leaves: list[bytes], log: RunLog) -> list[bytes]:
    """Another leaf where an adapter was."""
    other = Abort(seq=0, group=None, round=0, attempt=0, revealed=[])
    return [*leaves[:2], log.write(other, {"plan": "0" * 64}), *leaves[3:]]


def shrunk(leaves: list[bytes], log: RunLog) -> list[bytes]:
    return leaves[:3]


@pytest.mark.parametrize(("change", "code"), [(forked, "log.forked"), (shrunk, "log.shrunk")])
def test_a_log_that_was_written_anew_is_refused_by_everybody(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[bytes], RunLog], list[bytes]],
    code: str,
) -> None:
    sites, run = sites_of(tmp_path), tmp_path / "run"
    killed_in(monkeypatch, run, sites, 3)
    rewritten(run, sites, change)
    with pytest.raises(RoundError):
        make_run(run, sites=sites, **SIX)
    record = json.loads((run / "rounds/0003.attempt1.json").read_text())
    details = {drop["detail"] for drop in record["dropped"]}
    assert all(f"SecrecyError: {code}: " in each for each in details), details
    before = [
        sites.receipts(site).told(bytes.fromhex(one.receipt.sid)).size
        for site in range(6)
        for one in sites.receipts(site).held()[:1]
    ]
    assert len(set(before)) == 1  # nobody has taken the other log for its own
