"""Runs that go on from an adapter of another run, in every mode; over sites that train nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.commands import app as auditing
from audit.continued import start_of
from audit.lineage import lineage
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit, load_run
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, FedgeError, PlanError, ProofError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rules import RULES
from protocol.step.optimizers import Moments
from protocol.step.state import State
from server.starting import Beginning, read_beginning
from tests.tiers import some_by_default
from tests.unit.audit.continuing import (
    CENTRAL,
    FOUR,
    NOISE,
    PLAIN,
    _document,
    _legal,
    audited,
    of_rule,
    one_is_away,
    vector,
)
from tests.unit.audit.runs import Sites, go_on, make_run, small_plan
from tests.unit.audit.small_bases import small_manifest

DEFAULT = {"alternating", "root", "spent", "settings"}


@pytest.mark.parametrize("rule", some_by_default(DEFAULT, RULES))
def test_three_rounds_and_two_are_five_to_the_last_bit_in_clear(rule: str, tmp_path: Path) -> None:
    """Turns, seeds and cohorts go on where the earlier run stopped."""
    sections = PLAIN | {"cohort": {"size": 4, "quorum": 3, "deadline_s": 30.0}} | of_rule(rule)
    odd, more = 3, 2
    whole = make_run(tmp_path / "whole", rounds=odd + more, **sections)
    first = make_run(tmp_path / "first", rounds=odd, **sections)
    second = go_on(first, tmp_path / "second", rounds=more, **sections)
    assert vector(second, 0).tobytes() == vector(first, odd).tobytes()
    assert vector(second, more).tobytes() == vector(whole, odd + more).tobytes()
    assert not audited(second, first).failed


@pytest.mark.parametrize("rule", some_by_default(DEFAULT, RULES))
def test_summed_in_secret_one_round_and_another_are_two_but_for_the_rounding(
    rule: str, tmp_path: Path
) -> None:
    sections = of_rule(rule) | {"cohort": {"size": 3, "quorum": 3, "deadline_s": 30.0}, "count": 3}
    whole = make_run(tmp_path / "whole", rounds=2, **sections)
    first = make_run(tmp_path / "first", rounds=1, **sections)
    second = go_on(first, tmp_path / "second", rounds=1, **sections)
    far = float(np.abs(vector(second, 1) - vector(whole, 2)).max())
    moved = float(np.abs(vector(second, 1) - vector(second, 0)).max())
    assert far < 0.1 * moved
    report = audited(second, first)
    assert report.verdict == "ok", report.faults
    assert report.before is not None
    assert report.before.verdict == "ok"


THREE = {"cohort": {"size": 3, "quorum": 3, "deadline_s": 30.0}, "count": 3}


NOISY: dict[str, Any] = {"rule": {"name": "first"}, "privacy": NOISE} | THREE


CENTRALLY: dict[str, Any] = PLAIN | {
    "rule": {"name": "first"},
    "privacy": CENTRAL,
    "cohort": {"size": 3, "quorum": 1, "deadline_s": 30.0},
    "count": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("sections", [NOISY, CENTRALLY], ids=["distributed", "central"])
def test_what_was_spent_counts_on(sections: dict[str, Any], tmp_path: Path) -> None:
    """Epsilon of 1 and 1 rounds is that of 2, in the record, the audit, the plan and the next plan."""
    whole = make_run(tmp_path / "whole", rounds=2, **sections)
    first = make_run(tmp_path / "first", rounds=1, **sections)
    second = go_on(first, tmp_path / "second", rounds=1, **sections)
    reports = [audited(whole), audited(second, first)]
    assert not any(report.failed for report in reports), reports[1].faults
    (two, both) = (report.privacy for report in reports)
    assert two is not None
    assert both is not None
    assert both.epsilon == pytest.approx(two.epsilon, rel=1e-9)
    records = [(second / "rounds" / f"000{number}" / "record.json") for number in (0, 1)]
    start, end = (json.loads(path.read_text())["privacy"]["epsilon"] for path in records)
    assert 0 < start < end == pytest.approx(two.epsilon, rel=1e-9)
    third = start_of(load_run(Folder(second), Trust()), 1)
    assert (third.rounds, len(third.plans), third.round) == (2, 2, 1)
    assert third.spent.sums + third.spent.rho > 0
    # A budget between one round's and two's: enough for a run of one round, not for one more.
    between = sections | {"privacy": sections["privacy"] | {"epsilon": (start + end) / 2}}
    anew = check(small_plan(rounds=1, **_document(between))[0], small_manifest())
    assert not any(finding.severity == "error" for finding in anew)
    with pytest.raises(PlanError, match="rounds per client spend epsilon"):
        _legal(first, 1, rounds=1, **_document(between))
    with pytest.raises(FedgeError, match="budget"):
        run_past_the_plan(first, tmp_path / "poor", between)


def run_past_the_plan(first: Path, folder: Path, sections: dict[str, Any]) -> None:
    """A coordinator that does not look at the plan: its own ledger stops it, or its clients do."""
    go_on(first, folder, rounds=1, **sections)


@pytest.mark.parametrize("known", [True, False])
def test_a_client_counts_what_it_knows_itself(known: bool, tmp_path: Path) -> None:
    """A plan that says less of what was spent convinces only who has no ledger of it."""
    plan, manifest = small_plan(rounds=1, **_document(NOISY))
    old = Sites(plan, manifest, tmp_path / "sites", 3)
    first = make_run(tmp_path / "first", sites=old, rounds=1, **NOISY)
    start = start_of(load_run(Folder(first), Trust()), 1)
    spent = start.spent.model_copy(update={"rho": 0.0, "xi": 0.0})
    lie = start.model_copy(update={"spent": spent}).model_dump(mode="json")
    one = json.loads((first / "rounds/0001/record.json").read_text())["privacy"]["epsilon"]
    tight = _document(NOISY) | {"privacy": NOISE | {"epsilon": 1.1 * one}}
    after, _ = small_plan(rounds=1, start=lie, **tight)
    folder = tmp_path / ("sites" if known else "others")
    sites = Sites(after, manifest, folder, 3, keys=old.keys)
    again = partial(
        make_run,
        tmp_path / "second",
        sites=sites,
        count=3,
        begin=first,
        rounds=1,
        start=lie,
        **tight,
    )
    if not known:
        again()
        return
    with pytest.raises(FedgeError, match="one more sum would bring"):
        again()


def test_a_plan_without_a_start_is_what_it_was(runs: tuple[Path, Path]) -> None:
    """Its text has no such key, and its digest is that of the text."""
    assert "start" not in json.loads((runs[0] / "plan.json").read_text())
    plan = small_plan()[0]
    document = plan.model_dump(mode="json", exclude={"start"})
    assert plan_from(document, source="x").digest == plan.digest
    assert plan_from(json.loads((runs[1] / "plan.json").read_text()), source="x").start is not None


def test_without_the_run_before_an_audit_says_what_is_open(runs: tuple[Path, Path]) -> None:
    """And is not `ok`, in whole, in round 0, or of one round alone."""
    alone, both = audited(runs[1]), audited(runs[1], runs[0])
    assert (alone.verdict, alone.failed, both.verdict) == ("unverifiable", False, "ok")
    assert (alone.rounds[0].verdict, both.rounds[0].verdict) == ("unverifiable", "ok")
    assert any("--before" in each.leaves for each in alone.unverified)
    assert not both.unverified
    part = audit(Folder(runs[1]), Trust(), only=1)
    assert part.verdict == "unverifiable"
    assert part.open


def test_an_auditor_signs_what_it_saw(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("11" * 32)
    command = ["attest", str(runs[1]), "--identity", str(tmp_path / "key"), "--json"]
    for before, verdict in (([], "unverifiable"), (["--before", str(runs[0])], "ok")):
        asked = [*command, *before, "--out", str(tmp_path / f"{verdict}.json")]
        assert json.loads(CliRunner().invoke(auditing, asked).output)["verdict"] == verdict


def moved(start: dict[str, Any], run: Path) -> tuple[dict[str, Any], Beginning]:
    """The start with one value of its adapter moved by the least there is."""
    near = vector(run, start["round"]).copy()
    at = int(np.argmax(np.abs(near)))
    near[at] = np.nextafter(near[at], np.float32(100))
    layout = Recipe(plan=small_plan()[0], manifest=small_manifest()).layout
    state = State(adapter=layout.unflatten(near), moments=Moments.zeros(layout.size))
    return start | {"adapter": vector_digest(near)}, Beginning(state=state, asked=[])


def test_an_adapter_beside_the_one_before_is_found_with_that_run_and_no_other_audit_is_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients remember sums by digest: the coordinator gets a second one over a client less."""
    plan, manifest = small_plan(rounds=2, cohort=FOUR)
    old = Sites(plan, manifest, tmp_path / "sites", 4)
    first = make_run(tmp_path / "first", sites=old, count=4, rounds=2, cohort=FOUR)
    start = start_of(load_run(Folder(first), Trust()), 1).model_dump(mode="json")
    lie, beginning = moved(start, first)
    after, _ = small_plan(rounds=1, cohort=FOUR, start=lie)
    sites = Sites(after, manifest, tmp_path / "sites", 4, keys=old.keys)
    monkeypatch.setattr("server.coordinator.verify_start", lambda *_: beginning)
    run = make_run(
        tmp_path / "second",
        sites=sites,
        count=4,
        lost=one_is_away,
        begin=first,
        rounds=1,
        cohort=FOUR,
        start=lie,
    )
    assert len(json.loads((run / "rounds/0001/record.json").read_text())["used"]) == 3
    assert audited(run).verdict == "unverifiable"
    report = audited(run, first)
    assert report.verdict == "failed"
    assert any("`start.adapter`" in each for each in report.faults), report.faults


def test_lineage_names_the_run_before(runs: tuple[Path, Path]) -> None:
    first, second = (load_run(Folder(each), Trust()) for each in runs)
    traced = lineage(second, 2)
    assert traced.start is not None
    assert traced.start["plans"] == [first.plan_digest]
    assert traced.start["root"] == first.copy.tree.root(traced.start["size"]).hex()
    assert lineage(first, 3).start is None


def test_a_third_run_and_an_earlier_round(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """From the second's first round: whoever was asked for a sum of it is asked again as they were."""
    third = go_on(runs[1], tmp_path / "third", number=1, rounds=1, cohort=FOUR, count=4)
    record = json.loads((third / "rounds/0000/record.json").read_text())
    (groups,) = record["asked_before"]
    asked = json.loads((third / "rounds/0001/record.json").read_text())["used"]
    assert asked == sorted(name for group in groups for name in group)
    report = audited(third, runs[1], runs[0])
    assert report.verdict == "ok"
    assert report.before is not None
    assert report.before.before is not None
    assert (
        audited(third, runs[1]).verdict == "unverifiable"
    )  # of the first of three nothing is known
    with pytest.raises(ProofError, match="not the one that this run goes on from"):
        audited(third, runs[0])


Lie = Callable[[dict[str, Any]], dict[str, Any]]


def _of_another_alpha() -> Plan:
    adapter = small_plan()[0].adapter
    return small_plan(adapter=adapter.model_dump() | {"alpha": 2 * adapter.alpha})[0]


LIES: dict[str, Lie] = {
    "origin": lambda start: {"origin": "fedge/other/1"},
    "size": lambda start: {"size": start["size"] - 1},
    "root": lambda start: {"root": "0" * 64},
    "round": lambda start: {"round": 2},
    "rounds": lambda start: {"rounds": 7},
    "settings": lambda start: {"settings": _of_another_alpha().adapter_settings},
    "spent": lambda start: {"spent": {"mechanism": "distributed", "rho": 0.1}},
    "plans": lambda start: {"plans": ["0" * 64, *start["plans"]]},
}


@pytest.mark.parametrize("field", some_by_default(DEFAULT, LIES))
def test_a_plan_that_lies_of_the_run_before_is_found(
    field: str, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    if (
        field == "round"
    ):  # another round's number on the last one's adapter: the coordinator sees it
        plan = small_plan(start=start | LIES[field](start))[0]
        with pytest.raises(ArtefactError, match="of round 3, the plan goes on from"):
            read_beginning(runs[0], plan, small_manifest())
        return
    lie = start | LIES[field](start)
    other: dict[str, Any] = {}
    if field == "settings":  # with an alpha that fits it: the coordinator sees it, another may not
        other = {"adapter": _of_another_alpha().adapter.model_dump()}
        with pytest.raises(PlanError, match=r"`start\.settings` is not the digest of \[adapter\]"):
            read_beginning(runs[0], small_plan(start=lie, **other)[0], small_manifest())
        monkeypatch.setattr("server.starting._verify_settings", lambda *_: None)
    lying = make_run(tmp_path / "lying", rounds=1, start=lie, begin=runs[0], **other)
    report = audited(lying, runs[0])
    why = "the log has no round 3" if field == "size" else f"`start.{field}`"
    assert [each for each in report.faults if why in each], report.faults


def test_another_start_than_the_plans_is_found(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A coordinator that begins with another adapter: clients refuse it, and so does an auditor."""
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    plan, manifest = small_plan(rounds=1, start=start | {"adapter": "f" * 64})
    with pytest.raises(ArtefactError, match="the plan goes on from ffffffffffff"):
        read_beginning(runs[0], plan, manifest)
    with pytest.MonkeyPatch.context() as patch:
        beginning = read_beginning(runs[0], small_plan(start=start)[0], manifest)
        patch.setattr("server.coordinator.verify_start", lambda *_: beginning)
        with pytest.raises(FedgeError, match="quorum"):
            make_run(tmp_path / "run", rounds=1, start=start | {"adapter": "f" * 64})
    report = audited(tmp_path / "run")
    assert any("not the adapter that the plan goes on from" in f for f in report.rounds[0].faults)
