"""What others submit to a run's log: a verdict, a complaint, a withdrawal, as files. (P-8.11)

Nothing that lies in the folder can stop a run: what cannot be used is put aside with the reason.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import FedgeError, ProofError
from protocol.secagg.primitives import client_id
from protocol.secagg.roster import parse_roster
from protocol.transparency.leaf_codec import MOST_BYTES, decode_leaf, verify_author
from protocol.transparency.leaves import Audit, Complaint
from protocol.transparency.submissions import parse_request, request_value, verify_complaint
from server.log import RunLog
from server.store import ROSTERS, RunStore
from server.withdrawing import verify_names_clients, withdrawal_leaf
from storage.regular import read_settings_text
from storage.whole import write_whole

INBOX, REFUSED, WHY = "inbox", "refused", ".why"
MOST_AT_ONCE = 256  # the rest waits for the next time
REMEDY = "submit an `audit` leaf of this log, or a `complaint` or withdrawal of one of its clients"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Names of files that are in the log now, and of those put aside."""

    logged: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def take_in(log: RunLog, store: RunStore) -> Taken:
    """Log what is usable and remove its file; put the rest into ``log/refused`` with the reason."""
    good: dict[Path, bytes] = {}
    refused = []
    for path in _waiting(log.folder / INBOX):
        try:
            good[path] = _verified(path, log, store)
        except OSError:
            continue  # it cannot be read now: another time
        except (FedgeError, ValueError) as error:
            cause = error.cause if isinstance(error, FedgeError) else type(error).__name__
            _put_aside(path, log.folder / REFUSED, cause)
            refused.append(path.name)
    if new := [data for data in dict.fromkeys(good.values()) if not _is_logged(log, data)]:
        log.append(new)
    for path in good:
        _remove(path)
    return Taken(logged=tuple(path.name for path in good), refused=tuple(refused))


def _waiting(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.json"))[:MOST_AT_ONCE]
    except OSError:
        return []


def _verified(path: Path, log: RunLog, store: RunStore) -> bytes:
    """A leaf that may go into the log. Raises ProofError, OSError."""
    data = _read(path)
    if request_value(data) is not None:
        return request_leaf(data, log, store)
    read = decode_leaf(data)
    leaf = read.leaf
    if isinstance(leaf, Audit):
        verify_author(read, log.verifier.public)
        if leaf.size > log.size or read.subjects != {"log": log.tree.root(leaf.size).hex()}:
            raise ProofError(f"an `audit` of another log's first {leaf.size} leaves", REMEDY)
    elif isinstance(leaf, Complaint):
        verify_complaint(leaf, _key_of(leaf.client, store, "complaint"))
    else:
        raise ProofError(f"a leaf `{leaf.kind}`, which nobody submits", REMEDY)
    return data


def request_leaf(data: bytes, log: RunLog, store: RunStore) -> bytes:
    """The leaf of a withdrawal's request. (P-8.18) Raises ProofError for one that is not this log's."""
    request = parse_request(data)
    verify_names_clients(log)
    return withdrawal_leaf(log, request, _key_of(request.client, store, "withdrawal"))


def _read(path: Path) -> bytes:
    """A plain file's bytes, without an editor's last newline."""
    if path.is_symlink() or not path.is_file():
        raise ProofError("not a plain file", REMEDY)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MOST_BYTES + 2).removesuffix(b"\n")


def _key_of(client: str, store: RunStore, what: str) -> bytes:
    """The raw key of a client of any roster that the run has had. Raises ProofError."""
    for path in sorted((store.folder / ROSTERS).glob("*.json")):
        for key in parse_roster(read_settings_text(path), source=str(path)).values():
            if client_id(key).hex() == client:
                return key
    raise ProofError(f"a {what} of {client}, who is in no roster of the run", REMEDY)


def _is_logged(log: RunLog, data: bytes) -> bool:
    kind = type(decode_leaf(data).leaf)
    return any(log.entry(at) == data for at in log.find(kind))


def _put_aside(path: Path, folder: Path, why: str) -> None:
    with suppress(OSError):  # else it stays where it is, and is refused again
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{path.name}{WHY}", f"{why}\n".encode())
        path.replace(folder / path.name)


def _remove(path: Path) -> None:
    with suppress(OSError):  # found again it is known: the same bytes are not logged twice
        path.unlink(missing_ok=True)
