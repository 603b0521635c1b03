"""A client's sounds: errors that name file and line, batches, gradients by both engines."""

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
from protocol.tasks.audio_classification import AudioClassification
from tests.methods import SORTING, adapter_of, rule_of
from tests.sound_models import LABELS, RATE, tone, wav, write_sounds
from tests.tiers import one_by_default

SIDE_BY_SIDE = {
    "method": "hybrid",
    "members": [{"method": "lora", "rank": 2, "alpha": 4.0}, adapter_of("norm")],
}
TASK = {"kind": "audio-classification", "labels": LABELS}


def plan_of(base: Path, method: str = "lora", **sections: Any) -> Plan:
    document = {
        "name": "sounds",
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
    names = [path.name for path in write_sounds(folder / "sounds", 8)]
    rows = [{"audio": f"sounds/{n}", "label": LABELS[i % 4]} for i, n in enumerate(names)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def worker(tiny_sounds: Path) -> Worker:
    return Worker(plan_of(tiny_sounds), tiny_sounds, threads=1)


def test_rows_become_features(worker: Worker, rows_file: Path) -> None:
    encoded = worker.encode(load_rows(rows_file, worker.plan.task))
    assert isinstance(encoded, MediaRows)
    assert (encoded.values.shape, encoded.values.dtype) == ((8, 8, 20), np.float32)
    assert encoded.targets.tolist() == [0, 1, 2, 3] * 2
    assert encoded.lengths.tolist() == [10] * 8  # two frames each
    batch = encoded.take(np.array([5, 2])).batch(np.array([1]))
    assert np.array_equal(batch.inputs["input_features"], encoded.values[[2]])
    assert batch.targets.tolist() == [2]


def test_rows_become_samples(tiny_samples: Path, rows_file: Path) -> None:
    """What is a sound's own is told for each batch; sounds of 0.3 to 1.3 seconds are cut at one."""
    site = Worker(plan_of(tiny_samples), tiny_samples, threads=1)
    encoded = site.encode(load_rows(rows_file, site.plan.task))
    assert isinstance(encoded, MediaRows)
    assert (encoded.values.shape, encoded.values.dtype) == ((8, RATE + 1), np.float32)
    assert encoded.lengths.tolist() == [49] * 8
    inputs = encoded.batch(np.array([5, 2])).inputs
    values, mask = inputs["input_values"], inputs["attention_mask"]
    assert (values.shape, mask.shape, mask.dtype) == ((2, RATE), (2, RATE), np.int64)
    for row, own in zip(values, mask, strict=True):
        count = int(own.sum())
        assert 0.3 * RATE <= count <= RATE
        assert own[:count].all()
        assert not row[count:].any()
        assert abs(float(row[:count].mean())) < 1e-5
        assert float(row[:count].std()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("method", one_by_default("lora", [n for n in SORTING if n != "prompt"]))
@pytest.mark.parametrize("hears", ["tiny_sounds", "tiny_samples"])
def test_gradients_are_torchs(
    request: pytest.FixtureRequest, rows_file: Path, method: str, hears: str
) -> None:
    """Loss, every gradient and the outputs, 1e-4 of the largest, by peft on transformers' model."""
    base: Path = request.getfixturevalue(hears)
    onnx = Worker(plan_of(base, method), base, threads=1)
    torch = Worker(plan_of(base, method, local={"engine": "torch"}), base, threads=1)
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
    [
        (b"secret", "it is no WAV file"),
        (wav(tone(300.0), rate=8000), "8000 samples a second, and the base hears 16000"),
        (wav(tone(300.0), channels=2), "2 channels"),
        (wav(tone(300.0))[:-5], "cut off"),
        (wav(tone(300.0)[:0]), "no whole sample"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_sound_is_named_by_line(
    worker: Worker, tmp_path: Path, content: bytes | None, cause: str
) -> None:
    (sound,) = write_sounds(tmp_path, 1)
    if content is not None:
        (tmp_path / "other.wav").write_bytes(content)
    rows = [{"audio": name, "label": "light"} for name in (sound.name, "other.wav")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        worker.encode(load_rows(path, worker.plan.task))
    assert caught.value.cause.startswith(f"{path}: line 2: its sound")
    assert cause in caught.value.cause
    assert "secret" not in str(caught.value)
    assert str(tmp_path) not in caught.value.public


def test_silence_is_a_sound(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(np.zeros(RATE, np.int16)))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "label": "light"}) + "\n")
    encoded = worker.encode(load_rows(path, worker.plan.task))
    assert encoded.batch(np.arange(1)).inputs["input_features"].tolist() == [[[-1.5] * 20] * 8]


def test_more_sounds_than_are_held_are_refused(
    worker: Worker, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MOST_HELD", 8 * 8 * 20 * 4 - 1)
    with pytest.raises(DataError, match="8 sounds take 5,120 bytes"):
        worker.encode(load_rows(rows_file, worker.plan.task))


def test_a_sound_that_has_changed_is_read_again(worker: Worker, tmp_path: Path) -> None:
    (sound,) = write_sounds(tmp_path, 1)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"audio": sound.name, "label": "light"}) + "\n")
    cache = RowsCache()
    first = cache.get(path, worker)
    assert cache.get(path, worker) is first
    write_sounds(tmp_path, 1, seed=5)
    again = cache.get(path, worker)
    assert isinstance(first, MediaRows)
    assert isinstance(again, MediaRows)
    assert not np.array_equal(first.values, again.values)
    assert len(cache) == 1


def test_methods_of_words_are_refused_with_the_reason(tiny_sounds: Path) -> None:
    for settings, field, reason in (
        (adapter_of("prompt"), "method", "a base of sounds has no words to put a prompt before"),
        ({"method": "prompt", "tokens": 500}, "method", "a base of sounds has no words"),
        (adapter_of("prefix"), "method", "writes text"),
        (
            {"method": "bottleneck", "places": "embeddings", "width": 4},
            "places",
            "a base of sounds has no word embeddings",
        ),
    ):
        plan = plan_of(tiny_sounds, adapter=settings)
        errors = [f for f in check(plan, read_manifest(tiny_sounds)) if f.severity == "error"]
        assert [finding.field for finding in errors] == [f"adapter.{field}"]
        assert reason in errors[0].cause
        with pytest.raises(PlanError, match=reason):
            Worker(plan, tiny_sounds)


def test_a_task_of_another_medium_is_refused(
    tiny_sounds: Path, tiny_images: Path, tiny_base: Path
) -> None:
    for task in ({"labels": LABELS}, {"kind": "image-classification", "labels": LABELS}):
        with pytest.raises(PlanError, match="built for audio-classification"):
            Worker(plan_of(tiny_sounds, task=task), tiny_sounds)
    for base in (tiny_base, tiny_images):
        with pytest.raises(PlanError, match="needs audio-classification"):
            Worker(plan_of(base), base)


def test_what_a_plan_says_of_sounds() -> None:
    for odd, reason in (
        ({"audio": "label"}, "audio and label are one column"),
        ({"max_length": 8}, "max_length"),
        ({"image": "x"}, "image"),
    ):
        with pytest.raises(PlanError, match=reason):
            plan_from(
                {"name": "x", "base": {"fingerprint": "0" * 64}, "task": TASK | odd}, source="test"
            )
    for name in ("audio", "speech-classification"):
        with pytest.raises(PlanError, match="audio-classification"):
            plan_from(
                {
                    "name": "x",
                    "base": {"fingerprint": "0" * 64},
                    "task": TASK | {"kind": name},
                },
                source="test",
            )
    task = AudioClassification.model_validate(TASK)
    assert task.note() == {
        **{"task": "audio-classification", "pairs": False, "max_length": 0, "labels": LABELS}
    }
