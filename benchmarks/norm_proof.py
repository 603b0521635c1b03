"""What a proof of a bounded norm beside a masked vector would cost: the group operations of it, timed.

    pip install py-arkworks-bls12381==0.5.0
    python benchmarks/norm_proof.py [--coordinates 75000] [--clients 20] [--projections 1000] [--json]

Only costs: nothing here proves anything. The design is that of docs/adr/0026: one Pedersen commitment to the
words of the ring, random projections of them (RiseFL, arXiv 2311.15310), a sigma protocol for the projections, a
range proof for their sizes with its two vectors in clear. Times are CPU seconds of one core; a run on a
busy machine does not change them much.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from protocol.secagg.rotation import Rotation

POINT, SCALAR, RESPONSE = (
    48,
    32,
    26,
)  # bytes; a response hides 16 bits under 128 of challenge and 64 more
RANGE_BITS = 24  # of one projection


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came of it."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


class Group:
    """Points and scalars of BLS12-381 G1, for timing."""

    def __init__(self, most: int) -> None:
        from py_arkworks_bls12381 import G1Point, Scalar

        self.point, self.scalar = G1Point, Scalar
        step = G1Point.hash_to_curve(b"step", b"fedge/cost")
        at, self.points = G1Point(), []
        for _ in range(most):  # distinct ones; real generators are hashed, once
            at = at + step
            self.points.append(at)

    def scalars(self, count: int, bits: int) -> list[Any]:
        """Random ones below 2^bits."""
        return [
            self.scalar.from_le_bytes(random.getrandbits(bits).to_bytes(SCALAR, "little"))
            for _ in range(count)
        ]

    def multiply(self, count: int, bits: int, scalars: list[Any] | None = None) -> float:
        """CPU seconds of one multi-exponentiation, with making its scalars from integers."""
        return timed(
            lambda: self.point.multiexp_unchecked(
                self.points[:count], scalars or self.scalars(count, bits)
            )
        )[0]


def projecting(words: int, projections: int) -> float:
    """``projections`` sums of all words with random signs."""
    vector = np.random.default_rng(0).integers(-3000, 3000, words).astype(np.float64)

    def work() -> None:
        for _ in range(projections):
            signs = np.unpackbits(np.frombuffer(os.urandom(words // 8), np.uint8))
            float(vector @ (2.0 * signs - 1.0))

    return timed(work)[0]


def costs(coordinates: int, clients: int, projections: int) -> dict[str, Any]:
    """Seconds by step, and bytes."""
    words = Rotation(size=coordinates, seed=bytes(32)).padded
    wires = 2 * projections * RANGE_BITS
    group = Group(max(words, wires, clients * projections))
    one = timed(
        lambda: [p * s for p, s in zip(group.points, group.scalars(200, 250), strict=False)]
    )
    exponent = one[0] / 200
    secret = group.scalars(words, 208)
    challenge = group.scalars(1, 128)[0]
    plain = group.scalars(words, 16)
    packed = [point.to_compressed_bytes() for point in group.points[:200]]
    client = {
        "commit": group.multiply(words, 16, plain),
        "project": projecting(words, projections),
        "commit projections": 2 * projections * exponent,
        "sigma protocol": group.multiply(words, 208, secret),
        "responses": timed(lambda: [s + challenge * w for s, w in zip(secret, plain, strict=True)])[
            0
        ],
        "squares": 3 * projections * exponent,
        "range proof": group.multiply(wires, 1) + group.multiply(wires, 250),
        "integers to scalars": timed(lambda: (group.scalars(words, 16), group.scalars(words, 208)))[
            0
        ],
    }
    read = timed(lambda: [group.point.from_compressed_bytes(data) for data in packed])[0] / 200
    verify = {
        "read points": clients * 3 * projections * read,
        "read responses": clients * timed(lambda: group.scalars(words, 208))[0],
        "signs": clients * projecting(words, projections),
        "generators": group.multiply(words, 250) + group.multiply(wires, 250),
        "commitments": 3 * group.multiply(clients * projections, 250),
    }
    hashed = (
        timed(lambda: [group.point.hash_to_curve(b"%d" % n, b"x") for n in range(100)])[0] / 100
    )
    rounds = math.ceil(math.log2(words))
    return {
        "words": words,
        "client_s": client,
        "client_total_s": sum(client.values()),
        "coordinator_s": verify,
        "coordinator_total_s": sum(verify.values()),
        "generators_once_s": (words + wires) * hashed,
        "upload_bytes": words * RESPONSE + wires * SCALAR + 6 * projections * POINT,
        "vector_bytes": 2 * words,
        # Folding instead of sending responses: 2 multi-exponentiations in each of log2(words) steps.
        "client_short_proof_s": sum(client.values()) + 2 * rounds * group.multiply(words, 250),
        "short_proof_bytes": 2 * rounds * POINT + 6 * projections * POINT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--coordinates", type=int, default=75_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--projections", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = costs(arguments.coordinates, arguments.clients, arguments.projections)
    if arguments.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for name, each in lines:
            print(f"{key:22} {name:20} {each:,.2f}")


if __name__ == "__main__":
    main()
