"""Cross-entropy of tokens under a frozen layer, against torch on whole logits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from base_model.programs import token_loss as module
from base_model.programs.session import open_session
from base_model.programs.tape import Tape
from base_model.programs.token_loss import TARGET, OutputLayer, token_loss
from protocol.codes import dequantise, quantise

VOCABULARY, WIDTH, BLOCK = 75, 64, 32


def graph_of(bits: int, weight: np.ndarray) -> tuple[onnx.ModelProto, np.ndarray]:
    """A graph with ``loss`` and ``back``, and the weight that its layer stands for."""
    graph = helper.make_graph(
        [],
        "tokens",
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["r", "t", WIDTH]),
            helper.make_tensor_value_info(TARGET, TensorProto.INT64, ["r", "t"]),
        ],
        [
            helper.make_tensor_value_info("loss", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("back", TensorProto.FLOAT, ["r", "t", WIDTH]),
        ],
    )
    if bits == 32:
        graph.initializer.append(numpy_helper.from_array(weight, "w"))
        layer = OutputLayer(vocabulary=VOCABULARY, width=WIDTH, weight="w")
    else:
        codes, scales = quantise(weight, bits=bits, block=BLOCK)
        weight = dequantise(codes, scales, bits=bits, in_features=WIDTH)
        graph.initializer.append(numpy_helper.from_array(codes.reshape(VOCABULARY, -1), "c"))
        graph.initializer.append(numpy_helper.from_array(scales, "s"))
        layer = OutputLayer(vocabulary=VOCABULARY, width=WIDTH, codes="c", scales="s", bits=bits)
    loss, back = token_loss(Tape(graph, ""), "hidden", layer)
    graph.node.append(helper.make_node("Identity", [loss], ["loss"]))
    graph.node.append(helper.make_node("Identity", [back], ["back"]))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    return model, weight


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("counted", ["all", "some", "one", "none"])
@pytest.mark.parametrize("slice_rows", [1, 32, 40, 1000])
def test_loss_and_gradient_are_torchs(
    bits: int, counted: str, slice_rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(module, "SLICE", slice_rows * WIDTH)
    rng = np.random.default_rng(bits)
    model, weight = graph_of(bits, rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32))
    hidden = rng.normal(size=(3, 5, WIDTH)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (3, 5))
    if counted == "some":
        targets[rng.random((3, 5)) < 0.5] = -100
    elif counted != "all":
        targets[:] = -100
        targets[1, 2] = 7 if counted == "one" else -1
    leaf = torch.from_numpy(hidden).requires_grad_()
    logits = leaf @ torch.from_numpy(weight).T
    wanted = torch.from_numpy(np.where(targets < 0, -100, targets)).reshape(-1)
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY), wanted, reduction="sum"
    )
    expected.backward()
    session = open_session(model.SerializeToString(), tmp_path, threads=1)  # type: ignore[arg-type]
    loss, back = session.run(["loss", "back"], {"hidden": hidden, TARGET: targets})
    assert leaf.grad is not None
    np.testing.assert_allclose(loss, expected.item(), rtol=2e-6, atol=1e-5)
    largest = max(1.0, float(leaf.grad.abs().max()))
    np.testing.assert_allclose(back, leaf.grad.numpy(), rtol=0, atol=1e-5 * largest)


def test_large_logits_do_not_overflow(tmp_path: object) -> None:
    model, _ = graph_of(32, np.eye(VOCABULARY, WIDTH, dtype=np.float32) * 1e4)
    hidden = np.ones((1, 1, WIDTH), np.float32)
    session = open_session(model.SerializeToString(), tmp_path, threads=1)  # type: ignore[arg-type]
    loss, back = session.run(["loss", "back"], {"hidden": hidden, TARGET: np.array([[3]])})
    assert np.isfinite(back).all()
    np.testing.assert_allclose(loss, np.log(WIDTH), rtol=1e-3)  # of logits of 10,000
