"""An update that its sum closed without: its client keeps it for a later one. (P-4.14, docs/adr/0098)

What a client has sent masked, and what nobody has opened, says nothing to anybody; so the same update may be
masked again for another sum. It must not be counted twice: the client masks it again only where the run's log
shows that the attempt it was sent in ended without it. Who is slow contributes late, not never, and whose
attempt failed does not train again.

Of one incoming adapter a client masks one contribution, however often it is asked: the same sum opened twice
says nothing new only while each member gives the same to both. (P-6.10) So a training that failed is kept as
well, and who has helped to open a sum and has not kept what it gave takes no part in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from protocol.errors import SecrecyError
from protocol.exchange import Contribution, failed_contribution
from protocol.plan import Plan
from protocol.transparency.leaves import Abort, Alive, Leaf
from protocol.transparency.shown import MOST_OPEN, Told

OF_ROWS_KEPT_OUT = "eval_"  # how metrics begin that are of the adapter that was received


@dataclass(frozen=True, kw_only=True)
class LateUpdate:
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

    def at(self, age: int, decay: float, clip: float) -> Contribution:
        """What it gives to a sum ``age`` rounds later: less the older it is, no figures of its adapter.

        ``clip``: the L2 norm that the sum cuts to. It is cut before: else a long one would count in full.
        """
        if not age or self.contribution.failed:
            return self.contribution
        metrics = {
            name: 0.0 if name.startswith(OF_ROWS_KEPT_OUT) else value
            for name, value in self.contribution.metrics.items()
        }
        update = self.contribution.update
        norm = float(np.linalg.norm(update.astype(np.float64)))
        weight = np.float32(min(1.0, clip / norm if norm else 1.0) * (1.0 + age) ** -decay)
        return replace(self.contribution, update=update * weight, metrics=metrics)


class LateStore(Protocol):
    """Where a client keeps the one that it has."""

    def load(self) -> LateUpdate | None:
        """What was kept last."""
        ...

    def keep(self, update: LateUpdate) -> None:
        """Keep it in the place of any other; it is safe when this returns."""
        ...

    def forget(self) -> None:
        """Keep none."""
        ...


@dataclass(frozen=True)
class LateUpdates:
    """One plan's rule at one client: ``client`` is its id in hex, updates are of ``size`` numbers."""

    plan: Plan
    store: LateStore
    client: str
    size: int

    def contribution(
        self,
        number: int,
        place: tuple[str, int, str],
        adapter: str,
        train: Callable[[], Contribution],
    ) -> Contribution:
        """That of round ``number``: what is kept, where it may be used, else what ``train`` gives.

        ``place``: sid, seq and rid of the sum that it is for; ``adapter``: the digest of the one that came
        in, for which it is the same every time. It is kept before this returns or raises what ``train`` does.
        """
        kept, decay = self.store.load(), self.plan.cohort.late_decay
        (sid, seq, rid), failure = place, None
        if kept is not None and (kept.sid, kept.adapter) == (sid, adapter):
            elsewhere = not kept.free and kept.rid != rid  # another session's, with no end yet
            kept = replace(kept, free=False, bound=kept.bound or elsewhere)
        elif kept is not None and usable(kept, self.plan, sid=sid, number=number):
            kept = replace(kept, age=number - kept.round, free=False)
        else:
            given, failure = self._trained(train)
            kept = LateUpdate(contribution=given, round=number, sid=sid, seq=0, rid="", adapter="")
        self.store.keep(replace(kept, sid=sid, seq=seq, rid=rid, adapter=adapter))
        if failure is not None:
            raise failure
        clip = self.plan.privacy.clip if self.plan.private else self.plan.secrecy.clip
        return kept.at(kept.age, decay, clip)

    def _trained(self, train: Callable[[], Contribution]) -> tuple[Contribution, Exception | None]:
        """What ``train`` gives, or zeros and what it raised."""
        try:
            given = train()
        except Exception as error:
            return failed_contribution(self.size), error
        if given.update.shape != (self.size,) or not np.isfinite(given.update).all():
            return failed_contribution(self.size), None
        return given, None

    def waiting(self, sid: str) -> list[int]:
        """The attempt of run ``sid`` whose end the client has to see before it uses what it keeps."""
        kept = self.store.load()
        if kept is None or kept.sid != sid or kept.free or kept.bound:
            return []
        return [kept.seq]

    def settle(
        self, sid: str, seq: int, adapter: str, leaves: Iterable[Leaf], *, opened: bool
    ) -> None:
        """By leaves of run ``sid``'s log, which the client has verified: free, bound, or forgotten.

        ``seq``: of the attempt that begins, into which the one with digest ``adapter`` comes. What the log
        says nothing of may have been counted. ``opened``: the client has given shares for a sum of that
        adapter; raises SecrecyError ``update.lost`` where what it gave to it is not there.
        """
        kept = self.store.load()
        if opened and (kept is None or (kept.sid, kept.adapter) != (sid, adapter)):
            raise SecrecyError(
                "update.lost",
                "this client has helped to open a sum of this adapter and has not kept its update for it: "
                "another one would show both",
                "nothing was revealed; it takes part again with the next adapter",
            )
        if kept is None or kept.free:
            return
        same = (kept.sid, kept.adapter) == (sid, adapter)
        if kept.bound and same:
            return
        before = kept.sid == sid and kept.seq < seq and not kept.bound
        if before and self._ended_without(kept, list(leaves)):
            self.store.keep(replace(kept, free=True))
        elif same:
            self.store.keep(replace(kept, bound=True))
        else:
            self.store.forget()

    def _ended_without(self, kept: LateUpdate, leaves: list[Leaf]) -> bool:
        asked = {each.rid for leaf in leaves if isinstance(leaf, Abort) for each in leaf.revealed}
        if kept.rid in asked:  # whoever asked may hold that sum
            return False
        for leaf in leaves:
            if isinstance(leaf, Alive) and leaf.rid == kept.rid:
                # Of a list beside the log (P-8.19) its digest alone is here.
                return isinstance(leaf.clients, list) and self.client not in leaf.clients
        # One of a group may be another's: whose sum is missing it does not say by what a member knows.
        return any(
            isinstance(leaf, Abort) and (leaf.seq, leaf.group) == (kept.seq, None)
            for leaf in leaves
        )

    def told(self, told: Told, sid: str) -> Told:
        """What the coordinator has to know of the client's memory, with this."""
        also = [seq for seq in self.waiting(sid) if seq not in told.open]
        return told.model_copy(update={"open": [*also, *told.open][:MOST_OPEN]})

    def summed(self, rid: str) -> None:
        """The client gives its shares for the sum ``rid`` with it."""
        kept = self.store.load()
        if kept is not None and kept.rid == rid:
            self.store.keep(replace(kept, bound=True))


def usable(kept: LateUpdate, plan: Plan, *, sid: str, number: int) -> bool:
    """Whether round ``number`` of run ``sid`` takes it."""
    fresh = 0 <= number - kept.round <= plan.cohort.late_rounds
    return kept.free and kept.sid == sid and fresh and not kept.contribution.failed
