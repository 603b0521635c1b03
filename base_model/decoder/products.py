"""Products with a model's matrices, in codes or floats, and the low-rank branches beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Self

import numpy as np
from onnx import TensorProto

from base_model.decoder.nodes import Nodes
from base_model.decoder.shape import DecoderShape
from base_model.decoder.source import CodedWeight, Floats
from protocol.forms import DOWN, UP
from protocol.joined import low_rank_slots, ranks_slot
from protocol.manifest import Slot

BLOCK = 32
# Accuracy levels of MatMulNBits: inputs as they are, or rounded to 8 bits, a block with a scale of its own.
FLOATS, WHOLE_NUMBERS = 0, 4
# Inputs from which on a product with 4 bits at level 0 falls to half its speed, and as many as are fast.
WIDE, PIECE = 1024, 768
LEAST_SCALE = 1e-30  # of a block of zeros
Stored = CodedWeight | Floats | np.ndarray[Any, np.dtype[np.float16]]
Stores = Mapping[str, Stored]


@dataclass(kw_only=True)
class Products:
    """A graph on its way: the tensors by their names, and what has been computed already.

    ``sizes``: (out, in) of every matrix by its module's path. ``derivable``: only of operators that have a
    derivative: what a block adds and the next norm are two, and products read their rows as floats.
    Elsewhere ``level`` says what products with codes read: FLOATS, or WHOLE_NUMBERS to round them.
    ``ranked``: linears that are one product have one low-rank branch, and an input says which ranks are a
    row's own. (docs/adr/0060)
    ``read``: by the path of a matrix, the rows that it multiplies.
    """

    sizes: Mapping[str, tuple[int, int]]
    weights: Stores
    nodes: Nodes
    slots: bool
    derivable: bool = False
    ranked: bool = False
    level: int = FLOATS
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


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A matrix (out, ``width``) in codes as a product takes it.

    ``path``: of its module, or of the one that several would be. ``bias``: name of a tensor, or "".
    ``level``: what is multiplied, FLOATS or WHOLE_NUMBERS.
    """

    path: str
    weight: CodedWeight
    width: int
    bias: str = ""
    level: int = FLOATS


def linear(building: Products, path: str, rows: str) -> str:
    """``rows`` through a linear and, with slots, its low-rank branch."""
    output = rows_of(path)
    base = f"{output}/base" if building.slots else output
    product(building, path, rows, base, building.level)
    return _branch(building, path, rows, base) if building.slots else base


def linears(building: Products, joined: str, paths: list[str], rows: str) -> list[str]:
    """The same of several that read the same: where they are alike one product, of the path ``joined``."""
    nodes, stores = building.nodes, building.weights
    whole = None if building.derivable else _joined([stores[f"{path}.weight"] for path in paths])
    biases = [np.asarray(stores[n]) for path in paths if (n := f"{path}.bias") in stores]
    if whole is None or len(biases) not in (0, len(paths)):
        return [linear(building, path, rows) for path in paths]
    bias = nodes.tensor(f"{joined}.bias", np.concatenate(biases)) if biases else ""
    width, level = building.sizes[paths[0]][1], building.level
    codes = Codes(path=joined, weight=whole, width=width, bias=bias, level=level)
    every = _coded_product(building, codes, rows, f"{joined}/rows")
    if building.slots and building.ranked:
        every = _joined_branch(building, joined, paths, rows, every)
    outputs = [f"{path}/rows/base" for path in paths]
    nodes.split(every, outputs, tuple(building.sizes[path][0] for path in paths))
    if not building.slots or building.ranked:
        return outputs
    return [_branch(building, path, rows, base) for path, base in zip(paths, outputs, strict=True)]


def _joined(weights: list[Stored]) -> CodedWeight | None:
    """One matrix above the other; None where they are not of one kind."""
    coded = [weight for weight in weights if isinstance(weight, CodedWeight)]
    if len(coded) < len(weights) or len({(w.bits, w.offsets is None) for w in coded}) > 1:
        return None
    offsets = [weight.offsets for weight in coded if weight.offsets is not None]
    return CodedWeight(
        bits=coded[0].bits,
        codes=np.concatenate([weight.codes for weight in coded]),
        scales=np.concatenate([weight.scales for weight in coded]),
        offsets=np.concatenate(offsets) if offsets else None,
    )


def _branch(building: Products, path: str, rows: str, base: str) -> str:
    """A linear's output with what its low-rank factors add."""
    nodes, output = building.nodes, rows_of(path)
    for slot in low_rank_slots(path, *building.sizes[path]):
        nodes.slot(slot.name, slot.shape, _empty(slot))
    narrow = nodes.add("MatMul", [rows, path + DOWN], f"{output}/down")
    if building.ranked:
        narrow = nodes.add("Mul", [narrow, _own_ranks(nodes, 1)], f"{output}/own")
    return nodes.add("Gemm", [narrow, path + UP, base], output)


def _joined_branch(building: Products, joined: str, paths: list[str], rows: str, base: str) -> str:
    """The output of a product of several linears with what their low-rank factors add.

    It is a third of the nodes; the second factor has zeros where a linear's ranks are not another's.
    """
    nodes, sizes = building.nodes, [building.sizes[path] for path in paths]
    out, width = sum(size[0] for size in sizes), sizes[0][1]
    parts = [slot for path in paths for slot in low_rank_slots(path, *building.sizes[path])]
    nodes.joined_slots(joined, paths, parts)
    for slot in low_rank_slots(joined, out, width):
        nodes.optional(slot.name, slot.shape, _empty(slot))
    narrow = nodes.add("MatMul", [rows, joined + DOWN], f"{joined}/down")
    narrow = nodes.add("Mul", [narrow, _own_ranks(nodes, len(paths))], f"{joined}/own")
    return nodes.add("Gemm", [narrow, joined + UP, base], f"{joined}/adapted")


def _empty(slot: Slot) -> Any:
    return np.zeros([size if isinstance(size, int) else 0 for size in slot.shape], np.float32)


def _own_ranks(nodes: Nodes, linears: int) -> str:
    """The input that says which ranks are a row's own: all of them, unless a caller says otherwise."""
    slot = ranks_slot(linears)
    return nodes.optional(slot.name, slot.shape, np.ones((1, 1), np.float32))


def rows_of(path: str) -> str:
    """What a linear gives, in the graph."""
    return f"{path}/rows"


def product(building: Products, path: str, rows: str, output: str, level: int = FLOATS) -> str:
    """``rows`` times a matrix (out, in), plus its bias."""
    building.read[path] = rows
    nodes, weight = building.nodes, building.weights[f"{path}.weight"]
    stored = building.weights.get(f"{path}.bias")
    assert not isinstance(stored, CodedWeight)
    bias = "" if stored is None else nodes.tensor(f"{path}.bias", stored)
    if isinstance(weight, CodedWeight):
        width = building.sizes[path][1]
        codes = Codes(path=path, weight=weight, width=width, bias=bias, level=level)
        return _coded_product(building, codes, rows, output)
    name = nodes.tensor(f"{path}.weight", weight)
    if weight.dtype == np.float16:  # ONNX Runtime widens it once, when it opens the file
        name = nodes.add("Cast", [name], f"{name}/wide", to=TensorProto.FLOAT)
    return nodes.add("Gemm", [rows, name, *([bias] if bias else [])], output, transB=1)


def _coded_product(building: Products, codes: Codes, rows: str, output: str) -> str:
    """The same of codes. Offsets of blocks multiply sums over blocks: a product of 1/32 of the size."""
    nodes, offsets = building.nodes, codes.weight.offsets
    product = output if offsets is None else f"{output}/codes"
    slow = codes.level == FLOATS and codes.width % BLOCK == 0 and not building.derivable
    if slow and codes.weight.bits == 8:
        _in_two_parts(building, codes, rows, product)
    elif slow and codes.width >= WIDE:
        _in_pieces(building, codes, rows, product)
    else:
        _multiplied(nodes, codes, rows, product, codes.level, codes.bias)
    if offsets is None:
        return product
    sums = building.once(f"{rows}/sums", _sums)
    name = nodes.tensor(f"{codes.path}.offsets", offsets)
    return nodes.add("Gemm", [sums, name, product], output, transB=1)


def _in_two_parts(building: Products, codes: Codes, rows: str, output: str) -> None:
    """``rows`` times a matrix by whole numbers, as good as in floats. (docs/adr/0053)

    MatMulNBits at level 4 rounds each block of its input to 127ths of its largest number. Here the rows are
    stacked on what that rounding leaves of them: the first part is exact, the error is the second's, a 127th
    of a 127th. The matrix is read once for both.
    """
    nodes = building.nodes
    both = building.once(f"{rows}/parts", partial(_parts, codes.width))
    _multiplied(nodes, codes, both, f"{output}/stacked", WHOLE_NUMBERS)
    first, second = f"{output}/of-first", f"{output}/of-second"
    nodes.halves(f"{output}/stacked", [first, second])
    if codes.bias:
        second = nodes.add("Add", [second, codes.bias], f"{second}/biased")
    nodes.add("Add", [first, second], output)


def _in_pieces(building: Products, codes: Codes, rows: str, output: str) -> None:
    """The sum of products of some columns each, which are narrow. (docs/adr/0054)"""
    nodes, weight = building.nodes, codes.weight
    blocks = codes.width // BLOCK
    count = -(-codes.width // PIECE)
    bounds = [blocks * number // count for number in range(count + 1)]
    sizes = tuple(BLOCK * (end - start) for start, end in pairwise(bounds))
    building.once(f"{rows}/pieces", partial(_pieces, sizes))
    names = [f"{rows}/pieces/{number}" for number in range(count)]
    for number, (start, end) in enumerate(pairwise(bounds)):
        part = CodedWeight(
            bits=weight.bits,
            codes=np.ascontiguousarray(weight.codes[:, start:end]),
            scales=np.ascontiguousarray(weight.scales[:, start:end]),
        )
        piece = Codes(path=f"{codes.path}.{number}", weight=part, width=sizes[number])
        bias = "" if number else codes.bias
        _multiplied(nodes, piece, names[number], f"{output}/{number}", codes.level, bias)
    nodes.add("Sum", [f"{output}/{number}" for number in range(count)], output)


def _multiplied(
    nodes: Nodes, codes: Codes, rows: str, output: str, level: int, bias: str = ""
) -> None:
    """The operator itself: ``rows`` times codes and scales, plus the ``bias``."""
    nodes.add_contrib(
        "MatMulNBits",
        [rows, *codes_of(nodes, codes.path, codes.weight), *(["", "", bias] if bias else [])],
        [output],
        K=codes.width,
        N=len(codes.weight.codes),
        bits=codes.weight.bits,
        block_size=BLOCK,
        accuracy_level=level,
    )


def _pieces(sizes: tuple[int, ...], building: Products, output: str) -> None:
    """Columns of rows, as many as ``sizes`` say, each piece under a number behind ``output``."""
    names = [f"{output}/{number}" for number in range(len(sizes))]
    building.nodes.split(output.removesuffix("/pieces"), names, sizes)


def _parts(width: int, building: Products, output: str) -> None:
    """Rows of whole numbers times their blocks' scales, and below them what is left, (2 * tokens, width)."""
    nodes, rows = building.nodes, output.removesuffix("/parts")
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
    nodes.add("Concat", [rounded, rest], output, axis=0)


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
