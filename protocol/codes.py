"""Quantised weights: the byte layout that training and the edge graph share.

The layout is that of ONNX Runtime's MatMulNBits. A weight is ``[N, K]`` = ``[out, in]``; blocks of
``block`` elements run along K, K padded with the code of 0. ``codes`` is uint8
``[N, ceil(K/block), block*bits/8]``, low nibble first; ``scales`` is float32 ``[N, ceil(K/block)]``,
signed. Symmetric: ``weight = (code - 2**(bits-1)) * scale``. On disk the codes are Olive's
``X.qweight`` ``[N, nblocks*block*bits/8]``: the same bytes. (P-1.3)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]
Weight = npt.NDArray[np.float32]

SEARCH = np.linspace(0.6, 1.0, 21, dtype=np.float32)
_WIDE = np.linspace(0.6, 1.3, 15, dtype=np.float32)
WIDE_SEARCH = np.concatenate([_WIDE, -_WIDE])
LEAST_IMPORTANCE = 1e-3  # of the mean
PIECE = 2**18  # elements quantised at a time


def pack(codes: Codes, *, bits: int, block: int) -> Codes:
    """uint8 codes ``[N, K']``, K' a multiple of ``block``, to ``[N, nblocks, block*bits/8]``."""
    blocks = codes.reshape(len(codes), -1, block)
    if bits == 8:
        return np.ascontiguousarray(blocks)
    return np.ascontiguousarray(blocks[..., 0::2] | (blocks[..., 1::2] << 4))


def unpack(packed: Codes, *, bits: int) -> Codes:
    """The inverse of :func:`pack`: uint8 ``[N, nblocks, block]``."""
    if bits == 8:
        return packed
    codes = np.empty((*packed.shape[:2], packed.shape[2] * 2), np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes


def dequantise(packed: Codes, scales: Scales, *, bits: int, in_features: int) -> Weight:
    """float32 ``[N, K]``; bit-equal to what MatMulNBits computes with. (P-1.3)"""
    codes = unpack(packed, bits=bits).astype(np.float32)
    codes -= np.float32(2 ** (bits - 1))
    codes *= scales[..., None].astype(np.float32)
    return codes.reshape(len(codes), -1)[:, :in_features]


def quantise(
    weight: Weight, *, bits: int, block: int, importance: Weight | None = None
) -> tuple[Codes, Scales]:
    """Symmetric codes and scales of a float32 ``[N, K]``; the publisher only.

    Per block the element of largest magnitude, v, gets code 0 with ``scale = v / -2**(bits-1)``.
    For 4 bits the scale is searched: of 21 multiples in 0.6..1.0 the one with the least squared
    error is kept; at 8 bits the search gains nothing. An all-zero block has scale 1 and the
    code of 0 throughout.

    With ``importance``, float32 ``[K]`` (the mean square of each input), the search is for the least
    error of the *product*: squared errors count by the importance of their column, scales of both signs up
    to 1.3 are tried, and each is fitted to its codes by least squares.
    """
    if not np.isfinite(weight).all():
        raise ValueError("a weight to be quantised must be finite")
    rows, width = weight.shape
    weighed = None if importance is None else _weights_of(importance, width, block)
    step = max(1, PIECE // max(width, 1))  # rows at a time: memory does not grow with the matrix
    pieces = [
        _quantised(weight[start : start + step], bits, block, weighed)
        for start in range(0, rows, step)
    ]
    return np.concatenate([codes for codes, _ in pieces]), np.concatenate([s for _, s in pieces])


def _quantised(
    weight: Weight, bits: int, block: int, importance: Weight | None
) -> tuple[Codes, Scales]:
    rows, width = weight.shape
    padded = np.pad(weight.astype(np.float32), ((0, 0), (0, -width % block)))
    blocks = padded.reshape(rows, -1, block)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    scale = np.where(peak == 0, np.float32(1), peak / np.float32(-(2 ** (bits - 1)))).astype(
        np.float32
    )
    if bits == 4 and importance is not None:
        codes, scale = _fitted(blocks, scale, importance)
    else:
        codes = _nearest(blocks, scale, bits)
        if bits == 4:
            codes, scale = _searched(blocks, scale, codes)
    return pack(codes.reshape(rows, -1), bits=bits, block=block), scale


def _weights_of(importance: Weight, width: int, block: int) -> Weight:
    """``[nblocks, block]``, mean 1; no column counts for nothing, for other texts may use it."""
    if importance.shape != (width,) or not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError(f"the importance of {width} columns is as many numbers from 0 on")
    mean = float(importance.mean()) or 1.0
    weights = importance.astype(np.float32) / np.float32(mean) + np.float32(LEAST_IMPORTANCE)
    return np.pad(weights, (0, -width % block)).reshape(-1, block)


def _fitted(blocks: Weight, scale: Scales, importance: Weight) -> tuple[Codes, Scales]:
    """The codes whose own best scale leaves the least weighted error.

    Of codes c the best scale is sum(i w c) / sum(i c c), and what it takes off the error is
    sum(i w c)^2 / sum(i c c): the larger, the better.
    """
    most = np.zeros_like(scale)
    best_scale, best_codes = scale.copy(), np.zeros_like(blocks)
    for factor in WIDE_SEARCH:
        trial = np.rint(blocks / (scale * factor)[..., None])
        np.clip(trial, -8, 7, out=trial)
        weighed = trial * importance
        along, square = (weighed * blocks).sum(-1), (weighed * trial).sum(-1)
        fitted = along / np.where(square > 0, square, np.float32(1))
        better = along * fitted > most
        most = np.where(better, along * fitted, most)
        best_scale = np.where(better, fitted, best_scale)
        np.copyto(best_codes, trial, where=better[..., None])
    return (best_codes + np.float32(8)).astype(np.uint8), best_scale


def _nearest(blocks: Weight, scale: Scales, bits: int) -> Codes:
    zero = np.float32(2 ** (bits - 1))
    codes: Codes = np.clip(np.rint(blocks / scale[..., None]) + zero, 0, 2**bits - 1).astype(
        np.uint8
    )
    return codes


def _searched(blocks: Weight, scale: Scales, codes: Codes) -> tuple[Codes, Scales]:
    best_scale, best_codes = scale.copy(), codes.copy()
    best = _error(blocks, best_scale, best_codes)
    for factor in SEARCH[:-1]:
        trial_scale = (scale * factor).astype(np.float32)
        trial_codes = _nearest(blocks, trial_scale, 4)
        error = _error(blocks, trial_scale, trial_codes)
        better = error < best
        best = np.where(better, error, best)
        best_scale = np.where(better, trial_scale, best_scale)
        best_codes = np.where(better[..., None], trial_codes, best_codes)
    return best_codes, best_scale


def _error(blocks: Weight, scale: Scales, codes: Codes) -> npt.NDArray[np.float32]:
    difference = (codes.astype(np.float32) - np.float32(8)) * scale[..., None] - blocks
    return np.asarray((difference * difference).sum(-1), np.float32)
