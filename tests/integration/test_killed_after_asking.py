"""A coordinator killed after it had asked for sums, over sites that come and go: the log stays one that holds.

What was asked for may be in somebody's hands, so the round made again is of the very same clients, or void; and
an honest run never gets an audit that fails.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import RoundError
from protocol.exchange import Phase
from server.rounds import deal_groups
from server.secret_sum import SecretSum
from server.store import RunStore
from tests.tiers import one_by_default
from tests.unit.audit.runs import Lost, Sites, make_run, nobody, small_plan

SIX = {"size": 6, "quorum": 3, "deadline_s": 30.0}
FIFTEEN = {"cohort": {"size": 15, "quorum": 9, "deadline_s": 30.0}, "secrecy": {"groups": 3}}


class Killed(Exception):
    """The coordinator ends here."""


def killed(patch: pytest.MonkeyPatch, *args: Any, reached: bool, **sections: Any) -> None:
    """The run's coordinator is killed: before its first request for shares is out, or after the last."""
    note = RunStore.note_revealing

    def noted(*of: Any) -> None:
        note(*of)
        raise Killed

    def dies(*_: object) -> None:
        raise Killed

    with patch.context() as now:
        if reached:
            now.setattr(SecretSum, "open", dies)
        else:
            now.setattr(RunStore, "note_revealing", noted)
        with pytest.raises(Killed):
            make_run(*args, **sections)


def lost_at(phase: Phase, *gone: int, number: int = 1) -> Lost:
    return lambda n, attempt, at, site: n == number and at is phase and site in gone


def record(run: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((run / f"rounds/{number:04d}/record.json").read_text()))


def verify(run: Path) -> None:
    report = audit(Folder(run), Trust())
    assert [report.faults, *(one.faults for one in report.rounds)] == [()] * (
        1 + len(report.rounds)
    )


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("groups", one_by_default(True, [False, True]))
def test_a_site_is_gone_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: bool, groups: bool
) -> None:
    """Whom no request had reached opened another sum, without the site that was gone."""
    sections = FIFTEEN if groups else {"cohort": SIX}
    count = 15 if groups else 6
    sites, run = Sites(*small_plan(**sections), tmp_path / "sites", count), tmp_path / "run"
    killed(monkeypatch, run, sites=sites, count=count, reached=reached, **sections)
    make_run(run, sites=sites, count=count, lost=lost_at(Phase.MASK, 2), **sections)
    verify(run)
    assert (record(run, 1)["void"] is None) == groups  # the other groups open theirs
    assert record(run, 2)["void"] is None


@pytest.mark.parametrize("reached", [False, True])
@pytest.mark.parametrize("groups", one_by_default(True, [False, True]))
def test_a_site_is_back_that_was_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: bool, groups: bool
) -> None:
    """The sum that was asked for was without it: so is the one of the round made again."""
    sections = FIFTEEN if groups else {"cohort": SIX}
    count = 15 if groups else 6
    gone = lost_at(Phase.ADVERTISE, 2)
    sites, run = Sites(*small_plan(**sections), tmp_path / "sites", count), tmp_path / "run"
    killed(monkeypatch, run, sites=sites, count=count, lost=gone, reached=reached, **sections)
    make_run(run, sites=sites, count=count, **sections)
    verify(run)
    assert [record(run, number)["void"] for number in (1, 2)] == [None, None]
    assert "site-2" not in record(run, 1)["used"]
    (dropped,) = record(run, 1)["dropped"]
    assert (dropped["client"], "asked for" in dropped["detail"]) == ("site-2", True)


def test_the_attempt_made_again_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round is void for what was asked before; its own last attempt revealed nothing."""
    sites, run = Sites(*small_plan(), tmp_path / "sites", 6), tmp_path / "run"
    killed(monkeypatch, run, sites=sites, reached=True)
    make_run(run, sites=sites, lost=lost_at(Phase.SHARE, 0, 1, 2, 3))
    verify(run)
    assert record(run, 1)["void"] is not None
    assert record(run, 2)["void"] is None


def test_a_group_failed_before_the_others_sums_were_asked_for(tmp_path: Path) -> None:
    """The groups that are asked again are fewer than the plan's; the rest is empty, and said to have failed."""
    names = [f"site-{number}" for number in range(15)]
    first = deal_groups(names, groups=3, seed=5, round_number=1, attempt=1)[1]

    def lost(number: int, attempt: int, at: Phase, site: int) -> bool:
        if number > 1:
            return False
        early = f"site-{site}" in first
        return at is Phase.MASK if early else (at is Phase.UNMASK and site % 2 == 0)

    run = make_run(tmp_path / "run", count=15, lost=lost, rounds=3, **FIFTEEN)
    verify(run)
    assert [record(run, number)["void"] is None for number in (1, 2, 3)] == [False, True, True]
    assert record(run, 1)["asked"] == record(run, 2)["asked"]


def test_a_run_that_ended_with_its_void_rounds_stays_ended(tmp_path: Path) -> None:
    """Clients go on after as many as the plan says: resumed, it would have gone on with others."""
    sections: dict[str, Any] = {"rounds": 4, "secrecy": {"voids": 1}, "cohort": SIX}
    sites, run = Sites(*small_plan(**sections), tmp_path / "sites", 12), tmp_path / "run"

    def lost(number: int, attempt: int, at: Phase, site: int) -> bool:
        return number < 3 and at is Phase.UNMASK and site % 2 == 0

    for lose in (lost, nobody):
        with pytest.raises(RoundError, match="rounds 1, 2 are void"):
            make_run(run, sites=sites, count=12, lost=lose, **sections)
    assert not (run / "rounds/0003").exists()
    verify(run)
