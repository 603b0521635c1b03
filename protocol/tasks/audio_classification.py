"""One label of several for each sound."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from protocol.media import SOUND, Medium
from protocol.section import Column
from protocol.tasks.media import MediaLabelled


class AudioClassification(MediaLabelled):
    """What is learnt, and which columns of the local data it is learnt from: the label of a sound."""

    MEDIUM: ClassVar[Medium] = SOUND
    KIND: ClassVar[str] = SOUND.task
    BASE: ClassVar[str] = SOUND.task

    kind: Literal["audio-classification"] = Field(description="one label of several for each sound")
    audio: Column = Field(
        default="audio", description="column with a sound's path, from the folder of the rows on"
    )
