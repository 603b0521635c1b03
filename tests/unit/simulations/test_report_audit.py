"""What the page of a run says of its audit, its sums and its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulations.report import write_report
from tests.methods import CORES
from tests.report_files import EVIL, record
from tests.unit.audit.runs import make_run


def test_the_audit_is_shown_with_what_it_leaves_open(run: Path) -> None:
    verdict = {
        "round": 1,
        "verdict": "failed",
        "clients": 2,
        "verified": ["a"],
        "unverified": [{"what": "vectors", "leaves": EVIL}],
        "faults": [f"round 1: {EVIL}"],
    }
    audit = {
        "verdict": "failed",
        "origin": "log",
        "plan": "1" * 64,
        "base": "2" * 64,
        "size": 9,
        "root": "3" * 64,
        "rounds": [verdict, verdict | {"round": 2, "verdict": "ok", "faults": []}],
        "verified": [],
        "unverified": [],
        "faults": [],
        "assumed": [{"what": "the key", "leaves": "whose it is"}],
        "audits": ["leaf 9: somebody"],
        "complaints": [],
    }
    (run / "audit.json").write_text(json.dumps(audit))
    who = {"column": "room", "clients": {"a": {"value": "attic", "rows": 1, "labels": 1}}}
    (run / "clients.json").write_text(json.dumps(who))
    page = write_report(run).read_text()
    assert "<td>a (attic)</td>" in page
    assert EVIL not in page
    assert "1 of 2 rounds verified" in page
    assert "whose it is" in page
    assert "round 1: &lt;script&gt;" in page
    assert "<title>round 2: ok</title>" in page


def test_a_run_without_an_audit_says_so(run: Path) -> None:
    assert "Not audited" in write_report(run).read_text()


def test_failures_cut_updates_and_refused_sums_are_shown_and_warned_about(run: Path) -> None:
    secret = {
        "secure": True,
        "groups": [],
        "lost": {},
        "liars": [],
        "failures": 0,
        "clipped_share": 0.0,
    }
    plan = json.loads((run / "plan.json").read_text())
    plan |= {"secrecy": {"groups": 1}, "cohort": {"quorum": 3}}
    (run / "plan.json").write_text(json.dumps(plan))

    def page(**changes: Any) -> str:
        for number in (1, 2):
            change = changes if number == 2 else {}
            content = record(number, []) | secret | change
            (run / f"rounds/000{number}/record.json").write_text(json.dumps(content))
        return write_report(run).read_text()

    quiet = page()
    assert "updates cut at the clip" in quiet
    for warning in ("contributed zeros", "Most updates were cut", "was refused"):
        assert warning not in quiet
    assert "3 time(s) a client failed" in page(failures=3)
    assert "Most updates were cut at secrecy.clip in round(s) 2." in page(clipped_share=0.75)
    refused = page(refused=[{"group": 1, "why": EVIL}])
    assert "Round 2: the sum of group 1 was refused" in refused
    assert EVIL not in refused
    noisy = page(failures=None, clipped_share=None)
    assert "<td>100%" not in noisy


def test_participation_and_privacy_are_the_logs(tmp_path: Path) -> None:
    """Whatever the records say: names, epsilon and round are drawn from leaves."""
    privacy = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
    run = make_run(tmp_path / "run", adapter=CORES, privacy=privacy)
    honest = write_report(run).read_text()
    path = run / "rounds/0002/record.json"
    record = json.loads(path.read_text())
    assert f"{record['privacy']['epsilon']:.3f}" in honest
    record["privacy"]["epsilon"] = 0.0123
    record["used"] = ["site-0", "nobody", "else"]
    path.write_text(json.dumps(record))
    assert write_report(run).read_text() == honest
    assert "By the run's log" in honest
    assert "coordinator's word" in honest
    (run / "log/checkpoint").unlink()
    without = write_report(run).read_text()
    assert "has no log that can be read" in without
    assert "0.012" in without
    assert "0.012" not in honest


def test_a_plain_runs_participation_is_somebodys_word(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", secrecy={"exchange": "plain"})
    page = write_report(run).read_text()
    assert "updates went in clear, so the log shows nobody" in page
    assert "warning `secrecy.exchange`: INSECURE" in page  # of the plan: nothing kept it
