"""Prompts that are what a small network gives: its gradients are torch's, its first output moves nothing."""

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
from client.batches import Batch, Encoded, collate
from client.data import Rows
from client.encoders import Encoders, Network
from client.engine.interface import Engine, Values
from client.engine.torch_engine import TorchEngine
from client.optimizers import clip
from client.training import Trained, train
from client.worker import Worker
from protocol.encoding import seed_from
from protocol.forms import SOFT_PROMPT
from protocol.layout import Tensors, Vector
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.rules import Parts
from protocol.wire import Instruction

Make = Callable[..., Plan]
ENCODED = {"method": "prompt", "tokens": 5, "encoder": "mlp", "encoder_width": 12}
PARTS = frozenset({"prompt", "head"})
SGD = {"batch_size": 90, "optimizer": "sgd", "learning_rate": 0.5, "head_learning_rate": 0.2}


@pytest.fixture
def plan(make_plan: Make) -> Plan:
    return make_plan("prompt", adapter=ENCODED, local=SGD)


@pytest.fixture
def recipe(plan: Plan, tiny_base: Path) -> Recipe:
    return Recipe(plan=plan, manifest=read_manifest(tiny_base))


@pytest.fixture
def engine(engine_of: Callable[[Plan], Engine], plan: Plan) -> Engine:
    return engine_of(plan)


def run(engine: Engine, recipe: Recipe, rows: Encoded, *, seed: int = 0, **local: Any) -> Trained:
    given = recipe.plan.local.model_copy(update=local)
    return train(
        engine, recipe.start(), rows, local=given, parts=PARTS, seed=seed, epochs=3, recipe=recipe
    )


def of_torch(values: dict[str, torch.Tensor]) -> torch.Tensor:
    features = torch.tanh(values["inputs"] @ values["inner"] + values["inner_bias"])
    return features @ values["outer"] + values["outer_bias"]


def drawn(recipe: Recipe, seed: int) -> dict[str, torch.Tensor]:
    """The network of the prompt as P-4.12 says, in 64 bits, as leaves."""
    (spec,) = [spec for spec in recipe.layout.specs if spec.name == SOFT_PROMPT]
    return {
        each.name.removeprefix(f"{SOFT_PROMPT}."): torch.from_numpy(
            each.law.draw(seed_from("encoder", seed, each.name), each.shape)
        )
        .double()
        .requires_grad_()
        for each in recipe.encoder(spec)
    }


@settings(max_examples=30)
@given(
    sizes=st.tuples(*(st.integers(1, 9) for _ in range(4))),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_autograds(sizes: tuple[int, int, int, int], seed: int) -> None:
    tokens, inputs, width, columns = sizes
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "inputs": (tokens, inputs),
        "inner": (inputs, width),
        "inner_bias": (width,),
        "outer": (width, columns),
        "outer_bias": (columns,),
    }
    values = {name: rng.normal(0, 0.6, s).astype(np.float32) for name, s in shapes.items()}
    gradient = rng.normal(size=(tokens, columns)).astype(np.float32)
    leaves = {name: torch.from_numpy(v).double().requires_grad_() for name, v in values.items()}
    before = of_torch(leaves)
    before.backward(torch.from_numpy(gradient).double())
    network = Network(values)
    assert not network.moved().any()
    for name, value in network.pulled_back(gradient).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, leaves[name].grad, rtol=1e-4, atol=1e-5)
    for value in values.values():
        value += rng.normal(0, 0.1, value.shape).astype(np.float32)
    after = of_torch({name: torch.from_numpy(v).double() for name, v in values.items()})
    np.testing.assert_allclose(network.moved(), (after - before).detach(), rtol=1e-4, atol=1e-5)


class Recording:
    """An engine that keeps the tensors of every call."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.layout, self.most = engine, engine.layout, engine.most
        self.seen: list[Tensors] = []

    def gradients(self, tensors: Values, batch: Batch, parts: Parts) -> tuple[float, Tensors]:
        self.seen.append({name: value.copy() for name, value in tensors.items()})
        return self._engine.gradients(tensors, batch, parts)

    def outputs(self, tensors: Values, batch: Batch) -> Any:
        return self._engine.outputs(tensors, batch)


def test_the_first_step_begins_at_what_was_received(
    engine: Engine, recipe: Recipe, encoded: Encoded
) -> None:
    """To the bit, zeros with a sign among it; and so is what an untouched network puts back."""
    start = {name: value.copy() for name, value in recipe.start().items()}
    start[SOFT_PROMPT][0, :4] = [0.0, -0.0, 64.0, -1e-30]
    recording = Recording(engine)
    train(
        recording,
        start,
        encoded,
        local=recipe.plan.local,
        parts=PARTS,
        seed=4,
        recipe=recipe,
    )
    first, later = recording.seen[0], engine.layout.flatten(recording.seen[0])
    assert {n: v.tobytes() for n, v in first.items()} == {n: v.tobytes() for n, v in start.items()}
    encoders = Encoders(engine.layout, recipe, engine.layout.flatten(start), 4)
    encoders.put(later)
    assert np.array_equal(later, engine.layout.flatten(start))


def test_steps_are_those_of_autograd(engine: Engine, recipe: Recipe, encoded: Encoded) -> None:
    """Pulls and clipping act on what is sent, decay and rate on the network; the head has its own rate."""
    local = {"proximal_mu": 0.3, "l2_sp": 0.2, "clip_norm": 0.1, "weight_decay": 0.01}
    trained = run(engine, recipe, encoded, seed=9, **local)
    start, leaves = recipe.start(), drawn(recipe, 9)
    layout, first = engine.layout, of_torch(leaves).detach()
    tensors = {name: value.astype(np.float64) for name, value in start.items()}
    batch, begun = collate(encoded, np.arange(len(encoded))), layout.flatten(start)
    lengths = []
    for _ in range(3):
        now = {name: value.astype(np.float32) for name, value in tensors.items()}
        _, gradients = engine.gradients(now, batch, PARTS)
        gradient = layout.flatten(gradients) / np.float32(len(encoded))
        gradient += np.float32(0.3 + 0.2) * (layout.flatten(now) - begun)
        lengths.append(float(np.linalg.norm(gradient)))
        clip(gradient, most=0.1)
        for name, value in layout.views(gradient).items():
            if name != SOFT_PROMPT:
                tensors[name] -= 0.2 * (value + 0.01 * tensors[name])
                continue
            of_torch(leaves).backward(torch.from_numpy(value).double())
            for leaf in leaves.values():
                assert leaf.grad is not None
                leaf.data -= 0.5 * (leaf.grad + 0.01 * leaf.data)
                leaf.grad = None
        moved = (of_torch(leaves).detach() - first).numpy()
        tensors[SOFT_PROMPT] = start[SOFT_PROMPT] + moved
    assert min(lengths) > 0.1, "not all was clipped"
    for name, value in tensors.items():
        largest = np.abs(value - start[name]).max()
        assert np.abs(trained.tensors[name] - value).max() < 1e-3 * largest, name


def test_the_same_seed_gives_the_same_bits_and_all_of_the_prompt_moves(
    engine: Engine, recipe: Recipe, encoded: Encoded
) -> None:
    start = recipe.start()
    vectors: list[Vector] = []
    for seed in (5, 5, 6):
        trained = run(engine, recipe, encoded, seed=seed)
        assert (trained.tensors[SOFT_PROMPT] != start[SOFT_PROMPT]).all()
        vectors.append(engine.layout.flatten(trained.tensors))
    first, again, other = (vector.tobytes() for vector in vectors)
    assert first == again != other


def test_engines_agree(engine: Engine, recipe: Recipe, tiny_base: Path, encoded: Encoded) -> None:
    local = recipe.plan.local.model_copy(update={"precision": "fp32"})
    plan = recipe.plan.model_copy(update={"local": local})
    other = TorchEngine(tiny_base, Recipe(plan=plan, manifest=recipe.manifest), threads=1)
    ours, theirs = (run(each, recipe, encoded).tensors for each in (engine, other))
    for name, value in recipe.start().items():
        moved = np.abs(theirs[name] - value).max()
        assert np.abs(ours[name] - theirs[name]).max() < 1e-3 * moved, name


def test_a_device_trains_without(engine: Engine, recipe: Recipe, encoded: Encoded) -> None:
    """One that adapts slots of a release has no plan; nor has a plan that names no encoder a network."""
    local, start = recipe.plan.local, recipe.start()
    plain = recipe.plan.model_copy(
        update={"adapter": recipe.plan.adapter.model_copy(update={"encoder": "none"})}
    )
    ways = [None, Recipe(plan=plain, manifest=recipe.manifest), recipe]
    own, without, encoded_way = (
        engine.layout.flatten(
            train(engine, start, encoded, local=local, parts=PARTS, seed=1, recipe=way).tensors
        ).tobytes()
        for way in ways
    )
    assert own == without != encoded_way


def test_a_client_sends_what_the_network_gives(
    tiny_base: Path,
    plan: Plan,
    instruct: Callable[..., tuple[Instruction, Vector]],
    rows: Rows,
) -> None:
    """Of a round of AdamW, in the layout of a prompt without an encoder; by a seed of round and client."""
    plan = plan.model_copy(update={"local": plan.local.model_copy(update={"optimizer": "adamw"})})
    instruction, vector = instruct(plan)
    work = Worker(plan, tiny_base)
    given = work.contribute(client="a", instruction=instruction, adapter=vector, rows=rows)
    layout = work.recipe.round_layout(1)
    assert {spec.name for spec in layout.specs} == {
        SOFT_PROMPT,
        "classifier.weight",
        "classifier.bias",
    }
    start = work.check(instruction, vector).adapter
    after = train(
        work.engine,
        start,
        work.encode(rows),
        local=plan.local,
        parts=work.recipe.parts(1),
        seed=seed_from("train", plan.seed, 1, "a"),
        recipe=work.recipe,
    ).tensors
    expected = layout.flatten({s.name: after[s.name] - start[s.name] for s in layout.specs})
    assert given.update.tobytes() == expected.tobytes()
    assert given.update[layout.slices[SOFT_PROMPT]].all()
