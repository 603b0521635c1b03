"""Steps of an adapter's first ranks: each is what a step of an adapter of that rank is, on either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.verify import read_manifest
from client.batches import Encoded
from client.engine.interface import Engine
from client.engine.torch_engine import TorchEngine
from client.optimizers import ByRank
from client.ranks import Ranks, places
from client.training import train
from protocol.layout import HEAD_PART, Layout, Tensors, TensorSpec
from protocol.methods import METHODS
from protocol.methods.lora import Lora, LoraSettings
from protocol.plan import Plan
from protocol.plan_sections import Local
from protocol.recipe import Recipe

Make = Callable[..., Plan]
RANK, ALPHA = 4, 8.0
TERMS = {"proximal_mu": 0.3, "l2_sp": 0.2, "orthogonality": 0.5}


class Drawing(Lora):
    """LoRA whose steps use the ranks of a list."""

    def __init__(self, *used: int) -> None:
        self.used = used

    def ranks_used(self, settings: LoraSettings, generator: np.random.Generator) -> Iterator[int]:
        return cycle(self.used)


@pytest.fixture
def recipe_of(
    tiny_base: Path, make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recipe]:
    """LoRA of a rank with the same s; its steps use ``used``, or all."""

    def make(rank: int = RANK, *used: int) -> Recipe:
        monkeypatch.setitem(METHODS, "lora", Drawing(*used) if used else Lora())
        plan = make_plan(adapter={"rank": rank, "alpha": ALPHA / RANK * rank})
        recipe = Recipe(plan=plan, manifest=read_manifest(tiny_base))
        assert recipe.method is METHODS["lora"]  # resolved while it is there
        return recipe

    return make


def first(tensors: Tensors, used: int) -> Tensors:
    """Factors cut to a rank."""
    cut = {"lora_A": np.s_[:used], "lora_B": np.s_[:, :used]}
    return {
        name: np.ascontiguousarray(value[cut.get(name.rpartition(".")[2], np.s_[:])])
        for name, value in tensors.items()
    }


def trained(
    engine: Engine, recipe: Recipe, start: Tensors, rows: Encoded, parts: set[str], **local: Any
) -> Tensors:
    settings = Local(**({"batch_size": 8, "max_steps": 5, "weight_decay": 0.05} | local))
    return train(
        engine, start, rows, local=settings, parts=frozenset(parts), seed=3, recipe=recipe
    ).tensors


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("parts", [{"lora_A", "lora_B", "head"}, {"lora_B", "head"}])
@pytest.mark.parametrize("terms", [{}, TERMS])
def test_steps_of_the_first_ranks_are_those_of_a_smaller_adapter(
    recipe_of: Callable[..., Recipe],
    engine_of: Callable[[Plan], Engine],
    random_adapter: Callable[..., Tensors],
    encoded: Encoded,
    optimizer: str,
    parts: set[str],
    terms: dict[str, float],
) -> None:
    """Also where one factor is fixed, whose other rows would give B's other columns gradients."""
    local = {"optimizer": optimizer, "learning_rate": 0.02} | terms
    whole = recipe_of(RANK, 2)
    start = random_adapter(whole.plan)
    after = trained(engine_of(whole.plan), whole, start, encoded, parts, **local)
    initial = whole.start()
    small = recipe_of(2)
    small.__dict__["start"] = lambda: first(initial, 2)
    expected = trained(engine_of(small.plan), small, first(start, 2), encoded, parts, **local)
    for name, value in first(after, 2).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name, value in after.items():
        rest = np.s_[:, 2:] if name.endswith("lora_B") else np.s_[2:]
        if "lora" in name:
            assert value[rest].tobytes() == start[name][rest].tobytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_both_engines_train_the_ranks_that_are_drawn(
    tiny_base: Path,
    recipe_of: Callable[..., Recipe],
    engine_of: Callable[[Plan], Engine],
    random_adapter: Callable[..., Tensors],
    encoded: Encoded,
    optimizer: str,
) -> None:
    recipe = recipe_of(RANK, 3, 1, 4, 2, 1)
    start = random_adapter(recipe.plan)
    engines = [engine_of(recipe.plan), TorchEngine(tiny_base, recipe, threads=1)]
    parts = {"lora_A", "lora_B", "head"}
    one, other = (
        trained(engine, recipe, start, encoded, parts, optimizer=optimizer) for engine in engines
    )
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-5, err_msg=name)
        if "lora" in name:
            assert not np.array_equal(value, start[name])


def test_all_ranks_are_a_step_like_any_other(
    recipe_of: Callable[..., Recipe],
    engine_of: Callable[[Plan], Engine],
    random_adapter: Callable[..., Tensors],
    encoded: Encoded,
) -> None:
    parts = {"lora_A", "lora_B", "head"}
    plain = recipe_of()
    start = random_adapter(plain.plan)
    engine = engine_of(plain.plan)
    expected = trained(engine, plain, start, encoded, parts, **TERMS)
    drawn = trained(engine, recipe_of(RANK, RANK), start, encoded, parts, **TERMS)
    assert all(drawn[name].tobytes() == expected[name].tobytes() for name in expected)


LAYOUT = Layout(
    (
        TensorSpec(name="a", shape=(3, 5), part="lora_A"),
        TensorSpec(name="b", shape=(2, 3), part="lora_B"),
        TensorSpec(name="head.bias", shape=(4,), part=HEAD_PART),
    )
)
PLACES = np.concatenate([np.repeat([0, 1, 2], 5), np.tile([0, 1, 2], 2), np.zeros(4, np.int64)])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_rank_that_a_step_leaves_out_is_one_without_a_gradient_in_torch(
    optimizer: str, decay: float
) -> None:
    """torch passes over parameters without one: no moment, no decay and no count of it moves."""
    local = Local(optimizer=optimizer, weight_decay=decay, learning_rate=0.1)
    rng = np.random.default_rng(8)
    weights = rng.normal(size=LAYOUT.size).astype(np.float32)
    ranks = [
        {
            rate: torch.nn.Parameter(torch.from_numpy(weights[(rank == PLACES) & of]))
            for rate, of in (
                (0.1, np.arange(LAYOUT.size) < 21),
                (1e-2, np.arange(LAYOUT.size) >= 21),
            )
        }
        for rank in range(3)
    ]
    groups = [{"params": [p], "lr": rate} for each in ranks for rate, p in each.items()]
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    theirs = kind(groups, weight_decay=decay)
    ours = ByRank(PLACES, LAYOUT, local)
    for used in (1, 3, 2, 1, 1, 3, 2, 3):
        gradient = rng.normal(size=LAYOUT.size).astype(np.float32)
        before = weights.copy()
        for rank, each in enumerate(ranks):
            for rate, parameter in each.items():
                of = np.arange(LAYOUT.size) >= 21 if rate == 1e-2 else np.arange(LAYOUT.size) < 21
                own = torch.from_numpy(gradient[(rank == PLACES) & of])
                parameter.grad = own if rank < used else None
        theirs.step()
        ours.step(weights, gradient, used)
        left_out = ours.left_out(used)
        assert weights[left_out].tobytes() == before[left_out].tobytes()
        assert np.array_equal(left_out, used <= PLACES)
    for rank, each in enumerate(ranks):
        expected = torch.cat(list(each.values())).detach().numpy()
        np.testing.assert_allclose(weights[rank == PLACES], expected, rtol=1e-5, atol=1e-6)


def test_places_are_along_every_dimension_of_the_rank(recipe_of: Callable[..., Recipe]) -> None:
    assert places((2, 3), ("rank", None)).tolist() == [[0], [1]]
    assert places((2, 3), (None, "rank")).tolist() == [[0, 1, 2]]
    assert places((2, 2), ("rank", "rank")).tolist() == [[0, 1], [1, 1]]
    assert places((3,), ("rank",)).tolist() == [0, 1, 2]
    assert places((3,), ("labels", None)).tolist() == [0]
    recipe = recipe_of()
    of = Ranks(recipe.layout, recipe).of(recipe.layout)
    assert of.shape == (recipe.layout.size,)
    counts = [sum(s.size for s in recipe.layout.specs if s.part != HEAD_PART) // RANK] * RANK
    counts[0] += recipe.layout.only({HEAD_PART}).size
    assert np.bincount(of).tolist() == counts
