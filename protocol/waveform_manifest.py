"""The manifest of a base that hears samples of sounds, and what becomes of them before the graph. (P-1.16)

Its graph takes ``input_values`` (rows, samples) float32 and, of a base that is told which of them are a
sound's own, ``attention_mask`` (rows, samples) int64, as Hugging Face's wav2vec 2.0 does, and gives
``logits`` (rows, labels).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from protocol.manifest import Record
from protocol.media import SOUND, Medium
from protocol.media_manifest import SortingMediaManifest, parse_media_manifest

FORMAT: Literal[1] = 1
VALUES, MASK = "input_values", "attention_mask"
HEARD = 2**14  # samples whose frames take as much memory as a text of 512 tokens
MOST_POSITIONS = 2**13
MOST_SAMPLES = 2**20  # of what a base hears of a sound: 60 s at 16 kHz, and a little more


class Waveform(Record):
    """What becomes of a sound, step by step: every party does the same, and in these numbers.

    Of ``rate`` samples a second those of the first ``seconds`` are kept. Where they are ``normalised``, their
    mean is taken off, and they are divided by the root of their variance and 10^-7. Zeros stand behind fewer;
    ``masked``: the graph is told which.
    """

    kind: Literal["wav2vec2-samples"]
    rate: Annotated[int, Field(ge=1000, le=192_000)]
    seconds: Annotated[int, Field(gt=0, le=60)]
    normalised: bool
    masked: bool

    @property
    def samples(self) -> int:
        """What is heard of a sound."""
        return self.rate * self.seconds

    def odd(self) -> str:
        """What in it contradicts itself; empty where nothing does."""
        return f"more than {MOST_SAMPLES} samples are heard" if self.samples > MOST_SAMPLES else ""


class WaveformManifest(SortingMediaManifest):
    """``manifest.json`` of a base that hears samples.

    ``max_positions``: what its convolutions make of them. ``pooling``: what the head reads, the mean of the
    encoder's outputs, or that ``projected`` by the source's layer before its head.
    """

    MEDIUM: ClassVar[Medium] = SOUND
    INPUT: ClassVar[str] = VALUES
    SETTINGS: ClassVar[str] = "waveform"
    TAG: ClassVar[str] = "audio"

    format: Literal[1] = FORMAT
    task: Literal["audio-classification"]
    pooling: Literal["mean", "projected"]
    waveform: Waveform

    @property
    def shape(self) -> tuple[int]:
        """See :class:`MediaManifest`."""
        return (self.waveform.samples,)

    @property
    def inputs(self) -> list[str]:
        """See :class:`MediaManifest`."""
        return [VALUES, MASK] if self.waveform.masked else [VALUES]

    def together(self, most: int) -> int:
        """See :class:`MediaManifest`; frames of the first convolutions may take more than attention."""
        return max(1, min(super().together(most), most * HEARD // self.waveform.samples))

    def odd(self) -> str:
        """See :class:`MediaManifest`."""
        if reason := self.waveform.odd():
            return f"waveform: {reason}"
        if self.max_positions > MOST_POSITIONS:
            return f"more than {MOST_POSITIONS} positions are made of a sound"
        return ""


def parse_waveform_manifest(text: str, *, source: str) -> WaveformManifest:
    """Read ``manifest.json`` of a base that hears samples. Raises ArtefactError."""
    return parse_media_manifest(WaveformManifest, text, source=source)
