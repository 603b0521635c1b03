"""After a site has withdrawn: sums that were asked for, and plans that go on from the adapters before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.commands import app as auditing
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from fedge.plans import app as plans
from protocol.errors import ArtefactError, PlanError, ProofError, RoundError
from protocol.plan import Plan, plan_from_text
from protocol.transparency.submissions import encode_request, parse_request
from server.commands import app as log_app
from tests.unit.audit.runs import Sites, go_on, make_run, small_plan
from tests.unit.audit.small_bases import small_manifest
from tests.unit.audit.test_continued_sums import killed_after_it_asked
from tests.unit.audit.withdrawing import (
    COHORT,
    NINE,
    World,
    audited,
    invoked,
    lineage,
    record,
    request_of,
    requested,
    withdraw,
)

# -- after a sum that was asked for -----------------------------------------------------------------


def test_a_sum_that_was_asked_for_is_not_repeated_without_the_site(tmp_path: Path) -> None:
    """Its difference from the first would be the site's update: the round is void, the run has to end."""
    four: dict[str, Any] = {"rounds": 2, "cohort": {"size": 4, "quorum": 3, "deadline_s": 30.0}}
    plan, manifest = small_plan(**four)
    sites = Sites(plan, manifest, tmp_path / "sites", 4)
    run = killed_after_it_asked(tmp_path / "run", sites)
    request = tmp_path / "request"
    request.write_bytes(encode_request(request_of(run, sites.keys[1])))
    said = json.loads(invoked(log_app, "withdraw", run, request, "--json").output)
    assert said["first"] == 1
    (told,) = lineage(run, "--site", "site-1")
    assert [held["round"] for held in told["asked"]] == [2]
    make_run(run, count=4, sites=sites, **four)
    assert record(run, 2)["void"] == "its sum could not be opened"
    assert f"has withdrawn: leaf {said['leaf']}" in str(record(run, 2)["dropped"])
    assert audited(run) == []
    text = invoked(auditing, "lineage", run, "--site", "site-1").output
    assert "asked for in vain in round 2 (group 0): the coordinator may hold this sum" in text


@pytest.mark.slow
def test_who_cannot_go_on_is_told_why(tmp_path: Path) -> None:
    """As above with a round more: of this adapter the others open no other sum."""
    four: dict[str, Any] = {"rounds": 3, "cohort": {"size": 4, "quorum": 3, "deadline_s": 30.0}}
    plan, manifest = small_plan(**four)
    sites = Sites(plan, manifest, tmp_path / "sites", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tests.unit.audit.test_continued_sums.make_run",
            lambda folder, **more: make_run(folder, **(more | four)),
        )
        run = killed_after_it_asked(tmp_path / "run", sites)
    request = tmp_path / "request"
    request.write_bytes(encode_request(request_of(run, sites.keys[1])))
    invoked(log_app, "withdraw", run, request)
    with pytest.raises(RoundError, match="site-1: has withdrawn") as caught:
        make_run(run, count=4, sites=sites, **four)
    assert "go on from another adapter" in caught.value.remedy
    assert audited(run) == []


# -- another plan, from before ----------------------------------------------------------------------


def continued(folder: Path, *more: object) -> Plan:
    out = folder / "plan.toml"
    out.unlink(missing_ok=True)
    result = invoked(plans, "continue", *more, "--rounds", 2, "--out", out)
    assert result.exit_code == 0, result.output
    return plan_from_text(out.read_text(), source="plan.toml")


def run_of(plan: Plan, world: World, folder: Path, begin: Path | None) -> Path:
    """A run of the plan over the very same sites, with their memories."""
    sections = plan.model_dump(mode="json", exclude={"base"})
    sites = Sites(plan, small_manifest(), world.sites.folder, NINE, keys=world.sites.keys)
    return make_run(folder, count=NINE, sites=sites, begin=begin, **sections)


def test_a_plan_goes_on_from_the_last_adapter_before(world: World, tmp_path: Path) -> None:
    site = world.site_first_in(3)
    withdraw(world.run, world.sites.keys[site])
    (told,) = lineage(world.run, "--site", f"site-{site}")
    before = told["before"]
    assert before["round"] == 2
    assert before["free"] == NINE - 1 - len(set(world.used(3)) - {f"site-{site}"})
    assert before["command"].startswith(f"fedge plan continue {before['folder']} ")
    with pytest.raises(PlanError, match="who withdrew") as caught:
        continued(tmp_path, world.run)
    assert "round 2" in caught.value.remedy
    plan = continued(tmp_path, before["folder"])
    assert plan.start is not None
    assert plan.start.adapter == before["adapter"]
    second = run_of(plan, world, tmp_path / "second", Path(before["folder"]))
    assert audited(second, world.run) == []
    both = lineage(second, world.run, "--site", f"site-{site}")
    assert [each["start"] for each in both] == [None, None]


def test_runs_that_descend_from_the_site_are_named(world: World, tmp_path: Path) -> None:
    site = world.site_first_in(2)
    withdraw(world.run, world.sites.keys[site])
    plan = continued(tmp_path, world.run, "--despite-withdrawal")
    second = run_of(plan, world, tmp_path / "second", world.run)
    earlier, later = lineage(second, world.run, "--site", f"site-{site}")
    assert earlier["before"]["round"] == 1
    assert later["start"]["round"] == 3
    assert [each["round"] for each in later["adapters"]] == [0, 1, 2]
    assert later["before"] is None
    text = invoked(auditing, "lineage", second, world.run, "--site", f"site-{site}").output
    assert "goes on from round 3" in text
    alone = invoked(auditing, "lineage", second, "--site", f"site-{site}").output
    assert "name that run too" in alone
    verified = invoked(auditing, "verify", second, "--before", world.run).output
    assert f"which holds updates of {world.id_of(site)}, who withdrew there" in verified
    third = run_of(continued(tmp_path, second), world, tmp_path / "third", second)
    both = ["--before", second, "--before", world.run]
    verified = invoked(auditing, "verify", third, *both).output  # from a run before the run before
    assert f"which holds updates of {world.id_of(site)}, who withdrew there" in verified


def test_a_plan_that_goes_on_says_who_withdrew_from_a_run_before(
    world: World, tmp_path: Path
) -> None:
    """The run that it goes on from was agreed on before the site withdrew."""
    plan = continued(tmp_path, world.run)
    second = run_of(plan, world, tmp_path / "second", world.run)
    out = tmp_path / "more.toml"

    def warnings(*more: object, run: Path = second) -> list[str]:
        out.unlink(missing_ok=True)
        asked = [run, "--rounds", 2, "--out", out, "--json", *more]
        findings = json.loads(invoked(plans, "continue", *asked).output)["findings"]
        return [each["cause"] for each in findings if each["field"] == "start"]

    assert warnings("--before", world.run) == []
    assert ["1 of the runs before" in each for each in warnings()] == [True]
    site = world.site_first_in(2)
    leaf = withdraw(world.run, world.sites.keys[site])
    (said,) = warnings("--before", world.run)
    origin = load_run(Folder(world.run), Trust()).copy.checkpoint.origin
    gone = f"holds updates of {world.id_of(site)}, who withdrew (leaf {leaf})"
    assert said == f"round 3 of {origin}, which this comes from, {gone}"
    with pytest.raises(ProofError, match="is not the run that"):
        warnings("--before", second)
    with pytest.raises(PlanError, match="who withdrew"):
        warnings(run=world.run)
    assert warnings("--despite-withdrawal", run=world.run) == [said]


def test_from_round_0_everybody_begins_anew(world: World, tmp_path: Path) -> None:
    """Whoever is in the first round leaves nothing to go on from but another seed."""
    site = world.site_first_in(1)
    withdraw(world.run, world.sites.keys[site])
    (told,) = lineage(world.run, "--site", f"site-{site}")
    assert (told["before"]["round"], told["before"]["free"]) == (0, NINE - 1)
    assert f"--seed {world.plan.seed + 1}" in told["before"]["command"]
    plan = continued(tmp_path, told["before"]["folder"])
    assert (plan.start, plan.seed, plan.rounds) == (None, world.plan.seed + 1, 2)
    second = run_of(plan, world, tmp_path / "second", None)
    assert audited(second) == []
    assert record(second, 0)["adapter_out"] != record(world.run, 0)["adapter_out"]
    both = next(
        s for s in range(NINE) if {f"site-{s}"} <= {*world.used(1)} & {*record(second, 1)["used"]}
    )
    with pytest.raises(ArtefactError, match="2 runs fit"):
        requested(world, both, tmp_path)
    request = parse_request(requested(world, both, tmp_path, "--run", "small-2/").read_bytes())
    assert request.origin.startswith("fedge/small-2/")


def test_where_all_were_in_the_sum_an_earlier_one_is_named(tmp_path: Path) -> None:
    """Site 3 is away in rounds 1 and 2: of round 2's adapter all have opened a sum with it."""
    sections: dict[str, Any] = {"cohort": COHORT, "rounds": 3}
    plan, manifest = small_plan(**sections)
    sites = Sites(plan, manifest, tmp_path / "sites", 4)
    run = make_run(
        tmp_path / "run",
        count=4,
        sites=sites,
        lost=lambda number, _, phase, site: site == 3 and number < 3,
        **sections,
    )
    (told,) = lineage(run, "--site", "site-3")
    assert (told["before"]["round"], told["before"]["free"]) == (2, 0)
    assert (told["again"]["round"], told["again"]["free"]) == (1, 3)
    text = invoked(auditing, "lineage", run, "--site", "site-3").output
    assert told["again"]["command"] in text
    assert told["before"]["command"] not in text
    seed = ["--seed", plan.seed + 1]
    assert f"--seed {plan.seed + 1}" in told["again"]["command"]
    refused = continued(tmp_path, told["before"]["folder"])
    with pytest.raises(RoundError):
        of_three(refused, sites, tmp_path / "refused", Path(told["before"]["folder"]))
    again = continued(tmp_path, told["again"]["folder"], *seed)
    second = of_three(again, sites, tmp_path / "again", Path(told["again"]["folder"]))
    assert audited(second, run) == []


@pytest.mark.slow
def test_in_the_first_round_of_a_run_that_went_on_nothing_of_it_is_left(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", count=4, rounds=1, cohort=COHORT)
    second = go_on(first, tmp_path / "second", count=4, rounds=1, cohort=COHORT)
    (told,) = lineage(second, "--site", "site-1")
    assert (told["before"]["round"], told["before"]["free"], told["again"]) == (0, 0, None)
    text = invoked(auditing, "lineage", second, "--site", "site-1").output
    assert "go on from one of the run before, or begin anew" in text
    assert "fedge plan continue" not in text


def of_three(plan: Plan, sites: Sites, folder: Path, begin: Path) -> Path:
    """A run without site 3, over the others with their memories."""
    return make_run(
        folder,
        count=4,
        sites=Sites(plan, small_manifest(), sites.folder, 4, keys=sites.keys),
        begin=begin,
        lost=lambda number, _, phase, site: site == 3,
        **plan.model_dump(mode="json", exclude={"base"}),
    )
