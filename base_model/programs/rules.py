"""What the gradient of an operator's output means for its inputs: one function per operator.

Here are those that compute; those that only move values are in :mod:`base_model.programs.rules_of_shapes`.

The weight of a quantised product is expanded where its gradient is needed; both directions read the same
bytes of codes.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from base_model.programs.rules_of_shapes import SHAPE_RULES
from base_model.programs.step import (
    Gradients,
    Product,
    Rule,
    Step,
    UndifferentiableError,
)
from base_model.programs.tape import MICROSOFT

ROOT_HALF, HALF, DENSITY = 2**-0.5, 0.5, (2 * np.pi) ** -0.5
CUBIC, SLOPE = 0.044715, (2 / np.pi) ** 0.5  # of GELU by tanh

# -- products ---------------------------------------------------------------------------------------


def _gemm(step: Step) -> Gradients:
    """y = op(a) op(b) + c; alpha and beta are 1."""
    if any(step.attribute(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        raise UndifferentiableError("Gemm with alpha or beta")
    a, b = step.node.input[:2]
    a_turned, b_turned = (bool(step.attribute(name, 0)) for name in ("transA", "transB"))
    dy, out = step.gradient, Gradients()
    if 0 in step.wanted:
        out[0] = Product(b, dy, b_turned, True) if a_turned else Product(dy, b, False, not b_turned)
    if 1 in step.wanted:
        out[1] = Product(dy, a, True, a_turned) if b_turned else Product(a, dy, not a_turned, False)
    if 2 in step.wanted:
        out[2] = step.like(2, dy)
    return out


def _matmul(step: Step) -> Gradients:
    a, b = step.node.input
    dy, out = step.gradient, Gradients()
    if min(step.rank(a), step.rank(b)) < 2:
        raise UndifferentiableError("MatMul with a vector")
    if step.rank(a) == step.rank(b) == 2:
        parts = {0: Product(dy, b, False, True), 1: Product(a, dy, True, False)}
        return {index: part for index, part in parts.items() if index in step.wanted}
    if 0 in step.wanted:
        out[0] = step.like(0, step.op("FusedMatMul", dy, b, domain=MICROSOFT, transB=1))
    if 1 in step.wanted:
        out[1] = step.like(1, step.op("FusedMatMul", a, dy, domain=MICROSOFT, transA=1))
    return out


def _fused_matmul(step: Step) -> Gradients:
    """y = alpha a b^T: matrices of the same batch."""
    a, b = step.node.input
    if not step.attribute("transB", 0) or any(
        step.attribute(name, 0) for name in ("transA", "transBatchA", "transBatchB")
    ):
        raise UndifferentiableError("FusedMatMul other than a b^T")
    alpha, out = step.attribute("alpha", 1.0), Gradients()
    if 0 in step.wanted:
        part = step.op("FusedMatMul", step.gradient, b, domain=MICROSOFT, alpha=alpha)
        out[0] = step.like(0, part)
    if 1 in step.wanted:
        part = step.op("FusedMatMul", step.gradient, a, domain=MICROSOFT, alpha=alpha, transA=1)
        out[1] = step.like(1, part)
    return out


def _quantised(step: Step) -> Gradients:
    """y = x W^T + bias, W [N, K] from codes."""
    out = Gradients()
    if 0 in step.wanted:
        weight = step.weights(step.node, step.gradient)
        if step.rank(step.node.input[0]) == 2:
            out[0] = Product(step.gradient, weight)
        else:
            out[0] = step.op("MatMul", step.gradient, weight)
    if 5 in step.wanted:
        out[5] = step.like(5, step.gradient)
    return out


# -- arithmetic -------------------------------------------------------------------------------------


def _add_rule(step: Step) -> Gradients:
    return {index: step.like(index, step.gradient) for index in step.wanted}


def _sub(step: Step) -> Gradients:
    out = Gradients()
    if 0 in step.wanted:
        out[0] = step.like(0, step.gradient)
    if 1 in step.wanted:
        out[1] = step.like(1, step.op("Neg", step.gradient))
    return out


def _mul(step: Step) -> Gradients:
    return {
        index: step.like(index, step.op("Mul", step.gradient, step.node.input[1 - index]))
        for index in step.wanted
    }


def _div(step: Step) -> Gradients:
    b = step.node.input[1]
    out = Gradients()
    if 0 in step.wanted:
        out[0] = step.like(0, step.op("Div", step.gradient, b))
    if 1 in step.wanted:
        share = step.op("Div", step.op("Mul", step.gradient, step.node.output[0]), b)
        out[1] = step.like(1, step.op("Neg", share))
    return out


def _neg(step: Step) -> Gradients:
    return {0: step.op("Neg", step.gradient)}


def _sqrt(step: Step) -> Gradients:
    twice = step.op("Add", step.node.output[0], step.node.output[0])
    return {0: step.op("Div", step.gradient, twice)}


def _pow(step: Step) -> Gradients:
    """x^p of a constant p: its slope is p x^(p - 1)."""
    x, exponent = step.node.input
    if 1 in step.wanted:
        raise UndifferentiableError("Pow by what is trained")
    lower = step.op("Pow", x, step.op("Sub", exponent, step.tape.constant(1.0)))
    return {0: step.op("Mul", step.gradient, step.op("Mul", exponent, lower))}


# -- activations ------------------------------------------------------------------------------------


def _tanh(step: Step) -> Gradients:
    y = step.node.output[0]
    slope = step.op("Sub", step.tape.constant(1.0), step.op("Mul", y, y))
    return {0: step.op("Mul", step.gradient, slope)}


def _relu(step: Step) -> Gradients:
    positive = step.op(
        "Cast", step.op("Greater", step.node.input[0], step.tape.constant(0.0)), to=1
    )
    return {0: step.op("Mul", step.gradient, positive)}


def _sigmoid(step: Step) -> Gradients:
    """y (1 - y), in an order in which nothing is computed before the gradient is there."""
    y = step.node.output[0]
    part = step.op("Mul", step.gradient, y)
    return {0: step.op("Sub", part, step.op("Mul", part, y))}


def _silu(step: Step) -> Gradients:
    """y = x s(x): its slope is s + y (1 - s), so dx = d s + y (d - d s). The sigmoid is not kept."""
    if step.attribute("alpha") != 1.0:
        raise UndifferentiableError("QuickGelu with alpha")
    share = step.op("Mul", step.gradient, step.op("Sigmoid", step.node.input[0]))
    rest = step.op("Mul", step.op("Sub", step.gradient, share), step.node.output[0])
    return {0: step.op("Add", share, rest)}


def _gelu(step: Step) -> Gradients:
    """x Φ(x): its slope is Φ(x) + x φ(x)."""
    x, constant = step.node.input[0], step.tape.constant
    if step.attribute("approximate", b"none") in (b"tanh", "tanh"):
        return _gelu_by_tanh(step)
    erf = step.op("Erf", step.op("Mul", x, constant(ROOT_HALF)))
    below = step.op("Add", step.op("Mul", erf, constant(HALF)), constant(HALF))
    exponent = step.op("Mul", step.op("Mul", x, x), constant(-HALF))
    density = step.op("Mul", step.op("Exp", exponent), constant(DENSITY))
    slope = step.op("Add", below, step.op("Mul", x, density))
    return {0: step.op("Mul", step.gradient, slope)}


def _gelu_by_tanh(step: Step) -> Gradients:
    """x (1 + t) / 2, t = tanh(c (x + a x^3)): its slope is (1 + t) / 2 + x (1 - t^2) c (1 + 3 a x^2) / 2."""
    x, constant = step.node.input[0], step.tape.constant
    square = step.op("Mul", x, x)
    inner = step.op("Add", step.op("Mul", square, constant(CUBIC * SLOPE)), constant(SLOPE))
    tanh = step.op("Tanh", step.op("Mul", x, inner))
    rest = step.op(
        "Sub", constant(HALF), step.op("Mul", step.op("Mul", tanh, tanh), constant(HALF))
    )
    steep = step.op("Add", step.op("Mul", square, constant(3 * CUBIC * SLOPE)), constant(SLOPE))
    curved = step.op("Mul", step.op("Mul", x, rest), steep)
    below = step.op("Add", step.op("Mul", tanh, constant(HALF)), constant(HALF))
    return {0: step.op("Mul", step.gradient, step.op("Add", below, curved))}


def _erf(step: Step) -> Gradients:
    x, constant = step.node.input[0], step.tape.constant
    bell = step.op("Exp", step.op("Neg", step.op("Mul", x, x)))
    slope = step.op("Mul", bell, constant(2 * np.pi**-0.5))
    return {0: step.op("Mul", step.gradient, slope)}


def _softmax(step: Step) -> Gradients:
    y, axis = step.node.output[0], step.attribute("axis", -1)
    weighted = step.op("Mul", step.gradient, y)
    total = step.op("ReduceSum", weighted, step.tape.axes(axis), keepdims=1)
    return {0: step.op("Mul", step.op("Sub", step.gradient, total), y)}


def _log_softmax(step: Step) -> Gradients:
    total = step.op(
        "ReduceSum", step.gradient, step.tape.axes(step.attribute("axis", -1)), keepdims=1
    )
    spread = step.op("Mul", step.op("Exp", step.node.output[0]), total)
    return {0: step.op("Sub", step.gradient, spread)}


def _layer_norm(step: Step) -> Gradients:
    """Over the last axis. Mean and inverse deviation are outputs that the forward node can give."""
    node, dy, last = step.node, step.gradient, step.tape.axes(-1)
    if step.attribute("axis", -1) not in (-1, step.rank(node.input[0]) - 1):
        raise UndifferentiableError("LayerNormalization over more than the last axis")
    while len(node.output) < 3:
        node.output.append(f"{node.output[0]}/{('mean', 'inverse')[len(node.output) - 1]}")
    x, (_, mean, inverse) = node.input[0], node.output
    normal = step.op("Mul", step.op("Sub", x, mean), inverse)
    out = Gradients()
    if 0 in step.wanted:
        scaled = step.op("Mul", dy, node.input[1])
        along = step.op("ReduceMean", step.op("Mul", scaled, normal), last, keepdims=1)
        centred = step.op("Sub", scaled, step.op("ReduceMean", scaled, last, keepdims=1))
        out[0] = step.op("Mul", step.op("Sub", centred, step.op("Mul", normal, along)), inverse)
    if 1 in step.wanted:
        out[1] = step.like(1, step.op("Mul", dy, normal))
    if 2 in step.wanted:
        out[2] = step.like(2, dy)
    return out


def _rms_norm(step: Step) -> Gradients:
    """Over the last axis: y = x w / rms(x); 1 / rms is an output that the forward node can give."""
    node, dy, last = step.node, step.gradient, step.tape.axes(-1)
    if step.attribute("axis", -1) not in (-1, step.rank(node.input[0]) - 1):
        raise UndifferentiableError("SimplifiedLayerNormalization over more than the last axis")
    if len(node.output) < 2:
        node.output.append(f"{node.output[0]}/inverse")
    (x, weight), inverse, out = node.input, node.output[1], Gradients()
    if 0 in step.wanted:
        scaled = step.op("Mul", step.op("Mul", dy, weight), inverse)
        along = step.op("ReduceMean", step.op("Mul", scaled, x), last, keepdims=1)
        along = step.op("Mul", along, step.op("Mul", inverse, inverse))
        out[0] = step.op("Sub", scaled, step.op("Mul", x, along))
    if 1 in step.wanted:
        out[1] = step.like(1, step.op("Mul", dy, step.op("Mul", x, inverse)))
    return out


def _rotary(step: Step) -> Gradients:
    """A rotation: its transpose turns the other way."""
    if step.wanted != {0}:
        raise UndifferentiableError("RotaryEmbedding by what is trained")
    _, positions, cosines, sines = step.node.input
    attributes = {item.name: helper.get_attribute_value(item) for item in step.node.attribute}
    back = (step.gradient, positions, cosines, step.op("Neg", sines))
    return {0: step.op("RotaryEmbedding", *back, domain=MICROSOFT, **attributes)}


RULES: dict[str, Rule] = {
    **SHAPE_RULES,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _fused_matmul,
    "MatMulNBits": _quantised,
    "Add": _add_rule,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Sqrt": _sqrt,
    "Pow": _pow,
    "Tanh": _tanh,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "QuickGelu": _silu,
    "Gelu": _gelu,
    "Erf": _erf,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "RotaryEmbedding": _rotary,
}
