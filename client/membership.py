"""Who a client is in a run, and what it insists on: by its plan and its memory. (P-6.7, P-6.10, P-7.5)

Nothing here sends or receives: each check raises SecrecyError or PrivacyError before anything is revealed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.budget import verify_budget, verify_limit, verify_own_limit
from client.kept_updates import KeptUpdates
from client.ledger import Account, Ledger
from client.openings import Openings
from client.receipts import Receipts
from protocol.errors import SecrecyError
from protocol.plan import Plan
from protocol.privacy.ledger import Entry, distributed_numbers
from protocol.privacy.planned import mechanism_of
from protocol.secagg import client as core
from protocol.secagg.graph import LEAST_SUMMANDS
from protocol.secagg.openings import verify_beside, verify_opening
from protocol.secagg.primitives import RandomBytes, client_id
from protocol.secagg.session import (
    Session,
)
from protocol.transparency.policy import policy_of
from protocol.wire import Instruction


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Who this client is in a run: its key, the roster it trusts, the plan it agreed to.

    ``size`` is the number of coordinates of this round's update, by the plan; ``limit`` the epsilon
    at delta 1e-6 that this client's data may spend over all runs and plans; ``first`` gives the digest of
    round 0's adapter as the plan makes it. ``kept`` is what it masked last, where it is to outlive what asks.
    """

    name: str
    key: Ed25519PrivateKey
    roster: dict[str, bytes]
    plan: Plan
    size: int
    random: RandomBytes
    ledger: Ledger
    openings: Openings
    receipts: Receipts
    first: Callable[[], str]
    limit: float = math.inf
    kept: KeptUpdates | None = None

    @cached_property
    def plan_digest(self) -> str:
        """Of the plan; once, for it costs a pass over all of it."""
        return self.plan.digest

    @property
    def policy(self) -> core.Policy:
        """What it insists on."""
        cohort = self.plan.cohort
        keys = {client_id(key): key for name, key in self.roster.items() if cohort.takes(name)}
        trust = policy_of(self.plan.audit).render() if self.plan.witnessed else ""
        minimum = max(LEAST_SUMMANDS, self.plan.least_sum)
        return core.Policy(
            roster=keys, minimum=minimum, maximum=self.plan.largest_sum, log_policy=trust
        )

    def verify_attempt(self, instruction: Instruction, sid: bytes, seq: int) -> None:
        """An attempt is of its plan, and one that it may take part in. Raises SecrecyError, PrivacyError."""
        if instruction.plan_digest != self.plan_digest:
            raise SecrecyError(
                "attempt.other-plan",
                f"the coordinator runs plan {instruction.plan_digest[:12]}…, this client has agreed to "
                f"{self.plan_digest[:12]}…",
                "if its owner agrees to that plan too: `fedge client agree`, or name it in the settings",
            )
        for field, number, most in (
            ("round", instruction.round, self.plan.rounds),
            ("attempt", instruction.attempt, self.plan.most_attempts),
            ("number", seq, self.plan.most_numbers),
        ):
            if not 1 <= number <= most:
                raise SecrecyError(f"attempt.{field}", f"{field} {number} of {most}", core.STOP)
        self.verify_opening(instruction, sid)
        self.verify_budget()

    def verify_opening(
        self, instruction: Instruction, sid: bytes, alive: bytes | None = None
    ) -> None:
        """A sum (of the clients with digest ``alive``) is near no other that it helped to open. (P-6.10)"""
        adapter, plan = instruction.adapter_digest, self.plan_digest
        same = self.openings.of_adapter(adapter)
        # Of a plan's openings all are of one run, and the last is of the latest round.
        before = [*self.openings.last(plan), *(line.opening for line in same if line.plan == plan)]
        verify_opening(before, sid=sid, instruction=instruction, alive=alive)
        beside = [line for line in same if line.plan != plan]
        # Of two plans that start anew the owner has agreed to a sum of what their seeds give under each.
        if beside and self.plan.start is None and adapter == self.first():
            beside = [line for line in beside if line.start]
        verify_beside([line.opening for line in beside], alive=alive)

    def verify_voids(self, sid: bytes, instruction: Instruction) -> None:
        """No more rounds than planned whose sums this client helped to open and that gave none. (P-6.10)"""
        aborted = self.receipts.in_vain(sid)
        voids = self.openings.rounds_within(self.plan_digest, aborted) - {instruction.round}
        if len(voids) > self.plan.secrecy.voids:
            raise SecrecyError(
                "round.voids",
                f"{len(voids)} rounds whose sums were asked for gave none, the plan allows "
                f"{self.plan.secrecy.voids}",
                "the coordinator may hold these sums; ask its operator",
            )

    def verify_budget(self, account: Account | None = None) -> None:
        """Another sum fits the plan's budget and this client's own, by ``account`` or the ledger's."""
        verify_limit(self.plan, self.limit)
        if not self.plan.private:
            return
        spent = self.ledger.account() if account is None else account
        cost = mechanism_of(self.plan, size=self.size).spent()
        verify_budget(self.plan, self.plan_digest, self.name, cost, spent)
        verify_own_limit(self.limit, cost, spent)

    def spend(self, instruction: Instruction, session: Session) -> None:
        """Checked again and written down before the shares leave: what is in doubt is spent."""
        if not self.plan.private:
            return
        numbers = distributed_numbers(mechanism_of(self.plan, size=self.size))
        entry = Entry.model_validate(
            {
                "plan": self.plan_digest,
                "run": session.sid.hex(),
                "sequence": session.seq,
                "round": instruction.round,
                "attempt": instruction.attempt,
                "participants": [self.name],
                **numbers,
            }
        )
        self.ledger.spend(entry, self.verify_budget)
