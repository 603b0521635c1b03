"""Images of a file of rows: where they lie, and their pixels as a base asks for them. (P-1.15)

Whoever reads an image reads it here, so that a client, a release and a device compute of the same numbers.
Pillow decodes and stretches: PNG and JPEG of a bounded size, one frame, at most eight bits a channel. Nothing
that an image shows is in a message.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError, MachineError
from protocol.image_manifest import Pixels
from protocol.rows.formats import Place, read_values
from protocol.rows.read import Check, Table, checked_text, group_name
from storage.regular import read_regular

MOST_FILE = 2**25  # bytes of an image's file
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
class RowImage:
    """An image's file, and where the row stands that names it."""

    path: Path
    place: str


Picture = Path | RowImage | bytes  # an image: its file, or what would be in one


def read_image_rows(path: Path, *, image: str, target: str, check: Check, group: str = "") -> Table:
    """Rows of ``.jsonl``, ``.csv`` or ``.parquet``: paths of images, from the file's folder on, and targets.

    No image is opened. Raises DataError for the first row that does not fit, MachineError where Parquet
    cannot be read.
    """
    columns, table = [image, target, *filter(None, [group])], Table()
    for place, values in read_values(path, columns):
        table.texts.append(_there(values[0], place, image))
        table.targets.append(check(values[1], place, target))
        table.places.append(place)
        if group:
            table.groups.append(group_name(values[-1], place, group))
    return table


def read_image_paths(path: Path, column: str) -> list[RowImage]:
    """The paths of a column alone, each with its row's place. Raises as read_image_rows."""
    return [
        RowImage(_there(row[0], place, column), str(place))
        for place, row in read_values(path, [column])
    ]


def _there(value: object, place: Place, column: str) -> Path:
    return place.path.parent / checked_text(value, place, column)


def read_pixels(picture: Picture, pixels: Pixels, *, place: str) -> Bytes:
    """(channels, height, width) of one image, before they are scaled; ``place`` is where a row names it.

    An image with a place of its own is said to be there. Raises DataError for a file that is none,
    MachineError without Pillow or the memory.
    """
    if isinstance(picture, RowImage):
        return read_pixels(picture.path, pixels, place=picture.place)
    data = picture if isinstance(picture, bytes) else image_bytes(picture, place=place)
    if len(data) > MOST_FILE:
        raise _odd(place, f"its image has more than {MOST_FILE} bytes")
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


def read_input(
    pictures: Sequence[Picture], pixels: Pixels, *, first: int = 1
) -> npt.NDArray[np.float32]:
    """What the graph reads of images; those without a place are numbered from ``first`` on.

    Raises as read_pixels.
    """
    rows = [read_pixels(p, pixels, place=f"image {at}") for at, p in enumerate(pictures, first)]
    return as_input(np.stack(rows), pixels)


def verify_pictures(items: Sequence[object]) -> None:
    """Raises DataError for what is no image, such as a text."""
    if not all(isinstance(item, Path | RowImage | bytes) for item in items):
        raise DataError(
            "the base in use answers images, and texts were given",
            "name files of images, or take a base that was built from texts",
        )


def image_bytes(path: Path, *, place: str) -> bytes:
    """An image's file; ``place`` is where a row names it. Raises DataError."""
    try:
        return read_regular(path, most=MOST_FILE)
    except OSError as error:
        raise DataError(
            f"{place}: its image cannot be read: {error.strerror}",
            f"name a file of at most {MOST_FILE} bytes; paths of rows begin at the folder of the rows",
            public="an image cannot be read",
        ) from None


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
