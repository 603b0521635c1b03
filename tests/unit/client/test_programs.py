"""Two engines, one contract: the same loss, gradients and logits on the same codes, for every member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from base_model.build import build_base
from base_model.programs.classifier import classifier_graphs
from base_model.programs.folder import make_program
from base_model.verify import read_manifest
from client.batches import Batch
from client.engine.choice import engine_for
from client.engine.onnx_engine import OnnxEngine
from client.engine.torch_engine import TorchEngine
from client.opened_base import opened_base
from protocol.adapter import adapter_layout
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.plan import Plan
from protocol.rules import Role, rule_named
from tests.unit.base_model.sources import FAMILIES, write_source

Make = Callable[..., Plan]
RULES = ["fedit", "fed-sb", "prompt-mean"]

NUMBERS = {"kind": "regression", "low": -3.0, "high": 7.0, "max_length": 16}


def batch(vocabulary: int, plan: Plan) -> Batch:
    """Three rows of seven tokens, one half padding."""
    rng = np.random.default_rng(5)
    ids = rng.integers(5, vocabulary, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    ids[1, 4:] = 0
    targets = rng.integers(0, plan.task.outputs, 3)
    if plan.task.kind == "regression":
        targets = rng.random(3).astype(np.float32)
    return Batch(ids=ids, mask=mask, targets=targets)


def values(base: Path, plan: Plan) -> Tensors:
    """Random tensors: at round 0 half the gradients would be zero."""
    rng = np.random.default_rng(1)
    layout = adapter_layout(plan, read_manifest(base))
    return {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in layout.specs}


def agree(base: Path, plan: Plan, roles: frozenset[Role] | None = None) -> None:
    """Loss, gradients of the roles (all without), and logits: 1e-5 of the largest."""
    layout = adapter_layout(plan, read_manifest(base))
    trained = roles or frozenset(spec.role for spec in layout.specs)
    fp32 = plan.model_copy(update={"local": plan.local.model_copy(update={"precision": "fp32"})})
    oracle = TorchEngine(base, fp32, threads=1)
    engine = engine_for(plan, opened_base(plan, base), threads=1, roles=[trained])
    assert isinstance(engine, OnnxEngine)
    rows, tensors = batch(read_manifest(base).vocab_size, plan), values(base, plan)
    loss, ours = engine.gradients(tensors, rows, trained)
    expected, theirs = oracle.gradients(tensors, rows, trained)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert ours.keys() == theirs.keys() == {s.name for s in layout.only(trained).specs}
    pairs = {name: (ours[name], theirs[name]) for name in ours}
    pairs["logits"] = (engine.logits(tensors, rows), oracle.logits(tensors, rows))
    for name, (value, reference) in pairs.items():
        assert value.shape == reference.shape
        assert np.abs(value - reference).max() < 1e-5 * np.abs(reference).max(), name


@pytest.mark.parametrize("rule", RULES)
def test_engines_agree(tiny_base: Path, make_plan: Make, rule: str) -> None:
    agree(tiny_base, make_plan(rule))


@pytest.mark.parametrize("rule", ["fedit", "prompt-mean"])
def test_engines_agree_on_numbers(tiny_base: Path, make_plan: Make, rule: str) -> None:
    agree(tiny_base, make_plan(rule, task=NUMBERS))


@pytest.mark.parametrize("turn", [1, 2])
def test_a_phase_has_its_own_gradients_only(tiny_base: Path, make_plan: Make, turn: int) -> None:
    agree(tiny_base, make_plan("alternating"), rule_named("alternating").roles(turn))


def test_the_same_bytes_every_time_and_no_weight_inside(tiny_base: Path, make_plan: Make) -> None:
    plan, manifest = make_plan(), read_manifest(tiny_base)
    first, second = (make_program(tiny_base, manifest, plan) for _ in range(2))
    assert first == second
    assert sum(map(len, first.graphs.values())) < 150_000
    (model,) = classifier_graphs(tiny_base, manifest, plan, [frozenset(["classifier.bias"])])
    inside = {t.name for t in model.graph.initializer if len(t.raw_data) >= 256}
    assert inside & set(manifest.tensors) == set()
    named = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert named == {"weights.safetensors"}


def test_weights_of_another_base_are_refused(
    tiny_base: Path, make_plan: Make, tmp_path: Path
) -> None:
    plan, manifest = make_plan(), read_manifest(tiny_base)
    for name in ("graph.onnx", "weights.safetensors"):
        (tmp_path / name).write_bytes((tiny_base / name).read_bytes())
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[-64:] = bytes(64)
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ArtefactError, match="is not the answering graph's"):
        make_program(tmp_path, manifest, plan)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("rule", RULES)
def test_of_every_width(
    tiny_source: Path, make_plan: Make, tmp_path: Path, bits: int, rule: str
) -> None:
    base = tmp_path / "base"
    build_base(str(tiny_source), task="sequence-classification", bits=bits, out=base)
    agree(base, make_plan(rule, base={"fingerprint": read_manifest(base).fingerprint}))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["fedit", "prompt-mean"])
def test_of_every_family_and_pooling(
    make_plan: Make, tmp_path: Path, family: str, pooling: str, rule: str
) -> None:
    source = write_source(tmp_path / "source", family=family, classifier=pooling == "pooler")
    base = tmp_path / "base"
    build_base(str(source), task="sequence-classification", bits=4, out=base, pooling=pooling)
    plan = make_plan(
        rule,
        base={"fingerprint": read_manifest(base).fingerprint},
        task={"labels": ["a", "b", "c"], "max_length": 16},
        **(
            {"adapter": {"rank": 4, "alpha": 8.0, "targets": "all-linear"}}
            if rule == "fedit"
            else {}
        ),
    )
    agree(base, plan)
