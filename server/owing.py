"""Who still works for a round that closed without it: asked again when it is through. (P-4.5)

A SuperNode works on one message at a time. What a client that trains is asked besides would wait until it
is through, and the phase with it; so it is not drawn while others are enough for a quorum. Its answer, when
it comes, is thrown away; what it trained the client may keep for the next sum (P-4.14). A coordinator that
starts anew does not know whom an earlier one asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from server.asking import slices


@dataclass(frozen=True, slots=True)
class Debt:
    """One answer: the node that was asked, the message, and when it is not expected any more (seconds)."""

    node: int
    message: str
    until: float


@dataclass(slots=True)
class Owing:
    """Answers that nobody waits for, by client."""

    debts: dict[str, Debt] = field(default_factory=dict)
    through: set[str] = field(default_factory=set)  # who has answered, and was not asked again

    def add(self, client: str, debt: Debt) -> None:
        """``client`` was asked, and the round went on without it."""
        self.debts[client] = debt

    def busy(self, grid: Grid, nodes: Mapping[str, int], now: float) -> frozenset[str]:
        """Who has not answered yet. Answers that are there are thrown away.

        Whoever is on another node by now has been started anew, and works on nothing.
        """
        self.debts = {
            client: debt
            for client, debt in self.debts.items()
            if now < debt.until and nodes.get(client) == debt.node
        }
        asked = {debt.message: client for client, debt in self.debts.items()}
        for ids in slices(asked):
            while left := [message for message in ids if message in asked]:
                replies = list(grid.pull_messages(left))
                if not replies:
                    break
                for reply in replies:
                    if client := asked.pop(reply.metadata.reply_to_message_id, ""):
                        del self.debts[client]
                        self.through.add(client)
        return frozenset(self.debts)
