"""Reverse mode on ONNX graphs: the gradients of a scalar as more nodes of the same graph.

A rule per operator (``rules``) says what the gradient of its output means for its inputs; what is here
walks the graph backwards once, and only where a wanted tensor has a part in the scalar. It is ordinary
reverse accumulation (Griewank and Walther, Evaluating Derivatives, chapter 3) on the graph that answers: what
is trained is what is served, no framework is asked, and whoever has the base's graph writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

from base_model.programs.rules import RULES
from base_model.programs.step import (
    Gradients,
    Product,
    Shapes,
    Spread,
    Step,
    UndifferentiableError,
)
from base_model.programs.tape import DETACHED, Tape

# What these say of a tensor does not change with its values.
CONSTANT = frozenset({"Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def append_gradients(
    graph: onnx.GraphProto,
    *,
    scalar: str,
    wanted: Iterable[str],
    shapes: Shapes,
    weights: Callable[[onnx.NodeProto, str], str],
    prefix: str = "gradient.",
    seed: str = "",
) -> dict[str, str]:
    """Write the gradients of ``scalar`` and return their names by wanted tensor.

    Args:
        graph: in topological order; grows.
        scalar: a float32 tensor without dimensions.
        wanted: tensors that the scalar depends on.
        shapes: of every float tensor between them; a dimension is a number or any name.
        seed: the gradient of ``scalar``, which may then be any tensor; without it a scalar's own, 1.
        weights: writes the float weight [N, K] of a MatMulNBits node, given its output's gradient; its name.

    Raises UndifferentiableError for an operator without a rule, and for a wanted tensor without a part.
    """
    tape = Tape(graph, prefix)
    wanted = list(wanted)
    forward = list(graph.node)
    active = set(wanted)
    for node in forward:
        constant = node.op_type in CONSTANT or node.output[0].startswith(DETACHED)
        if not constant and any(name in active for name in node.input):
            active.update(node.output)
    sums: dict[str, str | Spread] = {scalar: seed or tape.constant(1.0)}
    for node in reversed(forward):
        gradient = _gradient(tape, sums, node)
        if gradient is None or node.output[0] not in active:
            continue
        indices = frozenset(i for i, name in enumerate(node.input) if name in active)
        rule = RULES.get(node.op_type)
        if rule is None:
            raise UndifferentiableError(f"{node.op_type} has no derivative here")
        parts = _through_reshape(tape, node, gradient, shapes)
        if parts is None:
            whole = _written(tape, gradient)
            parts = rule(Step(tape, node, whole, indices, shapes, weights))
        for index, part in parts.items():
            _add(tape, sums, node.input[index], part)
    if missing := [name for name in wanted if name not in sums]:
        raise UndifferentiableError(f"{missing[0]} has no part in {scalar}")
    return {name: _written(tape, sums[name]) for name in wanted}


def _through_reshape(
    tape: Tape, node: onnx.NodeProto, gradient: str | Spread, shapes: Shapes
) -> Gradients | None:
    """A gradient that is not written yet goes through the Reshape of rows to blocks."""
    if node.op_type != "Reshape" or not isinstance(gradient, Spread):
        return None
    sizes = [-1 if isinstance(size, str) else size for size in shapes[node.input[0]]]
    return {0: gradient.reshaped(tuple(sizes))} if sizes.count(-1) <= 1 else None


def _written(tape: Tape, gradient: str | Spread) -> str:
    return gradient.write(tape, None) if isinstance(gradient, Spread) else gradient


def _gradient(
    tape: Tape, sums: dict[str, str | Spread], node: onnx.NodeProto
) -> str | Spread | None:
    """That of a node's output; of a Split, whose outputs are its input's parts, that of the whole."""
    if node.op_type != "Split":
        return sums.get(node.output[0])
    if not any(name in sums for name in node.output):
        return None
    parts = [
        _written(tape, sums[name]) if name in sums else tape.op("Mul", name, tape.constant(0.0))
        for name in node.output
    ]
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    return tape.op("Concat", *parts, axis=axis)


def _add(
    tape: Tape, sums: dict[str, str | Spread], name: str, part: str | Product | Spread
) -> None:
    if name not in sums:
        sums[name] = part.write(tape, None) if isinstance(part, Product) else part
        return
    before = _written(tape, sums[name])
    sums[name] = tape.op("Add", before, part) if isinstance(part, str) else part.write(tape, before)
