"""Random vision transformers, as transformers saves them, and images of noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
)

from base_model.images.families import FAMILIES as ROWS

FAMILIES = ("vit", "deit")
HEADED = {"vit": ViTForImageClassification, "deit": DeiTForImageClassification}
OTHER = {"vit": ViTForMaskedImageModeling, "deit": DeiTForImageClassificationWithTeacher}
LABELS = ["light", "music", "timer", "other"]
SIDE, PATCH = 12, 4
assert set(FAMILIES) == ROWS.keys()


def preprocessing(channels: int = 3, **others: Any) -> dict[str, Any]:
    """``preprocessor_config.json`` with every step said."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3][:channels],
        "image_std": [0.5, 0.6, 0.7][:channels],
    } | others


def write_images_source(
    folder: Path,
    *,
    family: str = "vit",
    head: str = "",
    channels: int = 3,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A model of ``family``: the encoder, or with ``head`` "own" or "other" one of the classes on it."""
    folder.mkdir(parents=True)
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    shape = AutoConfig.for_model(
        family,
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": SIDE,
            "patch_size": PATCH,
            "num_channels": channels,
            "encoder_stride": PATCH,
            **(named if head else {}),
            **config,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        match head:
            case "own":
                model = HEADED[family](shape)
            case "other":
                model = OTHER[family](shape)
            case _:
                model = AutoModel.from_config(shape)
        for name, parameter in model.float().named_parameters():  # large: the image shall matter
            norm = "layernorm" in name and name.endswith("weight")
            torch.nn.init.normal_(parameter, float(norm), 0.3 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    written = json.dumps(settings or preprocessing(channels))
    (folder / "preprocessor_config.json").write_text(written)
    return folder


def write_images(folder: Path, count: int, *, seed: int = 0, size: int = SIDE) -> list[Path]:
    """Noise as PNG, in colours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(seed), []
    for number in range(count):
        values = rng.integers(0, 256, (size, size, 3), np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(values).save(paths[-1])
    return paths
