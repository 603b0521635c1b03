"""Control variates: where clients that differ end with them and without, and what is remembered when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from base_model.verify import read_manifest
from client.batches import Batch, Encoded
from client.control_variates import HELD, Correction, Memory
from client.engine.interface import Values
from client.kept_controls import FileControls
from client.training import train
from protocol.errors import MachineError
from protocol.layout import Layout, Tensors, Vector
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.rules import Parts
from protocol.tensor_file import encode_tensors

Make = Callable[..., Plan]
ROUNDS, BATCH = 40, 8


@dataclass
class Quadratic:
    """A client whose loss is `sum of h (w - b)^2 / 2` over all numbers: h and b (d,) of the full layout."""

    layout: Layout
    h: Vector
    b: Vector
    most: int | None = None

    def gradients(self, tensors: Values, batch: Batch, parts: Parts) -> tuple[float, Tensors]:
        at = self.layout.flatten(dict(tensors))
        rows = len(batch.ids)
        gradient = self.layout.unflatten(rows * self.h * (at - self.b))
        kept = self.layout.only(parts).specs
        return 0.0, {spec.name: gradient[spec.name] for spec in kept}

    def outputs(self, tensors: Values, batch: Batch) -> Vector:
        raise AssertionError


@pytest.fixture
def recipe_of(tiny_base: Path, make_plan: Make) -> Callable[..., Recipe]:
    manifest = read_manifest(tiny_base)

    def make(rule: str = "mean", *, scaffold: float = 1.0, **local: Any) -> Recipe:
        sgd = {"optimizer": "sgd", "learning_rate": 0.3, "head_learning_rate": 0.3}
        sizes = {"clip_norm": 1e6, "batch_size": BATCH, "scaffold": scaffold}
        plan = make_plan(rule, rounds=ROUNDS, local=sgd | sizes | local)
        return Recipe(plan=plan, manifest=manifest)

    return make


def unlike(layout: Layout, steps: list[int]) -> tuple[list[Quadratic], Vector]:
    """Clients, and the point that is best for all of them together, each weighed by its steps of a round."""
    rng, count = np.random.default_rng(1), len(steps)
    h = rng.uniform(0.1, 2.0, (count, layout.size)).astype(np.float32)
    b = rng.normal(0, 1, (count, layout.size)).astype(np.float32)
    clients = [Quadratic(layout, *each) for each in zip(h, b, strict=True)]
    weighed = np.array(steps)[:, None] * h
    return clients, (weighed * b).sum(0) / weighed.sum(0)


@dataclass
class Federation:
    """Rounds of clients that train, in memory."""

    recipe: Recipe
    clients: list[Quadratic]
    rows: list[Encoded]

    def __post_init__(self) -> None:
        self.adapter = self.recipe.layout.unflatten(
            np.zeros(self.recipe.layout.size, dtype=np.float32)
        )
        self.memories: list[Memory] = [{} for _ in self.clients]

    def update(self, client: int, number: int) -> Vector:
        recipe, parts = self.recipe, self.recipe.parts(number)
        correction = None
        if recipe.plan.local.scaffold:
            correction = Correction(recipe, number, self.adapter, self.memories[client])
        after = train(
            self.clients[client],
            self.adapter,
            self.rows[client],
            local=recipe.plan.local,
            parts=parts,
            seed=number,
            shift=correction.shift if correction else None,
        ).tensors
        layout = recipe.layout.only(parts)
        moved = layout.flatten({s.name: after[s.name] - self.adapter[s.name] for s in layout.specs})
        if correction:
            self.memories[client] = correction.remembered(moved)
        return moved

    def round(self, number: int, cohort: list[int]) -> None:
        mean = np.mean([self.update(client, number) for client in cohort], axis=0)
        layout = self.recipe.round_layout(number)
        moved = layout.unflatten(mean.astype(np.float32))
        self.adapter = self.adapter | {name: self.adapter[name] + moved[name] for name in moved}

    def distance(self, best: Vector) -> float:
        return float(np.linalg.norm(self.recipe.layout.flatten(self.adapter) - best))


def left(recipe: Recipe, rows: list[Encoded], asked: int, rounds: int = ROUNDS) -> float:
    """How far from the best point rounds end, ``asked`` of the clients in each."""
    clients, best = unlike(recipe.layout, [len(each) // BATCH for each in rows])
    federation, rng = Federation(recipe, clients, rows), np.random.default_rng(2)
    for number in range(1, rounds + 1):
        federation.round(number, sorted(rng.permutation(len(rows))[:asked].tolist()))
    return federation.distance(best)


@pytest.mark.parametrize("rule", ["mean", "alternating"])
@pytest.mark.parametrize("counts", [[40] * 3, [40, 24, 16]])
def test_clients_that_differ_end_near_what_is_best_for_all(
    recipe_of: Callable[..., Recipe], encoded: Encoded, rule: str, counts: list[int]
) -> None:
    """Also with unlike numbers of steps: a mean of updates, corrected or not, weighs clients by their steps."""
    rows = [encoded.take(np.arange(count)) for count in counts]
    drifted = left(recipe_of(rule, scaffold=0.0), rows, len(rows))
    corrected = left(recipe_of(rule), rows, len(rows))
    assert corrected < 0.25 * drifted


def test_so_do_those_of_whom_a_round_asks_some(
    recipe_of: Callable[..., Recipe], encoded: Encoded
) -> None:
    """A cohort's mean is not all clients': without a correction it goes to and fro for ever."""
    rows = [encoded.take(np.arange(40))] * 6
    drifted = left(recipe_of(scaffold=0.0), rows, 3)
    corrected = left(recipe_of(scaffold=0.5), rows, 3)
    assert corrected < 0.4 * drifted


def test_under_sgd_it_is_scaffolds_recursion(
    recipe_of: Callable[..., Recipe], encoded: Encoded
) -> None:
    """In gradients, as published (option II), but that 0.9 of the correction is held. (arXiv 1910.06378)"""
    recipe, rows = recipe_of(), [encoded.take(np.arange(40))] * 3
    clients, _ = unlike(recipe.layout, [1, 1, 1])
    federation = Federation(recipe, clients, rows)
    rate, steps = np.float32(0.3), 5
    x, variates = np.zeros(recipe.layout.size, np.float32), [np.float32(0)] * 3
    for number in range(1, 6):
        federation.round(number, [0, 1, 2])
        common, ends, after = np.mean(variates, axis=0), [], []
        for client, variate in zip(clients, variates, strict=True):
            y, seen = x.copy(), np.zeros_like(x)
            for _ in range(steps):
                gradient = client.h * (y - client.b)
                seen += gradient / steps
                y -= rate * (gradient + np.float32(HELD) * (common - variate))
            ends.append(y)
            after.append(seen)
        x, variates = np.mean(ends, axis=0), after
        got = recipe.layout.flatten(federation.adapter)
        np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


def test_a_round_that_is_trained_again_is_corrected_alike(
    recipe_of: Callable[..., Recipe], encoded: Encoded
) -> None:
    """A coordinator, or the client, was killed after the client had kept its memory."""
    recipe = recipe_of("alternating")
    clients, _ = unlike(recipe.layout, [1, 1])
    federation = Federation(recipe, clients, [encoded] * 2)
    for number in range(1, 6):
        federation.round(number, [0, 1])
    first = federation.update(0, 6)
    kept = federation.memories[0]
    assert federation.update(0, 6).tobytes() == first.tobytes()
    for name, passages in federation.memories[0].items():
        assert [each.turn for each in passages] == [each.turn for each in kept[name]]
        assert len(passages) == 2


def test_a_round_after_which_nothing_moved_is_forgotten(
    recipe_of: Callable[..., Recipe], encoded: Encoded
) -> None:
    """Its sum was void. Held against that training, the next would undo what it does."""
    recipe = recipe_of()
    clients, _ = unlike(recipe.layout, [1, 1])
    federation = Federation(recipe, clients, [encoded] * 2)
    for number in (1, 2):
        federation.round(number, [0, 1])
    before = [Correction(recipe, 3, federation.adapter, each).shift for each in federation.memories]
    void = [federation.update(client, 3) for client in (0, 1)]  # of which nothing comes
    assert np.isfinite(void).all()
    for client, memory in enumerate(federation.memories):
        again = Correction(recipe, 4, federation.adapter, memory)
        # Of two rounds the same movement is half as much each.
        last = memory["classifier.bias"][0]
        moved = (federation.adapter["classifier.bias"] - last.received) / 2
        expected = np.float32(HELD) * (moved - last.own)
        got = recipe.layout.unflatten(again.shift)["classifier.bias"]
        np.testing.assert_allclose(got, expected, atol=1e-6)
        assert before[client].any()


def test_the_first_round_of_a_client_has_no_correction(
    recipe_of: Callable[..., Recipe], random_adapter: Callable[..., Tensors]
) -> None:
    recipe = recipe_of("alternating")
    for number in (1, 2, 7):
        correction = Correction(recipe, number, random_adapter(recipe.plan), {})
        assert correction.shift.shape == (recipe.round_layout(number).size,)
        assert not correction.shift.any()


@settings(max_examples=20)
@given(st.floats(0.1, 1.0), st.integers(1, 12), st.integers(0, 1000))
def test_rounds_that_move_alike_are_followed_whole_whatever_was_missed(
    made_recipe: Recipe, scaffold: float, gap: int, seed: int
) -> None:
    """Of a steady movement what rounds move is that movement, however long a client was away."""
    local = made_recipe.plan.local.model_copy(update={"scaffold": scaffold})
    plan = made_recipe.plan.model_copy(update={"local": local})
    recipe, rng = Recipe(plan=plan, manifest=made_recipe.manifest), np.random.default_rng(seed)
    layout = recipe.round_layout(1)
    step = rng.normal(size=layout.size).astype(np.float32)
    own = rng.normal(size=layout.size).astype(np.float32)
    memory: Memory = {}
    at = layout.unflatten(np.zeros(layout.size, np.float32))
    for turn in (1, 1 + gap, 1 + 2 * gap):
        at = layout.unflatten((turn - 1) * step)
        correction = Correction(recipe, turn, at, memory)
        memory = correction.remembered(own + correction.shift)
    np.testing.assert_allclose(correction.shift, np.float32(HELD) * (step - own), atol=1e-3)


@pytest.fixture(scope="module")
def made_recipe(tiny_base: Path, make_plan: Make) -> Recipe:
    plan = make_plan("mean", rounds=ROUNDS, local={"scaffold": 1.0})
    return Recipe(plan=plan, manifest=read_manifest(tiny_base))


# -- the file ---------------------------------------------------------------------------------


@pytest.fixture
def kept(recipe_of: Callable[..., Recipe], encoded: Encoded) -> tuple[Recipe, Memory]:
    """The memory after three rounds by turns: of each factor one passage or two, with and without C."""
    recipe = recipe_of("alternating")
    clients, _ = unlike(recipe.layout, [1, 1])
    federation = Federation(recipe, clients, [encoded] * 2)
    for number in (1, 2, 3):
        federation.round(number, [0, 1])
    return recipe, federation.memories[0]


def test_what_is_kept_is_read_again_and_nobody_elses(
    kept: tuple[Recipe, Memory], tmp_path: Path
) -> None:
    recipe, memory = kept
    controls = FileControls(tmp_path / "c", recipe.plan.digest, "a", recipe.layout)
    assert controls.load() == {}
    controls.keep(memory)
    again = controls.load()
    assert {name: len(passages) for name, passages in again.items()} == {
        name: len(passages) for name, passages in memory.items()
    }
    for name, passages in memory.items():
        for mine, read in zip(passages, again[name], strict=True):
            assert mine.turn == read.turn
            assert (mine.shared is None) == (read.shared is None)
            for kind in ("received", "own", "shared"):
                assert np.array_equal(getattr(mine, kind), getattr(read, kind))
    (file,) = (tmp_path / "c").glob("*.safetensors")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    for plan, client in (("0" * 64, "a"), (recipe.plan.digest, "b")):  # who share a folder
        other = FileControls(tmp_path / "c", plan, client, recipe.layout)
        assert other.load() == {}
        other.keep(memory)
        (theirs,) = {*(tmp_path / "c").glob("*.safetensors")} - {file}
        theirs.write_bytes(file.read_bytes())
        with pytest.raises(MachineError, match="of another client or plan"):
            other.load()
        theirs.unlink()
    assert controls.load().keys() == memory.keys()


BIAS = "classifier.bias"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda given: given | {"x 1 own": given[f"{BIAS} 3 own"]}, "none of the plan's"),
        (lambda given: given | {f"{BIAS} 03 own": given[f"{BIAS} 3 own"]}, "none of the plan's"),
        (lambda given: given | {f"{BIAS} 3 more": given[f"{BIAS} 3 own"]}, "none of the plan's"),
        (lambda given: given | {f"{BIAS} -3 own": given[f"{BIAS} 3 own"]}, "none of the plan's"),
        (lambda given: given | {f"{BIAS} 3 own": np.zeros(1, np.float32)}, "none of the plan's"),
        (lambda given: given | {f"{BIAS} {'9' * 5000} own": given[f"{BIAS} 3 own"]}, "none of"),
        (lambda given: given | {BIAS: given[f"{BIAS} 3 own"]}, "none of the plan's"),
        (lambda given: given | {f"{BIAS} 3 own": np.full(3, np.nan, np.float32)}, "NaN"),
        (lambda given: {k: v for k, v in given.items() if k != f"{BIAS} 3 own"}, "not whole"),
        (
            lambda given: (
                given | {f"{BIAS} 9 {k}": given[f"{BIAS} 3 own"] for k in ("own", "received")}
            ),
            "not whole",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_with_what_to_do(
    kept: tuple[Recipe, Memory], tmp_path: Path, change: Callable[[Tensors], Tensors], why: str
) -> None:
    recipe, memory = kept
    controls = FileControls(tmp_path / "c", recipe.plan.digest, "a", recipe.layout)
    controls.keep(memory)
    (file,) = (tmp_path / "c").glob("*.safetensors")
    tensors = {
        f"{name} {each.turn} {kind}": getattr(each, kind)
        for name, passages in memory.items()
        for each in passages
        for kind in ("received", "own", "shared")
        if getattr(each, kind) is not None
    }
    about = {"format": "fedge-controls-1", "plan": recipe.plan.digest, "client": "a"}
    assert file.read_bytes() == encode_tensors(tensors, about)
    file.write_bytes(encode_tensors(change(tensors), about))
    with pytest.raises(MachineError, match=why) as refused:
        controls.load()
    assert "delete it" in refused.value.remedy


def test_a_torn_file_is_refused(kept: tuple[Recipe, Memory], tmp_path: Path) -> None:
    recipe, memory = kept
    controls = FileControls(tmp_path / "c", recipe.plan.digest, "a", recipe.layout)
    controls.keep(memory)
    (file,) = (tmp_path / "c").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MachineError) as refused:
        controls.load()
    assert "delete it" in refused.value.remedy
