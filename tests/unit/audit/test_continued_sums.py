"""Secret sums of a run that goes on: who takes part, who was asked before, who trains what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.continued import start_of
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from client.instructed import Received, check_instruction
from fedge.plans import app as plans
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, PlanError, RoundError
from protocol.exchange import Phase
from protocol.layout import Vector
from protocol.recipe import Recipe
from protocol.wire import Instruction
from server.starting import read_beginning
from server.store import RunStore
from tests.unit.audit.continuing import (
    FOUR,
    _plan_after,
    audited,
    one_is_away,
    vector,
)
from tests.unit.audit.runs import Sites, make_run, small_plan
from tests.unit.audit.small_bases import small_manifest


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
    monkeypatch.setattr("client.membership.verify_beside", lambda *_, **__: None)
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
            check_instruction(Recipe(plan=plan, manifest=manifest), told, given)
            continue
        with pytest.raises(ArtefactError, match="the plan goes on from"):
            check_instruction(Recipe(plan=plan, manifest=manifest), told, given)


def test_a_client_is_pulled_to_the_plans_start_alone(runs: tuple[Path, Path]) -> None:
    """Whatever the coordinator sends as what the run goes on from, in every round but the first."""
    plan = _plan_after(runs[0], secrecy={"exchange": "plain"}, local={"l2_sp": 1.0})
    recipe = Recipe(plan=plan, manifest=small_manifest())
    start, now = vector(runs[0], 3), vector(runs[0], 1)
    other = start.copy()
    other[0] = np.nextafter(other[0], np.float32(1))

    def received(number: int, round_0: Vector | None, recipe: Recipe = recipe) -> Received:
        adapter = start if number == 1 else now
        told = Instruction(
            round=number,
            attempt=1,
            plan_digest=recipe.plan.digest,
            base=recipe.manifest.fingerprint,
            adapter_digest=vector_digest(adapter),
            evaluate=False,
        )
        return check_instruction(recipe, told, adapter, round_0)

    for number, round_0 in ((1, None), (2, start)):
        pulled_to = received(number, round_0).round_0
        assert pulled_to is not None
        assert recipe.layout.flatten(pulled_to).tobytes() == start.tobytes()
    for number, round_0, why in (
        (1, start, "has what the run goes on from"),
        (2, None, "lacks what the run goes on from"),
        (2, other, "is not adapter"),
        (2, start[1:], "adapter"),
    ):
        with pytest.raises(ArtefactError, match=why):
            received(number, round_0)
    local = plan.local.model_copy(update={"l2_sp": 0.0})
    free = Recipe(plan=plan.model_copy(update={"local": local}), manifest=recipe.manifest)
    assert received(2, None, free).round_0 is None
    with pytest.raises(ArtefactError, match="has what the run goes on from"):
        received(2, start, free)
