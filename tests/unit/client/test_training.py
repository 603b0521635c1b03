"""Local training: it learns, repeats exactly, is held by FedProx, and reports divergence."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from base_model.verify import open_tokenizer
from client.batches import Batch, Encoded, encode
from client.engine.interface import Engine, Values
from client.engine.threads import threads_of_openmp
from client.tasks.classification import Score, score
from client.training import Trained, predict, train
from client.worker import Worker
from protocol.errors import UpdateError
from protocol.layout import Tensors
from protocol.plan import Plan
from protocol.plan_sections import Local
from protocol.recipe import initial_adapter

Make = Callable[..., Plan]
ALL = frozenset({"lora_A", "lora_B", "head"})


@pytest.fixture
def engine(engine_of: Callable[[Plan], Engine], make_plan: Make) -> Engine:
    return engine_of(make_plan())


def begin(engine: Engine) -> Tensors:
    return initial_adapter(engine.layout, seed=2)


def run(engine: Engine, rows: Encoded, *, seed: int = 0, **local: object) -> Trained:
    """Train from the same start; ``local`` holds settings, ``epochs`` is the argument."""
    epochs = local.pop("epochs", 1.0)
    settings = Local(**({"batch_size": 8} | local))
    return train(engine, begin(engine), rows, local=settings, parts=ALL, seed=seed, epochs=epochs)


def evaluate(engine: Engine, tensors: Tensors, rows: Encoded) -> Score:
    return score(predict(engine, tensors, rows), rows.targets)


def vector(engine: Engine, trained: Trained) -> np.ndarray:
    return engine.layout.flatten(trained.tensors)


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "learning_rate": 0.5}])
def test_it_learns(engine: Engine, encoded: Encoded, optimizer: dict[str, object]) -> None:
    before = evaluate(engine, begin(engine), encoded)
    trained = run(engine, encoded, epochs=6.0, head_learning_rate=0.1, **optimizer)
    after = evaluate(engine, trained.tensors, encoded)
    assert after.loss_sum < 0.85 * before.loss_sum
    assert after.accuracy > max(0.6, before.accuracy)
    assert trained.examples == 6 * len(encoded)
    assert trained.steps == 6 * 12


def test_counts_and_loss_of_the_last_epoch(engine: Engine, encoded: Encoded) -> None:
    tiny = {"learning_rate": 1e-9, "head_learning_rate": 1e-9}  # the loss stays what it was
    trained = run(engine, encoded, epochs=2.0, **tiny)
    mean = evaluate(engine, trained.tensors, encoded).loss_sum / len(encoded)
    assert trained.examples == 2 * len(encoded)
    assert trained.loss_sum / trained.examples == pytest.approx(mean, rel=1e-3)
    assert run(engine, encoded, max_steps=3).examples == 3 * 8
    assert run(engine, encoded, epochs=0.5).steps == 6


def test_time_is_an_argument(engine: Engine, encoded: Encoded) -> None:
    ticks = iter([10.0, 12.5])
    trained = train(
        engine,
        begin(engine),
        encoded,
        local=Local(max_steps=1),
        parts=ALL,
        seed=0,
        clock=lambda: next(ticks),
    )
    assert trained.seconds == 2.5


def test_the_same_seed_gives_the_same_bits_and_the_start_stays(
    engine: Engine, encoded: Encoded
) -> None:
    start = begin(engine)
    before = engine.layout.flatten(start)
    results = [
        train(engine, start, encoded, local=Local(batch_size=8), parts=ALL, seed=seed)
        for seed in (5, 5, 6)
    ]
    first, again, other = (vector(engine, each).tobytes() for each in results)
    assert first == again != other
    assert np.array_equal(engine.layout.flatten(start), before)


def test_threads_share_an_engine(engine: Engine, encoded: Encoded) -> None:
    """A client is its vectors: side by side they give what each gives alone."""
    alone = [vector(engine, run(engine, encoded, seed=seed)).tobytes() for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: run(engine, encoded, seed=seed), range(4)))
    assert [vector(engine, each).tobytes() for each in together] == alone


def test_fedprox_pulls_towards_the_start(engine: Engine, encoded: Encoded) -> None:
    start = engine.layout.flatten(begin(engine))
    distances = []
    for mu in (0.0, 1.0, 100.0):
        rate = 0.005
        trained = run(engine, encoded, epochs=4.0, optimizer="sgd", learning_rate=rate,
            head_learning_rate=rate, proximal_mu=mu, clip_norm=1e6)  # fmt: skip
        distances.append(float(np.linalg.norm(vector(engine, trained) - start)))
    assert distances[0] > distances[1] > 3 * distances[2] > 0


def test_fedprox_is_the_gradient_of_its_term(engine: Engine, encoded: Encoded) -> None:
    """Two SGD steps by hand: w2 = w1 - lr * (g(w1) + mu * (w1 - w0))."""
    rate, mu = 0.1, 2.0
    plain = {
        "optimizer": "sgd",
        "learning_rate": rate,
        "head_learning_rate": rate,
        "clip_norm": 1e6,
    }
    start = engine.layout.flatten(begin(engine))
    one = vector(engine, run(engine, encoded, max_steps=1, **plain))
    two = vector(engine, run(engine, encoded, max_steps=2, **plain))
    pulled = vector(engine, run(engine, encoded, max_steps=2, proximal_mu=mu, **plain))
    np.testing.assert_allclose(pulled, two - rate * mu * (one - start), atol=1e-6)


def test_the_head_has_its_own_rate_and_steps_are_clipped(engine: Engine, encoded: Encoded) -> None:
    start = begin(engine)
    after = run(engine, encoded, max_steps=1, learning_rate=1e-2, head_learning_rate=1e-4).tensors
    for spec in engine.layout.only({"lora_B", "head"}).specs:
        step = np.abs(after[spec.name] - start[spec.name]).max()
        assert step == pytest.approx(1e-4 if spec.part == "head" else 1e-2, rel=0.1), spec.name
    trained = run(engine, encoded, max_steps=1, optimizer="sgd", learning_rate=1.0,
        head_learning_rate=1.0, clip_norm=0.01)  # fmt: skip
    moved = vector(engine, trained) - engine.layout.flatten(start)
    assert float(np.linalg.norm(moved)) == pytest.approx(0.01, rel=1e-3)


def test_a_step_in_pieces_is_the_step(
    engine: Engine, encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound on tokens changes how often the engine is called, and roundings."""
    calls: list[int] = []

    class Counting:
        layout, most = engine.layout, None

        def gradients(
            self, tensors: Values, batch: Batch, roles: frozenset[str]
        ) -> tuple[float, Tensors]:
            calls.append(batch.ids.size)
            return engine.gradients(tensors, batch, roles)

        logits = engine.outputs

    settings = {"max_steps": 1, "optimizer": "sgd", "batch_size": 64}
    whole = run(Counting(), encoded, **settings)
    assert len(calls) == 1
    monkeypatch.setattr("client.training.MOST_TOKENS", 60)
    pieces = run(Counting(), encoded, **settings)
    assert len(calls) > 5
    assert max(calls[1:]) <= 60
    assert pieces.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    np.testing.assert_allclose(vector(engine, pieces), vector(engine, whole), rtol=1e-4, atol=1e-6)


def test_a_decay_acts_on_what_no_row_reaches(engine: Engine, encoded: Encoded) -> None:
    """At the start B is zero, and so is A's gradient."""
    start = begin(engine)
    a = next(name for name in start if name.endswith("lora_A"))
    once = {"max_steps": 1, "batch_size": 8}
    assert np.array_equal(run(engine, encoded, **once).tensors[a], start[a])
    decayed = run(engine, encoded, weight_decay=0.1, **once).tensors[a]
    assert np.linalg.norm(decayed) < np.linalg.norm(start[a])


def test_divergence_is_an_error_with_a_remedy(engine: Engine, encoded: Encoded) -> None:
    with pytest.raises(UpdateError, match="this client") as caught:
        run(
            engine,
            encoded,
            epochs=2.0,
            optimizer="sgd",
            learning_rate=1e30,
            head_learning_rate=1e30,
        )
    assert "learning_rate" in caught.value.remedy


def test_training_that_diverges_takes_as_many_steps_as_any_other(
    engine: Engine, encoded: Encoded
) -> None:
    """To end early would show by the time who holds rows that a crafted head makes diverge."""
    steps: list[int] = []
    local = Local(optimizer="sgd", batch_size=8, learning_rate=1e30, head_learning_rate=1e30)
    with pytest.raises(UpdateError, match="diverged"):
        train(
            engine,
            begin(engine),
            encoded,
            local=local,
            parts=ALL,
            seed=11,
            epochs=3.0,
            on_step=steps.append,
        )
    assert len(steps) == 3 * math.ceil(len(encoded) / 8)


def test_predictions_keep_the_order_of_rows(engine: Engine, encoded: Encoded) -> None:
    tensors = run(engine, encoded).tensors
    logits = predict(engine, tensors, encoded, batch_size=7)
    order = np.random.default_rng(0).permutation(len(encoded))
    np.testing.assert_allclose(
        predict(engine, tensors, encoded.take(order)), logits[order], rtol=1e-4, atol=1e-5
    )
    tested = evaluate(engine, tensors, encoded)
    assert tested.correct == int((logits.argmax(-1) == encoded.targets).sum())
    assert evaluate(engine, tensors, encoded.take(np.empty(0, np.int64))).accuracy == 0.0


def trained_hash(folder: Path, plan: Plan, texts: list[str]) -> str:
    engine = Worker(plan, folder, threads=1).engine
    rows = encode(open_tokenizer(folder), texts, [0, 1, 2, 0, 1, 2], 16)
    start = initial_adapter(engine.layout, seed=2)
    trained = train(engine, start, rows, local=plan.local, parts=ALL, seed=11, epochs=3)
    return hashlib.sha256(engine.layout.flatten(trained.tensors).tobytes()).hexdigest()


SCRIPT = """
import runpy, sys
from pathlib import Path
from protocol.plan import Plan
plan = Plan.model_validate_json(Path(sys.argv[3]).read_text())
trained_hash = runpy.run_path(sys.argv[1])["trained_hash"]
print(trained_hash(Path(sys.argv[2]), plan, sys.argv[4].split("|")))
"""


def test_two_processes_give_the_same_bits(
    tiny_base: Path, make_plan: Make, words: list[str], tmp_path: Path
) -> None:
    plan = make_plan()
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json())
    texts = [" ".join(words[i : i + 4]) for i in range(6)]
    command = [sys.executable, "-c", SCRIPT, __file__, str(tiny_base), str(path), "|".join(texts)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split()[-1] == trained_hash(tiny_base, plan, texts)


@pytest.mark.parametrize(("value", "threads"), [("4,2", 4), ("3", 3), ("", 0), ("many", 0)])
def test_threads_are_the_first_number_of_openmps(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_of_openmp() == threads
