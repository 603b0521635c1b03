"""After a sum was asked for in vain: the same clients again, others, or nobody; and everybody is told."""

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
from tests.unit.audit.runs import Sites, make_run, small_plan

SIX = {"size": 6, "quorum": 3, "deadline_s": 30.0}


def record(run: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((run / f"rounds/{number:04d}/record.json").read_text()))


def void_at(first: int, gone: set[int] | None = None) -> Any:
    """Rounds up to ``first`` are void; ``gone`` do not answer afterwards."""

    def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
        if number <= first:
            return phase is Phase.UNMASK and site % 2 == 0
        return site in (gone or ())

    return lost


def held(run: Path) -> list[str]:
    report = audit(Folder(run), Trust())
    assert report.faults == ()
    assert all(one.faults == () for one in report.rounds)
    return [each.what for each in report.unverified if "may hold" in each.leaves]


def test_the_same_clients_are_asked_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lost=void_at(2), rounds=4, cohort=SIX)
    everybody = [f"site-{site}" for site in range(6)]
    assert [record(run, n)["void"] is not None for n in range(1, 5)] == [True, True, False, False]
    assert [record(run, n)["asked"] for n in range(1, 5)] == [[everybody]] * 4
    assert len(held(run)) == 2


def test_groups_are_asked_as_they_were(tmp_path: Path) -> None:
    sections = {"cohort": SIX | {"size": 15, "quorum": 9}, "secrecy": {"groups": 3}}
    run = make_run(tmp_path / "run", count=15, lost=void_at(1), rounds=3, **sections)
    first, second, third = (record(run, n)["asked"] for n in (1, 2, 3))
    assert [len(group) for group in first] == [5, 5, 5]
    assert first == second != third
    assert record(run, 2)["void"] is None
    held(run)


def test_of_many_others_are_asked_and_then_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=12, lost=void_at(3), rounds=5, cohort=SIX)
    asked = [record(run, number)["asked"] for number in range(1, 6)]
    assert [len(groups) for groups in asked] == [1] * 5
    first, second, third, fourth, fifth = (set(groups[0]) for groups in asked)
    assert first | second == {f"site-{site}" for site in range(12)}
    assert not first & second
    assert third == fourth == second  # of the same adapter, until there is another
    assert fifth != fourth
    assert len(held(run)) == 3


def test_a_run_whose_member_is_gone_says_so_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    plan = {"rounds": 2, "cohort": SIX | {"attempts": 1}}
    sites, run = Sites(*small_plan(**plan), tmp_path / "sites", 6), tmp_path / "run"
    with pytest.raises(RoundError, match="missed its quorum") as caught:
        make_run(run, sites=sites, lost=void_at(1, {3}), **plan)
    assert "adapter.revealed" in str(caught.value) or "site-3" in str(caught.value)
    make_run(run, sites=sites, lost=void_at(1), **plan)
    assert record(run, 2)["asked"] == record(run, 1)["asked"]
    assert record(run, 2)["void"] is None
    assert len(held(run)) == 1


def test_more_void_rounds_than_the_plan_allows_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(RoundError, match=r"rounds 1, 2 are void.*after 1"):
        make_run(tmp_path / "run", lost=void_at(2), rounds=4, cohort=SIX, secrecy={"voids": 1})
    assert len(held(tmp_path / "run")) == 2
