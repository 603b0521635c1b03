"""The base of an experiment, built once and kept next to the runs.

The cache key covers the source's weights and the code that builds, so neither another model under
the same name nor another version of fedge is mistaken for what was built before.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from importlib import metadata, resources
from pathlib import Path

from base_model.build import build_base
from base_model.places import PACKAGE, locate
from base_model.store import read_manifest
from protocol.errors import ArtefactError, MachineError, PlanError
from protocol.manifest import MANIFEST_NAME
from simulations.experiment import BaseSource
from simulations.progress import Progress

WEIGHTS = "model.safetensors"


def ready_base(source: BaseSource, *, folder: Path, cache: Path, progress: Progress) -> Path:
    """The folder of the built base; builds it when the cache has none.

    Args:
        source: what the experiment says.
        folder: relative sources start here.
        cache: folder of built bases, created if need be.
        progress: told about the build as ``base``.

    Raises:
        MachineError: the source is not on this machine.
        ArtefactError: the weights are not those the experiment pins.
    """
    origin = _located(source.source, folder)
    weights = _weights_digest(origin) if origin else _text_digest(source.source)
    _check_pin(source, origin, weights)
    # Of a local folder only its own name: where it lies is nobody else's business.
    local = origin is not None and not source.source.startswith(PACKAGE)
    shown = origin.name if origin and local else source.source.removeprefix(PACKAGE)
    name = re.sub(r"[^A-Za-z0-9]+", "-", shown).strip("-")[-40:]
    target = cache / f"{name}-int{source.bits}-{_text_digest(weights + _builder())[:16]}"
    if (target / MANIFEST_NAME).is_file():
        read_manifest(target)
        return target
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".building-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    build_base(
        str(origin) if local else source.source,
        task="sequence-classification",
        bits=source.bits,
        out=temporary,
        progress=lambda step, share: progress.update(f"base: {step}", share, 1.0),
    )
    _publish(temporary, target)
    return target


def _publish(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        # Another simulation was faster and built the same thing.
        shutil.rmtree(temporary, ignore_errors=True)
        read_manifest(target)


def _located(source: str, folder: Path) -> Path | None:
    """The folder of a local source; None for a Hugging Face id."""
    if source.startswith(PACKAGE):
        return Path(locate(source))
    local = folder / source
    if local.is_dir():
        return local
    if source.startswith((".", "/", "~")):
        raise MachineError(f"base source {source} is not a folder", "correct base.source")
    return None


def _weights_digest(origin: Path) -> str:
    path = origin / WEIGHTS
    if not path.is_file():
        raise MachineError(f"{origin} has no {WEIGHTS}", "name the folder of a Hugging Face model")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_pin(source: BaseSource, origin: Path | None, weights: str) -> None:
    if not source.sha256:
        return
    if origin is None:
        raise PlanError(
            "`base.sha256` pins a folder or a package, not a Hugging Face id",
            "download the model and name its folder, or leave base.sha256 out",
        )
    if weights != source.sha256:
        raise ArtefactError(
            f"{WEIGHTS} of {source.source} has sha256 {weights[:16]}…, not the pinned one",
            "install the pinned version, or correct base.sha256 after checking the model",
        )


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _builder() -> str:
    """A digest of the code that builds, and of the libraries whose output it keeps."""
    hasher = hashlib.sha256()
    for file in sorted(resources.files("base_model").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            hasher.update(file.read_bytes())
    for name in ("codes.py", "manifest.py"):
        hasher.update((resources.files("protocol") / name).read_bytes())
    for library in ("torch", "transformers", "onnx"):
        hasher.update(metadata.version(library).encode())
    return hasher.hexdigest()
