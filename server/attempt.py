"""One attempt at one round: ask, collect, aggregate, write down. (P-4.2 to P-4.7)

What decides lies in :mod:`server.rounds`; here are messages, files and the clock. An update is on
disk before it is counted. Memory does not grow with the cohort.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from protocol import wire
from protocol.errors import ArtefactError, PrivacyError, RoundError, UpdateError
from protocol.exchange import Aggregate, Phase
from protocol.privacy.ledger import Entry
from protocol.privacy.record import privacy_record
from protocol.step.state import State, apply_mean
from server.asking import Missing, ask
from server.budget import entry_for, exhausted
from server.owing import Debt
from server.publishing import Published, spent_leaf
from server.roster import DETAIL, Roster
from server.rounds import (
    Collecting,
    Complete,
    Failed,
    Reason,
    draw_cohort,
    draw_poisson,
    naming,
)
from server.setting import Setting
from server.store import Record

NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((?P<size>0|[1-9][0-9]{0,18}),\), \} *\n",
    re.DOTALL,
)
NPY_ALIGNED = 64  # bytes: what follows a header begins there


class Attempt:
    """One attempt at one round."""

    def __init__(
        self, setting: Setting, number: int, attempt: int, state: State, digest: str, roster: Roster
    ) -> None:
        """Open the attempt, or take up the one that was open when the coordinator stopped.

        Raises RoundError when fewer clients are there than the quorum asks for.
        """
        self._setting, self._number, self._attempt = setting, number, attempt
        self._state, self._digest, self._roster = state, digest, roster
        self._plan, self._store = setting.plan, setting.store
        self._turn = setting.plan.turn(number)
        self._parts = setting.recipe.parts(number)
        # Drawing again after an empty sample would be no Poisson sampling: that round is noise.
        self._central = self._plan.privacy.mechanism == "central"
        opened = self._store.opened(number)
        if opened is None or opened["attempt"] != attempt or opened["adapter_in"] != digest:
            opened = self._open()
        self._number_of_sum = int(opened["sequence"])
        self._started_at = float(opened["started_at"])
        self._begun = setting.clock.now()
        self._collecting = Collecting(
            opened["cohort"], quorum=0 if self._central else self._plan.cohort.quorum
        )
        self._layout = setting.layout.only(self._parts)
        self._exchange = setting.exchange(self._layout.size)
        self._replies = setting.store.replies(number)
        self._bytes_up = 0
        if self._central:
            self._verify_room()

    def _open(self) -> Record:
        names, quorum = list(self._roster.nodes), self._plan.cohort.quorum
        if len(names) < quorum:  # training would be for nothing
            raise RoundError(
                f"round {self._number}: {len(names)} clients are there, the quorum is {quorum}"
                + naming(self._absent()),
                "connect more clients, then resume the run",
            )
        if self._plan.private:
            names = self._affordable(names)
        cohort = self._draw(names)
        if self._central:
            sampling = self._plan.privacy.sampling
            cohort = draw_poisson(names, sampling=sampling, random=self._setting.random)
        opened: Record = {
            "attempt": self._attempt,
            "cohort": list(cohort),
            "adapter_in": self._digest,
            "started_at": self._setting.clock.now(),
            "sequence": self._store.next_number(self._number, self._attempt).seq
            if self._central
            else 0,
        }
        self._store.open_attempt(self._number, opened)
        return opened

    def _draw(self, names: list[str]) -> tuple[str, ...]:
        setting = self._setting
        busy = setting.owing.busy(setting.grid, self._roster.nodes, setting.clock.now())
        idle = [name for name in names if name not in busy]
        if len(idle) < self._plan.cohort.quorum:
            idle = names
        draw = partial(
            draw_cohort,
            seed=self._plan.seed,
            round_number=self._turn,
            attempt=self._attempt,
        )
        size, first = self._plan.cohort.asked, tuple[str, ...]()
        if self._plan.cohort.late_rounds:  # who has trained already is in the next sum (P-4.14)
            first = draw([name for name in idle if name in setting.owing.through], size=size)
            setting.owing.through.difference_update(first)
        rest = [name for name in idle if name not in first]
        return tuple(sorted(first + draw(rest, size=size - len(first))))

    def _absent(self) -> dict[str, str]:
        """Who is enrolled and not there, or is there and was kept out; and why."""
        named = [name for name in self._setting.roster_keys if self._plan.cohort.takes(name)]
        absent = dict.fromkeys(named, "not connected")
        said = absent | dict(self._roster.kept_out)
        return {name: why for name, why in said.items() if name not in self._roster.nodes}

    def _affordable(self, names: list[str]) -> list[str]:
        """Who may take part once more. Raises PrivacyError when too few are left for a round."""
        size = self._setting.layout.only(self._parts).size
        spent = exhausted(self._plan, self._store.ledger.tally, names, size)
        self._roster = replace(self._roster, kept_out=self._roster.kept_out | spent)
        left = [name for name in names if name not in spent]
        if len(left) < self._plan.cohort.quorum:
            first = sorted(spent)[0]
            raise PrivacyError(
                f"round {self._number}: the privacy budget allows no more: {spent[first]}",
                f"the adapter of round {self._number - 1} stands; a new budget is a new plan",
            )
        return left

    def _spend(
        self, participants: Iterable[str], *, run: str = "", sequence: int = 0, group: int = 0
    ) -> None:
        """Into the ledger, before the sum can be known."""
        if self._plan.private:
            entry = self._entry(participants, run=run, sequence=sequence, group=group)
            self._store.ledger.spend(entry)

    def _entry(
        self, participants: Iterable[str], *, run: str = "", sequence: int = 0, group: int = 0
    ) -> Entry:
        return entry_for(
            self._plan,
            digest=self._setting.plan_digest,
            run=run,
            sequence=sequence,
            group=group,
            number=self._number,
            attempt=self._attempt,
            participants=participants,
            size=self._layout.size,
        )

    def _verify_room(self) -> None:
        """A leaf has room for what a sum of all who were drawn spends. Raises PrivacyError, in time.

        The sample stands, also for who resumes: another in its place would be another sampling.
        """
        entry = self._entry(self._collecting.expected, sequence=self._number_of_sum)
        try:
            spent_leaf(self._setting.log, entry)
        except ValueError:
            raise PrivacyError(
                f"round {self._number}: one leaf of the run's log has no room for the names of the "
                f"{len(entry.participants)} clients that were drawn",
                f"the adapter of round {self._number - 1} stands; in a new plan take a smaller "
                "privacy.sampling, or enrol clients under shorter names",
            ) from None

    # -- collecting -------------------------------------------------------------------------------

    def collect(self) -> Complete | Failed:
        """Ask everybody who has not answered yet; count what comes until all have or time is up."""
        self._count_kept()
        for client in self._collecting.waiting:
            if client not in self._roster.nodes:
                self._drop(
                    client, Reason.NO_REPLY, self._roster.kept_out.get(client, "not connected")
                )
        awaited = self._plan.cohort.awaited(expected := len(self._collecting.expected), expected)
        waiting = self._collecting.waiting if self._collecting.accepted < awaited else ()
        unasked = frozenset(self._collecting.waiting) - {*waiting}
        content = self._content()
        missing = ask(
            self._setting.grid,
            self._setting.clock,
            [(client, content) for client in waiting],
            nodes=self._roster.nodes,
            kind=f"{wire.TRAIN}.{Phase.MASK}",
            group=str(self._number),
            since=self._begun,
            seconds=self._plan.cohort.deadline_s,
            take=self._take,
            unsent=lambda client: self._drop(
                client, Reason.NO_REPLY, "the request could not be sent"
            ),
            enough=lambda: self._collecting.accepted >= awaited,
        )
        self._owe(missing)
        return self._collecting.close(
            late=missing.late, unawaited=unasked | missing.unawaited.keys()
        )

    def _owe(self, missing: Missing) -> None:
        for client, message in missing.unawaited.items():
            debt = Debt(self._roster.nodes[client], message, missing.deadline)
            self._setting.owing.add(client, debt)

    def _count_kept(self) -> None:
        """What the coordinator had received when it stopped: a sum, and updates since."""
        if (kept := self._replies.kept_sum()) is not None:
            summed = self._exchange.restore(kept)
            self._replies.summed(summed)
            for client in summed:
                self._collecting.accept(client)
            self._bytes_up = self._exchange.message_bytes
        for client in self._collecting.waiting:
            if (message := self._replies.get(client)) is not None:
                self._count(client, message)

    def _content(self) -> RecordDict:
        instruction = ConfigRecord(wire.to_record(self.instruction()))
        return RecordDict({wire.INSTRUCTION: instruction, **self._adapters()})

    def _adapters(self) -> dict[str, ArrayRecord]:
        """What is trained, and where the plan pulls to it what the run goes on from. (P-4.2)"""
        sent = {wire.ADAPTER: ArrayRecord({"adapter": Array(self._setting.sent(self._state))})}
        if (round_0 := self._setting.round_0(self._number)) is not None:
            sent[wire.ROUND_0] = ArrayRecord({"adapter": Array(round_0)})
        return sent

    def instruction(self) -> wire.Instruction:
        """What every client of the attempt is told. (P-4.2)"""
        return wire.Instruction(
            round=self._number,
            attempt=self._attempt,
            plan_digest=self._setting.plan_digest,
            base=self._setting.recipe.manifest.fingerprint,
            adapter_digest=self._digest,
            evaluate=self._evaluates(),
        )

    @property
    def _bytes_down(self) -> int:
        """Of the adapters that a client is sent."""
        return 4 * self._setting.recipe.sent_in(self._number)

    def _evaluates(self) -> bool:
        return self._number % self._plan.evaluation.every == 0 or self._number == self._plan.rounds

    def _take(self, client: str, reply: Message) -> None:
        if reply.has_error():
            self._drop(client, Reason.ERROR, str(reply.error.reason))
            return
        try:
            if (refusal := refusal_in(reply.content)) is not None:
                self._drop(client, Reason.ERROR, f"{refusal.kind}: {refusal.cause}")
                return
            message = masked_bytes(reply.content)
        except (KeyError, ValueError, ArtefactError):
            self._drop(client, Reason.INVALID, "the reply holds no update and no refusal")
            return
        self._replies.put(client, message)
        self._count(client, message)

    def _count(self, client: str, message: bytes | memoryview) -> None:
        try:
            self._exchange.receive(client, message)
        except UpdateError as error:
            self._replies.remove(client)
            self._drop(client, Reason.INVALID, error.cause)
            return
        self._bytes_up = max(self._bytes_up, len(message))
        self._collecting.accept(client)
        if self._replies.full:
            self._replies.keep_sum(self._exchange.state())
        self._tell()

    def _drop(self, client: str, reason: Reason, detail: str) -> None:
        line = " ".join(detail.split())[:DETAIL]
        self._collecting.drop(client, reason, line)
        self._tell()

    def _tell(self) -> None:
        if self._setting.listener:
            done, expected = self._collecting.answered, len(self._collecting.expected)
            self._setting.listener.on_reply(self._number, done, expected)

    @property
    def revealed(self) -> bool:
        """Whether clients were asked to open a sum: they will not open another of this round."""
        return False

    def published(self) -> Published:
        """What auditors get of the attempt: nothing of a plain one."""
        return Published()

    # -- aggregating ------------------------------------------------------------------------------

    def aggregate(self, closed: Complete) -> tuple[State, Aggregate, float]:
        """The next state, the sums of the round, and the norm of the mean update."""
        self._spend(closed.used, sequence=self._number_of_sum)
        aggregate = self._exchange.unmask()
        after = apply_mean(
            self._state,
            aggregate.mean,
            recipe=self._setting.recipe,
            number=self._number,
        )
        return after, aggregate, float(np.linalg.norm(aggregate.mean.astype(np.float64)))

    def record(
        self, closed: Complete | Failed, aggregate: Aggregate | None = None, norm: float = 0.0
    ) -> Record:
        """What happened: who was expected, used, dropped and why; sums, bytes, time.

        As it stands for a failed attempt: the adapter that goes out is the one that came in.
        """
        ended = self._setting.clock.now()
        return {
            "round": self._number,
            "attempt": self._attempt,
            "parts": sorted(self._parts),
            "expected": list(closed.expected),
            "used": list(closed.used),
            "dropped": [
                {"client": d.client, "reason": str(d.reason), "detail": d.detail}
                for d in closed.dropped
            ],
            "kept_out": self._roster.kept_out,
            "quorum": closed.quorum,
            "privacy": privacy_record(self._plan, self._store.ledger.tally)
            if self._plan.private
            else None,
            "exchange": self._plan.secrecy.exchange,
            "secure": self._setting.secure,
            "weight": aggregate.weight if aggregate else 0,
            "metrics": aggregate.metrics if aggregate else {},
            "update_norm": norm,
            "bytes_down_per_client": self._bytes_down,
            "bytes_up_per_client": self._bytes_up,
            "seconds": ended - self._begun,
            "started_at": self._started_at,
            "ended_at": ended,
            "plan_digest": self._setting.plan_digest,
            "base_fingerprint": self._setting.recipe.manifest.fingerprint,
            "adapter_in": self._digest,
            "adapter_out": self._digest,
        }


def refusal_in(content: RecordDict) -> wire.Refusal | None:
    """A client's refusal, where the reply is one. Raises ArtefactError for one of another form."""
    record = content.get(wire.REPLY)
    if not isinstance(record, ConfigRecord):
        return None
    return wire.from_record(wire.Refusal, dict(record))


def masked_bytes(content: RecordDict) -> memoryview:
    """The bytes of a masked contribution, not copied. Raises KeyError or ValueError without any.

    The npy header is a stranger's: it has to be the one that numpy writes for so many bytes, and is neither
    followed nor evaluated (it may name any type and any size).
    """
    record = content[wire.MASKED]
    if not isinstance(record, ArrayRecord):
        raise KeyError(wire.MASKED)
    data = record["masked"].data
    header = NPY_HEADER.match(data)
    if header is None:
        raise ValueError("no npy header of bytes")
    length, start = int.from_bytes(header["length"], "little"), header.end()
    if length + 10 != start or start % NPY_ALIGNED or int(header["size"]) != len(data) - start:
        raise ValueError("not bytes")
    return memoryview(data)[start:]
