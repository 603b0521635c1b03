"""What convolutions over samples make of a sound: how many positions, of how many samples each. (P-1.16)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_LAYERS, MOST_TAPS = 16, 1024


@dataclass(frozen=True, slots=True)
class Frames:
    """``least``: samples that a position hears; ``hop``: from where one begins to where the next one does."""

    least: int
    hop: int

    def of(self, samples: int) -> int:
        """Positions of a sound; below 1 of one that is too short."""
        return (samples - self.least) // self.hop + 1


def frames_of(config: Mapping[str, Any]) -> Frames:
    """Of a ``config.json`` of wav2vec 2.0's kind. Raises KeyError, and ValueError for what makes none."""
    taps, strides = config["conv_kernel"], config["conv_stride"]
    for sizes in (taps, strides):
        if not isinstance(sizes, list | tuple) or not 1 <= len(sizes) <= MOST_LAYERS:
            raise ValueError(f"its convolutions are not 1 to {MOST_LAYERS}")
        if not all(type(size) is int and 1 <= size <= MOST_TAPS for size in sizes):
            raise ValueError(f"a convolution of no size from 1 to {MOST_TAPS}")
    if len(taps) != len(strides):
        raise ValueError("its convolutions have not a stride each")
    least = hop = 1
    for tap, stride in zip(reversed(taps), reversed(strides), strict=True):
        least, hop = (least - 1) * stride + tap, hop * stride
    return Frames(least, hop)
