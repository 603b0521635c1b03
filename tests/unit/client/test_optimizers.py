"""The optimisers are torch's, the clip too: over rates, decays, gradients and steps."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.optimizers import clip, optimizer_for
from client.terms import add_pull
from protocol.layout import Layout, TensorSpec
from protocol.plan_sections import Local

LAYOUT = Layout(
    (
        TensorSpec(name="a", shape=(3, 5), part="lora_A"),
        TensorSpec(name="head.bias", shape=(4,), part="head"),
        TensorSpec(name="z", shape=(2, 2), part="lora_B"),
    )
)
RATES = st.floats(1e-6, 1.0)


def by_torch(local: Local, start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    parameters = {
        name: torch.nn.Parameter(torch.from_numpy(value.copy()))
        for name, value in LAYOUT.unflatten(start).items()
    }
    first = {name: value.detach().clone() for name, value in parameters.items()}
    groups = [
        {"params": [parameters["a"], parameters["z"]], "lr": local.learning_rate},
        {"params": [parameters["head.bias"]], "lr": local.head_learning_rate},
    ]
    kind = torch.optim.SGD if local.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(groups, weight_decay=local.weight_decay)
    for gradient in gradients:
        for name, value in LAYOUT.unflatten(gradient).items():
            moved = parameters[name].detach() - first[name]
            parameters[name].grad = torch.from_numpy(value) + local.proximal_mu * moved
        torch.nn.utils.clip_grad_norm_(parameters.values(), local.clip_norm)
        optimizer.step()
    return LAYOUT.flatten({name: p.detach().numpy() for name, p in parameters.items()})


@settings(max_examples=60)
@given(
    optimizer=st.sampled_from(["adamw", "sgd"]),
    rate=RATES,
    head=RATES,
    decay=st.sampled_from([0.0, 0.01, 0.5]),
    mu=st.sampled_from([0.0, 0.3]),
    most=st.sampled_from([0.1, 1.0, 1e6]),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 100.0]),
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
def test_the_optimisers_are_torchs(
    optimizer: str,
    rate: float,
    head: float,
    decay: float,
    mu: float,
    most: float,
    scale: float,
    steps: int,
    seed: int,
) -> None:
    local = Local(
        optimizer=optimizer,
        learning_rate=rate,
        head_learning_rate=head,
        weight_decay=decay,
        proximal_mu=mu,
        clip_norm=most,
    )
    rng = np.random.default_rng(seed)
    start = rng.normal(size=LAYOUT.size).astype(np.float32)
    gradients = [(scale * rng.normal(size=LAYOUT.size)).astype(np.float32) for _ in range(steps)]
    weights, optimiser = start.copy(), optimizer_for(LAYOUT, local)
    for gradient in gradients:
        own = gradient.copy()
        add_pull(own, weights, start, strength=mu)
        clip(own, most=most)
        optimiser.step(weights, own)
    expected = by_torch(local, start, gradients)
    bound = 2e-5 * (1 + np.abs(expected).max() + np.abs(expected - start).max())
    assert np.abs(weights - expected).max() <= bound


def test_a_gradient_that_is_not_finite_reaches_the_weights() -> None:
    """It is the loss that tells, and it must."""
    gradient = np.full(LAYOUT.size, np.nan, np.float32)
    weights, optimiser = np.zeros(LAYOUT.size, np.float32), optimizer_for(LAYOUT, Local())
    clip(gradient, most=1.0)
    optimiser.step(weights, gradient)
    assert np.isnan(weights).all()
