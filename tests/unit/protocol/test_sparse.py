"""Rows that are trained: found once, by the first round's sum, and then nothing else moves."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.errors import PlanError
from protocol.legality import verify_legal
from protocol.manifest import BaseManifest
from protocol.methods.sparse import Sparse, SparseSettings, is_selection, selection
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from tests.unit.audit.small_bases import small_manifest

ROWS = 3
MANIFEST = small_manifest()
scouts = arrays.arrays(
    np.float32,
    st.tuples(st.integers(ROWS, 9), st.just(ROWS)),
    elements=st.floats(-100, 100, width=32),
)


def coded(values: Iterable[int]) -> str:
    return base64.b64encode(bytes(values)).decode()


def plan_of(manifest: BaseManifest, **sections: object) -> Plan:
    document: dict[str, object] = {
        "name": "rows",
        "rounds": 4,
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"labels": ["a", "b", "c"]},
        "adapter": {"method": "sparse", "rank": ROWS, "targets": ["query"]},
        "rule": {"name": "alternating"},
    }
    return plan_from(document | sections, source="test")


@given(scout=scouts)
def test_the_largest_rows_are_chosen_and_stay_so(scout: np.ndarray) -> None:
    chosen = selection(scout)
    rows = np.flatnonzero(chosen.any(axis=1))
    assert len(rows) == ROWS
    assert np.array_equal(chosen[rows], np.eye(ROWS))
    norms = np.linalg.norm(scout.astype(np.float64), axis=1)
    assert norms[rows].min() >= np.delete(norms, rows).max(initial=0) * (1 - 1e-12)
    assert is_selection(chosen)
    assert is_selection(scout) == np.array_equal(scout, chosen)


@given(scout=scouts, seed=st.integers(0, 2**32 - 1))
def test_a_second_settling_changes_nothing(scout: np.ndarray, seed: int) -> None:
    """The first takes A away, as it has done its work; later ones leave what A has learnt."""
    method, settings = Sparse(), SparseSettings(rank=ROWS)
    factor = np.random.default_rng(seed).normal(size=(ROWS, 5)).astype(np.float32)
    found = method.settled({"x.lora_A": factor, "x.lora_B": scout}, settings, 1, 4)
    if not is_selection(scout):
        assert not found["x.lora_A"].any()
    learnt = found | {"x.lora_A": factor}
    for number in (2, 3):
        again = method.settled(learnt, settings, number, 4)
        assert np.array_equal(again["x.lora_A"], factor)
        assert np.array_equal(again["x.lora_B"], found["x.lora_B"])


def test_of_a_round_that_was_void_the_first_rows_are_taken() -> None:
    """Nobody's update was seen: any rows would do, and everybody takes the same."""
    assert np.array_equal(selection(np.zeros((5, 2), np.float32)), np.eye(5, 2))


def test_the_first_round_sends_one_factor_and_all_others_the_other() -> None:
    recipe = Recipe(plan=plan_of(MANIFEST), manifest=MANIFEST)
    parts = [recipe.parts(number) - {"head"} for number in range(1, 6)]
    assert parts == [{"lora_B"}, *[{"lora_A"}] * 4]
    assert recipe.rule.exact(recipe.method)
    assert len(recipe.phases) == 2


def test_with_a_head_by_turns_the_first_round_is_still_one() -> None:
    """Three turns of the head beside: the opening and three others, whatever the round's number."""
    width = MANIFEST.head.in_features
    directions = {"rows": [coded(range(n, n + width)) for n in range(3)], "scale": 0.1, "turns": 3}
    head = {"rows": [coded(range(3))] * 3, "scale": 0.1, "directions": directions}
    recipe = Recipe(plan=plan_of(MANIFEST, head=head), manifest=MANIFEST)
    assert len(recipe.phases) == 4
    for number in range(1, 12):
        parts = recipe.parts(number)
        assert f"head_{(number - 1) % 3}" in parts
        assert ("lora_B" in parts) == (number == 1) != ("lora_A" in parts)


@pytest.mark.parametrize(
    ("sections", "cause"),
    [
        ({"rule": {"name": "mean"}}, "`rule.name`: method `sparse` learns in a first round"),
        ({"rule": {"name": "first"}}, "`rule.name`: method `sparse` learns in a first round"),
        ({"local": {"l2_sp": 0.1}}, "`local.l2_sp`: it pulls to round 0"),
    ],
)
def test_what_would_train_something_else_is_refused(
    sections: dict[str, object], cause: str
) -> None:
    verify_legal(plan_of(MANIFEST), MANIFEST)
    with pytest.raises(PlanError, match=cause):
        verify_legal(plan_of(MANIFEST, **sections), MANIFEST)


def test_it_is_no_member_of_a_hybrid() -> None:
    members = [{"method": "sparse"}, {"method": "bias"}]
    with pytest.raises(PlanError, match=r"adapter\.members\.0\.method"):
        plan_of(MANIFEST, adapter={"method": "hybrid", "members": members})
