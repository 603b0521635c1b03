"""What honest clients can have sent together passes; the bounds are where the encoding puts them. (P-6.17)"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import UpdateError
from protocol.exchange import Contribution, failed_contribution
from protocol.plan import plan_from
from protocol.privacy.distributed import Mechanism
from protocol.secagg.counters import MOST_ROWS, limits_of
from protocol.secagg.ring import Ring
from protocol.secagg.rotation import sum_of_squares
from protocol.secagg.task import Exact, encoding_for
from protocol.tasks.classification import METRICS
from protocol.wire import Instruction


def plan(**sections: Any) -> Any:
    document = {"name": "t", "base": {"fingerprint": "0" * 64}, "task": {"labels": ["a", "b"]}}
    return plan_from(document | sections, source="test")


def instruction(evaluate: bool = True) -> Instruction:
    return Instruction(
        round=1,
        attempt=1,
        plan_digest="0" * 64,
        base="0" * 64,
        adapter_digest="1" * 64,
        evaluate=evaluate,
    )


def added(words: list[Any]) -> Any:
    """As the masks' ring adds them."""
    total = words[0].copy()
    for one in words[1:]:
        total += one
    return total


@settings(max_examples=60)
@given(
    size=st.sampled_from([1, 3, 64, 1000]),
    bits=st.sampled_from([16, 20, 24, 32]),
    members=st.integers(3, 200),
    absent=st.integers(0, 100),
    seed=st.integers(0, 2**32),
    length=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e30]),
    alike=st.booleans(),
)
def test_honest_sums_pass_however_long_and_alike_the_updates(
    size: int, bits: int, members: int, absent: int, seed: int, length: float, alike: bool
) -> None:
    """Also all of them the same and cut at the clip, the largest mean there is."""
    ring = Ring(size=size, clip=2.0, clients=members, bits=bits, rotation=bytes(32), counters=1)
    rng = np.random.default_rng(seed)
    first = rng.normal(0, length, size).astype(np.float32)
    summands = max(1, members - absent)
    words = []
    for _ in range(summands):
        vector = first if alike else rng.normal(0, length, size).astype(np.float32)
        words.append(ring.encode(vector, [2**40 - 1], rng))
    total = added(words)
    if bits not in (16, 32):
        total &= total.dtype.type(2**bits - 1)
    ring.verify_sum(total, summands)
    assert ring.decode(total, summands)[1] == [summands * (2**40 - 1)]


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_the_bound_is_the_clip_with_the_roundings_tolerance(bits: int) -> None:
    """A mean of norm c passes, one a little above c (1 + 10/q) does not."""
    ring = Ring(size=4096, clip=1.0, clients=20, bits=bits, rotation=bytes(32))
    rng = np.random.default_rng(1)
    direction = rng.normal(0, 1, 4096)
    direction /= np.linalg.norm(direction)
    longer = Ring(size=4096, clip=2.0, clients=20, bits=bits, rotation=bytes(32))

    def words(norm: float) -> Any:
        """Twenty times the words of a client with another idea of the clip."""
        rotated = longer.turn.forward(direction * norm)
        level = np.clip((rotated + ring.reach) * (ring.levels / (2 * ring.reach)), 0, ring.levels)
        return (20 * np.rint(level).astype(np.int64)).astype(
            ring.encode(direction.astype("f4"), [], rng).dtype
        )

    ring.verify_sum(words(0.999), 20)
    with pytest.raises(UpdateError, match="norm"):
        ring.verify_sum(words(1.001 + 10 / ring.levels), 20)


def test_a_word_above_n_times_the_levels_is_refused() -> None:
    """Where somebody was lost, the ring has room that honest sums do not use."""
    ring = Ring(size=64, clip=1.0, clients=20, bits=16, rotation=bytes(32), counters=1)
    rng = np.random.default_rng(0)
    words = added([ring.encode(np.zeros(64, np.float32), [5], rng) for _ in range(10)])
    ring.verify_sum(words, 10)
    for place in (3, 64):
        odd = words.copy()
        odd[place] = 10 * ring.levels + 1
        with pytest.raises(UpdateError, match="above what 10 honest clients"):
            ring.verify_sum(odd, 10)


@settings(max_examples=200)
@given(st.lists(st.integers(-(2**33) + 1, 2**33), min_size=1, max_size=50))
def test_squares_are_added_exactly(values: list[int]) -> None:
    assert sum_of_squares(np.array(values, np.int64)) == sum(v * v for v in values)


@pytest.mark.parametrize("multiplier", [0.05, 1.0, 8.0])
@pytest.mark.parametrize("size", [16, 1000])
def test_noisy_honest_sums_pass_and_words_anywhere_do_not(multiplier: float, size: int) -> None:
    mechanism = Mechanism(
        size=size, clip=1.0, multiplier=multiplier, honest=6, summands=8, rotation=bytes(32)
    )
    rng = np.random.default_rng(2)
    same = rng.normal(0, 1, size).astype(np.float32)
    for _ in range(20):
        words = [mechanism.encode(same, rng, os.urandom) for _ in range(8)]
        total = added(words) & words[0].dtype.type(2**mechanism.bits - 1)
        mechanism.verify_sum(total, 8)
    if size > 100:
        total[:] = rng.integers(0, 2**mechanism.bits, len(total))
        with pytest.raises(UpdateError, match="noisy mean"):
            mechanism.verify_sum(total, 8)


metric = st.floats(0, 1e30) | st.integers(0, 2**50).map(float)


@settings(max_examples=200)
@given(
    clients=st.lists(
        st.one_of(
            st.none(),
            st.tuples(st.fixed_dictionaries(dict.fromkeys(METRICS, metric)), st.booleans()),
        ),
        min_size=1,
        max_size=12,
    ),
    evaluate=st.booleans(),
    max_steps=st.integers(0, 3),
)
def test_whatever_honest_clients_measure_passes(
    clients: list[Any], evaluate: bool, max_steps: int
) -> None:
    made = plan(evaluation={"holdout": 0.2}, local={"max_steps": max_steps})
    limits = limits_of(made, instruction(evaluate))
    sums = [0] * len(limits.names)
    for one in clients:
        if one is None:
            counts = limits.of_client(failed_contribution(1), clipped=False)
        else:
            update = np.zeros(1, np.float32)
            counts = limits.of_client(
                Contribution(update=update, weight=1, metrics=one[0]), clipped=one[1]
            )
        assert all(0 <= count < 2**40 for count in counts)
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
    limits.verify(sums, len(clients))


LIMITS = limits_of(
    plan(evaluation={"holdout": 0.2}, cohort={"size": 8, "quorum": 8, "deadline_s": 60.0}),
    instruction(),
)
MOST_LOSS = 64 * 2**12  # of one row, as it travels
FULL = {
    "examples": 3 * MOST_ROWS,
    "loss_sum": 2**40,
    "eval_examples": 3 * MOST_ROWS,
    "eval_correct": 3 * MOST_ROWS,
    "train_seconds": 3 * 60_000,
    "failures": 1,
    "clipped": 3,
}


def test_every_counter_has_its_bound() -> None:
    """Of four clients, one of which failed: one more of anything is impossible."""
    LIMITS.verify([FULL[name] for name in LIMITS.names], 4)
    small = {"examples": 10, "loss_sum": 10 * MOST_LOSS, "eval_examples": 7, "eval_correct": 7}
    for base in (FULL, FULL | small):
        for name in LIMITS.names:
            if base is not FULL and name in ("examples", "eval_examples"):
                continue  # there they are below their own bound
            if base is FULL and name in ("loss_sum", "eval_correct"):
                continue
            odd = base | {name: base[name] + (4 if name == "failures" else 1)}
            with pytest.raises(UpdateError, match=f"cannot count .* `{name}`"):
                LIMITS.verify([odd[each] for each in LIMITS.names], 4)


def test_nothing_is_evaluated_where_the_instruction_does_not_ask() -> None:
    quiet = limits_of(plan(evaluation={"holdout": 0.2}), instruction(evaluate=False))
    assert quiet.most["eval_examples"] == 0
    assert limits_of(plan(), instruction()).most["eval_examples"] == 0


def test_a_sum_counts_who_was_cut() -> None:
    encoding = encoding_for(plan(secrecy={"clip": 1.0}), instruction(), size=8, clients=4)
    assert isinstance(encoding, Exact)
    rng = np.random.default_rng(0)
    words = [
        encoding.words(
            Contribution(
                update=np.full(8, scale, np.float32), weight=1, metrics=dict.fromkeys(METRICS, 0.0)
            ),
            rng,
            os.urandom,
        )
        for scale in (0.1, 0.3, 0.5, 7.0)  # norms 0.28, 0.85, 1.4, 20
    ]
    _, sums = encoding.opened(added(words), 4)
    assert (sums["clipped"], sums["failures"]) == (2, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["ring", "noise"])
def test_an_update_that_is_not_finite_is_an_update_error(value: float, mode: str) -> None:
    update, rng = np.array([0.0, value], np.float32), np.random.default_rng(0)
    ring = Ring(size=2, clip=1.0, clients=3, bits=16, rotation=bytes(32))
    noise = Mechanism(size=2, clip=1.0, multiplier=1.0, honest=3, summands=3, rotation=bytes(32))
    encode = {
        "ring": lambda: ring.encode(update, [], rng),
        "noise": lambda: noise.encode(update, rng, os.urandom),
    }[mode]
    with pytest.raises(UpdateError, match="not finite"):
        encode()
