"""Pairs of texts: torch and ONNX Runtime agree, and token types count where a family has them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.build import build_base
from base_model.programs.slots import slot_layout, slot_program
from base_model.release import open_peft, release_adapter
from base_model.store import open_base
from base_model.verify import read_manifest
from client.batches import Batch, collate, encode
from client.engine.choice import engine_for
from client.engine.onnx_engine import OnnxEngine
from client.engine.torch_engine import TorchEngine
from client.opened_base import opened_base
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.manifest import TYPE_IDS
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from tests.methods import adapter_of
from tests.tiers import some_by_default
from tests.unit.base_model.sources import FAMILIES, write_source

PAIRS = [
    ("turn on the light", "play music"),
    ("play", "set a timer for ten minutes and buy some bread at the window now"),
    ("the", "the"),
    ("you and me", "it is up"),
]
SINGLE = [f"{first} {second}" for first, second in PAIRS]
TYPED = ("bert", "ernie", "electra", "albert")
NUMBERS = {"kind": "regression", "low": 0.0, "high": 5.0}
LABELS = {"labels": ["no", "perhaps", "yes"]}
LENGTH = 12  # the second pair is cut


@dataclass(frozen=True, kw_only=True)
class Case:
    """A base of a family."""

    family: str
    base: Path


@pytest.fixture(
    scope="module", params=["bert", *some_by_default((), sorted(set(FAMILIES) - {"bert"}))]
)
def case(request: Any, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "bert":
        return Case(family="bert", base=tiny_base)
    folder = tmp_path_factory.mktemp(f"pairs-{request.param}")
    source = write_source(folder / "source", family=request.param, pooling="mean")
    build_base(str(source), task="sequence-classification", bits=4, out=folder / "base")
    return Case(family=request.param, base=folder / "base")


def plan_for(base: Path, task: dict[str, Any], method: str = "lora", **sections: Any) -> Plan:
    document: dict[str, Any] = {
        "name": "pairs",
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"text_pair": "other", "max_length": LENGTH} | task,
        "adapter": adapter_of(method, rank=4, targets="all-linear"),
        "rule": {"name": "mean"},
        "local": {"precision": "fp32"},
        **sections,
    }
    return plan_from(document, source="test")


def batch_of(plan: Plan, base: Path) -> Batch:
    opened = opened_base(plan, base)
    targets = np.array([0, 2, 1, 0]) if plan.task.kind == "classification" else np.linspace(0, 1, 4)
    rows = encode(
        opened.tokenizer,
        PAIRS,
        targets.astype(np.int64 if plan.task.kind == "classification" else np.float32),
        LENGTH,
        typed=Recipe(plan=plan, manifest=opened.manifest).typed,
    )
    return collate(rows, np.arange(4))


@pytest.mark.parametrize("method", ["lora", "prompt"])
@pytest.mark.parametrize("task", [LABELS, NUMBERS], ids=["labels", "numbers"])
def test_engines_agree_on_pairs(case: Case, task: dict[str, Any], method: str) -> None:
    """Loss, gradients and outputs of pairs, behind a prompt as well: 1e-5 of the largest."""
    plan = plan_for(case.base, task, method)
    recipe = Recipe(plan=plan, manifest=read_manifest(case.base))
    layout = recipe.layout
    parts = frozenset(spec.part for spec in layout.specs)
    rows = batch_of(plan, case.base)
    assert (rows.types is not None) == (case.family in TYPED)
    rng = np.random.default_rng(1)
    tensors = {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in layout.specs}
    engine = engine_for(recipe, opened_base(plan, case.base), threads=1, parts=[parts])
    oracle = TorchEngine(case.base, recipe, threads=1)
    loss, ours = engine.gradients(tensors, rows, parts)
    expected, theirs = oracle.gradients(tensors, rows, parts)
    assert loss == pytest.approx(expected, rel=1e-5)
    ours["outputs"], theirs["outputs"] = (each.outputs(tensors, rows) for each in (engine, oracle))
    for name, value in theirs.items():
        assert np.abs(ours[name] - value).max() < 1e-5 * np.abs(value).max(), name
    if rows.types is not None:  # they are not without effect
        untyped = Batch(ids=rows.ids, mask=rows.mask, targets=rows.targets)
        assert np.abs(oracle.outputs(tensors, untyped) - theirs["outputs"]).max() > 1e-4


def test_a_device_trains_on_pairs_as_a_client_does(case: Case) -> None:
    """Of a prompt and a head the slots are the tensors: the same gradients."""
    plan = plan_for(case.base, NUMBERS, "prompt")
    manifest = read_manifest(case.base)
    recipe, rows = Recipe(plan=plan, manifest=manifest), batch_of(plan, case.base)
    parts = frozenset(spec.part for spec in recipe.layout.specs)
    rng = np.random.default_rng(2)
    tensors = {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in recipe.layout.specs}
    client = engine_for(recipe, opened_base(plan, case.base), threads=1, parts=[parts])
    layout = slot_layout(tensors)
    program = slot_program(case.base, manifest, layout, kind="regression", pairs=True)
    device = OnnxEngine(program, case.base, layout, threads=1)
    trained = frozenset(spec.part for spec in layout.specs)
    loss, ours = device.gradients(tensors, rows, trained)
    expected, theirs = client.gradients(tensors, rows, parts)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, value in theirs.items():
        assert np.abs(ours[name] - value).max() < 1e-5 * np.abs(value).max(), name


def opened_by_its_own_file(folder: Path, base: Path) -> np.ndarray:
    """What users of the PEFT folder get, by the file in it."""
    spec = importlib.util.spec_from_file_location("open_adapter", folder / "open_adapter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = module.tokenizer(base)(
        *map(list, zip(*PAIRS, strict=True)),
        padding=True,
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    with torch.no_grad():
        answers: np.ndarray = module.load(folder, base)(**inputs).logits.numpy()
    return answers


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_a_device_answers_pairs_as_torch_does(
    case: Case, write_adapter: Any, tmp_path: Path, method: str
) -> None:
    task = {"text_pair": "other", "max_length": LENGTH} | LABELS
    folder = write_adapter(tmp_path / "a", method=method, base=case.base, task=task)
    note = release_adapter(folder, case.base, texts=PAIRS, bound=1e-4)
    assert note.pairs
    assert note.parity is not None
    assert note.parity.max_relative <= 1e-4
    runtime = EdgeRuntime(EdgeBase.open(case.base))
    runtime.activate(folder)
    model = open_peft(open_base(case.base, labels=3), folder)
    rows = batch_of(plan_for(case.base, LABELS), case.base)
    segments = None if rows.types is None else torch.from_numpy(rows.types)
    with torch.no_grad():
        expected = model(
            input_ids=torch.from_numpy(rows.ids),
            attention_mask=torch.from_numpy(rows.mask),
            segments=segments,
        ).logits.numpy()
    found = runtime.logits(PAIRS)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    published = opened_by_its_own_file(folder, case.base)
    assert np.abs(published - found).max() < 1e-4 * np.abs(found).max()
    # one text alone is another question than the same words as a pair
    assert np.abs(runtime.logits(SINGLE) - found).max() > 1e-4


def test_tokens_are_those_of_the_tokenizer_and_the_longer_text_is_cut(tiny_base: Path) -> None:
    tokenizer = open_base(tiny_base).tokenizer
    rows = encode(tokenizer, PAIRS, [0] * 4, LENGTH, typed=True)
    tokenizer.enable_truncation(LENGTH, strategy="longest_first")
    tokenizer.no_padding()
    for at, pair in enumerate(PAIRS):
        encoding = tokenizer.encode(*pair)
        own = slice(rows.offsets[at], rows.offsets[at + 1])
        assert rows.types is not None
        assert rows.ids[own].tolist() == encoding.ids
        assert rows.types[own].tolist() == encoding.type_ids
    cut = rows.types[rows.offsets[1] : rows.offsets[2]]
    assert len(cut) == LENGTH
    assert cut.tolist().count(0) == 3  # the shorter text is whole
    taken = rows.take(np.array([1]))
    assert taken.types is not None
    assert taken.types.tolist() == cut.tolist()


def test_types_are_an_input_that_may_be_left_out(case: Case) -> None:
    """Without them a base answers as before there were any: a type 0 for every token is the default."""
    base = EdgeBase.open(case.base)
    names = [value.name for value in base.session.get_inputs()]
    assert names == ["input_ids", "attention_mask"]
    assert (TYPE_IDS in base.manifest.graph.inputs) == (case.family in TYPED)
    feeds = base.batch(SINGLE, max_length=LENGTH)
    assert list(feeds) == names
    (plain,) = base.session.run(None, feeds)
    if case.family in TYPED:
        zeros = {TYPE_IDS: np.zeros_like(feeds["input_ids"])}
        (typed,) = base.session.run(None, feeds | zeros)
        assert np.array_equal(plain, typed)


def test_an_adapter_cannot_fill_the_types(tiny_base: Path) -> None:
    assert TYPE_IDS not in {slot.name for slot in read_manifest(tiny_base).graph.slots}
