"""The manifest of a base that sorts images, and what becomes of an image before the graph. (P-1.15)

Its graph takes ``pixel_values`` (rows, channels, height, width) float32, as Hugging Face's models of images
do, and gives ``logits`` (rows, labels).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from protocol.manifest import Record
from protocol.media import IMAGE, Medium
from protocol.media_manifest import SortingMediaManifest, parse_media_manifest

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


class ImageManifest(SortingMediaManifest):
    """``manifest.json`` of a base of images; ``max_positions``: its patches and what stands before them."""

    MEDIUM: ClassVar[Medium] = IMAGE
    INPUT: ClassVar[str] = PIXELS
    SETTINGS: ClassVar[str] = "pixels"
    TAG: ClassVar[str] = "image"

    format: Literal[1] = FORMAT
    task: Literal["image-classification"]
    pooling: Literal["cls"]
    pixels: Pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`MediaManifest`."""
        return self.pixels.shape

    def odd(self) -> str:
        """See :class:`MediaManifest`."""
        pixels = self.pixels
        if not len(pixels.mean) == len(pixels.std) == pixels.channels:
            return "pixels: mean and std are one number for each channel"
        if pixels.height > pixels.resized[0] or pixels.width > pixels.resized[1]:
            return "pixels: what is kept of an image is larger than what it is stretched to"
        return ""


def parse_image_manifest(text: str, *, source: str) -> ImageManifest:
    """Read ``manifest.json`` of a base of images. Raises ArtefactError."""
    return parse_media_manifest(ImageManifest, text, source=source)
