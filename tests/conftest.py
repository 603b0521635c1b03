"""What every test may ask for: a tiny base of each medium, adapters on it, and devices that take them."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from tests.tiny_model import TEXTS, write_tiny_source

# No test is timed: how long an example takes is the machine's, and of what else it does. Examples
# are the same at each run, so that a red suite is of the change before it; `make test-laws` draws others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("drawn", deadline=None, derandomize=False)
settings.load_profile("same")
# Threads that wait for one another spin: on a busy machine tiny matrices take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_teardown() -> None:
    """A command that serves starts without collections; one that a test ends early leaves them off."""
    gc.enable()


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT in Hugging Face form."""
    return write_tiny_source(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def tiny_base(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 base built from ``tiny_source``, with every slot that a method may fill."""
    from base_model.build import build_base

    out = tmp_path_factory.mktemp("base") / "tiny"
    build_base(str(tiny_source), task="sequence-classification", bits=4, out=out, scales=True)
    return out


@pytest.fixture(scope="session")
def tiny_denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 base of a random two-layer DiT on images of 8 by 8 pixels."""
    from base_model.denoisers.build import build_denoiser
    from tests.denoiser_models import write_denoiser_source

    folder = tmp_path_factory.mktemp("denoiser")
    source = write_denoiser_source(folder / "source")
    build_denoiser(str(source), bits=4, out=folder / "base")
    return folder / "base"


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 base of a random two-layer ViT, with every slot that a method may fill."""
    from base_model.images.build import build_images
    from tests.image_models import write_images_source

    folder = tmp_path_factory.mktemp("images")
    source = write_images_source(folder / "source", head="own")
    build_images(str(source), bits=4, out=folder / "base", scales=True)
    return folder / "base"


@pytest.fixture(scope="session")
def tiny_sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 base of a random two-layer Whisper encoder, with every slot that a method may fill."""
    from base_model.sounds.build import build_sounds
    from tests.sound_models import write_sounds_source

    folder = tmp_path_factory.mktemp("sounds")
    source = write_sounds_source(folder / "source", head="own")
    build_sounds(str(source), bits=4, out=folder / "base", scales=True)
    return folder / "base"


@pytest.fixture(scope="session")
def tiny_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 base of a random two-layer wav2vec 2.0 with a mask, with every slot that a method may fill."""
    from base_model.sounds.build import build_sounds
    from tests.waveform_models import SECONDS, write_waveform_source

    folder = tmp_path_factory.mktemp("samples")
    source = write_waveform_source(folder / "source", "wav2vec2-large", head="own", seed=1)
    build_sounds(str(source), bits=4, out=folder / "base", scales=True, seconds=SECONDS)
    return folder / "base"


@pytest.fixture(scope="session")
def tiny_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int4 base of a random two-layer LayoutLM, with every slot that a method may fill."""
    from base_model.build import build_base
    from tests.page_models import write_pages_source

    folder = tmp_path_factory.mktemp("pages")
    source = write_pages_source(folder / "source", head="own")
    task = "document-classification"
    build_base(str(source), task=task, bits=4, out=folder / "base", scales=True)
    return folder / "base"


@pytest.fixture(scope="session")
def write_adapter(tiny_base: Path):  # type: ignore[no-untyped-def]
    """Writes a PEFT folder with random values, as the coordinator does; returns the folder."""
    import numpy as np

    from base_model.verify import read_manifest
    from protocol.encoding import vector_digest
    from protocol.plan import plan_from
    from protocol.recipe import Recipe
    from server.peft_folder import write_peft_folder
    from tests.methods import adapter_of

    def write(
        folder: Path,
        *,
        method: str = "lora",
        rank: int | None = None,
        seed: int = 0,
        targets: object = "all-linear",
        base: Path = tiny_base,
        labels: Sequence[str] = ("light", "music", "timer"),
        task: dict[str, object] | None = None,
        deviation: float = 0.3,
        adapter: dict[str, object] | None = None,
        keep: float = 1.0,
    ) -> Path:
        manifest = read_manifest(base)
        sizes = {} if rank is None else {"rank": rank}
        adapter = adapter or adapter_of(method, targets=targets, alpha=16.0, **sizes)
        plan = plan_from(
            {
                "name": "t",
                "base": {"fingerprint": manifest.fingerprint},
                "adapter": adapter,
                "rule": {"name": "mean"},
                "release": {"keep": keep},
                "task": task or {"labels": list(labels), "max_length": 16},
            },
            source="test",
        )
        rng = np.random.default_rng(seed)
        recipe = Recipe(plan=plan, manifest=manifest)
        vector = rng.normal(0, deviation, recipe.layout.size).astype(np.float32)
        tensors = recipe.layout.unflatten(vector)
        published = recipe.published_layout.flatten(recipe.published(tensors))
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_peft_folder(
            folder,
            tensors,
            recipe=recipe,
            round_number=1,
            adapter_digest=vector_digest(published),
            exchange="plain",
            secure=False,
            metrics={},
        )
        return folder

    return write


@pytest.fixture(scope="session")
def released(tiny_base: Path, write_adapter, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Released adapters by name: a and b differ in rank and values, c has a soft prompt."""
    from base_model.release import release_adapter

    folder = tmp_path_factory.mktemp("adapters")
    made = {
        "a": write_adapter(folder / "a", seed=1),
        "b": write_adapter(
            folder / "b", seed=2, rank=7, targets=["query", "attention.output.dense"]
        ),
        "c": write_adapter(folder / "c", seed=3, method="prompt"),
    }
    for path in made.values():
        release_adapter(path, tiny_base, texts=TEXTS, bound=1e-4)
    return made


@pytest.fixture(scope="session")
def delivery_rows(tiny_base: Path, released: dict[str, Path]) -> list[dict[str, str]]:
    """Golden rows that adapter a gets right and b wrong."""
    from tests.delivery_world import told_apart

    return told_apart(tiny_base, released["a"], released["b"])


@pytest.fixture
def world(tmp_path: Path, tiny_base: Path, released: dict[str, Path], delivery_rows):  # type: ignore[no-untyped-def]
    """A publisher, a log and settings of devices; `good` passes their probe, `bad` does not."""
    from tests.delivery_world import World

    adapters = {"good": released["a"], "bad": released["b"]}
    return World.make(tmp_path / "world", tiny_base, adapters, delivery_rows)


@pytest.fixture
def kiosk(world):  # type: ignore[no-untyped-def]
    """A device that runs release 1."""
    from tests.delivery_world import update

    device = world.device()
    world.publish()
    update(device)
    return device
