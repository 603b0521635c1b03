from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.adapter import adapter_layout, client_rank, cut_to_rank, initial_adapter, lora_scaling
from protocol.encoding import seed_from
from protocol.layout import Tensors
from protocol.manifest import Manifest
from protocol.plan import Plan
from protocol.rules import Role, rule_named
from server.aggregation import best_factors
from server.store import RunStore

PATHS = ("m.0.query", "m.1.query")


def product(tensors: Tensors, path: str, scaling: float) -> Any:
    a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
    core = tensors.get(f"{path}.lora_R", np.eye(len(a), dtype=np.float32))
    return scaling * b.astype(np.float64) @ core.astype(np.float64) @ a.astype(np.float64)


def mean_of_products(population: Any, state: Any, number: int, used: list[str], path: str) -> Any:
    """What every client would compute with, weighted: the dense truth a rule is measured by."""
    plan, manifest = population.plan, population.manifest
    contract, total, weight = rule_named(plan.rule.name), 0.0, 0
    for client in used:
        rank = client_rank(plan, client)
        layout = adapter_layout(plan, manifest, rank=rank)
        if contract.fresh_each_round:
            seed = seed_from("fresh", plan.seed, number)
            mine = initial_adapter(layout, seed=seed, embedding_std=manifest.embedding_std)
        else:
            full = adapter_layout(plan, manifest, rank=state.rank)
            mine = cut_to_rank(state.adapter, full, rank)
        part = population.contribution(client, number)
        update = layout.only(contract.roles(number)).unflatten(part.update)
        mine = {name: value + update.get(name, 0) for name, value in mine.items()}
        dense = product(mine, path, lora_scaling(plan))
        if contract.fresh_each_round:
            dense = dense + product(state.adapter, path, lora_scaling(plan))
        total, weight = total + part.weight * dense, weight + part.weight
    return total / weight


@pytest.mark.parametrize(
    ("rule", "exact"),
    [
        ("alternating", True),
        ("ffa-lora", True),
        ("fed-sb", True),
        ("flora", True),
        ("fedit", False),
        ("flexlora", False),
    ],
)
def test_a_rule_is_exact_when_its_contract_says_so(
    make_plan: Callable[..., Plan], populate: Any, run: Any, tmp_path: Path, rule: str, exact: bool
) -> None:
    plan = make_plan(rule)
    population = populate(plan)
    run(population, tmp_path / "r")
    assert rule_named(rule).exact is exact
    store = RunStore(tmp_path / "r")
    worst = 0.0
    for number in (1, 2, 3):
        before, _ = store.load(number - 1)
        after, record = store.load(number)
        for path in PATHS:
            truth = mean_of_products(population, before, number, record["used"], path)
            error = np.linalg.norm(product(after.adapter, path, lora_scaling(plan)) - truth)
            worst = max(worst, error / np.linalg.norm(truth))
    store.close()
    assert (worst <= 1e-5) == exact


def test_flexlora_with_mixed_ranks_is_the_best_cut(
    make_plan: Callable[..., Plan], populate: Any, run: Any, tmp_path: Path
) -> None:
    plan = make_plan(
        "flexlora", adapter={"rank": 2, "alpha": 4.0, "targets": ["query"], "client_ranks": [1, 3]}
    )
    population = populate(plan)
    run(population, tmp_path / "r")
    store = RunStore(tmp_path / "r")
    before, _ = store.load(0)
    after, record = store.load(1)
    store.close()
    assert after.rank == 3
    for path in PATHS:
        truth = mean_of_products(population, before, 1, record["used"], path)
        u, s, vt = np.linalg.svd(truth)
        best = (u[:, :3] * s[:3]) @ vt[:3]
        assert np.allclose(product(after.adapter, path, lora_scaling(plan)), best, atol=1e-5)


def test_best_factors_pad_when_there_is_less_to_find() -> None:
    a, b = np.ones((1, 4)), np.arange(3.0)[:, None]
    new_a, new_b = best_factors(a, b, rank=3)
    assert new_a.shape == (3, 4)
    assert new_b.shape == (3, 3)
    assert np.allclose(new_b @ new_a, b @ a)


@pytest.mark.parametrize("rule", ["alternating", "fed-sb"])
def test_only_the_trained_factor_moves(
    make_plan: Callable[..., Plan],
    populate: Any,
    run: Any,
    tmp_path: Path,
    manifest: Manifest,
    rule: str,
) -> None:
    plan = make_plan(rule, server={"optimizer": "fedyogi"})
    run(populate(plan), tmp_path / "r")
    store = RunStore(tmp_path / "r")
    states = [store.load(number)[0] for number in range(4)]
    store.close()
    for number in (1, 2, 3):
        for spec in adapter_layout(plan, manifest).specs:
            moved = (
                states[number].adapter[spec.name] != states[number - 1].adapter[spec.name]
            ).any()
            assert moved == (spec.role in rule_named(rule).roles(number)), spec.name
    assert Role.LORA_B in rule_named("alternating").roles(1)
