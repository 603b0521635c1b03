"""Laws of the code layout, and its equality with ONNX Runtime's own arithmetic."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from protocol.codes import dequantise, pack, quantise, unpack

BLOCK = 32


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 90), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_unpack_inverts_pack(rows: int, width: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    padded = -(-width // BLOCK) * BLOCK
    codes = rng.integers(0, 2**bits, (rows, padded)).astype(np.uint8)
    packed = pack(codes, bits=bits, block=BLOCK)
    assert packed.nbytes == codes.size * bits // 8
    assert (unpack(packed, bits=bits).reshape(rows, -1) == codes).all()


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 90), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_the_error_is_within_one_step(rows: int, width: int, bits: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    weight[0, : width // 2] = 0
    packed, scales = quantise(weight, bits=bits, block=BLOCK)
    back = dequantise(packed, scales, bits=bits, in_features=width)
    step = np.abs(scales).repeat(BLOCK, 1)[:, :width]
    worst = 1.001 if bits == 8 else 4.0  # a searched scale clips the largest by some steps
    assert (np.abs(back - weight) <= worst * step + 1e-7).all()
    naive = np.abs(weight).max()
    assert np.linalg.norm(back - weight) <= 0.2 * max(np.linalg.norm(weight), naive)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 90), st.integers(0, 2**31))
def test_importance_lowers_the_error_of_the_product(rows: int, width: int, seed: int) -> None:
    """Against the plain search, on inputs whose mean squares are the importance."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, width)).astype(np.float32)
    importance = np.exp(rng.normal(0, 2, width)).astype(np.float32)

    def error(packed: np.ndarray, scales: np.ndarray) -> float:
        back = dequantise(packed, scales, bits=4, in_features=width)
        return float((importance * (back - weight).astype(np.float64) ** 2).sum())

    plain = error(*quantise(weight, bits=4, block=BLOCK))
    weighed = error(*quantise(weight, bits=4, block=BLOCK, importance=importance))
    # what no column counts for is not nothing, so the two goals differ by that much
    assert weighed <= 1.01 * plain + 2e-3 * importance.mean() * float((weight**2).sum())


@settings(max_examples=20)
@given(st.integers(1, 40), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 2**31))
def test_rows_are_quantised_for_themselves(rows: int, bits: int, weighed: bool, seed: int) -> None:
    """So a matrix may be taken in pieces, and the pieces' size does not show."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, 70)).astype(np.float32)
    importance = rng.random(70).astype(np.float32) if weighed else None
    whole = quantise(weight, bits=bits, block=BLOCK, importance=importance)
    parts = [quantise(row[None], bits=bits, block=BLOCK, importance=importance) for row in weight]
    for one, others in zip(whole, zip(*parts, strict=True), strict=True):
        assert (one == np.concatenate(others)).all()


@pytest.mark.parametrize("odd", [np.ones(31), np.full(32, -1.0), np.full(32, np.nan)])
def test_an_importance_that_is_none_is_refused(odd: np.ndarray) -> None:
    with pytest.raises(ValueError, match="32 columns"):
        quantise(np.ones((2, 32), np.float32), bits=4, block=BLOCK, importance=odd)


def test_columns_that_are_never_used_keep_their_weights() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    importance = np.zeros(64, np.float32)
    importance[:8] = 1
    packed, scales = quantise(weight, bits=4, block=BLOCK, importance=importance)
    back = dequantise(packed, scales, bits=4, in_features=64)
    assert np.linalg.norm(back - weight) < 0.25 * np.linalg.norm(weight)


def test_a_zero_block_is_exact_and_nan_is_refused() -> None:
    packed, scales = quantise(np.zeros((2, 40), np.float32), bits=4, block=BLOCK)
    assert (dequantise(packed, scales, bits=4, in_features=40) == 0).all()
    with pytest.raises(ValueError, match="finite"):
        quantise(np.full((1, 32), np.nan, np.float32), bits=4, block=BLOCK)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [64, 80])
def test_onnx_runtime_reads_the_same_weights(bits: int, width: int) -> None:
    """An identity through MatMulNBits gives our dequantised weight, bit for bit."""
    weight = np.random.default_rng(bits).normal(size=(16, width)).astype(np.float32)
    packed, scales = quantise(weight, bits=bits, block=BLOCK)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "B", "s"],
        ["y"],
        domain="com.microsoft",
        K=width,
        N=16,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=0,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [width, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [width, 16])],
        [numpy_helper.from_array(packed, "B"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.eye(width, dtype=np.float32)})
    assert (dequantise(packed, scales, bits=bits, in_features=width) == got.T).all()
