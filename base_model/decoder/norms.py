"""Norms that take the mean away and have a bias, in a graph."""

from __future__ import annotations

from base_model.decoder.products import Products
from base_model.decoder.source import CodedWeight


def layer_norm(building: Products, value: str, path: str, *, epsilon: float) -> str:
    """``value`` less its mean, over its deviation, times the norm's weight, plus its bias."""
    return building.nodes.add(
        "LayerNormalization",
        [value, *_tensors(building, path)],
        f"{path}/normed",
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )


def added_layer_norm(
    building: Products, stream: str, added: str, path: str, *, epsilon: float
) -> tuple[str, str]:
    """(the norm of stream + added, stream + added), in one operator unless it has to be derivable."""
    if not added:
        return layer_norm(building, stream, path, epsilon=epsilon), stream
    normed, total = f"{path}/normed", f"{path}/stream"
    if building.derivable:
        total = building.nodes.add("Add", [stream, added], total)
        return layer_norm(building, total, path, epsilon=epsilon), total
    building.nodes.add_contrib(
        "SkipLayerNormalization",
        [stream, added, *_tensors(building, path)],
        [normed, "", "", total],
        epsilon=epsilon,
    )
    return normed, total


def _tensors(building: Products, path: str) -> list[str]:
    names = [f"{path}.weight", f"{path}.bias"]
    for name in names:
        value = building.weights[name]
        assert not isinstance(value, CodedWeight)
        building.nodes.tensor(name, value)
    return names
