"""What others submit to a run's log: a verdict, a complaint, a withdrawal, as files. (P-8.11)

Nothing that lies in the folder can stop a run: what cannot be used is put aside with the reason.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from protocol.errors import ArtefactError, FedgeError, ProofError
from protocol.secagg.primitives import client_id
from protocol.secagg.roster import parse_roster
from protocol.transparency.leaf_codec import MOST_BYTES, decode_leaf, verify_author
from protocol.transparency.leaves import Audit, Complaint, Request
from protocol.transparency.submissions import parse_request, request_value, verify_complaint
from protocol.transparency.withdrawal import withdrawal_of
from server.leaves import Draft, Leaves
from server.log import LOG, RunLog, read_published
from server.store import ROSTERS, RunStore
from server.withdrawing import effect, leaf_of, verify_names_clients, verify_withdraws
from storage.regular import read_settings_text
from storage.whole import write_whole

INBOX, REFUSED, WHY = "inbox", "refused", ".why"
LONGEST_NAME = 200  # bytes
MOST_AT_ONCE = 256  # the rest waits for the next time
REMEDY = "submit an `audit` leaf of this log, or a `complaint` or withdrawal of one of its clients"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Names of files that are in the log now, and of those put aside."""

    logged: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def take_in(log: RunLog, store: RunStore) -> Taken:
    """Log what is usable and remove its file; put the rest into ``log/refused`` with the reason.

    Each is verified against the log as it will be with those before it: two of a batch are judged as if they
    had come one after the other.
    """
    logged: list[Path] = []
    refused: list[str] = []
    draft = Draft(log)
    for path in _waiting(log.folder / INBOX):
        try:
            data = _verified(path, draft, log, store)
        except OSError:
            continue  # it cannot be read now: another time
        except (FedgeError, ValueError) as error:
            cause = error.cause if isinstance(error, FedgeError) else type(error).__name__
            _put_aside(path, log.folder / REFUSED, cause)
            refused.append(path.name)
            continue
        if not draft.holds(data):
            draft.accept(data)
        logged.append(path)
    if draft.accepted:
        log.append(draft.accepted)
    for path in logged:
        _remove(path)
    return Taken(logged=tuple(path.name for path in logged), refused=tuple(refused))


def _waiting(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.json"))[:MOST_AT_ONCE]
    except OSError:
        return []


def _verified(path: Path, draft: Draft, log: RunLog, store: RunStore) -> bytes:
    """A leaf that may stand behind those of ``draft``, or is one of them. Raises ProofError, OSError."""
    data = _read(path)
    if request_value(data) is not None:
        return _withdrawal(data, draft, log, store.folder)
    read = decode_leaf(data)
    leaf = read.leaf
    if isinstance(leaf, Audit):
        verify_author(read, log.verifier.public)
        # Of what is published: nobody has audited leaves that only wait.
        if leaf.size > log.size or read.subjects != {"log": log.tree.root(leaf.size).hex()}:
            raise ProofError(f"an `audit` of another log's first {leaf.size} leaves", REMEDY)
    elif isinstance(leaf, Complaint):
        verify_complaint(leaf, _key_of(leaf.client, store.folder, "complaint"))
    else:
        raise ProofError(f"a leaf `{leaf.kind}`, which nobody submits", REMEDY)
    return data


def _withdrawal(data: bytes, draft: Draft, log: RunLog, run: Path) -> bytes:
    """The leaf of a request. One that is there already was found again: its file had not been removed."""
    if (index := leaf_of(draft, parse_request(data))) is not None:
        return draft.entry(index)
    request = verified_request(data, draft, run)
    return log.write(*withdrawal_of(request, effect(draft, request.client)))


def request_leaf(data: bytes, log: RunLog, store: RunStore) -> bytes:
    """The leaf of a withdrawal's request, with its effect by the log as it is. (P-8.18) Raises ProofError."""
    request = verified_request(data, log, store.folder)
    return log.write(*withdrawal_of(request, effect(log, request.client)))


def verified_request(data: bytes, log: Leaves, run: Path) -> Request:
    """A withdrawal's request that may stand behind the leaves of ``log``, that of the folder ``run``.

    Raises ProofError for another form, a log in clear, a client of no roster, and what
    :func:`server.withdrawing.verify_withdraws` refuses.
    """
    request = parse_request(data)
    verify_names_clients(log)
    verify_withdraws(log, request, _key_of(request.client, run, "withdrawal"))
    return request


def leave_request(data: bytes, run: Path) -> Path:
    """Leave a request that may be logged for the coordinator that holds ``run``; its file in the inbox.

    The name is the digest of the content, so nothing that waits is replaced by something else. Raises
    ProofError for what would be refused, ArtefactError where it cannot be left.
    """
    verified_request(data, read_published(run), run)
    path = run / LOG / INBOX / f"{hashlib.sha256(data).hexdigest()}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be written: {error.strerror}",
            "make room, or as who runs the coordinator",
        ) from None
    return path


def _read(path: Path) -> bytes:
    """A plain file's bytes, without an editor's last newline."""
    if path.is_symlink() or not path.is_file():
        raise ProofError("not a plain file", REMEDY)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MOST_BYTES + 2).removesuffix(b"\n")


def _key_of(client: str, run: Path, what: str) -> bytes:
    """The raw key of a client of any roster that the run has had. Raises ProofError."""
    for path in sorted((run / ROSTERS).glob("*.json")):
        for key in parse_roster(read_settings_text(path), source=str(path)).values():
            if client_id(key).hex() == client:
                return key
    raise ProofError(f"a {what} of {client}, who is in no roster of the run", REMEDY)


def _put_aside(path: Path, folder: Path, why: str) -> None:
    with suppress(OSError):  # else it stays where it is, and is refused again
        folder.mkdir(exist_ok=True)
        place = _free(folder, path)
        write_whole(place.with_name(f"{place.name}{WHY}"), f"{why}\n".encode())
        path.replace(place)


def _free(folder: Path, path: Path) -> Path:
    """A place for ``path``: what was put aside under its name before is not replaced."""
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:  # with what is put behind it no name any more
        name = f"{hashlib.sha256(os.fsencode(name)).hexdigest()}.json"
    stem = name.removesuffix(".json")
    names = chain([name], (f"{stem}.{at}.json" for at in count(2)))
    return next(place for name in names if not os.path.lexists(place := folder / name))


def _remove(path: Path) -> None:
    with suppress(OSError):  # found again it is known: the same bytes are not logged twice
        path.unlink(missing_ok=True)
