"""Rounds that ask more clients than they wait for: who is slower is in no sum, and the record says so."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from client.ledger import FileLedger
from protocol.exchange import Phase
from protocol.transparency.note import KeyType, VerifierKey
from server.store import RunStore
from simulations.clients import client_name
from simulations.faults import Speeds
from simulations.grid import InProcessGrid
from tests.adversaries.forger import Forger
from tests.unit.audit.runs import Sites, make_run, small_plan
from tests.unit.audit.test_order import Local

TWELVE: dict[str, Any] = {"size": 9, "spare": 3, "quorum": 9, "deadline_s": 500.0}
SIX: dict[str, Any] = {"size": 4, "spare": 2, "quorum": 3, "deadline_s": 500.0}
PLAIN: dict[str, Any] = {"secrecy": {"exchange": "plain"}}
GROUPS: dict[str, Any] = {
    "count": 15,
    "cohort": {"size": 12, "spare": 3, "quorum": 9, "deadline_s": 500.0},
    "secrecy": {"groups": 3},
}
SLOW, SLOWNESS = (2, 5, 7), 10.0


def speeds(*slow: int) -> Speeds:
    """A second of training each, ten of these."""
    return Speeds(training_s=1.0, slowness=SLOWNESS, slow=frozenset(map(client_name, slow)))


def records(run: Path) -> list[dict[str, Any]]:
    """Of the published rounds, without round 0."""
    paths = sorted((run / "rounds").glob("[0-9]*/record.json"))
    return [json.loads(path.read_text()) for path in paths][1:]


def reasons(record: dict[str, Any]) -> dict[str, str]:
    return {drop["client"]: drop["reason"] for drop in record["dropped"]}


def named(sites: Iterable[int]) -> set[str]:
    return {f"site-{number}" for number in sites}


def verify_counted_once(record: dict[str, Any]) -> None:
    """Everybody that was asked is in one place; what was summed is of those used, each once.

    A site counts one more example than its number (:class:`tests.unit.audit.runs.Sites`).
    """
    used, dropped = record["used"], [drop["client"] for drop in record["dropped"]]
    assert sorted(used + dropped) == record["expected"]
    numbers = [int(name.removeprefix("site-")) for name in used]
    assert record["weight"] == len(used)
    assert record["metrics"]["examples"] == sum(1 + number for number in numbers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve sites of which nine are waited for; not to be changed."""
    folder = tmp_path_factory.mktemp("spare") / "run"
    return make_run(folder, count=12, rounds=3, cohort=TWELVE, speeds=speeds(*SLOW))


def test_a_round_closes_with_the_first_and_names_who_was_not_waited_for(run: Path) -> None:
    first = records(run)[0]
    assert first["seconds"] == pytest.approx(1.0, abs=0.5)
    assert reasons(first) == dict.fromkeys(named(SLOW), "unawaited")
    assert {drop["detail"] for drop in first["dropped"]} == {"mask: enough others had answered"}
    verify_counted_once(first)


def test_who_still_trains_is_not_asked_meanwhile(run: Path) -> None:
    for later in records(run)[1:]:
        assert not {*later["expected"]} & named(SLOW)
        assert later["seconds"] == pytest.approx(1.0, abs=0.5)
        verify_counted_once(later)


def test_an_auditor_accepts_such_a_run(run: Path) -> None:
    report = audit(Folder(run), Trust())
    assert (report.verdict, report.faults) == ("ok", ())


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"used": 8}, "were not waited for, with 8 updates"),
        ({"used": 8, "failed": 1}, "were not waited for, with 8 updates"),
        ({"asked": 13}, "13 were asked, the plan asks 12"),
    ],
)
def test_an_auditor_faults_a_record_of_another_rule(
    run: Path, tmp_path: Path, changed: dict[str, int], fault: str
) -> None:
    """In clear, where nothing but the record says who was used; also after an attempt that failed."""

    def gone(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return attempt <= changed.get("failed", 0) and site < 6

    sections = {"count": 12, "rounds": 1, "cohort": TWELVE, "speeds": speeds(*SLOW)} | PLAIN
    folder = make_run(tmp_path / "run", lost=gone, **sections)
    assert not audit(Folder(folder), Trust()).failed
    forger = Forger(folder)
    path = folder / "rounds/0001/record.json"
    record = json.loads(path.read_text())
    if "used" in changed:
        gone = record["used"].pop()
        record["dropped"].append({"client": gone, "reason": "unawaited", "detail": "x"})
    else:
        record["dropped"].append({"client": "site-99", "reason": "no-reply", "detail": "x"})
        record["expected"] = sorted([*record["expected"], "site-99"])
    data = json.dumps(record, indent=1, sort_keys=True) + "\n"
    forger.republish("rounds/0001/record.json", data.encode())
    report = audit(Folder(forger.sign_all()), Trust())
    assert any(fault in each for each in report.rounds[1].faults), report.rounds[1].faults


def test_in_clear_a_late_answer_is_read_by_nobody(tmp_path: Path) -> None:
    sections = PLAIN | {"rounds": 14, "cohort": SIX}
    run = make_run(tmp_path / "run", speeds=speeds(1, 4), **sections)
    everything = records(run)
    assert reasons(everything[0]) == dict.fromkeys(named((1, 4)), "unawaited")
    for record in everything:
        assert len(record["used"]) == 4
        assert record["seconds"] == pytest.approx(1.0, abs=0.5)
        verify_counted_once(record)
    asked = [record["round"] for record in everything if {*record["expected"]} & named((1, 4))]
    assert asked[:2] == [1, 11]  # through at second 10, thrown away, and asked again


def test_more_slow_clients_than_to_spare_are_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=1, cohort=SIX, speeds=speeds(0, 1, 2), **PLAIN)
    (record,) = records(run)
    assert record["seconds"] == pytest.approx(SLOWNESS, abs=0.5)
    assert len(record["used"]) == 4  # one of the three, as they come


def test_a_secret_sum_waits_for_as_many_as_open_it(tmp_path: Path) -> None:
    """Two are gone before they share: nine of ten would be one too few to leave three out."""

    def gone(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return phase is Phase.SHARE and site in (0, 1)

    cohort = TWELVE | {"size": 7, "quorum": 7, "spare": 5}
    run = make_run(
        tmp_path / "run", count=12, rounds=1, cohort=cohort, lost=gone, speeds=speeds(*SLOW)
    )
    (record,) = records(run)
    assert record["void"] is None
    assert record["seconds"] == pytest.approx(SLOWNESS, abs=0.5)
    assert len(record["used"]) == 9
    verify_counted_once(record)


def test_under_witnesses_the_log_has_who_was_waited_for(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    log = VerifierKey(name="log.example/run", type=KeyType.ED25519, public=public)
    witness = Local(tmp_path / "witness", log)
    audit_table = {"log": log.encode(), "witnesses": [witness.key.encode()], "witness_quorum": 1}
    run = make_run(
        tmp_path / "run",
        count=12,
        rounds=2,
        cohort=TWELVE,
        speeds=speeds(*SLOW),
        audit=audit_table,
        log_key=key,
        witnesses=[witness],
    )
    first, second = records(run)
    assert reasons(first) == dict.fromkeys(named(SLOW), "unawaited")
    assert (len(first["used"]), len(second["used"])) == (9, 9)
    assert not audit(Folder(run), Trust()).failed


def test_every_group_closes_by_its_own_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=3, speeds=speeds(3, 8), **GROUPS)
    for record in records(run):
        verify_counted_once(record)
        for group in record["groups"]:
            assert len(group["clients"]) - len(group["used"]) <= 1
            assert group["failure"] is None
    assert audit(Folder(run), Trust()).verdict == "ok"


def test_who_was_not_waited_for_spends_nothing(tmp_path: Path) -> None:
    privacy = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
    run = make_run(
        tmp_path / "run",
        count=12,
        rounds=1,
        cohort=TWELVE,
        speeds=speeds(*SLOW),
        privacy=privacy,
        rule={"name": "first"},
    )
    (record,) = records(run)
    store = RunStore(run)
    try:
        (entry,) = store.ledger.since(0)
    finally:
        store.close()
    assert list(entry.participants) == record["used"]
    for site in range(12):
        lines = FileLedger(tmp_path / "run-sites" / f"{site}.jsonl").entries()
        assert len(lines) == (f"site-{site}" in record["used"])


class Killed(BaseException):
    """The coordinator ends here."""


@pytest.mark.parametrize(
    ("sections", "step"), [(PLAIN | {"cohort": SIX}, 1), ({"cohort": TWELVE, "count": 12}, 13)]
)
def test_killed_at_any_moment_a_round_counts_nobody_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], step: int
) -> None:
    """The coordinator ends ``step`` pulls later each time, and is resumed; the sites forget nothing."""
    options: dict[str, Any] = {"count": 6, "rounds": 3} | sections
    count = options.pop("count")
    sites = Sites(*small_plan(**options), tmp_path / "sites", count)
    slow = speeds(*range(1, 1 + count // 4))
    pull, pulls, kills = InProcessGrid.pull_messages, 0, 0

    def pulled(grid: InProcessGrid, ids: Iterable[str]) -> Iterable[Message]:
        nonlocal pulls
        pulls += 1
        if pulls > step * (kills + 1):
            raise Killed
        return pull(grid, ids)

    monkeypatch.setattr(InProcessGrid, "pull_messages", pulled)
    run = tmp_path / "run"
    while len(records(run)) < options["rounds"]:
        pulls = 0
        try:
            make_run(run, count=count, sites=sites, speeds=slow, **options)
        except Killed:
            kills += 1
    assert kills > 2
    for record in records(run):
        verify_counted_once(record)
    assert not audit(Folder(run), Trust()).failed
