"""The plain exchange: the coordinator sees every update. INSECURE; for simulation and research.

A message is a header and a little-endian float32 vector (P-3.2). The coordinator adds in fixed
point: every coordinate is rounded to 2^-32 and summed as an integer times the client's weight, so
the sum is exact and the same for every order of arrival (P-3.3).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from protocol.errors import RoundError, UpdateError
from protocol.exchange import Aggregate, Contribution, Phase
from protocol.layout import Vector

MAGIC = b"fedgeP1\x00"
HEADER = struct.Struct("<8sII5d")  # magic, d, weight, metrics
FRACTION_BITS = 32
MAX_MAGNITUDE = 64.0  # of one coordinate of an update
PIECE = 2**15  # coordinates added at a time: the scratch stays in a core's cache
# The last place of a float64 of this size is 2^-32: a coordinate that is added to it is rounded to that, in
# the middle to even; the sum's bits, as an integer, are those of ALIGN and the coordinate in fixed point.
ALIGN = np.float64(1.5 * 2.0 ** (52 - FRACTION_BITS))
MAX_METRIC = 2.0**40  # of one client; their sums stay exact and finite


class PlainClient:
    """The client's side: encode, nothing else."""

    def mask(self, contribution: Contribution) -> bytes:
        """Encode. Raises UpdateError for an update that no coordinator may accept."""
        update = np.ascontiguousarray(contribution.update, dtype="<f4")
        _check_vector("this client", update)
        metrics = contribution.metrics.values()
        return HEADER.pack(MAGIC, len(update), contribution.weight, *metrics) + update.tobytes()


def decode(
    client: str,
    message: bytes | memoryview,
    *,
    size: int,
    max_weight: int,
    metrics: Collection[str],
) -> Contribution:
    """Read one message strictly. Raises UpdateError that names the client and the fault.

    ``max_weight`` is the plan's (``Cohort.max_weight``): no client outweighs what it allows. ``metrics``
    are the names of its task's.
    """
    if len(message) < HEADER.size:
        raise _bad(client, f"message of {len(message)} bytes is shorter than its header")
    magic, length, weight, *values = HEADER.unpack_from(message)
    if magic != MAGIC:
        raise _bad(client, "not a plain-exchange message of version 1")
    if length != size or len(message) != HEADER.size + 4 * size:
        raise _bad(client, f"update has {length} coordinates, the plan says {size}")
    if not 0 < weight <= max_weight:
        raise _bad(client, f"weight {weight} is outside 1..{max_weight}")
    if not all(0 <= value <= MAX_METRIC for value in values):
        raise _bad(client, "a metric is not between 0 and 2^40")
    update = np.frombuffer(message, "<f4", offset=HEADER.size)
    _check_vector(client, update)
    return Contribution(
        update=update, weight=weight, metrics=dict(zip(metrics, values, strict=True))
    )


class PlainCoordinator:
    """The coordinator's side: a running fixed-point sum, O(d) memory whatever the cohort.

    ``size`` is d, ``metrics`` names the task's, ``max_weight`` is the plan's bound on one client's weight:
    as many clients as the cohort has cannot make the sum wrap (2^6 * 2^32 * 2^24 < 2^63).
    """

    name = "plain"
    secure = False
    phases: tuple[Phase, ...] = (Phase.MASK,)

    def __init__(self, size: int, *, max_weight: int, metrics: Collection[str]) -> None:
        self._size, self._max_weight = size, max_weight
        self._sum: npt.NDArray[np.int64] = np.zeros(size, np.int64)
        self._scratch: npt.NDArray[np.float64] = np.empty(min(size, PIECE), np.float64)
        self._weight = 0
        self._metrics = dict.fromkeys(metrics, 0)
        self._clients: set[str] = set()

    def receive(self, client: str, message: bytes | memoryview) -> None:
        """Add one contribution. Raises UpdateError and stays unchanged if it is unusable."""
        if client in self._clients:
            raise _bad(client, "a second update in the same round")
        contribution = decode(
            client,
            message,
            size=self._size,
            max_weight=self._max_weight,
            metrics=self._metrics.keys(),
        )
        update = self._prepared(contribution.update)
        for start in range(0, self._size, PIECE):
            piece = slice(start, start + PIECE)
            self._add(self._sum[piece], update[piece], contribution.weight)
        self._weight += contribution.weight
        for name, value in contribution.metrics.items():
            self._metrics[name] += round(value * 2**FRACTION_BITS)
        self._clients.add(client)

    def _prepared(self, update: Vector) -> Vector:
        """What enters the sum."""
        return update

    def _add(self, total: npt.NDArray[np.int64], update: Vector, weight: int) -> None:
        scratch = self._scratch[: len(update)]
        np.copyto(scratch, update)
        scratch += ALIGN
        bits = scratch.view(np.int64)
        if weight != 1:
            bits *= weight
        total += bits  # both wrap around: what ALIGN has added is taken off all of it at the end

    @property
    def _fixed(self) -> npt.NDArray[np.int64]:
        """The weighted sum of all coordinates in fixed point."""
        added = int(ALIGN.view(np.int64)) * self._weight % 2**64
        return self._sum - np.uint64(added).view(np.int64)

    @property
    def message_bytes(self) -> int:
        """Of a contribution."""
        return HEADER.size + 4 * self._size

    def state(self) -> bytes:
        """The sums so far: a line of JSON, and the coordinates', as they are held, as little-endian int64."""
        line = {
            "clients": sorted(self._clients),
            "weight": self._weight,
            "metrics": self._metrics,
        }
        return json.dumps(line).encode() + b"\n" + self._sum.astype("<i8").tobytes()

    def restore(self, state: bytes) -> tuple[str, ...]:
        """Go on from it. Raises ValueError for that of another exchange."""
        line, _, words = state.partition(b"\n")
        kept = json.loads(line)
        if len(words) != 8 * self._size or set(kept["metrics"]) != set(self._metrics):
            raise ValueError("the sum of another exchange")
        self._sum = np.frombuffer(words, "<i8").astype(np.int64)
        self._weight, self._metrics = int(kept["weight"]), kept["metrics"]
        self._clients = set(kept["clients"])
        return tuple(kept["clients"])

    def unmask(self) -> Aggregate:
        """Mean and sums: one float64 division and one cast to float32 per coordinate."""
        if not self._clients:
            raise RoundError("no usable update arrived", "check the clients, then resume the run")
        mean = self._fixed.astype(np.float64) / (float(self._weight) * 2.0**FRACTION_BITS)
        return Aggregate(
            mean=mean.astype(np.float32),
            weight=self._weight,
            metrics={name: value / 2**FRACTION_BITS for name, value in self._metrics.items()},
            clients=tuple(sorted(self._clients)),
        )


def _check_vector(client: str, update: npt.NDArray[np.float32]) -> None:
    # numpy's min and max pass NaN on, without a temporary copy.
    low, high = float(update.min(initial=0.0)), float(update.max(initial=0.0))
    if math.isnan(low) or math.isnan(high):
        raise _bad(client, "the update holds NaN")
    peak = max(-low, high)
    if peak >= MAX_MAGNITUDE:
        raise _bad(
            client, f"a coordinate of the update is {peak:g}; the limit is {MAX_MAGNITUDE:g}"
        )


def _bad(client: str, fault: str) -> UpdateError:
    return UpdateError(f"update of {client}: {fault}", "the update is dropped; check that client")
