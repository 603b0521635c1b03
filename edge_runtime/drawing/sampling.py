"""From noise to images: DDIM that draws nothing on its way, so that a seed is an image. (P-1.18)"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.drawing.adapters import DrawingAdapter
from edge_runtime.drawing.base import DrawingBase, Images
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS
from protocol.draws import normal
from protocol.encoding import seed_from
from protocol.errors import DataError, shortened
from protocol.noise import step_back, steps_down

MOST_STEPS, MOST_IMAGES, MOST_GUIDANCE = 250, 16, 20.0
USUAL_STEPS = 50
MOST_SEED = 2**63 - 1
Bytes = npt.NDArray[np.uint8]
OnStep = Callable[[], None]  # what it raises ends the drawing


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be drawn: so many ``images`` of a ``label``, each in so many ``steps``.

    Without a number these are 50, or all that the schedule has. ``seed``: the same one gives the same images.
    ``guidance``: above 1 the noise is that of no class and as often what that of the class differs from it,
    which takes a second pass a step.
    """

    label: str
    images: int = 1
    steps: int | None = None
    seed: int = 0
    guidance: float = 1.0


def verify_wish(wish: Wish, most_steps: int) -> int:
    """Its steps, within the bounds of a device, and of a schedule of ``most_steps``. Raises DataError."""
    steps = min(USUAL_STEPS, most_steps) if wish.steps is None else wish.steps
    for name, value, least, most in (
        ("images", wish.images, 1, MOST_IMAGES),
        ("steps", steps, 1, min(MOST_STEPS, most_steps)),
        ("seed", wish.seed, 0, MOST_SEED),
        ("guidance", wish.guidance, 1.0, MOST_GUIDANCE),
    ):
        if not least <= value <= most:
            raise DataError(
                f"{name} is {shortened(str(value), 60)}", f"give a number from {least} to {most}"
            )
    return steps


def verify_drawable(base: DrawingBase, adapter: DrawingAdapter | None, wish: Wish) -> None:
    """That :func:`drawn` can meet the wish. Raises DataError."""
    verify_wish(wish, base.manifest.schedule.steps)
    _class_of(base, adapter, wish.label)


def calls_of(base: DrawingBase, wish: Wish) -> int:
    """How often :func:`drawn` calls its ``on_step`` for a wish. Raises DataError."""
    steps = verify_wish(wish, base.manifest.schedule.steps)
    return steps * math.ceil(wish.images / base.manifest.together(MOST_IMAGES))


def drawn(
    base: DrawingBase,
    adapter: DrawingAdapter | None,
    wish: Wish,
    on_step: OnStep | None = None,
) -> Bytes:
    """(images, channels, height, width) uint8. Without an adapter a label is a class, by its number.

    ``on_step`` is called before every step of images that are drawn together; what it raises is raised.
    Raises DataError for a wish that cannot be met, ArithmeticError where an image is no numbers.
    """
    manifest = base.manifest
    steps = steps_down(manifest.schedule, verify_wish(wish, manifest.schedule.steps)).tolist()
    kind = _class_of(base, adapter, wish.label)
    values = adapter.values if adapter else {}
    parts = []
    together = manifest.together(MOST_IMAGES)
    for start in range(0, wish.images, together):
        numbers = range(start, min(start + together, wish.images))
        seeds = [seed_from("drawing", wish.seed, number) for number in numbers]
        first = np.stack([normal(seed, manifest.shape) for seed in seeds]).astype(np.float32)
        parts.append(_cleared(base, values, first, kind, steps, wish.guidance, on_step))
    images = np.concatenate(parts)
    if not np.isfinite(images).all():
        raise ArithmeticError("what was drawn is not finite")
    return np.round((images + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _class_of(base: DrawingBase, adapter: DrawingAdapter | None, label: str) -> int:
    if adapter is not None and adapter.labels:
        return adapter.class_of(label)
    classes = base.manifest.classes
    if label.isascii() and label.isdigit() and len(label) < 10 and int(label) < classes:
        return int(label)
    raise DataError(
        f"{label[:60]!r} is no class of the base",
        f"name one from 0 to {classes - 1}, or a released adapter with --adapter, which has labels",
    )


def _cleared(
    base: DrawingBase,
    values: Mapping[str, Any],
    images: Images,
    kind: int,
    steps: list[int],
    guidance: float,
    on_step: OnStep | None,
) -> Images:
    schedule = base.manifest.schedule
    for step, before in zip(steps, [*steps[1:], -1], strict=True):
        if on_step is not None:
            on_step()
        noise = _noise(base, values, images, step, kind)
        if guidance > 1:
            plain = _noise(base, values, images, step, base.manifest.no_class)
            noise = plain + np.float32(guidance) * (noise - plain)
        images = step_back(images, noise, step, before, schedule)
    return images


def _noise(
    base: DrawingBase, values: Mapping[str, Any], images: Images, step: int, kind: int
) -> Images:
    rows = len(images)
    feeds = {
        IMAGES: images,
        STEPS: np.full(rows, step, np.int64),
        CLASSES: np.full(rows, kind, np.int64),
    }
    return base.noise(feeds, values)
