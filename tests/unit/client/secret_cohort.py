"""An honest coordinator and its clients' sessions, for tests that make it dishonest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import PrivacyError
from protocol.exchange import Contribution, Phase
from protocol.plan import plan_from
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.coordinator import Attempt, Parameters
from protocol.secagg.messages import split_unmask
from protocol.secagg.primitives import client_id
from protocol.secagg.session import Session
from protocol.secagg.task import encoding_for, roster_root, terms_for
from protocol.tasks.classification import METRICS
from protocol.transparency.leaves import Abort, AskedSum
from protocol.transparency.receipts import Receipt
from protocol.transparency.shown import place_of
from protocol.wire import Instruction
from tests.unit.client.cohort_log import CohortLog
from tests.unit.client.members import member_in

SIZE, RUN = 20, bytes(range(16))
HONEST = "honest"
DOCUMENT: dict[str, Any] = {
    "name": "t",
    "base": {"fingerprint": "0" * 64},
    "task": {"labels": ["a", "b"]},
    "cohort": {"size": 5, "quorum": 3, "weighting": "uniform"},
}


def adapter_of(number: int) -> str:
    """The digest of the adapter that comes into a round."""
    return f"{number:064x}"


class Coordinator:
    """An honest one, and the clients' sessions; a test changes what it sends."""

    log_key: Ed25519PrivateKey | None = None

    def __init__(
        self, folder: Path, *, run: bytes = RUN, size: int = SIZE, **sections: Any
    ) -> None:
        self.run, self.size = run, size
        names = [f"site-{number}" for number in range(5)]
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        roster = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.plan = plan_from(DOCUMENT | sections, source="test")
        self.members = {
            client_id(roster[name]): member_in(
                folder, name, key, roster=roster, plan=self.plan, size=size, first=adapter_of(1)
            )
            for name, key in keys.items()
        }
        self.ids = sorted(self.members)
        self.sessions: dict[bytes, Session | None] = dict.fromkeys(self.ids)
        self.roster = roster
        self.updates = {
            one: np.random.default_rng(number).normal(0, 0.1, size).astype(np.float32)
            for number, one in enumerate(self.ids)
        }
        self.trained = 0
        self.keys = Keys(self.plan.secrecy.keys)
        self.early: dict[bytes, bytes] = {}
        self.instruction = Instruction(
            round=1,
            attempt=1,
            plan_digest=self.plan.digest,
            base="0" * 64,
            adapter_digest=adapter_of(1),
            evaluate=False,
        )
        self.sid = session_id(self.plan.digest, self.run)
        self.log = CohortLog(place_of(self.plan, self.run).origin, key=self.log_key)
        self.log.add_adapter(0, adapter_of(1))
        self.given: list[Receipt] = []
        self.asked: list[tuple[int, int, AskedSum]] = []  # seq and round, until the log has it
        self.begin(1)

    def at_round(self, number: int) -> None:
        """Go on with another round, from the adapter of the one before."""
        self.instruction = replace(
            self.instruction, round=number, adapter_digest=adapter_of(number)
        )

    def begin(self, seq: int) -> None:
        for receipt in self.given:
            self.log.add_vector(receipt)
        self.given, self.seq = [], seq
        bits = encoding_for(self.plan, self.instruction, size=self.size, clients=5).bits
        self.core = Attempt(
            Parameters(
                sid=self.sid,
                seq=seq,
                roster={one: m.roster[m.name] for one, m in self.members.items()},
                minimum=3,
                bits=bits,
                keys=self.keys,
            )
        )
        self.first = self.run + seq.to_bytes(8, "big")

    def receipt(self, one: bytes) -> Receipt:
        return Receipt(
            origin=self.log.origin,
            client=one.hex(),
            sid=self.sid.hex(),
            seq=self.seq,
            rid=self.core.rid.hex(),
            root=self.core.vectors_signed[one][0].hex(),
            round=self.instruction.round,
            attempt=self.instruction.attempt,
        )

    def log_text(self, one: bytes, phase: Phase) -> str | None:
        """What an honest coordinator says of the log with this phase's message."""
        if phase is Phase.SHARE:
            self.log_outcomes()
            told = self.members[one].receipts.told(self.sid)
            return self.log.shown(one, told).encode()
        if phase is Phase.AGREE and one in self.core.vectors_signed:
            self.given.append(self.receipt(one))
            return self.log.given(self.receipt(one)).encode()
        return None

    def log_outcomes(self) -> None:
        """What became of the attempts before: sums of a round that is over, or asked for in vain."""
        asked, self.asked = self.asked, []
        sums = []
        for seq, number, each in asked:
            if seq == self.seq:
                self.asked.append((seq, number, each))
            elif number == self.instruction.round:
                leaf = Abort(seq=seq, group=None, round=number, attempt=1, revealed=[each])
                self.log.add(self.log.statement(leaf))
            else:
                sums.append(each.rid)
        last = self.log.adapter
        assert last is not None
        start = (self.instruction.round - 1, self.instruction.adapter_digest)
        if sums or (last.round, last.adapter_out) != start:
            self.log.add_adapter(*start, sums)

    def contribution(self, one: bytes) -> Contribution:
        """What the client's training gives."""
        self.trained += 1
        metrics = dict.fromkeys(METRICS, 2.0)
        return Contribution(update=self.updates[one], weight=1, metrics=metrics)

    def ask(
        self, one: bytes, phase: Phase, request: bytes, *, text: str | None = HONEST, **changes: Any
    ) -> bytes:
        instruction = replace(self.instruction, **changes)
        if phase is Phase.UNMASK and self.core.alive:  # what a coordinator's log would say of it
            each = AskedSum(
                group=0, rid=self.core.rid.hex(), clients=[who.hex() for who in self.core.alive]
            )
            if all(each.rid != before.rid for *_, before in self.asked):
                self.asked.append((self.seq, instruction.round, each))
        self.sessions[one], reply = self.members[one].answer(
            phase,
            request,
            instruction,
            self.sessions[one],
            lambda: self.contribution(one),
            self.log_text(one, phase) if text == HONEST else text,
        )
        return reply

    def advertise(self) -> bytes:
        for one in self.ids:
            self.core.receive_advert(one, self.ask(one, Phase.ADVERTISE, self.first))
        return self.core.close_adverts(self.ids)

    def share(self) -> dict[bytes, bytes]:
        cohort = self.advertise()
        for one in self.ids:
            self.core.receive_shares(one, self.ask(one, Phase.SHARE, cohort))
        return self.boxes()

    def boxes(self) -> dict[bytes, bytes]:
        members = len(self.core.fix_members())
        self.encoding = encoding_for(self.plan, self.instruction, size=self.size, clients=members)
        terms = terms_for(self.plan, self.instruction, self.encoding, roster_root(self.roster))
        return self.core.close_shares(terms, count=self.encoding.count)

    def rounds_until_refused(self, why: str) -> int:
        for number in range(1, 100):
            self.at_round(number)
            self.begin(number)
            try:
                self.whole()
            except PrivacyError as error:
                if why in error.cause:
                    return number - 1
                raise
        raise AssertionError("never refused")

    def whole(self) -> tuple[Any, dict[str, float]]:
        return self.finish(self.share())

    def finish(self, boxes: dict[bytes, bytes]) -> tuple[Any, dict[str, float]]:
        for one, box in boxes.items():
            self.core.receive_masked(one, self.ask(one, Phase.MASK, box))
        alive = self.core.close_masked()
        for one in self.ids:
            self.core.receive_alive(one, self.ask(one, Phase.AGREE, alive))
        signatures = self.core.close_alive()
        for one in self.ids:
            advert, shares = split_unmask(self.ask(one, Phase.UNMASK, signatures), self.keys)
            self.core.receive_unmask(one, shares)
            self.early[one] = advert
        return self.encoding.opened(self.core.unmask(), 5)
