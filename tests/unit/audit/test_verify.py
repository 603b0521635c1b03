"""Whole runs of every kind, audited from their folders alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.sums import Effort
from audit.verify import audit
from protocol.exchange import Phase
from protocol.magnitude import pruned
from protocol.plan import Plan
from protocol.plan_sections import Cohort
from tests.methods import CORES
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import make_run


def verified(folder: Path, **options: Any) -> Report:
    return audit(Folder(folder), Trust(), **options)


KINDS: dict[str, dict[str, Any]] = {
    "secret": {},
    "losses": {"count": 8, "cohort": EIGHT, "lost": some_are_lost},
    "hybrid": {
        "count": 8,
        "cohort": EIGHT,
        "lost": some_are_lost,
        "secrecy": {"keys": "x25519+ml-kem-768"},
    },
    "groups": {
        "count": 12,
        "cohort": EIGHT | {"size": 12, "quorum": 9},
        "secrecy": {"groups": 3},
    },
    "cores": {"adapter": CORES},
    "prompt": {"adapter": {"method": "prompt", "tokens": 3}},
    "a share of cores": {"adapter": CORES, "release": {"keep": 0.3}},
    "odd width, optimiser": {
        "secrecy": {"bits": 20, "suite": "chacha20"},
        "server": {"optimizer": "fedyogi", "learning_rate": 0.1},
    },
    "an attempt that failed": {
        "lost": lambda n, a, phase, site: (n, a) == (2, 1) and phase is Phase.MASK and site < 5
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_secret_run_is_proven(kind: str, tmp_path: Path) -> None:
    report = verified(make_run(tmp_path / "run", **KINDS[kind]))
    assert (report.faults, report.verdict, report.open) == ((), "ok", False)
    assert [one.verdict for one in report.rounds] == ["ok"] * 3
    assert all(not one.faults for one in report.rounds)
    assert report.rounds[0].clients == 0
    assert report.rounds[1].clients > 2


@pytest.mark.parametrize("others", [0.25, 0.6, 1.0])
def test_another_share_than_the_plans_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: float
) -> None:
    """The coordinator publishes more of the adapter than the plan says, or less; sums and steps hold."""
    with monkeypatch.context() as lying:
        lying.setattr("protocol.recipe.pruned", lambda t, names, keep: pruned(t, names, others))
        run = make_run(tmp_path / "run", rounds=1, release={"keep": 0.5})
    report = verified(run)
    assert [one.verdict for one in report.rounds] == ["failed"] * 2
    for one in report.rounds:
        assert len(one.faults) == 1
        assert "the digest of the published adapter" in one.faults[0]


def test_rounds_go_on_from_the_whole_adapter(tmp_path: Path) -> None:
    """Whatever is published of it: the checkpoints, and with them all sums, are the same."""
    plans: list[dict[str, Any]] = [{}, {"release": {"keep": 0.1}}]
    digests = []
    for number, sections in enumerate(plans):
        run = make_run(tmp_path / str(number), secrecy={"exchange": "plain"}, **sections)
        records = [
            json.loads(path.read_text()) for path in sorted(run.glob("rounds/*/record.json"))
        ]
        digests.append([(one["adapter_out"], one["adapter_published"]) for one in records])
    assert [out for out, _ in digests[0]] == [out for out, _ in digests[1]]
    assert all(out == published for out, published in digests[0])
    assert all(out != published for out, published in digests[1])


def test_a_plain_run_is_checked_but_not_proven(tmp_path: Path) -> None:
    report = verified(make_run(tmp_path / "run", secrecy={"exchange": "plain"}))
    assert [one.verdict for one in report.rounds] == ["ok", "unverifiable", "unverifiable"]
    assert (report.verdict, report.failed, report.open) == ("unverifiable", False, True)
    assert "coordinator's word" in report.rounds[1].unverified[0].leaves


def test_a_void_round_changes_nothing(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        rounds=3,
        lost=lambda n, a, phase, site: n == 2 and phase is Phase.UNMASK and site < 4,
    )
    report = verified(run)
    assert [one.verdict for one in report.rounds] == ["ok", "ok", "void", "ok"]
    assert report.verdict == "ok"


def test_deleted_vectors_leave_a_sum_unproven_and_the_rest_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "rounds" / "0001" / "vectors")
    assert [one.verdict for one in verified(run).rounds] == ["ok", "failed", "ok"]
    report = verified(run, effort=Effort(vectors=False))
    assert [one.verdict for one in report.rounds] == ["ok", "unverifiable", "ok"]
    assert "not in this copy" in report.rounds[1].unverified[0].what
    assert "the step from the sums to the adapter" in report.rounds[1].verified
    path = run / "rounds" / "0001" / "sums" / "0.sum"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert "is not the sum" in verified(run).rounds[1].faults[0]


def test_vectors_expire_with_a_leaf_that_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", audit={"retention_days": 0})
    report = verified(run)
    assert [one.verdict for one in report.rounds[1:]] == ["unverifiable"] * 2


def test_one_round_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report = verified(run, only=2)
    assert [(one.round, one.verdict) for one in report.rounds] == [(2, "ok")]


@pytest.mark.parametrize(
    ("name", "privacy", "sections"),
    [
        ("lora-sb", {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 20.0}, {}),
        (
            "first",
            {"mechanism": "central", "noise_multiplier": 2.0, "sampling": 0.9, "epsilon": 20.0},
            {"secrecy": {"exchange": "plain"}, "cohort": {"size": 6, "quorum": 1}},
        ),
    ],
)
def test_the_privacy_ledger_is_computed_again(
    name: str, privacy: dict[str, Any], sections: dict[str, Any], tmp_path: Path
) -> None:
    tables = {"adapter": CORES} if name == "lora-sb" else {"rule": {"name": name}}
    run = make_run(tmp_path / "run", privacy=privacy, **tables, **sections)
    report = verified(run)
    assert not report.failed, report.to_dict()
    assert report.privacy is not None
    assert (report.privacy.sums, report.privacy.mechanism) == (2, privacy["mechanism"])
    assert report.privacy.epsilon is not None
    assert 0 < report.privacy.epsilon < 20
    assert "nobody spent more than epsilon 20" in report.verified


@pytest.mark.parametrize("exchange", ["plain", "secagg"])
def test_a_client_that_the_plan_does_not_name_is_a_fault_wherever_it_took_part(
    exchange: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = EIGHT | {"clients": ["site-0", "site-1", "site-2", "site-3", "site-4"]}
    with monkeypatch.context() as heedless:  # neither the coordinator nor clients heed the plan
        heedless.setattr(Cohort, "takes", lambda _cohort, _client: True)
        run = make_run(tmp_path / "run", cohort=cohort, secrecy={"exchange": exchange})
    report = verified(run)
    assert report.verdict == "failed"
    for one in report.rounds[1:]:
        said = " ".join(one.faults)
        assert "site-5" in said
        assert "`cohort.clients`" in said
    assert verified(make_run(tmp_path / "heeded", cohort=cohort)).faults == ()


def test_a_cohort_of_more_clients_than_the_plan_asks_is_a_fault(
    lossy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very run, whose eight advertised, under a plan that would have seven in a sum."""
    monkeypatch.setattr(Plan, "largest_sum", 7)
    report = audit(Folder(lossy_run), Trust())
    assert report.verdict == "failed"
    assert any("8 clients, the plan has 7 in a sum" in str(each.faults) for each in report.rounds)
