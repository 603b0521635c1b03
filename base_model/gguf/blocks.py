"""Blocks of a GGUF file as the codes that training and the graph share, or as floats.

Q4_0, Q4_1 and Q8_0 hold blocks of 32 with a float16 scale: the layout of ``protocol.codes`` but for the order
of nibbles, so that nothing is rounded again. Other types are computed by the ``gguf`` package.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from base_model.decoder.source import CodedWeight, Floats

Bytes = npt.NDArray[np.uint8]

CODED = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0)
COMPUTED = tuple(
    GGMLQuantizationType[name]
    for name in (
        *("F32", "F16", "BF16", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
        *("MXFP4", "NVFP4"),
    )
)
READABLE = CODED + COMPUTED


def decode(
    raw: bytes,
    kind: GGMLQuantizationType,
    shape: tuple[int, ...],
    rows: npt.NDArray[np.intp] | None,
) -> Floats | CodedWeight:
    """A tensor from its bytes: codes where ``kind`` is one of CODED and there are two axes, else floats.

    Args:
        raw: as the file holds it.
        kind: one of READABLE.
        shape: of the weight, (out, in) or (out,).
        rows: which row of the file becomes row 0, 1, ...; None leaves them in their order.
    """
    if len(shape) == 1:
        floats = _floats(np.frombuffer(raw, np.uint8), kind).reshape(shape)
        return floats if rows is None else floats[rows]
    block, size = GGML_QUANT_SIZES[kind]
    table = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
    if rows is not None:  # rows of bytes: codes, scales and offsets move alike
        table = table[rows]
    if kind not in CODED:
        return _floats(table, kind).reshape(shape)
    return _READERS[kind](table.reshape(shape[0], shape[-1] // block, size))


def _floats(raw: Bytes, kind: GGMLQuantizationType) -> Floats:
    return np.array(dequantize(raw, kind), np.float32)  # a copy: float32 is but a view of the bytes


def _halves(raw: Bytes) -> Floats:
    """float16 at the head of blocks, uint8 (out, blocks, 2), as float32 (out, blocks)."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """uint8 (out, blocks, 16) with elements i and i + 16 in a byte, to elements 2 i and 2 i + 1 in a byte."""
    even, odd = raw[..., 0::2], raw[..., 1::2]
    return np.concatenate([(even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)], axis=-1)


def _symmetric_4(blocks: Bytes) -> CodedWeight:
    """Q4_0: float16 d, 16 bytes; w = d * (q - 8)."""
    return CodedWeight(bits=4, codes=_nibbles(blocks[..., 2:]), scales=_halves(blocks[..., :2]))


def _affine_4(blocks: Bytes) -> CodedWeight:
    """Q4_1: float16 d and m, 16 bytes; w = d * q + m = d * (q - 8) + (m + 8 d).

    m + 8 d is exact in float32, and so the weight the same to the bit, unless one part is thousands of times
    the other; then a last bit of the larger part is lost.
    """
    scales = _halves(blocks[..., :2])
    return CodedWeight(
        bits=4,
        codes=_nibbles(blocks[..., 4:]),
        scales=scales,
        offsets=_halves(blocks[..., 2:4]) + np.float32(8) * scales,
    )


def _symmetric_8(blocks: Bytes) -> CodedWeight:
    """Q8_0: float16 d, 32 int8; w = d * q, and q + 128 is q with its highest bit turned over."""
    return CodedWeight(
        bits=8, codes=blocks[..., 2:] ^ np.uint8(0x80), scales=_halves(blocks[..., :2])
    )


_READERS: dict[GGMLQuantizationType, Callable[[Bytes], CodedWeight]] = {
    GGMLQuantizationType.Q4_0: _symmetric_4,
    GGMLQuantizationType.Q4_1: _affine_4,
    GGMLQuantizationType.Q8_0: _symmetric_8,
}
