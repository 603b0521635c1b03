"""The sum is exact with losses at every phase, and there is none below a threshold."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RoundError
from protocol.secagg import packing, shamir
from protocol.secagg.graph import alive_quorum, threshold
from protocol.secagg.primitives import Suite, add_mask, word_type
from protocol.secagg.ring import Ring

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("size", "lost"),
    [
        (3, {}),
        (10, {"advertise": (0,), "mask": (4,)}),
        (20, {"advertise": (0,), "share": (1,), "mask": (2,), "alive": (3,), "unmask": (4,)}),
        (30, {"mask": (5, 6, 7, 8)}),
        pytest.param(
            100,
            {"share": (0, 50), "mask": (3, 99), "alive": (7,), "unmask": (20, 21)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_sum_is_exact_and_losses_are_named(cohort: Make, size: int, lost: Any) -> None:
    made = cohort(size=size, lost=lost)
    total = made.run()
    assert (total == made.total.astype(np.uint16)).all()
    named = {made.ids.index(i): phase.name.lower() for i, phase in made.attempt.lost.items()}
    assert named == {number: phase for phase, numbers in lost.items() for number in numbers}


@pytest.mark.parametrize(
    ("bits", "suite"), [(20, Suite.CHACHA20), (24, Suite.AES_256_CTR), (32, Suite.CHACHA20)]
)
def test_other_rings_and_the_second_suite(cohort: Make, bits: int, suite: Suite) -> None:
    made = cohort(size=5, bits=bits, suite=suite, lost={"mask": (1,)})
    assert (made.run() == (made.total % 2**bits).astype(word_type(bits))).all()


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "alive", "unmask"])
def test_below_the_threshold_there_is_no_sum(cohort: Make, phase: str) -> None:
    made = cohort(size=6, minimum=4, lost={phase: (0, 1, 2)})
    with pytest.raises(RoundError):
        made.run()


def test_a_wrong_share_is_found_and_its_sender_named(cohort: Make) -> None:
    made = cohort(size=10)
    message = made.agree(made.mask(made.share(made.advertise())))
    receive, liar = made.attempt.receive_unmask, made.ids[0]

    def tampered(client: bytes, reply: bytes) -> None:
        if client == liar:
            reply = reply[:1] + shamir.to_bytes(5) + reply[33:]
        receive(client, reply)

    made.attempt.receive_unmask = tampered
    assert (made.unmask(message) == made.total.astype(np.uint16)).all()
    assert made.attempt.liars == {liar}


@given(st.integers(0, shamir.PRIME - 1), st.integers(1, 9), st.integers(0, 4), st.randoms())
def test_any_threshold_of_shares_gives_the_secret(
    secret: int, needed: int, spare: int, rng: Any
) -> None:
    places = rng.sample(range(1, 200), needed + spare)
    shares = dict(zip(places, shamir.split(secret, places, needed, os.urandom), strict=True))
    chosen = dict(rng.sample(sorted(shares.items()), needed))
    assert shamir.combine(chosen) == secret
    if needed > 1:
        chosen.popitem()
        assert shamir.combine(chosen) != secret


@given(st.integers(8, 32), st.integers(1, 70_000), st.integers(0, 2**32))
@settings(max_examples=40)
def test_packing_is_reversible(bits: int, count: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**bits, count, np.uint64)
    packed = packing.pack(words.astype(word_type(bits)), bits)
    assert len(packed) == packing.packed_size(count, bits)
    assert (packing.unpack(packed, count, bits) == words).all()


@pytest.mark.parametrize("suite", list(Suite))
def test_streams_are_seekable_and_undo_themselves(suite: Suite) -> None:
    words = np.zeros(300_001, np.uint16)
    add_mask(words, bytes(32), sign=1, suite=suite)
    part = np.zeros(1000, np.uint16)
    add_mask(part, bytes(32), sign=1, suite=suite, start=200_007)
    assert (part == words[200_007:201_007]).all()
    add_mask(words, bytes(32), sign=-1, suite=suite)
    assert not words.any()


@given(st.integers(3, 400))
def test_two_views_cannot_both_have_enough(size: int) -> None:
    """Below a third corrupt: no two alive sets get a quorum, no client's secrets get both."""
    corrupt = (size - 1) // 3
    assert 2 * alive_quorum(size) > size + corrupt
    k = size - 1
    assert 2 * threshold(k) > k + (k - 1) // 3


@pytest.mark.parametrize(("size", "bits"), [(1, 16), (1000, 16), (70_000, 20)])
def test_the_mean_comes_back_close_and_counters_exactly(size: int, bits: int) -> None:
    ring = Ring(size=size, clip=1.0, clients=10, bits=bits, rotation=bytes(32), counters=2)
    rng = np.random.default_rng(0)
    total, vectors = np.zeros(ring.count, np.uint64), []
    for number in range(10):
        vector = rng.standard_t(3, size).astype(np.float32)
        vector /= np.linalg.norm(vector)
        vectors.append(vector)
        total += ring.encode(vector, [number, 2**40 - 1], rng)
    mean, sums = ring.decode((total % 2**bits).astype(word_type(bits)), 10)
    expected = np.mean(vectors, axis=0)
    assert np.linalg.norm(mean - expected) <= 2e-3 * max(np.linalg.norm(expected), 0.3)
    assert sums == [45, 10 * (2**40 - 1)]


@settings(max_examples=25)
@given(st.data())
def test_any_losses_that_the_thresholds_allow_leave_the_exact_sum(
    cohort: Make, data: st.DataObject
) -> None:
    """A property: whoever is lost, and whenever, the rest's sum is theirs to the last bit."""
    size = data.draw(st.integers(3, 12), label="clients")
    spare = min(size - 1 - threshold(size - 1), size - alive_quorum(size))
    count = data.draw(st.integers(0, max(0, spare)), label="lost")
    numbers = data.draw(st.permutations(range(size)))[:count]
    phases = [data.draw(st.sampled_from(("share", "mask", "alive", "unmask"))) for _ in numbers]
    lost = {
        phase: tuple(n for n, p in zip(numbers, phases, strict=True) if p == phase)
        for phase in set(phases)
    }
    made = cohort(size=size, lost=lost, minimum=min(3, size - count))
    assert (made.run() == made.total.astype(np.uint16)).all()
