"""The base of an experiment: one that is built, or built once and kept next to the runs.

The cache's key covers everything that goes into a base: every file of the source that can matter, the
settings, the code that builds and the libraries whose output it keeps. So neither a mended tokenizer nor
another model under the same name nor another version of fedge is mistaken for what was built before.
"""

from __future__ import annotations

import hashlib
import re
from importlib import metadata, resources
from pathlib import Path

from base_model.build import build_base
from base_model.places import PACKAGE, Place, locate
from base_model.verify import read_manifest, verify_base
from protocol.errors import ArtefactError
from protocol.manifest import MANIFEST_NAME
from simulations.experiment import BaseSource
from simulations.progress import Progress
from storage.locks import locked

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "safetensors"),
    *("onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy"),
)


def ready_base(source: BaseSource, *, folder: Path, cache: Path, progress: Progress) -> Path:
    """The folder of the built base; builds it when the experiment names none and the cache has none.

    Args:
        source: what the experiment says.
        folder: relative folders start here.
        cache: folder of built bases, created if need be.
        progress: told about the build as ``base``.

    Raises:
        MachineError: the source is not on this machine.
        ArtefactError: the source is no base, or its weights are not those the experiment pins.
    """
    if source.folder:
        base = folder / Path(source.folder).expanduser()
        verify_base(base)
        return base
    place = locate(source.source, beside=folder)
    _check_pin(source, place)
    # Of a local folder only its own name: where it lies is nobody else's business.
    name = re.sub(r"[^A-Za-z0-9]+", "-", _shown(source.source, place)).strip("-")[-40:]
    settings = f"{place.digest()} {source.bits} {source.pooling} {source.scales} {_builder()}"
    target = cache / f"{name}-int{source.bits}-{_text_digest(settings)[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f".{target.name}.lock"):  # another simulation may be building it
        if (target / MANIFEST_NAME).is_file():
            read_manifest(target)
            return target
        progress.line(f"building the base from {source.source}; it is kept for the next run")
        local = (folder / source.source).is_dir()
        build_base(
            str(folder / source.source) if local else source.source,
            task="sequence-classification",
            bits=source.bits,
            out=target,
            pooling=source.pooling,
            scales=source.scales,
            progress=lambda step, share: progress.update(f"base: {step}", share, 1.0),
        )
    return target


def _shown(source: str, place: Place) -> str:
    if source.startswith(PACKAGE):
        return source.removeprefix(PACKAGE)
    return source if "snapshots" in place.root.parts else place.root.name


def _check_pin(source: BaseSource, place: Place) -> None:
    if not source.sha256:
        return
    weights = place.weights_digest()
    if weights != source.sha256:
        raise ArtefactError(
            f"the weights of {source.source} have sha256 {weights[:16]}…, not the pinned one",
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
    for file in sorted(resources.files("protocol").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            hasher.update(file.read_bytes())
    for library in LIBRARIES:
        hasher.update(f"{library} {metadata.version(library)}".encode())
    return hasher.hexdigest()
