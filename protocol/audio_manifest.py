"""The manifest of a base that sorts sounds, and what becomes of a sound before the graph. (P-1.16)

Its graph takes ``input_features`` (rows, bands, frames) float32, as Hugging Face's Whisper does, and gives
``logits`` (rows, labels).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from protocol.manifest import Record
from protocol.media import SOUND, Medium
from protocol.media_manifest import SortingMediaManifest, parse_media_manifest

FORMAT: Literal[1] = 1
FEATURES = "input_features"
MOST_SAMPLES = 2**23  # of what a base hears of a sound: 30 s at 192 kHz, and more
MOST_FRAMES = 2**14


class LogMel(Record):
    """What becomes of a sound, step by step: every party does the same, and in these numbers.

    Of ``rate`` samples a second those of the first ``seconds`` are kept, and silence put behind fewer. At
    every ``hop`` samples a Hann window of ``window`` around them gives the power at its frequencies, which
    triangles, evenly apart on Slaney's scale of mels up to ``highest`` Hz, gather to ``bands``. Their decimal
    logarithms, none more than 8 below the largest, plus 4, are divided by 4.
    """

    kind: Literal["whisper-log-mel"]
    rate: Annotated[int, Field(ge=1000, le=192_000)]
    seconds: Annotated[int, Field(gt=0, le=300)]
    window: Annotated[int, Field(ge=16, le=2**13, multiple_of=2)]
    hop: Annotated[int, Field(gt=0, le=2**13)]
    bands: Annotated[int, Field(gt=0, le=512)]
    frames: Annotated[int, Field(gt=0, le=MOST_FRAMES)]
    highest: Literal[8000]

    @property
    def samples(self) -> int:
        """What is heard of a sound."""
        return self.rate * self.seconds

    @property
    def shape(self) -> tuple[int, int]:
        """(bands, frames) of what the graph reads of a sound."""
        return self.bands, self.frames

    def odd(self) -> str:
        """What in it contradicts itself; empty where nothing does."""
        if self.samples > MOST_SAMPLES:
            return f"more than {MOST_SAMPLES} samples are heard"
        if self.frames != self.samples // self.hop:
            return "frames are not one for every hop of the samples"
        if self.samples <= self.window // 2:
            return "there are fewer samples than half a window"
        return ""


class AudioManifest(SortingMediaManifest):
    """``manifest.json`` of a base of sounds.

    ``max_positions``: what its encoder makes of the frames. ``pooling``: what the head reads, the mean of the
    encoder's outputs, or that ``projected`` by the source's layer before its head.
    """

    MEDIUM: ClassVar[Medium] = SOUND
    INPUT: ClassVar[str] = FEATURES
    SETTINGS: ClassVar[str] = "log_mel"
    TAG: ClassVar[str] = "audio"

    format: Literal[1] = FORMAT
    task: Literal["audio-classification"]
    pooling: Literal["mean", "projected"]
    log_mel: LogMel

    @property
    def shape(self) -> tuple[int, int]:
        """See :class:`MediaManifest`."""
        return self.log_mel.shape

    def odd(self) -> str:
        """See :class:`MediaManifest`."""
        reason = self.log_mel.odd()
        return f"log_mel: {reason}" if reason else ""


def parse_audio_manifest(text: str, *, source: str) -> AudioManifest:
    """Read ``manifest.json`` of a base of sounds. Raises ArtefactError."""
    return parse_media_manifest(AudioManifest, text, source=source)
