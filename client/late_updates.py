"""An update that its sum closed without: its client keeps it for a later one. (P-4.14, docs/adr/0098)

What a client has sent masked, and what nobody has opened, says nothing to anybody; so the same update may be
masked again for another sum. It must not be counted twice: the client masks it again only where the run's log
shows that the attempt it was sent in ended without it. Who is slow contributes late, not never, and whose
attempt failed does not train again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from client.kept_updates import KeptUpdate, KeptUpdates
from protocol.exchange import Contribution
from protocol.plan import Plan
from protocol.transparency.leaves import Abort, Alive, Leaf
from protocol.transparency.shown import MOST_OPEN, Told

OF_ROWS_KEPT_OUT = "eval_"  # how metrics begin that are of the adapter that was received


@dataclass(frozen=True)
class LateUpdates(KeptUpdates):
    """The rule of a plan that takes updates later: what is kept is for one adapter, or free for the next.

    ``client``: its id in hex, as the log names it.
    """

    client: str

    def _again(
        self, kept: KeptUpdate, number: int, place: tuple[str, int, str], adapter: str
    ) -> KeptUpdate | None:
        sid, _, rid = place
        if (kept.sid, kept.adapter) == (sid, adapter):
            elsewhere = not kept.free and kept.rid != rid  # another session's, with no end yet
            return replace(kept, free=False, bound=kept.bound or elsewhere)
        if usable(kept, self.plan, sid=sid, number=number):
            return replace(kept, age=number - kept.round, free=False)
        return None

    def _weighed(self, kept: KeptUpdate) -> Contribution:
        """Less the older it is, no figures of its adapter.

        It is cut to the L2 norm that the sum cuts to before: else a long one would count in full.
        """
        if not kept.age or kept.contribution.failed:
            return kept.contribution
        metrics = {
            name: 0.0 if name.startswith(OF_ROWS_KEPT_OUT) else value
            for name, value in kept.contribution.metrics.items()
        }
        clip = self.plan.privacy.clip if self.plan.private else self.plan.secrecy.clip
        update = kept.contribution.update
        norm = float(np.linalg.norm(update.astype(np.float64)))
        decay = (1.0 + kept.age) ** -self.plan.cohort.late_decay
        weight = np.float32(min(1.0, clip / norm if norm else 1.0) * decay)
        return replace(kept.contribution, update=update * weight, metrics=metrics)

    def waiting(self, sid: str) -> list[int]:
        """The attempt of run ``sid`` whose end the client has to see before it uses what it keeps."""
        kept = self.store.load()
        if kept is None or kept.sid != sid or kept.free or kept.bound:
            return []
        return [kept.seq]

    def settle(self, sid: str, seq: int, leaves: Iterable[Leaf]) -> None:
        """Whether it is free or bound: what the log says nothing of may be counted.

        It stays where it is of no use: that its adapter is asked for again is the coordinator's choice.
        """
        with self.store.alone():
            kept = self.store.load()
            if kept is None or kept.sid != sid or kept.free or kept.bound:
                return
            free = kept.seq < seq and self._ended_without(kept, list(leaves))
            self.store.keep(replace(kept, free=free, bound=not free))

    def _ended_without(self, kept: KeptUpdate, leaves: list[Leaf]) -> bool:
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
        with self.store.alone():
            kept = self.store.load()
            if kept is not None and kept.rid == rid:
                self.store.keep(replace(kept, bound=True))


def usable(kept: KeptUpdate, plan: Plan, *, sid: str, number: int) -> bool:
    """Whether round ``number`` of run ``sid`` takes it.

    Zeros of a training that failed as well: who trains where others answer at once would show that. (P-4.4)
    """
    fresh = 0 <= number - kept.round <= plan.cohort.late_rounds
    return kept.free and kept.sid == sid and fresh
