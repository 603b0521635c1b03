"""Submissions: what is usable is logged once, the rest is put aside, and nothing stops a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import encode_message, encode_statement
from protocol.transparency.leaves import Abort, Audit, Complaint, Pad, Request, Withdrawal
from protocol.transparency.submissions import (
    encode_request,
    sign_complaint,
    sign_request,
    verify_request,
)
from server.inbox import INBOX, MOST_AT_ONCE, REFUSED, Taken, take_in
from server.log import KEY, RunLog, open_log
from server.store import RunStore
from tests.unit.audit.runs import Sites, make_run, small_plan
from tests.unit.audit.withdrawing import audited, signed_anew
from tests.unit.fedge.test_command_line import fedge

AUDITOR, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


class Desk:
    """A finished run, its log open."""

    def __init__(self, folder: Path) -> None:
        self.sites = Sites(*small_plan(rounds=1), folder / "sites", 6)
        self.run = make_run(folder / "run", sites=self.sites, rounds=1)
        self.inbox, self.refused = self.run / "log" / INBOX, self.run / "log" / REFUSED
        self.inbox.mkdir()
        self.store = RunStore(self.run)
        self.log: RunLog = open_log(self.store, self.sites.plan)

    def put(self, name: str, data: bytes) -> None:
        (self.inbox / name).write_bytes(data)

    def why(self, name: str) -> str:
        return (self.refused / f"{name}.why").read_text()

    def verdict(self, key: Ed25519PrivateKey = AUDITOR, size: int = 3, root: str = "") -> bytes:
        leaf = Audit(
            size=size,
            verdict="ok",
            rounds={"1": "ok"},
            tool="t",
            auditor=AUDITOR.public_key().public_bytes_raw().hex(),
        )
        return encode_statement(leaf, {"log": root or self.log.tree.root(3).hex()}, key)

    def complaint(self, key: Ed25519PrivateKey, about: str = "left out") -> Complaint:
        one = client_id(key.public_key().public_bytes_raw())
        return sign_complaint(client=one, about=about, receipt="", key=key)

    def request(self, key: Ed25519PrivateKey) -> Request:
        sid = session_id(self.sites.plan.digest, self.store.run_id).hex()
        return sign_request(origin=self.log.origin, sid=sid, key=key)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


def test_verdicts_and_complaints_are_logged_once(desk: Desk) -> None:
    size = desk.log.size
    desk.put("a.json", desk.verdict())
    desk.put("b.json", encode_message(desk.complaint(desk.sites.keys[0])) + b"\n")
    desk.put("c.json", desk.verdict())  # the same again
    taken = take_in(desk.log, desk.store)
    assert (taken.logged, taken.refused) == (("a.json", "b.json", "c.json"), ())
    assert desk.log.size == size + 2
    assert desk.log.find(Audit) == [size]
    assert desk.log.find(Complaint) == [size + 1]
    assert list(desk.inbox.iterdir()) == []
    desk.put("d.json", desk.verdict())  # its file was not removed when the coordinator was killed
    assert take_in(desk.log, desk.store).logged == ("d.json",)
    assert desk.log.size == size + 2
    assert take_in(desk.log, desk.store).logged == ()


def test_what_cannot_be_used_is_put_aside_with_the_reason(desk: Desk, tmp_path: Path) -> None:
    size, mine = desk.log.size, desk.complaint(desk.sites.keys[1])
    abort = Abort(seq=1, group=None, round=1, attempt=1, revealed=[])
    bad = {
        "empty.json": (b"", "not canonical"),
        "form.json": (b'{"kind": "complaint"}', "not canonical"),
        "large.json": (b"[" + b"0," * 40_000 + b"0]", "65537 bytes"),
        "stranger.json": (encode_message(desk.complaint(STRANGER)), "in no roster"),
        "altered.json": (encode_message(mine.model_copy(update={"about": "x"})), "did not sign"),
        "signer.json": (desk.verdict(STRANGER), "not signed by its auditor"),
        "other.json": (desk.verdict(root="0" * 64), "another log"),
        "future.json": (desk.verdict(size=10**6), "another log"),
        "pad.json": (desk.log.write(Pad(), {"plan": "0" * 64}), "nobody submits"),
        "abort.json": (desk.log.write(abort, {"plan": "0" * 64}), "nobody submits"),
    }
    for name, (data, _) in bad.items():
        desk.put(name, data)
    secret = tmp_path / "secret.json"
    secret.write_text("secret")
    (desk.inbox / "link.json").symlink_to(secret)
    (desk.inbox / "folder.json").mkdir()
    os.mkfifo(desk.inbox / "pipe.json")
    desk.put("good.json", encode_message(mine))
    taken = take_in(desk.log, desk.store)
    assert taken.logged == ("good.json",)
    assert set(taken.refused) == {*bad, "link.json", "folder.json", "pipe.json"}
    for name, (_, why) in bad.items():
        assert why in desk.why(name), name
        assert (desk.refused / name).exists()
    for name in ("link.json", "folder.json", "pipe.json"):
        assert "not a plain file" in desk.why(name)
    assert secret.read_text() == "secret"
    assert desk.log.size == size + 1
    assert list(desk.inbox.iterdir()) == []


def test_what_was_put_aside_is_not_replaced(desk: Desk) -> None:
    for data in (b"", b"{}", b"[]"):
        desk.put("a.json", data)
        take_in(desk.log, desk.store)
    kept = {path.name: path.read_bytes() for path in desk.refused.glob("*.json")}
    assert kept == {"a.json": b"", "a.2.json": b"{}", "a.3.json": b"[]"}
    whys = [desk.why(name) for name in ("a.json", "a.2.json", "a.3.json")]
    assert all(whys)
    assert whys[0] != whys[1]


def test_long_names_are_put_aside_and_keep_nobody_waiting(desk: Desk) -> None:
    for number in range(MOST_AT_ONCE):
        desk.put(f"{number:0248}.json", b"{}")
    assert len(take_in(desk.log, desk.store).refused) == MOST_AT_ONCE
    assert list(desk.inbox.iterdir()) == []
    assert len(list(desk.refused.glob("*.json"))) == MOST_AT_ONCE


# -- several at once ----------------------------------------------------------------------------------


def test_a_client_that_signs_two_requests_withdraws_once(desk: Desk) -> None:
    request = desk.request(key := desk.sites.keys[0])
    again = signed_anew(request, key)
    verify_request(again, key.public_key().public_bytes_raw())
    desk.put("a.json", encode_request(request))
    desk.put("b.json", encode_request(again))
    desk.put("c.json", encode_request(request))  # the very same: it is logged already
    taken = take_in(desk.log, desk.store)
    assert (taken.logged, taken.refused) == (("a.json", "c.json"), ("b.json",))
    (index,) = desk.log.find(Withdrawal)
    assert desk.why("b.json") == f"{request.client} has withdrawn already: leaf {index}\n"
    assert audited(desk.run) == []
    desk.put("d.json", encode_request(request))  # not removed when the coordinator was killed
    assert take_in(desk.log, desk.store) == Taken(logged=("d.json",))
    assert desk.log.find(Withdrawal) == [index]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sites, dict[str, bytes]]:
    """A run, not to be changed, and submissions to it: of one kind and client, the same and other bytes."""
    desk = Desk(tmp_path_factory.mktemp("finished"))
    one, two = desk.sites.keys[0], desk.sites.keys[1]
    request = desk.request(one)
    forged = request.model_copy(update={"signature": desk.request(STRANGER).signature})
    made = {
        "verdict": desk.verdict(),
        "verdict of more": desk.verdict(size=desk.log.size + 1),
        "complaint": encode_message(desk.complaint(one)),
        "complaint and newline": encode_message(desk.complaint(one)) + b"\n",
        "another complaint": encode_message(desk.complaint(one, "again")),
        "a stranger's complaint": encode_message(desk.complaint(STRANGER)),
        "request": encode_request(request),
        "request without newline": encode_request(request).removesuffix(b"\n"),
        "request signed anew": encode_request(signed_anew(request, one)),
        "request signed anew again": encode_request(signed_anew(request, one)),
        "forged request": encode_request(forged),
        "request of another": encode_request(desk.request(two)),
        "pad": desk.log.write(Pad(), {"plan": "0" * 64}),
        "nothing": b"",
    }
    desk.store.close()
    return desk.run, desk.sites, made


@settings(max_examples=12)
@given(data=st.data())
def test_a_batch_is_judged_as_if_one_came_after_the_other(
    data: st.DataObject, finished: tuple[Path, Sites, dict[str, bytes]]
) -> None:
    run, sites, made = finished
    drawn = data.draw(st.lists(st.sampled_from(sorted(made)), max_size=9))
    files = [(f"{at}.json", made[name]) for at, name in enumerate(drawn)]
    ends = []
    for batches in ([files], [[each] for each in files]):
        with TemporaryDirectory() as folder:
            copy = Path(folder) / "run"
            shutil.copytree(run, copy)
            store = RunStore(copy)
            log = open_log(store, sites.plan)
            logged: list[str] = []
            for batch in batches:
                for name, content in batch:
                    (copy / "log" / INBOX / name).write_bytes(content)
                logged += take_in(log, store).logged
            store.close()
            whys = {path.name: path.read_text() for path in copy.glob("log/refused/*.why")}
            ends.append((logged, whys, [log.entry(at) for at in range(log.size)]))
            assert audited(copy) == []
    assert ends[0] == ends[1]


def test_a_folder_that_cannot_be_used_stops_nothing(desk: Desk) -> None:
    desk.put("a.json", desk.verdict())
    desk.put("bad.json", b"")
    desk.refused.write_text("a file where a folder should be")
    taken = take_in(desk.log, desk.store)
    assert (taken.logged, taken.refused) == (("a.json",), ("bad.json",))
    assert [path.name for path in desk.inbox.iterdir()] == ["bad.json"]
    desk.inbox.joinpath("bad.json").unlink()
    desk.inbox.rmdir()
    assert take_in(desk.log, desk.store).logged == ()


# -- fedge log ----------------------------------------------------------------------------------------


def test_tend_from_a_timer(desk: Desk) -> None:
    desk.put("a.json", desk.verdict())
    desk.put("bad.json", b"")
    busy = fedge("log", "tend", desk.run)
    assert (busy.returncode, "in use" in busy.stderr) == (5, True)
    size = desk.log.size
    desk.store.close()
    vectors = desk.run / "rounds/0001/vectors"
    os.utime(vectors, (0, 0))
    done = json.loads(fedge("log", "tend", desk.run, "--json").stdout)
    assert done == {
        "size": size + 2,
        "leaves": 0,
        "logged": ["a.json"],
        "refused": ["bad.json"],
        "retired": [1],
    }
    assert not vectors.exists()
    again = fedge("log", "tend", desk.run)
    assert again.stdout.strip() == f"{desk.run}: {size + 2} leaves"
    key = fedge("log", "key", desk.run)
    assert key.stdout == (desk.run / "log" / KEY).read_text()


def test_tend_makes_no_folder_and_no_key(desk: Desk, tmp_path: Path) -> None:
    desk.store.close()
    for target in (tmp_path / "absent", tmp_path):
        assert fedge("log", "tend", target).returncode == 5
        assert fedge("log", "key", target).returncode == 5
    assert not (tmp_path / "absent").exists()
    (desk.run / "log.key").rename(tmp_path / "log.key")
    done = fedge("log", "tend", desk.run)
    assert (done.returncode, "key, is missing" in done.stderr) == (5, True)
    assert fedge("log", "tend", desk.run, "--log-key", tmp_path / "none").returncode == 5
    assert not (tmp_path / "none").exists()
    assert fedge("log", "tend", desk.run, "--log-key", tmp_path / "log.key").returncode == 0
    assert not (desk.run / "log.key").exists()


def test_the_commands_need_no_flower(desk: Desk) -> None:
    desk.store.close()
    code = (
        "import sys\nfrom fedge.main import main\n"
        f"try:\n    main(['log', 'tend', {str(desk.run)!r}])\nexcept SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'flwr', 'torch'} & {name.partition('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
