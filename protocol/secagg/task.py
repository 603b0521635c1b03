"""What an attempt is about, computed alike by both sides: the ring and the terms. (P-6.11)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from protocol.encoding import digest
from protocol.exchange import Contribution
from protocol.layout import Vector
from protocol.plan import Plan
from protocol.privacy.distributed import Mechanism
from protocol.privacy.planned import mechanism_of
from protocol.secagg.agreement import Keys
from protocol.secagg.counters import COUNTER_BITS, Limits, limits_of
from protocol.secagg.primitives import RandomBytes, Word, tagged_hash
from protocol.secagg.ring import Ring
from protocol.wire import Instruction, to_record


class Encoding(Protocol):
    """How a client's contribution becomes words of a ring, and their sum a mean."""

    @property
    def bits(self) -> int:
        """Of the ring."""
        ...

    @property
    def count(self) -> int:
        """Words of a contribution."""
        ...

    def words(self, given: Contribution, rng: np.random.Generator, random: RandomBytes) -> Word:
        """(count,) words. ``rng`` rounds, ``random`` of the operating system makes noise."""
        ...

    def opened(self, words: Word, summands: int) -> tuple[Vector, dict[str, float]]:
        """The mean update (d,) float32 and the summed metrics of ``summands`` contributions.

        Raises UpdateError for a sum that honest clients cannot have. (P-6.17)
        """
        ...

    def terms(self) -> dict[str, Any]:
        """What a sum of such words is bound to; floats as hexadecimal strings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The update at the ring's precision, counters beside it. (P-6.9)"""

    ring: Ring
    limits: Limits

    @property
    def bits(self) -> int:
        """Of the ring."""
        return self.ring.bits

    @property
    def count(self) -> int:
        """Words of a contribution."""
        return self.ring.count

    def words(self, given: Contribution, rng: np.random.Generator, random: RandomBytes) -> Word:
        """Rotated, rounded, with the counters' digits."""
        counters = self.limits.of_client(given, clipped=self.ring.clips(given.update))
        return self.ring.encode(given.update, counters, rng)

    def opened(self, words: Word, summands: int) -> tuple[Vector, dict[str, float]]:
        """The mean and the summed metrics."""
        self.ring.verify_sum(words, summands)
        mean, sums = self.ring.decode(words, summands)
        self.limits.verify(sums, summands)
        return mean, self.limits.metrics_of(sums)

    def terms(self) -> dict[str, Any]:
        """Levels, clip, rotation, counters."""
        return {
            "size": self.ring.size,
            "bits": self.ring.bits,
            "levels": self.ring.levels,
            "clip": float(self.ring.clip),
            "rotation": self.ring.rotation.hex(),
            "counters": self.limits.names,
        }


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """The clipped update with this client's share of the noise; no metrics: they would leak. (P-7.2)"""

    mechanism: Mechanism

    @property
    def bits(self) -> int:
        """Of the ring."""
        return self.mechanism.bits

    @property
    def count(self) -> int:
        """Words of a contribution."""
        return self.mechanism.turn.padded

    def words(self, given: Contribution, rng: np.random.Generator, random: RandomBytes) -> Word:
        """Clipped, rotated, rounded within its bound, noised."""
        return self.mechanism.encode(given.update, rng, random)

    def opened(self, words: Word, summands: int) -> tuple[Vector, dict[str, float]]:
        """The noisy mean."""
        self.mechanism.verify_sum(words, summands)
        return self.mechanism.decode(words, summands), {}

    def terms(self) -> dict[str, Any]:
        """Clip, noise, grid, rotation."""
        made = self.mechanism
        return {
            "size": made.size,
            "bits": made.bits,
            "clip": float(made.clip),
            "rotation": made.rotation.hex(),
            "privacy": {
                "honest": made.honest,
                "noise_multiplier": float(made.multiplier),
                "grid": made.grid,
                "sigma": str(made.sigma),
                "summands": made.summands,
            },
        }


def encoding_for(plan: Plan, instruction: Instruction, *, size: int, clients: int) -> Exact | Noisy:
    """The encoding of an attempt with ``clients`` members (U2) and updates of ``size`` coordinates.

    The rotation hangs on plan, round and attempt only: asked again after a crash, a client without
    noise gives the same integers, and the run ends with the same adapter.
    """
    numbers = instruction.round.to_bytes(8, "big") + instruction.attempt.to_bytes(8, "big")
    rotation = tagged_hash("rotation", bytes.fromhex(instruction.plan_digest) + numbers)
    if plan.private:
        return Noisy(mechanism=mechanism_of(plan, size=size, rotation=rotation))
    limits = limits_of(plan, instruction)
    ring = Ring(
        size=size,
        clip=plan.secrecy.clip,
        clients=clients,
        bits=plan.secrecy.bits,
        rotation=rotation,
        counters=len(limits.names),
        counter_bits=COUNTER_BITS,
    )
    return Exact(ring=ring, limits=limits)


def terms_for(
    plan: Plan, instruction: Instruction, encoding: Encoding, roster: bytes
) -> dict[str, Any]:
    """Whatever masks are bound to besides the members; floats go in as hexadecimal strings."""
    keys = Keys(plan.secrecy.keys)
    return (
        encoding.terms()
        | {
            "instruction": to_record(instruction),
            "suite": plan.secrecy.suite,
            "minimum": plan.least_sum,
            "roster": roster.hex(),
        }
        | ({"keys": keys.value} if keys is Keys.HYBRID else {})
    )


def roster_root(roster: Mapping[str, bytes]) -> bytes:
    """The identity of a roster: names with their public keys."""
    lines = "".join(f"{name}\x1f{key.hex()}\n" for name, key in sorted(roster.items()))
    return bytes.fromhex(digest("roster", lines.encode()))
