"""The sampler is the discrete Gaussian; what is spent is what the paper and dp-accounting say."""

from __future__ import annotations

import math
import os
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.privacy import gaussian
from protocol.privacy.accounting import ORDERS, Spent, epsilon, sampled_epsilon
from protocol.privacy.distributed import Mechanism, norm_bound
from protocol.privacy.gaussian import Table, draw, table


def mechanism(**changes: object) -> Mechanism:
    values = {
        "size": 8192,
        "clip": 1.0,
        "multiplier": 4.0,
        "honest": 100,
        "summands": 100,
        "rotation": bytes(32),
    }
    return Mechanism(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", ["0.5", "4", "50", "1000"])
def test_draws_have_the_moments_and_the_shape_of_the_law(sigma: str) -> None:
    values = draw(Decimal(sigma), 400_000, os.urandom(32))
    spread = float(sigma)
    assert abs(values.mean()) < 6 * spread / math.sqrt(len(values))
    weights = np.exp(-(np.arange(-4000, 4001) ** 2) / (2 * spread**2))
    variance = float((weights * np.arange(-4000, 4001) ** 2).sum() / weights.sum())
    if spread < 1000:
        assert abs(values.var() / variance - 1) < 0.015
    bound = max(2, int(2.5 * spread))
    step = max(1, bound // 12)
    edges = np.arange(-bound, bound + 1, step)
    observed = np.histogram(values, edges)[0][:-1]
    chance = np.exp(-(np.arange(edges[0], edges[-1]) ** 2) / (2 * spread**2)).reshape(-1, step)
    whole = np.exp(
        -(np.arange(-int(40 * spread) - 9, int(40 * spread) + 10) ** 2) / (2 * spread**2)
    )
    expected = chance.sum(1)[:-1] / whole.sum() * len(values)
    chi = float(((observed - expected) ** 2 / expected).sum())
    assert chi < len(expected) + 6 * math.sqrt(2 * len(expected))


def test_tails_are_cut_below_2_to_minus_150_and_no_further() -> None:
    made = table(Decimal(4))
    cut = math.sqrt(2 * 150 * math.log(2)) * 4
    assert abs(len(made.high) - cut) <= 1
    assert (np.diff(made.high.astype(np.float64)) >= 0).all()


def test_a_tie_in_the_high_word_is_decided_by_the_low_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table whose entries share their high words, every draw is a tie or beside one."""
    high = np.array([2**62, 2**62], np.uint64)
    low = np.array([2**61, 2**62 + 2**61], np.uint64)
    monkeypatch.setattr(gaussian, "table", lambda _sigma: Table(high=high, low=low))

    class Stream:
        def __init__(self) -> None:
            lows = np.array([0, 2**62, 2**63 - 1], np.uint64) << np.uint64(1)
            self.parts = [np.full(3, 2**62, np.uint64).tobytes(), lows.tobytes()]

        def update(self, _zeros: bytes) -> bytes:
            return self.parts.pop(0)

    class Fixed:
        def __init__(self, *_: object) -> None:
            pass

        def encryptor(self) -> Stream:
            return Stream()

    monkeypatch.setattr(gaussian, "Cipher", Fixed)
    assert np.abs(draw(Decimal(1), 3, bytes(32))).tolist() == [0, 1, 2]


def test_two_keys_give_independent_noise() -> None:
    one, other = (draw(Decimal(50), 100_000, os.urandom(32)) for _ in range(2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02


@settings(max_examples=40)
@given(
    st.integers(1, 3000), st.sampled_from(["spike", "flat", "half", "normal"]), st.floats(0.01, 9)
)
def test_the_rounded_norm_never_passes_its_bound(size: int, shape: str, norm: float) -> None:
    made = mechanism(size=size)
    rng = np.random.default_rng(size)
    vector = {
        "spike": np.eye(1, size)[0],
        "flat": np.ones(size),
        "half": np.full(size, made.grid / 2),
        "normal": rng.normal(size=size),
    }[shape]
    vector = (vector / np.linalg.norm(vector) * norm).astype(np.float32)
    scaled = vector.astype(np.float64) * min(1.0, 1.0 / np.linalg.norm(vector.astype(np.float64)))
    whole = made._rounded(made.turn.forward(scaled) / made.grid, rng)
    bound = norm_bound(1.0, made.grid, made.turn.padded)
    assert float(np.linalg.norm(whole.astype(np.float64))) <= bound
    assert made.grid * bound <= 1.01


@pytest.mark.parametrize(
    ("padded", "grid"), [(2**10, 6.95e-3), (2**13, 2.87e-3), (2**16, 1.07e-3), (2**20, 2.75e-4)]
)
def test_the_grid_is_the_papers(padded: int, grid: float) -> None:
    assert mechanism(size=padded).grid == pytest.approx(grid, rel=0.01)


def times(rounds: int, spent: Spent) -> Spent:
    return Spent(rho=rounds * spent.rho, xi=rounds * spent.xi)


@pytest.mark.parametrize(
    ("multiplier", "rounds", "expected"),
    [(2, 10, 8.86), (4, 10, 4.01), (4, 50, 10.11), (8, 50, 4.56), (4, 200, 24.70), (20, 100, 2.42)],
)
def test_epsilon_is_the_gaussians_and_a_percent_or_two(
    multiplier: float, rounds: int, expected: float
) -> None:
    """Against the zCDP of a continuous Gaussian, rho = 1 / 2z^2, at delta 1e-6."""
    assert epsilon(Spent(rho=rounds / (2 * multiplier**2)), delta=1e-6) == pytest.approx(
        expected, abs=0.01
    )
    ours = epsilon(times(rounds, mechanism(multiplier=multiplier).spent()), delta=1e-6)
    assert expected < ours < 1.025 * expected


def test_epsilon_grows_with_rounds_and_falls_with_noise_and_delta() -> None:
    spent = mechanism().spent()
    assert epsilon(Spent(), delta=1e-6) == 0
    assert epsilon(times(20, spent), delta=1e-6) > epsilon(times(10, spent), delta=1e-6)
    assert epsilon(times(20, mechanism(multiplier=8.0).spent()), delta=1e-6) < epsilon(
        times(20, spent), delta=1e-6
    )
    assert epsilon(times(20, spent), delta=1e-8) > epsilon(times(20, spent), delta=1e-6)


def test_the_noise_of_a_whole_sum_is_what_theory_says() -> None:
    made = mechanism(size=16_384, summands=100, honest=100)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(100, made.size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    total = np.zeros(made.turn.padded, np.uint64)
    for vector in vectors:
        total += made.encode(vector, rng, os.urandom)
    words = (total % 2**made.bits).astype(np.uint16 if made.bits == 16 else np.uint32)
    error = made.decode(words, 100) - vectors.mean(0)
    theory = math.sqrt(100 * (float(made.sigma) * made.grid) ** 2 + 100 * made.grid**2 / 6) / 100
    assert made.bits == 16
    assert float(error.std()) == pytest.approx(theory, rel=0.03)
    assert float(error.std()) * 100 >= 0.97 * made.multiplier * made.clip


def by_hand(rho: float, xi: float, delta: float) -> float:
    """Epsilon of RDP alpha * rho + xi by Canonne, Kamath and Steinke's conversion (2004.00010)."""
    found = []
    for alpha in ORDERS:
        rdp = alpha * rho + xi
        found.append(rdp + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
    return max(0.0, min(found))


@pytest.mark.parametrize("multiplier", [1.0, 2.0, 4.0, 8.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 10, 50, 200])
@pytest.mark.parametrize("delta", [1e-5, 1e-6, 1e-9])
def test_epsilon_is_that_of_the_formula_written_out(
    multiplier: float, rounds: int, delta: float
) -> None:
    one = mechanism(multiplier=multiplier).spent()
    ours = epsilon(times(rounds, one), delta=delta)
    assert ours == pytest.approx(by_hand(rounds * one.rho, rounds * one.xi, delta), rel=0.01)
    added = Spent()
    for _ in range(rounds):
        added += one
    assert epsilon(added, delta=delta) == pytest.approx(ours, rel=1e-9)


@pytest.mark.parametrize(
    ("sampling", "multiplier", "rounds", "expected"),
    [(0.01, 1, 50, 1.42), (0.1, 2, 50, 2.11), (0.1, 4, 100, 1.23), (0.3, 4, 50, 2.78)],
)
def test_central_noise_is_amplified_by_secret_samples(
    sampling: float, multiplier: float, rounds: int, expected: float
) -> None:
    found = sampled_epsilon(rounds, multiplier=multiplier, sampling=sampling, delta=1e-6)
    assert found == pytest.approx(expected, abs=0.01)
    assert found < epsilon(Spent(rho=rounds / (2 * multiplier**2)), delta=1e-6)


def arctangent(inverse: int) -> Decimal:
    """Of 1 / ``inverse``, by its series."""
    total, power, n = Decimal(0), 1 / Decimal(inverse), 0
    while power > Decimal(10) ** -110:
        total += (-power if n % 2 else power) / (2 * n + 1)
        power, n = power / inverse**2, n + 1
    return total


@pytest.mark.parametrize("honest", [2, 3, 9])
@pytest.mark.parametrize("multiplier", [0.01, 0.02, 0.03, 0.05, 0.1, 1.0, 100.0])
def test_xi_is_the_nearest_number_to_what_it_is_defined_as(honest: int, multiplier: float) -> None:
    """(P-7.3) An auditor compares it bit for bit: no platform's `exp` may have a say in it."""
    made = mechanism(multiplier=multiplier, honest=honest, summands=9)
    with localcontext() as context:
        context.prec = 120
        pi = 4 * (4 * arctangent(5) - arctangent(239))
        terms = [-2 * pi**2 * made.sigma**2 * k / (k + 1) for k in range(1, honest)]
        exact = 10 * made.turn.padded * sum(term.exp() for term in terms)
        assert made.spent().xi == float(exact)
