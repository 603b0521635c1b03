"""One attempt at one round under secure aggregation: phases, and a sum per group. (P-4, P-6)

Nothing of an attempt survives its process but its cohort: a coordinator that was killed asks the
same cohort again under the next sequence number, and the sum, being exact, is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
from server.asking import Content, ask
from server.attempt import masked_bytes, refusal_in
from server.publishing import (
    asked_sums,
    log_alive_sets,
    publish_sum,
)
from server.receipts import ClientsLog
from server.roster import DETAIL
from server.rounds import (
    ENOUGH,
    NO_SUM,
    Complete,
    Failed,
    Reason,
    choose_among,
    deal_groups,
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
        for client in self._collecting.expected:
            if client not in keys:
                self._drop(client, Reason.INVALID, "its key is not in the roster")
            elif client not in self._roster.nodes:
                self._drop(
                    client, Reason.NO_REPLY, self._roster.kept_out.get(client, "not connected")
                )
        self._issued = self._store.next_number(self._number, self._attempt)
        self._run_id, self._seq = self._issued.run, self._issued.seq
        self._sid = session_id(self._setting.plan_digest, self._run_id)
        self._reasons: dict[str, tuple[Reason, str]] = {}
        self._asked_for = [
            *asked_clients(self._store, self._setting.log, self._number, self._digest),
            *asked_at_start(self._store, self._digest, self._setting.roster_keys),
        ]
        self._sums = self._groups()
        for name in {*self._collecting.waiting}.difference(*(m.names.values() for m in self._sums)):
            self._drop(name, Reason.NO_REPLY, "not asked: in none of the sums that were asked for")
        self._clients_log = ClientsLog(self._setting, self._issued, self._sid)
        self._store.forget_vectors(self._number)  # of an attempt that was killed
        self._phases()
        for secret in self._sums:
            secret.open()
            if secret.refused and secret.failure:
                logger.warning(
                    "round %d: the sum of group %d is refused: %s",
                    self._number, secret.group, secret.failure.cause,
                )  # fmt: skip
            publish_sum(self._store, self._number, secret)
            if secret.failure is None:
                for name in secret.alive:
                    self._collecting.accept(name)
        self._account_for_the_rest()
        return self._collecting.close()

    def _draw(self, names: list[str]) -> tuple[str, ...]:
        """Among those who may open a sum of this adapter. Raises RoundError when these are too few."""
        cohort, earlier = self._plan.cohort, self._asked_before()
        choice = choose_among(names, earlier, size=cohort.size, quorum=cohort.quorum)
        if choice is None:
            absent = {name for groups in earlier for group in groups for name in group} - set(names)
            out = self._roster.kept_out
            raise RoundError(
                f"round {self._number}: a sum of this adapter was asked for before, over clients of which "
                f"some are not there{naming({name: out.get(name, 'not connected') for name in absent})}",
                "clients open another over the very same clients only: connect them and resume; where "
                "one has withdrawn, go on from another adapter (`fedge plan continue`)",
            )
        return choice.names if choice.again else super()._draw(list(choice.names))

    def _asked_before(self) -> list[list[list[str]]]:
        return asked_before(self._store, self._number, self._digest)

    def _again(self) -> list[list[str]] | None:
        """The groups of those who are there as they were, where an adapter's sum is asked for again."""
        connected = set(self._collecting.waiting)
        if revealing := self._store.revealing(self._number):
            # Killed after it had asked: of this round clients open the very same sums, or none.
            names = {client_id(key).hex(): name for name, key in self._setting.roster_keys.items()}
            sums = [
                [names.get(client, client) for client in revealed.ids]
                for revealed in revealing[max(revealing)]
            ]
            return self._as_they_were(sums, connected)
        for groups in self._asked_before():
            if {name for group in groups for name in group} == {*self._collecting.expected}:
                return self._as_they_were(groups, connected)
        return None

    def _as_they_were(self, groups: list[list[str]], connected: set[str]) -> list[list[str]]:
        """As many as the plan has: a group of which no sum was asked for stays empty."""
        dealt = [sorted(connected.intersection(group)) for group in groups]
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
        there = list(self._collecting.waiting)
        again = self._again()  # of whom nobody may be missing
        dealt = again or deal_groups(
            there,
            groups=plan.secrecy.groups,
            seed=plan.seed,
            round_number=self._turn,
            attempt=self._attempt,
        )
        return [
            SecretSum(
                group,
                parameters,
                {client_id(keys[name]): name for name in names},
                awaited=len(names) if again else plan.cohort.awaited(len(names), len(there)),
            )
            for group, names in enumerate(dealt)
        ]

    # -- phases -----------------------------------------------------------------------------------

    def _phases(self) -> None:
        """Adverts that came with the last round's shares save the first phase. (P-6.13)"""
        adverts = self._setting.adverts
        request = opening(self._run_id, self._seq)

        def to_advertise(secret: SecretSum) -> Messages:
            for client in secret.names:
                if advert := adverts.pop((self._seq, client), None):
                    self._try_advert(secret, client, advert)
            return {
                client: request for client in secret.names if not secret.core.has_advert(client)
            }

        self._phase(Phase.ADVERTISE, to_advertise, lambda m, c, b: m.core.receive_advert(c, b))
        self._phase(Phase.SHARE, self._to_share, lambda m, c, b: m.core.receive_shares(c, b))
        self._phase(Phase.MASK, self._to_mask, self._receive_masked)
        self._opening = self._by_log() if self._plan.witnessed else self._by_signatures()
        adverts.clear()
        if self._too_few():
            return
        for secret in self._sums:
            if secret.failure is None:  # spent before it is revealing: what is in doubt is spent
                self._spend(
                    secret.alive, run=self._sid.hex(), sequence=self._seq, group=secret.group
                )
        self._store.note_revealing(self._number, self._seq, asked_sums(self._sums))
        self._phase(Phase.UNMASK, self._to_unmask, self._receive_unmask)

    def _by_signatures(self) -> dict[int, bytes | None]:
        """The consistency round: every client signs the alive set, and gets the others' signatures."""
        self._phase(Phase.AGREE, self._to_agree, lambda m, c, b: m.core.receive_alive(c, b))
        return {secret.group: secret.guarded(secret.core.close_alive) for secret in self._sums}

    def _by_log(self) -> dict[int, bytes | None]:
        """The alive sets go into the log where they were announced, and witnesses confirm it."""
        for secret in self._sums:
            secret.guarded(partial(self._close_masked, secret))
        if self._too_few():
            return {}
        try:
            proofs = log_alive_sets(self._setting, self._sums, self._number, self._attempt)
        except ProofError as error:
            for secret in self._sums:
                secret.failure = secret.failure or RoundError(error.cause, error.remedy)
            return {}
        for group in proofs:
            self._sums[group].core.agreed_by_log()
        return dict(proofs)

    def _too_few(self) -> bool:
        """Sums that are still possible miss the quorum together: then none is opened."""
        possible = [secret for secret in self._sums if secret.failure is None]
        count, quorum = sum(len(secret.alive) for secret in possible), self._plan.cohort.quorum
        if count >= quorum:
            return False
        for secret in possible:
            secret.failure = RoundError(f"{count} clients are left, the quorum is {quorum}", RETRY)
        return True

    @property
    def revealed(self) -> bool:
        """Whether clients were asked to open a sum, now or before the coordinator was killed."""
        return bool(self._store.revealing(self._number))

    def _try_advert(self, secret: SecretSum, client: bytes, advert: bytes) -> None:
        try:
            secret.core.receive_advert(client, advert)
        except SecrecyError:
            return  # it is asked for one

    def _to_share(self, secret: SecretSum) -> Messages:
        place = self._setting.log.size + secret.group if self._plan.witnessed else NO_INDEX
        message = secret.core.close_adverts(secret.names, alive_index=place)
        return {client: message for client in secret.names if client not in secret.core.lost}

    def _to_mask(self, secret: SecretSum) -> Messages:
        instruction = self.instruction()
        secret.encoding = encoding_for(
            self._plan,
            instruction,
            size=self._layout.size,
            clients=len(secret.core.fix_members()),
        )
        roster = roster_root(self._setting.roster_keys)
        terms = terms_for(self._plan, instruction, secret.encoding, roster)
        return secret.core.close_shares(terms, count=secret.encoding.count)

    def _receive_masked(self, secret: SecretSum, client: bytes, message: bytes) -> None:
        secret.core.receive_masked(client, message)
        if self._plan.audit.retention_days:
            packed = memoryview(message)[: secret.core.vector_bytes]
            self._store.put_vector(self._number, secret.group, client.hex(), packed)

    def _to_agree(self, secret: SecretSum) -> Messages:
        alive = self._close_masked(secret)
        return dict.fromkeys(secret.core.alive, alive)

    def _close_masked(self, secret: SecretSum) -> bytes:
        """The alive set, unless a sum that was asked for is too near. Raises RoundError. (P-6.10)"""
        message = secret.core.close_masked()
        alive = {client.hex() for client in secret.core.alive}
        verify_apart(alive, self._asked_for, least=self._plan.least_sum)
        return message

    def _to_unmask(self, secret: SecretSum) -> Messages:
        opening = self._opening[secret.group]
        assert opening is not None  # of a sum that has not failed
        return dict.fromkeys(secret.core.alive, opening)

    def _receive_unmask(self, secret: SecretSum, client: bytes, message: bytes) -> None:
        advert, shares = split_unmask(message, Keys(self._plan.secrecy.keys))
        secret.core.receive_unmask(client, shares)
        self._setting.adverts[self._seq + 1, client] = advert

    def _phase(self, phase: Phase, prepare: Prepare, receive: Receive) -> None:
        """Send each its message, hand what comes back to ``receive``; note why others are missing."""
        # All that is fixed for the phase is fixed before anybody is asked; a message is made in its turn.
        prepared = [(each, each.guarded(partial(prepare, each)) or {}) for each in self._sums]
        addressees: dict[str, tuple[SecretSum, bytes]] = {}

        def take(name: str, reply: Message) -> None:
            secret, client = addressees[name]

            def receive_message(data: bytes) -> None:
                self._clients_log.heard(phase, client, reply.content)
                receive(secret, client, data)

            self._received(phase, name, reply, receive_message)

        missing = ask(
            self._setting.grid,
            self._setting.clock,
            self._contents(phase, prepared, addressees),
            nodes=self._roster.nodes,
            kind=f"{wire.TRAIN}.{phase}",
            group=str(self._number),
            seconds=self._plan.cohort.deadline_s,
            take=take,
            unsent=lambda name: self._note(
                phase, name, Reason.NO_REPLY, "the request could not be sent"
            ),
            enough=lambda: phase is Phase.MASK and all(each.has_enough for each in self._sums),
        )
        self._owe(missing)
        for name in missing.late:
            self._note(phase, name, Reason.LATE, "answered after the deadline")
        for name in missing.unawaited:
            self._note(phase, name, Reason.UNAWAITED, ENOUGH)

    def _contents(
        self,
        phase: Phase,
        prepared: Sequence[tuple[SecretSum, Messages]],
        addressees: dict[str, tuple[SecretSum, bytes]],
    ) -> Iterator[Content]:
        """The phase's requests by name; ``addressees`` gets whose each is."""
        common = RecordDict({wire.INSTRUCTION: ConfigRecord(wire.to_record(self.instruction()))})
        if phase is Phase.MASK:
            common.update(self._adapters())
        last, data = b"", Array(np.zeros(0, np.uint8))
        for secret, messages in prepared:
            # By name: ids are of keys, and who is first of those that are as fast is in the sum.
            for client in sorted(messages, key=secret.names.__getitem__):
                message = messages[client]
                if message is not last:  # most phases have one for all: a cohort's is long
                    last, data = message, Array(np.frombuffer(message, np.uint8))
                content = RecordDict({**common, wire.SECAGG: ArrayRecord({"message": data})})
                content.update(self._clients_log.beside(phase, secret, client))
                addressees[secret.names[client]] = secret, client
                yield secret.names[client], content

    def _received(
        self, phase: Phase, name: str, reply: Message, receive: Callable[[bytes], None]
    ) -> None:
        if reply.has_error():
            self._note(phase, name, Reason.ERROR, str(reply.error.reason))
            return
        try:
            if (refusal := refusal_in(reply.content)) is not None:
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
                expected = sum(len(secret.core.members) for secret in self._sums)
                masked = sum(len(secret.core.masked) for secret in self._sums)
                self._setting.listener.on_reply(self._number, masked, expected)

    def _note(self, phase: Phase, name: str, reason: Reason, detail: str) -> None:
        self._reasons.setdefault(name, (reason, f"{phase.value}: {detail}"))

    # -- afterwards -------------------------------------------------------------------------------

    def _account_for_the_rest(self) -> None:
        """Whoever is in no sum is dropped: for its own reason, or because its sum failed."""
        failed: dict[str, str] = {}
        lost: dict[str, str] = {}
        for secret in self._sums:
            lost |= secret.lost
            if secret.failure is not None:
                failed.update(dict.fromkeys(secret.names.values(), secret.failure.cause))
        for name in self._collecting.waiting:
            cause = self._reasons.get(name)
            if cause is None and name in failed and name not in lost:
                cause = (Reason.ERROR, f"{NO_SUM}: {failed[name]}")
            silent = f"{lost[name]}: no answer by the deadline" if name in lost else "no answer"
            reason, detail = cause or (Reason.NO_REPLY, silent)
            line = " ".join(detail.split())[:DETAIL]
            self._collecting.drop(name, reason, line)
