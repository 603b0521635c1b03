"""What comes of an attempt's secret sums: the next state, the record, the leaves. (P-4.7, P-8.8)"""

from __future__ import annotations

import numpy as np

from protocol.exchange import Aggregate
from protocol.secagg.primitives import client_id
from protocol.step.robust import Robust, robust_mean
from protocol.step.state import State, apply_mean
from protocol.transparency.leaves import OpenedSum
from server.attempt import Attempt
from server.counted import counted
from server.publishing import Published, failed_leaves, sum_leaves
from server.rounds import Complete, Failed
from server.secret_sum import SecretSum
from server.store import Number, Record


class SecretOutcome(Attempt):
    """Like :class:`Attempt`; the updates themselves never are here, only their sums."""

    _issued: Number
    _seq: int
    _sums: list[SecretSum]

    def aggregate(self, closed: Complete) -> tuple[State, Aggregate, float]:
        """The next state, the sums of the round, and the norm of the mean update."""
        robust = self._combined()
        opened = [secret for secret in self._sums if secret.mean is not None]
        names = sorted({name for secret in opened for name in secret.metrics})
        aggregate = Aggregate(
            mean=robust.mean,
            weight=sum(len(secret.alive) for secret in opened),
            metrics={name: sum(secret.metrics[name] for secret in opened) for name in names},
            clients=closed.used,
        )
        after = apply_mean(
            self._state,
            aggregate.mean,
            recipe=self._setting.recipe,
            number=self._number,
        )
        return after, aggregate, float(np.linalg.norm(aggregate.mean.astype(np.float64)))

    def _combined(self) -> Robust:
        opened = [
            (secret.mean, len(secret.alive)) for secret in self._sums if secret.mean is not None
        ]
        return robust_mean(
            [mean for mean, _ in opened], [count for _, count in opened], self._plan.secrecy
        )

    def record(
        self, closed: Complete | Failed, aggregate: Aggregate | None = None, norm: float = 0.0
    ) -> Record:
        """As every attempt's; who was lost after it had masked; the groups and which were kept."""
        lost = {name: phase for secret in self._sums for name, phase in sorted(secret.lost.items())}
        liars = sorted(name for secret in self._sums for name in secret.liars)
        groups = self._group_records() if len(self._sums) > 1 else []
        record = super().record(closed, aggregate, norm)
        refused = [
            {"group": secret.group, "why": secret.failure.cause}
            for secret in self._sums
            if secret.refused and secret.failure
        ]
        return record | {
            "sequence": self._seq,
            "lost": lost,
            "liars": liars,
            "groups": groups,
            "refused": refused,
            "asked": self._asked(),
            **counted(record["metrics"], record["weight"]),
        }

    def _asked(self) -> list[list[str]]:
        """Over whom sums of this round were asked for, by name."""
        names = {client_id(key).hex(): name for name, key in self._setting.roster_keys.items()}
        asked = {
            tuple(sorted(names.get(client, client) for client in each.ids))
            for sums in self._store.revealing(self._number).values()
            for each in sums
        }
        return [list(group) for group in sorted(asked)]

    def published(self) -> Published:
        """The leaves of every sum that opened, and its part in the adapter; those of the failed. (P-8.8)"""
        opened = [secret for secret in self._sums if secret.mean is not None]
        kept = self._combined().kept if opened else ()
        return Published(
            seq=self._seq,
            aborts=failed_leaves(self._setting, self._issued, self._sums),
            leaves=[
                leaf
                for secret in opened
                for leaf in sum_leaves(
                    self._setting.log,
                    secret,
                    number=self._number,
                    attempt=self._attempt,
                    witnessed=self._plan.witnessed,
                )
            ],
            sums=[
                OpenedSum(
                    group=secret.group,
                    rid=secret.core.rid.hex(),
                    summands=len(secret.alive),
                    kept=keep,
                )
                for secret, keep in zip(opened, kept, strict=True)
            ],
        )

    def _group_records(self) -> list[Record]:
        opened = [secret for secret in self._sums if secret.mean is not None]
        robust = self._combined() if opened else None
        judged: dict[int, tuple[float, bool]] = {}
        if robust is not None:
            for at, secret in enumerate(opened):
                judged[id(secret)] = robust.distances[at], robust.kept[at]
        return [
            {
                "clients": sorted(secret.names.values()),
                "used": list(secret.alive) if secret.mean is not None else [],
                "failure": secret.failure.cause if secret.failure else None,
                "distance": judged.get(id(secret), (0.0, False))[0],
                "kept": judged.get(id(secret), (0.0, False))[1],
            }
            for secret in self._sums
        ]
