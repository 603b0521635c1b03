"""Norms that take the mean away and have a bias, in a decoder's graph."""

from __future__ import annotations

from base_model.decoder.products import Building
from base_model.decoder.source import CodedWeight


def layer_norm(building: Building, value: str, path: str) -> str:
    """``value`` less its mean, over its deviation, times the norm's weight, plus its bias."""
    return building.nodes.add(
        "LayerNormalization",
        [value, *_tensors(building, path)],
        f"{path}/normed",
        axis=-1,
        epsilon=building.shape.epsilon,
        stash_type=1,
    )


def added_layer_norm(building: Building, stream: str, added: str, path: str) -> tuple[str, str]:
    """(the norm of stream + added, stream + added), in one operator."""
    normed, total = f"{path}/normed", f"{path}/stream"
    building.nodes.add_contrib(
        "SkipLayerNormalization",
        [stream, added, *_tensors(building, path)],
        [normed, "", "", total],
        epsilon=building.shape.epsilon,
    )
    return normed, total


def _tensors(building: Building, path: str) -> list[str]:
    names = [f"{path}.weight", f"{path}.bias"]
    for name in names:
        value = building.weights[name]
        assert not isinstance(value, CodedWeight)
        building.nodes.tensor(name, value)
    return names
