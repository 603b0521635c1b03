"""How noise grows, what is drawn of it, and the way back. (P-1.18)"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.documents import OddError, json_as
from protocol.noise import (
    LARGEST_BETA,
    PAIRS,
    Schedule,
    measuring_draws,
    noisy,
    step_back,
    steps_down,
    training_draws,
)

LINEAR: dict[str, Any] = {"steps": 40, "betas": "linear", "start": 0.001, "end": 0.2}
COSINE: dict[str, Any] = {"steps": 40, "betas": "squaredcos_cap_v2", "start": None, "end": None}
SHAPE = (1, 3, 2)


def schedule_of(**other: Any) -> Schedule:
    return json_as(Schedule, json.dumps(LINEAR | other))


def schedules() -> st.SearchStrategy[Schedule]:
    share = st.floats(1e-5, 0.3)
    ends = st.tuples(share, share).map(sorted)
    return st.one_of(
        st.builds(
            lambda steps, betas, pair: Schedule(
                steps=steps, betas=betas, start=pair[0], end=pair[1]
            ),
            st.integers(2, 60),
            st.sampled_from(["linear", "scaled_linear"]),
            ends,
        ),
        st.builds(
            lambda steps: Schedule(steps=steps, betas="squaredcos_cap_v2", start=None, end=None),
            st.integers(2, 60),
        ),
    )


def test_shares_are_what_is_left_behind_each_beta() -> None:
    """Written out: two steps by hand, and a cosine's cap."""
    two = Schedule(steps=2, betas="linear", start=0.1, end=0.3)
    assert two.alphas() == pytest.approx([0.9, 0.9 * 0.7])
    rooted = Schedule(steps=3, betas="scaled_linear", start=0.04, end=0.36)
    assert rooted.alphas() == pytest.approx([0.96, 0.96 * 0.84, 0.96 * 0.84 * 0.64])
    cosine = json_as(Schedule, json.dumps(COSINE)).alphas()
    ends = [math.cos((n / 40 + 0.008) / 1.008 * math.pi / 2) ** 2 for n in range(41)]
    assert cosine[:39] == pytest.approx([end / ends[0] for end in ends[1:40]])
    assert cosine[39] == pytest.approx(cosine[38] * (1 - LARGEST_BETA))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"steps": 1}, "steps"),
        ({"steps": 10_001}, "steps"),
        ({"steps": 40.0}, "steps"),
        ({"betas": "exp"}, "betas"),
        ({"start": 0.0}, "start"),
        ({"end": 1.0}, "end"),
        ({"start": 0.3}, "noise grows"),
        ({"start": None}, "do not go together"),
        ({"betas": "squaredcos_cap_v2"}, "do not go together"),
        (COSINE | {"end": 0.1}, "do not go together"),
        ({"snr": 1}, "snr"),
    ],
)
def test_what_is_no_schedule_is_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(OddError, match=said):
        schedule_of(**other)


@given(schedules())
def test_less_is_left_at_every_step(schedule: Schedule) -> None:
    shares = schedule.alphas()
    assert shares.shape == (schedule.steps,)
    assert shares[-1] > 0
    assert shares[0] < 1
    assert (np.diff(shares) < 0).all()


@given(schedules(), st.integers(0, 2**32), st.data())
@settings(max_examples=40)
def test_who_knows_the_noise_finds_the_image(schedule: Schedule, seed: int, data: Any) -> None:
    """From any step to any before it: the image under as much noise as there; in the end without any."""
    generator = np.random.default_rng(seed)
    image = generator.uniform(-1, 1, (1, *SHAPE)).astype(np.float32)
    noise = generator.standard_normal((1, *SHAPE), np.float32)
    step = data.draw(st.integers(0, schedule.steps - 1))
    before = data.draw(st.integers(-1, step))
    seen = noisy(image, noise, np.array([step]), schedule)
    back = step_back(seen, noise, step, before, schedule)
    wanted = image if before < 0 else noisy(image, noise, np.array([before]), schedule)
    assert back.dtype == np.float32
    # what is left of an image is multiplied by the root of its share again
    assert np.abs(back - wanted).max() < 1e-5 / math.sqrt(schedule.alphas()[step]) + 1e-5


def test_an_image_that_is_found_beyond_its_range_is_cut() -> None:
    schedule = schedule_of()
    seen = np.full((1, *SHAPE), 9.0, np.float32)
    back = step_back(seen, np.zeros_like(seen), 39, -1, schedule)
    assert (back == 1).all()


@given(st.integers(2, 400), st.data())
def test_steps_fall_from_the_last_one_on(steps: int, data: Any) -> None:
    count = data.draw(st.integers(1, steps))
    down = steps_down(schedule_of(steps=steps), count)
    assert len(down) == count
    assert down[0] == steps - 1
    assert down[-1] >= 0
    assert (np.diff(down) < 0).all()
    if steps % count == 0:
        assert set(np.diff(down)) <= {-steps // count}


def test_what_is_drawn_hangs_on_seed_and_row_alone() -> None:
    schedule, rows = schedule_of(), np.array([5, 2, 9])
    whole = training_draws(7, rows, schedule, SHAPE)
    for at, row in enumerate(rows):
        alone = training_draws(7, np.array([row]), schedule, SHAPE)
        assert alone.noise.tobytes() == whole.noise[at].tobytes()
        assert alone.steps[0] == whole.steps[at]
    other = training_draws(8, rows, schedule, SHAPE)
    assert other.noise.tobytes() != whole.noise.tobytes()
    assert whole.noise.dtype == np.float32


def test_draws_are_standard_normal_over_all_steps() -> None:
    schedule = schedule_of()
    draws = training_draws(1, np.arange(3000), schedule, SHAPE)
    assert abs(float(draws.noise.mean())) < 0.03
    assert abs(float(draws.noise.std()) - 1) < 0.02
    counts = np.bincount(draws.steps, minlength=40)
    assert len(counts) == 40
    assert counts.min() > 40


def test_what_is_measured_stays_for_ever() -> None:
    """Each of a row's pairs has its part of the schedule; the bytes are pinned."""
    schedule = schedule_of()
    draws = measuring_draws(np.arange(400), schedule, SHAPE)
    part = np.arange(400) % PAIRS
    assert (draws.steps * PAIRS // 40 == part).all()
    digest = hashlib.sha256(draws.steps.tobytes() + draws.noise.tobytes()).hexdigest()
    assert digest == PINNED


PINNED = "afb5e7282fbf34bdff23f3add04e845be403453bca3c46a0c908db14523a16b4"
