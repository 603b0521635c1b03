"""What rows may be that are no texts: files of one medium. A base of a medium reads nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """``task``: what bases and plans call it; ``noun``, ``plural``: what one is, and several are.

    ``column``: what rows call its path where nobody says otherwise.
    """

    task: str
    noun: str
    plural: str
    column: str

    @property
    def single(self) -> str:
        """The noun with its article."""
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"


IMAGE = Medium(task="image-classification", noun="image", plural="images", column="image")
SOUND = Medium(task="audio-classification", noun="sound", plural="sounds", column="audio")
DRAWN = Medium(task="image-generation", noun="image", plural="images", column="image")
MEDIA = {medium.task: medium for medium in (IMAGE, SOUND, DRAWN)}
