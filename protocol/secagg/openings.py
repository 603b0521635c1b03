"""Which sums a client has helped to open, and which it may still open. (P-6.10)

Two sums of one incoming adapter over nearly the same clients show what their difference did. So of one
incoming adapter a client opens one sum: the same instruction again, of the same run and alive set, gives the
same sum; another alive set, another instruction of the round, or another run of the plan is refused for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import SecrecyError
from protocol.wire import Instruction, instruction_digest

GO_ON = "go on with the next round; to begin again, agree on another plan"
SAME = (
    "ask the very same clients, or clients that have opened no sum of it; or agree on another plan"
)


Count = Annotated[int, Field(ge=0, lt=2**53)]


class Opening(BaseModel):
    """A sum that this client gave its shares for: what it was asked, and whose sum it is."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    sid: bytes
    seq: Count
    rid: bytes
    round: Count
    instruction: bytes  # SHA-256 of all of it
    adapter: str  # digest of the incoming adapter
    alive: bytes  # SHA-256 of the sorted ids


def alive_digest(alive: Sequence[bytes]) -> bytes:
    """SHA-256 of sorted ids (16 bytes each)."""
    return hashlib.sha256(b"".join(alive)).digest()


def far_apart(one: AbstractSet[str], other: AbstractSet[str], *, least: int) -> bool:
    """Whether sums of one adapter over these clients tell of no few of them: the same, or far apart."""
    return one == other or min(len(one - other), len(other - one)) >= least


def verify_opening(
    before: Sequence[Opening], *, sid: bytes, instruction: Instruction, alive: bytes | None = None
) -> None:
    """Whether a sum may be opened after those ``before``, all of one plan. Raises SecrecyError.

    ``alive`` is the digest of the set whose sum it is, once that is known.
    """
    wanted = instruction_digest(instruction)
    for opening in before:
        if opening.sid != sid:
            raise SecrecyError("run.other", "a sum of another run of this plan was opened", GO_ON)
        repeats = (opening.round, opening.instruction) == (instruction.round, wanted)
        same = alive in (None, opening.alive)
        if opening.round >= instruction.round and not (repeats and same):
            raise SecrecyError(
                "round.revealed",
                f"round {instruction.round} after a sum of round {opening.round} was opened",
                GO_ON,
            )
        if opening.adapter == instruction.adapter_digest and not same:
            raise SecrecyError(
                "adapter.revealed",
                f"a sum over other clients of the adapter that came into round {opening.round} was opened",
                SAME,
            )


def verify_beside(elsewhere: Sequence[Opening], *, alive: bytes | None) -> None:
    """The same for sums of the incoming adapter that were opened under other plans. Raises SecrecyError."""
    if any(alive not in (None, opening.alive) for opening in elsewhere):
        raise SecrecyError(
            "adapter.revealed",
            "under another plan a sum over other clients of this incoming adapter was opened",
            SAME,
        )
