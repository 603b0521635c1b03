"""Each phase of an attempt happens once at a client. (P-6.10)

A session is what a client keeps between messages: the state, and of the last phase the request it
answered and the reply. The same request again gets the same reply; another one, or a phase out of
order, is refused. A masked vector is never made twice: two vectors under one mask would show their
difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from protocol.errors import SecrecyError
from protocol.exchange import Phase
from protocol.secagg.states import STOP, Advertised, Agreed, Masked, Shared
from protocol.wire import Instruction

ORDER = (Phase.ADVERTISE, Phase.SHARE, Phase.MASK, Phase.AGREE, Phase.UNMASK)
BY_LOG = (Phase.ADVERTISE, Phase.SHARE, Phase.MASK, Phase.UNMASK)  # under witnesses (P-6.16)
S = TypeVar("S", Advertised, Shared, Masked, Agreed)


class Answered(BaseModel):
    """The last request of the attempt before, and what it was answered with."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    asked: bytes
    reply: bytes


class Session(BaseModel):
    """One attempt at one client. Of its secrets nothing shows in a log."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    plan: str  # digest
    run: bytes  # the coordinator's id of the run
    sid: bytes
    seq: int
    phase: Phase
    seen: dict[bytes, int]  # the highest number of every run, this one's among them
    before: Answered | None = None
    told: bytes = b""  # SHA-256 of the instruction, from the share phase on
    root: bytes = b""  # of the vector that was sent
    asked: bytes  # SHA-256 of the request that was answered
    reply: bytes  # empty for a masked vector
    advertised: Advertised | None = None
    shared: Shared | None = None
    masked: Masked | None = None
    agreed: Agreed | None = None

    def __repr__(self) -> str:
        """Nothing but where the session stands."""
        return f"<Session seq {self.seq}, {self.phase.value} done>"

    __str__ = __repr__


def repeated(
    session: Session | None, phase: Phase, request: bytes, order: Sequence[Phase] = ORDER
) -> bytes | None:
    """The reply that was given to this very request, or None when it is new and in ``order``.

    Raises SecrecyError for a second, different request of a phase, a phase out of order, and a
    masked vector that was sent already.
    """
    if session is not None and session.before is not None and phase is Phase.UNMASK:
        if session.before.asked == request_digest(request):
            return session.before.reply
        if session.phase is Phase.ADVERTISE:
            raise SecrecyError("phase.repeated", "a second, different unmask", STOP)
    if session is not None and session.phase is phase:
        if session.asked == request_digest(request):
            if session.reply:
                return session.reply
            raise SecrecyError("phase.answered", "the masked vector was sent already", STOP)
        if phase is not Phase.ADVERTISE:
            raise SecrecyError("phase.repeated", f"a second, different {phase.value}", STOP)
    if phase is Phase.ADVERTISE:
        return None
    done = -1 if session is None else order.index(session.phase)
    if phase not in order or order.index(phase) != done + 1:
        raise SecrecyError("phase.order", f"{phase.value} does not come next", STOP)
    return None


def check_new(session: Session | None, sid: bytes, seq: int, instruction: Instruction) -> None:
    """A new attempt has a higher number than any before it in its run. Raises SecrecyError."""
    if session is None or session.plan != instruction.plan_digest:
        return
    if seq <= session.seen.get(sid, 0):
        raise SecrecyError("attempt.old", f"attempt {seq} after {session.seen[sid]}", STOP)


def opening(run: bytes, seq: int) -> bytes:
    """The request for an advert: the run's id and the attempt's number."""
    return run + seq.to_bytes(8, "big")


def request_digest(request: bytes) -> bytes:
    """What a request is recognised by."""
    return hashlib.sha256(request).digest()


def part(state: S | None) -> S:
    """The state a phase starts from; the order was checked before."""
    assert state is not None
    return state
