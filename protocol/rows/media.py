"""Files that rows name: where they lie, their bytes, and what a base of their medium reads of them.

Whoever reads an image or a sound reads it here, so that a client, a release and a device compute of the same
numbers. Messages name the row's file and line, and nothing of what a file holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.audio_manifest import AudioManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.errors import DataError
from protocol.image_manifest import ImageManifest
from protocol.media import Medium
from protocol.media_manifest import MediaManifest
from protocol.rows.formats import Place, read_values
from protocol.rows.pages import Page
from protocol.rows.read import Check, Table, checked_text, group_name
from protocol.waveform_manifest import WaveformManifest
from storage.regular import read_regular

MOST_FILE = 2**25  # bytes of one file
Values = npt.NDArray[Any]
Feeds = dict[str, npt.NDArray[Any]]  # what a graph reads of rows, by the names of its inputs


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file, and where the row stands that names it."""

    path: Path
    place: str


@dataclass(frozen=True, slots=True)
class SentFile:
    """What would be in a file, and of which medium its sender says that it is."""

    data: bytes
    medium: Medium


Item = Path | RowFile | SentFile | bytes  # a file, or what would be in one


class Codec(Protocol):
    """What becomes of files of a medium before the graph of a base."""

    @property
    def medium(self) -> Medium:
        """What is read."""
        ...

    @property
    def kept(self) -> npt.DTypeLike:
        """Type of what is kept of a file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of a file."""
        ...

    def load(self) -> None:
        """Raises MachineError where nothing decodes: before a file comes, not by one."""
        ...

    def values(self, data: bytes, *, place: str) -> Values:
        """What is kept of a file; ``place`` is where a row names it. Raises DataError, MachineError."""
        ...

    def inputs(self, values: Values) -> Feeds:
        """What the graph reads of (rows, *shape) that was kept."""
        ...

    def example(self) -> Values:
        """What would be kept of a file that any adapter can answer."""
        ...


def codec_of(manifest: MediaManifest) -> Codec:
    """How a base reads files."""
    if isinstance(manifest, ImageManifest | DenoiserManifest):
        from protocol.rows.images import ImageCodec

        return ImageCodec(manifest.pixels)
    from protocol.rows.sounds import SoundCodec, WaveformCodec

    if isinstance(manifest, WaveformManifest):
        return WaveformCodec(manifest.waveform)
    assert isinstance(manifest, AudioManifest)
    return SoundCodec(manifest.log_mel)


def read_media_rows(
    path: Path, *, column: str, target: str, check: Check, group: str = ""
) -> Table:
    """Rows of ``.jsonl``, ``.csv`` or ``.parquet``: paths of files, from the rows' folder on, and targets.

    None of them is opened. Raises DataError for the first row that does not fit, MachineError where Parquet
    cannot be read.
    """
    columns, table = [column, target, *filter(None, [group])], Table()
    for place, values in read_values(path, columns):
        table.texts.append(_there(values[0], place, column))
        table.targets.append(check(values[1], place, target))
        table.places.append(place)
        if group:
            table.groups.append(group_name(values[-1], place, group))
    return table


def read_media_paths(path: Path, column: str) -> list[RowFile]:
    """The paths of a column alone, each with its row's place. Raises as read_media_rows."""
    return [
        RowFile(_there(row[0], place, column), str(place))
        for place, row in read_values(path, [column])
    ]


def _there(value: object, place: Place, column: str) -> Path:
    return place.path.parent / checked_text(value, place, column)


def read_file(item: Item, codec: Codec, *, place: str) -> Values:
    """What is kept of one file. One with a place of its own is said to be there.

    Raises DataError for a file that is none of the medium, MachineError for what this machine lacks.
    """
    if isinstance(item, RowFile):
        return read_file(item.path, codec, place=item.place)
    if isinstance(item, SentFile):
        return read_file(item.data, codec, place=place)
    noun = codec.medium.noun
    data = item if isinstance(item, bytes) else file_bytes(item, place=place, noun=noun)
    if len(data) > MOST_FILE:
        raise DataError(
            f"{place}: its {noun} has more than {MOST_FILE} bytes",
            "save a smaller one, or remove the row",
            public=f"{codec.medium.single} that cannot be read",
        )
    return codec.values(data, place=place)


def read_inputs(items: Sequence[Item], codec: Codec, *, first: int = 1) -> Feeds:
    """What the graph reads of files; those without a place are numbered from ``first`` on.

    Raises as read_file.
    """
    noun = codec.medium.noun
    rows = [read_file(item, codec, place=f"{noun} {at}") for at, item in enumerate(items, first)]
    return codec.inputs(np.stack(rows))


def verify_files(items: Sequence[object], medium: Medium) -> None:
    """Raises DataError for what is no file, such as a text, or is said to be of another medium."""
    for item in items:
        if isinstance(item, SentFile) and item.medium != medium:
            raise _another(medium, item.medium.plural)
        if not isinstance(item, Path | RowFile | SentFile | bytes):
            raise _another(medium, "documents" if isinstance(item, Page) else "texts")


def _another(medium: Medium, others: str) -> DataError:
    return DataError(
        f"the base in use answers {medium.plural}, and {others} were given",
        f"give {medium.plural}, or take a base that was built from {others}",
    )


def file_bytes(path: Path, *, place: str, noun: str) -> bytes:
    """A file's bytes; ``place`` is where a row names it. Raises DataError."""
    try:
        return read_regular(path, most=MOST_FILE)
    except OSError as error:
        raise DataError(
            f"{place}: its {noun} cannot be read: {error.strerror}",
            f"name a file of at most {MOST_FILE} bytes; paths of rows begin at the folder of the rows",
            public="a file that a row names cannot be read",
        ) from None
