"""An attempt at a secret sum as a coordinator sees it, honest or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from protocol.exchange import Phase
from protocol.secagg import coordinator as core
from protocol.secagg.messages import NO_INDEX
from protocol.transparency.leaves import AskedSum
from protocol.transparency.receipts import Receipt
from protocol.wire import Instruction


@dataclass
class Try:
    """``revealed`` has the alive set each client gave shares for.

    Beside that ``masked``, which no coordinator sees: the update in each client's vector.
    """

    run: bytes
    instruction: Instruction
    core: core.Attempt
    seq: int
    stage: Phase | None = None
    cohort: bytes = b""
    boxes: dict[bytes, bytes] = field(default_factory=dict)
    alive: tuple[bytes, ...] = ()
    alive_index: int = NO_INDEX
    revealed: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    masked: dict[bytes, bytes] = field(default_factory=dict)
    encoding: Any = None

    def opened(self) -> tuple[bytes, ...] | None:
        """Whose sum the coordinator can compute by now: of every member there are enough shares."""
        if not self.revealed:
            return None
        (alive,) = {*self.revealed.values()}
        needed = self.core.transcript().threshold
        for member in self.core.members:
            if sum(giver != member for giver in self.revealed) < needed:
                return None
        return alive

    def asked(self) -> AskedSum:
        """Its sum, as leaves name one that was asked for."""
        clients = [one.hex() for one in self.alive]
        return AskedSum(group=0, rid=self.core.rid.hex(), clients=clients)

    def receipt(self, one: bytes, origin: str) -> Receipt:
        """What a client signed of its vector, for the log ``origin``."""
        return Receipt(
            origin=origin,
            client=one.hex(),
            sid=self.core._p.sid.hex(),
            seq=self.seq,
            rid=self.core.rid.hex(),
            root=self.core.vectors_signed[one][0].hex(),
            round=self.instruction.round,
            attempt=self.instruction.attempt,
        )
