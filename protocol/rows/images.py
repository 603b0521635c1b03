"""Images as a base asks for their pixels. (P-1.15)

Pillow decodes and stretches: PNG and JPEG of a bounded size, one frame, at most eight bits a channel. Nothing
that an image shows is in a message.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError, MachineError
from protocol.image_manifest import PIXELS, Pixels
from protocol.media import IMAGE, Medium
from protocol.rows.media import Feeds, Values

MOST_PIXELS = 2**25  # of an image, before it is stretched
LONGEST_SIDE = 2**14  # pixels: what stretching a row costs in memory grows with its length alone
FORMATS = ("PNG", "JPEG")
# Others are of colours that no conversion is agreed on for, or (``I;16``) of more than 8 bits a channel.
# Colours of more have these modes too, and are known by how they lie in the file.
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
DEEP = ";16"  # in Pillow's name of how 16 bits a channel lie in a file
REMEDY = "save it as PNG or JPEG with 8 bits a channel, or remove the row"
Bytes = npt.NDArray[np.uint8]  # (rows, channels, height, width)


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """Images as ``pixels`` has them, a byte a channel and pixel: four times less than the graph reads."""

    pixels: Pixels
    medium: ClassVar[Medium] = IMAGE
    kept: ClassVar[npt.DTypeLike] = np.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Codec`: (channels, height, width)."""
        return self.pixels.shape

    def load(self) -> None:
        """See :class:`Codec`."""
        load_pillow()

    def values(self, data: bytes, *, place: str) -> Bytes:
        """See :class:`Codec`."""
        return read_pixels(data, self.pixels, place=place)

    def inputs(self, values: Values) -> Feeds:
        """See :class:`Codec`."""
        return {PIXELS: as_input(values, self.pixels)}

    def example(self) -> Bytes:
        """See :class:`Codec`: grey."""
        return np.full(self.shape, 127, np.uint8)


def read_pixels(data: bytes, pixels: Pixels, *, place: str) -> Bytes:
    """(channels, height, width) of one image, before they are scaled; ``place`` is where a row names it.

    Raises DataError for bytes that are none, MachineError without Pillow or the memory.
    """
    pillow = load_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is bounded here
            with pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                if reason := _refused(image):
                    raise _odd(place, reason)
                image.load()
                values = _stretched(image, pixels)
    except DataError:
        raise
    except pillow.DecompressionBombError:  # Pillow's own bound, which is above ours
        raise _odd(place, f"its image has more than {MOST_PIXELS} pixels") from None
    except MemoryError:
        raise MachineError(
            f"{place}: not enough memory for its image", "free some, or save the image smaller"
        ) from None
    except Exception as error:  # whatever bytes lead a decoder to
        raise _odd(place, f"its image is no PNG or JPEG ({type(error).__name__})") from None
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def as_input(values: Bytes, pixels: Pixels) -> npt.NDArray[np.float32]:
    """What the graph reads, (rows, channels, height, width) float32: ``(v * scale - mean) / std``."""
    scaled = values.astype(np.float32) * np.float32(pixels.scale)
    mean, std = (np.array(x, np.float32).reshape(-1, 1, 1) for x in (pixels.mean, pixels.std))
    result: npt.NDArray[np.float32] = (scaled - mean) / std
    return result


def _refused(image: Any) -> str:
    """Why an image that was opened, and not decoded, is not read."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        return f"its image has {width} by {height} pixels, more than {MOST_PIXELS}"
    if max(width, height) > LONGEST_SIDE:
        return f"its image has {width} by {height} pixels, a side longer than {LONGEST_SIDE}"
    if image.mode not in MODES:
        return f"its image has pixels of mode {image.mode}"
    if any(DEEP in str(tile.args) for tile in image.tile):
        return "its image has 16 bits a channel"
    if getattr(image, "n_frames", 1) > 1:
        return "its image has several frames"
    return ""


def _stretched(image: Any, pixels: Pixels) -> Bytes:
    """(height, width, channels) of an image that is there."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    upright = ImageOps.exif_transpose(image)
    plain = upright.convert("RGB" if pixels.channels == 3 else "L")
    height, width = pixels.resized
    if plain.size != (width, height):
        plain = plain.resize((width, height), Resampling[pixels.resampling.upper()])
    top, left = (height - pixels.height) // 2, (width - pixels.width) // 2
    values = np.asarray(plain, np.uint8).reshape(height, width, pixels.channels)
    return values[top : top + pixels.height, left : left + pixels.width]


def _odd(place: str, reason: str) -> DataError:
    return DataError(f"{place}: {reason}", REMEDY, public="an image that cannot be read")


def load_pillow() -> Any:
    """What decodes. Raises MachineError where it is not installed."""
    try:
        from PIL import Image as pillow  # noqa: N813
    except ImportError:
        raise MachineError(
            "images are read by Pillow, which is not installed",
            "pip install -c constraints.txt '.[images]'",
        ) from None
    return pillow
