"""One label of several for each image."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from protocol.media import IMAGE, Medium
from protocol.section import Column
from protocol.tasks.media import MediaLabelled


class ImageClassification(MediaLabelled):
    """What is learnt, and which columns of the local data it is learnt from: the label of an image."""

    MEDIUM: ClassVar[Medium] = IMAGE
    KIND: ClassVar[str] = IMAGE.task
    BASE: ClassVar[str] = IMAGE.task

    kind: Literal["image-classification"] = Field(description="one label of several for each image")
    image: Column = Field(
        default="image", description="column with an image's path, from the folder of the rows on"
    )
