"""What DyLoRA draws, and that nothing else tells it from LoRA."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from base_model.verify import read_manifest
from protocol.encoding import seed_from
from protocol.methods import METHODS
from protocol.plan import plan_from
from protocol.recipe import Recipe


def recipe_of(base: Path, method: str, rank: int = 6) -> Recipe:
    manifest = read_manifest(base)
    document = {"name": "p", "seed": 4, "base": {"fingerprint": manifest.fingerprint}}
    document |= {"task": {"labels": ["a", "b"]}, "adapter": {"method": method, "rank": rank}}
    return Recipe(plan=plan_from(document, source="test"), manifest=manifest)


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_ranks_are_drawn_uniformly_and_alike_from_a_seed(tiny_base: Path, rank: int) -> None:
    recipe = recipe_of(tiny_base, "dylora", rank)
    drawn = []
    for seed in (5, 5, 6):
        generator = np.random.default_rng(seed_from("ranks", seed))
        used = recipe.method.ranks_used(recipe.plan.adapter, generator)
        assert used is not None
        drawn.append(list(islice(used, 3000)))
    assert drawn[0] == drawn[1]
    assert (drawn[0] != drawn[2]) == (rank > 1)
    counts = np.bincount(drawn[0], minlength=rank + 1)
    assert counts[0] == 0
    assert len(counts) == rank + 1
    assert np.abs(counts[1:] - 3000 / rank).max() < 5 * np.sqrt(3000 / rank)


def test_it_begins_as_lora_and_is_published_as_lora(tiny_base: Path) -> None:
    own, plain = (recipe_of(tiny_base, name) for name in ("dylora", "lora"))
    assert own.layout == plain.layout
    assert all(own.start()[name].tobytes() == plain.start()[name].tobytes() for name in own.start())
    config = METHODS["dylora"].peft_config(own.plan.adapter, own.manifest)
    assert config == METHODS["lora"].peft_config(plain.plan.adapter, plain.manifest)
    assert own.constants == plain.constants


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_draw_ranks_are_those_that_say_they_are_nested(name: str) -> None:
    method = METHODS[name]
    used = method.ranks_used(method.settings(), np.random.default_rng(1))
    assert (used is not None) == method.nested == (name == "dylora")
