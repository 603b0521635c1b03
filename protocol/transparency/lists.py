"""Lists that a leaf has no room for, in files by their digest. (P-8.19)

A leaf names up to 128 clients; of more it has the SHA-256 of a file with them: of an alive set that is what
its members signed. Whoever reads a log puts the lists into the leaves at once, by :class:`Lists`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from protocol.errors import ProofError
from protocol.secagg.primitives import ID_BYTES
from protocol.transparency.dsse import REMEDY
from protocol.transparency.leaves import Abort, Alive, AskedSum, Leaf, Reveal, RoundOpen

INLINE_UP_TO = 128
MOST_CLIENTS = 2**16 - 1  # of a cohort (P-6.5)
SIGNATURE_BYTES, SEED_BYTES = 64, 32
FOLDER = "log/lists"
Keep = Callable[[bytes], str]  # puts a list where it is published; its SHA-256
Fetch = Callable[[str], bytes]  # the list with this SHA-256; raises ProofError
L = TypeVar("L", bound=Leaf)


def list_path(digest: str) -> str:
    """The published file of a list."""
    return f"{FOLDER}/{digest}"


def of_clients(clients: Sequence[str], keep: Keep) -> list[str] | str:
    """As a leaf holds these sorted ids (hex)."""
    return list(clients) if len(clients) <= INLINE_UP_TO else keep(bytes.fromhex("".join(clients)))


def by_client(values: Mapping[str, str], keep: Keep) -> dict[str, str] | str:
    """As a leaf holds a signature, or a seed, of each client."""
    if len(values) <= INLINE_UP_TO:
        return dict(values)
    return keep(bytes.fromhex("".join(client + values[client] for client in sorted(values))))


def of_asked(sums: Iterable[AskedSum], keep: Keep) -> list[AskedSum]:
    """As an `abort` holds sums that were asked for."""
    return [one.model_copy(update={"clients": of_clients(one.ids, keep)}) for one in sums]


class Lists:
    """Lists that are in files, each read once: a leaf can name one of megabytes hundreds of times."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._clients: dict[str, list[str]] = {}
        self._values: dict[tuple[str, int], dict[str, str]] = {}

    def whole(self, leaf: L) -> L:
        """The leaf with its lists in it. Raises ProofError for a list that is missing or malformed."""
        if isinstance(leaf, RoundOpen):
            return leaf.model_copy(update={"members": self._of(leaf.members)})
        if isinstance(leaf, Alive):
            signatures = self._by_client(leaf.signatures, SIGNATURE_BYTES)
            clients = self._of(leaf.clients)
            return leaf.model_copy(update={"clients": clients, "signatures": signatures})
        if isinstance(leaf, Reveal):
            seeds = self._by_client(leaf.seeds, SEED_BYTES)
            return leaf.model_copy(update={"seeds": seeds})
        if isinstance(leaf, Abort):
            revealed = [
                asked.model_copy(update={"clients": self._of(asked.clients)})
                for asked in leaf.revealed
            ]
            return leaf.model_copy(update={"revealed": revealed})
        return leaf

    def _of(self, value: list[str] | str) -> list[str]:
        if isinstance(value, str):
            if value not in self._clients:
                self._clients[value] = [row.hex() for row in _rows(value, ID_BYTES, self._fetch)]
            return self._clients[value]
        if len(value) > INLINE_UP_TO:
            raise ProofError(f"a leaf names {len(value)} clients, where a file would", REMEDY)
        return value

    def _by_client(self, value: dict[str, str] | str, size: int) -> dict[str, str]:
        if isinstance(value, str):
            if (value, size) not in self._values:
                rows = _rows(value, ID_BYTES + size, self._fetch)
                self._values[value, size] = {
                    row[:ID_BYTES].hex(): row[ID_BYTES:].hex() for row in rows
                }
            return self._values[value, size]
        if len(value) > INLINE_UP_TO:
            fault = f"a leaf holds {len(value)} clients' values, where a file would"
            raise ProofError(fault, REMEDY)
        return value


def digests_in(leaf: Leaf) -> Iterator[str]:
    """Of the lists that a leaf, as it was read, has in files."""
    fields: list[object] = []
    if isinstance(leaf, RoundOpen):
        fields = [leaf.members]
    elif isinstance(leaf, Alive):
        fields = [leaf.clients, leaf.signatures]
    elif isinstance(leaf, Reveal):
        fields = [leaf.seeds]
    elif isinstance(leaf, Abort):
        fields = [asked.clients for asked in leaf.revealed]
    return (each for each in fields if isinstance(each, str))


def _rows(digest: str, size: int, fetch: Fetch) -> list[bytes]:
    """Rows of that size, more than fit into a leaf, at most a cohort's, with rising ids in front."""
    data = fetch(digest)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ProofError(f"{list_path(digest)} has other bytes than the log says", REMEDY)
    rows = [data[at : at + size] for at in range(0, len(data), size)]
    ids = [row[:ID_BYTES] for row in rows]
    fits = not len(data) % size and INLINE_UP_TO < len(rows) <= MOST_CLIENTS
    if not fits or ids != sorted(set(ids)):
        raise ProofError(f"{list_path(digest)} is no list of clients in their order", REMEDY)
    return rows
