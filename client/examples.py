"""Rows as an engine reads them, whatever they are of: what training asks of texts and other media alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from protocol.media_manifest import MediaManifest
from protocol.rows.media import Codec, Feeds, Values, codec_of

AT_ONCE = 64  # rows of one call of an engine
Index = npt.NDArray[np.int64]
Targets = npt.NDArray[Any]
Stamp = tuple[str, int, int]  # path, mtime in ns, bytes


class RowBatch(Protocol):
    """Rows that an engine computes together."""

    @property
    def targets(self) -> Targets:
        """What the loss compares with, (rows,) or, of tokens, (rows, longest), or of noise as images."""
        ...

    @property
    def inputs(self) -> Mapping[str, npt.NDArray[Any]]:
        """By the names of the answering graph's inputs."""
        ...


class Examples(Protocol):
    """Encoded rows of a client."""

    @property
    def targets(self) -> Targets:
        """What the loss compares with."""
        ...

    @property
    def by_token(self) -> bool:
        """Whether targets are of tokens."""
        ...

    @property
    def lengths(self) -> Index:
        """Positions that each row takes in the model, (rows,) int64."""
        ...

    @property
    def counted(self) -> Index:
        """What the loss of each row is a sum over, (rows,) int64."""
        ...

    @property
    def together(self) -> int:
        """Most rows that an engine is given at once, however few positions they take."""
        ...

    @property
    def held(self) -> int:
        """What the rows take of memory, in numbers of four bytes."""
        ...

    @property
    def is_current(self) -> bool:
        """Whether what their file names is still what was read of it."""
        ...

    @property
    def measured(self) -> Examples:
        """What an adapter is measured on: these, or where something is drawn of them, fixed draws of each."""
        ...

    def __len__(self) -> int: ...

    def drawn(self, seed: int) -> Examples:
        """The same for one optimiser step, with what is drawn of rows; these, where nothing is."""
        ...

    def take(self, index: Index) -> Examples:
        """The rows at ``index``, in that order."""
        ...

    def batch(self, index: Index) -> RowBatch:
        """The same for an engine."""
        ...


def stamp_of(path: Path) -> Stamp:
    """What a file is recognised by; of one that is gone, that it is."""
    try:
        state = path.stat()
    except OSError:
        return str(path), 0, -1
    return str(path), state.st_mtime_ns, state.st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaBatch:
    """``inputs`` of the graph by name, (rows, …); ``targets`` (rows,), or noise of the images' shape."""

    inputs: Feeds
    targets: Targets


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaRows:
    """Files of a medium in memory, as their codec keeps them.

    ``values`` (rows, *shape); ``targets`` (rows,); ``positions``: tokens that the model makes of a file;
    ``together``: files that are computed at once; ``files``: their files, when they were read.
    """

    values: Values
    targets: Targets
    codec: Codec
    positions: int
    together: int
    files: tuple[Stamp, ...] = ()
    by_token: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> Index:
        """See :class:`Examples`."""
        return np.full(len(self), self.positions, np.int64)

    @property
    def counted(self) -> Index:
        """See :class:`Examples`."""
        return np.ones(len(self), np.int64)

    @property
    def held(self) -> int:
        """See :class:`Examples`."""
        return -(-self.values.nbytes // 4)

    @property
    def measured(self) -> MediaRows:
        """See :class:`Examples`."""
        return self

    def drawn(self, seed: int) -> MediaRows:
        """See :class:`Examples`."""
        return self

    @property
    def is_current(self) -> bool:
        """See :class:`Examples`."""
        return all(stamp_of(Path(path)) == (path, *stamp) for path, *stamp in self.files)

    def take(self, index: Index) -> MediaRows:
        """See :class:`Examples`."""
        return replace(self, values=self.values[index], targets=self.targets[index], files=())

    def batch(self, index: Index) -> MediaBatch:
        """See :class:`Examples`."""
        inputs = self.codec.inputs(self.values[index])
        return MediaBatch(inputs=inputs, targets=self.targets[index])


def media_rows(manifest: MediaManifest, values: Values, targets: Targets) -> MediaRows:
    """Of a base, what its codec has kept of files."""
    return MediaRows(
        values=values,
        targets=targets,
        codec=codec_of(manifest),
        positions=manifest.max_positions,
        together=manifest.together(AT_ONCE),
    )
