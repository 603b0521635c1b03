"""A base that draws images. (docs/adr/0087)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_runtime.drawing.adapters import DrawingAdapter, load_drawing_adapter
from edge_runtime.drawing.base import DrawingBase
from edge_runtime.probe import MOST_TIMED, Clock, Examined, Probe, least_median_ms, unreadable
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS
from protocol.errors import ArtefactError, DataError
from protocol.noise import PAIRS, measuring_draws, noisy
from protocol.rows.images import as_input
from protocol.rows.media import codec_of, read_file

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

Bytes = npt.NDArray[np.uint8]


class DrawingBackend:
    """Finds noise on images with ``base``, under the adapter that each call names."""

    ITEM = "step"

    def __init__(self, base: DrawingBase) -> None:
        self.base = base

    def load(self, folder: Path, policy: Policy | None = None) -> DrawingAdapter:
        """As `Backend.load`: the answer is the noise on a grey image."""
        adapter = load_drawing_adapter(folder, self.base, policy=policy)
        grey = codec_of(self.base.manifest).example()
        if not np.isfinite(self.errors(adapter, grey, 0)).all():
            raise ArtefactError(
                f"{folder}: the probe gave values that are not finite",
                "the adapter in use was kept; fetch this one again",
            )
        return adapter

    def questions(self, probe: Probe) -> Sequence[Any]:
        """As `Backend.questions`: images, decoded."""
        if probe.kind == "texts":
            raise unreadable("its rows have `contains`, and the base writes no text")
        if probe.most_error is None:
            raise unreadable("it has no `most_error`, and the base draws images")
        codec = codec_of(self.base.manifest)
        codec.load()
        try:
            return [
                read_file(Path(str(row.image)), codec, place=f"row {at}")
                for at, row in enumerate(probe.rows, 1)
            ]
        except DataError as error:
            raise unreadable(error.cause) from None

    def examine(
        self, adapter: DrawingAdapter, probe: Probe, questions: Sequence[Any], clock: Clock
    ) -> Examined:
        """As `Backend.examine`: a row is right whose noise is found, but for `most_error`."""
        assert probe.most_error is not None
        wrong: dict[int, str] = {}
        for at, (row, image) in enumerate(zip(probe.rows, questions, strict=True)):
            if row.label not in adapter.labels:
                wrong[at] = "its label is none of the release's"
                continue
            error = float(self.errors(adapter, image, adapter.class_of(row.label)).mean())
            if not error <= probe.most_error:
                wrong[at] = f"a noise error of {error:.3f} for {probe.most_error:g} at most"
        passes = self._timed(adapter, questions[:MOST_TIMED], clock)
        return Examined(wrong=wrong, latency_ms=least_median_ms(passes, probe.most_latency_ms))

    def errors(self, adapter: DrawingAdapter, image: Bytes, kind: int) -> npt.NDArray[np.float64]:
        """(PAIRS,): mean squares of the noise that is not found on an image (channels, height, width)."""
        manifest, places = self.base.manifest, np.arange(PAIRS, dtype=np.int64)
        draws = measuring_draws(places, manifest.schedule, manifest.shape)
        clean = as_input(np.repeat(image[None], PAIRS, 0), manifest.pixels)
        feeds = {
            IMAGES: noisy(clean, draws.noise, draws.steps, manifest.schedule),
            STEPS: draws.steps,
            CLASSES: np.full(PAIRS, kind, np.int64),
        }
        apart = (self.base.noise(feeds, adapter.values) - draws.noise).astype(np.float64)
        result: npt.NDArray[np.float64] = (apart**2).reshape(PAIRS, -1).mean(1)
        return result

    def _timed(
        self, adapter: DrawingAdapter, questions: Sequence[Bytes], clock: Clock
    ) -> Iterator[list[float]]:
        """Seconds of a step on each image alone, again at each try."""
        while True:
            seconds = []
            for image in questions:
                feeds = {
                    IMAGES: as_input(image[None], self.base.manifest.pixels),
                    STEPS: np.zeros(1, np.int64),
                    CLASSES: np.zeros(1, np.int64),
                }
                start = clock()
                self.base.noise(feeds, adapter.values)
                seconds.append(clock() - start)
            yield seconds


def open_drawing(base: Path, *, threads: int, cache: Path | None = None) -> DrawingBackend:
    """Open a base that draws; nothing of it goes to ``cache``. Raises ArtefactError for any other."""
    return DrawingBackend(DrawingBase.open(base, threads=threads))
