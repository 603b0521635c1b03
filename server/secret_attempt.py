"""One attempt at one round under secure aggregation: phases, and a sum per group. (P-4, P-6)

Nothing of an attempt survives its process but its cohort: a coordinator that was killed asks the
same cohort again under the next sequence number, and the sum, being exact, is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from protocol import wire
from protocol.errors import ArtefactError, ProofError, RoundError, SecrecyError
from protocol.exchange import Phase
from protocol.secagg import coordinator as core
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.messages import NO_INDEX, split_unmask
from protocol.secagg.primitives import Suite, client_id
from protocol.secagg.session import opening
from protocol.secagg.task import encoding_for, roster_root, terms_for
from server.asked import asked_at_start, asked_before, asked_clients, verify_apart
from server.asking import ask, gather
from server.attempt import masked_bytes
from server.publishing import (
    asked_sums,
    log_alive_sets,
    publish_sum,
)
from server.receipts import ClientsLog
from server.roster import DETAIL
from server.rounds import (
    NO_SUM,
    Complete,
    Failed,
    Reason,
    accept,
    choose_among,
    close,
    deal_groups,
    drop,
    naming,
)
from server.secret_outcome import SecretOutcome
from server.secret_sum import Messages, SecretSum

logger = logging.getLogger("flwr.fedge")  # Flower's handler writes it
RETRY = "check the clients that were lost; the model is unchanged"
Prepare = Callable[[SecretSum], Messages]
Receive = Callable[[SecretSum, bytes, bytes], None]


class SecretAttempt(SecretOutcome):
    """The messages of an attempt; what comes of its sums is :class:`SecretOutcome`'s."""

    def collect(self) -> Complete | Failed:
        """All phases. Who is missing in one is out of the rest; a sum is of those who masked."""
        keys = self._setting.roster_keys
        for one in self._collecting.expected:
            if one not in keys:
                self._drop(one, Reason.INVALID, "its key is not in the roster")
            elif one not in self._roster.nodes:
                self._drop(one, Reason.NO_REPLY, "not connected")
        self._given = self._store.next_number(self._number, self._attempt)
        self._run_id, self._seq = self._given.run, self._given.seq
        self._sid = session_id(self._setting.plan_digest, self._run_id)
        self._why: dict[str, tuple[Reason, str]] = {}
        self._asked_for = [
            *asked_clients(self._store, self._setting.log, self._number, self._digest),
            *asked_at_start(self._store, self._digest, self._setting.roster_keys),
        ]
        self._sums = self._groups()
        for name in {*self._collecting.waiting}.difference(*(m.names.values() for m in self._sums)):
            self._drop(name, Reason.NO_REPLY, "not asked: in none of the sums that were asked for")
        self._clients_log = ClientsLog(self._setting, self._given, self._sid)
        self._store.forget_vectors(self._number)  # of an attempt that was killed
        self._phases()
        for made in self._sums:
            made.open()
            if made.refused and made.failure:
                logger.warning(
                    "round %d: the sum of group %d is refused: %s",
                    self._number, made.group, made.failure.cause,
                )  # fmt: skip
            publish_sum(self._store, self._number, made)
            if made.failure is None:
                for name in made.alive:
                    self._collecting = accept(self._collecting, name)
        self._account_for_the_rest()
        return close(self._collecting)

    def _draw(self, names: list[str]) -> tuple[str, ...]:
        """Among those who may open a sum of this adapter. Raises RoundError when these are too few."""
        cohort, asked = self._plan.cohort, self._asked_before()
        choice = choose_among(names, asked, size=cohort.size, quorum=cohort.quorum)
        if choice is None:
            gone = {name for groups in asked for group in groups for name in group} - set(names)
            raise RoundError(
                f"round {self._number}: a sum of this adapter was asked for before, over clients of which "
                f"some are not there{naming(dict.fromkeys(gone, 'not connected'))}",
                "clients open another over the very same clients only: connect them and resume",
            )
        return choice.names if choice.again else super()._draw(list(choice.names))

    def _asked_before(self) -> list[list[list[str]]]:
        return asked_before(self._store, self._number, self._digest)

    def _dealt(self) -> list[list[str]]:
        """The groups of those who are there: as they were, where an adapter's sum is asked for again."""
        there = set(self._collecting.waiting)
        if asked := self._store.revealing(self._number):
            # Killed after it had asked: of this round clients open the very same sums, or none.
            names = {client_id(key).hex(): name for name, key in self._setting.roster_keys.items()}
            sums = [[names.get(one, one) for one in each.clients] for each in asked[max(asked)]]
            return self._as_they_were(sums, there)
        for groups in self._asked_before():
            if {name for group in groups for name in group} == {*self._collecting.expected}:
                return self._as_they_were(groups, there)
        return deal_groups(
            list(self._collecting.waiting),
            groups=self._plan.secrecy.groups,
            seed=self._plan.seed,
            round_number=self._turn,
            attempt=self._attempt,
        )

    def _as_they_were(self, groups: list[list[str]], there: set[str]) -> list[list[str]]:
        """As many as the plan has: a group of which no sum was asked for stays empty."""
        dealt = [sorted(there.intersection(group)) for group in groups]
        return dealt + [[] for _ in range(self._plan.secrecy.groups - len(dealt))]

    def _groups(self) -> list[SecretSum]:
        """The attempt's groups."""
        plan, keys = self._plan, self._setting.roster_keys
        encoding = encoding_for(
            plan, self.instruction(), size=self._layout.size, clients=plan.largest_sum
        )
        parameters = core.Parameters(
            sid=self._sid,
            seq=self._seq,
            roster={client_id(key): key for key in keys.values()},
            minimum=plan.least_sum,
            bits=encoding.bits,
            suite=Suite(plan.secrecy.suite),
            keys=Keys(plan.secrecy.keys),
        )
        return [
            SecretSum(group, parameters, {client_id(keys[name]): name for name in names})
            for group, names in enumerate(self._dealt())
        ]

    # -- phases -----------------------------------------------------------------------------------

    def _phases(self) -> None:
        """Adverts that came with the last round's shares save the first phase. (P-6.13)"""
        known = self._setting.adverts
        first = opening(self._run_id, self._seq)

        def to_advertise(made: SecretSum) -> Messages:
            for one in made.names:
                if advert := known.pop((self._seq, one), None):
                    self._try_advert(made, one, advert)
            return {one: first for one in made.names if not made.core.has_advert(one)}

        self._phase(Phase.ADVERTISE, to_advertise, lambda m, c, b: m.core.receive_advert(c, b))
        self._phase(Phase.SHARE, self._to_share, lambda m, c, b: m.core.receive_shares(c, b))
        self._phase(Phase.MASK, self._to_mask, self._receive_masked)
        self._opening = self._by_log() if self._plan.witnessed else self._by_signatures()
        known.clear()
        if self._too_few():
            return
        for made in self._sums:
            if made.failure is None:  # spent before it is revealing: what is in doubt is spent
                self._spend(made.alive, run=self._sid.hex(), sequence=self._seq, group=made.group)
        self._store.note_revealing(self._number, self._seq, asked_sums(self._sums))
        self._phase(Phase.UNMASK, self._to_unmask, self._receive_unmask)

    def _by_signatures(self) -> dict[int, bytes | None]:
        """The consistency round: every client signs the alive set, and gets the others' signatures."""
        self._phase(Phase.AGREE, self._to_agree, lambda m, c, b: m.core.receive_alive(c, b))
        return {made.group: made.guarded(made.core.close_alive) for made in self._sums}

    def _by_log(self) -> dict[int, bytes | None]:
        """The alive sets go into the log where they were announced, and witnesses confirm it."""
        for made in self._sums:
            made.guarded(partial(self._close_masked, made))
        if self._too_few():
            return {}
        try:
            proofs = log_alive_sets(self._setting, self._sums, self._number, self._attempt)
        except ProofError as error:
            for made in self._sums:
                made.failure = made.failure or RoundError(error.cause, error.remedy)
            return {}
        for group in proofs:
            self._sums[group].core.agreed_by_log()
        return dict(proofs)

    def _too_few(self) -> bool:
        """Sums that are still possible miss the quorum together: then none is opened."""
        left = [made for made in self._sums if made.failure is None]
        count, quorum = sum(len(made.alive) for made in left), self._plan.cohort.quorum
        if count >= quorum:
            return False
        for made in left:
            made.failure = RoundError(f"{count} clients are left, the quorum is {quorum}", RETRY)
        return True

    @property
    def revealed(self) -> bool:
        """Whether clients were asked to open a sum, now or before the coordinator was killed."""
        return bool(self._store.revealing(self._number))

    def _try_advert(self, made: SecretSum, one: bytes, advert: bytes) -> None:
        try:
            made.core.receive_advert(one, advert)
        except SecrecyError:
            return  # it is asked for one

    def _to_share(self, made: SecretSum) -> Messages:
        place = self._setting.log.size + made.group if self._plan.witnessed else NO_INDEX
        message = made.core.close_adverts(made.names, alive_index=place)
        return {one: message for one in made.names if one not in made.core.lost}

    def _to_mask(self, made: SecretSum) -> Messages:
        instruction = self.instruction()
        made.encoding = encoding_for(
            self._plan,
            instruction,
            size=self._layout.size,
            clients=len(made.core.fix_members()),
        )
        roster = roster_root(self._setting.roster_keys)
        terms = terms_for(self._plan, instruction, made.encoding, roster)
        return made.core.close_shares(terms, count=made.encoding.count)

    def _receive_masked(self, made: SecretSum, one: bytes, message: bytes) -> None:
        made.core.receive_masked(one, message)
        if self._plan.audit.retention_days:
            packed = memoryview(message)[: made.core.vector_bytes]
            self._store.put_vector(self._number, made.group, one.hex(), packed)

    def _to_agree(self, made: SecretSum) -> Messages:
        alive = self._close_masked(made)
        return dict.fromkeys(made.core.alive, alive)

    def _close_masked(self, made: SecretSum) -> bytes:
        """The alive set, unless a sum that was asked for is too near. Raises RoundError. (P-6.10)"""
        message = made.core.close_masked()
        alive = {one.hex() for one in made.core.alive}
        verify_apart(alive, self._asked_for, least=self._plan.least_sum)
        return message

    def _to_unmask(self, made: SecretSum) -> Messages:
        opening = self._opening[made.group]
        assert opening is not None  # of a sum that has not failed
        return dict.fromkeys(made.core.alive, opening)

    def _receive_unmask(self, made: SecretSum, one: bytes, message: bytes) -> None:
        advert, shares = split_unmask(message, Keys(self._plan.secrecy.keys))
        made.core.receive_unmask(one, shares)
        self._setting.adverts[self._seq + 1, one] = advert

    def _phase(self, phase: Phase, prepare: Prepare, receive: Receive) -> None:
        """Send each its message, hand what comes back to ``receive``; note why others are missing."""
        common = RecordDict({wire.INSTRUCTION: ConfigRecord(wire.to_record(self.instruction()))})
        if phase is Phase.MASK:
            vector = self._setting.sent(self._state)
            common[wire.ADAPTER] = ArrayRecord({"adapter": Array(vector)})
        whose: dict[str, tuple[SecretSum, bytes]] = {}
        contents = {}
        for made in self._sums:
            for one, message in (made.guarded(partial(prepare, made)) or {}).items():
                name = made.names[one]
                data = Array(np.frombuffer(message, np.uint8))
                contents[name] = RecordDict({**common, wire.SECAGG: ArrayRecord({"message": data})})
                contents[name].update(self._clients_log.beside(phase, made, one))
                whose[name] = made, one
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
            made, one = whose[name]

            def understood(data: bytes) -> None:
                self._clients_log.heard(phase, one, reply.content)
                receive(made, one, data)

            self._received(phase, name, reply, understood)

        clock = self._setting.clock
        deadline = clock.now() + self._plan.cohort.deadline_s
        for name in gather(self._setting.grid, clock, asked, deadline=deadline, take=take):
            self._note(phase, name, Reason.LATE, "answered after the deadline")

    def _received(
        self, phase: Phase, name: str, reply: Message, receive: Callable[[bytes], None]
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
            receive(bytes(message))
        except (KeyError, ValueError, ArtefactError):
            self._note(phase, name, Reason.INVALID, "the reply holds no message and no refusal")
            return
        except SecrecyError as error:
            self._note(phase, name, Reason.INVALID, error.cause)
            return
        if phase is Phase.MASK:
            self._bytes_up = max(self._bytes_up, len(message))
            if self._setting.listener:
                expected = sum(len(made.core.members) for made in self._sums)
                done = sum(len(made.core.masked) for made in self._sums)
                self._setting.listener.on_reply(self._number, done, expected)

    def _note(self, phase: Phase, name: str, reason: Reason, detail: str) -> None:
        self._why.setdefault(name, (reason, f"{phase.value}: {detail}"))

    # -- afterwards -------------------------------------------------------------------------------

    def _account_for_the_rest(self) -> None:
        """Whoever is in no sum is dropped: for its own reason, or because its sum failed."""
        failed: dict[str, str] = {}
        lost: dict[str, str] = {}
        for made in self._sums:
            lost |= made.lost
            if made.failure is not None:
                failed.update(dict.fromkeys(made.names.values(), made.failure.cause))
        for name in self._collecting.waiting:
            why = self._why.get(name)
            if why is None and name in failed and name not in lost:
                why = (Reason.ERROR, f"{NO_SUM}: {failed[name]}")
            silent = f"{lost[name]}: no answer by the deadline" if name in lost else "no answer"
            reason, detail = why or (Reason.NO_REPLY, silent)
            line = " ".join(detail.split())[:DETAIL]
            self._collecting = drop(self._collecting, name, reason, line)
