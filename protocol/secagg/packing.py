"""b-bit words on the wire: 16 and 32 as they are, other widths packed block by block. (P-6.4)"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.secagg.primitives import Word, word_type

BLOCK, LANES = 32_768, 32
Array = npt.NDArray[Any]


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` coordinates take."""
    if bits in (16, 32):
        return count * bits // 8
    return -(-count // LANES) * bits * 4


def block_count(count: int) -> int:
    """Blocks that ``count`` coordinates take."""
    return -(-count // BLOCK)


def block_place(block: int, count: int, bits: int) -> tuple[slice, slice]:
    """(coordinates, packed bytes) of a block of ``count``. Raises IndexError for one that is not there."""
    if not 0 <= block < block_count(count):
        raise IndexError(f"block {block} of {block_count(count)}")
    first, last = block * BLOCK, min((block + 1) * BLOCK, count)
    start = packed_size(first, bits)
    return slice(first, last), slice(start, start + packed_size(last - first, bits))


def pack(words: Word, bits: int) -> bytes:
    """Little-endian bytes of ``words`` (n,), each below 2^bits.

    For other widths than 16 and 32, every block of 32,768 coordinates is laid out by itself as 32
    lanes: lane l holds coordinates l*m .. l*m+m-1 of a block of 32*m, and the bits of one position
    in all lanes fill ``bits`` words. So a piece of bytes has a meaning of its own.
    """
    if bits in (16, 32):
        return np.ascontiguousarray(words, word_type(bits)).tobytes()
    parts = [
        _pack_block(words[first : first + BLOCK].astype(np.uint32), bits)
        for first in range(0, len(words), BLOCK)
    ]
    return b"".join(parts)


def unpack(data: bytes | memoryview, count: int, bits: int) -> Word:
    """The inverse: (count,) words that may be written to. Raises ValueError for another length."""
    if len(data) != packed_size(count, bits):
        raise ValueError(f"{len(data)} bytes, expected {packed_size(count, bits)}")
    if bits in (16, 32):
        return np.frombuffer(data, word_type(bits)).copy()
    words: npt.NDArray[np.uint32] = np.empty(count, np.uint32)
    offset = 0
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        length = packed_size(size, bits)
        words[first : first + size] = _unpack_block(data[offset : offset + length], bits)[:size]
        offset += length
    return words


def _pack_block(values: Array, bits: int) -> bytes:
    lanes = np.zeros((LANES, -(-len(values) // LANES)), np.uint32)
    lanes.reshape(-1)[: len(values)] = values
    out = np.zeros((bits, lanes.shape[1]), np.uint32)
    for lane in range(LANES):
        word, shift = divmod(lane * bits, 32)
        out[word] |= lanes[lane] << np.uint32(shift)
        if shift + bits > 32:
            out[word + 1] |= lanes[lane] >> np.uint32(32 - shift)
    return out.astype("<u4").tobytes()


def _unpack_block(data: bytes | memoryview, bits: int) -> Array:
    packed = np.frombuffer(data, "<u4").reshape(bits, -1)
    lanes = np.empty((LANES, packed.shape[1]), np.uint32)
    low = np.uint32(2**bits - 1)
    for lane in range(LANES):
        word, shift = divmod(lane * bits, 32)
        value = packed[word] >> np.uint32(shift)
        if shift + bits > 32:
            value = value | (packed[word + 1] << np.uint32(32 - shift))
        lanes[lane] = value & low
    return lanes.reshape(-1)
