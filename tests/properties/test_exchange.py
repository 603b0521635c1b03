"""Laws of the plain exchange: exact sums, strict messages, refusal without a trace."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RoundError, UpdateError
from protocol.exchange import Contribution
from protocol.exchange.plain import HEADER, PlainClient, PlainCoordinator, decode
from protocol.tasks.classification import METRICS

SIZE, LIMIT = 7, 2**20


def contribution(seed: int, weight: int = 3) -> Contribution:
    rng = np.random.default_rng(seed)
    update = rng.normal(0, 0.1, SIZE).astype(np.float32)
    return Contribution(
        update=update, weight=weight, metrics={m: float(seed % 9) + 0.25 for m in METRICS}
    )


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True), st.randoms())
def test_no_order_of_arrival_changes_a_bit(seeds: list[int], random: object) -> None:
    messages = {str(s): PlainClient().mask(contribution(s, weight=1 + s % 40000)) for s in seeds}
    results = set()
    for order in itertools.islice(itertools.permutations(messages), 6):
        coordinator = PlainCoordinator(SIZE, max_weight=LIMIT, metrics=METRICS)
        for client in order:
            coordinator.receive(client, messages[client])
        aggregate = coordinator.unmask()
        results.add((aggregate.mean.tobytes(), tuple(aggregate.metrics.items()), aggregate.clients))
    assert len(results) == 1


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True))
def test_the_mean_is_the_weighted_mean(seeds: list[int]) -> None:
    coordinator = PlainCoordinator(SIZE, max_weight=LIMIT, metrics=METRICS)
    parts = [contribution(seed, weight=1 + seed % 50) for seed in seeds]
    for seed, part in zip(seeds, parts, strict=True):
        coordinator.receive(str(seed), PlainClient().mask(part))
    aggregate = coordinator.unmask()
    total = sum(part.weight for part in parts)
    expected = sum(part.weight * part.update.astype(np.float64) for part in parts) / total
    assert np.allclose(aggregate.mean, expected, rtol=1e-6, atol=2**-32)
    assert aggregate.weight == total
    assert aggregate.metrics["examples"] == sum(part.metrics["examples"] for part in parts)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 2**24))
def test_decode_inverts_mask(seed: int, weight: int) -> None:
    sent = contribution(seed, weight)
    got = decode("c", PlainClient().mask(sent), size=SIZE, max_weight=2**24, metrics=METRICS)
    assert (got.update == sent.update).all()
    assert got.weight == weight
    assert got.metrics == sent.metrics


GOOD = PlainClient().mask(contribution(1))


def with_update(value: float) -> bytes:
    return GOOD[:-4] + np.array([value], "<f4").tobytes()


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (b"", "shorter"),
        (GOOD[:-1], "coordinates"),
        (GOOD + b"\0", "coordinates"),
        (b"X" + GOOD[1:], "version"),
        (
            HEADER.pack(b"fedgeP1\x00", SIZE, 0, *[0.0] * len(METRICS)) + GOOD[HEADER.size :],
            "weight",
        ),
        (
            HEADER.pack(b"fedgeP1\x00", SIZE, 1, *[math.nan] * len(METRICS)) + GOOD[HEADER.size :],
            "metric",
        ),
        (
            HEADER.pack(b"fedgeP1\x00", SIZE, 1, *[-1.0] * len(METRICS)) + GOOD[HEADER.size :],
            "metric",
        ),
        (
            HEADER.pack(b"fedgeP1\x00", SIZE, 1, *[1e300] * len(METRICS)) + GOOD[HEADER.size :],
            "metric",
        ),
        (
            HEADER.pack(b"fedgeP1\x00", SIZE, LIMIT + 1, *[1.0] * len(METRICS))
            + GOOD[HEADER.size :],
            "weight",
        ),
        (with_update(math.nan), "NaN"),
        (with_update(math.inf), "limit"),
        (with_update(-64.0), "limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_message_is_refused_and_leaves_no_trace(message: bytes, fault: str) -> None:
    coordinator = PlainCoordinator(SIZE, max_weight=LIMIT, metrics=METRICS)
    coordinator.receive("good", GOOD)
    before = coordinator.unmask()
    with pytest.raises(UpdateError, match=fault):
        coordinator.receive("bad", message)
    after = coordinator.unmask()
    assert before.mean.tobytes() == after.mean.tobytes()
    assert before.clients == after.clients == ("good",)


def test_twice_is_refused_and_nothing_is_no_sum() -> None:
    coordinator = PlainCoordinator(SIZE, max_weight=LIMIT, metrics=METRICS)
    with pytest.raises(RoundError):
        coordinator.unmask()
    coordinator.receive("a", GOOD)
    with pytest.raises(UpdateError, match="second"):
        coordinator.receive("a", GOOD)
