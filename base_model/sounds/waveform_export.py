"""The edge graph of a base that hears samples: convolutions, then what every encoder has. (docs/adr/0084)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from base_model.export import exported
from base_model.sounds.waveform_classifier import WaveformClassifier


class _Features(nn.Module):
    """Samples, and which are a sound's own, to what the head reads."""

    def __init__(self, model: WaveformClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model.features(input_values, attention_mask)


class _NormOverTime(nn.Module):
    """What a norm in groups of one channel computes, by operators that graphs have. (P-11.4)"""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon = norm.weight, norm.bias, norm.eps

    def forward(self, frames: Tensor) -> Tensor:
        """(rows, channels, frames)."""
        centred = frames - frames.mean(-1, keepdim=True)
        deviation = ((centred * centred).mean(-1, keepdim=True) + self.epsilon).sqrt()
        return centred * (self.weight.unsqueeze(-1) / deviation) + self.bias.unsqueeze(-1)


@contextmanager
def _with_known_norms(model: WaveformClassifier) -> Iterator[None]:
    """The model with its norms over time as such operators, for the time being."""
    layers = model.get_input_embeddings().conv_layers
    assert isinstance(layers, nn.ModuleList)
    before = [(layer, getattr(layer, "layer_norm", None)) for layer in layers]
    over_time = [(layer, norm) for layer, norm in before if isinstance(norm, nn.GroupNorm)]
    for layer, norm in over_time:
        layer.layer_norm = _NormOverTime(norm)
    try:
        yield
    finally:
        for layer, norm in over_time:
            layer.layer_norm = norm


def exported_waveforms(model: WaveformClassifier, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Features of sounds of ``shape`` (samples,) in ONNX."""
    example = (torch.zeros(2, *shape), torch.ones(2, *shape, dtype=torch.int64))
    count = len(model.inputs)
    shapes = ({0: torch.export.Dim("batch")},) * count
    with _with_known_norms(model):
        return exported(_Features(model), example[:count], model.inputs, shapes)
