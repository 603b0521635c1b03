"""A client's images: errors that name file and line, batches, gradients by both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.verify import read_manifest
from client.data import load_rows
from client.examples import MediaRows
from client.rows_cache import RowsCache
from client.tasks import media
from client.worker import Worker
from protocol.errors import DataError, PlanError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from tests.image_models import LABELS, write_images
from tests.methods import SORTING, adapter_of, rule_of
from tests.tiers import one_by_default

SIDE_BY_SIDE = {
    "method": "hybrid",
    "members": [{"method": "lora", "rank": 2, "alpha": 4.0}, adapter_of("norm")],
}
TASK = {"kind": "image-classification", "labels": LABELS}


def plan_of(base: Path, method: str = "lora", **sections: Any) -> Plan:
    document = {
        "name": "images",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": TASK,
        "adapter": SIDE_BY_SIDE if method == "hybrid" else adapter_of(method, targets="all-linear"),
        "rule": {"name": rule_of(method)},
    }
    return plan_from(document | sections, source="test")


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    names = [path.name for path in write_images(folder / "images", 8)]
    rows = [{"image": f"images/{n}", "label": LABELS[i % 4]} for i, n in enumerate(names)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def worker(tiny_images: Path) -> Worker:
    return Worker(plan_of(tiny_images), tiny_images, threads=1)


def test_rows_become_pixels(worker: Worker, rows_file: Path) -> None:
    encoded = worker.encode(load_rows(rows_file, worker.plan.task))
    assert isinstance(encoded, MediaRows)
    assert (encoded.values.shape, encoded.values.dtype) == ((8, 3, 12, 12), np.uint8)
    assert encoded.targets.tolist() == [0, 1, 2, 3] * 2
    assert encoded.lengths.tolist() == [10] * 8  # nine patches, and the first token
    taken = encoded.take(np.array([5, 2]))
    assert taken.targets.tolist() == [1, 2]
    batch = taken.batch(np.array([1]))
    assert np.array_equal(
        batch.inputs["pixel_values"], encoded.batch(np.array([2])).inputs["pixel_values"]
    )
    assert batch.targets.tolist() == [2]


def test_a_batch_in_pieces_has_the_same_gradients(worker: Worker, rows_file: Path) -> None:
    encoded = worker.encode(load_rows(rows_file, worker.plan.task))
    start, parts = worker.recipe.start(), worker.recipe.parts(1)
    whole, gradients = worker.engine.gradients(start, encoded.batch(np.arange(8)), parts)
    pieces = [
        worker.engine.gradients(start, encoded.batch(np.arange(at, at + 4)), parts) for at in (0, 4)
    ]
    assert sum(loss for loss, _ in pieces) == pytest.approx(whole, rel=1e-5)
    for name, value in gradients.items():
        together = pieces[0][1][name] + pieces[1][1][name]
        np.testing.assert_allclose(together, value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", one_by_default("lora", [n for n in SORTING if n != "prompt"]))
def test_gradients_are_torchs(tiny_images: Path, rows_file: Path, method: str) -> None:
    """Loss, every gradient and the outputs, 1e-4 of the largest, by peft on transformers' model."""
    onnx = Worker(plan_of(tiny_images, method), tiny_images, threads=1)
    torch = Worker(plan_of(tiny_images, method, local={"engine": "torch"}), tiny_images, threads=1)
    rng, start = np.random.default_rng(0), dict(onnx.recipe.start())
    for spec in onnx.recipe.layout.specs:  # of a start of zeros, half the gradients are
        start[spec.name] = start[spec.name] + rng.normal(0, 0.05, spec.shape).astype(np.float32)
    encoded = onnx.encode(load_rows(rows_file, onnx.plan.task))
    batch = encoded.batch(np.arange(6))
    for parts in onnx.recipe.phases:
        loss, ours = onnx.engine.gradients(start, batch, parts)
        expected, theirs = torch.engine.gradients(start, batch, parts)
        assert loss == pytest.approx(expected, rel=1e-4)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert np.abs(value).max() > 0
            assert np.abs(ours[name] - value).max() <= 1e-4 * np.abs(value).max(), name
    outputs = torch.engine.outputs(start, batch)
    assert np.abs(onnx.engine.outputs(start, batch) - outputs).max() <= 1e-4 * np.abs(outputs).max()


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"secret", "no PNG or JPEG"), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_no_image_is_named_by_line(
    worker: Worker, tmp_path: Path, content: bytes | None, cause: str
) -> None:
    (image,) = write_images(tmp_path, 1)
    if content is not None:
        (tmp_path / "other.png").write_bytes(content)
    rows = [{"image": name, "label": "light"} for name in (image.name, "other.png")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        worker.encode(load_rows(path, worker.plan.task))
    assert caught.value.cause.startswith(f"{path}: line 2: its image")
    assert cause in caught.value.cause
    assert "secret" not in str(caught.value)
    assert str(tmp_path) not in caught.value.public


def test_more_images_than_are_held_are_refused(
    worker: Worker, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MOST_HELD", 8 * 3 * 12 * 12 - 1)
    with pytest.raises(DataError, match="8 images take 3,456 bytes"):
        worker.encode(load_rows(rows_file, worker.plan.task))


def test_kept_rows_are_bounded_by_their_pixels(worker: Worker, rows_file: Path) -> None:
    cache = RowsCache(budget=8 * 3 * 12 * 12 // 4)
    first = cache.get(rows_file, worker)
    assert cache.get(rows_file, worker) is first
    other = rows_file.with_name("again.jsonl")
    other.write_bytes(rows_file.read_bytes())
    assert cache.get(other, worker) is not first
    assert len(cache) == 1


def test_an_image_that_has_changed_is_read_again(worker: Worker, tmp_path: Path) -> None:
    """The rows' file alone says nothing of the images that it names."""
    (image,) = write_images(tmp_path, 1)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": image.name, "label": "light"}) + "\n")
    cache = RowsCache()
    first = cache.get(path, worker)
    assert isinstance(first, MediaRows)
    write_images(tmp_path, 1, seed=5)
    again = cache.get(path, worker)
    assert isinstance(again, MediaRows)
    assert not np.array_equal(first.values, again.values)
    assert len(cache) == 1


def test_methods_of_words_are_refused_with_the_reason(tiny_images: Path) -> None:
    for method, reason in (
        ("prompt", "no words to put a prompt before"),
        ("prefix", "writes text"),
    ):
        plan, manifest = plan_of(tiny_images, method), read_manifest(tiny_images)
        errors = [f for f in check(plan, manifest) if f.severity == "error"]
        assert [finding.field for finding in errors] == ["adapter.method"]
        assert reason in errors[0].cause
        with pytest.raises(PlanError, match=reason):
            Worker(plan, tiny_images)


def test_a_place_behind_words_is_refused(tiny_images: Path) -> None:
    settings = {"method": "bottleneck", "places": "embeddings", "width": 4}
    plan = plan_of(tiny_images, adapter=settings)
    errors = [f for f in check(plan, read_manifest(tiny_images)) if f.severity == "error"]
    assert [(finding.field, finding.cause) for finding in errors] == [
        ("adapter.places", "a base of images has no word embeddings")
    ]


def test_a_task_of_texts_is_refused_on_it(tiny_images: Path, tiny_base: Path) -> None:
    texts = plan_of(tiny_images, task={"labels": LABELS})
    with pytest.raises(PlanError, match="built for image-classification"):
        Worker(texts, tiny_images)
    with pytest.raises(PlanError, match="needs image-classification"):
        Worker(plan_of(tiny_base), tiny_base)
