"""What an attempt is about, computed alike by both sides: the ring, the terms, the counters. (P-6.11)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocol.encoding import digest
from protocol.exchange import METRICS
from protocol.plan import Plan
from protocol.secagg.agreement import Keys
from protocol.secagg.primitives import tagged_hash
from protocol.secagg.ring import Ring
from protocol.wire import Instruction, to_record

# A metric travels as an integer: itself times this, rounded, cut to 40 bits.
SCALES = {
    "examples": 1,
    "loss_sum": 2**12,
    "eval_examples": 1,
    "eval_correct": 1,
    "train_seconds": 1000,
}
COUNTER_BITS = 40


def ring_for(plan: Plan, instruction: Instruction, *, size: int, clients: int) -> Ring:
    """The ring of an attempt with ``clients`` members (U2) and updates of ``size`` coordinates.

    The rotation hangs on plan, round and attempt only: asked again after a crash, a client gives the
    same integers, and the run ends with the same adapter.
    """
    numbers = instruction.round.to_bytes(8, "big") + instruction.attempt.to_bytes(8, "big")
    return Ring(
        size=size,
        clip=plan.secrecy.clip,
        clients=clients,
        bits=plan.secrecy.bits,
        rotation=tagged_hash("rotation", bytes.fromhex(instruction.plan_digest) + numbers),
        counters=len(METRICS),
        counter_bits=COUNTER_BITS,
    )


def terms_for(plan: Plan, instruction: Instruction, ring: Ring, roster: bytes) -> dict[str, Any]:
    """Whatever masks are bound to besides the members; floats go in as hexadecimal strings."""
    keys = Keys(plan.secrecy.keys)
    return {
        "instruction": to_record(instruction),
        "suite": plan.secrecy.suite,
        "minimum": plan.cohort.quorum,
        "size": ring.size,
        "bits": ring.bits,
        "levels": ring.levels,
        "clip": float(ring.clip),
        "rotation": ring.rotation.hex(),
        "counters": list(METRICS),
        "roster": roster.hex(),
    } | ({"keys": keys.value} if keys is Keys.HYBRID else {})


def roster_root(roster: Mapping[str, bytes]) -> bytes:
    """The identity of a roster: names with their public keys."""
    lines = "".join(f"{name}\x1f{key.hex()}\n" for name, key in sorted(roster.items()))
    return bytes.fromhex(digest("roster", lines.encode()))


def counters_of(metrics: Mapping[str, float]) -> list[int]:
    """Metrics as integers, in the order of METRICS."""
    top = 2**COUNTER_BITS - 1
    return [min(round(metrics[name] * SCALES[name]), top) for name in METRICS]


def metrics_of(sums: Sequence[int]) -> dict[str, float]:
    """Summed counters as metrics."""
    return {name: value / SCALES[name] for name, value in zip(METRICS, sums, strict=True)}
