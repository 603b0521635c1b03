"""Images as PNG files, by zlib alone: a device that draws needs no library of images. (RFC 2083)"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {1: 0, 3: 2}  # channels: the format's number of grey, and of red, green and blue
BITS, LEVEL = 8, 6


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """The file of an ``image`` (channels, height, width), of 1 channel or 3."""
    channels, height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, BITS, COLOURS[channels], 0, 0, 0)
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with 0: no filter
    lines[:, 1:] = np.moveaxis(image, 0, -1).reshape(height, -1)
    data = zlib.compress(lines.tobytes(), LEVEL)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
