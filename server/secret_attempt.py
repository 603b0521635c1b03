"""One attempt at one round under secure aggregation: five phases, one sum. (P-4, P-6)

Nothing of an attempt survives its process but its cohort: a coordinator that was killed asks the
same cohort again under the next sequence number, and the sum, being exact, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from protocol import wire
from protocol.errors import ArtefactError, RoundError, SecrecyError
from protocol.exchange import Aggregate, Phase
from protocol.secagg import coordinator as core
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import Suite, client_id
from protocol.secagg.task import metrics_of, ring_for, roster_root, terms_for
from server.aggregation import State, apply_mean
from server.asking import ask, gather
from server.attempt import Attempt, masked_bytes
from server.rounds import Complete, Failed, Reason, accept, close, drop
from server.store import Record

Receive = Callable[[bytes, bytes], None]


class SecretAttempt(Attempt):
    """Like :class:`Attempt`; the updates themselves never are here, only their sum."""

    def collect(self) -> Complete | Failed:
        """All phases. Who is missing in one is out of the rest; the sum is of those who masked."""
        keys = self._setting.roster_keys
        self._names = {
            client_id(keys[one]): one for one in self._collecting.expected if one in keys
        }
        for one in self._collecting.expected:
            if one not in keys:
                self._drop(one, Reason.INVALID, "its key is not in the roster")
            elif one not in self._roster.nodes:
                self._drop(one, Reason.NO_REPLY, "not connected")
        self._run_id, self._seq = self._store.next_sequence()
        self._sid = session_id(self._setting.plan_digest, self._run_id)
        self._why: dict[str, tuple[Reason, str]] = {}
        try:
            total = self._phases()
        except RoundError as error:
            return self._failed(error)
        for member in self._core.alive:
            self._collecting = accept(self._collecting, self._names[member])
        for name in self._collecting.waiting:
            reason, detail = self._why.get(name, (Reason.NO_REPLY, "no answer by the deadline"))
            self._drop(name, reason, detail)
        mean, sums = self._ring.decode(total, len(self._core.alive))
        self._aggregate = Aggregate(
            mean=mean,
            weight=len(self._core.alive),
            metrics=metrics_of(sums),
            clients=self._collecting.used,
        )
        return close(self._collecting)

    def _phases(self) -> Any:
        """The five phases; the sum over U3 as words of the ring."""
        plan, instruction = self._plan, self.instruction()
        roster = {client_id(key): key for key in self._setting.roster_keys.values()}
        self._core = core.Attempt(
            core.Parameters(
                sid=self._sid,
                seq=self._seq,
                roster=roster,
                minimum=plan.cohort.quorum,
                bits=plan.secrecy.bits,
                suite=Suite(plan.secrecy.suite),
                keys=Keys(plan.secrecy.keys),
            )
        )
        first = self._run_id + self._seq.to_bytes(8, "big")
        cohort = [i for i, name in self._names.items() if name in self._collecting.waiting]
        self._phase(Phase.ADVERTISE, dict.fromkeys(cohort, first), self._core.receive_advert)
        message = self._core.close_adverts(cohort)
        there = [one for one in cohort if one not in self._core.lost]
        self._phase(Phase.SHARE, dict.fromkeys(there, message), self._core.receive_shares)
        self._ring = ring_for(
            plan, instruction, size=self._layout.size, clients=len(self._core.fix_members())
        )
        terms = terms_for(plan, instruction, self._ring, roster_root(self._setting.roster_keys))
        boxes = self._core.close_shares(terms, count=self._ring.count)
        self._phase(Phase.MASK, boxes, self._core.receive_masked)
        alive = self._core.close_masked()
        self._phase(Phase.AGREE, dict.fromkeys(self._core.alive, alive), self._core.receive_alive)
        signatures = self._core.close_alive()
        self._phase(
            Phase.UNMASK, dict.fromkeys(self._core.alive, signatures), self._core.receive_unmask
        )
        return self._core.unmask()

    def _phase(self, phase: Phase, messages: Mapping[bytes, bytes], receive: Receive) -> None:
        """Send each its message, hand what comes back to ``receive``; note why others are missing."""
        ids = {self._names[one]: one for one in messages}
        common = RecordDict({wire.INSTRUCTION: ConfigRecord(wire.to_record(self.instruction()))})
        if phase is Phase.MASK:
            vector = self._setting.layout(self._state.rank).flatten(self._state.adapter)
            common[wire.ADAPTER] = ArrayRecord({"adapter": Array(vector)})
        contents = {}
        for name, one in ids.items():
            data = Array(np.frombuffer(messages[one], np.uint8))
            contents[name] = RecordDict({**common, wire.SECAGG: ArrayRecord({"message": data})})
        asked, unsent = ask(
            self._setting.grid,
            contents,
            nodes=self._roster.nodes,
            kind=f"{wire.TRAIN}.{phase}",
            group=str(self._number),
        )
        for name in unsent:
            self._note(phase, name, Reason.NO_REPLY, "the request could not be sent")

        def take(name: str, reply: Message) -> None:
            self._received(phase, name, ids[name], reply, receive)

        clock = self._setting.clock
        deadline = clock.now() + self._plan.cohort.deadline_s
        for name in gather(self._setting.grid, clock, asked, deadline=deadline, take=take):
            self._note(phase, name, Reason.LATE, "answered after the deadline")

    def _received(
        self, phase: Phase, name: str, one: bytes, reply: Message, receive: Receive
    ) -> None:
        if reply.has_error():
            self._note(phase, name, Reason.ERROR, str(reply.error.reason))
            return
        try:
            if wire.REPLY in reply.content.config_records:
                found = dict(reply.content.config_records[wire.REPLY])
                refusal = wire.from_record(wire.Refusal, found)
                self._note(phase, name, Reason.ERROR, f"{refusal.kind}: {refusal.cause}")
                return
            message = masked_bytes(reply.content)
            receive(one, bytes(message))
        except (KeyError, ValueError, ArtefactError):
            self._note(phase, name, Reason.INVALID, "the reply holds no message and no refusal")
            return
        except SecrecyError as error:
            self._note(phase, name, Reason.INVALID, error.cause)
            return
        if phase is Phase.MASK:
            self._bytes_up = max(self._bytes_up, len(message))
            if self._setting.listener:
                expected = len(self._core.members)
                self._setting.listener.on_reply(self._number, len(self._core.masked), expected)

    def _note(self, phase: Phase, name: str, reason: Reason, detail: str) -> None:
        self._why.setdefault(name, (reason, f"{phase.value}: {detail}"))

    def _failed(self, error: RoundError) -> Failed:
        """No sum: everybody is dropped, those who did their part with the round's own reason."""
        for name in self._collecting.waiting:
            reason, detail = self._why.get(name, (Reason.ERROR, f"no sum: {error.cause}"))
            self._collecting = drop(self._collecting, name, reason, " ".join(detail.split())[:500])
        closed = close(self._collecting)
        assert isinstance(closed, Failed)
        return closed

    def aggregate(self, closed: Complete) -> tuple[State, Aggregate, float]:
        """The next state, the sums of the round, and the norm of the mean update."""
        after = apply_mean(
            self._state,
            self._aggregate.mean,
            plan=self._plan,
            layout=self._setting.layout(self._state.rank),
            roles=self._roles,
        )
        norm = float(np.linalg.norm(self._aggregate.mean.astype(np.float64)))
        return after, self._aggregate, norm

    def record(
        self, closed: Complete | Failed, aggregate: Aggregate | None = None, norm: float = 0.0
    ) -> Record:
        """As every attempt's, and who was lost after it had masked."""
        lost = {
            self._names[one]: phase.name.lower()
            for one, phase in sorted(self._core.lost.items())
            if one in self._names
        }
        liars = sorted(self._names[one] for one in self._core.liars)
        record = super().record(closed, aggregate, norm)
        return record | {"sequence": self._seq, "lost": lost, "liars": liars}
