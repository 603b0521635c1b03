"""What a witness decides: it cosigns a log that has only grown, and nothing else. (P-8.14)

The core of C2SP tlog-witness. Whoever calls it keeps :class:`Witnessed` per origin, one request of an
origin at a time, and has the new one on disk before the cosignature leaves the machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.encoding import base64_bytes, base64_text
from protocol.errors import ProofError
from protocol.merkle import EMPTY
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    cosign,
    parse_checkpoint,
    verify_note,
)
from protocol.transparency.proofs import verify_consistency

MOST_NODES, MOST_BYTES = 63, 100_000
OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
REMEDY = "send what C2SP tlog-witness describes"
BAD, FORBIDDEN, UNKNOWN, CONFLICT, UNPROCESSABLE = 400, 403, 404, 409, 422


@dataclass(frozen=True, kw_only=True)
class AddCheckpoint:
    """A request: the log had ``old`` leaves, ``path`` shows that it grew into the signed ``note``."""

    old: int
    path: tuple[bytes, ...]
    note: str

    @property
    def claimed(self) -> Checkpoint:
        """The checkpoint in the note, before any signature is checked. Raises ProofError."""
        text = self.note.rpartition("\n\n")[0] + "\n"
        return parse_checkpoint(text, origin=text.partition("\n")[0])

    def encode(self) -> bytes:
        """The body of ``POST add-checkpoint``."""
        lines = [f"old {self.old}", *(base64_text(node) for node in self.path), ""]
        return ("\n".join(lines) + "\n" + self.note).encode()


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """The latest tree of a log that was cosigned."""

    size: int = 0
    root: bytes = EMPTY


@dataclass(frozen=True, kw_only=True)
class Cosigned:
    """What to keep before ``line`` is sent."""

    latest: Witnessed
    line: str


@dataclass(frozen=True, kw_only=True)
class Refused:
    """``status`` is HTTP's; ``size`` is that of the latest tree where the request began at another.

    ``forked``: the log has signed two trees of one size; its note is evidence.
    """

    status: int
    why: str
    size: int | None = None
    forked: bool = False


def parse_add_checkpoint(data: bytes) -> AddCheckpoint:
    """Read a request's body. Raises ProofError; no signature is checked."""
    try:
        head, empty, note = data.decode().partition("\n\n")
        first, *rest = head.split("\n")
        path = tuple(base64_bytes(line) for line in rest)
    except ValueError:
        raise _bad("it is not text with hashes in base64") from None
    old = OLD.fullmatch(first)
    if len(data) > MOST_BYTES or not old or not empty:
        raise _bad("it is too long, or its first or its empty line is missing")
    if len(path) > MOST_NODES or any(len(node) != 32 for node in path):
        raise _bad("its proof does not consist of at most 63 SHA-256 hashes")
    found = AddCheckpoint(old=int(old[1]), path=path, note=note)
    if found.encode() != data:
        raise _bad("its base64 is not canonical")
    _ = found.claimed
    return found


def witness_key(name: str, key: Ed25519PrivateKey) -> VerifierKey:
    """Whom others list as a witness. One key never cosigns under two names. (C2SP tlog-cosignature)"""
    public = key.public_key().public_bytes_raw()
    return VerifierKey(name=name, type=KeyType.COSIGNATURE, public=public)


def keys_of(origin: str, logs: Sequence[VerifierKey]) -> list[VerifierKey]:
    """The keys of the log ``origin``: its name, and a log's type."""
    return [log for log in logs if (log.name, log.type) == (origin, KeyType.ED25519)]


def consider(
    request: AddCheckpoint,
    latest: Witnessed,
    logs: Sequence[VerifierKey],
    name: str,
    key: Ed25519PrivateKey,
    *,
    time: int,
) -> Cosigned | Refused:
    """Cosign the request's checkpoint at ``time`` (seconds) as ``name``, or say why not.

    ``latest`` is what this witness cosigned of the claimed origin before; ``logs`` are the keys that it
    trusts, each for the origin of its name. Raises ProofError where the request claims no checkpoint.
    """
    claimed = request.claimed
    trusted = keys_of(claimed.origin, logs)
    if not trusted:
        return Refused(status=UNKNOWN, why=f"no key is known for {claimed.origin[:80]!r}")
    try:
        signed = verify_note(request.note, trusted)
    except ProofError as error:
        return Refused(status=FORBIDDEN, why=error.cause)
    if request.old > claimed.size:
        why = f"a log of {request.old} leaves has not become one of {claimed.size}"
        return Refused(status=BAD, why=why)
    if request.old != latest.size:
        why = f"{latest.size} leaves were cosigned, not {request.old}"
        return Refused(status=CONFLICT, why=why, size=latest.size)
    if claimed.size == latest.size and claimed.root != latest.root:
        why = f"another tree of {latest.size} leaves was cosigned"
        return Refused(status=CONFLICT, why=why, forked=True)
    try:
        verify_consistency(latest.size, claimed.size, latest.root, claimed.root, request.path)
    except ProofError as error:
        return Refused(status=UNPROCESSABLE, why=error.cause)
    line = cosign(signed.text, name, key, time=time)
    return Cosigned(latest=Witnessed(size=claimed.size, root=claimed.root), line=line)


def _bad(fault: str) -> ProofError:
    return ProofError(f"not a request to a witness: {fault}", REMEDY)
