"""Images with labels, as a base that draws learns them: under noise, which is drawn here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from client.data import Rows
from client.noisy_images import NoisyImages
from client.opened_base import OpenedBase
from client.tasks.classification import TARGETS
from client.tasks.classification import targets as targets
from client.tasks.media import files_in_memory
from protocol.denoiser_manifest import DenoiserManifest
from protocol.noise import PAIRS
from protocol.recipe import Recipe
from protocol.tasks.image_generation import MOST_ERROR


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Rows; the sum over them of their mean square as it is, and of such as are cut to MOST_ERROR."""

    examples: int
    loss_sum: float
    error: float

    @property
    def metrics(self) -> dict[str, float]:
        """``eval_examples`` and ``eval_noise``."""
        return {"eval_examples": float(self.examples), "eval_noise": self.error}


def encode(rows: Rows, recipe: Recipe, base: OpenedBase) -> NoisyImages:
    """Every image, decoded. Raises DataError for the first that cannot be read."""
    assert isinstance(recipe.manifest, DenoiserManifest)
    return encoded_images(rows, recipe.manifest)


def encoded_images(rows: Rows, manifest: DenoiserManifest) -> NoisyImages:
    """The same for a base; targets are classes of it. Raises DataError."""
    values, files = files_in_memory(rows, manifest)
    classes = np.array(rows.targets, TARGETS)
    return replace(NoisyImages.of(manifest, values, classes), files=files)


def score(outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Score:
    """Of what a program gives, (rows * PAIRS, 1): a mean square of each pair of a step and a noise."""
    errors = outputs.astype(np.float64).reshape(len(targets), PAIRS).mean(1)
    return Score(
        examples=len(targets),
        loss_sum=float(errors.sum()),
        # one that is no number is as bad as can be: a comparison with it is false
        error=float(np.where(errors <= MOST_ERROR, errors, MOST_ERROR).sum()),
    )
