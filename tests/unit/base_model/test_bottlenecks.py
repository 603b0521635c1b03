"""Bottlenecks compute what the papers say, wherever they stand, gated or not: hooks here are the oracle."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from base_model.build import build_base
from base_model.merged import write_merged
from base_model.parity import Bounds
from base_model.programs.session import open_session
from base_model.programs.slots import slot_layout, slot_program
from base_model.release import edge_session, release_adapter
from base_model.store import GRAPH, open_base
from base_model.tasks.classification import TARGET
from base_model.verify import read_manifest
from client.batches import Batch
from client.engine.choice import engine_for
from client.opened_base import opened_base
from edge_runtime.adapter import check_tensors
from edge_runtime.base import EdgeBase
from protocol.bottlenecks import bottleneck_places
from protocol.errors import ArtefactError
from protocol.forms import BOTTLENECK
from protocol.layout import Tensors
from protocol.legality import check
from protocol.manifest import Graph
from protocol.methods import METHODS, method_of
from protocol.peft_format import EDGE_FILE, slots_of
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rules import RULES
from tests.tiers import one_by_default
from tests.tiny_model import TEXTS
from tests.unit.base_model.sources import FAMILIES, write_source

PLACES = ("houlsby", "pfeiffer", "parallel", "embeddings")
VARIANTS = [(p, g) for p in PLACES for g in (False, True)]
# Of a layer, what the families call the three: attention's output, the feed-forward's two.
CALLED = {
    "bert": ("attention.output.dense", "intermediate.dense", "output.dense"),
    "distilbert": ("attention.out_lin", "ffn.lin1", "ffn.lin2"),
    "mpnet": ("attention.attn.o", "intermediate.dense", "output.dense"),
    "albert": ("attention.dense", "ffn", "ffn_output"),
}


@pytest.fixture(scope="module", params=one_by_default("bert", FAMILIES))
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    source = write_source(folder / "source", family=request.param, pooling="mean")
    build_base(str(source), task="sequence-classification", bits=4, out=folder / "base")
    return folder / "base"


def plan_of(base: Path, places: str, gated: bool, **others: Any) -> Plan:
    adapter = {"method": "bottleneck", "places": places, "width": 3, "gated": gated}
    document = {
        "name": "bottlenecks",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"labels": ["a", "b", "c"], "max_length": 16},
        "adapter": adapter | {"scaling": 2.0},
    }
    return plan_from(document | others, source="test")


def recipe_of(base: Path, places: str, gated: bool) -> Recipe:
    return Recipe(plan=plan_of(base, places, gated), manifest=read_manifest(base))


def random_tensors(recipe: Recipe) -> Tensors:
    rng = np.random.default_rng(1)
    return {s.name: rng.normal(0, 0.5, s.shape).astype(np.float32) for s in recipe.layout.specs}


def errors_of(plan: Plan, manifest: Any) -> list[Any]:
    return [finding for finding in check(plan, manifest) if finding.severity == "error"]


def batch(base: Path) -> Batch:
    rng = np.random.default_rng(5)
    ids = rng.integers(5, read_manifest(base).vocab_size, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return Batch(ids=ids, mask=mask, targets=rng.integers(0, 3, 3))


def by_torch(base: Path, places: str, values: Tensors, rows: Batch) -> tuple[Any, float, Tensors]:
    """Logits, summed loss and gradients in float64, with hooks on the base's own modules."""
    model = (
        open_base(base, labels=3, verify=False, matmul_dtype=torch.float64).model.double().eval()
    )
    tensors = {n: torch.from_numpy(v).double().requires_grad_() for n, v in values.items()}
    model.classifier.weight = torch.nn.Parameter(tensors["classifier.weight"].detach())
    model.classifier.bias = torch.nn.Parameter(tensors["classifier.bias"].detach())

    def added(path: str, x: Any) -> Any:
        down, bias, up = (tensors[path + end] for end in BOTTLENECK)
        gate = tensors.get(f"{path}.bottleneck_gate", 1.0)
        return 2.0 * gate * (torch.relu(x @ down + bias) @ up)

    attention, first, second = CALLED.get(read_manifest(base).family, CALLED["bert"])
    for path, module in model.named_modules():
        layer = path.removesuffix(second)
        if places == "embeddings":
            if path.endswith(".word_embeddings"):
                module.register_forward_hook(lambda _, __, y, path=path: y + added(path, y))
        elif path.endswith(f".{attention}") and places == "houlsby":
            module.register_forward_hook(lambda _, __, y, path=path: y + added(path, y))
        elif path.endswith(f".{second}") and not path.endswith(f".{attention}"):
            if places == "parallel":
                kept: list[Any] = []
                beside = model.get_submodule(layer + first)
                beside.register_forward_hook(lambda _, x, __, kept=kept: kept.append(x[0]))
                module.register_forward_hook(
                    lambda _, __, y, path=layer + first, kept=kept: y + added(path, kept.pop())
                )
            else:
                module.register_forward_hook(lambda _, __, y, path=path: y + added(path, y))
    logits = model(torch.from_numpy(rows.ids), torch.from_numpy(rows.mask)).logits
    loss = F.cross_entropy(logits, torch.from_numpy(rows.targets), reduction="sum")
    loss.backward()
    gradients = {n: t.grad.numpy() for n, t in tensors.items() if t.grad is not None}
    return logits.detach().numpy(), float(loss.detach()), gradients


def answers(base: Path, recipe: Recipe, tensors: Tensors, rows: Batch) -> Any:
    """Logits of the answering graph, its slots filled from trained tensors."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(base / GRAPH), options, providers=["CPUExecutionProvider"])
    slots = slots_of(tensors, method=recipe.method, constants=recipe.constants)
    return session.run(None, {"input_ids": rows.ids, "attention_mask": rows.mask} | slots)[0]


@pytest.mark.parametrize(("places", "gated"), VARIANTS)
def test_answers_and_gradients_are_torchs(base: Path, places: str, gated: bool) -> None:
    recipe, rows = recipe_of(base, places, gated), batch(base)
    tensors = random_tensors(recipe)
    logits, loss, expected = by_torch(base, places, tensors, rows)
    size = np.abs(logits).max()
    assert np.abs(answers(base, recipe, tensors, rows) - logits).max() < 1e-5 * size
    trained = frozenset(spec.part for spec in recipe.layout.specs)
    engine = engine_for(recipe, opened_base(recipe.plan, base), threads=1, parts=[trained])
    ours_loss, ours = engine.gradients(tensors, rows, trained)
    assert ours_loss == pytest.approx(loss, rel=1e-5)
    assert expected.keys() == {n for n in tensors if not n.startswith("classifier.")}
    for part in trained - {"head"}:  # a gate's gradient is one sum, of which little may be left
        names = [spec.name for spec in recipe.layout.only({part}).specs]
        largest = max(np.abs(expected[name]).max() for name in names)
        for name in names:
            assert np.abs(expected[name]).max() > 0, name
            assert np.abs(ours[name] - expected[name]).max() < 3e-5 * largest, name


@pytest.mark.parametrize("places", ["houlsby", "pfeiffer", "parallel"])
def test_a_bottleneck_stands_where_the_paper_has_it(base: Path, places: str) -> None:
    manifest, recipe = read_manifest(base), recipe_of(base, places, False)
    paths = {n.rpartition(".")[0] for n in recipe.start() if not n.startswith("classifier.")}
    layers = 1 if manifest.family == "albert" else manifest.layers  # ALBERT's are one
    assert len(paths) == layers * (2 if places == "houlsby" else 1)
    attention, first, second = CALLED.get(manifest.family, CALLED["bert"])
    ends = {"houlsby": (attention, second), "pfeiffer": (second,), "parallel": (first,)}[places]
    assert {next(e for e in ends if p.endswith(f".{e}")) for p in paths} == set(ends)
    assert paths <= bottleneck_places(linear.path for linear in manifest.linears).keys()


def test_of_words_there_is_one_in_every_family_and_none_in_bases_of_before(base: Path) -> None:
    """In ALBERT and ELECTRA a word's vector is narrower than a layer's; a width is held to it."""
    manifest, recipe = read_manifest(base), recipe_of(base, "embeddings", False)
    (path,) = {n.rpartition(".")[0] for n in recipe.start() if not n.startswith("classifier.")}
    assert f"{path}.weight" in manifest.tensors
    assert recipe.start()[path + BOTTLENECK[0]].shape == (manifest.embedding_size, 3)
    kept = [slot for slot in manifest.graph.slots if not slot.name.startswith(path)]
    slots = {"slots": [slot.model_dump() for slot in kept]}
    graph = Graph.model_validate(manifest.graph.model_dump() | slots)
    (error,) = errors_of(recipe.plan, manifest.model_copy(update={"graph": graph}))
    assert error.field == "adapter.places"
    assert "build the base again" in error.remedy
    wide = {"method": "bottleneck", "places": "embeddings", "width": manifest.embedding_size + 1}
    (error,) = errors_of(plan_of(base, "", False, adapter=wide), manifest)
    assert error.field == "adapter.width"


def test_the_adapter_is_linear_in_gates_and_in_what_leads_up_and_in_nothing_else(
    tiny_base: Path,
) -> None:
    """The change at one linear, of a mean of two adapters and as the mean of their changes."""
    recipe = recipe_of(tiny_base, "pfeiffer", True)
    start, rng = random_tensors(recipe), np.random.default_rng(7)
    path = next(n for n in start if n.endswith(BOTTLENECK[2])).removesuffix(BOTTLENECK[2])
    x = rng.normal(size=(64, read_manifest(tiny_base).hidden_size))

    def change(tensors: Tensors) -> Any:
        slots = slots_of(tensors, method=recipe.method, constants=recipe.constants)
        down, bias, up = (slots[path + end].astype(np.float64) for end in BOTTLENECK)
        return np.maximum(x @ down + bias, 0) @ up

    for turn in recipe.method.turns:
        names = {spec.name for spec in recipe.layout.only(turn).specs}
        first, second = (
            {n: v + rng.normal(size=v.shape) if n in names else v for n, v in start.items()}
            for _ in range(2)
        )
        mean = {n: (first[n] + second[n]) / 2 for n in start}
        apart = np.abs(change(mean) - (change(first) + change(second)) / 2).max()
        assert (apart < 1e-9) == (not turn & recipe.method.nonlinear), turn


def test_a_device_may_train_what_it_runs(tiny_base: Path) -> None:
    """Slots as they are, of which a device knows no method: gradients are those of the method's program."""
    recipe, rows = recipe_of(tiny_base, "parallel", False), batch(tiny_base)
    tensors = random_tensors(recipe)
    slots = slots_of(tensors, method=recipe.method, constants={"scaling": 1.0})
    layout = slot_layout(slots)
    parts = {spec.part for spec in layout.specs}
    assert parts == {"bottleneck_down", "bottleneck_bias", "bottleneck_up", "head"}
    about = {"kind": "classification", "pairs": False}
    program = slot_program(tiny_base, recipe.manifest, layout, **about)
    session = open_session(program.graph(parts), tiny_base, threads=1)
    feeds = {"input_ids": rows.ids, "attention_mask": rows.mask, TARGET: rows.targets}
    _, *ours = session.run(None, feeds | slots)
    shared = recipe.plan.adapter.model_copy(update={"scaling": 1.0})
    plan = recipe.plan.model_copy(update={"adapter": shared})
    whole = Recipe(plan=plan, manifest=recipe.manifest)
    engine = engine_for(whole, opened_base(plan, tiny_base), threads=1, parts=[frozenset(parts)])
    _, theirs = engine.gradients(tensors, rows, frozenset(parts))
    for spec, gradient in zip(layout.specs, ours, strict=True):
        np.testing.assert_allclose(gradient, theirs[spec.name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("places", ["pfeiffer", "embeddings"])
def test_a_release_answers_alike_on_torch_and_on_a_device(
    tiny_base: Path, write_adapter: Any, tmp_path: Path, places: str
) -> None:
    settings = {"method": "bottleneck", "places": places, "width": 3}
    folder = write_adapter(tmp_path / "adapter", adapter=settings)
    note = release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    assert note.parity is not None
    rows = batch(tiny_base)
    session, options, _keep = edge_session(tiny_base, folder / EDGE_FILE)
    feeds = {"input_ids": rows.ids, "attention_mask": rows.mask}
    (logits,) = session.run(None, feeds, options)
    model = runpy.run_path(str(folder / "open_adapter.py"))["load"](folder, tiny_base)
    with torch.no_grad():
        opened = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits
    assert np.abs(opened.numpy() - logits).max() < 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize("gated", [False, True])
def test_rules_say_which_rounds_are_exact(tiny_base: Path, gated: bool) -> None:
    """Without gates no round trains them; what is zero is trained first."""
    method = method_of(plan_of(tiny_base, "pfeiffer", gated).adapter)
    inner = {"bottleneck_down", "bottleneck_bias"}
    turns = [{"bottleneck_up"}, inner]
    turns = [{"bottleneck_gate"}, *turns] if gated else turns
    phases = [set(parts) - {"head"} for parts in RULES["alternating"].phases(method)]
    assert phases == turns
    assert [set(p) - {"head"} for p in RULES["first"].phases(method)] == turns[:1]
    assert {name: rule.exact(method) for name, rule in RULES.items()} == {
        "alternating": False,
        "first": True,
        "mean": False,
    }
    assert METHODS["bottleneck"].nonlinear == inner
    notes = check(plan_of(tiny_base, "pfeiffer", gated, rule={"name": "alternating"}))
    (note,) = [f for f in notes if f.field == "rule.name"]
    assert "bottleneck_bias, bottleneck_down, in which the adapter is not linear" in note.cause
    start = recipe_of(tiny_base, "pfeiffer", gated).start()
    (zero,) = turns[0]
    assert not any(value.any() for name, value in start.items() if name.endswith(f".{zero}"))


def test_noise_asks_for_the_exact_rule(tiny_base: Path) -> None:
    privacy = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
    sections = {"privacy": privacy, "evaluation": {"holdout": 0.0}}
    for rule, legal in (("alternating", False), ("first", True)):
        plan = plan_of(tiny_base, "pfeiffer", False, rule={"name": rule}, **sections)
        wrong = [f for f in check(plan) if (f.field, f.severity) == ("rule.name", "error")]
        assert bool(wrong) == (not legal)
        assert all(finding.remedy == "use first" for finding in wrong)


def test_a_width_beyond_the_layers_is_refused(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    adapter = {"method": "bottleneck", "width": manifest.hidden_size + 1}
    plan = plan_of(tiny_base, "pfeiffer", False, adapter=adapter)
    errors = [f for f in check(plan, manifest) if f.severity == "error"]
    assert [finding.field for finding in errors] == ["adapter.width"]


def test_a_bottleneck_is_not_merged(tiny_base: Path, write_adapter: Any, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", method="bottleneck")
    release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    with pytest.raises(ArtefactError, match="a bottleneck is no weight"):
        write_merged(
            folder,
            tiny_base,
            tmp_path / "m",
            kind="onnx",
            bits=32,
            texts=TEXTS,
            bounds=Bounds(relative=1.0),
        )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("end", BOTTLENECK)
def test_a_device_refuses_a_part_of_one(tiny_base: Path, end: str) -> None:
    recipe = recipe_of(tiny_base, "houlsby", False)
    whole = slots_of(random_tensors(recipe), method=recipe.method, constants=recipe.constants)
    whole = {name: np.asarray(value, np.float32) for name, value in whole.items()}
    device = EdgeBase.open(tiny_base)
    check_tensors(whole, device, labels=3, source="a")
    lacking = max(name for name in whole if name.endswith(end))
    rest = {name: value for name, value in whole.items() if name != lacking}
    with pytest.raises(ArtefactError, match="is missing"):
        check_tensors(rest, device, labels=3, source="a")


def test_what_a_folder_does_not_say_of_ours_is_refused() -> None:
    method = METHODS["bottleneck"]
    assert method.constants_of({"non_linearity": "relu", "scaling": 4.0}) == {"scaling": 4.0}
    for config in (
        {"non_linearity": "gelu", "scaling": 4.0},
        {"non_linearity": "relu", "scaling": 0},
    ):
        with pytest.raises(ValueError):  # noqa: PT011  # any of it is a folder that is not ours
            method.constants_of(config)
