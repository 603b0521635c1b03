"""Sounds as a base asks for their features: WAV, one channel, PCM of 16 bits, at the base's rate. (P-1.16)

The container is read here and not by the standard library's ``wave``, whose versions differ in what they
take: whoever reads a file must take the same ones. Nothing that a sound says is in a message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protocol.audio_manifest import FEATURES, LogMel
from protocol.errors import DataError, MachineError
from protocol.log_mel import log_mel
from protocol.media import SOUND, Medium
from protocol.rows.media import Feeds, Values
from protocol.waveform import waveform
from protocol.waveform_manifest import MASK, VALUES, Waveform

PCM, EXTENSIBLE = 1, 0xFFFE
SUBFORMAT = struct.pack("<H", PCM) + bytes.fromhex("000000001000800000aa00389b71")  # its GUID
MOST_CHUNKS = 1000
MOST_SECONDS = 600  # of one file, however little of it a base hears
Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class SoundCodec:
    """Sounds as ``asked`` has them: features, which are kept as the graph reads them."""

    asked: LogMel
    medium: ClassVar[Medium] = SOUND
    kept: ClassVar[npt.DTypeLike] = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Codec`: (bands, frames)."""
        return self.asked.shape

    def load(self) -> None:
        """See :class:`Codec`: nothing is needed."""

    def values(self, data: bytes, *, place: str) -> npt.NDArray[np.float32]:
        """See :class:`Codec`."""
        samples = read_wav(data, rate=self.asked.rate, place=place)
        with _enough_memory(place):
            return log_mel(samples, self.asked)

    def inputs(self, values: Values) -> Feeds:
        """See :class:`Codec`."""
        return {FEATURES: np.asarray(values, np.float32)}

    def example(self) -> npt.NDArray[np.float32]:
        """See :class:`Codec`: silence."""
        return log_mel(np.zeros(1, np.int16), self.asked)


@dataclass(frozen=True, slots=True)
class WaveformCodec:
    """Sounds as ``asked`` has them: samples as the graph reads them.

    Of one that is told which are a sound's own, their number stands behind them: float32 is exact up to 2^24.
    """

    asked: Waveform
    medium: ClassVar[Medium] = SOUND
    kept: ClassVar[npt.DTypeLike] = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`Codec`."""
        return (self.asked.samples + self.asked.masked,)

    def load(self) -> None:
        """See :class:`Codec`: nothing is needed."""

    def values(self, data: bytes, *, place: str) -> npt.NDArray[np.float32]:
        """See :class:`Codec`."""
        samples = read_wav(data, rate=self.asked.rate, place=place)
        with _enough_memory(place):
            return self._kept(samples)

    def inputs(self, values: Values) -> Feeds:
        """See :class:`Codec`."""
        heard = np.asarray(values[:, : self.asked.samples], np.float32)
        if not self.asked.masked:
            return {VALUES: heard}
        own = np.arange(self.asked.samples) < values[:, self.asked.samples :]
        return {VALUES: heard, MASK: own.astype(np.int64)}

    def example(self) -> npt.NDArray[np.float32]:
        """See :class:`Codec`: silence."""
        return self._kept(np.zeros(1, np.int16))

    def _kept(self, samples: Samples) -> npt.NDArray[np.float32]:
        heard = waveform(samples, self.asked)
        count = min(len(samples), self.asked.samples)
        return np.append(heard, np.float32(count)) if self.asked.masked else heard


@contextmanager
def _enough_memory(place: str) -> Iterator[None]:
    """Raises MachineError where there is none."""
    try:
        yield
    except MemoryError:
        raise MachineError(
            f"{place}: not enough memory for its sound", "free some, or use a larger machine"
        ) from None


def read_wav(data: bytes, *, rate: int, place: str) -> Samples:
    """The samples of a WAV file, (samples,); ``place`` is where a row names it. Raises DataError."""
    try:
        described, sound = _chunks(data)
        _verify_described(described, rate)
        if len(sound) < 2 or len(sound) % 2:
            raise ValueError("it has no whole sample")
        if len(sound) > 2 * rate * MOST_SECONDS:
            raise ValueError(f"it is longer than {MOST_SECONDS} seconds")
    except ValueError as error:
        raise DataError(
            f"{place}: its sound is not read: {error}",
            f"save it as WAV: PCM of 16 bits, one channel, {rate} samples a second; or remove the row",
            public="a sound that cannot be read",
        ) from None
    return np.frombuffer(sound, "<i2").astype(np.int16)


def _chunks(data: bytes) -> tuple[bytes, memoryview]:
    """What describes the samples, and these. Raises ValueError."""
    described, sound = None, None
    for name, body in _each_chunk(data):
        if name == b"fmt ":
            if described is not None:
                raise ValueError("it is described twice")
            described = bytes(body)
        elif name == b"data":
            if described is None or sound is not None:
                raise ValueError("its samples stand before what describes them, or twice")
            sound = body
    if described is None or sound is None:
        raise ValueError("it has no samples, or nothing describes them")
    return described, sound


def _each_chunk(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and body of every chunk; of none is more believed than the file has. Raises ValueError."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE" or len(data) < 20:
        raise ValueError("it is no WAV file")
    whole, at = memoryview(data), 12
    for _ in range(MOST_CHUNKS):
        name, size = struct.unpack_from("<4sI", data, at)
        if size > len(data) - at - 8:
            raise ValueError("it is cut off, or claims more than it has")
        yield name, whole[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
        if at + 8 > len(data):  # a byte or two of padding may follow
            return
    raise ValueError(f"it has more than {MOST_CHUNKS} chunks")


def _verify_described(described: bytes, rate: int) -> None:
    """Raises ValueError for anything but PCM of 16 bits, one channel, at ``rate``."""
    if len(described) < 16:
        raise ValueError("what describes it is cut off")
    kind, channels, own, _, align, bits = struct.unpack_from("<HHIIHH", described)
    plain = kind == PCM or (kind == EXTENSIBLE and described[24:40] == SUBFORMAT)
    if not plain or bits != 16:
        raise ValueError(f"it is no PCM of 16 bits (format {kind}, {bits} bits)")
    if channels != 1:
        raise ValueError(f"it has {channels} channels, and one is heard")
    if align != 2:
        raise ValueError(f"its samples lie {align} bytes apart, where they have two")
    if own != rate:
        raise ValueError(f"it has {own} samples a second, and the base hears {rate}")
