"""Honest clients with their own files, and a coordinator that sends them whatever a test chooses.

The clients are the product's (:class:`client.secret.Member`); the coordinator has the log's key, the witness
cosigns whatever grows. What it learns is kept: who gave shares for which sum, and what the log told by then.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.secret import Member
from protocol.errors import SecrecyError
from protocol.exchange import Contribution, Phase
from protocol.plan import Plan, plan_from
from protocol.secagg import coordinator as core
from protocol.secagg.contexts import session_id
from protocol.secagg.messages import NO_INDEX, encode_ids, split_unmask
from protocol.secagg.primitives import client_id
from protocol.secagg.session import Session, opening
from protocol.secagg.task import encoding_for, roster_root, terms_for
from protocol.tasks.classification import METRICS
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort, Adapter, Alive
from protocol.transparency.note import KeyType, VerifierKey, cosign
from protocol.transparency.offline import OfflineProof
from protocol.transparency.shown import Told, place_of
from protocol.transparency.witness import witness_key
from protocol.wire import Instruction
from tests.adversaries.attempts import Try
from tests.unit.client.cohort_log import CohortLog
from tests.unit.client.members import member_in

SIZE, RUNS = 12, (bytes(16), bytes([1] * 16))
MODES: dict[str, dict[str, Any]] = {
    "signatures": {},
    "witnessed": {},
    "noisy": {
        "privacy": {
            "mechanism": "distributed",
            "clip": 1.0,
            "noise_multiplier": 8.0,
            "epsilon": 1e6,
        }
    },
}


def adapter_of(name: int) -> str:
    """A digest."""
    return f"{name:064x}"


class World:
    """``count`` clients, each in every roster; a log per run, all by the coordinator's key."""

    def __init__(self, folder: Path, *, mode: str = "signatures", count: int = 7) -> None:
        self.mode, self.folder = mode, folder
        self.log_key, self.witness = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        keys = [Ed25519PrivateKey.generate() for _ in range(count)]
        self.names = [f"site-{number}" for number in range(count)]
        self.roster = {
            name: key.public_key().public_bytes_raw()
            for name, key in zip(self.names, keys, strict=True)
        }
        self.plan = self._plan()
        self.logs = {run: self._log(run) for run in RUNS}
        self.tries: list[Try] = []
        self.refusals: list[str] = []  # codes
        self.sessions: dict[bytes, Session | None] = {}
        self.members: dict[bytes, Member] = {}
        self.shown: list[tuple[bytes, bytes, int]] = []  # client, run, size that it accepted
        for name, key in zip(self.names, keys, strict=True):
            one = client_id(self.roster[name])
            self.sessions[one] = None
            self.members[one] = member_in(
                folder,
                name,
                key,
                roster=self.roster,
                plan=self.plan,
                size=SIZE,
                first=adapter_of(0),
            )
        self.ids = sorted(self.members)
        self.updates = {
            one: np.random.default_rng(number).normal(0, 0.1, SIZE).astype(np.float32)
            for number, one in enumerate(self.ids)
        }
        self.trained = 0

    def _plan(self) -> Plan:
        audit: dict[str, Any] = {}
        if self.mode == "witnessed":
            public = self.log_key.public_key().public_bytes_raw()
            log = VerifierKey(name="log.example", type=KeyType.ED25519, public=public)
            audit = {
                "log": log.encode(),
                "witnesses": [witness_key("w.example", self.witness).encode()],
                "witness_quorum": 1,
            }
        document = {
            "name": "t",
            "rounds": 6,
            "base": {"fingerprint": "0" * 64},
            "task": {"labels": ["a", "b"]},
            "cohort": {"size": len(self.names), "quorum": 3, "attempts": 2},
            "audit": audit,
        }
        return plan_from(document | MODES[self.mode], source="test")

    def _log(self, run: bytes) -> CohortLog:
        log = CohortLog(place_of(self.plan, run).origin, key=self.log_key)
        log.add_adapter(0, adapter_of(0))
        return log

    # -- what the coordinator does ------------------------------------------------------------------

    def begin(self, *, seq: int, run: bytes = RUNS[0], **changes: Any) -> Try:
        """An attempt that nobody has heard of yet."""
        fields = {
            "round": 1,
            "attempt": 1,
            "plan_digest": self.plan.digest,
            "base": "0" * 64,
            "adapter_digest": adapter_of(0),
            "evaluate": False,
        }
        instruction = Instruction(**(fields | changes))
        bits = encoding_for(self.plan, instruction, size=SIZE, clients=len(self.ids)).bits
        parameters = core.Parameters(
            sid=session_id(self.plan.digest, run),
            seq=seq,
            roster={client_id(key): key for key in self.roster.values()},
            minimum=3,
            bits=bits,
        )
        made = Try(run=run, instruction=instruction, core=core.Attempt(parameters), seq=seq)
        self.tries.append(made)
        return made

    def ask(
        self,
        made: Try,
        one: bytes,
        phase: Phase,
        request: bytes,
        *,
        text: str | None = None,
        killed: bool = False,
        **changes: Any,
    ) -> bytes | None:
        """A client's reply; None when it refuses, or is ``killed`` before its reply and its session are out."""

        def contribute() -> Contribution:
            self.trained += 1  # no two trainings are alike, as on engines that add in any order
            update = self.updates[one] * np.float32(1 + self.trained / 2**16)
            return Contribution(update=update, weight=1, metrics=dict.fromkeys(METRICS, 0.0))

        instruction = replace(made.instruction, **changes)
        try:
            after, reply = self.members[one].answer(
                phase, request, instruction, self.sessions[one], contribute, text
            )
        except SecrecyError as error:
            self.refusals.append(error.code)
            return None
        if killed:
            return None
        self.sessions[one] = after
        return reply

    def advertise(self, made: Try, asked: list[bytes]) -> None:
        for one in asked:
            reply = self.ask(made, one, Phase.ADVERTISE, opening(made.run, made.seq))
            if reply is not None:
                made.core.receive_advert(one, reply)
        made.alive_index = NO_INDEX
        if self.mode == "witnessed":
            made.alive_index = len(self.logs[made.run].entries)
        there = [one for one in asked if made.core.has_advert(one)]
        made.cohort = made.core.close_adverts(there, alive_index=made.alive_index)
        made.stage = Phase.ADVERTISE

    def share(self, made: Try, **changes: Any) -> None:
        log = self.logs[made.run]
        for one in self._there(made):
            told = self.members[one].receipts.told(session_id(self.plan.digest, made.run))
            text = log.shown(one, Told(size=told.size, open=told.open)).encode()
            reply = self.ask(made, one, Phase.SHARE, made.cohort, text=text, **changes)
            if reply is not None:
                self.shown.append((one, made.run, len(log.entries)))
                self.verify_told(one, made.run)
                made.core.receive_shares(one, reply)
        members = len(made.core.fix_members())
        made.encoding = encoding_for(self.plan, made.instruction, size=SIZE, clients=members)
        terms = terms_for(self.plan, made.instruction, made.encoding, roster_root(self.roster))
        made.boxes = dict(made.core.close_shares(terms, count=made.encoding.count))
        made.stage = Phase.SHARE

    def mask(self, made: Try, *, without: frozenset[bytes] = frozenset(), **changes: Any) -> None:
        for one, box in made.boxes.items():
            reply = self.ask(made, one, Phase.MASK, box, **changes)
            if reply is not None and one not in without:
                made.core.receive_masked(one, reply)
                made.masked[one] = self._kept(one)
        made.core.close_masked()
        made.alive = made.core.alive
        made.stage = Phase.MASK

    def agree(self, made: Try, **changes: Any) -> None:
        """By signatures, or by the leaf at its place."""
        if self.mode == "witnessed":
            self._log_alive(made)
        else:
            for one in made.alive:
                text = self._receipt(made, one)
                reply = self.ask(
                    made, one, Phase.AGREE, encode_ids(made.alive), text=text, **changes
                )
                if reply is not None:
                    made.core.receive_alive(one, reply)
            made.cohort = made.core.close_alive()
        made.stage = Phase.AGREE

    def unmask(
        self,
        made: Try,
        *,
        killed: frozenset[bytes] = frozenset(),
        without: frozenset[bytes] = frozenset(),
        **changes: Any,
    ) -> None:
        """``without``: who is not asked for its shares."""
        request, text = made.cohort, None
        for one in sorted({*made.alive} - without):
            if self.mode == "witnessed":
                text = self._receipt(made, one)
            reply = self.ask(
                made, one, Phase.UNMASK, request, text=text, killed=one in killed, **changes
            )
            if reply is not None:
                made.revealed[one] = made.alive
                _, shares = split_unmask(reply, made.core._p.keys)
                made.core.receive_unmask(one, shares)
        made.stage = Phase.UNMASK

    def whole(self, made: Try, *, without: frozenset[bytes] = frozenset()) -> np.ndarray | None:
        """All phases; the sum of whoever masked, where the clients open it."""
        self.advertise(made, self.ids)
        self.share(made)
        self.mask(made, without=without)
        self.agree(made)
        self.unmask(made)
        mean, _ = made.encoding.opened(made.core.unmask(), len(made.alive))
        return mean * len(made.alive)  # type: ignore[no-any-return]

    def _kept(self, one: bytes) -> bytes:
        """What the client has masked last."""
        rule = self.members[one].kept
        kept = None if rule is None else rule.store.load()
        assert kept is not None
        return kept.contribution.update.tobytes()

    def forget(self, one: bytes) -> None:
        """The client's Flower state is new; its own files stay."""
        self.sessions[one] = None

    # -- the log ------------------------------------------------------------------------------------

    def log_vectors(self, made: Try) -> None:
        for one in made.core.vectors_signed:
            self.logs[made.run].add_vector(made.receipt(one, self.logs[made.run].origin))

    def log_sum(self, made: Try, number: int, digest: str) -> None:
        self.log_vectors(made)
        self.logs[made.run].add_adapter(number, digest, [made.core.rid.hex()])

    def log_abort(self, made: Try, *, revealed: bool) -> None:
        log = self.logs[made.run]
        leaf = Abort(
            seq=made.seq,
            group=None,
            round=made.instruction.round,
            attempt=made.instruction.attempt,
            revealed=[made.asked()] if revealed else [],
        )
        log.add(log.statement(leaf))

    def _log_alive(self, made: Try) -> None:
        log = self.logs[made.run]
        leaf = Alive(
            seq=made.seq,
            group=0,
            rid=made.core.rid.hex(),
            clients=[one.hex() for one in made.alive],
            signatures={},
        )
        at = len(log.entries)
        log.add(log.statement(leaf))
        text = log.note.partition("\n\n")[0] + "\n"
        note = log.note + cosign(text, "w.example", self.witness, time=1)
        made.cohort = (
            OfflineProof(
                index=at, path=tuple(log.tree.inclusion(at)), checkpoint=note, extra=log.entries[at]
            )
            .encode()
            .encode()
        )
        made.core.agreed_by_log()

    def _receipt(self, made: Try, one: bytes) -> str:
        return self.logs[made.run].given(made.receipt(one, self.logs[made.run].origin)).encode()

    def _there(self, made: Try) -> list[bytes]:
        return [one for one in self.ids if made.core.has_advert(one)]

    # -- what must hold -----------------------------------------------------------------------------

    def verify_sums(self) -> None:
        """No two opened sums of one incoming adapter differ by fewer than the least sum, nor by what one gave."""
        opened = [(made, alive) for made in self.tries if (alive := made.opened()) is not None]
        for (one, first), (other, second) in combinations(opened, 2):
            if one.instruction.adapter_digest != other.instruction.adapter_digest:
                continue
            apart = {*first} ^ {*second}
            assert not apart or len(apart) >= self.plan.least_sum, (one.seq, other.seq)
            assert apart or one.run == other.run, (one.seq, other.seq)
            if not apart and one.instruction == other.instruction:
                for client in first:
                    assert one.masked[client] == other.masked[client], (one.seq, other.seq)

    def verify_told(self, one: bytes, run: bytes) -> None:
        """Every sum that a client gave shares for is in the log that it has just accepted."""
        leaves = [decode_leaf(data).leaf for data in self.logs[run].entries]
        told = {each.rid for leaf in leaves if isinstance(leaf, Adapter) for each in leaf.sums}
        told |= {
            each.rid
            for leaf in leaves
            if isinstance(leaf, Abort)
            for each in leaf.revealed
            if one.hex() in each.clients
        }
        for made in self.tries:
            if made.run == run and one in made.revealed:
                assert made.core.rid.hex() in told, made.seq
