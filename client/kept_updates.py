"""Of one incoming adapter a client masks one contribution, however often it is asked. (P-6.10, docs/adr/0098)

A sum that is opened twice says nothing new only while each member gives the same to both. A training need not
give the same twice: it may fail the first time, its rows may have changed, its engine may not add up in a
fixed order. So what was masked is kept until the next adapter comes, of a training that failed that it did,
and is masked again. What cannot be kept is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

from protocol.errors import SecrecyError
from protocol.exchange import Contribution
from protocol.plan import Plan
from protocol.rules import Parts
from protocol.transparency.leaves import Leaf
from protocol.transparency.shown import Told

MOST_RUNS = 1000  # of one plan in which a client masks: of each it remembers how far it came
NEXT_ADAPTER = "nothing was revealed; it takes part again with the next adapter"


@dataclass(frozen=True, kw_only=True)
class KeptUpdate:
    """A contribution as it was trained in ``round``, and the attempt that it was sent in last.

    ``sid``, ``rid``: in hex, of the run and of the attempt's sum; ``seq``: the attempt's number; ``adapter``:
    the digest of the one that came into it; ``age``: of the update there, in rounds. ``free``: the log has
    shown that this sum is without it. ``bound``: it may be with it; the update is for that adapter alone.
    ``last``: the last round of that run in which the client has masked; ``passed``: of each other run by sid.
    """

    contribution: Contribution
    round: int
    sid: str
    seq: int
    rid: str
    adapter: str
    last: int
    passed: Mapping[str, int] = field(default_factory=dict)
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

    def alone(self) -> AbstractContextManager[object]:
        """No other session of this client changes what is kept: two may be asked at once."""
        ...


@dataclass(frozen=True)
class KeptUpdates:
    """One plan's rule at one client. ``parts``: those that a round trains; the store is of these alone."""

    plan: Plan
    store: KeptStore
    parts: Callable[[int], Parts]

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
        Raises MachineError where it cannot be, and SecrecyError: ``round.passed`` where it may have given
        something else to a sum of that round, ``run.many`` beyond MOST_RUNS.
        """
        sid, seq, rid = place
        trained: Contribution | None = None
        while True:
            with self.store.alone():
                before = self.store.load()
                if before is not None:
                    verify_ahead(before, number, sid, adapter)
                kept = None if before is None else self._again(before, number, place, adapter)
                if kept is None and trained is not None:
                    kept = KeptUpdate(
                        contribution=trained,
                        round=number,
                        sid=sid,
                        seq=seq,
                        rid=rid,
                        adapter=adapter,
                        last=number,
                    )
                if kept is not None:
                    kept = replace(kept, sid=sid, seq=seq, rid=rid, adapter=adapter)
                    self.store.keep(advanced(kept, before, number))
                    return self._weighed(kept)
            trained = train()  # others are answered meanwhile: of two the first gives what is kept

    def _weighed(self, kept: KeptUpdate) -> Contribution:
        """What it gives to its sum."""
        return kept.contribution

    def _again(
        self, kept: KeptUpdate, number: int, place: tuple[str, int, str], adapter: str
    ) -> KeptUpdate | None:
        """What is kept, where it is given again; None where the client trains.

        Also in a later round, behind one that was void: the sums of both would show who gave something else.
        """
        return kept if (kept.sid, kept.adapter) == (place[0], adapter) else None

    def verify_there(self, sid: str, adapter: str, *, number: int, opened: Iterable[int]) -> None:
        """What it gave to sums of ``adapter`` that it has helped to open, in rounds ``opened``, is there.

        Of parts that round ``number`` trains as well. Raises SecrecyError ``update.lost``.
        """
        kept, parts = self.store.load(), self.parts(number)
        there = kept is not None and (kept.sid, kept.adapter) == (sid, adapter)
        if not there and any(self.parts(each) == parts for each in opened):
            raise SecrecyError(
                "update.lost",
                "this client has helped to open a sum of this adapter and has not kept its update for it: "
                "another one would show both",
                NEXT_ADAPTER,
            )

    def settle(self, sid: str, seq: int, leaves: Iterable[Leaf]) -> None:
        """Before attempt ``seq``: ``leaves`` are of run ``sid``'s log, which the client has verified."""

    def told(self, told: Told, sid: str) -> Told:
        """What the coordinator of run ``sid`` has to know of the client's memory, with this."""
        return told

    def summed(self, rid: str) -> None:
        """The client gives its shares for the sum ``rid`` with it."""


def verify_ahead(kept: KeptUpdate, number: int, sid: str, adapter: str) -> None:
    """Round ``number`` of run ``sid`` is none in which it may have masked what is not kept any more.

    Others may have opened a sum with that, of which this client knows nothing. Raises SecrecyError.
    """
    here = kept.sid == sid
    last = kept.last if here else kept.passed.get(sid, 0)
    same = here and kept.adapter == adapter
    if number < last or (number == last and not same):
        raise SecrecyError(
            "round.passed",
            f"asked for round {number}, this client has masked for round {last} of this run and keeps "
            "what it masked last alone",
            NEXT_ADAPTER,
        )
    if not (here or sid in kept.passed) and len(kept.passed) >= MOST_RUNS:
        raise SecrecyError(
            "run.many",
            f"this client has masked in {len(kept.passed) + 1} other runs of this plan",
            "agree on another plan",
        )


def advanced(kept: KeptUpdate, before: KeptUpdate | None, number: int) -> KeptUpdate:
    """``kept`` in the place of ``before``, with how far it came in each run."""
    if before is None:
        return replace(kept, last=number)
    if before.sid == kept.sid:
        return replace(kept, last=max(before.last, number), passed=before.passed)
    passed = {**before.passed, before.sid: before.last}
    passed.pop(kept.sid, None)
    return replace(kept, last=number, passed=passed)
