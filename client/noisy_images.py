"""Images of a client for a base that draws: each batch under noise of its own. (P-1.18)

What is drawn hangs on a seed and a row's number alone, so that a training that is done again, or in pieces of
another size, sees the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from client.examples import AT_ONCE, Index, MediaBatch, Stamp, Targets, stamp_of
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS, DenoiserManifest
from protocol.noise import PAIRS, Draws, measuring_draws, noisy, training_draws
from protocol.rows.images import Bytes, as_input
from protocol.rows.media import Feeds


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyImages:
    """Images in memory as they were decoded, ``values`` (rows, channels, height, width) uint8.

    ``targets`` (rows,): classes of the base. ``seed``: of the step that is drawn for; without one rows are
    measured, row ``PAIRS * i + pair`` being the ``pair``-th of image i. ``files``: as of other media.
    """

    manifest: DenoiserManifest
    values: Bytes
    targets: Targets
    seed: int | None
    files: tuple[Stamp, ...] = ()
    by_token: bool = False

    @classmethod
    def of(cls, manifest: DenoiserManifest, values: Bytes, classes: Targets) -> NoisyImages:
        """To be trained on."""
        return cls(manifest=manifest, values=values, targets=classes, seed=0)

    def __len__(self) -> int:
        return len(self.targets) * (1 if self.seed is not None else PAIRS)

    @property
    def lengths(self) -> Index:
        """See :class:`client.examples.Examples`."""
        return np.full(len(self), self.manifest.max_positions, np.int64)

    @property
    def counted(self) -> Index:
        """See :class:`client.examples.Examples`."""
        return np.ones(len(self), np.int64)

    @property
    def together(self) -> int:
        """See :class:`client.examples.Examples`."""
        return self.manifest.together(AT_ONCE)

    @property
    def held(self) -> int:
        """See :class:`client.examples.Examples`."""
        return -(-self.values.nbytes // 4)

    @property
    def is_current(self) -> bool:
        """See :class:`client.examples.Examples`."""
        return all(stamp_of(Path(path)) == (path, *stamp) for path, *stamp in self.files)

    @property
    def measured(self) -> NoisyImages:
        """See :class:`client.examples.Examples`: each image under fixed noise, :data:`PAIRS` times."""
        return replace(self, seed=None)

    def drawn(self, seed: int) -> NoisyImages:
        """See :class:`client.examples.Examples`."""
        return replace(self, seed=seed)

    def take(self, index: Index) -> NoisyImages:
        """See :class:`client.examples.Examples`; of rows that are trained on."""
        assert self.seed is not None
        return replace(self, values=self.values[index], targets=self.targets[index], files=())

    def batch(self, index: Index) -> MediaBatch:
        """See :class:`client.examples.Examples`; its targets are the noise."""
        rows = index if self.seed is not None else index // PAIRS
        draws, schedule = self._draws(index), self.manifest.schedule
        images = as_input(self.values[rows], self.manifest.pixels)
        inputs: Feeds = {
            IMAGES: noisy(images, draws.noise, draws.steps, schedule),
            STEPS: draws.steps,
            CLASSES: self.targets[rows].astype(np.int64),
        }
        return MediaBatch(inputs=inputs, targets=draws.noise)

    def _draws(self, index: Index) -> Draws:
        schedule, shape = self.manifest.schedule, self.manifest.shape
        if self.seed is not None:
            return training_draws(self.seed, index, schedule, shape)
        return measuring_draws(index, schedule, shape)
