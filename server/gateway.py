"""What reaches a SuperLink, and from where: an ASGI application in front of Flower's.

Flower serves the APIs of nodes (Fleet), operators (Control) and apps (Runtime) on one port and asks
only nodes who they are. Here they are apart: the public port has what an enrolled node needs, to
whom signs as one, and nothing else; the private port, on loopback, has Runtime, which asks for
tokens of its own, and Control, which asks for the operator's.
"""

from __future__ import annotations

import binascii
import hmac
import json
import logging
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.doubles import Doubles

log = logging.getLogger("delivery.gate")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Flower's: a node signs the time of every request.
KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
CLOCKS_S = 300.0  # as in Flower: further apart, and a request is refused
LINES = 60  # of refusals in the log, a minute
TOKEN_HEADER = b"fedge-token"
ROSTER_PATH = "/v1/fedge/roster"
INSTANCE_HEADER, MOST_INSTANCE = b"fedge-instance", 64  # a start of a site, and its bytes
DOUBLED_PATH = "/v1/control/fedge-doubled"  # to the operator: the keys of sites that run twice
FLEET = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)


class Gate:
    """Lets through what belongs, by the port a request came to; anything else gets a bare status."""

    def __init__(
        self,
        inner: Application,
        *,
        public_port: int,
        private_port: int,
        token: str,
        enrolled: Callable[[bytes], bool],
        roster: Callable[[], bytes],
        now: Callable[[], datetime],
        request_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``enrolled`` knows node keys (PEM), ``roster`` gives the signed roster, ``now`` has a zone.

        ``monotonic`` (seconds) measures silence: a clock that is set back must not lengthen it.
        """
        self._inner, self._token, self._now = inner, token.encode(), now
        self._public, self._private = public_port, private_port
        self._enrolled, self._roster = enrolled, roster
        self._request_bytes = request_bytes
        self._doubles, self._monotonic = Doubles(), monotonic
        self.refused = 0
        self._minute = self._noted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # nothing of Flower's is a websocket
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        port, path = (scope.get("server") or ("", 0))[1], scope["path"]
        if port == self._public:
            status, why = self._node(scope)
        elif port == self._private:
            status, why = self._local(scope)
        else:
            status, why = 404, "another port"
        if status:
            self.refused += 1
            self._note(scope, f"{why} ({status})")
            await _answer(send, status, b"")
        elif path == ROSTER_PATH:
            await _answer(send, 200, self._roster())
        elif path == DOUBLED_PATH:
            keys = self._doubles.keys(self._monotonic())
            await _answer(send, 200, json.dumps([key.decode("ascii") for key in keys]).encode())
        else:
            await self._inner(scope, receive, send)

    def _note(self, scope: Scope, why: str) -> None:
        """A line for a refusal, but so many a minute: strangers must not push older lines out of the log."""
        minute = int(self._now().timestamp() // 60)
        if minute != self._minute:
            if self._noted > LINES:
                log.warning("refused %d more in that minute", self._noted - LINES)
            self._minute, self._noted = minute, 0
        self._noted += 1
        if self._noted <= LINES:
            caller, port = (scope.get("client") or ("?", 0))[0], (scope.get("server") or ("", 0))[1]
            log.warning("refused %s at %s: %s, %r", caller, port, why, scope["path"][:80])

    def _node(self, scope: Scope) -> tuple[int, str]:
        """The status of a refusal and its reason; 0 for what may pass. Its body is still unread."""
        method = "GET" if scope["path"] == ROSTER_PATH else "POST"
        if scope["method"] != method or scope["path"] not in FLEET | {ROSTER_PATH}:
            return 404, "not for nodes"
        headers = _headers(scope)
        try:
            key = b64decode(headers.get(KEY_HEADER, b""), validate=True)
        except binascii.Error:
            key = b""
        if not self._enrolled(key):
            return 401, "not enrolled"
        if fault := _unsigned(headers, key, self._now()):
            return 401, fault
        instance = headers.get(INSTANCE_HEADER, b"")[:MOST_INSTANCE]
        if not self._doubles.admits(key, instance, self._monotonic()):
            return 409, "this site is on line already: it, or a copy of its folder, runs twice"
        return self._length(scope, headers)

    def _length(self, scope: Scope, headers: Mapping[bytes, bytes]) -> tuple[int, str]:
        """A body is as long as it says beforehand: one in chunks is as long as its sender likes."""
        length = headers.get(b"content-length", b"0" if scope["method"] == "GET" else b"")
        chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        if chunked or not length.isdigit() or len(length) > 12:
            return 411, "without a length"
        return (413, "too long") if int(length) > self._request_bytes else (0, "")

    def _local(self, scope: Scope) -> tuple[int, str]:
        path = scope["path"]
        if path == "/health" or path.startswith("/v1/runtime/"):
            # Flower reads a body before it asks for a token.
            return self._length(scope, _headers(scope))
        if not path.startswith("/v1/control/"):
            return 404, "not here"
        given = _headers(scope).get(TOKEN_HEADER, b"")
        return (0, "") if hmac.compare_digest(given, self._token) else (401, "not the operator")


def _unsigned(headers: Mapping[bytes, bytes], key: bytes, now: datetime) -> str:
    """What is wrong with a node's signature over the time, or nothing."""
    try:
        stamp = headers[TIME_HEADER]
        apart = (now - datetime.fromisoformat(stamp.decode("ascii"))).total_seconds()
        public = serialization.load_pem_public_key(key)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        signature = b64decode(headers[SIGNATURE_HEADER], validate=True)
        public.verify(signature, stamp, ec.ECDSA(hashes.SHA256()))
    except (KeyError, ValueError, TypeError, InvalidSignature):
        return "not signed"
    return f"its clock is {apart:+.0f} s away" if abs(apart) > CLOCKS_S else ""


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """By name; one that is repeated counts as absent, so that nobody picks among them."""
    found: dict[bytes, bytes] = {}
    repeated = set()
    for name, value in scope["headers"]:
        if name in found:
            repeated.add(name)
        found[name] = value
    return {name: value for name, value in found.items() if name not in repeated}


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
