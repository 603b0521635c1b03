"""Laws of choosing a token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.decoder.sampling import (
    GREEDY,
    Logits,
    Sampling,
    choose,
    greedy,
    kept,
    likeliest,
    log_probabilities,
    named,
)
from protocol.errors import ArtefactError, DataError

ROWS = arrays.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(-30, 30, width=32, allow_subnormal=False)
)
TOP_P = st.floats(0.01, 1.0)
TEMPERATURE = st.floats(0.05, 10.0)


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(TEMPERATURE), top_k=draw(st.integers(0, 320)), top_p=draw(TOP_P)
    )


def distribution(logits: Logits, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


@given(ROWS, samplings())
def test_what_is_kept_begins_with_the_likeliest_and_is_a_distribution(logits, sampling) -> None:
    tokens, chances = kept(logits, sampling)
    assert len(tokens) >= 1
    assert len(set(tokens.tolist())) == len(tokens)
    assert chances.sum() == pytest.approx(1)
    if len(tokens) < len(logits):
        assert tokens[0] == greedy(logits)
        outside = np.setdiff1d(np.arange(len(logits)), tokens)
        assert logits[tokens].min() >= logits[outside].max()
    if sampling.top_k:
        assert len(tokens) <= sampling.top_k


@given(ROWS, TEMPERATURE, TOP_P)
def test_top_p_keeps_the_fewest_that_reach_it(logits, temperature: float, top_p: float) -> None:
    tokens, _ = kept(logits, Sampling(temperature=temperature, top_p=top_p))
    shares = distribution(logits, temperature)[tokens]
    assert shares.sum() >= top_p - 1e-9
    if top_p < 1:
        assert shares[:-1].sum() < top_p + 1e-9


@given(ROWS, st.integers(1, 300), TEMPERATURE)
def test_top_k_keeps_as_many_and_their_proportions(logits, top_k: int, temperature: float) -> None:
    tokens, chances = kept(logits, Sampling(temperature=temperature, top_k=top_k))
    assert len(tokens) == min(top_k, len(logits))
    shares = distribution(logits, temperature)[tokens]
    np.testing.assert_allclose(chances, shares / shares.sum(), rtol=1e-9, atol=1e-300)


@given(ROWS, samplings(), st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_tokens_and_only_kept_ones(logits, sampling, seed) -> None:
    one, two = (np.random.default_rng(seed) for _ in range(2))
    chosen = [choose(logits, sampling, one) for _ in range(5)]
    assert chosen == [choose(logits, sampling, two) for _ in range(5)]
    assert set(chosen) <= set(kept(logits, sampling)[0].tolist())


@given(ROWS, st.integers(0, 2**32))
def test_a_temperature_towards_zero_is_greedy(logits, seed: int) -> None:
    best = np.sort(logits)[::-1]
    rng = np.random.default_rng(seed)
    token = choose(logits, Sampling(temperature=1e-9), rng)
    if len(logits) == 1 or best[0] - best[1] > 1e-6:
        assert token == greedy(logits)
    assert logits[token] >= best[0] - 1e-6
    assert choose(logits, GREEDY, rng) == greedy(logits)


@given(ROWS)
def test_log_probabilities_are_of_a_distribution(logits) -> None:
    assert np.exp(log_probabilities(logits)).sum() == pytest.approx(1)


@given(ROWS, st.integers(1, 310))
def test_the_likeliest_are_a_stable_sort(logits, count: int) -> None:
    assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()
    logprob, top = named(logits, 0, count)
    assert logprob == log_probabilities(logits)[0]
    assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = np.random.default_rng(0)
    chosen = [choose(logits, Sampling(temperature=1.0), rng) for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(chosen) / 20_000, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    chosen = [choose(logits, Sampling(temperature=1.0, top_p=0.7), rng) for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(chosen) / 20_000, [0.625, 0.375], atol=0.015)


def test_it_keeps_what_transformers_keeps() -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    rng = np.random.default_rng(5)
    for top_k, top_p, temperature in ((0, 0.9, 0.7), (40, 1.0, 1.5), (200, 0.6, 1.0), (7, 0.5, 2)):
        logits = rng.normal(0, 2, 3000).astype(np.float32)
        scores = TemperatureLogitsWarper(float(temperature))(None, torch.tensor(logits)[None])
        for warper in (TopKLogitsWarper(top_k) if top_k else None, TopPLogitsWarper(top_p)):
            scores = warper(None, scores) if warper else scores
        expected = torch.softmax(scores[0], 0).numpy()
        tokens, chances = kept(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        assert sorted(tokens.tolist()) == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(chances, expected[tokens], rtol=1e-3)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(odd: float) -> None:
    logits = np.array([0.0, odd, 1.0], np.float32)
    for sampling in (GREEDY, Sampling(temperature=1.0, top_p=0.9)):
        with pytest.raises(ArtefactError, match="not finite"):
            choose(logits, sampling, np.random.default_rng(0))
    with pytest.raises(ArtefactError, match="not finite"):
        greedy(np.full(3, -np.inf, np.float32))
    assert greedy(np.array([-np.inf, 0], np.float32)) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 101.0}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"top_p": float("nan")}, "top-p"),
    ],
)
def test_settings_out_of_bounds_are_named(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Sampling(**wrong).verify()  # type: ignore[arg-type]
    Sampling(temperature=0.7, top_k=40, top_p=0.9).verify()
