"""A site and its coordinator: whether it is reached, knows this site, and which roster it has."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from operations.folders import KEYS
from operations.site import NODE_KEY, ROSTER, SIGNED, Site, read_node_key
from protocol.documents import parse_json
from protocol.enrolment import MAX_BYTES, SignedRoster, verify_roster
from protocol.errors import FedgeError, ProofError
from server.gateway import (
    CLOCKS_S,
    INSTANCE_HEADER,
    KEY_HEADER,
    ROSTER_PATH,
    SIGNATURE_HEADER,
    TIME_HEADER,
)
from storage.whole import write_whole

CONTACT = "contact.json"
EVERY_S, TIMEOUT_S = 20.0, 10.0
TWICE = 409
OF_TIME = {9, 10}  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A try to reach the coordinator: HTTP ``status`` (0: no answer) and what was wrong, if anything."""

    at: str
    status: int
    fault: str
    clock_apart_s: float | None
    roster_version: int


def keep_in_contact(site: Site, now: Callable[[], datetime]) -> Callable[[], None]:
    """A chore for the site's supervisor: every 20 s, and every 2 s until it works.

    It asks in a thread of its own: a coordinator that does not answer keeps nobody waiting.
    """
    due, asking = 0.0, threading.Thread()

    def ask() -> None:
        nonlocal due
        wait = EVERY_S / 10
        try:
            if make_contact(site, now).status == 200:
                wait = EVERY_S
        finally:
            due = time.monotonic() + wait

    def chore() -> None:
        nonlocal asking
        if time.monotonic() >= due and not asking.is_alive():
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()

    return chore


def make_contact(site: Site, now: Callable[[], datetime]) -> Contact:
    """Ask the coordinator for its roster and take a newer one; the outcome is kept on disk too."""
    status, fault, apart = 0, "", None
    try:
        answer, body = _asked(site, now())
        status, apart = answer.status_code, _clock_apart(answer, now())
        fault = _taken(site, body) if status == 200 else _refusal(site, status, apart)
    except FedgeError as error:
        fault = error.cause
    except TimeoutError:
        fault = f"no answer within {TIMEOUT_S:.0f} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        fault = _unreached(error, now())
    found = Contact(
        at=now().isoformat(timespec="seconds"),
        status=status,
        fault=fault,
        clock_apart_s=apart,
        roster_version=_version(site),
    )
    with suppress(OSError):  # a full disk: what it said last stays, with its time
        write_whole(site.state / CONTACT, json.dumps(asdict(found)).encode())
    return found


def _asked(site: Site, now: datetime) -> tuple[httpx.Response, bytes]:
    """The coordinator's answer and its body, all of it within ten seconds and a roster's length."""
    context = ssl.create_default_context(cadata=site.invitation.authority)
    url = f"https://{site.invitation.address}{ROSTER_PATH}"
    headers = {**_signed(site, now), "Accept-Encoding": "identity"}

    async def ask() -> tuple[httpx.Response, bytes]:
        client = httpx.AsyncClient(verify=context, timeout=TIMEOUT_S)
        async with client, client.stream("GET", url, headers=headers) as answer:
            body = bytearray()
            async for piece in answer.aiter_raw():  # nothing is unpacked
                body += piece
                if len(body) > MAX_BYTES:
                    raise ProofError("the roster is too long", "ask the operator")
            return answer, bytes(body)

    async def in_time() -> tuple[httpx.Response, bytes]:
        async with asyncio.timeout(TIMEOUT_S):
            return await ask()

    return asyncio.run(in_time())


def _taken(site: Site, roster: bytes) -> str:
    """Take a roster; what keeps it from being kept here, or nothing."""
    try:
        take_roster(site, roster)
    except OSError as error:
        return f"{site.folder} cannot be written: {error.strerror}"
    return ""


def _version(site: Site) -> int:
    """Of the roster that this site has; 0 without one, or with one that does not verify."""
    try:
        known = known_roster(site)
    except (FedgeError, OSError):
        return 0
    return known.version if known else 0


def last_contact(site: Site) -> Contact | None:
    """What the last try found, None before the first."""
    try:
        return Contact(**parse_json((site.state / CONTACT).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def known_roster(site: Site) -> SignedRoster | None:
    """The roster that this site has. Raises ProofError when it was altered."""
    path = site.folder / SIGNED
    if not path.exists():
        return None
    return verify_roster(path.read_bytes(), _operator(site), least=1, source=str(path))


def take_roster(site: Site, data: bytes) -> None:
    """Replace the roster by a newer one of the operator. Raises ProofError."""
    known = known_roster(site)
    version = known.version if known else 0
    roster = verify_roster(data, _operator(site), least=max(version, 1), source="the roster")
    if known and roster.version == version and roster != known:
        raise ProofError(
            f"the operator signed two rosters as version {version}", "keep both and ask them"
        )
    if roster.version > version:
        # The version last: after a crash between the two the roster is taken again.
        write_whole(site.folder / ROSTER, roster.render().encode())
        write_whole(site.folder / SIGNED, data)


def _operator(site: Site) -> bytes:
    return bytes.fromhex(site.invitation.operator)


def _signed(site: Site, now: datetime) -> dict[str, str]:
    """The headers by which the coordinator knows an enrolled node."""
    key = read_node_key(site.folder / KEYS / NODE_KEY)
    stamp = now.isoformat()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        KEY_HEADER.decode(): b64encode(public).decode(),
        TIME_HEADER.decode(): stamp,
        SIGNATURE_HEADER.decode(): b64encode(signature).decode(),
        INSTANCE_HEADER.decode(): site.instance,
    }


def _clock_apart(answer: httpx.Response, now: datetime) -> float | None:
    """Seconds by which this machine's clock is ahead of the coordinator's."""
    try:
        return (now - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _unreached(error: BaseException, now: datetime) -> str:
    """Why there was no answer: a certificate that is refused is said, with this clock where it matters."""
    if isinstance(error, httpx.ProxyError):
        return f"the proxy that the environment names does not let it through: {error}"
    if isinstance(error, httpx.InvalidURL):
        return "the environment's proxy variables (http_proxy, no_proxy …) cannot be read"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return f"no answer ({type(error).__name__})"
    fault = f"its certificate is refused: {cause.verify_message}"
    if cause.verify_code in OF_TIME:
        return f"{fault}; it is {now.isoformat(timespec='minutes')} here: compare the clocks"
    return fault


def _refusal(site: Site, status: int, apart: float | None) -> str:
    if status == TWICE:
        return (
            f"refused: {site.settings.name} is on line twice: another copy of this folder runs; "
            "stop one of the two, and the other is let in within a minute"
        )
    if status == 401 and apart is not None and abs(apart) > CLOCKS_S:
        return f"refused: this clock and the coordinator's are {apart:+.0f} s apart"
    if status == 401:
        return "refused: the operator has not admitted this site"
    return f"refused: HTTP {status}"
