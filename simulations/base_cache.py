"""The base of an experiment: one that is built, or built once and kept next to the runs.

The cache's key covers everything that goes into a base: every file of the source that can matter, the
settings, the code that builds and the libraries whose output it keeps. So neither a mended tokenizer nor
another model under the same name nor another version of fedge is mistaken for what was built before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import base_model
import protocol
from base_model.build import build_base
from base_model.decoder.build import build_decoder
from base_model.decoder.calibration import default_text
from base_model.decoder.sources import decoder_source
from base_model.media_build import builder_of
from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.folder import seq2seq_source
from base_model.verify import read_manifest, verify_base
from protocol.decoder_manifest import DECODER
from protocol.errors import ArtefactError
from protocol.manifest import MANIFEST_NAME
from protocol.media import MEDIA
from protocol.seq2seq_manifest import SEQ2SEQ
from simulations.base_origin import Origin, origin_of
from simulations.experiment import BaseSource, expanded
from simulations.progress import Progress
from storage.locks import locked

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "safetensors"),
    *("onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy"),
)


def ready_base(
    source: BaseSource, *, task: str, folder: Path, cache: Path, progress: Progress
) -> Path:
    """The folder of the built base; builds it when the experiment names none and the cache has none.

    Args:
        source: what the experiment says.
        task: what a base is built for, in the words of its manifest.
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
    origin = origin_of(source, task, folder)
    _check_pin(source, origin)
    # Of a local folder only its own name: where it lies is nobody else's business.
    name = re.sub(r"[^A-Za-z0-9]+", "-", origin.shown).strip("-")[-40:]
    options = (source.bits, source.pooling, source.scales, source.context, source.seconds)
    parts = (origin.digest, *options, task)
    settings = f"{' '.join(map(str, parts))} {_builder()}"
    target = cache / f"{name}-int{source.bits}-{_text_digest(settings)[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f".{target.name}.lock"):  # another simulation may be building it
        if (target / MANIFEST_NAME).is_file():
            read_manifest(target)
            return target
        progress.line(f"building the base from {source.source}; it is kept for the next run")

        def tell(step: str, share: float) -> None:
            progress.update(f"base: {step}", share, 1.0)

        _build(source, task, folder, target, tell)
    return target


def _build(
    source: BaseSource, task: str, folder: Path, target: Path, tell: Callable[[str, float], None]
) -> None:
    if task in (DECODER, SEQ2SEQ):
        make, read = (
            (build_decoder, decoder_source) if task == DECODER else (build_seq2seq, seq2seq_source)
        )
        make(
            read(expanded(source.source), beside=folder),
            bits=source.bits,
            embedding_bits=max(source.bits, 8),
            out=target,
            context=source.context or None,
            calibration=default_text() if source.bits == 4 else None,
            progress=tell,
        )
        return
    text = expanded(source.source)
    if task in MEDIA:
        builder_of(task)(
            str(folder / text) if (folder / text).is_dir() else text,
            bits=source.bits,
            out=target,
            scales=source.scales,
            seconds=source.seconds,
            progress=tell,
        )
        return
    build_base(
        str(folder / text) if (folder / text).is_dir() else text,
        task=task,
        bits=source.bits,
        out=target,
        pooling=source.pooling,
        scales=source.scales,
        progress=tell,
    )


def _check_pin(source: BaseSource, origin: Origin) -> None:
    if source.sha256 and origin.weights != source.sha256:
        raise ArtefactError(
            f"the weights of {source.source} have sha256 {origin.weights[:16]}…, not the pinned one",
            "install the pinned version, or correct base.sha256 after checking the model",
        )


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _builder() -> str:
    """A digest of the code that builds, and of the libraries whose output it keeps."""
    hasher = hashlib.sha256()
    for package in (base_model, protocol):
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            hasher.update(file.read_bytes())
    for library in LIBRARIES:
        hasher.update(f"{library} {metadata.version(library)}".encode())
    return hasher.hexdigest()
