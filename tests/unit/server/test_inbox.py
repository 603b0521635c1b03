"""Submissions: what is usable is logged once, the rest is put aside, and nothing stops a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import encode_message, encode_statement
from protocol.transparency.leaves import Abort, Audit, Complaint, Pad
from protocol.transparency.submissions import sign_complaint
from server.inbox import INBOX, REFUSED, take_in
from server.log import KEY, RunLog, open_log
from server.store import RunStore
from tests.unit.audit.runs import Sites, make_run, small_plan
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
