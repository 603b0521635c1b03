"""Runs that go on from an adapter of another run, in every mode; over sites that train nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
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
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit, load_run
from client.instructed import check_instruction
from fedge.plans import app as plans
from protocol.adapter import adapter_layout
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, FedgeError, PlanError, ProofError, RoundError
from protocol.exchange import Phase
from protocol.layout import Vector
from protocol.legality import check, verify_legal
from protocol.plan import Plan, plan_from, plan_from_text
from protocol.rules import RULES
from protocol.start import SpentBefore
from protocol.step.checkpoint import Note, decode_checkpoint, encode_checkpoint
from protocol.step.optimizers import Moments
from protocol.step.state import State
from protocol.wire import Instruction
from server.starting import Beginning, read_beginning
from server.store import RunStore
from tests.unit.audit.runs import Sites, go_on, make_run, small_manifest, small_plan

FOUR = {"size": 4, "quorum": 3, "deadline_s": 30.0}
PLAIN: dict[str, Any] = {"secrecy": {"exchange": "plain"}}
NOISE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
CENTRAL = {"mechanism": "central", "noise_multiplier": 2.0, "epsilon": 40.0, "sampling": 0.9}
PROMPT: dict[str, Any] = {
    "rule": {"name": "prompt-mean"},
    "adapter": {"method": "prompt", "tokens": 3},
}


def of_rule(name: str) -> dict[str, Any]:
    return PROMPT if name == "prompt-mean" else {"rule": {"name": name}}


def vector(run: Path, number: int) -> Vector:
    """The adapter of a round, as it is in its checkpoint."""
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    folder = run / "rounds" / f"{number:04d}"
    data = (folder / "checkpoint.safetensors").read_bytes()
    state, _ = decode_checkpoint(data, source="test")
    return adapter_layout(plan, small_manifest()).flatten(state.adapter)


def audited(run: Path, *before: Path) -> Report:
    return audit(Folder(run), Trust(), before=[Folder(each) for each in before])


DEFAULT = {
    "alternating",
    "root",
    "spent",
    "settings",
}  # the others take part in the slow tests


def some(names: Iterable[str]) -> list[Any]:
    """All of them; those beside the default ones are slow."""
    return [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("rule", some(RULES))
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


@pytest.mark.parametrize("rule", some(RULES))
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
NOISY: dict[str, Any] = {"rule": {"name": "ffa-lora"}, "privacy": NOISE} | THREE
CENTRALLY: dict[str, Any] = PLAIN | {
    "rule": {"name": "ffa-lora"},
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


def _document(sections: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sections.items() if name != "count"}


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


def _plan_after(first: Path, number: int = 3, **sections: Any) -> Plan:
    start = start_of(load_run(Folder(first), Trust()), number).model_dump(mode="json")
    return small_plan(**(sections | {"start": sections.get("start", start)}))[0]


def _legal(first: Path, number: int = 3, **sections: Any) -> None:
    verify_legal(_plan_after(first, number, **sections), small_manifest())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three rounds, and two more of them in secret. Not to be changed."""
    folder = tmp_path_factory.mktemp("continued")
    first = make_run(folder / "first", rounds=3, cohort=FOUR, count=4)
    return first, go_on(first, folder / "second", rounds=2, cohort=FOUR, count=4)


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
    layout = adapter_layout(small_plan()[0], small_manifest())
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


@pytest.mark.parametrize("field", some(LIES))
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


Damage = Callable[[Path], None]


def cut(run: Path) -> None:
    path = run / "rounds/0003/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def not_a_number(run: Path) -> None:
    path = run / "rounds/0003/checkpoint.safetensors"
    state, note = decode_checkpoint(path.read_bytes(), source="x")
    name = sorted(state.adapter)[0]
    state.adapter[name][...] = np.nan
    layout = adapter_layout(small_plan()[0], small_manifest())
    said = Note(**(vars(note) | {"adapter_digest": vector_digest(layout.flatten(state.adapter))}))
    path.write_bytes(encode_checkpoint(state, said))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no file": (
        lambda run: (run / "rounds/0003/checkpoint.safetensors").unlink(),
        "is no adapter of a run's round",
    ),
    "no plan": (lambda run: (run / "plan.json").unlink(), "is no adapter of a run's round"),
    "cut": (cut, "checkpoint.safetensors"),
    "nothing in it": (
        lambda run: (run / "rounds/0003/checkpoint.safetensors").write_bytes(b""),
        "checkpoint.safetensors",
    ),
    "another run": (
        lambda run: (run / "plan.json").write_text(small_plan(seed=9)[0].render()),
        "of a run of plan",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_start_is_refused(damage: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    plan = _plan_after(runs[0])
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    DAMAGES[damage][0](run)
    with pytest.raises(ArtefactError, match=DAMAGES[damage][1]):
        read_beginning(run / "rounds/0003/adapter", plan, small_manifest())


def test_a_start_that_is_not_finite_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Also where plan and file agree on it."""
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    not_a_number(run)
    _, note = decode_checkpoint(
        (run / "rounds/0003/checkpoint.safetensors").read_bytes(), source="x"
    )
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    plan = small_plan(start=start | {"adapter": note.adapter_digest})[0]
    with pytest.raises(ArtefactError, match="NaN"):
        read_beginning(run, plan, small_manifest())


def test_folders_that_are_no_run_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    plan = _plan_after(runs[0])
    for path in (tmp_path, tmp_path / "nowhere", runs[0] / "log", runs[0] / "rounds/0009/adapter"):
        with pytest.raises(ArtefactError, match="is no adapter of a run's round"):
            read_beginning(path, plan, small_manifest())
    copy = shutil.copytree(runs[0] / "rounds/0003/adapter", tmp_path / "adapter")
    with pytest.raises(ArtefactError, match="runs/x/rounds/0008/adapter"):
        read_beginning(Path(copy), plan, small_manifest())


SETTINGS: dict[str, dict[str, Any]] = {
    "another alpha": {"rank": 2, "alpha": 64.0, "targets": ["query"]},
    "another rank": {"rank": 4, "alpha": 8.0, "targets": ["query"]},
    "other targets": {"rank": 2, "alpha": 4.0, "targets": "all-linear"},
    "another method": {"method": "prompt"},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_adapter_means_what_it_meant_before(kind: str, tmp_path: Path) -> None:
    """With other settings the same tensors are another model: whoever checks the plan refuses that.

    What the remedy says is a plan that may be run.
    """
    first = make_run(tmp_path / "first", rounds=1, **PLAIN)
    document = PLAIN | {"rounds": 1} | {"adapter": SETTINGS[kind]}
    if kind == "another method":
        document |= {"rule": {"name": "prompt-mean"}}
    with pytest.raises(PlanError, match=r"`adapter`: .*other settings"):
        _legal(first, 1, **document)
    fit = _plan_after(first, 1, **(PLAIN | {"rounds": 1}))
    verify_legal(fit, small_manifest())
    read_beginning(first, fit, small_manifest())


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "labels in another order": ({"task": {"labels": ["b", "a", "c"]}}, "in another order"),
    "other labels": ({"task": {"labels": ["a", "b", "x"]}}, "other labels"),
    "another rank": ({"adapter": {"rank": 3, "targets": ["query"]}}, "settings"),
    "another method": (PROMPT, "settings"),
    "cores": ({"rule": {"name": "fed-sb"}}, "misses|unknown"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_plan_of_other_tensors_cannot_go_on(kind: str, runs: tuple[Path, Path]) -> None:
    sections, why = UNFIT[kind]
    plan = _plan_after(runs[0], **sections)
    with pytest.raises((ArtefactError, PlanError), match=why):
        _begun(runs[0], plan)


def _begun(run: Path, plan: Plan) -> None:
    """As before a run: the plan is looked at, then what it goes on from."""
    verify_legal(plan, small_manifest())
    read_beginning(run, plan, small_manifest())


def test_an_adapter_of_another_base_cannot_go_on(runs: tuple[Path, Path]) -> None:
    plan = _plan_after(runs[0])
    other = plan.model_copy(update={"base": plan.base.model_copy(update={"fingerprint": "b" * 64})})
    with pytest.raises(PlanError, match="was trained on base"):
        read_beginning(runs[0], other, small_manifest())


def test_a_plan_that_starts_anew_takes_no_start_and_one_that_goes_on_needs_it(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="starts anew"):
        make_run(tmp_path / "anew", begin=runs[0])
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    with pytest.raises(PlanError, match="nobody says where it is"):
        make_run(tmp_path / "nowhere", start=start)
    for folder in ("anew", "nowhere"):
        assert not (tmp_path / folder / "plan.json").exists()  # nothing was begun


SPENT = {
    "none before": ({"privacy": NOISE, "rule": {"name": "ffa-lora"}}, {}, "no noise"),
    "another noise": (
        {"privacy": NOISE, "rule": {"name": "ffa-lora"}},
        {"mechanism": "central", "sums": 3},
        "had central noise",
    ),
    "central rounds unlike": (
        {
            "privacy": CENTRAL,
            "rule": {"name": "ffa-lora"},
            "secrecy": {"exchange": "plain"},
            "cohort": {"size": 6, "quorum": 1},
        },
        {"mechanism": "central", "sums": 3, "noise_multiplier": 1.0, "sampling": 0.9},
        "rounds that are alike",
    ),
}


@pytest.mark.parametrize("kind", SPENT)
def test_an_epsilon_that_would_not_hold_is_refused(kind: str, runs: tuple[Path, Path]) -> None:
    sections, spent, why = SPENT[kind]
    start = start_of(load_run(Folder(runs[0]), Trust()), 3)
    changed = start.model_copy(update={"spent": SpentBefore.model_validate(spent)})
    with pytest.raises(PlanError, match=why):
        _legal(runs[0], **sections, start=changed.model_dump(mode="json"))


def test_sites_new_and_old_take_part(tmp_path: Path) -> None:
    """The old ones by their own ledgers and memory, with two that are new."""
    plan, manifest = small_plan(rounds=2)
    old = Sites(plan, manifest, tmp_path / "sites", 6)
    first = make_run(tmp_path / "first", sites=old, rounds=2)
    start = start_of(load_run(Folder(first), Trust()), 2).model_dump(mode="json")
    wide = {"size": 8, "quorum": 7, "deadline_s": 30.0}
    after, _ = small_plan(rounds=2, start=start, cohort=wide)
    sites = Sites(after, manifest, tmp_path / "sites", 8)
    sites.keys[:6] = old.keys
    sites.roster |= old.roster
    second = make_run(
        tmp_path / "second", sites=sites, count=8, begin=first, rounds=2, start=start, cohort=wide
    )
    record = json.loads((second / "rounds/0002/record.json").read_text())
    assert len(record["used"]) == 8
    assert audited(second, first).verdict == "ok"


def one_is_away(number: int, attempt: int, phase: Phase, site: int) -> bool:
    return phase is Phase.ADVERTISE and site == 3


@pytest.fixture(scope="module")
def second_sum(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Callable[[str], Path], Path]:
    """A run from an adapter of which the run before has opened a sum, over one client less.

    Its sites are those of the run before, with what they remember. Not to be changed.
    """
    folder = tmp_path_factory.mktemp("second-sum")
    plan, manifest = small_plan(rounds=2, cohort=FOUR)
    old = Sites(plan, manifest, folder / "sites", 4)
    first = make_run(folder / "first", sites=old, count=4, rounds=2, cohort=FOUR)
    start = start_of(load_run(Folder(first), Trust()), 1).model_dump(mode="json")

    def make(name: str) -> Path:
        after, _ = small_plan(rounds=1, cohort=FOUR, start=start)
        memory = shutil.copytree(folder / "sites", folder / f"{name}-sites")
        sites = Sites(after, manifest, Path(memory), 4, keys=old.keys)
        return make_run(
            folder / name,
            sites=sites,
            count=4,
            lost=one_is_away,
            rounds=1,
            cohort=FOUR,
            start=start,
            begin=first / "rounds/0001",
        )

    return make, folder


def test_nobody_gets_two_sums_of_a_start_that_differ_by_one_client(
    second_sum: tuple[Callable[[str], Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times: the coordinator does not ask, clients do not open, an auditor says that it was done."""
    make, folder = second_sum
    with pytest.raises(RoundError, match="missed its quorum"):
        make("honest")
    failure = (folder / "honest/rounds/0001.attempt1.json").read_text()
    assert "a sum of this adapter over 4 clients was asked for before" in failure
    monkeypatch.setattr("server.starting.sums_asked", lambda *_: [])
    with pytest.raises(RoundError, match="under another plan a sum over other clients"):
        make("dishonest")
    monkeypatch.setattr("client.secret.verify_beside", lambda *_, **__: None)
    run = make("careless")
    report = audited(run, run.parent / "first")
    assert [each for each in report.faults if "differ by 0 and 1 clients" in each], report.faults


class Killed(Exception):
    pass


def killed_after_it_asked(folder: Path, sites: Sites) -> Path:
    """A run that was stopped in round 2 with its sum written down, before anybody was asked."""
    note = RunStore.note_revealing

    def noted(store: RunStore, number: int, *of: Any) -> None:
        note(store, number, *of)
        if number == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "note_revealing", noted)
        with pytest.raises(Killed):
            make_run(folder, sites=sites, count=4, rounds=2, cohort=FOUR)
    return folder


def test_a_run_that_has_asked_is_resumed_before_another_goes_on(tmp_path: Path) -> None:
    """Else both open a sum of one adapter: the log of the first tells of it when it is resumed."""
    plan, manifest = small_plan(rounds=2, cohort=FOUR)
    sites = Sites(plan, manifest, tmp_path / "sites", 4)
    first = killed_after_it_asked(tmp_path / "first", sites)
    with pytest.raises(PlanError, match="in round 2, and was stopped") as caught:
        read_beginning(first, _plan_after(first, 1, cohort=FOUR), manifest)
    assert "resume that run first" in caught.value.remedy
    command = ["continue", str(first), "--rounds", "1", "--out", str(tmp_path / "plan.toml")]
    assert isinstance(CliRunner().invoke(plans, command).exception, PlanError)
    assert not (tmp_path / "plan.toml").exists()
    make_run(first, sites=sites, count=4, rounds=2, cohort=FOUR)
    start = start_of(load_run(Folder(first), Trust()), 1).model_dump(mode="json")
    after, _ = small_plan(rounds=1, cohort=FOUR, start=start)
    beginning = read_beginning(first / "rounds/0001", after, manifest)
    assert beginning.asked == [
        [sorted(json.loads((first / "rounds/0002/record.json").read_text())["used"])]
    ]


def test_whoever_was_asked_in_vain_counts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a void round's adapter a sum was asked for: in the run before, and in the one before that."""

    def in_vain(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return phase is Phase.UNMASK

    plan, manifest = small_plan(rounds=1, cohort=FOUR)
    sites = Sites(plan, manifest, tmp_path / "sites", 8)
    runs, keys = [], sites.keys
    for name, count, lost in (("a", 4, in_vain), ("b", 8, in_vain), ("c", 4, one_is_away)):
        sections: dict[str, Any] = {"rounds": 1, "cohort": FOUR}
        if runs:
            after = _plan_after(runs[0], 1, **sections)
            assert after.start is not None
            sections |= {"start": after.start.model_dump(mode="json")}
            sites = Sites(after, manifest, tmp_path / f"{name}-sites", 8, keys=keys)
        begin = runs[0] if runs else None
        if name == "c":  # one that does not look, and clients who have forgotten
            monkeypatch.setattr("server.starting.sums_asked", lambda *_: [])
        run = make_run(
            tmp_path / name, sites=sites, count=count, lost=lost, begin=begin, **sections
        )
        runs.insert(0, run)
        if name == "c":
            continue
        asked = read_beginning(run, _plan_after(run, 1, cohort=FOUR), manifest).asked
        four = [[f"site-{number}" for number in range(4)]]
        assert asked == [four, [[f"site-{number}" for number in range(4, 8)]]][: len(runs)]
    report = audited(*runs)
    assert any("differ by 0 and 1 clients" in each for each in report.faults), report.faults


def test_round_0_is_nothing_to_go_on_from(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """What a plan begins with is a plan anew: clients have agreed to a sum of it under that plan."""
    with pytest.raises(PlanError, match="round 0 is nobody's work"):
        start_of(load_run(Folder(runs[0]), Trust()), 0)
    command = ["continue", str(runs[0] / "rounds/0000/adapter"), "--rounds", "1"]
    ended = CliRunner().invoke(plans, [*command, "--out", str(tmp_path / "plan.toml")])
    assert isinstance(ended.exception, PlanError)


def test_a_client_trains_first_on_the_plans_start_alone(runs: tuple[Path, Path]) -> None:
    """Also in clear, where no log is shown."""
    plan = _plan_after(runs[0], secrecy={"exchange": "plain"})
    manifest, size = small_manifest(), len(vector(runs[0], 3))
    for given, good in ((vector(runs[0], 3), True), (np.zeros(size, np.float32), False)):
        told = Instruction(
            round=1,
            attempt=1,
            plan_digest=plan.digest,
            base=manifest.fingerprint,
            adapter_digest=vector_digest(given),
            evaluate=False,
        )
        if good:
            check_instruction(plan, manifest, told, given)
            continue
        with pytest.raises(ArtefactError, match="the plan goes on from"):
            check_instruction(plan, manifest, told, given)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a key that nobody knows": ({"roots": "x"}, "unknown key `start.roots`"),
    "a short digest": ({"adapter": "ab"}, "`start.adapter`"),
    "more rounds than there were": ({"round": 9}, "round 9 of 3 rounds"),
    "round 0": ({"round": 0}, "start anew"),
    "no rounds": ({"round": 0, "rounds": 0}, "start anew"),
    "no settings": ({"settings": ""}, "`start.settings`"),
    "no plan": ({"plans": []}, "`start.plans`"),
    "a plan twice": ({"plans": ["1" * 64, "1" * 64]}, "listed twice"),
    "less than nothing spent": ({"spent": {"rho": -0.1}}, "`start.spent.rho`"),
    "a number as text": ({"round": "2"}, "`start.round`"),
    "another word for a mechanism": ({"spent": {"mechanism": "local"}}, "`start.spent.mechanism`"),
    "no root": ({"root": None}, "`start.root`"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_start_that_is_none_is_no_plan(kind: str, runs: tuple[Path, Path]) -> None:
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    changed, why = ODD[kind]
    with pytest.raises(PlanError, match=why) as caught:
        small_plan(start=start | changed)
    if kind == "a key that nobody knows":
        assert "`root`" in caught.value.remedy
