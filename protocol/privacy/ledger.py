"""The privacy ledger: one entry per sum that was opened, at the coordinator and at each client. (P-7.5)

An entry is written before the first share that could open its sum is asked for, or given: what is
in doubt counts as spent. Real numbers are ``float.hex`` strings, so that anybody recomputes epsilon
from the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError, PrivacyError
from protocol.plan_sections import Privacy
from protocol.privacy.accounting import Spent, epsilon, sampled_epsilon
from protocol.privacy.distributed import Mechanism
from protocol.start import NOTHING_BEFORE, SpentBefore

MOST_LEDGER = 2**30  # bytes, of whoever writes or reads one


def _is_real(text: str) -> str:
    try:
        number = float.fromhex(text)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf or number.hex() != text:
        raise ValueError("not the hexadecimal form of a real number that is not negative")
    return text


Real = Annotated[str, Field(max_length=40), AfterValidator(_is_real)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Entry(BaseModel):
    """What one sum cost each of its ``participants``; ``rho`` and ``xi`` as in :class:`Spent`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    format: Literal[1] = 1
    plan: str  # digest
    run: str  # session id in hex, empty without secure aggregation
    sequence: Count
    group: Count = 0  # of the attempt's groups; a client does not know its own
    round: Count
    attempt: Count
    participants: list[str]
    mechanism: Literal["distributed", "central"]
    clip: Real
    noise_multiplier: Real
    honest: Count
    grid: Real
    noise: Real
    size: Count
    rho: Real
    xi: Real

    @property
    def spent(self) -> Spent:
        """As numbers."""
        return Spent(rho=float.fromhex(self.rho), xi=float.fromhex(self.xi))

    def same_sum(self, other: Entry) -> bool:
        """Whether both are about one sum: asked again after a crash, it is not spent twice."""
        keys = ("plan", "run", "sequence", "group", "round", "attempt")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


def distributed_numbers(mechanism: Mechanism) -> dict[str, object]:
    """The fields of an entry that hang on the noise."""
    spent = mechanism.spent()
    return {
        "mechanism": "distributed",
        "clip": mechanism.clip.hex(),
        "noise_multiplier": mechanism.multiplier.hex(),
        "honest": mechanism.honest,
        "grid": mechanism.grid.hex(),
        "noise": mechanism.local_noise.hex(),
        "size": mechanism.size,
        "rho": spent.rho.hex(),
        "xi": spent.xi.hex(),
    }


def central_numbers(privacy: Privacy, size: int) -> dict[str, object]:
    """The same for noise that the coordinator adds; rho is that of a sum without sampling."""
    return {
        "mechanism": "central",
        "clip": privacy.clip.hex(),
        "noise_multiplier": privacy.noise_multiplier.hex(),
        "honest": 0,
        "grid": (0.0).hex(),
        "noise": (privacy.clip * privacy.noise_multiplier).hex(),
        "size": size,
        "rho": (1 / (2 * privacy.noise_multiplier**2)).hex(),
        "xi": (0.0).hex(),
    }


def parse_entries(text: str, *, source: str, first: int = 1) -> list[Entry]:
    """A ledger's lines from the ``first`` on, counted from 1. Raises ArtefactError that names the line."""
    entries = []
    for number, line in enumerate(text.splitlines(), start=first):
        try:
            entries.append(json_as(Entry, line))
        except OddError:
            raise ArtefactError(
                f"{source}: line {number} is no ledger entry",
                "restore the ledger; a last line that is cut off was never spent and may be removed",
            ) from None
    return entries


class Tally:
    """What a ledger's entries come to, by client: a ledger grows with every round, its sums do not."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._clients: dict[str, tuple[Spent, int]] = {}
        self.count = 0
        self.last: Entry | None = None
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """One more, behind those that are in it: the order decides the last bits."""
        for name in set(entry.participants):
            spent, sums = self._clients.get(name, (Spent(), 0))
            self._clients[name] = spent + entry.spent, sums + 1
        self.count, self.last = self.count + 1, entry

    def plus(self, other: Tally) -> Tally:
        """Of both ledgers' entries."""
        both = Tally()
        both.count, both.last = self.count + other.count, other.last or self.last
        for name in {*self.clients, *other.clients}:
            spent, sums = self.spent(name) + other.spent(name), self.sums(name) + other.sums(name)
            both._clients[name] = spent, sums
        return both

    @property
    def clients(self) -> AbstractSet[str]:
        """Everybody who took part."""
        return self._clients.keys()

    def spent(self, client: str) -> Spent:
        """What ``client`` has spent."""
        return self._clients.get(client, (Spent(), 0))[0]

    def sums(self, client: str) -> int:
        """In how many sums ``client`` took part."""
        return self._clients.get(client, (Spent(), 0))[1]


def client_epsilon(
    tally: Tally,
    client: str,
    privacy: Privacy,
    before: SpentBefore = NOTHING_BEFORE,
    cost: Spent | None = None,
) -> float:
    """Epsilon that ``client`` has spent, with what counts as spent ``before``, and one more sum of ``cost``.

    Central: of every round, because samples are secret.
    """
    if privacy.mechanism == "central":
        return sampled_epsilon(
            before.sums + tally.count + (cost is not None),
            multiplier=privacy.noise_multiplier,
            sampling=privacy.sampling,
            delta=privacy.delta,
        )
    earlier = Spent(rho=before.rho, xi=before.xi)
    return epsilon(earlier + tally.spent(client) + (cost or Spent()), delta=privacy.delta)


def verify_affordable(
    tally: Tally,
    client: str,
    privacy: Privacy,
    cost: Spent,
    before: SpentBefore = NOTHING_BEFORE,
) -> None:
    """One more sum fits the plan's budget. Raises PrivacyError."""
    after = client_epsilon(tally, client, privacy, before, cost)
    rounds = tally.sums(client)
    if privacy.rounds_per_client and rounds >= privacy.rounds_per_client:
        raise PrivacyError(
            f"{client} took part in {rounds} sums, the plan allows no more",
            "let others take part, or plan another run with a new budget",
        )
    if after > privacy.epsilon:
        raise PrivacyError(
            f"one more sum would bring {client} to epsilon {after:.3f}, the plan's budget is "
            f"{privacy.epsilon:g} at delta {privacy.delta:g}",
            "the adapter of the last round stands; plan fewer rounds or more noise",
        )
