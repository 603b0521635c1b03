"""Every operator's derivative against torch's autograd, on the same numbers, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from base_model.programs.answering import infer_shapes
from base_model.programs.derivatives import append_gradients
from base_model.programs.rules import RULES
from base_model.programs.step import UndifferentiableError
from base_model.programs.tape import Tape

Fn = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operator, the shapes of its float inputs, and torch's spelling of it."""

    kind: str
    shapes: list[tuple[int, ...]]
    torch: Fn
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: list[np.ndarray] = field(default_factory=list)  # further inputs, not differentiated
    positive: bool = False
    shape: tuple[int, ...] = ()  # of its output, where that cannot be inferred


def ints(*values: int | list[int]) -> np.ndarray:
    return np.array(values, np.int64)


ANGLES = torch.arange(16.0)[:, None] * torch.tensor([1.0, 0.3, 0.05])
TURNS = ANGLES.cos(), ANGLES.sin()


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows (rows, heads, tokens, 6) whose halves are turned by their positions (rows, tokens)."""
    cosine, sine = (table[positions][:, None] for table in TURNS)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


CASES = [
    Case(kind="Gemm", shapes=[(3, 4), (4, 5)], torch=torch.matmul),
    Case(
        kind="Gemm",
        shapes=[(3, 4), (5, 4), (5,)],
        torch=lambda a, b, c: a @ b.T + c,
        attributes={"transB": 1},
    ),
    Case(
        kind="Gemm",
        shapes=[(4, 3), (4, 5), (3, 5)],
        torch=lambda a, b, c: a.T @ b + c,
        attributes={"transA": 1},
    ),
    Case(
        kind="Gemm",
        shapes=[(4, 3), (5, 4)],
        torch=lambda a, b: a.T @ b.T,
        attributes={"transA": 1, "transB": 1},
    ),
    Case(kind="MatMul", shapes=[(3, 4), (4, 5)], torch=torch.matmul),
    Case(kind="MatMul", shapes=[(2, 3, 4, 5), (2, 3, 5, 6)], torch=torch.matmul),
    Case(kind="MatMul", shapes=[(2, 3, 4), (4, 5)], torch=torch.matmul),
    Case(
        kind="FusedMatMul",
        shapes=[(2, 3, 4, 5), (2, 3, 6, 5)],
        torch=lambda a, b: a @ b.mT * 0.25,
        attributes={"domain": "com.microsoft", "transB": 1, "alpha": 0.25},
        shape=(2, 3, 4, 6),
    ),
    Case(kind="Add", shapes=[(2, 3, 4), (2, 3, 4)], torch=torch.add),
    Case(kind="Add", shapes=[(2, 3, 4), (4,)], torch=torch.add),
    Case(kind="Add", shapes=[(2, 1, 4), (2, 3, 1)], torch=torch.add),
    Case(kind="Sub", shapes=[(2, 3), (3,)], torch=torch.sub),
    Case(kind="Mul", shapes=[(2, 3, 4), (4,)], torch=torch.mul),
    Case(kind="Mul", shapes=[(2, 3), ()], torch=torch.mul),
    Case(kind="Div", shapes=[(2, 3), (2, 1)], torch=torch.div, positive=True),
    Case(kind="Neg", shapes=[(2, 3)], torch=torch.neg),
    Case(kind="Sqrt", shapes=[(2, 3)], torch=torch.sqrt, positive=True),
    Case(
        kind="Pow",
        shapes=[(2, 3)],
        torch=lambda x: x**3,
        constants=[np.array(3, np.float32)],
    ),
    Case(kind="Tanh", shapes=[(2, 3)], torch=torch.tanh),
    Case(kind="Relu", shapes=[(4, 5)], torch=torch.relu),
    Case(kind="Sigmoid", shapes=[(2, 3)], torch=torch.sigmoid),
    Case(
        kind="QuickGelu",
        shapes=[(4, 5)],
        torch=torch.nn.functional.silu,
        attributes={"domain": "com.microsoft", "alpha": 1.0},
    ),
    Case(kind="Gelu", shapes=[(4, 5)], torch=torch.nn.functional.gelu),
    Case(
        kind="Gelu",
        shapes=[(4, 5)],
        torch=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        attributes={"approximate": "tanh"},
    ),
    Case(kind="Erf", shapes=[(4, 5)], torch=torch.erf),
    Case(kind="Softmax", shapes=[(3, 5)], torch=lambda x: x.softmax(-1), attributes={"axis": -1}),
    Case(
        kind="LogSoftmax",
        shapes=[(3, 5)],
        torch=lambda x: x.log_softmax(-1),
        attributes={"axis": -1},
    ),
    Case(
        kind="LayerNormalization",
        shapes=[(2, 3, 8), (8,), (8,)],
        torch=lambda x, w, b: torch.nn.functional.layer_norm(x, (8,), w, b, 1e-5),
        attributes={"axis": -1, "epsilon": 1e-5},
    ),
    Case(
        kind="SimplifiedLayerNormalization",
        shapes=[(2, 3, 8), (8,)],
        torch=lambda x, w: torch.nn.functional.rms_norm(x, (8,), w, 1e-5),
        attributes={"axis": -1, "epsilon": 1e-5},
    ),
    Case(
        kind="RotaryEmbedding",
        shapes=[(2, 3, 4, 6)],
        torch=lambda x: rotated(x, torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]])),
        attributes={"domain": "com.microsoft"},
        constants=[ints([0, 1, 2, 3], [5, 6, 7, 8]), *(table.numpy() for table in TURNS)],
    ),
    Case(
        kind="Reshape",
        shapes=[(2, 6)],
        torch=lambda x: x.reshape(3, 4),
        constants=[ints(3, 4)],
    ),
    Case(kind="Squeeze", shapes=[(2, 1, 3)], torch=lambda x: x.squeeze(1), constants=[ints(1)]),
    Case(kind="Unsqueeze", shapes=[(2, 3)], torch=lambda x: x.unsqueeze(0), constants=[ints(0)]),
    Case(kind="Flatten", shapes=[(2, 3, 4)], torch=lambda x: x.flatten(1), attributes={"axis": 1}),
    Case(
        kind="Transpose",
        shapes=[(2, 3, 4)],
        torch=lambda x: x.permute(2, 0, 1),
        attributes={"perm": [2, 0, 1]},
    ),
    Case(kind="Transpose", shapes=[(2, 3, 4)], torch=lambda x: x.permute(2, 1, 0)),
    Case(
        kind="Expand",
        shapes=[(2, 1, 4)],
        torch=lambda x: x.expand(2, 3, 4),
        constants=[ints(2, 3, 4)],
    ),
    Case(
        kind="Concat",
        shapes=[(2, 3), (2, 1), (2, 4)],
        torch=lambda *parts: torch.cat(parts, 1),
        attributes={"axis": 1},
    ),
    Case(
        kind="Gather",
        shapes=[(2, 3, 4)],
        torch=lambda x: x[:, 1],
        attributes={"axis": 1},
        constants=[np.array(1, np.int64)],
    ),
    Case(
        kind="Gather",
        shapes=[(2, 3, 4)],
        torch=lambda x: x[:, -1],
        attributes={"axis": 1},
        constants=[np.array(-1, np.int64)],
    ),
    Case(
        kind="GatherElements",
        shapes=[(3, 5)],
        torch=lambda x: x.gather(1, torch.tensor([[0], [4], [0]])),
        attributes={"axis": 1},
        constants=[np.array([[0], [4], [0]], np.int64)],
    ),
    Case(
        kind="Slice",
        shapes=[(2, 5, 3)],
        torch=lambda x: x[:, 1:3],
        constants=[ints(1), ints(3), ints(1)],
    ),
    Case(
        kind="Slice",
        shapes=[(2, 5)],
        torch=lambda x: x[:, -3:],
        constants=[ints(-3), ints(2**62), ints(-1)],
    ),
    Case(
        kind="ReduceSum",
        shapes=[(2, 3, 4)],
        torch=lambda x: x.sum(1),
        attributes={"keepdims": 0},
        constants=[ints(1)],
    ),
    Case(
        kind="ReduceSum",
        shapes=[(2, 3)],
        torch=lambda x: x.sum(),
        attributes={"keepdims": 0},
    ),
    *(
        Case(
            kind="ReduceSum",
            shapes=[(2, 3, 4)],
            torch=lambda x, keep=keep: x.sum(-1, keepdim=bool(keep)),
            attributes={"keepdims": keep},
            constants=[ints(last)],
        )
        for keep in (0, 1)
        for last in (-1, 2)
    ),
    Case(kind="Identity", shapes=[(2, 3)], torch=lambda x: x),
]


def model_of(case: Case, weights: np.ndarray) -> onnx.ModelProto:
    """The scalar ``sum(op(inputs) * weights)``."""
    names = [f"x{index}" for index in range(len(case.shapes))]
    constants = [f"c{index}" for index in range(len(case.constants))]
    graph = helper.make_graph(
        [helper.make_node(case.kind, names + constants, ["y"], **case.attributes)],
        "case",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, case.shapes, strict=True)
        ],
        [helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [])],
        [
            numpy_helper.from_array(value, name)
            for name, value in zip(constants, case.constants, strict=True)
        ],
    )
    if case.shape:
        graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, case.shape))
    tape = Tape(graph, "forward.")
    product = tape.op("Mul", "y", tape.constant(weights))
    graph.node.append(helper.make_node("ReduceSum", [product], ["scalar"], keepdims=0))
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def gradients_of(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], wanted: list[str] | None = None
) -> dict[str, np.ndarray]:
    """Of all that is fed, or of what is wanted."""
    wanted = wanted or list(feeds)
    names = append_gradients(
        model.graph,
        scalar="scalar",
        wanted=wanted,
        shapes=infer_shapes(model, {}),
        weights=lambda node, gradient: node.name,
    )
    for name in names.values():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(list(names.values()), feeds), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}{case.shapes}")
def test_a_gradient_is_autograds(case: Case) -> None:
    rng = np.random.default_rng(3)
    values = [rng.normal(size=shape).astype(np.float32) for shape in case.shapes]
    if case.positive:
        values = [np.abs(value) + np.float32(0.5) for value in values]
    leaves = [torch.from_numpy(value).requires_grad_() for value in values]
    y = case.torch(*leaves)
    weights = rng.normal(size=tuple(y.shape)).astype(np.float32)
    (y * torch.from_numpy(weights)).sum().backward()
    feeds = {f"x{index}": value for index, value in enumerate(values)}
    for (name, ours), leaf in zip(
        gradients_of(model_of(case, weights), feeds).items(), leaves, strict=True
    ):
        assert leaf.grad is not None
        assert ours.shape == tuple(leaf.grad.shape), name
        np.testing.assert_allclose(ours, leaf.grad.numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rows", [2, "rows"])
def test_a_gradient_that_is_the_same_along_blocks_is_added_to_others(
    rows: int | str, first: bool
) -> None:
    """Sums over blocks of x beside x itself, in either order: what spreads is added, or comes first."""
    rng = np.random.default_rng(4)
    x, by_sum, by_self = (rng.normal(size=(2, n)).astype(np.float32) for n in (6, 3, 6))
    sums = [
        helper.make_node("Reshape", ["x", "blocks"], ["inner"]),
        helper.make_node("ReduceSum", ["inner", "last"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "by_sum"], ["a"]),
        helper.make_node("ReduceSum", ["a"], ["left"], keepdims=0),
    ]
    itself = [
        helper.make_node("Mul", ["x", "by_self"], ["b"]),
        helper.make_node("ReduceSum", ["b"], ["right"], keepdims=0),
    ]
    graph = helper.make_graph(
        [
            *(sums + itself if first else itself + sums),
            helper.make_node("Add", ["left", "right"], ["scalar"]),
        ],
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 6])],
        [],
        [
            numpy_helper.from_array(value, name)
            for name, value in {
                "blocks": ints(0, -1, 2),
                "last": ints(-1),
                "by_sum": by_sum,
                "by_self": by_self,
            }.items()
        ],
    )
    versions = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    gradient = gradients_of(model, {"x": x})["x"]
    np.testing.assert_allclose(gradient, by_self + np.repeat(by_sum, 2, 1), rtol=1e-6)


def test_every_rule_has_a_case() -> None:
    assert set(RULES) == {case.kind for case in CASES} | {"MatMulNBits"}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            Case(kind="Gemm", shapes=[(2, 2), (2, 2)], torch=torch.relu, attributes={"alpha": 2.0}),
            "alpha",
        ),
        (
            Case(kind="Gather", shapes=[(3, 2)], torch=torch.relu, constants=[ints(0, 1)]),
            "one index",
        ),
        (
            Case(
                kind="LayerNormalization",
                shapes=[(2, 3), (2, 3)],
                torch=torch.relu,
                attributes={"axis": 0},
            ),
            "last axis",
        ),
        (
            Case(
                kind="FusedMatMul",
                shapes=[(2, 3), (3, 2)],
                torch=torch.relu,
                attributes={"domain": "com.microsoft"},
                shape=(2, 2),
            ),
            "other than a b",
        ),
        (
            Case(
                kind="QuickGelu",
                shapes=[(2, 3)],
                torch=torch.relu,
                attributes={"domain": "com.microsoft", "alpha": 1.5},
            ),
            "with alpha",
        ),
        (Case(kind="MatMul", shapes=[(2, 3), (3,)], torch=torch.relu), "with a vector"),
        (
            Case(kind="Slice", shapes=[(3, 2)], torch=torch.relu, constants=[ints(0), ints(1)]),
            "without its axis",
        ),
        (
            Case(
                kind="Slice",
                shapes=[(3, 2)],
                torch=torch.relu,
                constants=[ints(0, 0), ints(1, 1), ints(0, 1)],
            ),
            "more than one axis",
        ),
        (Case(kind="Pow", shapes=[(2,), (2,)], torch=torch.relu), "what is trained"),
        (Case(kind="MatMul", shapes=[(3,), (3, 2)], torch=torch.relu), "with a vector"),
        (Case(kind="Cos", shapes=[(2,)], torch=torch.cos), "Cos has no derivative"),
    ],
    ids=lambda value: value.kind if isinstance(value, Case) else "",
)
def test_what_has_no_rule_is_refused(case: Case, words: str) -> None:
    model = model_of(case, np.float32(1))
    feeds = {f"x{index}": np.zeros(shape, np.float32) for index, shape in enumerate(case.shapes)}
    with pytest.raises(UndifferentiableError, match=words):
        gradients_of(model, feeds)


def test_a_tensor_without_a_part_is_named() -> None:
    model = model_of(CASES[0], np.ones((3, 5), np.float32))
    with pytest.raises(UndifferentiableError, match="stranger has no part"):
        append_gradients(
            model.graph,
            scalar="scalar",
            wanted=["stranger"],
            shapes=infer_shapes(model, {}),
            weights=lambda node, gradient: node.name,
        )


def test_what_is_read_twice_gets_both_parts() -> None:
    """x * x + x: products and sums meet in one tensor."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "x"], ["square"]),
            helper.make_node("Add", ["square", "x"], ["y"]),
            helper.make_node("ReduceSum", ["y"], ["scalar"], keepdims=0),
        ],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.array([1.0, -2.0, 0.5], np.float32)
    np.testing.assert_allclose(gradients_of(model, {"x": x})["x"], 2 * x + 1)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Expand"])
@pytest.mark.parametrize("shape", [("n", "k"), ("m", 3), ("m", "k"), ("n", 1), (1, "k"), ("k",)])
def test_a_size_known_by_name_alone_may_be_one(kind: str, shape: tuple[int | str, ...]) -> None:
    """The other side is ("n", 3); of Expand, a shape whose sizes nobody knows beforehand."""
    for rows, m, k in ((4, 1, 1), (4, 4, 3), (1, 1, 1), (1, 1, 3)):
        known = {"n": rows, "m": m, "k": k}
        leaf = torch.full([known.get(str(size), size) for size in shape], 2.0, requires_grad=True)
        b = torch.full((rows, 3), 3.0)
        weights = torch.arange(1.0, 4.0) * torch.arange(1.0, rows + 1)[:, None]
        y = leaf.expand(rows, 3) if kind == "Expand" else getattr(torch, kind.lower())(leaf, b)
        (y * weights).sum().backward()
        second = np.array([rows, 3], np.int64) if kind == "Expand" else b.numpy()
        feeds = {"a": leaf.detach().numpy(), "b": second, "weights": weights.numpy()}
        ours = gradients_of(symbolic(kind, shape), feeds, wanted=["a"])["a"]
        assert leaf.grad is not None
        assert ours.shape == tuple(leaf.shape)
        np.testing.assert_allclose(ours, leaf.grad.numpy(), rtol=1e-6)


def symbolic(kind: str, shape: tuple[int | str, ...]) -> onnx.ModelProto:
    """The scalar ``sum(op(a, b) * weights)``, ``a`` of this shape."""
    b = (TensorProto.INT64, [2]) if kind == "Expand" else (TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(
        [
            helper.make_node(kind, ["a", "b"], ["y"]),
            helper.make_node("Mul", ["y", "weights"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["scalar"], keepdims=0),
        ],
        "symbolic",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("b", *b),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["n", 3]),
        ],
        [helper.make_tensor_value_info("scalar", TensorProto.FLOAT, [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
