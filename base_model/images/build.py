"""Build a base of images, once, at the publisher. (P-1.15)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from base_model.export import ONE_FILE
from base_model.graph_check import verify_features
from base_model.headed_build import (
    ACCURACY_LEVEL,
    build_folder,
    described,
    filled,
    write_numbers,
)
from base_model.images.classifier import ImageClassifier
from base_model.images.export import export_images
from base_model.images.source import ImageSource, load_images
from base_model.quantised import BLOCK, Progress
from base_model.store import GRAPH
from protocol.image_manifest import PIXELS, ImageManifest, image_fingerprint_of
from protocol.manifest import IMAGES


def build_images(
    source: str,
    *,
    bits: int,
    out: Path,
    scales: bool = False,
    one_file: int = ONE_FILE,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> ImageManifest:
    """Build the folder ``out`` from ``source``, as :func:`base_model.build.build_base` does of texts.

    Raises PlanError for bits that are not offered, ArtefactError for the source or out, MachineError for
    what this machine lacks.
    """
    return build_folder(
        out,
        bits=bits,
        load=lambda: load_images(source),
        fill=lambda folder, loaded, tell: _fill(
            folder, loaded, bits=bits, scales=scales, one_file=one_file, tell=tell
        ),
        progress=progress,
        explain=explain,
    )


def _fill(
    folder: Path, source: ImageSource, *, bits: int, scales: bool, one_file: int, tell: Progress
) -> ImageManifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    labels = len(source.labels) if source.labels else 2
    # eager attention exports to plain matrix products
    model = filled(ImageClassifier(source.config, labels=labels, attention="eager"), source)
    written = write_numbers(folder, model, source, bits, tell)
    tell("exporting the edge graph", 0.6)
    slots = export_images(
        model,
        written.linears,
        written.codes,
        path=folder / GRAPH,
        shape=source.pixels.shape,
        bits=bits,
        block=BLOCK,
        accuracy_level=ACCURACY_LEVEL,
        scales=scales,
        most=one_file,
    )
    tell("opening the edge graph", 0.9)
    check_images(folder / GRAPH, model, source.pixels.shape)
    tell("describing", 0.95)
    manifest = ImageManifest(
        fingerprint="0" * 64,
        task=IMAGES,
        family=source.family.model_type,
        pooling="cls",
        pixels=source.pixels,
        max_positions=source.family.positions(source.config),
        **described(folder, model, source, written, bits=bits, inputs=[PIXELS], slots=slots),
    )
    return manifest.model_copy(update={"fingerprint": image_fingerprint_of(manifest)})


def check_images(path: Path, model: ImageClassifier, shape: tuple[int, int, int]) -> None:
    """``path`` opens in ONNX Runtime and gives ``model``'s features. Raises ArtefactError."""
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.features(images).numpy()
    verify_features(path, {PIXELS: images.numpy()}, features)
