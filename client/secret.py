"""A client's part in secure aggregation: between Flower's messages and :mod:`protocol.secagg`.

What a session holds is kept in the node's ``Context.state`` and never logged. A refusal reveals
nothing but its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.encoding import seed_from
from protocol.errors import SecrecyError
from protocol.exchange import Contribution, Phase
from protocol.plan import Plan
from protocol.secagg import client as core
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.graph import LEAST_SUMMANDS
from protocol.secagg.messages import decode_round
from protocol.secagg.primitives import RandomBytes, Suite, client_id
from protocol.secagg.session import (
    Revealed,
    Session,
    check_new,
    check_same_sum,
    part,
    repeated,
    request_digest,
)
from protocol.secagg.task import counters_of, ring_for, roster_root, terms_for
from protocol.wire import Instruction

RUN_ID_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Member:
    """Who this client is in a run: its key, the roster it trusts, the plan it agreed to.

    ``size`` is the number of coordinates of this round's update, by the plan.
    """

    name: str
    key: Ed25519PrivateKey
    roster: dict[str, bytes]
    plan: Plan
    size: int
    random: RandomBytes

    @property
    def policy(self) -> core.Policy:
        """What it insists on."""
        keys = {client_id(key): key for key in self.roster.values()}
        return core.Policy(roster=keys, minimum=max(LEAST_SUMMANDS, self.plan.cohort.quorum))

    def answer(
        self,
        phase: Phase,
        request: bytes,
        instruction: Instruction,
        session: Session | None,
        contribute: Callable[[], Contribution],
    ) -> tuple[Session, bytes]:
        """The session after ``request`` and the reply. Raises SecrecyError without a change.

        ``contribute`` trains; it is called once the coordinator's message has been checked.
        """
        if (known := repeated(session, phase, request)) is not None:
            assert session is not None
            return session, known
        if phase is Phase.ADVERTISE:
            return self._advertise(request, instruction, session)
        assert session is not None
        if phase is Phase.SHARE:
            after, reply = core.share(
                part(session.advertised),
                request,
                key=self.key,
                policy=self.policy,
                random=self.random,
            )
            done = session.model_copy(update={"shared": after, "advertised": None})
        elif phase is Phase.MASK:
            masked, reply = self._mask(request, instruction, part(session.shared), contribute)
            done = session.model_copy(update={"masked": masked, "shared": None})
        elif phase is Phase.AGREE:
            check_same_sum(session, instruction, request)
            agreed, reply = core.agree_on_alive(
                part(session.masked), request, key=self.key, policy=self.policy
            )
            done = session.model_copy(update={"agreed": agreed, "masked": None})
        else:
            state = part(session.agreed)
            reply = core.unmask(state, request, policy=self.policy)
            revealed = Revealed(
                round=instruction.round,
                attempt=instruction.attempt,
                alive=request_digest(b"".join(state.alive)),
            )
            # The secrets end here; what was revealed is remembered.
            done = session.model_copy(update={"agreed": None, "revealed": revealed})
        kept = b"" if phase is Phase.MASK else reply
        update = {"phase": phase, "asked": request_digest(request), "reply": kept}
        return done.model_copy(update=update), reply

    def _advertise(
        self, request: bytes, instruction: Instruction, session: Session | None
    ) -> tuple[Session, bytes]:
        if len(request) != RUN_ID_BYTES + 8:
            raise SecrecyError("attempt.malformed", f"{len(request)} bytes", core.STOP)
        sid = session_id(self.plan.digest, request[:RUN_ID_BYTES])
        seq = int.from_bytes(request[RUN_ID_BYTES:], "big")
        if instruction.plan_digest != self.plan.digest:
            raise SecrecyError("attempt.other-plan", "the coordinator runs another plan", core.STOP)
        check_new(session, sid, seq, instruction)
        before = session if session and session.plan == self.plan.digest else None
        keys = Keys(self.plan.secrecy.keys)
        state, reply = core.advertise(self.key, sid=sid, seq=seq, random=self.random, keys=keys)
        return Session(
            plan=self.plan.digest,
            sid=sid,
            seq=seq,
            seen={**(before.seen if before else {}), sid: seq},
            revealed=before.revealed if before else None,
            phase=Phase.ADVERTISE,
            asked=request_digest(request),
            reply=reply,
            advertised=state,
        ), reply

    def _mask(
        self,
        request: bytes,
        instruction: Instruction,
        state: core.Shared,
        contribute: Callable[[], Contribution],
    ) -> tuple[core.Masked, bytes]:
        members, _ = decode_round(request)
        ring = ring_for(self.plan, instruction, size=self.size, clients=len(members))
        terms = terms_for(self.plan, instruction, ring, roster_root(self.roster))
        opened = core.open_shares(state, request, terms)
        given = contribute()
        rng = np.random.default_rng(
            seed_from("rounding", self.plan.seed, instruction.round, self.name)
        )
        words = ring.encode(given.update, counters_of(given.metrics), rng)
        suite = Suite(self.plan.secrecy.suite)
        return core.mask(opened, words, bits=ring.bits, suite=suite, key=self.key)
