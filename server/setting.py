"""What every attempt of a run shares: the plan, the base, the grid, the folder, the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.serverapp import Grid

from protocol.exchange import CoordinatorExchange
from protocol.exchange.central import CentralCoordinator
from protocol.exchange.plain import PlainCoordinator
from protocol.layout import Layout, Tensors, Vector
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.secagg.primitives import RandomBytes
from protocol.step.state import State
from protocol.transparency.shown import Told
from server.clock import Clock
from server.log import RunLog
from server.owing import Owing
from server.store import Record, RunStore
from server.witnessing import Witness


class Listener(Protocol):
    """Told of progress; must not change anything."""

    def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
        """A client of the round is through, one way or the other."""
        ...

    def on_round(self, record: Record, tensors: Tensors) -> None:
        """A round is published."""
        ...


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The fixed objects of a run; ``plan_digest`` is kept because it costs a hash of the plan.

    Three change: ``adverts`` that came early, by attempt and client, until they are used, what each client
    ``told`` of its memory of the log, and who is ``owing`` an answer to a round that closed without it.
    """

    recipe: Recipe
    plan_digest: str
    grid: Grid
    store: RunStore
    log: RunLog
    clock: Clock
    listener: Listener | None
    roster_keys: Mapping[str, bytes]
    witnesses: Sequence[Witness]
    random: RandomBytes
    adverts: dict[tuple[int, bytes], bytes]
    told: dict[bytes, Told]
    owing: Owing

    @property
    def secure(self) -> bool:
        """Whether the coordinator sees no single update."""
        return self.plan.secrecy.exchange == "secagg"

    @property
    def plan(self) -> Plan:
        """The recipe's."""
        return self.recipe.plan

    @property
    def layout(self) -> Layout:
        """The full adapter's layout."""
        return self.recipe.layout

    def sent(self, state: State) -> Vector:
        """What clients get of the adapter; the rest they have. (P-2.6)"""
        layout = self.recipe.sent_layout
        return layout.flatten({spec.name: state.adapter[spec.name] for spec in layout.specs})

    def round_0(self, number: int) -> Vector | None:
        """What clients of round ``number`` get of the adapter that the run goes on from, if anything. (P-4.2)

        Raises ArtefactError for a damaged folder.
        """
        if not self.recipe.sends_round_0(number):
            return None
        state, _ = self.store.load(0)
        return self.sent(state)

    def exchange(self, size: int) -> CoordinatorExchange:
        """The coordinator's side of one round's exchange of (size,) updates."""
        if self.plan.privacy.mechanism == "central":
            return CentralCoordinator(size, plan=self.plan, random=self.random)
        most = self.plan.cohort.max_weight
        return PlainCoordinator(size, max_weight=most, metrics=self.plan.task.METRICS)
