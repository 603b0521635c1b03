"""Random diffusion transformers on pixels, as diffusers saves a pipeline of one; written without diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from base_model.denoisers.families import shape_of
from base_model.denoisers.torch_model import Denoiser

SIDE, CLASSES, STEPS = 8, 5, 40
CONFIG: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel",
    "_diffusers_version": "0.42.1",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 16,
    "dropout": 0.0,
    "in_channels": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 2,
    "num_embeds_ada_norm": CLASSES,
    "num_layers": 2,
    "out_channels": 2,
    "patch_size": 4,
    "sample_size": SIDE,
    "upcast_attention": False,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.42.1",
    "beta_end": 0.2,
    "beta_schedule": "linear",
    "beta_start": 0.001,
    "clip_sample": True,
    "num_train_timesteps": STEPS,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


LABELS = ["a", "b", "c"]


def write_drawings(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    """Grey images with a bright pair of columns, by their label: of number n the label n % 3."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(seed), []
    for number in range(count):
        values = np.zeros((SIDE, SIDE), np.uint8)
        at = 2 * (number % len(LABELS))
        values[:, at : at + 2] = 200 + rng.integers(0, 56, (SIDE, 2))
        paths.append(folder / f"{number}.png")
        Image.fromarray(values).save(paths[-1])
    return paths


def write_denoiser_source(
    folder: Path, *, scheduler: dict[str, Any] | None = None, seed: int = 0, **config: Any
) -> Path:
    """A pipeline's folder; ``config`` and ``scheduler`` in the place of what they have by default."""
    document = CONFIG | config
    model = Denoiser(shape_of(document, source="a test"))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.15
        for name, value in model.state_dict().items()
    }
    for name, values in (
        ("transformer/config.json", document),
        ("scheduler/scheduler_config.json", SCHEDULER | (scheduler or {})),
    ):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values, indent=1))
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder
