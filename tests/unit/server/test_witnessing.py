"""What the coordinator takes from witnesses that lie, break off, answer too much or never end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import PlanError
from protocol.transparency.leaves import Pad
from protocol.transparency.note import cosign, sign_note
from protocol.transparency.policy import Policy, simple_policy
from protocol.transparency.witness import (
    Refused,
    Witnessed,
    consider,
    parse_add_checkpoint,
    witness_key,
)
from server.log import RunLog
from server.witnessing import Answer, HttpWitness, cosigned_by

LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number + 50]) * 32) for number in range(4)]
NOW = 1_790_000_000


class InMemory:
    """A witness without a network: the real core, a state, and the number of requests it had."""

    def __init__(self, number: int, log: RunLog) -> None:
        self.name, self.key, self._log = f"w{number}", KEYS[number], log
        self.latest, self.requests = Witnessed(), 0

    def post(self, body: bytes) -> Answer:
        self.requests += 1
        request = parse_add_checkpoint(body)
        found = consider(request, self.latest, [self._log.verifier], self.name, self.key, time=NOW)
        if isinstance(found, Refused):
            text = found.why if found.size is None else f"{found.size}\n"
            return Answer(status=found.status, body=text)
        self.latest = found.latest
        return Answer(status=200, body=found.line)


@dataclass
class Answering:
    """A witness that answers what it was told to."""

    name: str
    reply: Callable[[bytes], Answer]

    def post(self, body: bytes) -> Answer:
        return self.reply(body)


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    made = RunLog(tmp_path, LOG, "fedge/run/0123")
    made.append([made.write(Pad(), {"plan": "0" * 64}) for _ in range(5)])
    return made


def grow(log: RunLog) -> None:
    log.append([log.write(Pad(), {"plan": "0" * 64})])


def policy(log: RunLog, quorum: int = 3) -> Policy:
    keys = [witness_key(f"w{number}", key) for number, key in enumerate(KEYS)]
    return simple_policy(log.verifier, keys, quorum)


def test_all_cosign_and_are_asked_once_while_they_keep_up(log: RunLog) -> None:
    crowd = [InMemory(number, log) for number in range(4)]
    for _ in range(3):
        note, faults = cosigned_by(crowd, log, policy(log))
        assert faults == []
        assert policy(log, 4).verify_checkpoint(note).size == log.size
        log.cosigned(note)
        grow(log)
    assert [one.requests for one in crowd] == [3] * 4


def test_one_that_missed_a_checkpoint_is_asked_from_where_it_is(log: RunLog) -> None:
    crowd = [InMemory(number, log) for number in range(4)]
    log.cosigned(cosigned_by(crowd[1:], log, policy(log))[0])
    grow(log)
    note, faults = cosigned_by(crowd, log, policy(log))
    assert faults == []
    assert [one.requests for one in crowd] == [2, 2, 2, 2]
    policy(log, 4).verify_checkpoint(note)


def test_a_checkpoint_that_has_lines_gets_no_second_ones(log: RunLog) -> None:
    crowd = [InMemory(number, log) for number in range(4)]
    log.cosigned(cosigned_by(crowd[:2], log, policy(log))[0])
    note, _ = cosigned_by(crowd, log, policy(log))
    assert note.count("\n\u2014 ") == 5
    assert note.startswith(log.note)


def line_of(number: int, body: bytes, key: Ed25519PrivateKey | None = None) -> str:
    text = parse_add_checkpoint(body).claimed.text
    return cosign(text, f"w{number}", key or KEYS[number], time=NOW)


def raises(error: Exception) -> Callable[[bytes], Answer]:
    def reply(body: bytes) -> Answer:
        raise error

    return reply


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (raises(OSError("refused")), "OSError"),
        (raises(URLError(TimeoutError())), "no byte for too long"),
        (raises(IncompleteRead(b"")), "IncompleteRead"),
        (lambda body: Answer(status=500, body="broken"), "refused with 500: broken"),
        (lambda body: Answer(status=409, body="another tree"), "refused with 409: another tree"),
        (lambda body: Answer(status=409, body="99\n"), "longer log"),
        (lambda body: Answer(status=409, body="3\n"), "refused with 409: 3"),
        (lambda body: Answer(status=200, body=""), "nobody known"),
        (lambda body: Answer(status=200, body="\u2014 w0 AAAA\n"), "signature line"),
        (lambda body: Answer(status=200, body=line_of(0, body, KEYS[1])), "nobody known"),
        (lambda body: Answer(status=200, body=forged(body)), "not valid"),
    ],
)
def test_one_bad_answer_is_a_reason_and_costs_nobody_else(
    log: RunLog, reply: Callable[[bytes], Answer], why: str
) -> None:
    crowd = [Answering("bad", reply), *(InMemory(number, log) for number in (1, 2, 3))]
    note, faults = cosigned_by(crowd, log, policy(log))
    assert len(faults) == 1
    assert faults[0].startswith("bad: ")
    assert why in faults[0]
    assert policy(log).verify_checkpoint(note).size == log.size


def forged(body: bytes) -> str:
    """A line in the name of another witness whose signature is of other bytes."""
    other = cosign("x\n1\ny\n", "w1", KEYS[1], time=NOW)
    return line_of(0, body) + other


def test_lines_nobody_asked_for_do_not_spoil_the_note(log: RunLog) -> None:
    def stuffed(body: bytes) -> Answer:
        text = parse_add_checkpoint(body).claimed.text
        junk = "".join(sign_note(text, f"s{number}", KEYS[0]) for number in range(90))
        return Answer(status=200, body=junk + line_of(0, body) * 3)

    crowd = [Answering("w0", stuffed), *(InMemory(number, log) for number in (1, 2, 3))]
    note, faults = cosigned_by(crowd, log, policy(log))
    assert faults == []
    assert note.count("\n\u2014 ") == 5
    policy(log, 4).verify_checkpoint(note)


def test_nobody_is_waited_for_beyond_the_deadline(log: RunLog) -> None:
    def sleepy(body: bytes) -> Answer:
        time.sleep(5)
        return Answer(status=200, body="")

    crowd = [Answering("slow", sleepy), *(InMemory(number, log) for number in (1, 2, 3))]
    start = time.monotonic()
    note, faults = cosigned_by(crowd, log, policy(log), deadline_s=0.5)
    assert time.monotonic() - start < 4
    assert faults == ["slow: no answer in time"]
    policy(log).verify_checkpoint(note)


def test_addresses_that_lead_nowhere_are_reasons(log: RunLog) -> None:
    note, faults = cosigned_by([HttpWitness("http://127.0.0.1:9")], log, policy(log))
    assert note == log.note
    assert faults == ["http://127.0.0.1:9: Connection refused"]


def test_proxies_are_those_of_the_environment_when_it_asks(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of another time: urllib's own opener keeps those of its first use."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(418)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        witness = HttpWitness("http://127.0.0.1:9")
        _, through = cosigned_by([witness], log, policy(log))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        _, direct = cosigned_by([witness], log, policy(log))
        proxy.shutdown()
    assert "refused with 418" in through[0]
    assert direct == ["http://127.0.0.1:9: Connection refused"]


@pytest.mark.parametrize("address", ["no address", "file:///", "", "http://"])
def test_what_is_no_address_is_refused_where_it_is_typed(address: str) -> None:
    with pytest.raises(PlanError, match="the witness"):
        HttpWitness(address)
