"""The graph of a diffusion transformer: images under noise, steps and classes to the noise. (P-1.18)

Written node by node, of operators that have a derivative, so that devices and programs have the same graph.
Linears run on rows (patches of all images below each other); what a step and a class say of an image is added
and multiplied to all of its patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from base_model.decoder.nodes import Nodes
from base_model.decoder.products import Products, Stores, linear, row_shape
from base_model.denoisers.shape import (
    NORM_EPSILON,
    PARTS,
    PERIOD,
    SINUSOID,
    STEP,
    DenoiserShape,
    block_path,
    class_table,
    condition_path,
)
from protocol.denoiser_manifest import CLASSES, IMAGES, NOISE, STEPS

Table = npt.NDArray[np.float32]
ROWS = "rows"


@dataclass(kw_only=True)
class Building(Products):
    """The graph on its way."""

    shape: DenoiserShape


def denoising_graph(shape: DenoiserShape, weights: Stores, *, slots: bool = True) -> Nodes:
    """The graph on ``weights`` as a base stores them, by diffusers' names."""
    nodes = Nodes("denoiser")
    building = Building(
        shape=shape,
        sizes=shape.matrices(),
        weights=weights,
        nodes=nodes,
        slots=slots,
        derivable=True,
    )
    size = [ROWS, shape.channels, shape.side, shape.side]
    nodes.input(IMAGES, TensorProto.FLOAT, [*size])
    for name in (STEPS, CLASSES):
        nodes.input(name, TensorProto.INT64, [ROWS])
    stream, waves = _patches(building), _waves(nodes)
    for layer in range(shape.layers):
        condition = _condition(building, layer, waves)
        if layer == 0:
            last = condition
        stream = _block(building, layer, stream, condition)
    nodes.add("Identity", [_image(building, stream, last)], NOISE)
    nodes.output(NOISE, TensorProto.FLOAT, [*size])
    return nodes


def step_frequencies() -> Table:
    """(128,) float32: angles that a step turns by, from 1 down to 1 / 10,000."""
    half = SINUSOID // 2
    exponents = np.float32(-math.log(PERIOD)) * np.arange(half, dtype=np.float32)
    return np.exp(exponents / np.float32(half - 1))


def patch_places(shape: DenoiserShape) -> Table:
    """(patches, hidden) float32: sines and cosines of a patch's column, then of its row."""
    quarter = shape.hidden // 4
    frequencies = 1.0 / PERIOD ** (np.arange(quarter, dtype=np.float64) / quarter)
    rows, columns = np.divmod(np.arange(shape.patches), shape.across)
    angles = [np.outer(along, frequencies) for along in (columns, rows)]
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, 1).astype(np.float32)


def _floats(building: Building, name: str, shape: tuple[int, ...] | None = None) -> str:
    """A tensor that is no matrix of an adapted linear, in the graph."""
    value = np.asarray(building.weights[name], np.float32)
    return building.nodes.tensor(name, value if shape is None else value.reshape(shape))


def _dense(building: Building, path: str, rows: str, output: str) -> str:
    """``rows`` through a linear that nothing adapts."""
    weights = (_floats(building, f"{path}.weight"), _floats(building, f"{path}.bias"))
    return building.nodes.add("Gemm", [rows, *weights], output, transB=1)


def _patches(building: Building) -> str:
    """(rows, patches, hidden): squares of an image, each with its place."""
    nodes, shape = building.nodes, building.shape
    patch, across, values = shape.patch, shape.across, shape.channels * shape.patch**2
    cut = nodes.numbers("patches/cut", [-1, shape.channels, across, patch, across, patch])
    squares = nodes.add("Reshape", [IMAGES, cut], "patches/squares")
    turned = nodes.add("Transpose", [squares], "patches/turned", perm=[0, 2, 4, 1, 3, 5])
    rows = nodes.add("Reshape", [turned, row_shape(nodes, values)], "patches/rows")
    weight = _floats(building, "pos_embed.proj.weight", (shape.hidden, values))
    bias = _floats(building, "pos_embed.proj.bias")
    states = nodes.add("Gemm", [rows, weight, bias], "patches/states", transB=1)
    states = _tokens(building, states, "patches/tokens")
    places = nodes.tensor("pos_embed.places", patch_places(shape))
    return nodes.add("Add", [states, places], "patches/placed")


def _tokens(building: Building, rows: str, output: str) -> str:
    """(rows * patches, hidden) as (rows, patches, hidden)."""
    nodes, shape = building.nodes, building.shape
    sizes = nodes.numbers("tokens/shape", [-1, shape.patches, shape.hidden])
    return nodes.add("Reshape", [rows, sizes], output)


def _waves(nodes: Nodes) -> str:
    """(rows, 256): cosines, then sines of steps."""
    steps = nodes.add("Cast", [STEPS], "steps/floats", to=TensorProto.FLOAT)
    column = nodes.add("Unsqueeze", [steps, nodes.numbers("one", [1])], "steps/column")
    angles = nodes.add(
        "Mul", [column, nodes.tensor("steps/frequencies", step_frequencies())], "steps/angles"
    )
    waves = [nodes.add(kind, [angles], f"steps/{kind}") for kind in ("Cos", "Sin")]
    return nodes.add("Concat", waves, "steps/waves", axis=1)


def _condition(building: Building, layer: int, waves: str) -> str:
    """(rows, hidden): what a block is told of steps and classes, through a SiLU."""
    nodes, path = building.nodes, condition_path(layer)
    first = _dense(building, f"{path}.{STEP}.linear_1", waves, f"{path}/first")
    second = _dense(building, f"{path}.{STEP}.linear_2", _silu(nodes, first), f"{path}/second")
    table = _floats(building, class_table(layer))
    classes = nodes.add("Gather", [table, CLASSES], f"{path}/classes")
    return _silu(nodes, nodes.add("Add", [second, classes], f"{path}/condition"))


def _silu(nodes: Nodes, value: str) -> str:
    share = nodes.add("Sigmoid", [value], f"{value}/share")
    return nodes.add("Mul", [value, share], f"{value}/silu")


def _block(building: Building, layer: int, stream: str, condition: str) -> str:
    nodes, path = building.nodes, block_path(layer)
    parts = [f"{path}/part/{number}" for number in range(PARTS)]
    nodes.split(linear(building, f"{path}.norm1.linear", condition), parts)
    deep = [
        nodes.add("Unsqueeze", [part, nodes.numbers("one", [1])], f"{part}/deep") for part in parts
    ]
    rows = _modulated(building, f"{path}.norm1", stream, deep[0], deep[1], NORM_EPSILON)
    added = _tokens(building, _attention(building, f"{path}.attn1", rows), f"{path}/attention")
    gated = nodes.add("Mul", [added, deep[2]], f"{path}/attention/gated")
    stream = nodes.add("Add", [stream, gated], f"{path}/between")
    rows = _modulated(building, f"{path}.norm3", stream, deep[3], deep[4], building.shape.epsilon)
    inner = linear(building, f"{path}.ff.net.0.proj", rows)
    active = nodes.add("Gelu", [inner], f"{path}/active", approximate="tanh")
    added = _tokens(building, linear(building, f"{path}.ff.net.2", active), f"{path}/feed-forward")
    gated = nodes.add("Mul", [added, deep[5]], f"{path}/feed-forward/gated")
    return nodes.add("Add", [stream, gated], f"{path}/stream")


def _modulated(
    building: Building, path: str, stream: str, shift: str, scale: str, epsilon: float
) -> str:
    """A norm without numbers of its own, scaled and shifted for each image: (rows * patches, hidden)."""
    nodes, hidden = building.nodes, building.shape.hidden
    ones = nodes.tensor("norms/ones", np.ones(hidden, np.float32))
    normed = nodes.add(
        "LayerNormalization", [stream, ones], f"{path}/normed", axis=-1, epsilon=epsilon
    )
    more = nodes.add("Add", [scale, nodes.number("one/float", 1.0)], f"{path}/scale")
    scaled = nodes.add("Mul", [normed, more], f"{path}/scaled")
    shifted = nodes.add("Add", [scaled, shift], f"{path}/shifted")
    return nodes.add("Reshape", [shifted, row_shape(nodes, hidden)], f"{path}/rows")


def _attention(building: Building, path: str, rows: str) -> str:
    """(rows * patches, hidden): every patch sees all of its image."""
    nodes, shape = building.nodes, building.shape
    sizes = nodes.numbers("heads/shape", [-1, shape.patches, shape.heads, shape.head_size])
    heads = []
    for part in ("to_q", "to_k", "to_v"):
        split = linear(building, f"{path}.{part}", rows)
        split = nodes.add("Reshape", [split, sizes], f"{path}/{part}/heads")
        order = [0, 2, 3, 1] if part == "to_k" else [0, 2, 1, 3]
        heads.append(nodes.add("Transpose", [split], f"{path}/{part}/turned", perm=order))
    queries, keys, values = heads
    scores = nodes.add("MatMul", [queries, keys], f"{path}/products")
    root = nodes.number("heads/scale", shape.head_size**-0.5)
    shares = nodes.add(
        "Softmax", [nodes.add("Mul", [scores, root], f"{path}/scores")], f"{path}/shares", axis=-1
    )
    mixed = nodes.add("MatMul", [shares, values], f"{path}/mixed")
    turned = nodes.add("Transpose", [mixed], f"{path}/mixed/turned", perm=[0, 2, 1, 3])
    flat = nodes.add("Reshape", [turned, row_shape(nodes, shape.hidden)], f"{path}/mixed/rows")
    return linear(building, f"{path}.to_out.0", flat)


def _image(building: Building, stream: str, condition: str) -> str:
    """(rows, channels, side, side): patches back in their places; a learnt variance is left out."""
    nodes, shape = building.nodes, building.shape
    halves = ["out/shift", "out/scale"]
    nodes.split(_dense(building, "proj_out_1", condition, "out/parts"), halves)
    shift, scale = (
        nodes.add("Unsqueeze", [half, nodes.numbers("one", [1])], f"{half}/deep") for half in halves
    )
    rows = _modulated(building, "norm_out", stream, shift, scale, NORM_EPSILON)
    values = _dense(building, "proj_out_2", rows, "out/values")
    patch, across = shape.patch, shape.across
    cut = nodes.numbers("out/cut", [-1, across, across, patch, patch, shape.outputs])
    squares = nodes.add("Reshape", [values, cut], "out/squares")
    turned = nodes.add("Transpose", [squares], "out/turned", perm=[0, 5, 1, 3, 2, 4])
    whole = nodes.numbers("out/shape", [-1, shape.outputs, shape.side, shape.side])
    image = nodes.add("Reshape", [turned, whole], "out/image")
    if shape.outputs == shape.channels:
        return image
    ends = [
        nodes.numbers(f"out/{key}", [at])
        for key, at in (("start", 0), ("end", shape.channels), ("axis", 1))
    ]
    return nodes.add("Slice", [image, *ends], "out/noise")
