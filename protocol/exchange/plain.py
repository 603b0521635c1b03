"""The plain exchange: the coordinator sees every update. INSECURE; for simulation and research.

A message is a header and a little-endian float32 vector (P-3.2). The coordinator adds in fixed
point: every coordinate is rounded to 2^-32 and summed as an integer times the client's weight, so
the sum is exact and the same for every order of arrival (P-3.3).
"""

from __future__ import annotations

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
PIECE = 2**14  # coordinates added at a time: the scratch stays in a core's cache
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
        self._scratch: Vector = np.empty(min(size, PIECE), np.float32)
        self._whole: npt.NDArray[np.int64] = np.empty(min(size, PIECE), np.int64)
        self._weight = 0
        self._metrics = dict.fromkeys(metrics, 0)
        self._clients: list[str] = []

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
        self._clients.append(client)

    def _prepared(self, update: Vector) -> Vector:
        """What enters the sum."""
        return update

    def _add(self, total: npt.NDArray[np.int64], update: Vector, weight: int) -> None:
        scratch = self._scratch[: len(update)]
        # float32 is enough: a power of two scales exactly, and above 2^24 all values are integers.
        np.multiply(update, np.float32(2.0**FRACTION_BITS), out=scratch)
        np.rint(scratch, out=scratch)
        whole = self._whole[: len(update)]
        np.copyto(whole, scratch, casting="unsafe")
        whole *= weight
        total += whole

    def unmask(self) -> Aggregate:
        """Mean and sums: one float64 division and one cast to float32 per coordinate."""
        if not self._clients:
            raise RoundError("no usable update arrived", "check the clients, then resume the run")
        mean = self._sum.astype(np.float64) / (float(self._weight) * 2.0**FRACTION_BITS)
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
