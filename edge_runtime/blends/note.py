"""``blend.json``: what a blend is made of and what it answers. It is no ``release.json``: no log has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.calibration import Calibration
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError, ProofError, printable
from protocol.manifest import Sha256, Word
from protocol.peft_format import (
    EDGE_FILE,
    MOST_NOTE,
    RELEASE_FILE,
    Count,
    Real,
    ReleaseNote,
    head_rows,
    verify_answers,
)
from protocol.section import MOST_LABELS, MOST_TOKENS, Label
from storage.regular import read_regular_text

BLEND_FILE = "blend.json"
MOST_PARTS = 64
AGAIN = "blend the adapters again: `fedge edge blend`"


class Record(BaseModel):
    """A table of the file: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class BlendPart(Record):
    """An adapter in a blend; ``release`` and ``adapter`` are sha256 of its two files."""

    plan_name: Word
    round: Count
    release: Sha256
    adapter: Sha256
    weight: Real


class BlendNote(Record):
    """What ``blend.json`` says. The answers are those of a :class:`ReleaseNote`.

    ``verified``: whether every part was a release in a log that its maker trusted; it is the maker's word.
    ``calibration``: of a part that is the whole blend; a temperature of several is nobody's.
    """

    format: Literal[1] = 1
    base_fingerprint: Sha256
    parts: Annotated[list[BlendPart], Field(min_length=1, max_length=MOST_PARTS)]
    verified: bool
    task: Word
    pairs: bool
    labels: Annotated[list[Label], Field(max_length=MOST_LABELS)]
    range: tuple[Real, Real] | None
    max_length: Annotated[int, Field(ge=0, le=MOST_TOKENS)]
    calibration: Calibration | None
    files: dict[Word, Word]

    @model_validator(mode="after")
    def _answers_mean_something(self) -> BlendNote:
        verify_answers(self.task, self.labels, self.range)
        return self

    @property
    def outputs(self) -> int:
        """Rows of the head; 0 of a text, or of an image."""
        return head_rows(self.task, self.labels, self.range)

    @property
    def caution(self) -> str:
        """What whoever runs it is told."""
        parts = " + ".join(f"{p.weight:g} × {p.plan_name} round {p.round}" for p in self.parts)
        return printable(
            f"this adapter is a blend, {parts}: it is no release, no log vouches for it"
        )


AnyNote = ReleaseNote | BlendNote


def is_blend(folder: Path) -> bool:
    """Whether a folder holds a blend; where there is a ``release.json``, that counts."""
    return (folder / BLEND_FILE).exists() and not (folder / RELEASE_FILE).exists()


def read_blend(folder: Path) -> BlendNote:
    """``blend.json`` of a folder. Raises ArtefactError."""
    path = folder / BLEND_FILE
    try:
        return parse_blend(read_regular_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path} cannot be read", AGAIN) from None


def parse_blend(text: str, *, source: str) -> BlendNote:
    """Read ``blend.json``. Raises ArtefactError."""
    try:
        note = json_as(BlendNote, text, most=MOST_NOTE)
    except OddError as odd:
        raise ArtefactError(f"{source}: {odd}", AGAIN) from None
    if note.files.keys() != {EDGE_FILE}:
        raise ArtefactError(f"{source}: a blend has one file, {EDGE_FILE}", AGAIN)
    return note


def render_blend(note: BlendNote) -> bytes:
    """The file ``blend.json``."""
    return (json.dumps(note.model_dump(mode="json"), indent=1) + "\n").encode()


def unvouched(folder: Path) -> ProofError:
    """What is said where only what a log vouches for may run."""
    return ProofError(
        f"{folder} is a blend, which no log vouches for",
        "leave --trust out here; `fedge edge blend --trust` verifies what it is made of",
    )
