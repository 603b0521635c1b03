"""A site and its coordinator: whether it is reached, knows this site, and which roster it has."""

from __future__ import annotations

import json
import ssl
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedge.operations.folders import KEYS
from fedge.operations.site import NODE_KEY, ROSTER, SIGNED, Site, read_node_key
from protocol.enrolment import MAX_BYTES, SignedRoster, verify_roster
from protocol.errors import FedgeError, ProofError
from server.files import write_whole
from server.gate import CLOCKS_S, KEY_HEADER, ROSTER_PATH, SIGNATURE_HEADER, TIME_HEADER

CONTACT = "contact.json"
EVERY_S, TIMEOUT_S = 20.0, 10.0


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A try to reach the coordinator: HTTP ``status`` (0: no answer) and what was wrong, if anything."""

    at: str
    status: int
    fault: str
    clock_apart_s: float | None
    roster_version: int


def keep_in_contact(site: Site, now: Callable[[], datetime]) -> Callable[[], None]:
    """A chore for the site's supervisor: every 20 s, and every 2 s until it works."""
    due = 0.0

    def chore() -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        found = make_contact(site, now)
        due = time.monotonic() + (EVERY_S if found.status == 200 else EVERY_S / 10)

    return chore


def make_contact(site: Site, now: Callable[[], datetime]) -> Contact:
    """Ask the coordinator for its roster and take a newer one; the outcome is kept on disk too."""
    status, fault, apart = 0, "", None
    try:
        context = ssl.create_default_context(cadata=site.invitation.authority)
        with httpx.Client(verify=context, timeout=TIMEOUT_S) as client:
            url = f"https://{site.invitation.address}{ROSTER_PATH}"
            answer = client.get(url, headers=_signed(site, now()))
        status, apart = answer.status_code, _clock_apart(answer, now())
        if status == 200:
            take_roster(site, answer.content[: MAX_BYTES + 1])
        else:
            fault = _refusal(status, apart)
    except FedgeError as error:
        fault = error.cause
    except (httpx.HTTPError, OSError) as error:
        fault = f"no answer ({type(error).__name__})"
    known = known_roster(site)
    found = Contact(
        at=now().isoformat(timespec="seconds"),
        status=status,
        fault=fault,
        clock_apart_s=apart,
        roster_version=known.version if known else 0,
    )
    write_whole(site.state / CONTACT, json.dumps(asdict(found)).encode())
    return found


def last_contact(site: Site) -> Contact | None:
    """What the last try found, None before the first."""
    try:
        return Contact(**json.loads((site.state / CONTACT).read_text("utf-8")))
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
    }


def _clock_apart(answer: httpx.Response, now: datetime) -> float | None:
    """Seconds by which this machine's clock is ahead of the coordinator's."""
    try:
        return (now - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _refusal(status: int, apart: float | None) -> str:
    if status == 401 and apart is not None and abs(apart) > CLOCKS_S:
        return f"refused: this clock and the coordinator's are {apart:+.0f} s apart"
    if status == 401:
        return "refused: the operator has not admitted this site"
    return f"refused: HTTP {status}"
