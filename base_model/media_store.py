"""Open a base of a medium: verify it, and build the frozen model on its codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from base_model.images.classifier import ImageClassifier
from base_model.media_build import MediaModel
from base_model.media_read import reads
from base_model.sounds.classifier import SoundClassifier
from base_model.sounds.waveform_classifier import WaveformClassifier
from base_model.store import OpenBase, filled_model, open_base
from base_model.verify import read_manifest, verify_base
from protocol.audio_manifest import AudioManifest
from protocol.errors import ArtefactError
from protocol.image_manifest import ImageManifest
from protocol.media_manifest import SortingMediaManifest
from protocol.waveform_manifest import WaveformManifest


@dataclass(frozen=True, kw_only=True)
class OpenMedia:
    """An opened base of a medium, as :class:`base_model.store.OpenBase`."""

    folder: Path
    manifest: SortingMediaManifest
    model: MediaModel


def _image_model(config: Any, manifest: Any, labels: int) -> MediaModel:
    return ImageClassifier(config, labels=labels)


def _sound_model(config: Any, manifest: Any, labels: int) -> MediaModel:
    return SoundClassifier(config, labels=labels, projected=manifest.pooling == "projected")


def _waveform_model(config: Any, manifest: Any, labels: int) -> MediaModel:
    projected, masked = manifest.pooling == "projected", manifest.waveform.masked
    return WaveformClassifier(config, labels=labels, projected=projected, masked=masked)


MODELS: dict[type[SortingMediaManifest], Callable[[Any, Any, int], MediaModel]] = {
    ImageManifest: _image_model,
    AudioManifest: _sound_model,
    WaveformManifest: _waveform_model,
}


def open_media(
    folder: Path,
    *,
    labels: int | None = None,
    verify: bool = True,
    matmul_dtype: torch.dtype | None = None,
) -> OpenMedia:
    """As :func:`base_model.store.open_base`. Raises ArtefactError."""
    manifest = verify_base(folder) if verify else read_manifest(folder)
    if not isinstance(manifest, SortingMediaManifest):
        raise ArtefactError(
            f"{folder} is a base of another kind", "name one that sorts images or sounds"
        )

    def empty(config: Any, count: int) -> MediaModel:
        """Without memory behind its parameters. Raises ValueError for another shape than the manifest's."""
        if reads(config.to_dict(), manifest) != manifest.shape:
            raise ValueError("what its model reads is not what the manifest makes")
        with torch.device("meta"):
            return MODELS[type(manifest)](config, manifest, count)

    return OpenMedia(
        folder=folder,
        manifest=manifest,
        model=filled_model(
            folder, manifest, empty, labels=labels, sizes={}, matmul_dtype=matmul_dtype
        ),
    )


def open_headed(
    folder: Path,
    *,
    labels: int | None = None,
    verify: bool = True,
    matmul_dtype: torch.dtype | None = None,
) -> OpenBase | OpenMedia:
    """A base whose answers are a head's, of texts or of another medium. Raises ArtefactError."""
    if isinstance(read_manifest(folder), SortingMediaManifest):
        return open_media(folder, labels=labels, verify=verify, matmul_dtype=matmul_dtype)
    return open_base(folder, labels=labels, verify=verify, matmul_dtype=matmul_dtype)
