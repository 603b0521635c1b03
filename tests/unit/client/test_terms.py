"""Terms of the loss: their gradients are torch's, and each pulls where it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from base_model.verify import read_manifest
from client.batches import Encoded
from client.terms import Terms, overlap
from client.training import train
from client.worker import Worker
from protocol.layout import Layout, Vector
from protocol.plan import Plan
from protocol.plan_sections import Local
from protocol.recipe import Recipe
from protocol.start import Start

Make = Callable[..., Plan]
START: dict[str, Any] = {"adapter": "a" * 64, "round": 2, "rounds": 2, "plans": ["b" * 64]}
START |= {"origin": "fedge/p/1", "size": 9, "root": "c" * 64}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "head_learning_rate": 0.1, "clip_norm": 1e6}


@pytest.fixture
def recipe(tiny_base: Path, make_plan: Make) -> Recipe:
    return Recipe(plan=make_plan(), manifest=read_manifest(tiny_base))


def autograd(loss: Callable[[torch.Tensor], torch.Tensor], at: np.ndarray) -> np.ndarray:
    point = torch.from_numpy(at.astype(np.float64)).requires_grad_()
    loss(point).backward()
    assert point.grad is not None
    return point.grad.numpy()


def pairs(rows: torch.Tensor) -> torch.Tensor:
    """Half the sum of squared inner products of different rows, pair by pair."""
    count = len(rows)
    products = [(rows[i] @ rows[j]) ** 2 for i in range(count) for j in range(i)]
    return sum(products, start=0 * rows.sum()) / 2


@settings(max_examples=60)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_overlap_is_the_gradient_of_squared_products(
    rows: int, columns: int, scale: float, seed: int
) -> None:
    matrix = (scale * np.random.default_rng(seed).normal(size=(rows, columns))).astype(np.float32)
    expected = autograd(pairs, matrix)
    got = overlap(matrix)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got, expected, rtol=1e-4, atol=1e-4 * (np.abs(expected).max() + 1e-30)
    )


def test_orthogonal_rows_of_any_length_are_left_alone() -> None:
    assert not overlap(np.diag([3.0, 0.5, 100.0]).astype(np.float32)).any()
    assert not overlap(np.ones((1, 5), np.float32)).any()


def terms_in_torch(
    layout: Layout, local: Local, start: Vector, initial: Vector, at: Vector
) -> Vector:
    def loss(weights: torch.Tensor) -> torch.Tensor:
        total = local.proximal_mu / 2 * (weights - torch.from_numpy(start)).square().sum()
        total = total + local.l2_sp / 2 * (weights - torch.from_numpy(initial)).square().sum()
        for spec in layout.specs:
            matrix = weights[layout.slices[spec.name]].reshape(spec.shape)
            if spec.part in ("lora_A", "lora_B"):
                rows = matrix if spec.part == "lora_A" else matrix.T
                total = total + local.orthogonality * pairs(rows)
        return total

    return autograd(loss, at).astype(np.float32)


@pytest.mark.parametrize("key", ["proximal_mu", "l2_sp", "orthogonality", "all"])
@pytest.mark.parametrize("parts", [{"lora_A", "head"}, {"lora_B", "head"}, {"lora_A", "lora_B"}])
def test_the_terms_of_a_plan_are_torchs(recipe: Recipe, parts: set[str], key: str) -> None:
    """B's columns and A's rows are those along the rank; a head has none."""
    keys = ("proximal_mu", "l2_sp", "orthogonality")
    local = Local(**{name: 0.3 for name in keys if key in (name, "all")})
    layout = recipe.layout.only(parts)
    rng = np.random.default_rng(4)
    start, at, gradient = rng.normal(size=(3, layout.size)).astype(np.float32)
    initial = layout.flatten({s.name: recipe.start()[s.name] for s in layout.specs})
    expected = gradient + terms_in_torch(layout, local, start, initial, at)
    Terms(layout, local, start, recipe).add(gradient, at)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_without_terms_a_gradient_keeps_its_bits(recipe: Recipe) -> None:
    gradient = np.random.default_rng(4).normal(size=recipe.layout.size).astype(np.float32)
    before = gradient.copy()
    Terms(recipe.layout, Local(), gradient, None).add(gradient, before + 1)
    assert gradient.tobytes() == before.tobytes()


@pytest.mark.parametrize("key", ["l2_sp", "orthogonality"])
def test_a_term_of_a_plan_is_never_left_out(recipe: Recipe, key: str) -> None:
    start = np.zeros(recipe.layout.size, np.float32)
    with pytest.raises(ValueError, match="of a plan on a base"):
        Terms(recipe.layout, Local(**{key: 1.0}), start, None)


def test_l2_sp_of_a_run_that_goes_on_pulls_to_what_it_goes_on_from(recipe: Recipe) -> None:
    """Not to what its seed gives, which nobody may take for it."""
    start = Start(**START, settings=recipe.plan.adapter_settings)
    on = Recipe(plan=recipe.plan.model_copy(update={"start": start}), manifest=recipe.manifest)
    layout = on.layout.only({"lora_B", "head"})
    local, rng = Local(l2_sp=0.5), np.random.default_rng(4)
    at, from_there, gradient = rng.normal(size=(3, layout.size)).astype(np.float32)
    round_0 = recipe.start() | layout.unflatten(from_there)
    expected = gradient + np.float32(0.5) * (at - from_there)
    Terms(layout, local, at, on, round_0).add(gradient, at)
    assert gradient.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="does not follow from its seed"):
        Terms(layout, local, at, on)


def test_l2_sp_pulls_to_round_0_and_fedprox_to_the_rounds_start(
    tiny_base: Path, make_plan: Make, encoded: Encoded
) -> None:
    """One SGD step from elsewhere: at the round's start FedProx has no gradient, L2-SP has all of it."""
    worker = Worker(make_plan(), tiny_base, threads=1)
    recipe, rate, strength = worker.recipe, 0.1, 2.0
    initial = recipe.layout.flatten(recipe.start())
    begun = initial + np.random.default_rng(5).normal(0, 0.05, initial.shape).astype(np.float32)

    def after(**terms: float) -> Vector:
        local = Local(**(SGD | {"batch_size": 8, "max_steps": 1} | terms))
        start = recipe.layout.unflatten(begun)
        trained = train(
            worker.engine,
            start,
            encoded,
            local=local,
            parts=recipe.trainable,
            seed=0,
            recipe=recipe,
        )
        return recipe.layout.flatten(trained.tensors)

    plain = after()
    assert after(proximal_mu=strength).tobytes() == plain.tobytes()
    pulled = plain - rate * strength * (begun - initial)
    np.testing.assert_allclose(after(l2_sp=strength), pulled, atol=1e-6)


def test_a_client_trains_with_its_plans_terms(
    tiny_base: Path, make_plan: Make, encoded: Encoded, instruct: Callable[..., object]
) -> None:
    """From round 0 on: A's rows are drawn at random, and the term makes them less alike."""

    def update(**local: float) -> Vector:
        plan = make_plan(rule={"name": "mean"}, local={"batch_size": 8, "max_steps": 4} | local)
        worker = Worker(plan, tiny_base, threads=1)
        instruction, adapter = instruct(plan)
        done = worker.contribute(client="c", instruction=instruction, adapter=adapter, rows=encoded)
        start = worker.recipe.layout.flatten(worker.recipe.start())
        named = worker.recipe.layout.unflatten(start + done.update)
        return sum(
            float(np.square(overlap(value)).sum())
            for name, value in named.items()
            if name.endswith("lora_A")
        )

    assert update(orthogonality=10.0) < 0.9 * update()
