"""A program's loss and gradients are the client's own, on the same codes: every method, width and part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from base_model.build import build_base
from base_model.programs.classifier import LABELS as TARGETS
from base_model.programs.classifier import classifier_program
from base_model.programs.session import open_program
from base_model.store import open_base
from base_model.verify import read_manifest
from client.adapter_model import AdapterModel
from protocol.errors import ArtefactError
from protocol.plan import Plan
from tests.unit.base_model.sources import FAMILIES, write_source

Make = Callable[..., Plan]
RULES = ["fedit", "fed-sb", "prompt-mean"]


def batch(vocabulary: int, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three rows of seven tokens, one half padding."""
    rng = np.random.default_rng(5)
    ids = rng.integers(5, vocabulary, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    ids[1, 4:] = 0
    return ids, mask, rng.integers(0, labels, 3)


def expected(
    base: Path, plan: Plan, tensors: dict[str, np.ndarray]
) -> tuple[float, dict[str, Any]]:
    """By torch: the sum of the rows' losses, and its gradients."""
    labels = len(plan.task.labels)
    model = AdapterModel(open_base(base, labels=labels, verify=False), plan)
    model.load(tensors)
    parameters = model.train_only({spec.role for spec in model.layout.specs})
    ids, mask, targets = batch(read_manifest(base).vocab_size, labels)
    logits = model.forward(torch.from_numpy(ids), torch.from_numpy(mask))
    loss = F.cross_entropy(logits, torch.from_numpy(targets), reduction="sum")
    loss.backward()
    return float(loss.detach()), {
        n: p.grad.numpy() for n, p in parameters.items() if p.grad is not None
    }


def values(base: Path, plan: Plan) -> dict[str, np.ndarray]:
    """Random tensors: at round 0 half the gradients would be zero."""
    from protocol.adapter import adapter_layout

    rng = np.random.default_rng(1)
    layout = adapter_layout(plan, read_manifest(base))
    return {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in layout.specs}


def actual(
    base: Path, plan: Plan, tensors: dict[str, np.ndarray], trained: frozenset[str]
) -> tuple[float, dict[str, Any]]:
    manifest = read_manifest(base)
    program = classifier_program(base, manifest, plan, trained=trained)
    session = open_program(program.SerializeToString(), base, threads=1)
    ids, mask, targets = batch(manifest.vocab_size, len(plan.task.labels))
    feeds = {"input_ids": ids, "attention_mask": mask, TARGETS: targets, **tensors}
    names = [output.name for output in session.get_outputs()]
    loss, *gradients = session.run(None, feeds)
    assert names == ["loss", *(f"gradient.{name}" for name in tensors if name in trained)]
    return float(loss), {
        name.removeprefix("gradient."): value
        for name, value in zip(names[1:], gradients, strict=True)
    }


def agree(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        worst = np.abs(value - theirs[name]).max() / np.abs(theirs[name]).max()
        assert worst < 1e-5, (name, worst)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_torchs(tiny_base: Path, make_plan: Make, rule: str) -> None:
    plan = make_plan(rule)
    tensors = values(tiny_base, plan)
    loss, theirs = expected(tiny_base, plan, tensors)
    ours_loss, ours = actual(tiny_base, plan, tensors, frozenset(tensors))
    assert ours.keys() == theirs.keys() == tensors.keys()
    assert ours_loss == pytest.approx(loss, rel=1e-6)
    agree(ours, theirs)


def test_a_phase_has_its_own_gradients_only(tiny_base: Path, make_plan: Make) -> None:
    plan = make_plan("alternating")
    tensors = values(tiny_base, plan)
    trained = frozenset(name for name in tensors if not name.endswith("lora_A"))
    _, theirs = expected(tiny_base, plan, tensors)
    _, ours = actual(tiny_base, plan, tensors, trained)
    assert ours.keys() == trained
    agree(ours, theirs)


def test_the_same_bytes_every_time_and_no_weight_inside(tiny_base: Path, make_plan: Make) -> None:
    plan, manifest = make_plan(), read_manifest(tiny_base)
    names = frozenset(values(tiny_base, plan))
    first, second = (classifier_program(tiny_base, manifest, plan, trained=names) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    inside = {t.name: t for t in first.graph.initializer if len(t.raw_data) >= 256}
    assert {name for name in inside if name in manifest.tensors} == set()
    named = {
        entry.value
        for tensor in first.graph.initializer
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
        classifier_program(tmp_path, manifest, plan, trained=frozenset(values(tiny_base, plan)))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_of_every_width(tiny_source: Path, make_plan: Make, tmp_path: Path, bits: int) -> None:
    base = tmp_path / "base"
    build_base(str(tiny_source), task="sequence-classification", bits=bits, out=base)
    plan = make_plan(base={"fingerprint": read_manifest(base).fingerprint})
    tensors = values(base, plan)
    _, theirs = expected(base, plan, tensors)
    agree(actual(base, plan, tensors, frozenset(tensors))[1], theirs)


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
    tensors = values(base, plan)
    _, theirs = expected(base, plan, tensors)
    agree(actual(base, plan, tensors, frozenset(tensors))[1], theirs)
