"""What a ``config.json`` says that its model reads, of another medium than texts; no torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base_model.denoisers.families import is_denoiser
from base_model.denoisers.families import shape_of as denoiser_shape
from base_model.families import FAMILIES, REFUSED_OF_DOCUMENTS
from base_model.images.families import FAMILIES as IMAGES
from base_model.images.families import sides
from base_model.sounds.families import FAMILIES as SOUNDS
from base_model.sounds.frames import frames_of
from base_model.source_files import read_object
from protocol.denoiser_manifest import DenoiserManifest
from protocol.errors import ArtefactError
from protocol.image_manifest import ImageManifest
from protocol.manifest import CONFIG, DOCUMENTS
from protocol.media import DRAWN, IMAGE, SOUND
from protocol.media_manifest import MediaManifest
from protocol.waveform_manifest import WaveformManifest

STRIDES = 2  # frames that Whisper makes one position of


def reads(config: Mapping[str, Any], manifest: MediaManifest) -> tuple[int, ...]:
    """The shape of one file's array. Raises KeyError, TypeError, ValueError where it is not said."""
    if isinstance(manifest, ImageManifest):
        return (config["num_channels"], *sides(config["image_size"]))
    if isinstance(manifest, WaveformManifest):  # a model hears any number of samples
        if frames_of(config).of(manifest.waveform.samples) != manifest.max_positions:
            raise ValueError("the manifest has other positions than its model makes")
        return manifest.shape
    if isinstance(manifest, DenoiserManifest):
        shape = denoiser_shape(config, source=CONFIG)
        if (shape.classes, shape.patches) != (manifest.classes, manifest.max_positions):
            raise ValueError("the manifest has other classes or patches than its model")
        return shape.channels, shape.side, shape.side
    return config["num_mel_bins"], STRIDES * config["max_source_positions"]


def task_of_folder(source: str) -> str:
    """The task of what a folder's model reads, of another than texts; empty of one that cannot be read."""
    if is_denoiser(Path(source).expanduser()):
        return DRAWN.task
    try:
        kind = str(read_object(Path(source).expanduser() / CONFIG).get("model_type"))
    except ArtefactError:
        return ""
    if kind in IMAGES:
        return IMAGE.task
    if kind in REFUSED_OF_DOCUMENTS or (kind in FAMILIES and FAMILIES[kind].boxed):
        return DOCUMENTS
    return SOUND.task if kind in SOUNDS else ""
