"""What a withdrawal touches, by the log alone: sums that hold a client, and all that follows. (P-8.18)

A sum is not undone: what can be told is which adapters descend from it, and which is the last one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from protocol.encoding import canonical_json
from protocol.secagg.messages import ADVERT_HEAD
from protocol.transparency.leaf_codec import Read, sha256
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Advert,
    Alive,
    AskedSum,
    Leaf,
    OpenedSum,
    Release,
    Request,
    RoundAdapter,
    Shares,
    Vector,
    Withdrawal,
)

LINEAGE = "lineage"  # the subject of a `withdrawal`
TELLING: tuple[type[Leaf], ...] = (Adapter, Alive, Abort, Release)  # the kinds it follows from


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldSum:
    """A group's sum in a round, by its ``rid``; ``seq`` is the attempt's number."""

    round: int
    seq: int
    group: int
    rid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TouchedRelease:
    """A release leaf about a touched round, and the SHA-256 of its ``release.json``."""

    leaf: int
    round: int
    release: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What the updates of ``clients`` (ids in hex) are in, as far as a log has come.

    ``sums`` made adapters, ``asked`` were asked for and made none: their coordinator may hold them.
    ``before`` is the last adapter without these updates; None only where there is no round yet.
    """

    clients: tuple[str, ...]
    sums: tuple[HeldSum, ...]
    asked: tuple[HeldSum, ...]
    adapters: tuple[RoundAdapter, ...]
    releases: tuple[TouchedRelease, ...]
    before: RoundAdapter | None

    @property
    def first(self) -> int | None:
        """The first round whose sum holds an update; None: there is none."""
        return self.sums[0].round if self.sums else None

    @property
    def rounds(self) -> tuple[int, ...]:
        """The rounds whose sums hold an update."""
        return tuple(dict.fromkeys(held.round for held in self.sums))

    def touches(self, number: int) -> bool:
        """Whether the adapter of round ``number`` descends from an update."""
        return self.first is not None and number >= self.first

    @property
    def digest(self) -> str:
        """SHA-256 of all of it in canonical JSON."""
        held = {
            name: [
                {"group": s.group, "rid": s.rid, "round": s.round, "seq": s.seq}
                for s in getattr(self, name)
            ]
            for name in ("sums", "asked")
        }
        return sha256(
            canonical_json(
                {
                    "clients": list(self.clients),
                    **held,
                    "adapters": [each.model_dump() for each in self.adapters],
                    "releases": [
                        {"leaf": r.leaf, "release": r.release, "round": r.round}
                        for r in self.releases
                    ],
                    "before": None if self.before is None else self.before.model_dump(),
                }
            )
        )


def effect_of(leaves: Iterable[tuple[int, Read]], clients: AbstractSet[str]) -> Effect:
    """The effect by ``leaves`` (with their indices, in order; kinds beside :data:`TELLING` are ignored)."""
    held: set[str] = set()  # rids of the alive sets that hold one of them
    sums: list[HeldSum] = []
    asked: list[HeldSum] = []
    adapters: list[RoundAdapter] = []
    releases: list[TouchedRelease] = []
    before: RoundAdapter | None = None
    for index, read in leaves:
        leaf = read.leaf
        if isinstance(leaf, Alive) and not clients.isdisjoint(leaf.ids):
            held.add(leaf.rid)
        elif isinstance(leaf, Abort):
            holding = [asked_sum for asked_sum in leaf.revealed if clients & set(asked_sum.ids)]
            asked += _held(leaf, holding)
        elif isinstance(leaf, Adapter):
            sums += _held(leaf, [opened for opened in leaf.sums if opened.rid in held])
            after = RoundAdapter(round=leaf.round, adapter=leaf.adapter_out)
            if sums:
                adapters.append(after)
            else:
                before = after
        elif isinstance(leaf, Release) and sums and leaf.round >= sums[0].round:
            name = f"rounds/{leaf.round:04d}/adapter/release.json"
            digest = read.subjects.get(name, "")
            releases.append(TouchedRelease(leaf=index, round=leaf.round, release=digest))
    return Effect(
        clients=tuple(sorted(clients)),
        sums=tuple(sums),
        asked=tuple(asked),
        adapters=tuple(adapters),
        releases=tuple(releases),
        before=before,
    )


def _held(leaf: Adapter | Abort, sums: Sequence[OpenedSum | AskedSum]) -> Iterator[HeldSum]:
    for held in sums:
        yield HeldSum(round=leaf.round, seq=leaf.seq, group=held.group, rid=held.rid)


def withdrawal_of(request: Request, effect: Effect) -> tuple[Withdrawal, dict[str, str]]:
    """The leaf of a request and what it is about (SHA-256 by name). ``effect`` is of a log with a round."""
    assert effect.before is not None
    leaf = Withdrawal(
        request=request,
        first=effect.first,
        rounds=len(effect.rounds),
        asked=len(effect.asked),
        adapters=len(effect.adapters),
        releases=len(effect.releases),
        before=effect.before,
    )
    return leaf, {LINEAGE: effect.digest}


def takes_part(read: Read, client: str) -> bool:
    """Whether a leaf says that ``client`` (its id) was asked, or is in a sum."""
    leaf = read.leaf
    if isinstance(leaf, Advert):
        data = bytes.fromhex(leaf.advert)
        return len(data) >= ADVERT_HEAD.size and ADVERT_HEAD.unpack_from(data)[2].hex() == client
    if isinstance(leaf, Shares | Vector):
        return leaf.client == client
    if isinstance(leaf, Alive):
        return client in leaf.ids
    if isinstance(leaf, Abort):
        return any(client in asked.ids for asked in leaf.revealed)
    return False
