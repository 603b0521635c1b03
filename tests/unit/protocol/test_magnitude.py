"""Magnitude pruning: laws, vectors read without fedge, and what of an adapter it leaves whole. (P-5.6)"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.encoding import vector_digest
from protocol.errors import PlanError
from protocol.magnitude import kept_count, largest_alone, pruned
from protocol.peft_format import Published, to_edge
from protocol.plan import plan_from, plan_from_text
from protocol.recipe import Recipe
from tests.unit.audit.small_bases import small_manifest
from tests.unit.published_vectors import load

SHARES = st.floats(1e-3, 1.0)
VALUES = arrays.arrays(
    np.float32,
    arrays.array_shapes(max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)


@given(VALUES, SHARES)
def test_what_is_kept(values: Any, keep: float) -> None:
    """So many as said, to the bit; none that is left out is larger, nor as large and earlier."""
    kept, size = largest_alone(values, keep), values.size
    count = kept_count(size, keep)
    assert kept.shape == values.shape
    assert kept.dtype == np.float32
    assert 1 <= count <= size
    assert keep * size <= count < keep * size + 1
    flat, result = values.reshape(-1), kept.reshape(-1)
    ordered = sorted(range(size), key=lambda at: (-abs(float(flat[at])), at))
    for at in ordered[:count]:
        assert result[at].tobytes() == flat[at].tobytes()
    for at in ordered[count:]:
        assert result[at].tobytes() == bytes(4)


@given(VALUES, SHARES)
def test_again_it_is_the_same(values: Any, keep: float) -> None:
    kept = largest_alone(values, keep)
    assert largest_alone(kept, keep).tobytes() == kept.tobytes()


@given(VALUES, SHARES, SHARES)
def test_a_smaller_share_is_part_of_a_larger_one(values: Any, one: float, other: float) -> None:
    low, high = (largest_alone(values, keep) for keep in sorted((one, other)))
    assert np.all((low == 0) | (low == high))


@given(VALUES, SHARES)
def test_how_a_tensor_lies_in_memory_says_nothing(values: Any, keep: float) -> None:
    kept = largest_alone(values, keep)
    assert largest_alone(np.asfortranarray(values), keep).tobytes() == kept.tobytes()


@given(st.lists(VALUES, min_size=2, max_size=4), SHARES, st.randoms())
def test_tensors_are_cut_down_each_alone_in_any_order(
    values: list[Any], keep: float, random: Any
) -> None:
    tensors = {str(number): value for number, value in enumerate(values)}
    names = list(tensors)[1:]
    shuffled = dict(random.sample(list(tensors.items()), len(tensors)))
    cut, again = pruned(tensors, names, keep), pruned(shuffled, reversed(names), keep)
    assert cut["0"] is tensors["0"]  # not named
    for name in names:
        assert cut[name].tobytes() == again[name].tobytes()
        assert cut[name].tobytes() == largest_alone(tensors[name], keep).tobytes()


def test_the_whole_is_the_very_tensors() -> None:
    tensors = {"a": np.array([0.0, -0.0], np.float32)}
    assert pruned(tensors, ["a"], 1.0) is tensors


@pytest.mark.parametrize("case", load("magnitude.json")["published"], ids=lambda case: case["what"])
def test_vectors(case: dict[str, Any]) -> None:
    """In Python's own numbers."""
    data = bytes.fromhex(case["values"])
    words = [data[at : at + 4] for at in range(0, len(data), 4)]
    size = math.prod(case["shape"])
    assert len(words) == size
    magnitudes = [abs(struct.unpack("<f", word)[0]) for word in words]
    count = math.ceil(float.fromhex(case["keep"]) * size)
    kept = sorted(range(size), key=lambda at: (-magnitudes[at], at))[:count]
    expected = [word if at in kept else bytes(4) for at, word in enumerate(words)]
    assert b"".join(expected).hex() == case["kept"]


def recipe_of(keep: float) -> Recipe:
    manifest = small_manifest()
    document = {
        "name": "p",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"labels": ["a", "b", "c"], "max_length": 16},
        "adapter": {"rank": 2},
        "release": {"keep": keep},
    }
    return Recipe(plan=plan_from(document, source="test"), manifest=manifest)


def test_the_head_stays_and_the_adapter_that_trains_is_whole() -> None:
    whole, cut = recipe_of(1.0), recipe_of(0.25)
    rng = np.random.default_rng(0)
    tensors = whole.layout.unflatten(rng.normal(size=whole.layout.size).astype(np.float32))
    before = {name: value.copy() for name, value in tensors.items()}
    published = cut.published(tensors)
    for name, value in whole.published(tensors).items():
        if name.startswith("classifier."):
            assert published[name].tobytes() == value.tobytes()
        else:
            assert np.count_nonzero(published[name]) == kept_count(value.size, 0.25)
    assert all(tensors[name].tobytes() == value.tobytes() for name, value in before.items())
    vectors = [whole.published_layout.flatten(x) for x in (published, whole.published(tensors))]
    assert vector_digest(vectors[0]) != vector_digest(vectors[1])


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1])
def test_zeros_of_factors_are_zeros_of_slots(keep: float) -> None:
    recipe = recipe_of(keep)
    rng = np.random.default_rng(1)
    tensors = recipe.layout.unflatten(rng.normal(size=recipe.layout.size).astype(np.float32))
    published = recipe.published(tensors)
    slots = to_edge(published, published=Published.by(recipe.plan.adapter))
    for ends in ("lora_A", "lora_B"):
        pair = [
            sum(np.count_nonzero(x) for name, x in each.items() if name.endswith(ends))
            for each in (published, slots)
        ]
        assert pair[0] == pair[1] > 0


def test_a_plan_that_keeps_all_is_the_plan_of_before() -> None:
    whole, cut = recipe_of(1.0).plan, recipe_of(0.5).plan
    unsaid = plan_from(whole.model_dump(exclude={"release"}), source="test")
    assert whole.digest == unsaid.digest != cut.digest
    assert "keep" not in whole.render()
    assert '"keep": 0.5' in cut.render()
    assert plan_from_text(cut.render(), source="plan.json").digest == cut.digest


@pytest.mark.parametrize("keep", [0.0, 0.0009, 1.0001, -0.5, math.nan, 2, "0.5"])
def test_a_share_is_a_real_number_of_the_table(keep: object) -> None:
    with pytest.raises(PlanError, match=r"release\.keep"):
        plan_from(recipe_of(1.0).plan.model_dump() | {"release": {"keep": keep}}, source="test")
