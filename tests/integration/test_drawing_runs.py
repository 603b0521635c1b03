"""A whole simulated run of a base that draws: from files of the sites to what a device draws."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file

from edge_runtime.backends import open_backend
from edge_runtime.drawing.adapters import load_drawing_adapter
from edge_runtime.drawing.base import DrawingBase
from edge_runtime.drawing.http_app import DrawApp
from edge_runtime.drawing.sampling import Wish
from edge_runtime.drawing.service import FollowingDrawing
from fedge.personal import Request, adapt
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS
from protocol.errors import ArtefactError, DeliveryError
from protocol.plan_sections import Local
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary
from tests.asgi import asked
from tests.delivery_world import World, now, update
from tests.denoiser_models import LABELS, SIDE, write_denoiser_source, write_drawings

pytestmark = pytest.mark.slow
EXPERIMENT = """
format = 1
name = "drawings"
base = { source = "source", bits = 32 }
data = { train = "train.jsonl", test = "test.jsonl" }
population = { clients = 5, partition = "dirichlet", alpha = 1.0, min_rows = 8 }
yardsticks = { alone = 1, pooled = true, personal = 2, personal_epochs = 1 }
[plan]
seed = 3
rounds = 4
task = { kind = "image-generation" }
adapter = { rank = 4, targets = "all-linear" }
rule.name = "mean"
cohort = { size = 5, quorum = 4 }
local = { batch_size = 8, epochs = 3, learning_rate = 1e-2 }
evaluation.holdout = 0.2
"""


def write_rows(folder: Path, name: str, count: int, seed: int) -> Path:
    files = write_drawings(folder / name, count, seed=seed)
    rows = [
        {"image": f"{name}/{path.name}", "label": LABELS[at % 3]} for at, path in enumerate(files)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("drawings")
    write_denoiser_source(folder / "source")
    write_rows(folder, "train", 120, 1)
    write_rows(folder, "test", 30, 2)
    (folder / "drawings.toml").write_text(EXPERIMENT)
    experiment, out = load_experiment(folder / "drawings.toml"), folder / "run"
    return out, simulate(experiment, out, resume=False, progress=NoProgress())


def base_of(out: Path) -> Path:
    return (out / json.loads((out / "experiment.json").read_text())["base_folder"]).resolve()


def released(out: Path) -> Path:
    return sorted((out / "rounds").glob("[0-9]*"))[-1] / "adapter"


def test_drawing_is_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    assert summary.audit == "ok"
    assert summary.rounds_verified == 4
    assert summary.refused is None
    assert summary.noise_error_before is not None
    assert summary.noise_error_federated is not None
    assert summary.noise_error_federated < 0.6 * summary.noise_error_before
    assert summary.noise_error_pooled is not None
    assert summary.noise_error_alone_mean is not None
    assert summary.noise_error_personal_mean is not None
    assert summary.parity_max_relative is not None
    assert summary.accuracy_federated is None
    assert all("federated" in entry for entry in summary.per_client.values())
    report = (out / "report.html").read_text()
    assert "noise error" in report
    assert "images for labels" in report


def opened_by_diffusers(out: Path, folder: Path | None) -> Any:
    """Diffusers' own class on the source, and peft's on it with a folder."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(out.parent / "source", subfolder="transformer")
    return model.eval() if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()


def noise_of(model: Any, feeds: dict[str, Any]) -> Any:
    with torch.no_grad():
        inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        return model(**inputs).sample[:, :1].numpy()


def test_peft_opens_it_on_diffusers_own_class(finished: tuple[Path, Summary]) -> None:
    """A device finds the same noise, to 1e-4; and round 0 changes nothing, to the bit."""
    out, _ = finished
    device = DrawingBase.open(base_of(out), threads=1)
    rng = np.random.default_rng(0)
    feeds = {
        IMAGES: rng.standard_normal((6, 1, SIDE, SIDE), np.float32),
        STEPS: np.array([0, 5, 10, 20, 30, 39]),
        CLASSES: np.array([0, 1, 2, 3, 4, 5]),
    }
    expected = noise_of(opened_by_diffusers(out, released(out)), feeds)
    noise = device.noise(feeds, load_drawing_adapter(released(out), device).values)
    assert np.abs(noise - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max()))
    plain = noise_of(opened_by_diffusers(out, None), feeds)
    assert np.abs(device.noise(feeds) - plain).max() <= 1e-4
    assert np.abs(expected - plain).max() > 0.05
    start = opened_by_diffusers(out, out / "rounds" / "0000" / "adapter")
    assert noise_of(start, feeds).tobytes() == plain.tobytes()


def test_the_folder_has_nothing_but_the_adapter(finished: tuple[Path, Summary]) -> None:
    out, _ = finished
    config = json.loads((released(out) / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert not {"auto_mapping", "modules_to_save"} & {k for k, v in config.items() if v}
    assert not (released(out) / "open_adapter.py").exists()
    names = load_file(released(out) / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.transformer_blocks.") for name in names)
    card = (released(out) / "README.md").read_text()
    assert "may draw images that it was trained on" in card
    assert 'subfolder="transformer"' in card


def test_a_device_takes_releases_and_draws(finished: tuple[Path, Summary], tmp_path: Path) -> None:
    """By the command, and over HTTP, with the release's identity; a probe that is missed stops one."""
    out, _ = finished
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    golden = [{"image": row["image"], "label": row["label"]} for row in rows[:4]]
    world = World.make(
        tmp_path / "world", base_of(out), {"good": released(out)}, golden, most_error=1.0
    )
    device = world.device()
    world.publish()
    update(device)
    arguments = ["--device", str(world.folder / "kiosk-1.toml"), "--out", str(tmp_path / "a.png")]
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "edge", "draw", "a", *arguments, "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["seq"] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    service = FollowingDrawing(device, clock=lambda: 0.0)
    status, document = asked(DrawApp(service), {"label": "b", "steps": 5}, path="/v1/draw")
    assert status == 200
    assert (document["release"], document["seq"]) == (said["release"], 1)
    assert len(document["images"]) == 1
    while_one_waits_nothing_is_in_use(service)
    backend = open_backend(base_of(out), threads=1)
    assert backend.ITEM == "step"
    own = Request(
        data=out.parent / "train.jsonl",
        **{"text": None, "pair": "", "column": ""},
        local=Local(),
        holdout=0.2,
    )
    with pytest.raises(DeliveryError, match=r"personal\.drawing"):
        adapt(device, own, now(), lambda done, total: None)
    strict = World.make(
        tmp_path / "strict", base_of(out), {"good": released(out)}, golden, most_error=1e-3
    )
    strict.publish()
    with pytest.raises(DeliveryError, match=r"probe\.labels.*a noise error of"):
        update(strict.device())


def while_one_waits_nothing_is_in_use(service: FollowingDrawing) -> None:
    """What has been withdrawn since a wish began to wait does not draw it."""
    waited, errors = threading.Event(), list[DeliveryError]()

    def wait() -> None:
        try:
            service.draw(Wish(label="a", steps=1), waited.set)
        except DeliveryError as error:
            errors.append(error)

    with service._turns._turn:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waited.wait(30)
        service._serving = None
    thread.join(30)
    assert [error.code for error in errors] == ["serve.empty"]


def test_a_run_is_released_again_by_hand(finished: tuple[Path, Summary], tmp_path: Path) -> None:
    """And merged models, which are of texts with labels, are refused."""
    out, summary = finished
    command = [sys.executable, "-m", "fedge", "release", str(out), "--base", str(base_of(out))]
    rows = ["--rows", str(out / "test.jsonl")]
    done = subprocess.run([*command, *rows], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"noise error {summary.noise_error_federated:.4f}" in " ".join(done.stdout.split())
    assert "labels agree" not in done.stdout
    done = subprocess.run([*command, *rows, "--merged", "hf"], capture_output=True, text=True)
    assert done.returncode == ArtefactError.exit_code
