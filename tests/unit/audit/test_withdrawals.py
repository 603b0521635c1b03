"""A site withdraws from a real small run: what it has touched, the leaf, and who is asked afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.commands import app as auditing
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from protocol.errors import ArtefactError, FedgeError, ProofError
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Withdrawal
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.submissions import encode_request, sign_request
from protocol.transparency.withdrawal import takes_part
from server.commands import app as log_app
from server.inbox import leave_request
from server.store import RunStore
from tests.adversaries.forger import Forger, linked
from tests.interop.verifier.run import verify_run
from tests.unit.audit.runs import Sites, make_run, small_plan
from tests.unit.audit.small_bases import small_manifest
from tests.unit.audit.test_order import Local
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
    signed_anew,
    stopped_after,
    withdraw,
)

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


def test_what_waits_for_a_coordinator_was_verified_and_replaces_nothing(
    world: World, tmp_path: Path
) -> None:
    key = world.sites.keys[site := world.site_first_in(3)]
    gone = world.sites.keys[world.site_first_in(1)]
    good, over = request_of(world.run, key), request_of(world.run, gone)
    withdraw(world.run, gone)
    stranger = Sites(world.plan, small_manifest(), tmp_path / "others", 1)
    unknown = request_of(world.run, stranger.keys[0])
    request, inbox = tmp_path / "request", world.run / "log/inbox"
    store = RunStore(world.run)
    for bad, why in (
        (good.model_copy(update={"signature": unknown.signature}), "did not sign"),
        (sign_request(origin=good.origin, sid="0" * 64, key=key), "another run of this log's name"),
        (unknown, "in no roster"),
        (over, "has withdrawn already"),
        (signed_anew(over, gone), "has withdrawn already"),
    ):
        with pytest.raises(ProofError, match=why):
            leave_request(encode_request(bad), world.run)
    request.write_bytes(encode_request(over))
    with pytest.raises(ProofError, match="has withdrawn already"):  # as the command says it
        invoked(log_app, "withdraw", world.run, request)
    assert not inbox.exists()
    valid = [encode_request(good), encode_request(signed_anew(good, key))]
    for data in (*valid, valid[0]):
        assert leave_request(data, world.run).read_bytes() == data
    names = {f"{hashlib.sha256(data).hexdigest()}.json" for data in valid}
    assert {path.name for path in inbox.iterdir()} == names
    store.close()
    tended = json.loads(invoked(log_app, "tend", world.run, "--json").output)
    assert {*tended["logged"], *tended["refused"]} == names
    assert len(tended["logged"]) == 1
    clients = [
        one.leaf.request.client for one in load_run(Folder(world.run), Trust()).log.withdrawals
    ]
    assert clients[1:] == [world.id_of(site)]
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


@pytest.mark.slow
def test_a_site_with_a_new_key_is_both_and_withdraws_as_either(tmp_path: Path) -> None:
    four: dict[str, Any] = {"cohort": COHORT, "rounds": 3}
    plan, manifest = small_plan(**four)
    sites = Sites(plan, manifest, tmp_path / "sites", 4)
    run = stopped_after(1, tmp_path / "run", count=4, sites=sites, **four)
    old, new = sites.keys[0], Ed25519PrivateKey.generate()
    sites.keys[0], sites.roster["site-0"] = new, new.public_key().public_bytes_raw()
    for memory in sites.folder.glob("0.*"):  # it lies beside the key
        if memory.is_dir():
            shutil.rmtree(memory)
        else:
            memory.unlink()
    del sites.sessions[0]
    stopped_after(2, run, count=4, sites=sites, **four)
    ids = [client_id(key.public_key().public_bytes_raw()).hex() for key in (old, new)]
    (both,) = lineage(run, "--site", "site-0")
    assert both["clients"] == dict.fromkeys(ids, "site-0")
    assert [held["round"] for held in both["sums"]] == [1, 2]
    for one, number in zip(ids, (1, 2), strict=True):
        (told,) = lineage(run, "--site", one)
        assert [held["round"] for held in told["sums"]] == [number]
    withdraw(run, old)  # of a roster before: who has the name now goes on
    make_run(run, count=4, sites=sites, **four)
    assert "site-0" in record(run, 3)["used"]
    assert audited(run) == []
    assert verify_run(run) == [1, 2, 3]


@pytest.mark.slow
def test_under_witnesses_too(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    log = VerifierKey(name="log.example/run", type=KeyType.ED25519, public=public)
    witness = Local(tmp_path / "witness", log)
    named = {"log": log.encode(), "witnesses": [witness.key.encode()], "witness_quorum": 1}
    sections: dict[str, Any] = {"cohort": COHORT, "rounds": 3, "audit": named}
    plan, manifest = small_plan(**sections)
    sites = Sites(plan, manifest, tmp_path / "sites", NINE)
    more = {"count": NINE, "sites": sites, "log_key": key, "witnesses": [witness], **sections}
    run = stopped_after(2, tmp_path / "run", **more)
    (run / "log.key").write_text(key.private_bytes_raw().hex())
    world = World(run, plan, sites)
    site = world.site_first_in(2)
    withdraw(run, sites.keys[site])
    make_run(run, **more)
    assert f"site-{site}" not in record(run, 3)["expected"]
    assert audited(run) == []
    (told,) = lineage(run, "--site", f"site-{site}")
    assert [each["round"] for each in told["adapters"]] == [2, 3]


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


def test_decoding_says_what_is_missing(withdrawn: Path) -> None:
    forger = Forger(withdrawn)
    leaf = decode_leaf(forger.entries[forger.at("withdrawal")]).leaf
    assert isinstance(leaf, Withdrawal)
    bare = json.dumps({"kind": "withdrawal", **leaf.request.model_dump()}, sort_keys=True)
    with pytest.raises(FedgeError, match="unknown kind"):  # a request by itself is no leaf
        decode_leaf(bare.replace(": ", ":").replace(", ", ",").encode())
