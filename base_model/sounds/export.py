"""The edge graph of sounds: convolutions are products in it, the rest is every encoder's. (docs/adr/0080)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from base_model.export import exported
from base_model.sounds.classifier import SoundClassifier
from protocol.audio_manifest import FEATURES


class _Features(nn.Module):
    """Log-mel features to what the head reads. Every position sees every other: there is no mask to make."""

    def __init__(self, model: SoundClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: Tensor) -> Tensor:
        encoder = self.model.get_submodule(self.model.prefix)
        frames = nn.functional.gelu(encoder.conv1(input_features.permute(0, 2, 1)))
        hidden = nn.functional.gelu(encoder.conv2(frames)) + encoder.embed_positions.weight
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return self.model.pooled(encoder.layer_norm(hidden))


class _Unfolded(nn.Module):
    """What a convolution over time computes, as one product of the frames that it sees at a time.

    A convolution would be an operator that nothing else in a base or in a program needs (P-11.4). Its numbers
    keep their names, by which a program finds them in the base's file.
    """

    def __init__(self, convolution: nn.Conv1d) -> None:
        super().__init__()
        weight = convolution.weight
        self.taps, self.stride = int(weight.shape[2]), int(convolution.stride[0])
        self.around = int(convolution.padding[0])
        self.weight = nn.Parameter(weight.detach().reshape(len(weight), -1))
        assert convolution.bias is not None
        self.bias = nn.Parameter(convolution.bias.detach())

    def forward(self, frames: Tensor) -> Tensor:
        """(rows, frames, in) to (rows, frames / stride, out)."""
        count, width = frames.shape[1], frames.shape[2]
        silence = torch.zeros_like(frames[:, : self.around])
        padded = torch.cat([silence, frames, silence], 1)
        steps = (count + 2 * self.around - self.taps) // self.stride + 1
        last = (steps - 1) * self.stride + 1
        seen = [padded[:, tap : tap + last : self.stride] for tap in range(self.taps)]
        flat = torch.stack(seen, 3).reshape(-1, width * self.taps)
        product = nn.functional.linear(flat, self.weight, self.bias)
        return product.reshape(-1, steps, product.shape[-1])


@contextmanager
def _as_products(model: SoundClassifier) -> Iterator[None]:
    """The model with its convolutions as products for the time being."""
    encoder = model.get_submodule(model.prefix)
    before = encoder.conv1, encoder.conv2
    encoder.conv1, encoder.conv2 = map(_Unfolded, before)
    try:
        yield
    finally:
        encoder.conv1, encoder.conv2 = before


def exported_sounds(model: SoundClassifier, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Features of sounds of ``shape`` (bands, frames) in ONNX."""
    example = (torch.zeros(2, *shape),)
    with _as_products(model):
        return exported(_Features(model), example, [FEATURES], ({0: torch.export.Dim("batch")},))
