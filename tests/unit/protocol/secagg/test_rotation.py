"""The rotation: short, orthogonal, exact on integers, and flat whatever is rotated. (P-6.9)"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import PlanError
from protocol.privacy.distributed import Mechanism
from protocol.secagg.packing import packed_size
from protocol.secagg.ring import Ring
from protocol.secagg.rotation import BLOCK, CONSTANT, LONGEST, Rotation

SIZES = (100, 386, 1000, 2049, 66_966, 94_614)


def rotation(size: int, seed: int = 0) -> Rotation:
    return Rotation(size=size, seed=seed.to_bytes(32, "big"))


def assert_short(sizes: Any) -> None:
    """Two bytes a number, 3 % and 128 bytes; the counters come on top."""
    for size in sizes:
        turn = rotation(size)
        assert size <= turn.padded <= 1.03 * size + CONSTANT, size
        assert turn.padded // turn.transform % 2 == 1
        ring = Ring(size=size, clip=1.0, clients=10, bits=16, rotation=bytes(32), counters=7)
        counters = 2 * ring.counters * ring.digits
        assert packed_size(ring.count, 16) <= 1.03 * 2 * size + 2 * CONSTANT + counters, size


def test_an_upload_is_within_3_percent_of_two_bytes_a_number() -> None:
    """Around every multiple of a block that could make a jump, too."""
    assert_short(range(1, 5000))
    powers = [2**power for power in range(1, 29)]
    near = {
        p * odd + step
        for p, odd in itertools.product(powers, (1, 3, 31, 33))
        for step in (-1, 0, 1)
    }
    assert_short(sorted(size for size in near if size <= LONGEST))
    assert rotation(66_966).padded == 67_584
    assert rotation(94_614).padded == 96_256


@given(st.integers(1, LONGEST))
def test_whatever_the_size(size: int) -> None:
    assert_short([size])


@pytest.mark.slow
def test_every_size_up_to_a_million() -> None:
    assert_short(range(1, 2**20 + 1))


def test_what_could_not_be_turned_back_exactly_is_refused() -> None:
    with pytest.raises(PlanError, match="268435456 at most"):
        rotation(LONGEST + 1)


@settings(max_examples=60)
@given(st.integers(1, 3000) | st.sampled_from(SIZES), st.integers(0, 2**32))
def test_it_is_orthogonal_and_its_inverse_is_exact(size: int, seed: int) -> None:
    """Integers there and back are h^2 times themselves, on the way as float64 and as int64."""
    turn, rng = rotation(size, seed), np.random.default_rng(seed)
    whole = rng.integers(-1000, 1000, size)
    there = turn.forward(whole.astype(np.float64)) * turn.transform
    assert (there == np.rint(there)).all()
    back = turn.backward(there.astype(np.int64))
    assert back.dtype == np.int64
    assert (back == whole * turn.transform**2).all()
    if whole.any():
        length = float(np.linalg.norm(there)) / turn.transform
        assert length == pytest.approx(float(np.linalg.norm(whole)), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 64, 386, 150_000, 2**20])
def test_the_largest_words_turn_back_without_overflow(size: int) -> None:
    """Words of 2^33 with the signs of one row of the matrix: that coordinate cannot be larger."""
    turn, rng = rotation(size, 5), np.random.default_rng(1)
    for place in {0, size - 1, int(rng.integers(size))}:
        unit = np.zeros(size)
        unit[place] = 1.0
        row = np.rint(turn.forward(unit) * turn.transform).astype(np.int64)
        words = np.where(row < 0, -(2**33), 2**33)
        largest = int(np.abs(row).sum()) * 2**33
        assert turn.backward(words)[place] == largest
        assert largest <= turn.transform * 2**33 * turn.padded**0.5 + 1 < 2**62


def test_the_words_given_are_left_as_they_are() -> None:
    for size in (1, 64, 100, 1300):
        turn = rotation(size)
        words = np.arange(turn.padded)
        turn.backward(words)
        assert (words == np.arange(turn.padded)).all()


def vectors(size: int, rng: np.random.Generator, blocks: int) -> Iterator[tuple[str, Any]]:
    """Dense, heavy-tailed, sparse, and structured as adapters are and as the blocks are."""

    def normal(count: int) -> Any:
        return rng.normal(size=count)

    def at(places: Any, values: Any) -> Any:
        vector = np.zeros(size)
        vector[places] = values
        return vector

    yield "normal", normal(size)
    yield "heavy tails", rng.standard_t(3, size)
    yield "constant", np.ones(size)
    for count in (1, 2, 8, max(1, size // 100)):
        yield f"{count} alone", at(rng.choice(size, count, replace=False), normal(count))
    start = int(rng.integers(size - 63))
    yield "a run", at(slice(start, start + 64), normal(64))
    yield "a head", at(slice(-(size // 20), None), normal(size // 20)) + 0.01 * normal(size)
    rows = np.exp(1.5 * normal(-(-size // 8))).repeat(8)[:size]
    yield "rows of B", normal(size) * rows
    for period in (8, 16, 64, 384, blocks):  # a column of B, a position, a block of the first turn
        places = np.arange(3 % period, size, period)
        yield f"every {period}th", at(places, normal(len(places)))
        yield f"some of every {period}th", at(places[:6], normal(len(places[:6])))


@pytest.mark.parametrize("size", [*SIZES, 300_000])
def test_any_vector_becomes_flat(size: int) -> None:
    """Like Gaussian noise: next to nothing is beyond five deviations, and no energy is lost to a cut there."""
    turn, rng, beyond, lost = rotation(size), np.random.default_rng(size), 0, 0.0
    repeats = max(1, 5000 // size)
    for number in range(repeats):
        turn = rotation(size, number)
        for name, vector in vectors(size, rng, turn.padded // turn.transform):
            flat = turn.forward(vector / np.linalg.norm(vector)) * np.sqrt(turn.padded)
            over = np.abs(flat) - 5
            beyond += int((over > 0).sum())
            energy = float((over[over > 0] ** 2).sum()) / turn.padded
            assert energy < 1e-3, (name, energy)
            assert np.abs(flat).max() < 8, name
            lost += energy
    assert beyond / (repeats * 17 * turn.padded) < 2e-5
    assert lost / (repeats * 17) < 1e-5


@pytest.mark.parametrize("count", [2, 16, 256])
def test_each_block_has_its_share_of_few_coordinates_of_one_block(count: int) -> None:
    """Of 64 blocks, an even number, some would have ten times their share."""
    turn, rng = rotation(2**20), np.random.default_rng(count)
    blocks, vector = turn.padded // turn.transform, np.zeros(2**20)
    vector[: count * blocks : blocks] = rng.normal(size=count)
    energy = (turn.forward(vector).reshape(blocks, -1) ** 2).sum(1)
    assert energy.max() < 1.6 * energy.mean()


@pytest.mark.parametrize("period", [8, 384])
def test_a_column_of_a_large_adapter_comes_back_from_a_sum(period: int) -> None:
    """All of an update in one column of B: whoever deals only once cuts away 2 to 8 % of its energy."""
    size = 1_000_000
    ring = Ring(size=size, clip=1.0, clients=10, bits=16, rotation=bytes(32), counters=1)
    rng, update = np.random.default_rng(0), np.zeros(size, np.float32)
    update[3::period] = rng.normal(size=len(update[3::period]))
    update /= np.linalg.norm(update)
    mean, _ = ring.decode(ring.encode(update, [1], rng), 1)
    assert np.linalg.norm(mean - update) < 0.002


@pytest.mark.parametrize("place", [0, 70, 1299])
def test_under_noise_a_single_coordinate_is_rounded_within_its_bound(place: int) -> None:
    mechanism = Mechanism(
        size=1300, clip=1.0, multiplier=0.05, honest=6, summands=8, rotation=bytes(32)
    )
    update, rng = np.zeros(1300, np.float32), np.random.default_rng(0)
    update[place] = 1.0
    words = sum(mechanism.encode(update, rng, os.urandom).astype(np.int64) for _ in range(8))
    total = (words % 2**mechanism.bits).astype(np.uint32)
    mechanism.verify_sum(total, 8)
    assert mechanism.decode(total, 8)[place] == pytest.approx(1.0, abs=0.05)


def test_no_block_is_longer_than_needed() -> None:
    assert [rotation(size).padded for size in (1, 2, 3, 16, 17, 40, 64)] == [
        1,
        2,
        4,
        16,
        32,
        64,
        64,
    ]
    assert rotation(2**24).transform == BLOCK
