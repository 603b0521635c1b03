"""The rounds of a run over any Flower grid: the shell around the pure parts. (P-4)

Order within a round is what makes it resumable: the cohort is on disk before anybody is asked, an
update is on disk before it is counted, and a round is published by one rename.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from protocol import wire
from protocol.adapter import adapter_layout, client_rank
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, RoundError, UpdateError
from protocol.exchange import Aggregate, CoordinatorExchange, Phase
from protocol.exchange.plain import PlainCoordinator, decode
from protocol.layout import Layout, Tensors
from protocol.manifest import Manifest
from protocol.plan import Plan
from protocol.rules import rule_named
from server.aggregation import State, apply_individuals, apply_mean, initial_state
from server.clock import Clock
from server.peft_folder import write_peft_folder
from server.roster import POLL_S, Roster, call_roll
from server.rounds import (
    Collecting,
    Complete,
    Failed,
    Reason,
    accept,
    close,
    draw_cohort,
    drop,
    open_attempt,
)
from server.store import Record, RunStore


class Listener(Protocol):
    """Told of progress; must not change anything."""

    def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
        """A client of the round is through, one way or the other."""
        ...

    def on_round(self, record: Record, tensors: Tensors) -> None:
        """A round is published."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: last round and the digest of its adapter."""

    rounds: int
    adapter_digest: str


def run_rounds(
    *,
    plan: Plan,
    manifest: Manifest,
    grid: Grid,
    store: RunStore,
    clock: Clock,
    listener: Listener | None = None,
) -> Outcome:
    """Run what is left of the plan's rounds; a fresh folder starts with round 0.

    Raises ArtefactError when the folder belongs to another plan or base, RoundError when a round
    failed as often as the plan allows; the last published round then stands.
    """
    return _Run(plan, manifest, grid, store, clock, listener).to_the_end()


class _Run:
    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        grid: Grid,
        store: RunStore,
        clock: Clock,
        listener: Listener | None,
    ) -> None:
        self._plan, self._manifest, self._grid = plan, manifest, grid
        self._store, self._clock, self._listener = store, clock, listener
        self._contract = rule_named(plan.rule.name)
        self._plan_digest = plan.digest

    def to_the_end(self) -> Outcome:
        state, record = self._current()
        if record["round"] < self._plan.rounds:
            roster = call_roll(self._grid, self._clock, base=self._manifest.fingerprint)
            for number in range(record["round"] + 1, self._plan.rounds + 1):
                state, record = self._round(number, state, record["adapter_out"], roster)
                if self._listener:
                    self._listener.on_round(record, state.adapter)
        return Outcome(rounds=self._plan.rounds, adapter_digest=record["adapter_out"])

    def _current(self) -> tuple[State, Record]:
        last = self._store.last_round()
        if last is None:
            state = initial_state(self._plan, self._manifest, self._contract)
            record = self._nothing_happened() | self._identity(0, state)
            self._publish(0, state, record, {})
            return state, record
        state, record = self._store.load(last)
        for key, mine, what in (
            ("plan_digest", self._plan_digest, "plan"),
            ("base_fingerprint", self._manifest.fingerprint, "base"),
        ):
            if record[key] != mine:
                raise ArtefactError(
                    f"{self._store.folder} belongs to another {what} ({record[key][:12]}…)",
                    f"resume with the {what} it was started with, or name another run folder",
                )
        return state, record

    def _round(
        self, number: int, state: State, digest: str, roster: Roster
    ) -> tuple[State, Record]:
        """Attempts at one round until one is complete."""
        failed = self._store.failed_attempts(number)
        while failed < self._plan.cohort.attempts:
            attempt = _Attempt(self, number, failed + 1, state, digest, roster)
            closed = attempt.collect()
            if isinstance(closed, Complete):
                after, aggregate = attempt.aggregate(closed)
                record = attempt.record(closed, aggregate) | self._identity(number, after)
                self._publish(number, after, record, aggregate.metrics)
                return after, record
            failed += 1
            self._store.fail_attempt(number, failed, attempt.record(closed, None))
        raise RoundError(
            f"round {number} missed its quorum of {self._plan.cohort.quorum} in {failed} attempts",
            "look at rounds/*.attempt*.json; mend the clients, remove those files, then resume",
        )

    def _identity(self, number: int, state: State) -> Record:
        layout = self.layout(state.rank)
        return {
            "round": number,
            "rank": state.rank,
            "plan_digest": self._plan_digest,
            "base_fingerprint": self._manifest.fingerprint,
            "adapter_out": vector_digest(layout.flatten(state.adapter)),
        }

    def _nothing_happened(self) -> Record:
        """The record of round 0, with every key that others have."""
        exchange, now = self.exchange(0), self._clock.now()
        empty: Record = {key: [] for key in ("roles", "expected", "used", "dropped")}
        zero = ("attempt", "quorum", "weight", "bytes_down_per_client", "bytes_up_per_client")
        return {
            **empty,
            **dict.fromkeys(zero, 0),
            "kept_out": {},
            "metrics": {},
            "update_norm": 0.0,
            "exchange": exchange.name,
            "secure": exchange.secure,
            "seconds": 0.0,
            "started_at": now,
            "ended_at": now,
            "adapter_in": "",
        }

    def _publish(
        self, number: int, state: State, record: Record, metrics: dict[str, float]
    ) -> None:
        exchange = self.exchange(0)
        self._store.publish(
            number,
            state,
            record,
            lambda folder: write_peft_folder(
                folder,
                state.adapter,
                plan=self._plan,
                manifest=self._manifest,
                rank=state.rank,
                round_number=number,
                adapter_digest=record["adapter_out"],
                exchange=exchange.name,
                secure=exchange.secure,
                metrics=metrics,
            ),
        )

    def layout(self, rank: int) -> Layout:
        return adapter_layout(self._plan, self._manifest, rank=rank)

    def exchange(self, size: int) -> CoordinatorExchange:
        return PlainCoordinator(size)


class _Attempt:
    """One attempt at one round."""

    def __init__(
        self, run: _Run, number: int, attempt: int, state: State, digest: str, roster: Roster
    ) -> None:
        self._run, self._number, self._state, self._digest = run, number, state, digest
        self._roster, self._plan, self._store = roster, run._plan, run._store
        self._roles = run._contract.roles(number)
        self._individual = run._contract.needs == "individual"
        opened = self._store.opened(number)
        if opened is None or opened["attempt"] != attempt or opened["adapter_in"] != digest:
            cohort = draw_cohort(
                list(roster.nodes),
                size=self._plan.cohort.size,
                seed=self._plan.seed,
                round_number=number,
                attempt=attempt,
            )
            opened = {
                "attempt": attempt,
                "cohort": list(cohort),
                "adapter_in": digest,
                "started_at": run._clock.now(),
            }
            self._store.open_attempt(number, opened)
        self._attempt, self._started_at = attempt, float(opened["started_at"])
        self._begun = run._clock.now()
        self._collecting: Collecting = open_attempt(
            tuple(opened["cohort"]), quorum=self._plan.cohort.quorum
        )
        self._layout = run.layout(state.rank).only(self._roles)
        self._exchange = run.exchange(self._layout.size)
        self._bytes_up = 0

    # -- collecting -------------------------------------------------------------------------------

    def collect(self) -> Complete | Failed:
        """Ask everybody who has not answered yet; count what comes until all have or time is up."""
        for client in self._collecting.expected:
            if self._store.has_reply(self._number, client):
                self._count(client, self._store.reply(self._number, client))
            elif client not in self._roster.nodes:
                self._drop(client, Reason.NO_REPLY, "not connected")
        clients = self._ask()
        deadline = self._begun + self._plan.cohort.deadline_s
        late: set[str] = set()
        while clients and self._run._clock.now() < deadline:
            replies = list(self._run._grid.pull_messages(list(clients)))
            for reply in replies:
                if reply.metadata.reply_to_message_id not in clients:
                    continue
                client = clients.pop(reply.metadata.reply_to_message_id)
                if self._run._clock.now() >= deadline:
                    late.add(client)
                else:
                    self._take(client, reply)
            if not replies:
                self._run._clock.sleep(POLL_S)
        if clients:  # one last look: who answers now is late, and is not read
            for reply in self._run._grid.pull_messages(list(clients)):
                late |= {clients[i] for i in [reply.metadata.reply_to_message_id] if i in clients}
        return close(self._collecting, late=frozenset(late))

    def _ask(self) -> dict[str, str]:
        """Push one message per client that is waited for; returns message ids with names."""
        waiting = self._collecting.waiting
        if not waiting:
            return {}
        vector = self._run.layout(self._state.rank).flatten(self._state.adapter)
        instruction = wire.Instruction(
            round=self._number,
            attempt=self._attempt,
            plan_digest=self._run._plan_digest,
            base=self._run._manifest.fingerprint,
            adapter_digest=self._digest,
            rank=self._state.rank,
            evaluate=self._evaluates(),
        )
        content = RecordDict(
            {
                wire.INSTRUCTION: ConfigRecord(wire.to_record(instruction)),
                wire.ADAPTER: ArrayRecord({"adapter": Array(vector)}),
            }
        )
        kind = f"{wire.TRAIN}.{Phase.MASK}"
        nodes = self._roster.nodes
        messages = [
            Message(content, nodes[client], kind, group_id=str(self._number)) for client in waiting
        ]
        return dict(zip(self._run._grid.push_messages(messages), waiting, strict=True))

    def _evaluates(self) -> bool:
        return self._number % self._plan.evaluation.every == 0 or self._number == self._plan.rounds

    def _take(self, client: str, reply: Message) -> None:
        if reply.has_error():
            self._drop(client, Reason.ERROR, str(reply.error.reason)[:500])
            return
        try:
            if wire.REPLY in reply.content.config_records:
                refusal = wire.from_record(
                    wire.Refusal, dict(reply.content.config_records[wire.REPLY])
                )
                self._drop(client, Reason.ERROR, f"{refusal.kind}: {refusal.cause}"[:500])
                return
            array = reply.content.array_records[wire.MASKED]["masked"].numpy()
            if array.dtype != np.uint8 or array.ndim != 1:
                raise ValueError("not bytes")
            message = array.tobytes()
        except (KeyError, ValueError, TypeError, ArtefactError):
            self._drop(client, Reason.INVALID, "the reply holds no update and no refusal")
            return
        self._store.put_reply(self._number, client, message)
        self._count(client, message)

    def _count(self, client: str, message: bytes) -> None:
        try:
            if self._individual:
                decode(client, message, size=self._size(client))  # checked now, read again later
            else:
                self._exchange.receive(client, message)
        except UpdateError as error:
            self._store.remove_reply(self._number, client)
            self._drop(client, Reason.INVALID, error.cause)
            return
        self._bytes_up = max(self._bytes_up, len(message))
        self._collecting = accept(self._collecting, client)
        self._tell()

    def _drop(self, client: str, reason: Reason, detail: str) -> None:
        self._collecting = drop(self._collecting, client, reason, detail)
        self._tell()

    def _tell(self) -> None:
        if self._run._listener:
            expected = len(self._collecting.expected)
            done = expected - len(self._collecting.waiting)
            self._run._listener.on_reply(self._number, done, expected)

    # -- aggregating ------------------------------------------------------------------------------

    def aggregate(self, closed: Complete) -> tuple[State, Aggregate]:
        """The next state and the sums of the round."""
        plan, run = self._plan, self._run
        if not self._individual:
            aggregate = self._exchange.unmask()
            after = apply_mean(
                self._state,
                aggregate.mean,
                plan=plan,
                layout=run.layout(self._state.rank),
                roles=self._roles,
            )
            return after, aggregate
        stored = (
            (client, decode(client, message, size=self._size(client)))
            for client, message in self._store.replies(self._number, closed.used)
        )
        total: dict[str, float] = {}
        weight = 0

        def counted() -> Any:
            nonlocal weight
            for client, contribution in stored:
                weight += contribution.weight
                for name, value in contribution.metrics.items():
                    total[name] = total.get(name, 0.0) + value
                yield client, contribution

        after = apply_individuals(
            self._state,
            counted(),
            plan=plan,
            manifest=run._manifest,
            contract=run._contract,
            round_number=self._number,
        )
        return after, Aggregate(
            mean=np.zeros(0, np.float32), weight=weight, metrics=total, clients=closed.used
        )

    def _size(self, client: str) -> int:
        return self._run.layout(client_rank(self._plan, client)).only(self._roles).size

    def record(self, closed: Complete | Failed, aggregate: Aggregate | None) -> Record:
        """What happened: who was expected, used, dropped and why; sums, bytes, time."""
        run, ended = self._run, self._run._clock.now()
        return {
            "round": self._number,
            "attempt": self._attempt,
            "roles": sorted(self._roles),
            "expected": list(closed.expected),
            "used": list(closed.used),
            "dropped": [
                {"client": d.client, "reason": str(d.reason), "detail": d.detail}
                for d in closed.dropped
            ],
            "kept_out": self._roster.kept_out,
            "quorum": closed.quorum,
            "exchange": self._exchange.name,
            "secure": self._exchange.secure,
            "weight": aggregate.weight if aggregate else 0,
            "metrics": aggregate.metrics if aggregate else {},
            "update_norm": float(np.linalg.norm(aggregate.mean)) if aggregate else 0.0,
            "bytes_down_per_client": 4 * run.layout(self._state.rank).size,
            "bytes_up_per_client": self._bytes_up,
            "seconds": ended - self._begun,
            "started_at": self._started_at,
            "ended_at": ended,
            "plan_digest": run._plan_digest,
            "base_fingerprint": run._manifest.fingerprint,
            "adapter_in": self._digest,
            "rank": self._state.rank,
        }
