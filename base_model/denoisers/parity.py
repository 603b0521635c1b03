"""Parity of an adapter on a base that draws: torch on the codes, and what a device computes. (P-5.3)

Both find the noise on the same images under the same noise, that of :func:`protocol.noise.measuring_draws`;
classes are those of the labels, one after the other. A row is an image under one noise, and its logits are
the values that were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base_model.decoder.torch_model import opened_adapter
from base_model.denoisers.torch_model import opened_denoiser
from base_model.parity import Bounds, compare
from edge_runtime.drawing.adapters import load_drawing_adapter
from edge_runtime.drawing.base import DrawingBase
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS
from protocol.noise import PAIRS, measuring_draws, noisy
from protocol.peft_format import Parity
from protocol.rows.images import as_input
from protocol.rows.media import Item, codec_of, read_file

MOST = 64  # images
AT_ONCE = 16


def denoiser_parity(
    base: Path,
    adapter: Path,
    edge_adapter: Path,
    images: Sequence[Item],
    labels: int,
    bounds: Bounds,
) -> Parity:
    """Of the verified ``base``; no more than 64 of ``images`` are looked at. Raises DataError."""
    device = DrawingBase.open(base, verify=False)
    loaded = load_drawing_adapter(edge_adapter, device)
    model = opened_adapter(opened_denoiser(base), adapter)
    codec = codec_of(device.manifest)
    rows = [
        read_file(image, codec, place=f"image {at}") for at, image in enumerate(images[:MOST], 1)
    ]
    values = as_input(np.stack(rows), device.manifest.pixels)
    expected, answers = [], []
    for start in range(0, len(values) * PAIRS, AT_ONCE):
        places = np.arange(start, min(start + AT_ONCE, len(values) * PAIRS), dtype=np.int64)
        draws = measuring_draws(places, device.manifest.schedule, device.manifest.shape)
        feeds = {
            IMAGES: noisy(
                values[places // PAIRS], draws.noise, draws.steps, device.manifest.schedule
            ),
            STEPS: draws.steps,
            CLASSES: places % labels,
        }
        with torch.no_grad():
            inputs: dict[str, Any] = {name: torch.from_numpy(x) for name, x in feeds.items()}
            expected.append(model(**inputs).numpy())
        answers.append(device.noise(feeds, loaded.values))
    reference, other = (np.concatenate(parts) for parts in (expected, answers))
    return compare(reference.reshape(len(reference), -1), other.reshape(len(other), -1), bounds)
