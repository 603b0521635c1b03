"""A head that the plan carries: its numbers, who sends it, and what is refused. (P-2.7)"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from base_model.verify import read_manifest
from protocol.errors import ArtefactError, PlanError
from protocol.head import HeadStart, head_of
from protocol.initial import Law
from protocol.legality import check
from protocol.plan import Plan, plan_from, plan_from_text
from protocol.recipe import Recipe, verify_magnitude
from server.starting import verify_directions

LABELS = ["light", "music", "timer"]
WEIGHT, BIAS = "classifier.weight", "classifier.bias"
MIX, DIRECTIONS = "classifier.mix_0", "classifier.directions_0"


def row(*codes: int) -> str:
    return base64.b64encode(np.array(codes, np.int8).tobytes()).decode()


def plan_with(fingerprint: str, head: dict[str, Any] | None, **sections: Any) -> Plan:
    document: dict[str, Any] = {
        "name": "named",
        "base": {"fingerprint": fingerprint},
        "task": {"labels": LABELS},
    }
    return plan_from(document | sections | ({"head": head} if head else {}), source="test")


@given(arrays(np.float32, (4, 7), elements=st.floats(-100, 100, width=32)))
def test_vectors_are_centred_of_one_length_and_near(vectors: Any) -> None:
    try:
        head = head_of(vectors, length=3.0, trained=True)
    except ValueError:
        return  # two labels that nothing tells apart
    centred = vectors.astype(np.float64) - vectors.mean(0)
    expected = 3 * centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(head.codes * head.scale, expected, atol=head.scale / 2 * 1.001)
    assert np.abs(head.codes).max() == 127


def test_labels_that_nothing_tells_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="one vector"):
        head_of(np.array([[1.0, 2, 3], [1, 2, 3], [4, 5, 7]]), length=1.0, trained=True)
    with pytest.raises(ValueError, match="mean of all"):
        head_of(np.ones((2, 3)), length=1.0, trained=True)


@pytest.mark.parametrize("trained", [True, False])
def test_the_head_of_round_0_is_the_plans(tiny_base: Path, trained: bool) -> None:
    manifest = read_manifest(tiny_base)
    codes = np.random.default_rng(1).integers(-127, 128, (3, manifest.head.in_features))
    head = {"rows": [row(*line) for line in codes], "scale": 0.3, "trained": trained}
    recipe = Recipe(plan=plan_with(manifest.fingerprint, head), manifest=manifest)
    expected = (codes.astype(np.float64) * 0.3).astype(np.float32)
    assert recipe.start()[WEIGHT].tobytes() == expected.tobytes()
    sent = {spec.name for spec in recipe.round_layout(1).specs}
    assert BIAS in sent
    assert (WEIGHT in sent) == (WEIGHT in {s.name for s in recipe.sent_layout.specs}) == trained
    assert recipe.completed(recipe.sent_layout.flatten(_only(recipe)))[WEIGHT].tobytes() == (
        expected.tobytes()
    )
    assert not [f for f in check(recipe.plan, manifest) if f.severity == "error"]


@given(arrays(np.float32, (5, 7), elements=st.floats(-100, 100, width=32)), st.integers(1, 7))
def test_a_head_of_low_rank_is_the_nearest_of_its_rank(vectors: Any, rank: int) -> None:
    """In directions at right angles, which may be all that there are."""
    try:
        head, whole = (head_of(vectors, length=3.0, rank=r) for r in (rank, 0))
    except ValueError:
        return  # two labels that nothing tells apart
    assert head.directions is not None
    mix, directions = head.codes * head.scale, head.directions.codes * head.directions.scale
    lengths = np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(lengths, np.sqrt(7 / rank), rtol=0.05)
    products = directions @ directions.T * rank / 7
    np.testing.assert_allclose(products, np.eye(rank), atol=0.05)
    left, values, right = np.linalg.svd(whole.codes * whole.scale)
    nearest = (left[:, :rank] * values[:rank]) @ right[: min(rank, 5)]
    error = np.linalg.norm(mix @ directions - whole.codes * whole.scale)
    assert error <= np.linalg.norm(nearest - whole.codes * whole.scale) + 0.2


def low_rank_plan(manifest: Any, **others: Any) -> Plan:
    rng = np.random.default_rng(4)
    rows = [row(*rng.integers(-127, 128, 2)) for _ in LABELS]
    directions = [row(*rng.integers(-127, 128, manifest.head.in_features)) for _ in range(2)]
    head = {"rows": rows, "scale": 0.01, "directions": {"rows": directions, "scale": 0.02}}
    return plan_with(manifest.fingerprint, head | others)


def test_of_a_head_of_low_rank_the_mix_is_sent_and_the_whole_is_published(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    plan = low_rank_plan(manifest)
    recipe = Recipe(plan=plan, manifest=manifest)
    sent = {spec.name: spec.shape for spec in recipe.round_layout(1).specs}
    assert sent[MIX] == (3, 2)
    assert not {WEIGHT, DIRECTIONS} & sent.keys()
    assert recipe.layout.only(recipe.trained).size < recipe.layout.size
    start = recipe.completed(recipe.sent_layout.flatten(_only(recipe)))
    directions = start[DIRECTIONS].astype(np.float64)
    whole = start[MIX][:, :1].astype(np.float64) * directions[0]
    whole += start[MIX][:, 1:].astype(np.float64) * directions[1]
    published = recipe.published(start)
    assert published[WEIGHT].tobytes() == whole.astype(np.float32).tobytes()
    assert recipe.published_layout.flatten(published).size > recipe.layout.size
    again = recipe.resumed(published)
    np.testing.assert_allclose(again[MIX], start[MIX], atol=1e-5)
    assert not [f for f in check(plan, manifest) if f.severity == "error"]
    assert plan_from_text(plan.render(), source="plan.json").digest == plan.digest
    with pytest.raises(ArtefactError, match="none of the plan's directions"):
        recipe.resumed(published | {WEIGHT: np.ones_like(published[WEIGHT])})


def test_a_head_of_low_rank_of_another_width_or_behind_a_start_is_refused(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    other = {"rows": GOOD, "scale": 1.0, "directions": {"rows": [row(1), row(2)], "scale": 1.0}}
    errors = [f.field for f in check(plan_with(manifest.fingerprint, other), manifest)]
    assert "head.directions.rows" in errors


def test_who_goes_on_moves_in_the_same_directions(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    recipe = Recipe(plan=low_rank_plan(manifest), manifest=manifest)
    adapter = dict(recipe.start()) | {MIX: recipe.start()[MIX] + 1}
    verify_directions(adapter, recipe)
    with pytest.raises(PlanError, match=r"`head\.directions`: .* moves in others"):
        verify_directions(adapter | {DIRECTIONS: adapter[DIRECTIONS] * 2}, recipe)


def test_turns_share_directions_and_with_them_what_a_round_sends(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    rng = np.random.default_rng(4)
    codes = rng.integers(-127, 128, (3, 5)), rng.integers(-127, 128, (5, manifest.head.in_features))
    directions = {"rows": [row(*line) for line in codes[1]], "scale": 0.02, "turns": 2}
    head = {"rows": [row(*line) for line in codes[0]], "scale": 0.01, "directions": directions}
    recipes = [
        Recipe(
            plan=plan_with(
                manifest.fingerprint, head | {"directions": directions | {"turns": turns}}
            ),
            manifest=manifest,
        )
        for turns in (1, 2)
    ]
    recipe = recipes[1]
    assert len(recipe.phases) == 2  # of alternating, each with one of the head's
    of_mix = [
        {n.name for n in recipe.round_layout(t).specs if ".mix_" in n.name} for t in (1, 2, 3)
    ]
    assert of_mix == [{"classifier.mix_0"}, {"classifier.mix_1"}, {"classifier.mix_0"}]
    assert all(BIAS in {s.name for s in recipe.round_layout(t).specs} for t in (1, 2))
    once, shared = (r.published(r.start())[WEIGHT] for r in recipes)
    np.testing.assert_allclose(shared, once, rtol=1e-5, atol=1e-7)  # the sum's order is another
    start = recipe.start()
    np.testing.assert_array_equal(
        start["classifier.mix_1"], (codes[0][:, 1::2] * 0.01).astype(np.float32)
    )
    again = recipe.resumed(recipe.published(start))
    for name in ("classifier.mix_0", "classifier.mix_1"):
        np.testing.assert_allclose(again[name], start[name], atol=1e-5)
    assert recipe.rule.exact(recipe.method)
    short = recipe.plan.model_copy(update={"rounds": 1})
    (warned,) = [f for f in check(short, manifest) if f.field == "rounds"]
    assert (warned.severity, "every turn of the head, 2" in warned.cause) == ("warning", True)


def _only(recipe: Recipe) -> Any:
    start = recipe.start()
    return {spec.name: start[spec.name] for spec in recipe.sent_layout.specs}


def test_a_plan_without_one_says_nothing_of_it(tiny_base: Path) -> None:
    plan = plan_with(read_manifest(tiny_base).fingerprint, None)
    assert '"head"' not in plan.render()
    width = read_manifest(tiny_base).head.in_features
    rows = [row(*([number + 1] * width)) for number in range(3)]
    named = plan_with(plan.base.fingerprint, {"rows": rows, "scale": 1.0})
    assert plan_from_text(named.render(), source="plan.json").digest == named.digest
    fixed = plan_with(plan.base.fingerprint, {"rows": rows, "scale": 1.0, "trained": False})
    assert len({plan.digest, named.digest, fixed.digest}) == 3


GOOD = [row(1, 2), row(3, 4), row(5, 6)]


@pytest.mark.parametrize(
    ("head", "sections", "cause"),
    [
        ({"rows": GOOD[:2], "scale": 1.0}, {}, "it has 2 rows, the task 3 labels"),
        ({"rows": [*GOOD[:2], row(5)], "scale": 1.0}, {}, "rows have 1 to 2 codes"),
        ({"rows": [*GOOD[:2], "AAAAA"], "scale": 1.0}, {}, "row 2 is not base64"),
        ({"rows": [*GOOD[:2], "AAB="], "scale": 1.0}, {}, "row 2 is not the one spelling"),
        ({"rows": [*GOOD[:2], "AA=="], "scale": 1.0}, {}, "rows have 1 to 2 codes"),
        ({"rows": [*GOOD[:2], "A A="], "scale": 1.0}, {}, "head.rows.2"),
        ({"rows": [*GOOD[:2], "A=="], "scale": 1.0}, {}, "head.rows.2"),
        ({"rows": GOOD, "scale": 0.0}, {}, "head.scale"),
        ({"rows": GOOD}, {}, "`head.scale` is missing"),
        ({"rows": GOOD, "scale": 1.0, "fixed": True}, {}, "unknown key `head.fixed`"),
        (
            {"rows": GOOD, "scale": 1.0, "directions": {"rows": GOOD, "scale": 1.0}},
            {},
            "rows have 2 codes for 3 directions",
        ),
        (
            {
                "rows": GOOD,
                "scale": 1.0,
                "trained": False,
                "directions": {"rows": GOOD[:2], "scale": 1.0},
            },
            {},
            "with directions it is trained",
        ),
        (
            {
                "rows": GOOD,
                "scale": 1.0,
                "directions": {"rows": GOOD[:2], "scale": 1.0, "turns": 3},
            },
            {},
            "3 turns share 2 directions",
        ),
        (
            {"rows": GOOD, "scale": 1.0, "directions": {"rows": GOOD[:2]}},
            {},
            "`head.directions.scale` is missing",
        ),
        (
            {"rows": GOOD, "scale": 1.0},
            {"task": {"kind": "regression", "low": 0.0, "high": 1.0}},
            "it has 3 rows, the task 0 labels",
        ),
    ],
)
def test_what_is_no_head_is_refused(
    head: dict[str, Any], sections: dict[str, Any], cause: str
) -> None:
    with pytest.raises(PlanError, match=cause):
        plan_with("0" * 64, head, **sections)


def test_a_head_of_another_base_and_one_that_leaves_nothing_to_train_are_said(
    tiny_base: Path,
) -> None:
    manifest = read_manifest(tiny_base)
    other = plan_with(manifest.fingerprint, {"rows": GOOD, "scale": 1.0})
    errors = [f for f in check(other, manifest) if f.severity == "error"]
    assert [(f.field, "2 numbers, the base gives" in f.cause) for f in errors] == [
        ("head.rows", True)
    ]
    width = manifest.head.in_features
    rows = [row(*([number + 1] * width)) for number in range(3)]
    alone = plan_with(
        manifest.fingerprint,
        {"rows": rows, "scale": 1.0, "trained": False},
        adapter={"method": "head"},
    )
    warned = [f.field for f in check(alone, manifest) if f.severity == "warning"]
    assert "head.trained" in warned


LIMIT = 64 / 127


@pytest.mark.parametrize(
    ("code", "scale", "refused"),
    [
        (127, LIMIT, False),
        (127, LIMIT * (1 + 1e-9), False),  # in float32, as clients have it, that is 64
        (127, LIMIT * (1 + 1e-6), True),
        (-127, LIMIT * (1 + 1e-6), True),
        (-128, LIMIT, True),
        (-128, 0.5, False),
        (1, 1e30, True),
    ],
)
@pytest.mark.parametrize("trained", [True, False])
def test_a_plan_is_illegal_where_clients_would_refuse_its_head(
    tiny_base: Path, code: int, scale: float, refused: bool, trained: bool
) -> None:
    """Coordinator, auditor and client say the same, with the base at hand or without it."""
    manifest = read_manifest(tiny_base)
    rows = [
        row(*[0] * (manifest.head.in_features - 1), code - number * (code // abs(code)))
        for number in range(2)
    ]
    rows.append(row(*[0] * manifest.head.in_features))
    plan = plan_with(manifest.fingerprint, {"rows": rows, "scale": scale, "trained": trained})
    start = Recipe(plan=plan, manifest=manifest).start()[WEIGHT].reshape(-1)
    if refused:
        with pytest.raises(ArtefactError, match="the most is 64"):
            verify_magnitude(start)
    else:
        verify_magnitude(start)
    for findings in (check(plan), check(plan, manifest)):
        errors = [f.field for f in findings if f.severity == "error"]
        assert errors == (["head.scale"] if refused else [])


@pytest.mark.parametrize("refused", ["head.scale", "head.directions.scale"])
def test_so_it_is_for_both_matrices_of_a_head_of_low_rank(tiny_base: Path, refused: str) -> None:
    manifest = read_manifest(tiny_base)
    scales = {
        name: 0.51 if name == refused else 0.5 for name in ("head.scale", "head.directions.scale")
    }
    directions = [row(*[number + 1] * (manifest.head.in_features - 1), -128) for number in range(2)]
    head = {
        "rows": [row(-128, 0), row(0, 1), row(2, 3)],
        "scale": scales["head.scale"],
        "directions": {"rows": directions, "scale": scales["head.directions.scale"]},
    }
    plan = plan_with(manifest.fingerprint, head)
    for findings in (check(plan), check(plan, manifest)):
        assert [f.field for f in findings if f.severity == "error"] == [refused]


@pytest.mark.parametrize("deviation", [10.0, 12.0, 40.0, 1e30])
def test_so_it_is_where_the_base_makes_what_is_drawn_too_large(
    tiny_base: Path, deviation: float
) -> None:
    manifest = read_manifest(tiny_base).model_copy(update={"embedding_std": deviation})
    short = {"labels": LABELS, "max_length": 8}
    adapter = {"method": "prompt", "tokens": 20}
    plan = plan_with(manifest.fingerprint, None, adapter=adapter, task=short)
    drawn = Recipe(plan=plan, manifest=manifest).start()["soft_prompt"].reshape(-1)
    errors = [f for f in check(plan, manifest) if f.severity == "error"]
    assert [f.field for f in errors] == ["adapter.method"] * bool(np.abs(drawn).max() > 64)
    assert bool(errors) == (deviation > 12)
    assert all("round 0 of `soft_prompt`" in f.cause for f in errors)


@given(
    st.sampled_from(["zeros", "ones", "uniform", "normal", "orthonormal rows", "codes"]),
    st.floats(1e-6, 1e6),
    st.integers(0, 2**32),
)
def test_no_law_draws_beyond_its_bound(kind: Any, scale: float, seed: int) -> None:
    law = Law(kind, scale, bytes(np.random.default_rng(seed).integers(0, 256, 12, np.uint8)))
    largest = float(np.abs(law.draw(seed, (3, 4))).max())
    assert largest <= law.bound * (1 + 1e-6)
    if kind in ("ones", "codes"):
        assert largest == law.bound


def test_codes_are_signed() -> None:
    head = HeadStart(rows=[row(-128, 127), row(0, -1)], scale=1.0)
    assert head.codes.tolist() == [[-128, 127], [0, -1]]
