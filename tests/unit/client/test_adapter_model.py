"""The oracle: peft's adapter on the base has the protocol's names, values and law."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.release import open_peft
from base_model.store import OpenBase, open_base
from base_model.verify import read_manifest
from client.batches import Batch, Encoded, by_length, collate
from client.engine.adapter_model import AdapterModel
from client.engine.interface import Engine
from client.engine.torch_engine import TorchEngine
from client.training import EVALUATION_BATCH, predict, train
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.plan import Plan
from protocol.recipe import Recipe, initial_adapter
from server.peft_folder import write_peft_folder
from tests.methods import SORTING, adapter_of, sections_of

Make = Callable[..., Plan]
Adapters = Callable[..., Tensors]


def tensors_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)


@pytest.mark.parametrize("rule", SORTING)
def test_vector_to_model_to_vector_is_the_identity(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, rule: str
) -> None:
    plan = make_plan(rule)
    model = AdapterModel(base, Recipe(plan=plan, manifest=base.manifest))
    tensors = random_adapter(plan)
    model.load(tensors)
    vector = model.layout.flatten(model.tensors())
    assert vector.tobytes() == model.layout.flatten(tensors).tobytes()


@pytest.mark.parametrize("rule", SORTING)
def test_every_tensor_moves_the_logits(
    engine_of: Callable[[Plan], Engine],
    make_plan: Make,
    random_adapter: Adapters,
    encoded: Encoded,
    rule: str,
) -> None:
    plan = make_plan(rule)
    engine, tensors = engine_of(plan), random_adapter(plan)
    before = predict(engine, tensors, encoded)
    for name in tensors:
        moved = tensors | {name: tensors[name] + np.float32(0.5)}
        assert not np.array_equal(predict(engine, moved, encoded), before), name


@pytest.mark.parametrize("rule", ["mean", "lora-sb"])
def test_an_adapted_linear_adds_s_times_the_factors(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, rule: str
) -> None:
    plan = make_plan(rule, adapter=sections_of(rule)["adapter"] | {"alpha": 12.0})  # s = 3
    model = AdapterModel(base, Recipe(plan=plan, manifest=base.manifest))
    tensors = random_adapter(plan)
    model.load(tensors)
    path = next(name for name in tensors if name.endswith("lora_A")).removesuffix(".lora_A")
    layer: Any = base.model.get_submodule(path)
    a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
    core = tensors.get(f"{path}.lora_R", np.eye(4, dtype=np.float32))
    x = torch.randn(3, a.shape[1], generator=torch.manual_seed(0))
    with torch.no_grad():
        added = (layer(x) - layer.base_layer(x)).numpy()
    np.testing.assert_allclose(added, 3 * x.numpy() @ a.T @ core.T @ b.T, rtol=1e-4, atol=1e-4)


def test_a_core_starts_without_effect_and_learns_at_once(
    engine_of: Callable[[Plan], Engine], make_plan: Make, encoded: Encoded
) -> None:
    plan = make_plan("lora-sb")
    engine = engine_of(plan)
    start = initial_adapter(engine.layout, seed=1)
    gone = {k: np.zeros_like(v) if ".lora_" in k else v for k, v in start.items()}
    np.testing.assert_array_equal(predict(engine, gone, encoded), predict(engine, start, encoded))
    one_step = plan.local.model_copy(update={"max_steps": 1, "learning_rate": 1e-2})
    parts = frozenset({"lora_R", "head"})
    trained = train(engine, start, encoded, local=one_step, parts=parts, seed=0)
    assert all(v.any() for k, v in trained.tensors.items() if k.endswith("lora_R"))


def test_what_is_published_of_cores_computes_what_was_trained(
    engine_of: Callable[[Plan], Engine],
    base: OpenBase,
    tiny_base: Path,
    make_plan: Make,
    encoded: Encoded,
    tmp_path: Path,
) -> None:
    """Through the door a user takes: ``PeftModel.from_pretrained`` on a base of its own."""
    local = {"batch_size": 8, "learning_rate": 0.05}
    plan = make_plan("lora-sb", adapter=adapter_of("lora-sb", targets="all-linear"), local=local)
    engine = engine_of(plan)
    start = initial_adapter(engine.layout, seed=1)
    before = predict(engine, start, encoded)
    parts = frozenset({"lora_R", "head"})
    after = train(engine, start, encoded, local=plan.local, parts=parts, seed=0).tensors
    trained = predict(engine, after, encoded)
    assert np.abs(trained - before).max() > 0.1
    write_peft_folder(
        tmp_path / "adapter",
        after,
        recipe=Recipe(plan=plan, manifest=base.manifest),
        round_number=1,
        adapter_digest="0" * 64,
        exchange="secagg",
        secure=True,
        metrics={},
    )
    opened = open_peft(open_base(tiny_base, labels=3, verify=False), tmp_path / "adapter")
    published = np.zeros_like(trained)
    with torch.no_grad():
        for index in by_length(encoded.lengths, batch_size=EVALUATION_BATCH):
            ids, mask = tensors_of(collate(encoded, index))
            published[index] = opened(input_ids=ids, attention_mask=mask).logits.numpy()
    assert np.abs(published - trained).max() <= 1e-5 * np.abs(trained).max()


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    base: OpenBase, make_plan: Make, random_adapter: Adapters
) -> None:
    plan = make_plan()
    model = AdapterModel(base, Recipe(plan=plan, manifest=base.manifest))
    tensors = random_adapter(plan)
    model.load(tensors)
    name = min(tensors)
    less = {key: value for key, value in tensors.items() if key != name}
    wrong = ({**tensors, name: tensors[name][:1]}, {**tensors, "other": tensors[name]}, less)
    for bad in wrong:
        with pytest.raises(ArtefactError):
            model.load(bad)
    assert (
        model.layout.flatten(model.tensors()).tobytes() == model.layout.flatten(tensors).tobytes()
    )


@pytest.mark.parametrize(
    ("rule", "round_number"),
    [
        ("mean", 1),
        ("alternating", 1),
        ("alternating", 2),
        ("first", 1),
        ("lora-sb", 1),
        ("prompt", 1),
        *(("loha", turn) for turn in (1, 2, 3, 4)),
        ("head", 1),
    ],
)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_only_the_parts_of_the_round_move(
    engine_of: Callable[[Plan], Engine],
    tiny_base: Path,
    make_plan: Make,
    random_adapter: Adapters,
    encoded: Encoded,
    rule: str,
    round_number: int,
    kind: str,
) -> None:
    plan = make_plan(rule)
    engine = (
        engine_of(plan)
        if kind == "onnx"
        else TorchEngine(tiny_base, Recipe(plan=plan, manifest=read_manifest(tiny_base)), threads=1)
    )
    start, parts = (
        random_adapter(plan),
        Recipe(plan=plan, manifest=read_manifest(tiny_base)).parts(round_number),
    )
    after = train(engine, start, encoded, local=plan.local, parts=parts, seed=0).tensors
    moved = {name for name in after if not np.array_equal(after[name], start[name])}
    assert moved == {spec.name for spec in engine.layout.only(parts).specs}


def test_the_base_stays(
    base: OpenBase,
    make_plan: Make,
    random_adapter: Adapters,
    encoded: Encoded,
    frozen_hash: Callable[[torch.nn.Module], dict[str, str]],
) -> None:
    plan = make_plan()
    untouched = frozen_hash(base.model)
    untouched = {k: v for k, v in untouched.items() if not k.startswith("classifier.")}
    model = AdapterModel(base, Recipe(plan=plan, manifest=base.manifest))
    model.load(random_adapter(plan))
    trained = model.train_only({"lora_B", "head"})
    model.forward(*tensors_of(collate(encoded, np.arange(4)))).sum().backward()
    trainable = {id(p) for p in base.model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in trained.values()}
    now = frozen_hash(base.model)
    assert {name: now[name] for name in untouched} == untouched


def test_a_base_opened_for_other_labels_is_refused(base: OpenBase, make_plan: Make) -> None:
    plan = make_plan(task={"labels": ["a", "b"], "max_length": 16})
    with pytest.raises(TypeError, match="number of labels"):
        AdapterModel(base, Recipe(plan=plan, manifest=base.manifest))


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_soft_prompt_attends_to_the_text(
    engine_of: Callable[[Plan], Engine],
    tiny_base: Path,
    make_plan: Make,
    random_adapter: Adapters,
    encoded: Encoded,
    kind: str,
) -> None:
    """Padding must not reach the logits, with a prompt in front of it."""
    plan = make_plan("prompt")
    engine = (
        engine_of(plan)
        if kind == "onnx"
        else TorchEngine(tiny_base, Recipe(plan=plan, manifest=read_manifest(tiny_base)), threads=1)
    )
    tensors = random_adapter(plan)
    together = engine.outputs(tensors, collate(encoded, np.arange(4)))
    for row in range(4):
        alone = engine.outputs(tensors, collate(encoded, np.array([row])))
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-4, atol=1e-5)
