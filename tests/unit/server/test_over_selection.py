"""Rounds that ask more clients than they wait for: who is slower is in no sum, and the record says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from simulations.clients import client_name
from simulations.faults import Speeds
from tests.interop.verifier.run import verify_run
from tests.unit.audit.runs import make_run

TWELVE: dict[str, Any] = {"size": 9, "spare": 3, "quorum": 9, "deadline_s": 500.0}
SLOW, SLOWNESS = (2, 5, 7), 10.0


def speeds(slow: Sequence[int] = SLOW) -> Speeds:
    return Speeds(training_s=1.0, slowness=SLOWNESS, slow=frozenset(map(client_name, slow)))


def records(run: Path) -> list[dict[str, Any]]:
    paths = sorted((run / "rounds").glob("[0-9]*/record.json"))
    return [json.loads(path.read_text()) for path in paths][1:]


def reasons(record: dict[str, Any]) -> dict[str, str]:
    return {drop["client"]: drop["reason"] for drop in record["dropped"]}


def sites_of(numbers: Sequence[int]) -> list[str]:
    return sorted(f"site-{number}" for number in numbers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spare") / "run"
    return make_run(folder, count=12, rounds=4, cohort=TWELVE, speeds=speeds())


def test_a_round_closes_with_the_first_and_names_who_was_not_waited_for(run: Path) -> None:
    first = records(run)[0]
    assert first["seconds"] == pytest.approx(1.0, abs=0.5)
    assert reasons(first) == dict.fromkeys(sites_of(SLOW), "unawaited")
    assert len(first["used"]) == 9
    assert {drop["detail"] for drop in first["dropped"]} == {"mask: enough others had answered"}


def test_who_still_trains_is_not_asked_again_meanwhile(run: Path) -> None:
    for later in records(run)[1:]:
        assert not {*later["expected"]} & {*sites_of(SLOW)}
        assert later["seconds"] == pytest.approx(1.0, abs=0.5)


def test_both_auditors_accept_such_a_run(run: Path) -> None:
    report = audit(Folder(run), Trust())
    assert (report.verdict, report.faults) == ("ok", ())
    verify_run(run)
