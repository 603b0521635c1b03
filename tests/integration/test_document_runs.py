"""A whole simulated run of documents: from pages of the sites to what a device answers and learns."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from edge_runtime.backends import open_backend
from edge_runtime.http_server import App
from edge_runtime.single import SingleService
from fedge.personal import Request, adapt
from protocol.errors import ArtefactError, PlanError
from protocol.plan_sections import Local
from protocol.rows.pages import Page, page_of
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary
from tests.asgi import asked
from tests.delivery_world import World, now, update
from tests.page_models import WORDS, write_pages_source

pytestmark = pytest.mark.slow
HEIGHTS = {"top": 100, "middle": 500, "bottom": 900}  # where the same word stands
EXPERIMENT = """
format = 1
name = "documents"
base = { source = "source", bits = 8, scales = true }
data = { train = "train.jsonl", test = "test.jsonl" }
population = { clients = 5, partition = "column", column = "whose" }
yardsticks = { alone = 1, personal = 2, personal_epochs = 1 }
[plan]
seed = 3
rounds = 4
task = { kind = "document-classification", max_length = 24 }
adapter = { rank = 4, targets = "all-linear" }
rule.name = "mean"
cohort = { size = 5, quorum = 4 }
local = { batch_size = 8, epochs = 2, learning_rate = 1e-2 }
evaluation.holdout = 0.2
"""


def write_rows(folder: Path, name: str, count: int, seed: int, *, placed: bool = True) -> Path:
    """Two words anywhere and a sum at one of three heights, which alone is the label; in any order."""
    rng, lines = np.random.default_rng(seed), []
    for number in range(count):
        label = list(HEIGHTS)[number % 3]
        others = [word for word in WORDS if word != "sum"]
        words = ["sum", *map(str, rng.choice(others, 2))]
        down = [HEIGHTS[label], *rng.choice(list(HEIGHTS.values()), 2).tolist()]
        across = rng.choice([50, 450, 850], 3).tolist()
        boxes = [[x, y, x + 100, y + 50] for x, y in zip(across, down, strict=True)]
        order = rng.permutation(3).tolist()
        words, boxes = [words[at] for at in order], [boxes[at] for at in order]
        row = {
            "words": words,
            "boxes": boxes if placed else [[0, 0, 0, 0]] * 3,
            "label": label,
            "whose": number % 5,
        }
        lines.append(json.dumps(row) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("documents")
    write_pages_source(folder / "source", head="own")
    write_rows(folder, "train", 240, 1)
    write_rows(folder, "test", 60, 2)
    (folder / "documents.toml").write_text(EXPERIMENT)
    experiment, out = load_experiment(folder / "documents.toml"), folder / "run"
    return out, simulate(experiment, out, resume=False, progress=NoProgress())


def pages_and_labels(out: Path) -> tuple[list[Page], list[str]]:
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    pages = [page_of(row["words"], row["boxes"], place="test") for row in rows]
    return pages, [row["label"] for row in rows]


def as_document(page: Page) -> dict[str, Any]:
    return {"words": list(page.words), "boxes": [list(box) for box in page.boxes]}


def base_of(out: Path) -> Path:
    return (out / json.loads((out / "experiment.json").read_text())["base_folder"]).resolve()


def released(out: Path) -> Path:
    return sorted((out / "rounds").glob("[0-9]*"))[-1] / "adapter"


def test_documents_are_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    assert summary.audit == "ok"
    assert summary.rounds_verified == 4
    assert summary.refused is None
    assert (summary.labels, summary.clients) == (3, 5)
    assert summary.accuracy_federated is not None
    assert summary.accuracy_federated > 0.8
    assert "accuracy" in (out / "report.html").read_text()


def test_without_boxes_there_is_nothing_to_learn(
    finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    """The same rows at no places: words and their order say nothing of the label."""
    write_rows(tmp_path, "train", 240, 1, placed=False)
    write_rows(tmp_path, "test", 60, 2, placed=False)
    source = str(finished[0].parent / "source")
    alone = EXPERIMENT.replace('"source"', f'"{source}"', 1).replace("personal = 2", "personal = 0")
    (tmp_path / "documents.toml").write_text(alone)
    experiment = load_experiment(tmp_path / "documents.toml")
    summary = simulate(experiment, tmp_path / "run", resume=False, progress=NoProgress())
    assert summary.accuracy_federated is not None
    assert summary.accuracy_federated < 0.6


def test_peft_opens_it_on_the_ordinary_class(finished: tuple[Path, Summary]) -> None:
    """On the source itself, and by the folder's own module; a device answers the same, to 1e-4 on its codes."""
    out, _ = finished
    pages, labels = pages_and_labels(out)
    adapter, base, source = released(out), base_of(out), out.parent / "source"
    backend = open_backend(base, threads=1)
    answers = backend.runtime.infer(pages, backend.load(adapter))
    expected = np.array([answer.logits for answer in answers])
    opener = runpy.run_path(str(adapter / "open_adapter.py"))
    inputs = opener["pages"](adapter, base)([as_document(page) for page in pages])
    with torch.no_grad():
        found = opener["load"](adapter, base)(**inputs).logits.numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    ordinary = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=3, ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(ordinary, str(adapter)).eval()
    own = opener["load"](adapter, source)
    with torch.no_grad():
        near, same = model(**inputs).logits.numpy(), own(**inputs).logits.numpy()
    assert np.abs(near - same).max() <= 1e-4 * np.abs(near).max()
    right = np.mean([a.answer == label for a, label in zip(answers, labels, strict=True)])
    assert right > 0.8
    card = (adapter / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert 'pages("FOLDER", "BASE")(["a page.json"])' in card


def test_a_device_answers_files_and_requests(
    finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    out, _ = finished
    pages, _ = pages_and_labels(out)
    paths = [tmp_path / f"{at}.json" for at in range(3)]
    for path, page in zip(paths, pages, strict=False):
        path.write_text(json.dumps(as_document(page)))
    arguments = ["--base", str(base_of(out)), "--adapter", str(released(out)), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "edge", "infer", *map(str, paths), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [row["page"] for row in said] == list(map(str, paths))
    app = App(SingleService(base_of(out), released(out), threads=1))
    status, document = asked(app, {"pages": [as_document(page) for page in pages[:3]]})
    assert status == 200
    assert [row["label"] for row in document["answers"]] == [row["label"] for row in said]


def test_a_device_adapts_to_pages_of_its_own(
    finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    out, _ = finished
    pages, labels = pages_and_labels(out)
    golden = [
        as_document(page) | {"label": label}
        for page, label in zip(pages[:6], labels[:6], strict=True)
    ]
    world = World.make(tmp_path / "world", base_of(out), {"good": released(out)}, golden)
    path = world.folder / "probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"least_correct": 3}))
    device = world.device()
    world.publish()
    update(device)
    rows = write_rows(tmp_path, "own", 30, 7)
    local = Local(batch_size=8, epochs=2, learning_rate=1e-3, head_learning_rate=1e-3)
    request = Request(data=rows, text=None, pair="", column="", local=local, holdout=0.2)
    outcome = adapt(device, request, now(), lambda done, total: None)
    assert (outcome.personal.rows, outcome.personal.held_out) == (24, 6)
    assert outcome.loss < 1.0


def test_what_documents_have_not_is_refused(finished: tuple[Path, Summary], tmp_path: Path) -> None:
    out, _ = finished
    path = tmp_path / "documents.toml"
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
