"""A site withdraws from a real small run: what it has touched, the leaf, and who is asked afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from audit.commands import app as auditing
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit, load_run
from client.commands import app as client_app
from fedge.plans import app as plans
from protocol.errors import ArtefactError, FedgeError, PlanError, ProofError, RoundError
from protocol.plan import Plan, plan_from_text
from protocol.secagg.primitives import client_id
from protocol.transparency.leaves import Withdrawal, decode_leaf
from protocol.transparency.submissions import encode_request, parse_request, sign_request
from protocol.transparency.withdrawal import takes_part
from server.commands import app as log_app
from server.store import RunStore
from tests.adversaries.forger import Forger, linked
from tests.adversaries.rich_runs import release
from tests.interop.verifier.run import verify_run
from tests.unit.audit.runs import Sites, make_run, small_manifest, small_plan
from tests.unit.audit.test_continued_sums import killed_after_it_asked
from tests.unit.audit.withdrawing import request_of, stopped_after, withdraw

NINE, COHORT = 9, {"size": 4, "quorum": 3, "deadline_s": 30.0}
SECTIONS: dict[str, Any] = {"cohort": COHORT, "rounds": 5}


@dataclass(frozen=True)
class World:
    """A run of nine sites, four of them in each round; 3 of 5 rounds are done, round 3 is released."""

    run: Path
    plan: Plan
    sites: Sites

    def used(self, number: int) -> list[str]:
        """Who is in a round, as the coordinator's own record says."""
        return list(record(self.run, number)["used"])

    def rounds_of(self, name: str) -> list[int]:
        last = len(list((self.run / "rounds").glob("[0-9]*"))) - 1
        return [number for number in range(1, last + 1) if name in self.used(number)]

    def id_of(self, site: int) -> str:
        return client_id(self.sites.roster[f"site-{site}"]).hex()

    def site_first_in(self, number: int) -> int:
        """A site whose first round is this one."""
        names = [name for name in self.used(number) if self.rounds_of(name)[0] == number]
        return int(names[0].removeprefix("site-"))

    def go_on(self) -> Path:
        return make_run(self.run, count=NINE, sites=self.sites, **SECTIONS)


def record(run: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((run / f"rounds/{number:04d}/record.json").read_text()))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("withdrawals")
    plan, manifest = small_plan(**SECTIONS)
    sites = Sites(plan, manifest, folder / "sites", NINE)
    run = stopped_after(3, folder / "run", count=NINE, sites=sites, **SECTIONS)
    release(run, 3, {"accuracy": 0.9})
    return World(run, plan, sites)


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """A copy of it, sites' memories too."""
    shutil.copytree(first.run, tmp_path / "run")
    shutil.copytree(first.sites.folder, tmp_path / "sites")
    return moved(first, tmp_path)


def moved(first: World, folder: Path) -> World:
    sites = Sites(first.plan, small_manifest(), folder / "sites", NINE, keys=first.sites.keys)
    return World(folder / "run", first.plan, sites)


def invoked(app: Any, *arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lineage(*arguments: object) -> list[dict[str, Any]]:
    return list(json.loads(invoked(auditing, "lineage", *arguments, "--json").output))


def audited(run: Path, *before: Path) -> list[str]:
    report = audit(Folder(run), Trust(), before=[Folder(each) for each in before])
    return [*report.faults, *(fault for one in report.rounds for fault in one.faults)]


# -- what a site has touched ------------------------------------------------------------------------


@pytest.mark.parametrize("site", range(NINE))
def test_the_lineage_of_every_site_is_that_of_the_records(site: int, first: World) -> None:
    name = f"site-{site}"
    (told,) = lineage(first.run, "--site", name)
    (same,) = lineage(first.run, "--site", first.id_of(site))
    assert told == same
    assert told["clients"] == {first.id_of(site): name}
    rounds = first.rounds_of(name)
    assert [held["round"] for held in told["sums"]] == rounds
    touched = range(rounds[0], 4) if rounds else range(0)
    assert told["adapters"] == [
        {"round": number, "adapter": record(first.run, number)["adapter_out"]} for number in touched
    ]
    assert [each["round"] for each in told["releases"]] == ([3] if rounds else [])
    before = rounds[0] - 1 if rounds else 3
    assert told["before"]["round"] == before
    assert told["before"]["adapter"] == record(first.run, before)["adapter_out"]
    assert Path(told["before"]["folder"]) == first.run / f"rounds/{before:04d}/adapter"
    text = invoked(auditing, "lineage", first.run, "--site", name).output
    assert ("nothing touched" in text) == (not rounds)
    for number in touched:
        assert record(first.run, number)["adapter_out"] in text


def test_a_leaf_says_who_was_asked(first: World) -> None:
    """The law that the audit of what came after a withdrawal rests on, by the coordinator's records."""
    expected = {name for number in (1, 2, 3) for name in record(first.run, number)["expected"]}
    reads = [read for _, read in load_run(Folder(first.run), Trust()).reads]
    for site in range(NINE):
        asked = [read.leaf.kind for read in reads if takes_part(read, first.id_of(site))]
        times = len(first.rounds_of(f"site-{site}"))
        assert bool(asked) == (f"site-{site}" in expected)
        assert asked.count("alive") == asked.count("vector") == asked.count("advert") == times


def test_what_is_no_site_or_no_secret_run_is_said(first: World, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="sit-3 is in no roster") as caught:
        lineage(first.run, "--site", "sit-3")
    assert "did you mean site-3?" in caught.value.remedy
    with pytest.raises(ArtefactError, match="in no roster"):
        lineage(first.run, "--site", "0" * 32)
    with pytest.raises(ArtefactError, match="no --site"):
        lineage(first.run, first.run)
    plain = make_run(tmp_path / "plain", rounds=1, secrecy={"exchange": "plain"})
    with pytest.raises(ProofError, match="in clear: its log names no client"):
        lineage(plain, "--site", "site-0")
    run = linked(first.run, tmp_path / "run")
    forger = Forger(run)
    forger.entries.append(forger.entries[0])
    with pytest.raises(ProofError, match="`plan` a second time"):
        lineage(forger.sign(), "--site", "site-0")


# -- the request and its leaf -----------------------------------------------------------------------


def requested(world: World, site: int, folder: Path, *more: str) -> Path:
    """As the site does it, from its own memory of the run."""
    key, out = folder / "site.key", folder / "withdrawal.json"
    key.write_text(world.sites.keys[site].private_bytes_raw().hex() + "\n")
    memory = world.sites.folder / f"{site}.receipts.jsonl"
    invoked(client_app, "withdraw", memory, "--identity", key, "--out", out, *more)
    return out


def test_a_site_withdraws_and_the_run_goes_on_without_it(world: World, tmp_path: Path) -> None:
    site = world.site_first_in(2)
    request = requested(world, site, tmp_path)
    assert request.read_bytes() == encode_request(request_of(world.run, world.sites.keys[site]))
    said = json.loads(invoked(log_app, "withdraw", world.run, request, "--json").output)
    assert (said["first"], said["before"]["round"]) == (2, 1)
    leaf = load_run(Folder(world.run), Trust()).log.withdrawals[0]
    assert (leaf.index, leaf.leaf.request.client) == (said["leaf"], world.id_of(site))
    assert (leaf.leaf.adapters, leaf.leaf.releases) == (2, 1)
    with pytest.raises(ProofError, match="has withdrawn already"):
        invoked(log_app, "withdraw", world.run, request)
    world.go_on()
    for number in (4, 5):
        assert f"site-{site}" not in record(world.run, number)["expected"]
        kept_out = record(world.run, number)["kept_out"]
        assert kept_out[f"site-{site}"] == f"has withdrawn: leaf {said['leaf']}"
    assert audited(world.run) == []
    assert verify_run(world.run) == [1, 2, 3, 4, 5]
    text = invoked(auditing, "verify", world.run).output
    assert f"leaf {said['leaf']}: {world.id_of(site)} withdrew: adapters from round 2 on" in text
    (told,) = lineage(world.run, "--site", f"site-{site}")
    assert told["withdrawals"] == [said["leaf"]]
    assert [each["round"] for each in told["adapters"]] == [2, 3, 4, 5]


def test_a_site_of_no_sum_withdraws(world: World, tmp_path: Path) -> None:
    """It has no receipt: its request says so; one that it signed all the same is logged."""
    site = next(s for s in range(NINE) if not world.rounds_of(f"site-{s}"))
    with pytest.raises(ArtefactError):
        requested(world, site, tmp_path)
    request = tmp_path / "request"
    request.write_bytes(encode_request(request_of(world.run, world.sites.keys[site])))
    assert "no adapter holds an update" in invoked(log_app, "withdraw", world.run, request).output
    leaf = load_run(Folder(world.run), Trust()).log.withdrawals[0].leaf
    assert (leaf.first, leaf.adapters, leaf.before.round) == (None, 0, 3)
    world.go_on()
    assert f"site-{site}" not in {n for number in (4, 5) for n in record(world.run, number)["used"]}
    assert audited(world.run) == []
    assert verify_run(world.run) == [1, 2, 3, 4, 5]


def test_what_is_no_request_of_this_run_is_refused(world: World, tmp_path: Path) -> None:
    good = request_of(world.run, world.sites.keys[world.site_first_in(1)])
    key = world.sites.keys[world.site_first_in(1)]
    stranger = Sites(world.plan, small_manifest(), tmp_path / "others", 1)
    other = sign_request(origin=good.origin, sid="0" * 64, key=key)
    named = sign_request(origin="fedge/small/" + "0" * 32, sid=good.sid, key=key)
    unknown = request_of(world.run, stranger.keys[0])
    forged = good.model_copy(update={"signature": unknown.signature})
    size = load_run(Folder(world.run), Trust()).copy.checkpoint.size
    request, inbox = tmp_path / "request", world.run / "log/inbox"
    inbox.mkdir()
    for name, bad, why in (
        ("forged", forged, "did not sign"),
        ("run", other, "another run of this log's name"),
        ("log", named, "this log is"),
        ("unknown", unknown, "in no roster"),
    ):
        request.write_bytes(encode_request(bad))
        with pytest.raises(ProofError, match=why):
            invoked(log_app, "withdraw", world.run, request)
        (inbox / f"{name}.json").write_bytes(encode_request(bad))
        invoked(log_app, "tend", world.run)
        assert why in (world.run / f"log/refused/{name}.json.why").read_text()
    request.write_bytes(b"{}")
    with pytest.raises(ProofError, match="not a request"):
        invoked(log_app, "withdraw", world.run, request)
    assert load_run(Folder(world.run), Trust()).copy.checkpoint.size == size


def test_a_request_waits_for_a_coordinator_that_is_at_the_run(world: World, tmp_path: Path) -> None:
    request = requested(world, site := world.site_first_in(3), tmp_path)
    store = RunStore(world.run)
    said = invoked(log_app, "withdraw", world.run, request).output
    store.close()
    assert "the coordinator logs it after this round" in said
    assert load_run(Folder(world.run), Trust()).log.withdrawals == []
    world.go_on()
    run = load_run(Folder(world.run), Trust())
    assert [one.leaf.request.client for one in run.log.withdrawals] == [world.id_of(site)]
    assert f"site-{site}" not in record(world.run, 4)["expected"]
    assert list((world.run / "log/inbox").iterdir()) == []
    assert audited(world.run) == []


def test_the_log_of_a_run_in_clear_takes_no_withdrawal(tmp_path: Path) -> None:
    clear: dict[str, Any] = {"rounds": 1, "secrecy": {"exchange": "plain"}}
    plan, manifest = small_plan(**clear)
    sites = Sites(plan, manifest, tmp_path / "sites", 6)
    run = make_run(tmp_path / "run", sites=sites, **clear)
    request = tmp_path / "request"
    request.write_bytes(encode_request(request_of(run, sites.keys[0])))
    with pytest.raises(ProofError, match="its log names no client"):
        invoked(log_app, "withdraw", run, request)


# -- a coordinator that lies ------------------------------------------------------------------------

Edit = Callable[[Any], None]
EDITS: dict[str, Edit] = {
    "first": lambda leaf: leaf.update(first=3),
    "none": lambda leaf: leaf.update(first=None),
    "rounds": lambda leaf: leaf.update(rounds=leaf["rounds"] + 1),
    "asked": lambda leaf: leaf.update(asked=1),
    "adapters": lambda leaf: leaf.update(adapters=1),
    "releases": lambda leaf: leaf.update(releases=0),
    "before": lambda leaf: leaf["before"].update(round=0),
    "adapter": lambda leaf: leaf["before"].update(adapter="0" * 64),
    "client": lambda leaf: leaf["request"].update(client="0" * 32),
    "sid": lambda leaf: leaf["request"].update(sid="0" * 64),
    "origin": lambda leaf: leaf["request"].update(origin="x"),
    "signature": lambda leaf: leaf["request"].update(signature="00" * 64),
}


@pytest.fixture(scope="module")
def withdrawn(first: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    run = tmp_path_factory.mktemp("withdrawn") / "run"
    shutil.copytree(first.run, run)
    withdraw(run, first.sites.keys[first.site_first_in(2)])
    return run


@pytest.mark.parametrize("name", EDITS)
def test_an_altered_leaf_is_a_fault(name: str, withdrawn: Path, tmp_path: Path) -> None:
    forger = Forger(linked(withdrawn, tmp_path / "run"))
    assert audited(forger.sign()) == []
    forger.edit(forger.at("withdrawal"), EDITS[name])
    (fault,) = audited(forger.sign())
    assert "`withdrawal`" in fault


def test_another_lineage_is_a_fault(withdrawn: Path, tmp_path: Path) -> None:
    for subjects in ({"lineage": "0" * 64}, {"more": "0" * 64}):
        forger = Forger(linked(withdrawn, tmp_path / "run"))
        forger.resubject(forger.at("withdrawal"), subjects)
        (fault,) = audited(forger.sign())
        assert "its effect is not what the log before it gives" in fault


def test_a_withdrawal_twice_or_out_of_place_is_a_fault(withdrawn: Path, tmp_path: Path) -> None:
    forger = Forger(linked(withdrawn, tmp_path / "run"))
    leaf = forger.entries[forger.at("withdrawal")]
    forger.entries.append(leaf)
    faults = audited(forger.sign())
    assert any("had withdrawn already" in fault for fault in faults)
    forger = Forger(linked(withdrawn, tmp_path / "run"))
    forger.entries.insert(2, forger.entries.pop(forger.at("withdrawal")))
    assert any("`withdrawal` before round 0" in fault for fault in audited(forger.sign()))


def test_a_coordinator_that_asks_all_the_same_is_caught(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites cannot know; whoever reads the log does."""
    monkeypatch.setattr("server.coordinator.without_withdrawn", lambda present, *_: present)
    for site in range(NINE):
        if world.rounds_of(f"site-{site}"):
            withdraw(world.run, world.sites.keys[site])
    world.go_on()
    faults = audited(world.run)
    again = {n for number in (4, 5) for n in world.used(number)}
    late = [name for name in sorted(again) if min(world.rounds_of(name)) <= 3]
    assert len([fault for fault in faults if "was asked afterwards" in fault]) == len(late) > 0
    with pytest.raises(AssertionError):
        verify_run(world.run)


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


def test_decoding_says_what_is_missing(withdrawn: Path) -> None:
    forger = Forger(withdrawn)
    leaf = decode_leaf(forger.entries[forger.at("withdrawal")]).leaf
    assert isinstance(leaf, Withdrawal)
    bare = json.dumps({"kind": "withdrawal", **leaf.request.model_dump()}, sort_keys=True)
    with pytest.raises(FedgeError, match="unknown kind"):  # a request by itself is no leaf
        decode_leaf(bare.replace(": ", ":").replace(", ", ",").encode())
