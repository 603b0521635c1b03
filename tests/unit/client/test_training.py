"""Local training: it learns, repeats exactly, is held by FedProx, and reports divergence."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from base_model.store import OpenBase, open_base
from client.adapter_model import AdapterModel
from client.batches import Encoded, encode
from client.training import Trained, evaluate, predict_logits, train
from protocol.adapter import initial_adapter
from protocol.errors import UpdateError
from protocol.plan import Local, Plan
from protocol.rules import Role

Make = Callable[..., Plan]
ALL = frozenset({Role.LORA_A, Role.LORA_B, Role.HEAD})


@pytest.fixture
def model(base: OpenBase, make_plan: Make) -> AdapterModel:
    return AdapterModel(base, make_plan())


def run(model: AdapterModel, rows: Encoded, *, seed: int = 0, **local: object) -> Trained:
    """Train from the same start; ``local`` holds settings, ``epochs`` is the argument."""
    model.load(initial_adapter(model.layout, seed=2, embedding_std=0.02))
    epochs = local.pop("epochs", 1.0)
    settings = Local(**({"batch_size": 8} | local))
    return train(model, rows, local=settings, roles=ALL, seed=seed, epochs=epochs)


def vector(model: AdapterModel) -> np.ndarray:
    return model.layout.flatten(model.tensors())


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "learning_rate": 0.5}])
def test_it_learns(model: AdapterModel, encoded: Encoded, optimizer: dict[str, object]) -> None:
    model.load(initial_adapter(model.layout, seed=2, embedding_std=0.02))
    before = evaluate(model, encoded)
    trained = run(model, encoded, epochs=6.0, head_learning_rate=0.1, **optimizer)
    after = evaluate(model, encoded)
    assert after.loss_sum < 0.85 * before.loss_sum
    assert after.accuracy > max(0.6, before.accuracy)
    assert trained.examples == 6 * len(encoded)
    assert trained.steps == 6 * 12


def test_counts_and_loss_of_the_last_epoch(model: AdapterModel, encoded: Encoded) -> None:
    tiny = {"learning_rate": 1e-9, "head_learning_rate": 1e-9}  # the loss stays what it was
    trained = run(model, encoded, epochs=2.0, **tiny)
    mean = evaluate(model, encoded).loss_sum / len(encoded)
    assert trained.examples == 2 * len(encoded)
    assert trained.loss_sum / trained.examples == pytest.approx(mean, rel=1e-3)
    assert run(model, encoded, max_steps=3).examples == 3 * 8
    assert run(model, encoded, epochs=0.5).steps == 6


def test_time_is_an_argument(model: AdapterModel, encoded: Encoded) -> None:
    ticks = iter([10.0, 12.5])
    trained = train(
        model, encoded, local=Local(max_steps=1), roles=ALL, seed=0, clock=lambda: next(ticks)
    )
    assert trained.seconds == 2.5


def test_the_same_seed_gives_the_same_bits(
    base: OpenBase, make_plan: Make, encoded: Encoded
) -> None:
    model = AdapterModel(base, make_plan(adapter={"rank": 4}))
    vectors = []
    for seed in (5, 5, 6):
        torch.rand(seed)  # other random numbers in between do not matter
        run(model, encoded, seed=seed)
        vectors.append(vector(model).tobytes())
    assert vectors[0] == vectors[1] != vectors[2]


def test_global_randomness_is_left_alone(model: AdapterModel, encoded: Encoded) -> None:
    state = torch.get_rng_state()
    run(model, encoded)
    assert torch.equal(torch.get_rng_state(), state)


def test_fedprox_pulls_towards_the_start(model: AdapterModel, encoded: Encoded) -> None:
    start = model.layout.flatten(initial_adapter(model.layout, seed=2, embedding_std=0.02))
    distances = []
    for mu in (0.0, 1.0, 100.0):
        rate = 0.005
        run(model, encoded, epochs=4.0, optimizer="sgd", learning_rate=rate,
            head_learning_rate=rate, proximal_mu=mu, clip_norm=1e6)  # fmt: skip
        distances.append(float(np.linalg.norm(vector(model) - start)))
    assert distances[0] > distances[1] > 3 * distances[2] > 0


def test_fedprox_is_the_gradient_of_its_term(model: AdapterModel, encoded: Encoded) -> None:
    """Two SGD steps by hand: w2 = w1 - lr * (g(w1) + mu * (w1 - w0))."""
    rate, mu = 0.1, 2.0
    plain = {
        "optimizer": "sgd",
        "learning_rate": rate,
        "head_learning_rate": rate,
        "clip_norm": 1e6,
    }
    start = model.layout.flatten(initial_adapter(model.layout, seed=2, embedding_std=0.02))
    run(model, encoded, max_steps=1, **plain)
    one = vector(model)
    run(model, encoded, max_steps=2, **plain)
    two = vector(model)
    run(model, encoded, max_steps=2, proximal_mu=mu, **plain)
    np.testing.assert_allclose(vector(model), two - rate * mu * (one - start), atol=1e-6)


def test_the_head_has_its_own_rate_and_steps_are_clipped(
    model: AdapterModel, encoded: Encoded
) -> None:
    start = initial_adapter(model.layout, seed=2, embedding_std=0.02)
    run(model, encoded, max_steps=1, learning_rate=1e-2, head_learning_rate=1e-4)
    after = model.tensors()
    for spec in model.layout.only({Role.LORA_B, Role.HEAD}).specs:
        step = np.abs(after[spec.name] - start[spec.name]).max()
        assert step == pytest.approx(1e-4 if spec.role is Role.HEAD else 1e-2, rel=0.1), spec.name
    run(model, encoded, max_steps=1, optimizer="sgd", learning_rate=1.0, head_learning_rate=1.0,
        clip_norm=0.01)  # fmt: skip
    moved = vector(model) - model.layout.flatten(start)
    assert float(np.linalg.norm(moved)) == pytest.approx(0.01, rel=1e-3)


class HeadOnly(AdapterModel):
    """The adapted layers are not reached: their gradients are None."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        head = self.trained()["classifier.bias"]
        return head.expand(len(ids), len(head))


def test_tensors_without_a_gradient_stay(base: OpenBase, make_plan: Make, encoded: Encoded) -> None:
    model = HeadOnly(base, make_plan())
    start = initial_adapter(model.layout, seed=2, embedding_std=0.02)
    run(model, encoded)
    after = model.tensors()
    moved = {name for name in start if not np.array_equal(after[name], start[name])}
    assert moved == {"classifier.bias"}
    run(model, encoded, weight_decay=0.1)  # zero, not skipped: the decay still acts
    a = next(name for name in start if name.endswith("lora_A"))
    assert np.linalg.norm(model.tensors()[a]) < np.linalg.norm(start[a])


def test_divergence_is_an_error_with_a_remedy(model: AdapterModel, encoded: Encoded) -> None:
    with pytest.raises(UpdateError, match="this client") as caught:
        run(
            model, encoded, epochs=2.0, optimizer="sgd", learning_rate=1e30, head_learning_rate=1e30
        )
    assert "learning_rate" in caught.value.remedy


def test_training_that_diverges_takes_as_many_steps_as_any_other(
    model: AdapterModel, encoded: Encoded
) -> None:
    """To end early would show by the time who holds rows that a crafted head makes diverge."""
    model.load(initial_adapter(model.layout, seed=2, embedding_std=0.02))
    steps: list[int] = []
    local = Local(optimizer="sgd", batch_size=8, learning_rate=1e30, head_learning_rate=1e30)
    with pytest.raises(UpdateError, match="diverged"):
        train(model, encoded, local=local, roles=ALL, seed=11, epochs=3.0, on_step=steps.append)
    assert len(steps) == 3 * math.ceil(len(encoded) / 8)


def test_predictions_keep_the_order_of_rows(model: AdapterModel, encoded: Encoded) -> None:
    run(model, encoded)
    logits = predict_logits(model, encoded, batch_size=7)
    order = np.random.default_rng(0).permutation(len(encoded))
    np.testing.assert_allclose(
        predict_logits(model, encoded.take(order)), logits[order], rtol=1e-4, atol=1e-5
    )
    score = evaluate(model, encoded)
    assert score.correct == int((logits.argmax(-1) == encoded.labels).sum())
    assert evaluate(model, encoded.take(np.empty(0, np.int64))).accuracy == 0.0


def trained_hash(folder: Path, plan: Plan, texts: list[str]) -> str:
    base = open_base(folder, labels=3, verify=False)
    model = AdapterModel(base, plan)
    model.load(initial_adapter(model.layout, seed=2, embedding_std=0.02))
    rows = encode(base.tokenizer, texts, [0, 1, 2, 0, 1, 2], 16)
    train(model, rows, local=plan.local, roles=ALL, seed=11, epochs=3)
    return hashlib.sha256(vector(model).tobytes()).hexdigest()


SCRIPT = """
import runpy, sys, torch
from pathlib import Path
from protocol.plan import Plan
torch.set_num_threads(1)
plan = Plan.model_validate_json(Path(sys.argv[3]).read_text())
trained_hash = runpy.run_path(sys.argv[1])["trained_hash"]
print(trained_hash(Path(sys.argv[2]), plan, sys.argv[4].split("|")))
"""


def test_two_processes_give_the_same_bits(
    tiny_base: Path, make_plan: Make, words: list[str], tmp_path: Path
) -> None:
    plan = make_plan(adapter={"rank": 4})
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json())
    texts = [" ".join(words[i : i + 4]) for i in range(6)]
    command = [sys.executable, "-c", SCRIPT, __file__, str(tiny_base), str(path), "|".join(texts)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    torch.manual_seed(99)  # the state of this process is another one
    assert done.stdout.split()[-1] == trained_hash(tiny_base, plan, texts)
