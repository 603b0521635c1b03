"""Operators in torch's spelling, and what has no derivative here and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

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
    outputs: tuple[str, ...] = ("y",)  # what torch gives is "y"; the others have no part


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
        kind="Split",
        shapes=[(2, 6)],
        torch=lambda x: x[:, 1:4],
        attributes={"axis": -1},
        constants=[ints(1, 3, 2)],
        outputs=("before", "y", "behind"),
    ),
    Case(
        kind="Split",
        shapes=[(4, 3)],
        torch=lambda x: x[2:],
        attributes={"num_outputs": 2},
        outputs=("before", "y"),
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

REFUSED = [  # and words of the refusal
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
]
