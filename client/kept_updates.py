"""Of one incoming adapter a client masks one contribution, however often it is asked. (P-6.10, docs/adr/0098)

A sum that is opened twice says nothing new only while each member gives the same to both. A training need not
give the same twice: it may fail the first time, its rows may have changed, its engine may not add up in a
fixed order. So what was masked is kept until the next adapter comes, of a training that failed that it did,
and is masked again. What cannot be kept is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from protocol.errors import SecrecyError
from protocol.exchange import Contribution
from protocol.plan import Plan
from protocol.transparency.leaves import Leaf
from protocol.transparency.shown import Told

NEXT_ADAPTER = "nothing was revealed; it takes part again with the next adapter"


@dataclass(frozen=True, kw_only=True)
class KeptUpdate:
    """A contribution as it was trained in ``round``, and the attempt that it was sent in last.

    ``sid``, ``rid``: in hex, of the run and of the attempt's sum; ``seq``: the attempt's number; ``adapter``:
    the digest of the one that came into it; ``age``: of the update there, in rounds. ``free``: the log has
    shown that this sum is without it. ``bound``: it may be with it; the update is for that adapter alone.
    """

    contribution: Contribution
    round: int
    sid: str
    seq: int
    rid: str
    adapter: str
    age: int = 0
    free: bool = False
    bound: bool = False


class KeptStore(Protocol):
    """Where a client keeps the one that it has."""

    def load(self) -> KeptUpdate | None:
        """What was kept last."""
        ...

    def keep(self, update: KeptUpdate) -> None:
        """Keep it in the place of any other; it is safe when this returns."""
        ...

    def forget(self) -> None:
        """Keep none."""
        ...


@dataclass(frozen=True)
class KeptUpdates:
    """One plan's rule at one client: ``client`` is its id in hex, updates are of ``size`` numbers."""

    plan: Plan
    store: KeptStore
    client: str
    size: int

    def contribution(
        self,
        number: int,
        place: tuple[str, int, str],
        adapter: str,
        train: Callable[[], Contribution],
    ) -> Contribution:
        """That of round ``number``: what is kept, where it is of that adapter, else what ``train`` gives.

        ``place``: sid, seq and rid of the sum that it is for; ``adapter``: the digest of the one that came
        in. ``train`` gives zeros where it fails (:mod:`client.failures`). It is kept before this returns.
        Raises MachineError where it cannot be, and SecrecyError ``round.passed`` for a round before the one
        whose contribution is kept.
        """
        sid, seq, rid = place
        before = self.store.load()
        kept = None if before is None else self._again(before, number, place, adapter)
        if kept is None:
            kept = KeptUpdate(
                contribution=train(), round=number, sid=sid, seq=0, rid="", adapter=""
            )
        self.store.keep(replace(kept, sid=sid, seq=seq, rid=rid, adapter=adapter))
        return self._weighed(kept)

    def _weighed(self, kept: KeptUpdate) -> Contribution:
        """What it gives to its sum."""
        return kept.contribution

    def _again(
        self, kept: KeptUpdate, number: int, place: tuple[str, int, str], adapter: str
    ) -> KeptUpdate | None:
        """What is kept, where it is given again; None where the client trains."""
        if kept.sid != place[0]:
            return None
        if number < kept.round:
            raise SecrecyError(
                "round.passed",
                f"asked for round {number}, this client keeps what it gave to round {kept.round} alone",
                NEXT_ADAPTER,
            )
        return kept if (kept.round, kept.adapter) == (number, adapter) else None

    def settle(
        self,
        sid: str,
        seq: int,
        adapter: str,
        leaves: Iterable[Leaf],
        *,
        number: int,
        opened: Collection[int],
    ) -> None:
        """Before attempt ``seq`` of round ``number``, into which the one with digest ``adapter`` comes.

        ``leaves``: of run ``sid``'s log, which the client has verified. ``opened``: rounds of the plan in
        which it has given shares for a sum of that adapter. Raises SecrecyError ``update.lost`` where what
        it gave to it is not there.
        """
        if number in opened:
            self.verify_there(self.store.load(), sid, adapter)

    def verify_there(self, kept: KeptUpdate | None, sid: str, adapter: str) -> None:
        """What it gave to a sum of ``adapter`` that it has helped to open is ``kept``."""
        if kept is None or (kept.sid, kept.adapter) != (sid, adapter):
            raise SecrecyError(
                "update.lost",
                "this client has helped to open a sum of this adapter and has not kept its update for it: "
                "another one would show both",
                NEXT_ADAPTER,
            )

    def told(self, told: Told, sid: str) -> Told:
        """What the coordinator of run ``sid`` has to know of the client's memory, with this."""
        return told

    def summed(self, rid: str) -> None:
        """The client gives its shares for the sum ``rid`` with it."""
