"""Witnesses as processes of their own, asked by a real log over HTTP, killed, restarted, following files."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.transparency.leaves import Pad
from protocol.transparency.note import lines_naming, parse_key, verify_note
from protocol.transparency.policy import simple_policy
from protocol.transparency.witness import AddCheckpoint
from server.log import RunLog
from server.witnessing import HttpWitness, cosigned_by

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "import typer; from audit.witness_commands import witness; typer.run(witness)"
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def command(folder: Path, *arguments: str) -> list[str]:
    files = ["--identity", str(folder / "key"), "--state", str(folder / "state"), "--json"]
    return [sys.executable, "-c", ENTRY, *files, *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=60
    )


class Process:
    """A witness at a free port; ``kill`` is SIGKILL."""

    def __init__(self, folder: Path, log: RunLog, *more: str) -> None:
        folder.mkdir(exist_ok=True)
        pin = ["--log", log.verifier.encode(), "--listen", "127.0.0.1:0", *more]
        self._process = subprocess.Popen(
            command(folder, *pin),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout
        self.key = parse_key(json.loads(self._process.stdout.readline())["witness"])
        self.url = json.loads(self._process.stdout.readline())["url"]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    (tmp_path / "run").mkdir()
    made = RunLog(tmp_path / "run", LOG, "fedge/run/0123")
    grow(made, 5)
    return made


@pytest.fixture
def started() -> Iterator[list[Process]]:
    found: list[Process] = []
    yield found
    for process in found:
        process.kill()


def grow(log: RunLog, count: int) -> None:
    log.append([log.write(Pad(), {"plan": f"{log.size:064x}"}) for _ in range(count)])


def test_a_quorum_of_processes_over_growth_kill_and_restart(
    tmp_path: Path, log: RunLog, started: list[Process]
) -> None:
    with ThreadPoolExecutor(3) as pool:  # three interpreters start at once
        places = [(tmp_path / name, log, "--new", name) for name in ("w0", "w1", "w2")]
        started += pool.map(lambda place: Process(*place), places)
    policy = simple_policy(log.verifier, [one.key for one in started], 2)
    for count in (1, 300):
        note, faults = cosigned_by([HttpWitness(one.url) for one in started], log, policy)
        assert faults == []
        assert all(len(lines_naming(note, one.key)) == 1 for one in started)
        assert policy.verify_checkpoint(note).size == log.size
        log.cosigned(note)
        grow(log, count)
    started[0].kill()
    note, faults = cosigned_by([HttpWitness(one.url) for one in started], log, policy)
    assert len(faults) == 1
    policy.verify_checkpoint(note)
    # Restarted it knows the size before last, and learns the new one; its key is the same.
    again = Process(tmp_path / "w0", log)
    key, started[0] = started[0].key, again
    assert again.key == key
    log.cosigned(note)
    grow(log, 1)
    note, faults = cosigned_by([HttpWitness(one.url) for one in started], log, policy)
    assert faults == []
    # A coordinator that was set back to an older log gets nowhere.
    (tmp_path / "older").mkdir()
    older = RunLog(tmp_path / "older", LOG, "fedge/run/0123")
    grow(older, 7)
    _, faults = cosigned_by([HttpWitness(one.url) for one in started], older, policy)
    assert [fault.partition(": ")[2] for fault in faults] == [
        "it has cosigned a longer log than this one"
    ] * 3
    # A second process on the same state is refused.
    second = run(tmp_path / "w0", "--listen", "127.0.0.1:0", "--log", log.verifier.encode())
    assert second.returncode != 0
    assert "in use" in second.stderr


def test_what_is_not_the_protocol_is_answered_and_harms_nothing(
    tmp_path: Path, log: RunLog, started: list[Process]
) -> None:
    own = Process(tmp_path / "w", log, "--new", "w")
    started.append(own)
    place = urlsplit(own.url)
    assert place.hostname
    line = http.client.HTTPConnection(place.hostname, place.port or 0, timeout=10)
    good = AddCheckpoint(old=0, path=(), note=log.note).encode()

    def status(body: bytes, path: str = "/add-checkpoint", method: str = "POST") -> int:
        line.request(method, path, body)
        reply = line.getresponse()
        reply.read()
        return reply.status

    assert status(b"nonsense") == 400
    assert status(good, "/other") == 404
    assert status(good.replace(b"fedge/run", b"other/run")) == 404
    assert status(good.replace(b"\n5\n", b"\n6\n")) == 403
    assert status(good, method="GET") == 501
    assert status(b"x" * 100_001) == 413
    for start in (b"POST /add-checkpoint HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\r\n", b""):
        with socket.create_connection((place.hostname, place.port or 0), timeout=10) as raw:
            raw.sendall(start)
            raw.shutdown(socket.SHUT_WR)
            assert "\u2014".encode() not in raw.recv(1000)
    with socket.create_connection((place.hostname, place.port or 0), timeout=10) as slow:
        slow.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 100\r\n\r\nold")
        assert status(good) == 200  # meanwhile others are served
    # The connection is kept between requests, and the conflict says the size as C2SP wants it.
    line.request("POST", "/add-checkpoint", good)
    reply = line.getresponse()
    assert (reply.status, reply.read()) == (409, b"5\n")
    assert reply.headers["Content-Type"] == "text/x.tlog.size"
    line.close()


def test_a_run_is_followed_from_its_folder(tmp_path: Path, log: RunLog) -> None:
    (tmp_path / "w").mkdir()
    made = run(tmp_path / "w", "--new", "w")
    assert made.returncode == 0, made.stderr
    key = parse_key(json.loads(made.stdout)["witness"])
    assert (tmp_path / "w" / "key").stat().st_mode & 0o777 == 0o600
    source = [str(tmp_path / "run"), "--once", "--log", log.verifier.encode()]
    followed = run(tmp_path / "w", *source)
    assert followed.returncode == 0, followed.stderr
    note = json.loads(followed.stdout.splitlines()[1])["checkpoint"]
    assert len(verify_note(note, [log.verifier, key]).by) == 2
    assert lines_naming(note, key)
    # Another history, signed by the same key, is refused.
    grow(log, 1)
    (tmp_path / "fork").mkdir()
    fork = RunLog(tmp_path / "fork", LOG, "fedge/run/0123")
    grow(fork, 1)
    grow(fork, 5)
    refused = run(tmp_path / "w", str(tmp_path / "fork"), *source[1:])
    assert refused.returncode != 0
    assert "does not begin" in refused.stderr
    assert run(tmp_path / "w", str(tmp_path / "run"), "--once").returncode == 2
    assert run(tmp_path / "w", *source).returncode == 0
