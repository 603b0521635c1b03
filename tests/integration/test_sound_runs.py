"""A whole simulated run of sounds: from files of the sites to what a device answers and learns."""

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
from transformers import AutoModelForAudioClassification

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
from tests.sound_models import tone, wav, write_sounds_source
from tests.waveform_models import waveform_preprocessing, write_waveform_source

pytestmark = pytest.mark.slow
HEIGHTS = {"low": 300.0, "middle": 1200.0, "high": 4000.0}  # hertz
EXPERIMENT = """
format = 1
name = "sounds"
base = { source = "source", bits = 32, seconds = SECONDS }
data = { train = "train.jsonl", test = "test.jsonl" }
population = { clients = 5, partition = "column", column = "whose" }
yardsticks = { alone = 1, personal = 2, personal_epochs = 1 }
[plan]
seed = 3
rounds = 3
task = { kind = "audio-classification" }
adapter = { rank = 4, targets = "all-linear" }
rule.name = "mean"
cohort = { size = 5, quorum = 4 }
local = { batch_size = 8, epochs = 2, learning_rate = 1e-2 }
evaluation.holdout = 0.2
"""


def write_rows(folder: Path, name: str, count: int, seed: int) -> Path:
    """Tones in noise of three heights; the label says which."""
    rng, lines = np.random.default_rng(seed), []
    (folder / name).mkdir(parents=True)
    for number in range(count):
        label = list(HEIGHTS)[number % 3]
        heard = tone(HEIGHTS[label] * rng.uniform(0.8, 1.25), seed=seed * 1000 + number)
        (folder / name / f"{number}.wav").write_bytes(wav(heard))
        row = {"audio": f"{name}/{number}.wav", "label": label, "whose": number % 5}
        lines.append(json.dumps(row) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(lines))
    return path


def experiment_of(seconds: int) -> str:
    return EXPERIMENT.replace("SECONDS", str(seconds))


# On encoders with their head's layer before the last, a Whisper's that writes and a HuBERT's that did, without a
# mask. Norms over time are in none: of a tone they leave nothing that tells how high it is.
CASES = [
    ("whisper", "own"),
    ("whisper", "other"),
    ("wav2vec2-large", "own"),
    ("hubert-large", "other"),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Summary]:
    folder, (kind, head) = tmp_path_factory.mktemp("sounds"), request.param
    if kind == "whisper":
        write_sounds_source(folder / "source", head=head)
    else:
        settings = waveform_preprocessing(return_attention_mask=head == "own")
        write_waveform_source(folder / "source", kind, head=head, settings=settings)
    write_rows(folder, "train", 150, 1)
    write_rows(folder, "test", 45, 2)
    (folder / "sounds.toml").write_text(experiment_of(0 if kind == "whisper" else 1))
    experiment, out = load_experiment(folder / "sounds.toml"), folder / "run"
    return out, simulate(experiment, out, resume=False, progress=NoProgress())


def paths_and_labels(out: Path) -> tuple[list[Path], list[str]]:
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    return [Path(row["audio"]) for row in rows], [row["label"] for row in rows]


def base_of(out: Path) -> Path:
    return (out / json.loads((out / "experiment.json").read_text())["base_folder"]).resolve()


def released(out: Path) -> Path:
    return sorted((out / "rounds").glob("[0-9]*"))[-1] / "adapter"


def is_ordinary(out: Path) -> bool:
    """Whether the base computes what the ordinary class does."""
    return json.loads((base_of(out) / "manifest.json").read_text())["pooling"] == "projected"


def test_sounds_are_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    assert summary.audit == "ok"
    assert summary.rounds_verified == 3
    assert summary.refused is None
    assert (summary.labels, summary.clients) == (3, 5)
    assert summary.accuracy_federated is not None
    assert summary.accuracy_federated > 0.8
    assert "accuracy" in (out / "report.html").read_text()


def test_peft_opens_it_where_the_base_is_the_ordinary_class(
    finished: tuple[Path, Summary],
) -> None:
    """On the source itself, and by the folder's own module; a device answers the same, to 1e-4."""
    out, _ = finished
    sounds, labels = paths_and_labels(out)
    adapter, base, source = released(out), base_of(out), out.parent / "source"
    backend = open_backend(base, threads=1)
    answers = backend.runtime.infer(sounds, backend.load(adapter))
    expected = np.array([answer.logits for answer in answers])
    opener = runpy.run_path(str(adapter / "open_adapter.py"))
    models = [opener["load"](adapter, base), opener["load"](adapter, source)]
    ordinary = AutoModelForAudioClassification.from_pretrained(
        source, num_labels=3, ignore_mismatched_sizes=True
    )
    if is_ordinary(out):
        models.append(PeftModel.from_pretrained(ordinary, str(adapter)).eval())
    else:
        with pytest.raises((KeyError, ValueError)):
            PeftModel.from_pretrained(ordinary, str(adapter))
    for origin in (base, source):
        inputs = opener["features"](origin)(sounds)
        for model in models:
            with torch.no_grad():
                logits = model(**inputs).logits.numpy()
            assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    right = np.mean([a.answer == label for a, label in zip(answers, labels, strict=True)])
    assert right > 0.8
    card = (adapter / "README.md").read_text()
    assert "AutoModelForAudioClassification" in card
    assert ("would answer nonsense" in card) is not is_ordinary(out)


def test_a_device_answers_files_and_requests(finished: tuple[Path, Summary]) -> None:
    out, _ = finished
    sounds, _ = paths_and_labels(out)
    arguments = ["--base", str(base_of(out)), "--adapter", str(released(out)), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "edge", "infer", *map(str, sounds[:3]), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [row["audio"] for row in said] == [str(sound) for sound in sounds[:3]]
    app = App(SingleService(base_of(out), released(out), threads=1))
    encoded = [base64.b64encode(sound.read_bytes()).decode() for sound in sounds[:3]]
    status, document = asked(app, {"sounds": encoded})
    assert status == 200
    assert [row["label"] for row in document["answers"]] == [row["label"] for row in said]
    for odd, reason in (
        ({"sounds": ["AAAA"]}, "sound 1: its sound is not read: it is no WAV file"),
        ({"sounds": ["%"]}, "1 is no base64"),
        ({"texts": [str(sounds[0])]}, "answers sounds, and texts were given"),
        ({"sounds": encoded, "images": encoded}, "either texts, or images, or sounds"),
    ):
        status, document = asked(app, odd)
        assert status == 422
        assert reason in json.dumps(document)


def test_a_device_adapts_to_sounds_of_its_own(
    finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    out, _ = finished
    sounds, labels = paths_and_labels(out)
    golden = [
        {"audio": str(sound), "label": label}
        for sound, label in zip(sounds[:6], labels[:6], strict=True)
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


def test_what_sounds_have_not_is_refused(finished: tuple[Path, Summary], tmp_path: Path) -> None:
    out, _ = finished
    path = tmp_path / "sounds.toml"
    path.write_text(experiment_of(0).replace("[plan]", '[head]\nstart = "labels"\n[plan]', 1))
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
