"""Samples of a sound as wav2vec 2.0 hears them, in numpy. (P-1.16)

Computed in float64, so that the order of sums shows in none but the last bits of the float32 that come out.
Source: Baevski et al. 2020 (arXiv:2006.11477), as transformers' ``Wav2Vec2FeatureExtractor`` does it of
sounds one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.waveform_manifest import Waveform

LEAST = 1e-7  # added to the variance: silence stays silence


def waveform(samples: npt.NDArray[np.int16], asked: Waveform) -> npt.NDArray[np.float32]:
    """(samples,) float32 of PCM at the rate that is asked for, cut or followed by zeros."""
    heard = np.zeros(asked.samples, np.float32)
    own = samples[: asked.samples] / 32768.0
    if asked.normalised:
        own = (own - own.mean()) / np.sqrt(own.var() + LEAST)
    heard[: len(own)] = own
    return heard
