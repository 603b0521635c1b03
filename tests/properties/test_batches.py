"""Laws of batching: every row once per pass, the same by seed, little padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.batches import (
    Encoded,
    by_length,
    collate,
    epoch_batches,
    training_batches,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300).map(
    lambda values: np.array(values, np.int64)
)
sizes = st.integers(1, 33)
seeds = st.integers(0, 2**63 - 1)


@given(lengths, sizes, seeds)
def test_every_row_once_per_epoch(rows: np.ndarray, size: int, seed: int) -> None:
    batches = epoch_batches(rows, batch_size=size, seed=seed, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    assert len(batches) == math.ceil(len(rows) / size)
    assert sum(len(batch) < size for batch in batches) <= 1


@given(lengths, sizes, seeds)
def test_batches_are_the_same_by_seed_and_epoch(rows: np.ndarray, size: int, seed: int) -> None:
    first, again = (epoch_batches(rows, batch_size=size, seed=seed, epoch=3) for _ in range(2))
    assert [b.tolist() for b in first] == [b.tolist() for b in again]


def test_epochs_and_seeds_differ() -> None:
    rows = np.full(64, 5)
    orders = {
        tuple(np.concatenate(epoch_batches(rows, batch_size=8, seed=s, epoch=e)).tolist())
        for s in range(3)
        for e in range(3)
    }
    assert len(orders) == 9


@given(lengths, sizes, seeds)
def test_no_more_padding_than_without_buckets(rows: np.ndarray, size: int, seed: int) -> None:
    batches = epoch_batches(rows, batch_size=size, seed=seed, epoch=0)
    order = np.random.default_rng(seed).permutation(len(rows))
    plain = [order[i : i + size] for i in range(0, len(order), size)]
    # A window's remainder may cost up to one batch of the longest row more than chance.
    slack = size * int(rows.max())
    assert sum(len(b) * rows[b].max() for b in batches) <= (
        sum(len(b) * rows[b].max() for b in plain) + slack
    )


def test_buckets_save_padding() -> None:
    rows = np.random.default_rng(0).integers(3, 60, 2000)
    batches = epoch_batches(rows, batch_size=32, seed=0, epoch=0)
    computed = sum(len(b) * int(rows[b].max()) for b in batches)
    assert computed <= 1.15 * rows.sum()


@given(lengths, sizes, st.floats(0.05, 3))
def test_fractional_epochs_round_batches_up(rows: np.ndarray, size: int, epochs: float) -> None:
    steps = list(training_batches(rows, batch_size=size, seed=1, epochs=epochs))
    per_epoch = math.ceil(len(rows) / size)
    whole = math.floor(epochs)
    assert len(steps) == whole * per_epoch + math.ceil((epochs - whole) * per_epoch)
    for epoch in range(whole):
        rows_of = np.concatenate([index for number, index in steps if number == epoch])
        assert len(rows_of) == len(set(rows_of.tolist())) == len(rows)


@given(lengths, sizes)
def test_prediction_takes_every_row_once(rows: np.ndarray, size: int) -> None:
    assert sorted(np.concatenate(by_length(rows, batch_size=size)).tolist()) == list(
        range(len(rows))
    )


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=20))
def test_collate_pads_and_masks(values: list[list[int]]) -> None:
    encoded = Encoded(
        ids=np.array([token for row in values for token in row], np.int32),
        offsets=np.concatenate(([0], np.cumsum([len(row) for row in values]))),
        targets=np.arange(len(values)),
        pad_id=0,
    )
    index = np.arange(len(values))[::-1]
    for rows, chosen in ((encoded, index), (encoded.take(index), np.arange(len(values)))):
        batch = collate(rows, chosen)
        for row, wanted in enumerate(reversed(values)):
            mask = batch.mask[row].astype(bool)
            assert batch.ids[row][mask].tolist() == wanted
            assert not batch.ids[row][~mask].any()
        assert batch.targets.tolist() == index.tolist()


@pytest.mark.parametrize("rows", [0, 1])
def test_taking_few_rows(rows: int) -> None:
    encoded = Encoded(
        ids=np.array([5, 6], np.int32),
        offsets=np.array([0, 2]),
        targets=np.array([3]),
        pad_id=0,
    )
    taken = encoded.take(np.arange(rows))
    assert len(taken) == rows
    assert taken.lengths.tolist() == [2] * rows
