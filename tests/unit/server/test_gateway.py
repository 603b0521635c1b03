"""The gate, asked as a server asks it: what passes on which port, and what gets a bare status."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.doubles import FORGET_S
from server.gateway import FLEET, LINES, ROSTER_PATH, Gate

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PUBLIC, PRIVATE, TOKEN = 9440, 9441, "5ec2e7"
KNOWN, STRANGER = (ec.derive_private_key(n, ec.SECP384R1()) for n in (7, 8))
PULL = "/v1/fleet/pull-messages"


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def signed(
    key: ec.EllipticCurvePrivateKey = KNOWN, *, claimed: bytes = b"", at: datetime = NOW
) -> list[tuple[bytes, bytes]]:
    stamp = at.isoformat().encode()
    signature = key.sign(stamp, ec.ECDSA(hashes.SHA256()))
    return [
        (b"flwr-public-key", b64encode(claimed or pem(key))),
        (b"flwr-timestamp", stamp),
        (b"flwr-signature", b64encode(signature)),
        (b"content-length", b"10"),
    ]


async def inner(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"flower"})


def ask(
    path: str,
    headers: list[tuple[bytes, bytes]],
    *,
    method: str = "POST",
    port: int = PUBLIC,
    kind: str = "http",
) -> tuple[int, bytes]:
    gate = Gate(
        inner,
        public_port=PUBLIC,
        private_port=PRIVATE,
        token=TOKEN,
        enrolled=lambda key: key == pem(KNOWN),
        roster=lambda: b"roster",
        now=lambda: NOW,
        request_bytes=100,
    )
    said: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        raise AssertionError("a refused request's body is not read")

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": headers,
        "server": ("127.0.0.1", port),
        "client": ("10.0.0.9", 4711),
    }
    asyncio.run(gate(scope, receive, send))
    return said[0].get("status", 0), said[-1].get("body", b"")


@pytest.mark.parametrize("path", sorted(FLEET))
def test_an_enrolled_node_reaches_what_nodes_need(path: str) -> None:
    assert ask(path, signed()) == (200, b"flower")
    assert ask(path, [])[0] == 401


def test_an_enrolled_node_gets_the_roster() -> None:
    headers = signed()[:3]
    assert ask(ROSTER_PATH, headers, method="GET") == (200, b"roster")
    assert ask(ROSTER_PATH, signed(STRANGER)[:3], method="GET") == (401, b"")
    assert ask(ROSTER_PATH, headers, method="POST")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_else_is_at_the_public_port(path: str, method: str) -> None:
    assert ask(path, [*signed(), (b"fedge-token", TOKEN.encode())], method=method)[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        signed(STRANGER),
        signed(STRANGER, claimed=pem(KNOWN)),
        signed(at=NOW - timedelta(days=1)),
        signed(at=NOW + timedelta(seconds=301)),
        signed(at=NOW.replace(tzinfo=None)),
        signed()[1:],
        [*signed()[:1], *signed()[2:]],
        [*signed()[:2], *signed()[3:]],
        [*signed()[:1], (b"flwr-timestamp", b"soon"), *signed()[2:]],
        [*signed(), signed()[0]],  # twice: nobody picks one of them
        [(b"flwr-public-key", b"!"), *signed()[1:]],
    ],
)
def test_who_does_not_sign_as_an_enrolled_node_is_refused(
    headers: list[tuple[bytes, bytes]],
) -> None:
    assert ask(PULL, headers) == (401, b"")


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"100", 200), (b"101", 413), (b"9" * 13, 411), (b"-1", 411), (b"", 411)],
)
def test_a_request_says_how_long_it_is(length: bytes, status: int) -> None:
    assert ask(PULL, [*signed()[:3], (b"content-length", length)])[0] == status
    assert ask(PULL, signed()[:3])[0] == 411


def test_a_body_in_chunks_is_refused_whatever_length_it_claims() -> None:
    chunked = (b"transfer-encoding", b"chunked")
    assert ask(PULL, [*signed(), chunked])[0] == 411
    for path in ("/v1/runtime/push-object", "/v1/runtime/responses"):
        assert ask(path, [chunked], port=PRIVATE)[0] == 411
        assert ask(path, [(b"content-length", b"10"), chunked], port=PRIVATE)[0] == 411
        assert ask(path, [(b"content-length", b"101")], port=PRIVATE)[0] == 413


def test_the_private_port_asks_operators_for_their_token() -> None:
    path, right = "/v1/control/start-run", [(b"fedge-token", TOKEN.encode())]
    assert ask(path, right, port=PRIVATE) == (200, b"flower")
    for wrong in ([], [(b"fedge-token", b"5ec2e8")], right * 2):
        assert ask(path, wrong, port=PRIVATE) == (401, b"")
    short = [(b"content-length", b"10")]
    assert ask("/v1/runtime/acquire-task", short, port=PRIVATE)[0] == 200  # Flower has its own
    assert ask("/health", [], port=PRIVATE, method="GET")[0] == 200
    for path in (PULL, "/docs", "/v1/responses", ROSTER_PATH):
        assert ask(path, [*right, *signed()], port=PRIVATE)[0] == 404


def test_refusals_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    at = NOW
    gate = Gate(
        inner,
        public_port=PUBLIC,
        private_port=PRIVATE,
        token=TOKEN,
        enrolled=lambda _key: False,
        roster=lambda: b"",
        now=lambda: at,
        request_bytes=1,
    )
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "server": ("", PUBLIC)}

    async def send(_message: Any) -> None: ...

    for _ in range(500):
        asyncio.run(gate(scope, send, send))
    assert len(caplog.records) == LINES
    at += timedelta(minutes=1)
    asyncio.run(gate(scope, send, send))
    assert [record.getMessage() for record in caplog.records[LINES:]] == [
        f"refused {500 - LINES} more in that minute",
        f"refused ? at {PUBLIC}: not for nodes (404), '/'",
    ]
    assert gate.refused == 501


def test_other_ports_and_kinds_of_connections_have_nothing() -> None:
    assert ask(PULL, signed(), port=1)[0] == 404
    assert ask(PULL, signed(), kind="websocket") == (0, b"")


def test_a_clock_that_is_set_back_keeps_no_site_out() -> None:
    """Of a site that runs twice the first dies while the clock goes back an hour: the other follows it."""
    at, passed = NOW, 0.0
    gate = Gate(
        inner,
        public_port=PUBLIC,
        private_port=PRIVATE,
        token=TOKEN,
        enrolled=lambda _key: True,
        roster=lambda: b"",
        now=lambda: at,
        request_bytes=100,
        monotonic=lambda: passed,
    )

    def status(instance: bytes) -> int:
        headers = [*signed(at=at), (b"fedge-instance", instance)]
        scope = {"type": "http", "method": "POST", "path": PULL, "server": ("", PUBLIC)}
        said: list[Any] = []

        async def send(message: Any) -> None:
            said.append(message)

        asyncio.run(gate(scope | {"headers": headers}, send, send))
        return int(said[0]["status"])

    assert [status(name) for name in (b"a", b"b", b"a", b"b")] == [200, 200, 200, 409]
    at, passed = at - timedelta(hours=1), FORGET_S + 1
    assert status(b"b") == 200
