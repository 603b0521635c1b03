"""A client of a base that draws: what it draws, its gradients beside torch's, and how it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.denoisers.torch_model import opened_denoiser
from base_model.verify import read_manifest
from client.data import load_rows
from client.noisy_images import NoisyImages
from client.tasks import generation
from client.training import predict, train
from client.worker import Worker
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS
from protocol.errors import DataError, PlanError
from protocol.layout import Tensors
from protocol.legality import check
from protocol.noise import PAIRS
from protocol.plan import Plan, plan_from
from protocol.tasks import quality_in
from protocol.tasks.image_generation import METRICS, MOST_ERROR, ImageGeneration
from tests.denoiser_models import LABELS, SIDE, write_drawings
from tests.methods import adapter_of

TASK = {"kind": "image-generation", "labels": LABELS}


def plan_of(base: Path, **sections: Any) -> Plan:
    document = {
        "name": "drawings",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": TASK,
        "adapter": adapter_of("lora", targets="all-linear"),
        "rule": {"name": "mean"},
    }
    return plan_from(document | sections, source="test")


@pytest.fixture(scope="module")
def worker(tiny_denoiser: Path) -> Worker:
    return Worker(plan_of(tiny_denoiser), tiny_denoiser, threads=1)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    names = [path.name for path in write_drawings(folder / "images", 9)]
    rows = [{"image": f"images/{n}", "label": LABELS[i % 3]} for i, n in enumerate(names)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def encoded(worker: Worker, rows_file: Path) -> NoisyImages:
    rows = worker.encode(load_rows(rows_file, worker.plan.task))
    assert isinstance(rows, NoisyImages)
    return rows


def adapted(worker: Worker, seed: int = 0) -> Tensors:
    """A start that is moved, so that no gradient is zero."""
    rng = np.random.default_rng(seed)
    return {
        name: value + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for name, value in worker.recipe.start().items()
    }


def test_rows_become_images_under_noise(encoded: NoisyImages) -> None:
    """At step 0 there is next to none: what is read is the image from -1 to 1."""
    assert encoded.values.shape == (9, 1, SIDE, SIDE)
    assert encoded.targets.tolist() == [0, 1, 2] * 3
    assert (len(encoded), len(encoded.measured)) == (9, 9 * PAIRS)
    assert encoded.lengths.tolist() == [4] * 9
    batch = encoded.drawn(5).batch(np.array([4, 2]))
    assert batch.inputs.keys() == {IMAGES, STEPS, CLASSES}
    assert batch.inputs[CLASSES].tolist() == [1, 2]
    shares = encoded.manifest.schedule.alphas()[batch.inputs[STEPS]][:, None, None, None]
    clean = (batch.inputs[IMAGES] - np.sqrt(1 - shares) * batch.targets) / np.sqrt(shares)
    wanted = encoded.values[[4, 2]] / 127.5 - 1
    assert np.abs(clean - wanted).max() < 1e-4


def test_what_is_drawn_hangs_on_step_and_row_alone(encoded: NoisyImages) -> None:
    whole = encoded.drawn(5).batch(np.arange(9))
    piece = encoded.drawn(5).batch(np.array([7]))
    assert whole.targets[7].tobytes() == piece.targets[0].tobytes()
    assert whole.inputs[IMAGES][7].tobytes() == piece.inputs[IMAGES][0].tobytes()
    assert encoded.drawn(6).batch(np.array([7])).targets.tobytes() != piece.targets.tobytes()
    fixed = encoded.measured.batch(np.arange(PAIRS))
    again = encoded.drawn(9).measured.batch(np.arange(PAIRS))
    assert fixed.targets.tobytes() == again.targets.tobytes()
    assert fixed.inputs[CLASSES].tolist() == [0] * PAIRS
    assert len(set(fixed.inputs[STEPS].tolist())) == PAIRS


def test_a_training_that_is_repeated_is_the_same_to_the_bit(
    worker: Worker, encoded: NoisyImages
) -> None:
    """In whatever pieces a step is computed, it sees the same noise."""
    how: dict[str, Any] = {"local": worker.plan.local, "parts": worker.recipe.parts(1)}
    start = adapted(worker)
    first, again = (train(worker.engine, start, encoded, seed=4, **how) for _ in range(2))
    assert all(first.tensors[n].tobytes() == again.tensors[n].tobytes() for n in first.tensors)
    other = train(worker.engine, start, encoded, seed=5, **how)
    assert any(first.tensors[n].tobytes() != other.tensors[n].tobytes() for n in first.tensors)
    parts = worker.recipe.parts(1)
    drawn = encoded.drawn(11)
    whole, gradients = worker.engine.gradients(start, drawn.batch(np.arange(8)), parts)
    pieces = [
        worker.engine.gradients(start, drawn.batch(np.arange(at, at + 4)), parts) for at in (0, 4)
    ]
    assert sum(loss for loss, _ in pieces) == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        assert sum(part[name] for _, part in pieces) == pytest.approx(gradient, rel=1e-3, abs=1e-5)


def test_gradients_are_those_of_torch(
    worker: Worker, encoded: NoisyImages, tiny_denoiser: Path
) -> None:
    """Loss and the gradient of every factor, by autograd through the model of the same numbers."""
    tensors, batch = adapted(worker), encoded.drawn(2).batch(np.arange(6))
    loss, gradients = worker.engine.gradients(tensors, batch, worker.recipe.trainable)
    model = opened_denoiser(tiny_denoiser)
    scaling = worker.recipe.constants["scaling"]
    leaves = {
        name: torch.from_numpy(value.copy()).requires_grad_() for name, value in tensors.items()
    }
    for linear in worker.manifest.linears:
        first, second = (leaves[f"{linear.path}.lora_{end}"] for end in "AB")

        def added(_module: Any, inputs: Any, output: Any, a: Any = first, b: Any = second) -> Any:
            return output + inputs[0] @ a.T @ b.T * scaling

        model.get_submodule(linear.path).register_forward_hook(added)
    noise = model(*(torch.from_numpy(value) for value in batch.inputs.values()))
    square = ((noise - torch.from_numpy(batch.targets)) ** 2).mean((1, 2, 3)).sum()
    square.backward()
    assert loss == pytest.approx(float(square.detach()), rel=1e-5)
    assert gradients.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        expected = leaf.grad.numpy()
        assert np.abs(expected).max() > 0, name
        assert np.abs(gradients[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_it_is_measured_by_noise_that_is_known(
    worker: Worker, encoded: NoisyImages, tiny_denoiser: Path
) -> None:
    tensors = worker.recipe.start()  # answers as the base
    outputs = predict(worker.engine, tensors, encoded)
    assert outputs.shape == (9 * PAIRS, 1)
    batch = encoded.measured.batch(np.arange(9 * PAIRS))
    with torch.no_grad():
        model = opened_denoiser(tiny_denoiser)
        noise = model(*(torch.from_numpy(value) for value in batch.inputs.values())).numpy()
    expected = ((noise - batch.targets) ** 2).mean((1, 2, 3))
    assert outputs[:, 0] == pytest.approx(expected, rel=1e-4)
    score = worker.score(tensors, encoded)
    assert score.metrics["eval_noise"] == pytest.approx(9 * expected.mean(), rel=1e-4)
    metrics = score.metrics
    assert ImageGeneration.quality_of(metrics) == pytest.approx(expected.mean(), rel=1e-4)
    assert quality_in(metrics).startswith("noise error ")


def test_what_is_counted_stays_within_its_bound() -> None:
    """Also of answers that are no numbers: a sum in secret has room for so much."""
    pairs = np.array([[0.5] * PAIRS, [1e30] * PAIRS, [np.nan] * PAIRS], np.float32)
    score = generation.score(pairs.reshape(-1, 1), np.array([0, 1, 2]))
    assert score.metrics == {"eval_examples": 3.0, "eval_noise": 0.5 + 2 * MOST_ERROR}
    assert METRICS["eval_noise"].most == MOST_ERROR
    empty = generation.score(np.zeros((0, 1), np.float32), np.zeros(0, np.int64))
    assert empty.metrics == {"eval_examples": 0.0, "eval_noise": 0.0}
    assert ImageGeneration.quality_of(empty.metrics) is None


def test_training_finds_more_of_the_noise(worker: Worker, encoded: NoisyImages) -> None:
    local = worker.plan.local.model_copy(
        update={"learning_rate": 1e-2, "epochs": 12, "batch_size": 3}
    )
    start = worker.recipe.start()
    before = worker.score(start, encoded).loss_sum
    trained = train(
        worker.engine, start, encoded, local=local, parts=worker.recipe.trainable, seed=1
    )
    assert worker.score(trained.tensors, encoded).loss_sum < 0.8 * before


def test_rows_that_cannot_be_drawn_are_named(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "label": "z"}\n')
    with pytest.raises(DataError, match="line 1"):
        load_rows(tmp_path / "rows.jsonl", worker.plan.task)
    (tmp_path / "a.png").write_bytes(b"secret")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "label": "a"}\n')
    with pytest.raises(DataError, match="line 1: its image is no PNG or JPEG") as caught:
        worker.encode(load_rows(tmp_path / "rows.jsonl", worker.plan.task))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "field", "said"),
    [
        ({"task": TASK | {"labels": list("abcdef")}}, "task.labels", "6 labels.*draws 5 classes"),
        ({"local": {"engine": "torch"}}, "local.engine", "bases that draw images"),
        ({"task": {"labels": LABELS}}, "task.kind", "was built for image-generation"),
        ({"task": TASK | {"kind": "image-classification"}}, "task.kind", "image-generation"),
        ({"adapter": adapter_of("dora")}, "adapter.method", "draw images have no scales"),
        ({"adapter": adapter_of("norm")}, "adapter.method", "no slot of a norm"),
        ({"adapter": adapter_of("head")}, "adapter.method", "no head"),
        ({"adapter": adapter_of("bottleneck")}, "adapter.method", "draw images have no bottle"),
        ({"adapter": adapter_of("prompt")}, "adapter.method", "of images has no words"),
        ({"adapter": adapter_of("hybrid")}, "adapter.members", "takes no hybrid"),
    ],
)
def test_what_a_base_that_draws_does_not_take_is_refused(
    tiny_denoiser: Path, sections: dict[str, Any], field: str, said: str
) -> None:
    plan = plan_of(tiny_denoiser, **sections)
    errors = [f for f in check(plan, read_manifest(tiny_denoiser)) if f.severity == "error"]
    assert errors[0].field == field
    with pytest.raises(PlanError, match=said):
        Worker(plan, tiny_denoiser)


def test_a_plan_is_told_that_images_may_be_remembered(tiny_denoiser: Path) -> None:
    manifest = read_manifest(tiny_denoiser)
    assert any(
        "may draw images" in finding.cause for finding in check(plan_of(tiny_denoiser), manifest)
    )


def test_a_head_is_refused_where_there_is_none(tiny_denoiser: Path) -> None:
    head = {"rows": ["AQI="] * 3, "scale": 0.1}
    with pytest.raises(PlanError, match="task `image-generation` has none"):
        plan_of(tiny_denoiser, head=head)
