"""Leaves stand in one order only; what is left out, moved or told twice is a fault of its round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from audit.witness import Witness as Keeper
from audit.witness import begin
from protocol.errors import FedgeError
from protocol.exchange import Phase
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.witness import Cosigned
from server.rounds import deal_groups
from server.witnessing import Answer
from tests.adversaries.forger import Forger, kind_of, linked
from tests.unit.audit.runs import make_run

Made = Callable[[Path], Forger]


class Local:
    """A witness in this process."""

    name = "w.example"

    def __init__(self, folder: Path, log: VerifierKey) -> None:
        key = Ed25519PrivateKey.generate()
        self.key = begin(folder, self.name, key)
        self.keeper = Keeper(folder, key, [log], lambda: 1)

    def post(self, body: bytes) -> Answer:
        found = self.keeper.add(body)
        if isinstance(found, Cosigned):
            return Answer(status=200, body=found.line)
        return Answer(status=found.status, body=str(found.size or found.why))


@pytest.fixture(scope="session")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attempt that failed, a group that failed, a round that is void."""
    names = [f"site-{number}" for number in range(15)]

    def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
        dealt = deal_groups(names, groups=3, seed=5, round_number=number, attempt=attempt)
        if number == 1:
            return attempt == 1 and phase is Phase.MASK and site < 8
        if number == 2:
            return phase is Phase.UNMASK and f"site-{site}" in dealt[1]
        return number == 3 and phase is Phase.UNMASK and site < 11

    return make_run(
        tmp_path_factory.mktemp("eventful") / "run",
        count=15,
        rounds=4,
        lost=lost,
        cohort={"size": 15, "quorum": 9, "deadline_s": 30.0},
        secrecy={"groups": 3},
    )


@pytest.fixture(scope="session")
def witnessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three groups under a witness; the log's secret lies where a forger looks for it."""
    folder, key = tmp_path_factory.mktemp("witnessed"), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    log = VerifierKey(name="log.example/run", type=KeyType.ED25519, public=public)
    witness = Local(folder / "witness", log)
    run = make_run(
        folder / "run",
        count=15,
        cohort={"size": 15, "quorum": 9, "deadline_s": 30.0},
        secrecy={"groups": 3},
        audit={"log": log.encode(), "witnesses": [witness.key.encode()], "witness_quorum": 1},
        log_key=key,
        witnesses=[witness],
    )
    (run / "log.key").write_text(key.private_bytes_raw().hex())
    return run


@pytest.fixture
def forge(tmp_path: Path) -> Made:
    def make(run: Path) -> Forger:
        return Forger(linked(run, tmp_path / "forged"))

    return make


def faults_of(run: Path) -> list[str]:
    try:
        report = audit(Folder(run), Trust())
    except FedgeError as error:
        return [error.cause]
    found = [f"round {one.round}: {fault}" for one in report.rounds for fault in one.faults]
    return [*report.faults, *found]


def test_failures_that_are_told_are_no_faults(eventful: Path, forge: Made) -> None:
    report = audit(Folder(eventful), Trust())
    assert report.faults == ()
    assert [(one.verdict, one.faults) for one in report.rounds] == [
        ("ok", ()),
        ("ok", ()),
        ("ok", ()),
        ("void", ()),
        ("ok", ()),
    ]
    aborts = [decode_leaf(entry).leaf for entry in forge(eventful).entries]
    told = [
        (leaf.round, leaf.group, [asked.group for asked in leaf.revealed])
        for leaf in aborts
        if isinstance(leaf, Abort)
    ]
    assert told == [(1, None, []), (2, 1, [1]), (3, None, [0, 1, 2])]


def test_a_failure_that_is_not_told_is_one(eventful: Path, forge: Made) -> None:
    for nth, fault in enumerate(("has to be told", "nor in an `abort`", "opened in vain")):
        forger = forge(eventful)
        del forger.entries[forger.at("abort", nth)]
        found = faults_of(forger.sign())
        assert any(fault in each and f"round {nth + 1}" in each for each in found), found


@pytest.mark.parametrize(
    ("nth", "field", "value"),
    [
        (0, "seq", 7),
        (0, "seq", 0),
        (0, "round", 2),
        (0, "group", 0),
        (1, "seq", 1),
        (1, "group", 0),
        (1, "group", None),
        (1, "round", 1),
        (2, "revealed", []),
        (2, "seq", 2),
        (2, "group", 0),
    ],
)
def test_a_failure_that_is_told_wrongly_is_one(
    eventful: Path, forge: Made, nth: int, field: str, value: object
) -> None:
    forger = forge(eventful)
    forger.edit(forger.at("abort", nth), lambda leaf: leaf.update({field: value}))
    assert faults_of(forger.sign())


def test_an_attempt_opened_before_another_is_a_fault(eventful: Path, forge: Made) -> None:
    forger = forge(eventful)
    later = decode_leaf(forger.entries[forger.at("abort", 1)]).leaf
    assert isinstance(later, Abort)
    asked = [each.model_dump() for each in later.revealed]
    forger.edit(forger.at("abort"), lambda leaf: leaf.update(revealed=asked))
    found = faults_of(forger.sign())
    assert any("of a round one sum is opened" in each for each in found), found


def test_a_run_under_witnesses_is_in_order(witnessed: Path) -> None:
    report = audit(Folder(witnessed), Trust())
    assert [(one.verdict, one.faults) for one in report.rounds] == [("ok", ())] * 3


@pytest.mark.slow
def test_neighbours_exchanged_under_witnesses(witnessed: Path, forge: Made) -> None:
    """The alive set off its place is what witnesses are there against."""
    kinds = [kind_of(entry) for entry in forge(witnessed).entries]
    first, last = kinds.index("alive"), kinds.index("adapter", 3)
    for index in range(first, last):
        forger = forge(witnessed)
        entries = forger.entries
        entries[index], entries[index + 1] = entries[index + 1], entries[index]
        found = faults_of(forger.sign())
        assert any("round 1" in each for each in found), (kinds[index : index + 2], found)


def test_an_alive_set_off_its_place(witnessed: Path, forge: Made) -> None:
    forger = forge(witnessed)
    index = forger.at("alive")
    plan = decode_leaf(forger.entries[0]).leaf.plan  # type: ignore[attr-defined]
    forger.entries.insert(index, forger.statement("pad", {}, {"plan": plan}))
    found = faults_of(forger.sign())
    for number in (1, 2):
        assert any(
            f"round {number}: the sum of group 0" in each and "not at the place" in each
            for each in found
        ), found
    forger.resubject(index, {"plan": "0" * 64})
    assert any("`pad`" in each for each in faults_of(forger.sign()))


def test_a_second_alive_set_of_an_attempt(witnessed: Path, forge: Made) -> None:
    forger = forge(witnessed)
    index = forger.at("alive", 1)
    forger.entries.insert(index + 1, forger.entries[index])
    forger.edit(index + 1, lambda leaf: leaf["clients"].pop())
    found = faults_of(forger.sign())
    assert any("round 1: " in each and "`alive`" in each for each in found), found


def test_a_log_that_does_not_begin_as_it_must(eventful: Path, forge: Made) -> None:
    for first in (1, 2):
        forger = forge(eventful)
        del forger.entries[0:first]
        with pytest.raises(FedgeError, match="not `plan`"):
            audit(Folder(forger.sign()), Trust())
    forger = forge(eventful)
    forger.entries.insert(4, forger.entries[0])
    assert any("`plan` a second time" in each for each in faults_of(forger.sign()))
    forger = forge(eventful)
    del forger.entries[2:]
    with pytest.raises(FedgeError, match="no `adapter` leaf of round 0"):
        audit(Folder(forger.sign()), Trust())
