"""The manifest of a base that sorts images, and what becomes of an image before the graph. (P-1.15)

Its graph takes ``pixel_values`` (rows, channels, height, width) float32, as Hugging Face's models of images
do, and gives ``logits`` (rows, labels).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.documents import OddError, json_as
from protocol.encoding import canonical_json, digest
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, IMAGES, HeadManifest, Record, task_of, verify_named

FORMAT: Literal[1] = 1
PIXELS = "pixel_values"
MOST_SIDE = 2048  # pixels that a base may ask of an image
Side = Annotated[int, Field(gt=0, le=MOST_SIDE)]
Real = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Resampling = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


class Pixels(Record):
    """What becomes of an image, step by step: every party does the same, and in these numbers.

    Its colours are made ``channels`` (1: grey, 3: red, green, blue) of 0 to 255; it is stretched to
    ``resized`` (height, width) by ``resampling``, of which the middle ``height`` by ``width`` is kept; a
    value v of a channel becomes ``(v * scale - mean) / std``.
    """

    channels: Literal[1, 3]
    resized: tuple[Side, Side]
    resampling: Resampling
    height: Side
    width: Side
    scale: Spread
    mean: Annotated[tuple[Real, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[Spread, ...], Field(min_length=1, max_length=3)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the graph reads of an image."""
        return self.channels, self.height, self.width


class ImageManifest(HeadManifest):
    """``manifest.json`` of a base of images; ``max_positions``: its patches and what stands before them."""

    format: Literal[1] = FORMAT
    task: Literal["image-classification"]
    pooling: Literal["cls"]
    pixels: Pixels


def image_fingerprint_of(manifest: ImageManifest) -> str:
    """The identity of the numbers, what they compute and of which pixels. Raises KeyError."""
    body = {
        "tensors": {name: entry.model_dump() for name, entry in manifest.tensors.items()},
        "architecture": {
            "family": manifest.family,
            "pooling": manifest.pooling,
            "bits": manifest.bits,
            "block": manifest.block,
            "config": manifest.files[CONFIG].sha256,
        },
        "pixels": manifest.pixels.model_dump(),
    }
    return digest("image", canonical_json(body))


def parse_image_manifest(text: str, *, source: str) -> ImageManifest:
    """Read ``manifest.json`` of a base of images. Raises ArtefactError."""
    try:
        manifest = json_as(ImageManifest, text)
    except OddError as odd:
        raise ArtefactError(
            f"{source}: {odd}", "build the base again or fetch an intact copy"
        ) from None
    verify_named(manifest.files, manifest.graph, source=source)
    if odd_pixels := _odd(manifest):
        raise ArtefactError(f"{source}: {odd_pixels}", "do not use this base")
    if CONFIG not in manifest.files or image_fingerprint_of(manifest) != manifest.fingerprint:
        raise ArtefactError(
            f"{source}: the fingerprint is not that of what the manifest lists",
            "do not use this base",
        )
    return manifest


def _odd(manifest: ImageManifest) -> str:
    """What of its pixels contradicts itself."""
    pixels = manifest.pixels
    if not len(pixels.mean) == len(pixels.std) == pixels.channels:
        return "pixels: mean and std are one number for each channel"
    if pixels.height > pixels.resized[0] or pixels.width > pixels.resized[1]:
        return "pixels: what is kept of an image is larger than what it is stretched to"
    if manifest.graph.inputs != [PIXELS]:
        return f"the graph does not read {PIXELS} alone"
    return ""


def is_image(text: str) -> bool:
    """Whether a ``manifest.json`` says that it is of a base of images, whatever else is in it."""
    return task_of(text) == IMAGES
