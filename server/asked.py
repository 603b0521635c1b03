"""Which sums of an adapter were asked for before: clients open no others that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeVar

from protocol.errors import RoundError
from protocol.secagg.openings import far_apart
from protocol.secagg.primitives import client_id
from protocol.transparency.leaves import Abort, Aggregate, Alive, Leaf
from server.log import RunLog
from server.store import RunStore

L = TypeVar("L", bound=Leaf)


def asked_before(store: RunStore, number: int, digest: str) -> list[list[list[str]]]:
    """The groups whose sums each round before ``number`` has asked for of the adapter with ``digest``."""
    records = [store.record(each) for each in reversed(_rounds_before(store, number, digest))]
    earlier = _asked_of_start(store, digest)
    return earlier + [record["asked"] for record in records if record.get("asked")]


def asked_at_start(
    store: RunStore, digest: str, keys: Mapping[str, bytes]
) -> Iterator[frozenset[str]]:
    """Over whom (ids) sums of this adapter were asked for in the run that this one goes on from.

    Who is not in the roster any more counts by name: it makes no sum here.
    """
    ids = {name: client_id(key).hex() for name, key in keys.items()}
    for groups in _asked_of_start(store, digest):
        for names in groups:
            yield frozenset(ids.get(name, name) for name in names)


def _asked_of_start(store: RunStore, digest: str) -> list[list[list[str]]]:
    start = store.record(0)
    return list(start.get("asked_before", [])) if start["adapter_out"] == digest else []


def asked_clients(
    store: RunStore, log: RunLog, number: int, digest: str
) -> Iterator[frozenset[str]]:
    """Over whom (ids) the log tells of sums of this adapter, asked for in round ``number`` and before.

    A killed coordinator's are there: it logs them when it comes back.
    """
    for each in (number, *_rounds_before(store, number, digest)):
        for leaf in _read(log, Abort, log.find(Abort, round=each)):
            yield from (frozenset(asked.ids) for asked in leaf.revealed)
        for ended in _read(log, Aggregate, log.find(Aggregate, round=each)):
            found = _read(log, Alive, log.find(Alive, rid=ended.rid))
            yield from (frozenset(leaf.ids) for leaf in found)


def verify_apart(
    alive: AbstractSet[str], before: Sequence[AbstractSet[str]], *, least: int
) -> None:
    """A sum over ``alive`` (ids) may be asked for after those ``before``. Raises RoundError.

    Clients that have opened one of them refuse by themselves. Those that a killed coordinator never reached
    would not: and the log would tell of two sums that show what few clients did.
    """
    for asked in before:
        if not far_apart(alive, asked, least=least):
            raise RoundError(
                f"a sum of this adapter over {len(asked)} clients was asked for before; "
                f"{len(asked - alive)} of them are missing, {len(alive - asked)} others are there",
                "connect the very same clients",
            )


def _rounds_before(store: RunStore, number: int, digest: str) -> list[int]:
    """The rounds before that the same adapter came into, latest first."""
    found = []
    for before in range(number - 1, 0, -1):
        if store.record(before)["adapter_in"] != digest:
            break
        found.append(before)
    return found


def _read(log: RunLog, kind: type[L], indices: Iterable[int]) -> Iterator[L]:
    for at in indices:
        leaf = log.whole(at).leaf
        assert isinstance(leaf, kind)
        yield leaf
