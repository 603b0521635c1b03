"""One label of several for each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.manifest import IMAGES
from protocol.rows.read import Table
from protocol.section import Column
from protocol.tasks.classification import Labelled


class ImageClassification(Labelled):
    """What is learnt, and which columns of the local data it is learnt from: the label of an image."""

    KIND: ClassVar[str] = IMAGES
    BASE: ClassVar[str] = IMAGES
    PEFT_TASK: ClassVar[None] = None  # peft knows none of images, and needs none

    kind: Literal["image-classification"] = Field(description="one label of several for each image")
    image: Column = Field(
        default="image", description="column with an image's path, from the folder of the rows on"
    )

    @model_validator(mode="after")
    def _columns_are_two(self) -> Self:
        if self.image == self.label:
            raise ValueError("image and label are one column")
        return self

    def rows(self, path: Path, *, group: str = "") -> Table:
        """See :class:`TaskSection`; in the place of texts are paths of images, of which none is opened."""
        from protocol.rows.images import read_image_rows

        return read_image_rows(
            path, image=self.image, target=self.label, check=self.check(), group=group
        )

    def line(self, text: Path, target: Any) -> dict[str, Any]:
        """See :class:`TaskSection`; the path is absolute, so that the row may lie anywhere."""
        return {self.image: str(text.resolve()), self.label: target}

    @property
    def meaning(self) -> dict[str, Any]:
        """Its kind, and the labels in their order."""
        return {"kind": self.kind, "labels": self.labels}

    def note(self) -> dict[str, Any]:
        """See :class:`TaskSection`: no length, since no text is cut."""
        return {"task": self.kind, "pairs": False, "max_length": 0, "labels": self.labels}
