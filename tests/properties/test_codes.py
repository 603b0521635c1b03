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


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 90), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_unpack_inverts_pack(rows: int, width: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    padded = -(-width // BLOCK) * BLOCK
    codes = rng.integers(0, 2**bits, (rows, padded)).astype(np.uint8)
    packed = pack(codes, bits=bits, block=BLOCK)
    assert packed.nbytes == codes.size * bits // 8
    assert (unpack(packed, bits=bits).reshape(rows, -1) == codes).all()


@settings(max_examples=40, deadline=None)
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
