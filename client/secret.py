"""A client's part in secure aggregation: between Flower's messages and :mod:`protocol.secagg`.

What a session holds is kept in the node's ``Context.state`` and never logged. A refusal reveals
nothing but its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from client.failures import contribution_or_zeros, words_or_zeros
from client.membership import Membership
from client.openings import Line
from protocol.encoding import seed_from, vector_digest
from protocol.errors import SecrecyError
from protocol.exchange import Contribution, Phase
from protocol.recipe import Recipe
from protocol.secagg import client as core
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.messages import MASKED_TAIL, decode_masked_tail, decode_round
from protocol.secagg.openings import Opening, alive_digest
from protocol.secagg.primitives import Suite, Word
from protocol.secagg.session import (
    BY_LOG,
    ORDER,
    Answered,
    Session,
    check_new,
    opening,
    part,
    repeated,
    request_digest,
)
from protocol.secagg.task import Encoding, encoding_for, roster_root, terms_for
from protocol.secagg.witnessed import agree_by_log
from protocol.transparency.receipts import Receipt
from protocol.transparency.shown import (
    Given,
    Incoming,
    Place,
    Shown,
    Told,
    decode_text,
    leaves_of,
    place_of,
)
from protocol.wire import Instruction, instruction_digest

RUN_ID_BYTES = 16


class Member(Membership):
    """Its part in every phase of an attempt."""

    def answer(
        self,
        phase: Phase,
        request: bytes,
        instruction: Instruction,
        session: Session | None,
        contribute: Callable[[], Contribution],
        log_text: str | None = None,
    ) -> tuple[Session, bytes]:
        """The session after ``request`` and the reply. Raises SecrecyError without a change.

        ``contribute`` trains; it is called once the coordinator's message has been checked, and nothing of
        how it fails leaves this client (:mod:`client.failures`). ``log_text`` is
        what came of the run's log (:mod:`protocol.transparency.shown`).
        """
        order = BY_LOG if self.plan.witnessed else ORDER
        if (repetition := repeated(session, phase, request, order)) is not None:
            assert session is not None
            return session, repetition
        if phase is Phase.ADVERTISE:
            return self._advertise(request, instruction, session)
        assert session is not None
        if phase is Phase.SHARE:
            advanced, reply = self._share(request, instruction, session, log_text)
        elif session.told != instruction_digest(instruction):
            raise SecrecyError(
                "instruction.changed", "not the one this attempt began with", core.STOP
            )
        elif phase is Phase.MASK:
            masked, reply = self._mask(request, instruction, session, contribute)
            root, _, _ = decode_masked_tail(reply[-MASKED_TAIL:])
            advanced = session.model_copy(update={"masked": masked, "shared": None, "root": root})
        elif phase is Phase.AGREE:
            self._keep_receipt(log_text, instruction, session)
            self.verify_opening(instruction, session.sid, request_digest(request))
            agreed, reply = core.agree_on_alive(
                part(session.masked), request, key=self.key, policy=self.policy
            )
            advanced = session.model_copy(update={"agreed": agreed, "masked": None})
        else:
            shares = self._reveal(request, instruction, session, log_text)
            return self._next(session, request, shares)
        stored = b"" if phase is Phase.MASK else reply
        update = {"phase": phase, "asked": request_digest(request), "reply": stored}
        return advanced.model_copy(update=update), reply

    def told(self, sid: bytes) -> Told:
        """What the coordinator of run ``sid`` has to know of this client's memory. (P-8.10)"""
        told = self.receipts.told(sid)
        return told if self.kept is None else self.kept.told(told, sid.hex())

    def _share(
        self, request: bytes, instruction: Instruction, session: Session, log_text: str | None
    ) -> tuple[Session, bytes]:
        """Shares for the neighbours, once the log shows every vector that was sent before."""
        # Its advert may have been made before anything was known of this attempt.
        self.verify_attempt(instruction, session.sid, session.seq)
        shown = decode_text(Shown, log_text, "log")
        incoming = Incoming(
            round=instruction.round, digest=instruction.adapter_digest, first=self.first
        )
        place, plan = self._place(session), self.plan_digest
        self.receipts.keep_log(
            session.sid, shown, place, incoming, lambda rids: self.openings.of_sums(plan, rids)
        )
        self.verify_voids(session.sid, instruction)
        if self.kept is not None:
            run, lines = session.sid.hex(), self.openings.of_adapter(incoming.digest)
            opened = [line.opening.round for line in lines if line.plan == plan]
            self.kept.verify_there(run, incoming.digest, number=incoming.round, opened=opened)
            self.kept.settle(run, session.seq, leaves_of(shown))
        digest = instruction_digest(instruction)
        after, reply = core.share(
            part(session.advertised),
            request,
            key=self.key,
            policy=self.policy,
            random=self.random,
        )
        advanced = session.model_copy(update={"shared": after, "advertised": None, "told": digest})
        return advanced, reply

    def _reveal(
        self, request: bytes, instruction: Instruction, session: Session, log_text: str | None
    ) -> bytes:
        """The shares of the agreed alive set; which one, and what it spends, is on disk before."""
        state, shares = self._alive_shares(request, instruction, session, log_text)
        opening = Opening(
            sid=session.sid,
            seq=session.seq,
            rid=state.before.rid,
            round=instruction.round,
            instruction=instruction_digest(instruction),
            adapter=instruction.adapter_digest,
            alive=alive_digest(state.alive),
        )
        self.receipts.while_open(
            session.sid,
            opening.rid,
            lambda: self.openings.note(
                Line(plan=self.plan_digest, start=self.plan.start is not None, opening=opening),
                lambda: self.verify_opening(instruction, session.sid, opening.alive),
            ),
        )
        self.spend(instruction, session)
        if self.kept is not None:
            self.kept.summed(opening.rid.hex())
        return shares

    def _alive_shares(
        self, request: bytes, instruction: Instruction, session: Session, log_text: str | None
    ) -> tuple[core.Agreed, bytes]:
        """The agreed alive set and the shares of it: by signatures, or by its place in the log."""
        if not self.plan.witnessed:
            state = part(session.agreed)
            return state, core.unmask(state, request, policy=self.policy)
        self._keep_receipt(log_text, instruction, session)
        state = agree_by_log(part(session.masked), request, policy=self.policy)
        self.verify_opening(instruction, session.sid, alive_digest(state.alive))
        return state, core.reveal(state)

    def _keep_receipt(
        self, log_text: str | None, instruction: Instruction, session: Session
    ) -> None:
        """The receipt for the vector that was sent, kept before anything else is done for its sum."""
        receipt = decode_text(Given, log_text, "receipt")
        place, state = self._place(session), part(session.masked)
        expected = Receipt(
            origin=place.origin,
            client=state.client.hex(),
            sid=session.sid.hex(),
            seq=session.seq,
            rid=state.rid.hex(),
            root=session.root.hex(),
            round=instruction.round,
            attempt=instruction.attempt,
        )
        self.receipts.keep_receipt(receipt, expected, place)

    def _place(self, session: Session) -> Place:
        """The log of the run."""
        return place_of(self.plan, session.run)

    def _next(self, session: Session, request: bytes, shares: bytes) -> tuple[Session, bytes]:
        """The secrets end here; the next attempt's advert goes with the shares. (P-6.13)"""
        seq = session.seq + 1
        state, advert = core.advertise(
            self.key,
            sid=session.sid,
            seq=seq,
            random=self.random,
            keys=Keys(self.plan.secrecy.keys),
        )
        reply = advert + shares
        return Session(
            plan=session.plan,
            run=session.run,
            sid=session.sid,
            seq=seq,
            seen={**session.seen, session.sid: seq},
            before=Answered(asked=request_digest(request), reply=reply),
            phase=Phase.ADVERTISE,
            asked=request_digest(opening(session.run, seq)),
            reply=advert,
            advertised=state,
        ), reply

    def _advertise(
        self, request: bytes, instruction: Instruction, session: Session | None
    ) -> tuple[Session, bytes]:
        if len(request) != RUN_ID_BYTES + 8:
            raise SecrecyError("attempt.malformed", f"{len(request)} bytes", core.STOP)
        sid = session_id(self.plan_digest, request[:RUN_ID_BYTES])
        seq = int.from_bytes(request[RUN_ID_BYTES:], "big")
        self.verify_attempt(instruction, sid, seq)
        check_new(session, sid, seq, instruction)
        before = session if session and session.plan == self.plan_digest else None
        keys = Keys(self.plan.secrecy.keys)
        state, reply = core.advertise(self.key, sid=sid, seq=seq, random=self.random, keys=keys)
        return Session(
            plan=self.plan_digest,
            run=request[:RUN_ID_BYTES],
            sid=sid,
            seq=seq,
            seen={**(before.seen if before else {}), sid: seq},
            phase=Phase.ADVERTISE,
            asked=request_digest(request),
            reply=reply,
            advertised=state,
        ), reply

    def _mask(
        self,
        request: bytes,
        instruction: Instruction,
        session: Session,
        contribute: Callable[[], Contribution],
    ) -> tuple[core.Masked, bytes]:
        members, _ = decode_round(request)
        encoding = encoding_for(self.plan, instruction, size=self.size, clients=len(members))
        terms = terms_for(self.plan, instruction, encoding, roster_root(self.roster))
        opened = core.open_shares(part(session.shared), request, terms, policy=self.policy)
        given = self._given(session, opened.rid, instruction, contribute)
        words = self._words(encoding, instruction, given)
        suite = Suite(self.plan.secrecy.suite)
        return core.mask(opened, words, bits=encoding.bits, suite=suite, key=self.key)

    def _given(
        self,
        session: Session,
        rid: bytes,
        instruction: Instruction,
        contribute: Callable[[], Contribution],
    ) -> Contribution:
        """For the sum ``rid``: of one incoming adapter the same, whatever asks for it again. (P-6.10)"""
        train = partial(contribution_or_zeros, contribute, size=self.size)
        if self.kept is None:
            return train()
        place = session.sid.hex(), session.seq, rid.hex()
        return self.kept.contribution(instruction.round, place, instruction.adapter_digest, train)

    def _words(self, encoding: Encoding, instruction: Instruction, given: Contribution) -> Word:
        """What is masked; whatever fails here, nobody else learns that this client failed. (P-4.4)"""
        turn = self.plan.turn(instruction.round)
        seed = seed_from("rounding", self.plan.seed, turn, self.name)

        def encode(contribution: Contribution) -> Word:
            return encoding.words(contribution, np.random.default_rng(seed), self.random)

        return words_or_zeros(given, encode)


def first_digest(recipe: Recipe) -> str:
    """Digest of round 0's adapter: the plan names it, or nobody chooses it. (P-2.3)"""
    if recipe.plan.start is not None:
        return recipe.plan.start.adapter
    return vector_digest(recipe.layout.flatten(recipe.start()))
