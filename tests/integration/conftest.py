"""A small experiment on the tiny base: four labels told apart by their words."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from edge_runtime.settings import Device
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from tests.delivery_world import World, update
from tests.gate_world import SETTINGS, Publisher
from tests.integration.edge_training import lenient

LABELS = ("lamp", "music", "heating", "door")


def write_rows(path: Path, words: list[str], count: int, seed: int) -> None:
    rng = random.Random(seed)
    share = len(words) // (len(LABELS) + 1)
    lines = []
    for _ in range(count):
        label = rng.randrange(len(LABELS))
        own = words[label * share : (label + 1) * share]
        text = rng.choices(own, k=4) + rng.choices(words[-share:], k=1)
        rng.shuffle(text)
        lines.append(json.dumps({"text": " ".join(text), "label": LABELS[label]}))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def experiment_file(tmp_path_factory: pytest.TempPathFactory, tiny_source: Path) -> Path:
    """An experiment of 10 rounds, 6 devices; runs put beside it share one built base."""
    folder = tmp_path_factory.mktemp("experiment")
    vocabulary = json.loads((tiny_source / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isalpha() and len(word) > 1)
    write_rows(folder / "train.jsonl", words, 360, seed=1)
    write_rows(folder / "test.jsonl", words, 120, seed=2)
    path = folder / "tiny.toml"
    path.write_text(
        f"""
format = 1
name = "tiny"
[base]
source = {json.dumps(str(tiny_source))}
bits = 4
[data]
train = "train.jsonl"
test = "test.jsonl"
[population]
clients = 6
partition = "dirichlet"
alpha = 0.3
min_rows = 4
[yardsticks]
pooled = true
alone = 2
[plan]
seed = 3
rounds = 10
[plan.task]
max_length = 16
[plan.adapter]
rank = 4
[plan.cohort]
size = 4
quorum = 2
weighting = "examples"
[plan.secrecy]
exchange = "plain"
[plan.local]
batch_size = 8
learning_rate = 0.01
head_learning_rate = 0.02
[plan.evaluation]
every = 4
"""
    )
    return path


@pytest.fixture
def home(world: World) -> Device:
    """A device that runs release 1, and whose probe leaves room."""
    lenient(world)
    device = world.device()
    world.publish()
    update(device)
    return device


@pytest.fixture(scope="session")
def gated_run(experiment_file: Path) -> Path:
    """A run in secret with a release of both rounds."""
    out, loaded = experiment_file.parent / "gated", load_experiment(experiment_file, SETTINGS)
    simulate(loaded, out, resume=False, progress=NoProgress())
    return out


@pytest.fixture(scope="session")
def gated_base(gated_run: Path) -> Path:
    return Path(json.loads((gated_run / "summary.json").read_text())["base"])


@pytest.fixture
def publisher(tmp_path: Path, gated_run: Path, gated_base: Path) -> Publisher:
    return Publisher(tmp_path, gated_run, gated_base)
