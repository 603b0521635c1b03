"""The manifest of a base that draws images: a denoiser, and how noise grows. (P-1.18)

Its graph takes ``hidden_states`` (rows, channels, height, width) float32, images under noise, ``timestep``
(rows,) int64, the step of each in the schedule, and ``class_labels`` (rows,) int64, as diffusers' transformer
does, and gives ``noise`` of the images' shape. A class is a row of the model's own table; the one behind the
last stands for no class.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from protocol.image_manifest import Pixels
from protocol.manifest import Count
from protocol.media import DRAWN, Medium
from protocol.media_manifest import MediaManifest
from protocol.noise import Schedule

FORMAT: Literal[1] = 1
IMAGES, STEPS, CLASSES, NOISE = "hidden_states", "timestep", "class_labels", "noise"


class DenoiserManifest(MediaManifest):
    """``manifest.json`` of a base that draws; ``max_positions``: patches of an image, ``classes``: its own.

    ``pixels``: what becomes of a site's image, which ends up in -1..1.
    """

    MEDIUM: ClassVar[Medium] = DRAWN
    INPUT: ClassVar[str] = IMAGES
    SETTINGS: ClassVar[str] = "pixels"
    TAG: ClassVar[str] = "denoiser"

    format: Literal[1] = FORMAT
    task: Literal["image-generation"]
    pixels: Pixels
    schedule: Schedule
    classes: Count

    @property
    def covered(self) -> dict[str, Any]:
        """See :class:`MediaManifest`."""
        return super().covered | {"schedule": self.schedule.model_dump(), "classes": self.classes}

    @property
    def shape(self) -> tuple[int, int, int]:
        """See :class:`MediaManifest`."""
        return self.pixels.shape

    @property
    def inputs(self) -> list[str]:
        """See :class:`MediaManifest`."""
        return [IMAGES, STEPS, CLASSES]

    @property
    def no_class(self) -> int:
        """The row of the table that stands for none."""
        return self.classes

    def odd(self) -> str:
        """See :class:`MediaManifest`."""
        if (self.pixels.height, self.pixels.width) != self.pixels.resized:
            return "pixels: an image that is drawn is not cut out of a larger one"
        if self.pixels != drawn_pixels(self.pixels.channels, self.pixels.height):
            return "pixels: images that are drawn are squares from -1 to 1"
        if self.graph.output != NOISE:
            return f"the graph does not give `{NOISE}`"
        return ""


def drawn_pixels(channels: Literal[1, 3], side: int) -> Pixels:
    """What becomes of an image for a base that draws squares of ``side`` pixels: -1 is black, 1 white.

    A source says nothing of it: this is what its pipeline makes of -1..1 on the way out.
    """
    return Pixels(
        channels=channels,
        resized=(side, side),
        resampling="bicubic",
        height=side,
        width=side,
        scale=1 / 127.5,
        mean=(1.0,) * channels,
        std=(1.0,) * channels,
    )
