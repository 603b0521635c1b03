"""Parts of a layer that models of several kinds have: words, norms, activations, heads."""

from __future__ import annotations

from functools import partial

import numpy as np
from onnx import TensorProto

from base_model.decoder.products import BLOCK, Products, codes_of, row_shape
from base_model.decoder.shape import Activation
from base_model.decoder.source import CodedWeight


def word_rows(building: Products, path: str, ids: str, *, prefix: str = "") -> str:
    """Rows of the table at ``path``, (tokens, width), for ids (rows, tokens).

    ``prefix``: of what nodes are called, where a graph reads the table a second time.
    """
    nodes, width = building.nodes, building.sizes[path][1]
    table, name = building.weights[f"{path}.weight"], f"{prefix}{path}"
    if isinstance(table, CodedWeight):
        codes, scales = codes_of(nodes, path, table)
        deep = building.once(f"{scales}/deep", _deep)
        settings = {"gather_axis": 0, "quantize_axis": 2, "block_size": BLOCK, "bits": table.bits}
        words = f"{name}/blocks"
        nodes.add_contrib("GatherBlockQuantized", [codes, ids, deep], [words], **settings)
        padded = table.codes.shape[1] * BLOCK
        words = nodes.add("Reshape", [words, row_shape(nodes, padded)], f"{name}/padded")
        if padded != width:
            ends = [nodes.numbers(f"slice/{key}", [at]) for key, at in _cut(width)]
            words = nodes.add("Slice", [words, *ends], f"{name}/cut")
        return words
    words = nodes.add("Gather", [nodes.tensor(f"{path}.weight", table), ids], f"{name}/words")
    if table.dtype == np.float16:
        words = nodes.add("Cast", [words], f"{name}/words/wide", to=TensorProto.FLOAT)
    return nodes.add("Reshape", [words, row_shape(nodes, width)], f"{name}/words/rows")


def _deep(building: Products, output: str) -> None:
    """Scales (words, blocks, 1)."""
    nodes = building.nodes
    nodes.add("Unsqueeze", [output.removesuffix("/deep"), nodes.numbers("last", [-1])], output)


def _cut(width: int) -> tuple[tuple[str, int], ...]:
    """The inputs of a Slice that keeps the first ``width`` of the last dimension."""
    return ("start", 0), ("end", width), ("axis", 1)


def norm(building: Products, value: str, path: str, *, epsilon: float, unit: bool = False) -> str:
    """``value`` over the root of its mean square, times the norm's weight, with ``unit`` 1 + it."""
    return building.nodes.add(
        "SimplifiedLayerNormalization",
        [value, _norm_weight(building, path, unit)],
        f"{path}/normed",
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )


def added_norm(
    building: Products, stream: str, added: str, path: str, *, epsilon: float, unit: bool = False
) -> tuple[str, str]:
    """(the norm of stream + added, stream + added)."""
    if not added:
        return norm(building, stream, path, epsilon=epsilon, unit=unit), stream
    normed, total = f"{path}/normed", f"{path}/stream"
    if building.derivable:
        total = building.nodes.add("Add", [stream, added], total)
        return norm(building, total, path, epsilon=epsilon, unit=unit), total
    building.nodes.add_contrib(
        "SkipSimplifiedLayerNormalization",
        [stream, added, _norm_weight(building, path, unit)],
        [normed, "", "", total],
        epsilon=epsilon,
    )
    return normed, total


def _norm_weight(building: Products, path: str, unit: bool) -> str:
    name = f"{path}.weight"
    weight = building.weights[name]
    assert not isinstance(weight, CodedWeight)
    if unit:
        return building.nodes.tensor(f"{name}/unit", weight + np.float32(1))
    return building.nodes.tensor(name, weight)


def activated(building: Products, activation: Activation, value: str, path: str) -> str:
    """An activation, number by number."""
    nodes, output = building.nodes, f"{path}/active"
    match activation:
        case "relu":
            return nodes.add("Relu", [value], output)
        case "silu" if building.derivable:  # one operator, of which a gradient keeps less
            nodes.add_contrib("QuickGelu", [value], [output], alpha=1.0)
            return output
        case "silu":
            half = nodes.add("Sigmoid", [value], f"{path}/sigmoid")
            return nodes.add("Mul", [value, half], output)
        case "gelu":
            return nodes.add("Gelu", [value], output)
        case "gelu_tanh":
            return nodes.add("Gelu", [value], output, approximate="tanh")


def as_heads(building: Products, rows: str, heads: int, size: int, *, texts: str = "tokens") -> str:
    """(positions, heads * size) to (rows, heads, tokens, size); ``texts`` holds the sizes (rows, tokens)."""
    nodes = building.nodes
    shape = building.once(f"{texts}/heads/{heads}", partial(_head_shape, texts, [heads, size]))
    split = nodes.add("Reshape", [rows, shape], f"{rows}/split")
    return nodes.add("Transpose", [split], f"{rows}/heads", perm=[0, 2, 1, 3])


def _head_shape(texts: str, ends: list[int], building: Products, output: str) -> None:
    """(rows, tokens, *ends) as a value."""
    nodes = building.nodes
    nodes.add("Concat", [texts, nodes.numbers(f"{output}/ends", ends)], output, axis=0)
