"""Open a base of images: verify it, and build the frozen model on its codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from base_model.images.classifier import ImageClassifier
from base_model.images.families import sides
from base_model.store import OpenBase, filled_model, open_base
from base_model.verify import read_manifest, verify_base
from protocol.errors import ArtefactError
from protocol.image_manifest import ImageManifest


@dataclass(frozen=True, kw_only=True)
class OpenImages:
    """An opened base of images, as :class:`base_model.store.OpenBase`."""

    folder: Path
    manifest: ImageManifest
    model: ImageClassifier


def open_images(
    folder: Path,
    *,
    labels: int | None = None,
    verify: bool = True,
    matmul_dtype: torch.dtype | None = None,
) -> OpenImages:
    """As :func:`base_model.store.open_base`. Raises ArtefactError."""
    manifest = verify_base(folder) if verify else read_manifest(folder)
    if not isinstance(manifest, ImageManifest):
        raise ArtefactError(f"{folder} is no base of images", "name one that sorts images")
    return OpenImages(
        folder=folder,
        manifest=manifest,
        model=filled_model(
            folder,
            manifest,
            lambda config, count: _empty(config, manifest, count),
            labels=labels,
            sizes={"num_channels": manifest.pixels.channels},
            matmul_dtype=matmul_dtype,
        ),
    )


def open_headed(
    folder: Path,
    *,
    labels: int | None = None,
    verify: bool = True,
    matmul_dtype: torch.dtype | None = None,
) -> OpenBase | OpenImages:
    """A base whose answers are a head's, of texts or of images. Raises ArtefactError."""
    if isinstance(read_manifest(folder), ImageManifest):
        return open_images(folder, labels=labels, verify=verify, matmul_dtype=matmul_dtype)
    return open_base(folder, labels=labels, verify=verify, matmul_dtype=matmul_dtype)


def _empty(config: Any, manifest: ImageManifest, labels: int) -> ImageClassifier:
    """The model without memory behind its parameters. Raises ValueError for images of another size."""
    if sides(config.image_size) != manifest.pixels.shape[1:]:
        raise ValueError("image_size is not the manifest's")
    with torch.device("meta"):
        return ImageClassifier(config, labels=labels)
