"""Low-rank factors of linears that are one product: what they compute, and what is no product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.forms import DOWN, UP
from protocol.joined import (
    joined_slots,
    joined_tensors,
    low_rank_slots,
    products,
    rank_inputs,
    verify_joined,
)
from protocol.manifest import Linear

WIDTH, OUTS = 5, (4, 2, 3)
LINEARS = [
    Linear(path=path, in_features=WIDTH, out_features=out)
    for path, out in zip("qkv", OUTS, strict=True)
]
LINEARS.append(Linear(path="o", in_features=4, out_features=WIDTH))
JOINED = {"qkv": ["q", "k", "v"]}


@given(st.tuples(*[st.integers(0, 3)] * 3), st.integers(0, 99))
def test_the_product_of_joined_factors_is_the_linears_own_side_by_side(
    ranks: tuple[int, ...], seed: int
) -> None:
    rng, tensors, expected = np.random.default_rng(seed), {}, []
    rows = rng.normal(0, 1, (6, WIDTH)).astype(np.float32)
    for linear, rank in zip(LINEARS, ranks, strict=False):
        down = rng.normal(0, 1, (WIDTH, rank)).astype(np.float32)
        up = rng.normal(0, 1, (rank, linear.out_features)).astype(np.float32)
        expected.append(rows @ down @ up)
        if rank:
            tensors |= {linear.path + DOWN: down, linear.path + UP: up}
    tensors["o" + DOWN] = np.ones((4, 1), np.float32)
    before = dict(tensors)
    inputs = joined_tensors(tensors, LINEARS, JOINED)
    assert tensors == before
    assert inputs.pop("o" + DOWN) is before["o" + DOWN]
    if not any(ranks):
        assert inputs == {}
        return
    assert inputs.keys() == {"qkv" + DOWN, "qkv" + UP}
    assert inputs["qkv" + DOWN].shape == (WIDTH, sum(ranks))
    product = rows @ inputs["qkv" + DOWN] @ inputs["qkv" + UP]
    assert np.allclose(product, np.concatenate(expected, axis=1), atol=1e-4)


def test_inputs_are_those_of_products() -> None:
    slots = [
        slot
        for linear in LINEARS
        for slot in low_rank_slots(linear.path, linear.out_features, linear.in_features)
    ]
    shown = {slot.name: slot.shape for slot in joined_slots(slots, LINEARS, JOINED)}
    assert shown == {
        "o.lora_A": [4, "r_o"],
        "o.lora_B": ["r_o", WIDTH],
        "qkv.lora_A": [WIDTH, "r_qkv"],
        "qkv.lora_B": ["r_qkv", 9],
    }
    assert rank_inputs(LINEARS, JOINED) == ["ranks.1", "ranks.3"]
    assert [linear.path for linear in products(LINEARS, JOINED)["qkv"]] == ["q", "k", "v"]
    assert joined_slots(slots, LINEARS, {}) == slots


@pytest.mark.parametrize(
    "joined",
    [
        {"a": ["q", "k"], "b": ["k", "v"]},
        {"a": ["q", "x"]},
        {"a": ["q", "q"]},
        {"a": ["q"]},
        {"a": []},
        {"a": ["q", "o"]},
        {"v": ["q", "k"]},
    ],
)
def test_what_is_no_product_of_linears_is_refused(joined: dict[str, list[str]]) -> None:
    verify_joined(LINEARS, JOINED)
    with pytest.raises(ValueError, match="linear"):
        verify_joined(LINEARS, joined)
