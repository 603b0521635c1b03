"""A whole simulated run of images: from files of the sites to what a device answers and learns."""

from __future__ import annotations

import base64
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageClassification

from edge_runtime.backends import open_backend
from edge_runtime.http_server import App
from edge_runtime.single import SingleService
from fedge.personal import Request, adapt
from protocol.errors import ArtefactError, PlanError
from protocol.plan_sections import Local
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary
from tests.asgi import asked
from tests.delivery_world import World, now, update
from tests.image_models import SIDE, write_images_source

pytestmark = pytest.mark.slow
COLOURS = {"red": 0, "green": 1, "blue": 2}
EXPERIMENT = """
format = 1
name = "images"
base = { source = "source", bits = 32 }
data = { train = "train.jsonl", test = "test.jsonl" }
population = { clients = 5, partition = "dirichlet", alpha = 1.0, min_rows = 8 }
yardsticks = { alone = 1, personal = 2, personal_epochs = 1 }
[plan]
seed = 3
rounds = 3
task = { kind = "image-classification" }
adapter = { rank = 4, targets = "all-linear" }
rule.name = "mean"
cohort = { size = 5, quorum = 4 }
local = { batch_size = 8, epochs = 2, learning_rate = 1e-2 }
evaluation.holdout = 0.2
"""


def write_rows(folder: Path, name: str, count: int, seed: int) -> Path:
    """Noise that is lighter in one colour; the label says in which."""
    rng, lines = np.random.default_rng(seed), []
    (folder / name).mkdir(parents=True)
    for number in range(count):
        label = list(COLOURS)[number % 3]
        values = rng.integers(0, 128, (SIDE, SIDE, 3), np.uint8)
        values[..., COLOURS[label]] += 100
        Image.fromarray(values).save(folder / name / f"{number}.png")
        lines.append(json.dumps({"image": f"{name}/{number}.png", "label": label}) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("images")
    write_images_source(folder / "source")
    write_rows(folder, "train", 150, 1)
    write_rows(folder, "test", 45, 2)
    (folder / "images.toml").write_text(EXPERIMENT)
    experiment, out = load_experiment(folder / "images.toml"), folder / "run"
    return out, simulate(experiment, out, resume=False, progress=NoProgress())


def paths_and_labels(out: Path) -> tuple[list[Path], list[str]]:
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    return [Path(row["image"]) for row in rows], [row["label"] for row in rows]


def base_of(out: Path) -> Path:
    return (out / json.loads((out / "experiment.json").read_text())["base_folder"]).resolve()


def released(out: Path) -> Path:
    return sorted((out / "rounds").glob("[0-9]*"))[-1] / "adapter"


def test_images_are_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    assert summary.audit == "ok"
    assert summary.rounds_verified == 3
    assert summary.refused is None
    assert summary.labels == 3
    assert summary.accuracy_federated is not None
    assert summary.accuracy_federated > 0.8
    assert summary.accuracy_pooled is not None
    assert "accuracy" in (out / "report.html").read_text()


def test_peft_opens_it_on_the_ordinary_class(finished: tuple[Path, Summary]) -> None:
    """On the source itself, and by the folder's own module; a device answers the same, to 1e-4."""
    out, _ = finished
    images, labels = paths_and_labels(out)
    adapter, base = released(out), base_of(out)
    backend = open_backend(base, threads=1)
    expected = backend.runtime.logits(images)
    loaded = backend.load(adapter)
    answers = backend.runtime.infer(images, loaded)
    expected = np.array([answer.logits for answer in answers])
    opener = runpy.run_path(str(adapter / "open_adapter.py"))
    ordinary = AutoModelForImageClassification.from_pretrained(out.parent / "source", num_labels=3)
    inputs = opener["pixels"](base)(images)
    for model in (
        PeftModel.from_pretrained(ordinary, str(adapter)).eval(),
        opener["load"](adapter, base),
        opener["load"](adapter, out.parent / "source"),
    ):
        with torch.no_grad():
            logits = model(**inputs).logits.numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    right = np.mean([a.answer == label for a, label in zip(answers, labels, strict=True)])
    assert right > 0.8


def test_a_device_answers_files_and_requests(finished: tuple[Path, Summary]) -> None:
    out, _ = finished
    images, _ = paths_and_labels(out)
    arguments = ["--base", str(base_of(out)), "--adapter", str(released(out)), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "edge", "infer", *map(str, images[:3]), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [row["image"] for row in said] == [str(image) for image in images[:3]]
    app = App(SingleService(base_of(out), released(out), threads=1))
    encoded = [base64.b64encode(image.read_bytes()).decode() for image in images[:3]]
    status, document = asked(app, {"images": encoded})
    assert status == 200
    assert [row["label"] for row in document["answers"]] == [row["label"] for row in said]
    for odd, reason in (
        ({"images": ["AAAA"]}, "image 1: its image is no PNG"),
        ({"images": ["%"]}, "1 is no base64"),
        ({"texts": [str(images[0])]}, "answers images, and texts were given"),
        ({}, "either texts, or images, or sounds"),
    ):
        status, document = asked(app, odd)
        assert status == 422
        assert reason in json.dumps(document)


def test_a_device_adapts_to_images_of_its_own(
    finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    out, _ = finished
    images, labels = paths_and_labels(out)
    golden = [
        {"image": str(image), "label": label}
        for image, label in zip(images[:6], labels[:6], strict=True)
    ]
    world = World.make(tmp_path / "world", base_of(out), {"good": released(out)}, golden)
    path = world.folder / "probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"least_correct": 3}))
    device = world.device()
    world.publish()
    update(device)
    rows = write_rows(tmp_path / "own", "rows", 30, 7)
    local = Local(batch_size=8, epochs=2, learning_rate=1e-2, head_learning_rate=1e-2)
    request = Request(data=rows, text=None, pair="", column="", local=local, holdout=0.2)
    outcome = adapt(device, request, now(), lambda done, total: None)
    assert (outcome.personal.rows, outcome.personal.held_out) == (24, 6)
    assert outcome.loss < 1.0


def test_what_images_have_not_is_refused(finished: tuple[Path, Summary], tmp_path: Path) -> None:
    out, _ = finished
    path = tmp_path / "images.toml"
    path.write_text(EXPERIMENT.replace("[plan]", '[head]\nstart = "labels"\n[plan]', 1))
    with pytest.raises(PlanError, match="classification of texts"):
        load_experiment(path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedge", "release", str(out), "--base", str(base_of(out))),
            *("--rows", str(out / "test.jsonl"), "--merged", "hf"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == ArtefactError.exit_code
    assert "labels of single texts" in done.stderr.replace("\n", " ")
