"""Products with a model's matrices, in codes or floats, and the low-rank branches beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from onnx import TensorProto

from base_model.decoder.nodes import Nodes
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight, Floats
from protocol.forms import DOWN, UP

BLOCK = 32
# Accuracy level of a product by whole numbers. At 0 an output layer in 8 bits takes ten times as long as all
# the rest together.
WHOLE_NUMBERS = 4
LEAST_SCALE = 1e-30  # of a block of zeros
Stored = CodedWeight | Floats | np.ndarray[Any, np.dtype[np.float16]]
Stores = Mapping[str, Stored]


@dataclass(kw_only=True)
class Products:
    """A graph on its way: the tensors by their names, and what has been computed already.

    ``sizes``: (out, in) of every matrix by its module's path. ``fused_norms``: what a block adds is added
    where the next norm is computed, in one operator; a graph that is to have a derivative has two.
    ``read``: by the path of a matrix, the rows that it multiplies.
    """

    sizes: Mapping[str, tuple[int, int]]
    weights: Stores
    nodes: Nodes
    slots: bool
    fused_norms: bool = True
    read: dict[str, str] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)

    def once(self, output: str, compute: Callable[[Self, str], None]) -> str:
        """``output``, which several nodes read; the first one to ask has it computed."""
        if output not in self.computed:
            self.computed.add(output)
            compute(self, output)
        return output


@dataclass(kw_only=True)
class Building(Products):
    """The graph of a decoder on its way."""

    shape: DecoderShape


def linear(building: Products, path: str, rows: str) -> str:
    """``rows`` through a linear and, with slots, its low-rank branch."""
    output = f"{path}/rows"
    base = product(building, path, rows, f"{output}/base" if building.slots else output)
    if not building.slots:
        return base
    nodes = building.nodes
    out, width = building.sizes[path]
    # A rank of its own for each: with one symbol the memory planner assumes equal ranks everywhere.
    rank = f"r_{path}"
    down = nodes.slot(path + DOWN, [width, rank], np.zeros((width, 0), np.float32))
    up = nodes.slot(path + UP, [rank, out], np.zeros((0, out), np.float32))
    narrow = nodes.add("MatMul", [rows, down], f"{output}/down")
    return nodes.add("Gemm", [narrow, up, base], output)


def product(building: Products, path: str, rows: str, output: str, level: int = 0) -> str:
    """``rows`` times a matrix (out, in), plus its bias."""
    building.read[path] = rows
    nodes, weight = building.nodes, building.weights[f"{path}.weight"]
    stored = building.weights.get(f"{path}.bias")
    assert not isinstance(stored, CodedWeight)
    bias = "" if stored is None else nodes.tensor(f"{path}.bias", stored)
    if isinstance(weight, CodedWeight):
        return _coded_product(building, path, rows, output, weight, bias, level)
    name = nodes.tensor(f"{path}.weight", weight)
    if weight.dtype == np.float16:  # ONNX Runtime widens it once, when it opens the file
        name = nodes.add("Cast", [name], f"{name}/wide", to=TensorProto.FLOAT)
    return nodes.add("Gemm", [rows, name, *([bias] if bias else [])], output, transB=1)


def _coded_product(
    building: Products,
    path: str,
    rows: str,
    output: str,
    weight: CodedWeight,
    bias: str,
    level: int,
) -> str:
    """The same of codes. Offsets of blocks multiply sums over blocks: a product of 1/32 of the size."""
    nodes = building.nodes
    product = output if weight.offsets is None else f"{output}/codes"
    codes, scales = codes_of(nodes, path, weight)
    nodes.add_contrib(
        "MatMulNBits",
        [rows, codes, scales, *(["", "", bias] if bias else [])],
        [product],
        K=building.sizes[path][1],
        N=len(weight.codes),
        bits=weight.bits,
        block_size=BLOCK,
        accuracy_level=level,
    )
    if weight.offsets is None:
        return product
    sums = building.once(f"{rows}/sums", _sums)
    offsets = nodes.tensor(f"{path}.offsets", weight.offsets)
    return nodes.add("Gemm", [sums, offsets, product], output, transB=1)


def output_rows(building: Products, path: str, rows: str, output: str) -> str:
    """``rows`` times the output layer's matrix, which in 8 bits is multiplied by whole numbers."""
    weight, width = building.weights[f"{path}.weight"], building.sizes[path][1]
    coded = isinstance(weight, CodedWeight) and weight.bits == 8
    multiply = in_two_parts if coded and width % BLOCK == 0 else product
    return multiply(building, path, rows, output)


def in_two_parts(building: Products, path: str, rows: str, output: str) -> str:
    """``rows`` times an 8-bit matrix by whole numbers, as good as in floats. (docs/adr/0053)

    MatMulNBits at level 4 rounds each block of its input to 127ths of its largest number. Here the rows are
    stacked on what that rounding leaves of them: the first part is exact, the error is the second's, a 127th
    of a 127th. The matrix is read once for both.
    """
    nodes, weight = building.nodes, building.weights[f"{path}.weight"]
    assert isinstance(weight, CodedWeight)
    assert weight.offsets is None
    width = building.sizes[path][1]
    blocks = nodes.add("Reshape", [rows, nodes.numbers("blocks", [0, -1, BLOCK])], f"{output}/in")
    largest = nodes.add("Abs", [blocks], f"{output}/abs")
    last = nodes.numbers("last", [-1])
    largest = nodes.add("ReduceMax", [largest, last], f"{output}/largest", keepdims=1)
    least = nodes.number("least/scale", LEAST_SCALE)
    largest = nodes.add("Max", [largest, least], f"{output}/positive")
    scale = nodes.add("Mul", [largest, nodes.number("one/127th", 1 / 127)], f"{output}/scale")
    steps = nodes.add("Div", [blocks, scale], f"{output}/steps")
    steps = nodes.add("Round", [steps], f"{output}/whole")
    rounded = nodes.add("Mul", [steps, scale], f"{output}/rounded")
    rounded = nodes.add("Reshape", [rounded, row_shape(nodes, width)], f"{output}/first")
    rest = nodes.add("Sub", [rows, rounded], f"{output}/second")
    both = nodes.add("Concat", [rounded, rest], f"{output}/parts", axis=0)
    stacked = _coded_product(building, path, both, f"{output}/stacked", weight, "", WHOLE_NUMBERS)
    nodes.halves(stacked, [f"{output}/of-first", f"{output}/of-second"])
    return nodes.add("Add", [f"{output}/of-first", f"{output}/of-second"], output)


def _sums(building: Products, output: str) -> None:
    """Sums over the blocks of rows, (tokens, width / 32)."""
    nodes, rows = building.nodes, output.removesuffix("/sums")
    shape = nodes.numbers("blocks", [0, -1, BLOCK])
    inner = nodes.add("Reshape", [rows, shape], f"{rows}/blocks")
    nodes.add("ReduceSum", [inner, nodes.numbers("last", [-1])], output, keepdims=0)


def scaled(nodes: Nodes, value: str, scale: float, output: str) -> str:
    """``value`` times a constant; itself where that is 1."""
    if scale == 1:
        return value
    return nodes.add("Mul", [value, nodes.number(f"{output}/by", scale)], output)


def codes_of(nodes: Nodes, path: str, weight: CodedWeight) -> tuple[str, str]:
    """Codes and scales of a matrix, the same tensors wherever it is used."""
    codes = nodes.tensor(f"{path}.qweight", weight.codes)
    return codes, nodes.tensor(f"{path}.scales", weight.scales)


def row_shape(nodes: Nodes, width: int) -> str:
    """The shape (tokens, width)."""
    return nodes.numbers(f"rows/{width}", [-1, width])
