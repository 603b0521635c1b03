"""Log-mel features of a sound as Whisper reads them, in numpy. (P-1.16)

Computed in float64, so that the order of sums shows in none but the last bits of the float32 that come out.
Sources: Radford et al. 2022 (arXiv:2212.04356); scale and areas of bands: Slaney's Auditory Toolbox (1998).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from protocol.audio_manifest import LogMel

Floats = npt.NDArray[np.float64]
LEAST, BELOW = (
    1e-10,
    8.0,
)  # least power; what is more than so many tens below the loudest is as loud as that
AT_ONCE = 512  # frames, which bounds memory
KNEE_HZ, KNEE_MEL, STEP_HZ = (
    1000.0,
    15.0,
    200.0 / 3,
)  # Slaney: linear below the knee, logarithms above
STEP_LOG = np.log(6.4) / 27


def log_mel(samples: npt.NDArray[np.int16], asked: LogMel) -> npt.NDArray[np.float32]:
    """(bands, frames) float32 of PCM at the rate that is asked for, cut or followed by silence."""
    heard = np.zeros(asked.samples)
    kept = samples[: asked.samples]
    heard[: len(kept)] = kept / 32768.0
    around = np.pad(heard, asked.window // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(asked.window) / asked.window)
    bands = filters(asked)
    power = np.empty((asked.bands, asked.frames))
    windows = np.lib.stride_tricks.sliding_window_view(around, asked.window)[:: asked.hop]
    for start in range(0, asked.frames, AT_ONCE):
        spectra = np.fft.rfft(windows[start : min(start + AT_ONCE, asked.frames)] * hann)
        energies = spectra.real**2 + spectra.imag**2
        power[:, start : start + AT_ONCE] = (energies @ bands).T
    logs = np.log10(np.maximum(power, LEAST))
    logs = np.maximum(logs, logs.max() - BELOW)
    features: npt.NDArray[np.float32] = ((logs + 4.0) / 4.0).astype(np.float32)
    return features


@lru_cache(maxsize=4)
def filters(asked: LogMel) -> Floats:
    """How much of the power at each frequency is in each band, (window / 2 + 1, bands)."""
    ends = _hertz(np.linspace(0.0, float(_mel(asked.highest)), asked.bands + 2))
    there = np.linspace(0.0, asked.rate // 2, asked.window // 2 + 1)
    widths, away = np.diff(ends), ends[None, :] - there[:, None]
    rising, falling = -away[:, :-2] / widths[:-1], away[:, 2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    areas: Floats = triangles * (2.0 / (ends[2:] - ends[:-2]))
    areas.setflags(write=False)
    return areas


def _mel(hertz: float) -> float:
    if hertz < KNEE_HZ:
        return hertz / STEP_HZ
    return float(KNEE_MEL + np.log(hertz / KNEE_HZ) / STEP_LOG)


def _hertz(mels: Floats) -> Floats:
    above = KNEE_HZ * np.exp(STEP_LOG * (mels - KNEE_MEL))
    result: Floats = np.where(mels < KNEE_MEL, mels * STEP_HZ, above)
    return result
