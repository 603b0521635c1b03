"""Scales and shifts of the answering graph do what they say, cost nothing unfilled, and have right gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from base_model.build import build_base
from base_model.families import FAMILIES as ROWS
from base_model.programs.build import Objective, training_graph
from base_model.programs.frozen import refer_to_weights
from base_model.programs.session import open_session
from base_model.store import open_base
from base_model.tasks.classification import ELEMENT, TARGET
from base_model.tasks.classification import loss as cross_entropy
from base_model.verify import read_manifest
from base_model.weights_file import WEIGHTS
from protocol.forms import SCALE, SHIFT
from protocol.manifest import Manifest
from tests.tiers import one_by_default
from tests.tiny_model import write_tiny_source
from tests.unit.base_model.sources import FAMILIES, write_source

ENDS = (SCALE, SHIFT)
HEAD_LABELS = 3
Values = dict[str, np.ndarray]


@pytest.fixture(
    scope="module",
    params=one_by_default(
        ("bert", 4), [*((family, 4) for family in FAMILIES), ("bert", 32), ("bert, as drawn", 4)]
    ),
    ids=str,
)
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (name, bits), folder = request.param, tmp_path_factory.mktemp("base")
    family, _, untouched = name.partition(",")
    if untouched:  # its norms and biases are all alike: an exporter may keep them once
        source = write_tiny_source(folder / "source")
    else:
        source = write_source(folder / "source", family=family, pooling="mean")
    build_base(str(source), task="sequence-classification", bits=bits, out=folder / "base")
    return folder / "base"


def filled(manifest: Manifest) -> Values:
    """Random values for every scale and shift of the graph."""
    rng = np.random.default_rng(3)
    return {
        slot.name: (rng.normal(0, 0.2, slot.shape) + (not slot.name.endswith(SHIFT))).astype(
            np.float32
        )
        for slot in manifest.graph.slots
        if slot.name.endswith(ENDS)
    }


def head(manifest: Manifest) -> Values:
    """Random, as a base that pools by mean has an empty one."""
    weight = np.random.default_rng(4).normal(0, 0.3, (HEAD_LABELS, manifest.hidden_size))
    return {
        "classifier.weight": weight.astype(np.float32),
        "classifier.bias": np.zeros(HEAD_LABELS, np.float32),
    }


def batch(manifest: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    ids = rng.integers(5, manifest.vocab_size, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask, rng.integers(0, HEAD_LABELS, 3)


def by_torch(base: Path, values: Values) -> tuple[np.ndarray, float, Values]:
    """Logits, summed loss and gradients with hooks around the very modules of the base, in float64.

    In float32 torch's own rounding is up to half of the bound where layers are shared.
    """
    manifest = read_manifest(base)
    opened = open_base(base, labels=HEAD_LABELS, verify=False, matmul_dtype=torch.float64)
    model = opened.model.double().eval()
    model.classifier.weight.data = torch.from_numpy(head(manifest)["classifier.weight"]).double()
    model.classifier.bias.data.zero_()
    tensors = {
        name: torch.from_numpy(value.copy()).double().requires_grad_()
        for name, value in values.items()
    }
    for path in {name.rpartition(".")[0] for name in values}:
        scale, shift = (tensors.get(path + end) for end in ENDS)

        def after(_: Any, __: Any, y: Any, scale: Any = scale, shift: Any = shift) -> Any:
            y = y if shift is None else y + shift
            return y if scale is None else y * scale

        model.get_submodule(path).register_forward_hook(after)
    ids, mask, targets = batch(manifest)
    logits = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits
    loss = F.cross_entropy(logits, torch.from_numpy(targets), reduction="sum")
    loss.backward()
    gradients = {
        name: tensor.grad.numpy() for name, tensor in tensors.items() if tensor.grad is not None
    }
    return logits.detach().numpy(), float(loss.detach()), gradients


def test_every_norm_and_biased_linear_has_its_slots(base: Path) -> None:
    manifest = read_manifest(base)
    model = open_base(base, verify=False).model
    names = {slot.name for slot in manifest.graph.slots}
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert norms
    assert {n + end for n in norms for end in (SCALE, SHIFT)} <= names
    shifted = {n.removesuffix(SHIFT) for n in names if n.endswith(SHIFT)} - norms
    key = ROWS[manifest.family].key
    keys = {n.path for n in manifest.linears if n.path.rpartition(".")[2] == key}
    assert shifted == {linear.path for linear in manifest.linears} - keys
    # softmax does not see what is added to all scores of a query; ALBERT's layers are one
    layers = 1 if manifest.family == "albert" else manifest.layers
    assert len(keys) == layers
    assert {n.removesuffix(SCALE) for n in names if n.endswith(SCALE)} == norms


def test_filled_slots_answer_as_torch_does(base: Path) -> None:
    manifest = read_manifest(base)
    session = ort.InferenceSession(str(base / "graph.onnx"), providers=["CPUExecutionProvider"])
    ids, mask, _ = batch(manifest)
    feeds = {"input_ids": ids, "attention_mask": mask, **head(manifest)}
    values = filled(manifest)
    (plain,), (answers,) = session.run(None, feeds), session.run(None, feeds | values)
    expected, _, _ = by_torch(base, values)
    unfilled, _, _ = by_torch(base, {"classifier" + SHIFT: np.zeros(HEAD_LABELS, np.float32)})
    assert np.abs(answers - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(plain - unfilled).max() < 1e-4 * np.abs(unfilled).max()
    for name, value in values.items():  # each has an effect of its own
        (alone,) = session.run(None, feeds | {name: value})
        assert np.abs(alone - plain).max() > 1e-6, name


def gradients_of(
    base: Path, values: Values, trained: list[str]
) -> tuple[float, Values, onnx.ModelProto]:
    manifest = read_manifest(base)
    model = training_graph(
        onnx.load(str(base / manifest.graph.file)),
        tensors={name: value.ndim for name, value in (values | head(manifest)).items()},
        trained=trained,
        forms=lambda tensors: tensors,
        loss=lambda tape, outputs: Objective(scalar=cross_entropy(tape, outputs)),
        targets={TARGET: (ELEMENT, ["batch"])},
    )
    refer_to_weights(model, base / WEIGHTS)
    session = open_session(model.SerializeToString(), base, threads=1)
    ids, mask, targets = batch(manifest)
    feeds = {"input_ids": ids, "attention_mask": mask, TARGET: targets}
    loss, *gradients = session.run(None, feeds | values | head(manifest))
    return float(loss), dict(zip(trained, gradients, strict=True)), model


def agree(gradients: Values, expected: Values) -> None:
    for name, value in gradients.items():
        difference = np.abs(value - expected[name]).max() / np.abs(expected[name]).max()
        assert difference < 1e-5, (name, difference)


def test_gradients_are_torchs(base: Path) -> None:
    values = filled(read_manifest(base))
    _, expected_loss, expected = by_torch(base, values)
    loss, gradients, _ = gradients_of(base, values, sorted(values))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    agree(gradients, expected)


KINDS: list[tuple[str, Callable[[str], bool]]] = [
    ("shifts", lambda name: name.endswith(SHIFT)),
    ("scales", lambda name: name.endswith(SCALE)),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_what_is_not_filled_is_not_in_the_program(base: Path, kind: Any) -> None:
    values = {name: value for name, value in filled(read_manifest(base)).items() if kind[1](name)}
    _, gradients, model = gradients_of(base, values, sorted(values))
    _, _, expected = by_torch(base, values)
    agree(gradients, expected)
    read = {name for node in model.graph.node for name in node.input if name.endswith(ENDS)}
    assert read <= set(values)
