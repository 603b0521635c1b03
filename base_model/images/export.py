"""The edge graph of images: patches are cut in it, the rest is every encoder's. (docs/adr/0073)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from base_model.export import exported
from base_model.images.classifier import ImageClassifier
from protocol.image_manifest import PIXELS


class _Features(nn.Module):
    """Images to what the head reads. Every patch sees every other: there is no mask to make."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        encoder = self.model.get_submodule(self.model.prefix)
        hidden = encoder.embeddings(pixel_values)
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        features: Tensor = encoder.layernorm(hidden)[:, 0]
        return features


class _Patches(nn.Module):
    """What a convolution without overlap computes, as the one product that it is.

    A convolution would be an operator that nothing else in a base or in a program needs. (P-11.4)
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight
        self.channels, self.sides = weight.shape[1], (int(weight.shape[2]), int(weight.shape[3]))
        self.projection = nn.Linear(weight[0].numel(), len(weight), device="meta")
        self.projection.weight = nn.Parameter(weight.detach().reshape(len(weight), -1))
        assert convolution.bias is not None
        self.projection.bias = nn.Parameter(convolution.bias.detach())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(rows, channels, height, width) to (rows, patches, hidden)."""
        (high, wide), (_, _, height, width) = self.sides, pixel_values.shape
        down, across = height // high, width // wide
        cut = pixel_values.reshape(-1, self.channels, down, high, across, wide)
        flat = cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, self.projection.in_features)
        patches: Tensor = self.projection(flat)
        return patches.reshape(-1, down * across, patches.shape[-1])


@contextmanager
def _as_products(model: ImageClassifier) -> Iterator[None]:
    """The model with its patches as products for the time being."""
    embeddings = model.get_submodule(model.prefix).embeddings
    before = embeddings.patch_embeddings
    embeddings.patch_embeddings = _Patches(before.projection)
    try:
        yield
    finally:
        embeddings.patch_embeddings = before


def exported_images(model: ImageClassifier, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Features of images of ``shape`` (channels, height, width) in ONNX."""
    example = (torch.zeros(2, *shape),)
    with _as_products(model):
        return exported(_Features(model), example, [PIXELS], ({0: torch.export.Dim("batch")},))
