"""Families of models that read images: a family is a row. (docs/adr/0045, 0073)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.errors import ArtefactError


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFamily:
    """An encoder of images by Hugging Face's ``model_type``.

    ``prefix``: attribute of the encoder in the classification model. ``own``: Hugging Face's class whose head
    means here what it means there. ``before``: tokens that stand before the patches. ``layers``: what the
    module path of every linear in a layer has in it. ``key``: last path component of the linears that give
    keys.
    """

    model_type: str
    prefix: str
    own: str
    before: int
    layers: str = ".layers."
    key: str = "k_proj"

    def positions(self, config: Any) -> int:
        """How many tokens an image has: whole patches, and what stands before them."""
        (height, width), (down, across) = sides(config.image_size), sides(config.patch_size)
        return self.before + (height // down) * (width // across)


FAMILIES = {
    family.model_type: family
    for family in (
        ImageFamily(model_type="vit", prefix="vit", own="ViTForImageClassification", before=1),
        ImageFamily(model_type="deit", prefix="deit", own="DeiTForImageClassification", before=2),
    )
}
REFUSED = {
    "beit": "its attention adds a table of distances between patches",
    "swin": "it attends within windows that are moved from layer to layer",
    "swinv2": "it attends within windows that are moved from layer to layer",
    "convnext": "it has convolutions where adapters have linears",
    "convnextv2": "it has convolutions where adapters have linears",
    "resnet": "it has convolutions where adapters have linears",
    "dinov2": "its layers scale what they add, and its head reads more than the first token",
    "clip": "it compares images with texts",
    "siglip": "it compares images with texts",
}


def sides(size: Any) -> tuple[int, int]:
    """(height, width) of a config's number or pair. Raises ValueError."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError("not a number of pixels, or two")
    return pair[0], pair[1]


def image_family_of(model_type: str, *, source: str) -> ImageFamily:
    """The family. Raises ArtefactError that names the ones that work."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    why = f": {REFUSED[model_type]}" if model_type in REFUSED else ""
    raise ArtefactError(
        f"{source}: model type `{model_type}` cannot be a base for image classification{why}",
        f"use a model of: {', '.join(FAMILIES)}",
    )
