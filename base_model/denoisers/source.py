"""The source of a base that draws: a pipeline's folder, with a transformer and a scheduler."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base_model.checkpoint import as_float, read_checkpoint, weight_files
from base_model.decoder.source import Floats
from base_model.denoisers.families import (
    PARTS,
    SCHEDULER_CONFIG,
    is_denoiser,
    schedule_of,
    shape_of,
)
from base_model.denoisers.shape import DenoiserShape
from base_model.source_files import FETCH, check_file, read_object
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG
from protocol.noise import Schedule
from storage.regular import sha256_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE = "vae"
INDEX = "model_index.json"


@dataclass(frozen=True, kw_only=True)
class DenoiserSource:
    """A model that has been read; ``tensors`` by diffusers' names, float32, exactly those of the shape."""

    name: str
    config: dict[str, Any]
    shape: DenoiserShape
    schedule: Schedule
    tensors: dict[str, Floats]


def denoiser_source(source: str) -> DenoiserSource:
    """Read a pipeline's folder. Raises ArtefactError for what is none, or is of latents."""
    root = Path(source).expanduser()
    if not root.is_dir():
        raise ArtefactError(
            f"{source}: there is no such folder", "name one as diffusers saves a pipeline"
        )
    _verify_pixels(root)
    if not is_denoiser(root):
        raise ArtefactError(
            f"{source}: there is no {SCHEDULER_CONFIG}, which says how noise grows",
            f"name the pipeline's folder, with {' and '.join(PARTS)} in it",
        )
    path = root / PARTS[0] / CONFIG
    config = read_object(path)
    shape = shape_of(config, source=str(path))
    scheduler = root / SCHEDULER_CONFIG
    return DenoiserSource(
        name=source,
        config=config,
        shape=shape,
        schedule=schedule_of(read_object(scheduler), source=scheduler),
        tensors=_tensors(root / PARTS[0], shape),
    )


def source_digests(root: Path) -> tuple[str, str]:
    """(of all that a base can depend on, of the weights alone), hex. Raises ArtefactError."""
    transformer = root / PARTS[0]
    index, *shards = weight_files(transformer, (WEIGHTS,))
    weights = shards or [index]
    files = [transformer / CONFIG, root / SCHEDULER_CONFIG, index, *shards]
    for path in files:
        check_file(path)
    lines = {path: f"{path.relative_to(root)} {sha256_of(path)}\n" for path in files}
    whole, part = ("".join(lines[path] for path in some) for some in (files, weights))
    if len(weights) == 1:
        return hashlib.sha256(whole.encode()).hexdigest(), sha256_of(weights[0])
    return hashlib.sha256(whole.encode()).hexdigest(), hashlib.sha256(part.encode()).hexdigest()


def _verify_pixels(root: Path) -> None:
    """The pipeline has no part that makes latents of images. Raises ArtefactError."""
    parts = read_object(root / INDEX) if (root / INDEX).exists() else {}
    listed = parts.get(VAE)
    if (root / VAE).exists() or (isinstance(listed, list) and listed and listed[0] is not None):
        raise ArtefactError(
            f"{root}: its pipeline has a `{VAE}`: the model draws latents, not pixels",
            "use a model that was trained on pixels",
        )


def _tensors(folder: Path, shape: DenoiserShape) -> dict[str, Floats]:
    read = read_checkpoint(folder, containers=(WEIGHTS,))
    sizes = {f"{path}.weight": size for path, size in shape.matrices().items()} | shape.vectors()
    if absent := sorted(sizes.keys() - read.keys()):
        raise ArtefactError(f"{folder}: the checkpoint lacks {absent[0]}", FETCH)
    if odd := sorted(read.keys() - sizes.keys()):
        raise ArtefactError(
            f"{folder}: the checkpoint has {odd[0]}, for which its {CONFIG} has no place",
            "take the config.json that belongs to the checkpoint",
        )
    for name, size in sizes.items():
        if tuple(read[name].shape) != size:
            raise ArtefactError(
                f"{folder}: {name} is {tuple(read[name].shape)} in the checkpoint, and by {CONFIG} {size}",
                "take the config.json that belongs to the checkpoint",
            )
    return {
        name: np.ascontiguousarray(as_float(name, read[name], source=str(folder)).numpy())
        for name in sizes
    }
