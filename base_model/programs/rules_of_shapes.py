"""Gradients of operators that move values, copy them or add them up: one function per operator."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from base_model.programs.step import Gradients, Rule, Spread, Step, UndifferentiableError

LAST = 2**62  # behind the end of any axis


def _reshape(step: Step) -> Gradients:
    """Also of Squeeze, Unsqueeze and Flatten: the order of values stays."""
    return {0: step.op("Reshape", step.gradient, step.reshaping(step.node.input[0]))}


def _transpose(step: Step) -> Gradients:
    order = list(step.attribute("perm", range(step.rank(step.node.input[0]))[::-1]))
    return {
        0: step.op("Transpose", step.gradient, perm=[order.index(i) for i in range(len(order))])
    }


def _expand(step: Step) -> Gradients:
    return {0: step.like(0, step.gradient)}


def _concat(step: Step) -> Gradients:
    """Each input gets its part back; sizes along the axis are read while it runs."""
    axis = step.attribute("axis")
    start, out = step.tape.axes(0), Gradients()
    for index, name in enumerate(step.node.input):
        size = step.op("Gather", step.op("Shape", name), step.tape.axes(axis), axis=0)
        stop = step.op("Add", start, size)
        if index in step.wanted:
            out[index] = step.op("Slice", step.gradient, start, stop, step.tape.axes(axis))
        start = stop
    return out


def _slice(step: Step) -> Gradients:
    """Zeros where nothing was taken, along one axis that is a constant."""
    if len(step.node.input) != 4:
        raise UndifferentiableError("Slice in steps, or without its axis")
    data, start, stop, axes = step.node.input
    constants = {item.name: item for item in step.tape.graph.initializer}
    axis = numpy_helper.to_array(constants[axes]).tolist() if axes in constants else []
    if len(axis) != 1:
        raise UndifferentiableError("Slice along more than one axis")
    before = step.op("Slice", data, step.tape.axes(0), start, axes)
    behind = step.op("Slice", data, stop, step.tape.axes(LAST), axes)
    zero = step.tape.constant(0.0)
    ends = [step.op("Mul", part, zero) for part in (before, behind)]
    return {0: step.op("Concat", ends[0], step.gradient, ends[1], axis=axis[0])}


def _gather(step: Step) -> Gradients:
    """By one index, the token of a pooling: zeros elsewhere."""
    data, index = step.node.input
    if 1 in step.wanted or step.rank(index) != 0:
        raise UndifferentiableError("Gather by more than one index")
    axis = step.attribute("axis", 0) % step.rank(data)
    size = step.op("Gather", step.op("Shape", data), step.tape.constant(axis, np.int64), axis=0)
    place = step.op("Range", step.tape.constant(0, np.int64), size, step.tape.constant(1, np.int64))
    # An index below 0 counts from the end: the remainder has the sign of the size.
    here = step.op("Cast", step.op("Equal", place, step.op("Mod", index, size)), to=1)
    later = step.rank(data) - axis - 1
    if later:
        here = step.op("Unsqueeze", here, step.tape.axes(*range(1, later + 1)))
    row = step.op("Unsqueeze", step.gradient, step.tape.axes(axis))
    return {0: step.op("Mul", row, here)}


def _gather_elements(step: Step) -> Gradients:
    data, index = step.node.input
    shape = step.op("Shape", data)
    zeros = step.op("Expand", step.tape.constant(0.0), shape)
    return {
        0: step.op(
            "ScatterElements",
            zeros,
            index,
            step.gradient,
            axis=step.attribute("axis", 0),
            reduction="add",
        )
    }


def _reduce_sum(step: Step) -> Gradients:
    value, sizes = step.gradient, tuple(step.shapes[step.node.input[0]])
    if not step.attribute("keepdims", 1) and step.over_last() and isinstance(sizes[-1], int):
        deep = step.op("Unsqueeze", value, step.tape.axes(-1))
        return {0: Spread(deep, (*(1 for _ in sizes[:-1]), sizes[-1]), sizes)}
    if not step.attribute("keepdims", 1) and len(step.node.input) > 1:
        value = step.op("Unsqueeze", value, step.node.input[1])
    return {0: step.op("Expand", value, step.op("Shape", step.node.input[0]))}


def _same(step: Step) -> Gradients:
    return {0: step.gradient}


SHAPE_RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _same,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "ReduceSum": _reduce_sum,
    "Identity": _same,
}
