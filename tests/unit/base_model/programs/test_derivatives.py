"""Every operator's derivative against torch's autograd, on the same numbers, through ONNX Runtime."""

from __future__ import annotations

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
from tests.unit.base_model.programs.derivative_cases import CASES, REFUSED, Case, ints


def model_of(case: Case, weights: np.ndarray) -> onnx.ModelProto:
    """The scalar ``sum(op(inputs) * weights)``."""
    names = [f"x{index}" for index in range(len(case.shapes))]
    constants = [f"c{index}" for index in range(len(case.constants))]
    graph = helper.make_graph(
        [helper.make_node(case.kind, names + constants, case.outputs, **case.attributes)],
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
    REFUSED,
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
