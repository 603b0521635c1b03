"""Two engines, one contract: the same loss, gradients and logits on the same codes, for every member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from base_model.build import build_base
from base_model.programs.classifier import classifier_graphs
from base_model.programs.folder import make_program
from base_model.verify import read_manifest
from base_model.weights_file import tensor_entry
from client.batches import Batch
from client.engine.choice import engine_for
from client.engine.onnx_engine import OnnxEngine
from client.engine.torch_engine import TorchEngine
from client.opened_base import opened_base
from protocol.errors import ArtefactError
from protocol.head import head_of
from protocol.initial import ONES
from protocol.layout import Layout, Tensors
from protocol.methods import METHODS
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.rules import RULES
from tests.methods import SORTING, adapter_of
from tests.unit.base_model.sources import FAMILIES, write_source

Make = Callable[..., Plan]
Array = npt.NDArray[np.float32]
NAMES = SORTING

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
    """Random tensors, factors around 1: at round 0 half the gradients would be zero."""
    rng = np.random.default_rng(1)
    layout = Recipe(plan=plan, manifest=read_manifest(base)).layout
    return {
        s.name: rng.normal(float(s.law == ONES), 0.1, s.shape).astype(np.float32)
        for s in layout.specs
    }


def agree(base: Path, plan: Plan, parts: frozenset[str] | None = None) -> None:
    """Loss, gradients of the parts (all without), and logits: 1e-5 of the largest number.

    On weights that are expanded at every step, and once.
    """
    recipe = Recipe(plan=plan, manifest=read_manifest(base))
    layout = recipe.layout
    trained = parts or frozenset(spec.part for spec in layout.specs)
    fp32 = plan.model_copy(update={"local": plan.local.model_copy(update={"precision": "fp32"})})
    oracle = TorchEngine(base, replace(recipe, plan=fp32), threads=1)
    rows, tensors = batch(read_manifest(base).vocab_size, plan), values(base, plan)
    expected, theirs = oracle.gradients(tensors, rows, trained)
    for mib in (0, 512):
        engine = engine_for(
            recipe, opened_base(plan, base), threads=1, parts=[trained], expand_mib=mib
        )
        assert isinstance(engine, OnnxEngine)
        assert not weights_inside(engine, recipe)
        loss, ours = engine.gradients(tensors, rows, trained)
        assert loss == pytest.approx(expected, rel=1e-5)
        logits = engine.outputs(tensors, rows), oracle.outputs(tensors, rows)
        _alike(layout, trained, logits, ours, theirs)


def _alike(
    layout: Layout,
    trained: frozenset[str],
    logits: tuple[Array, Array],
    ours: Tensors,
    theirs: Tensors,
) -> None:
    assert ours.keys() == theirs.keys() == {s.name for s in layout.only(trained).specs}
    pairs = {name: (ours[name], theirs[name]) for name in ours}
    pairs["logits"] = logits
    parts = {spec.name: layout.only({spec.part}).specs for spec in layout.specs}
    for name, (value, reference) in pairs.items():
        assert value.shape == reference.shape
        # a number by itself is one sum, of which little may be left: the largest of its part is its measure
        alike = [theirs[spec.name] for spec in parts[name]] if reference.size == 1 else [reference]
        largest = max(np.abs(each).max() for each in alike)
        assert np.abs(value - reference).max() < 1e-5 * largest, name


def weights_inside(engine: OnnxEngine, recipe: Recipe) -> set[str]:
    """Linears of the base's file that a program's own files hold, as they are or turned."""
    weights = {f"{linear.path}.weight" for linear in recipe.manifest.linears}
    entries = {name: entry for name, entry in recipe.manifest.tensors.items() if name in weights}
    names = {(entry.sha256, *entry.shape): name for name, entry in entries.items()}
    inside = set()
    for data in engine._program.graphs.values():
        for tensor in onnx.load_model_from_string(data).graph.initializer:
            outside = tensor.data_location == onnx.TensorProto.EXTERNAL
            if outside or len(tensor.raw_data) < 256 or len(tensor.dims) < 2:
                continue
            value = onnx.numpy_helper.to_array(tensor)
            for form in (value, value.T, value.astype(np.float16), value.T.astype(np.float16)):
                entry = tensor_entry(np.ascontiguousarray(form))
                inside |= {names[key] for key in [(entry.sha256, *entry.shape)] if key in names}
    return inside


@pytest.mark.parametrize("name", NAMES)
def test_engines_agree(tiny_base: Path, make_plan: Make, name: str) -> None:
    agree(tiny_base, make_plan(name))


@pytest.mark.parametrize("rule", ["lora", "prompt"])
def test_engines_agree_on_numbers(tiny_base: Path, make_plan: Make, rule: str) -> None:
    agree(tiny_base, make_plan(rule, task=NUMBERS))


@pytest.mark.parametrize("trained", [True, False])
def test_engines_agree_on_a_head_of_names(tiny_base: Path, make_plan: Make, trained: bool) -> None:
    """Of one that stays there is no gradient."""
    vectors = np.random.default_rng(2).normal(size=(3, read_manifest(tiny_base).head.in_features))
    head = head_of(vectors, length=1.0, trained=trained).model_dump()
    plan = make_plan("lora-sb", head=head)
    agree(tiny_base, plan, frozenset({"lora_R", "head"}))


@pytest.mark.parametrize(
    ("turns", "parts"), [(1, {"head"}), (2, {"head", "head_1"}), (2, {"head", "head_0"})]
)
def test_engines_agree_on_a_head_of_low_rank(
    tiny_base: Path, make_plan: Make, turns: int, parts: set[str]
) -> None:
    """What it is mixed of has no gradient, nor what is another turn's."""
    vectors = np.random.default_rng(2).normal(size=(3, read_manifest(tiny_base).head.in_features))
    plan = make_plan("lora-sb", head=head_of(vectors, length=1.0, rank=2, turns=turns).model_dump())
    agree(tiny_base, plan, frozenset({"lora_R", *parts}))


@pytest.mark.parametrize("turn", [1, 2])
def test_a_phase_has_its_own_gradients_only(tiny_base: Path, make_plan: Make, turn: int) -> None:
    agree(tiny_base, make_plan("alternating"), RULES["alternating"].parts(METHODS["lora"], turn))


def test_the_same_bytes_every_time_and_no_weight_inside(tiny_base: Path, make_plan: Make) -> None:
    plan, manifest = make_plan(), read_manifest(tiny_base)
    recipe = Recipe(plan=plan, manifest=manifest)
    first, second = (make_program(tiny_base, recipe) for _ in range(2))
    assert first == second
    assert sum(map(len, first.graphs.values())) < 150_000
    (model,) = classifier_graphs(tiny_base, recipe, [frozenset(["classifier.bias"])])
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
        make_program(tmp_path, Recipe(plan=plan, manifest=manifest))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_of_every_width(tiny_source: Path, make_plan: Make, tmp_path: Path, bits: int) -> None:
    base = tmp_path / "base"
    build_base(str(tiny_source), task="sequence-classification", bits=bits, out=base, scales=True)
    for name in NAMES:
        agree(base, make_plan(name, base={"fingerprint": read_manifest(base).fingerprint}))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_and_pooling(
    make_plan: Make, tmp_path: Path, family: str, pooling: str
) -> None:
    """All methods, their linears everywhere; behind other poolings than the mean those that differ most."""
    source = write_source(tmp_path / "source", family=family, classifier=pooling == "pooler")
    base = tmp_path / "base"
    about = {"task": "sequence-classification", "pooling": pooling}
    build_base(str(source), bits=4, out=base, scales=True, **about)
    for name in NAMES if pooling == "mean" else ("lora", "prompt", "norm"):
        plan = make_plan(
            name,
            base={"fingerprint": read_manifest(base).fingerprint},
            task={"labels": ["a", "b", "c"], "max_length": 16},
            adapter=adapter_of(name, targets="all-linear"),
        )
        agree(base, plan)
