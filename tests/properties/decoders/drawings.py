"""Decoders, by house. What a base that draws is made of, and its manifest."""

from __future__ import annotations

import json
from typing import Any

from base_model.denoisers.families import schedule_of, shape_of
from base_model.source_files import read_object
from protocol.denoiser_manifest import (
    CLASSES,
    IMAGES,
    NOISE,
    STEPS,
    DenoiserManifest,
    drawn_pixels,
)
from protocol.manifests import parse_any_manifest
from protocol.noise import Schedule
from tests.denoiser_models import CONFIG, SCHEDULER
from tests.properties.decoders.rows import Decoder, json_line, of_file, of_text
from tests.properties.decoders.world import World


def drawings(world: World) -> dict[str, Decoder]:
    encoder = json.loads(world.bytes("manifest.json"))
    return {
        "base_model.denoisers.families:shape_of": Decoder(
            read=of_file(
                world.folder / "transformer.json",
                lambda path: shape_of(read_object(path), source="config.json"),
            ),
            seeds=(json_line(CONFIG),),
        ),
        "base_model.denoisers.families:schedule_of": Decoder(
            read=of_file(
                world.folder / "scheduler.json",
                lambda path: schedule_of(read_object(path), source=path).alphas(),
            ),
            seeds=(json_line(SCHEDULER),),
        ),
        "protocol.manifests:parse_any_manifest, of a base that draws": Decoder(
            read=of_text(lambda text: parse_any_manifest(text, source="m")),
            seeds=(denoiser_manifest(encoder).encode(),),
        ),
    }


def denoiser_manifest(encoder: dict[str, Any]) -> str:
    """With files and tensors as an encoder's lists them."""
    shared = {key: value for key, value in encoder.items() if key in DenoiserManifest.model_fields}
    graph = encoder["graph"] | {"inputs": [IMAGES, STEPS, CLASSES], "output": NOISE}
    own = {"format": 1, "task": "image-generation", "graph": graph, "classes": 5}
    schedule = Schedule(steps=40, betas="linear", start=0.001, end=0.2)
    fields = shared | own | {"pixels": drawn_pixels(1, 8), "schedule": schedule}
    return DenoiserManifest.model_validate(fields).fingerprinted().to_json()
