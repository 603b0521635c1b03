"""The adapter on the resident base: names, values, ranks, the stack, and a base that stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.release import open_peft
from base_model.store import OpenBase, open_base
from client.adapter_model import AdapterModel
from client.batches import Encoded, by_length, collate
from client.training import EVALUATION_BATCH, predict_logits, train
from protocol.adapter import as_plain_lora, initial_adapter
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.plan import Plan
from protocol.rules import Role, rule_named
from server.peft_folder import write_peft_folder

Make = Callable[..., Plan]
Adapters = Callable[..., Tensors]


@pytest.mark.parametrize("rule", ["fedit", "fed-sb", "prompt-mean"])
def test_vector_to_model_to_vector_is_the_identity(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, rule: str
) -> None:
    plan = make_plan(rule)
    model = AdapterModel(base, plan)
    tensors = random_adapter(plan)
    model.load(tensors)
    vector = model.layout.flatten(model.tensors())
    assert vector.tobytes() == model.layout.flatten(tensors).tobytes()


@pytest.mark.parametrize("rule", ["fedit", "fed-sb", "prompt-mean"])
def test_the_values_loaded_are_the_values_computed_with(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, encoded: Encoded, rule: str
) -> None:
    """Every tensor loaded changes the logits: none of them is a copy that nothing reads."""
    plan = make_plan(rule)
    model = AdapterModel(base, plan)
    tensors = random_adapter(plan)
    model.load(tensors)
    before = predict_logits(model, encoded)
    for name in tensors:
        model.load(tensors | {name: tensors[name] + np.float32(0.5)})
        assert not np.array_equal(predict_logits(model, encoded), before), name


def test_an_adapted_linear_adds_s_times_b_a_x(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, encoded: Encoded
) -> None:
    plan = make_plan(adapter={"rank": 4, "alpha": 12.0})  # s = 3
    model = AdapterModel(base, plan)
    tensors = random_adapter(plan)
    model.load(tensors)
    path = next(name for name in tensors if name.endswith("lora_A")).removesuffix(".lora_A")
    layer: Any = base.model.get_submodule(path)
    x = torch.randn(3, tensors[f"{path}.lora_A"].shape[1], generator=torch.manual_seed(0))
    with torch.no_grad():
        added = (layer(x) - layer.base_layer(x)).numpy()
    a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
    np.testing.assert_allclose(added, 3 * x.numpy() @ a.T @ b.T, rtol=1e-4, atol=1e-4)


def test_a_core_lies_between_the_factors(
    base: OpenBase, make_plan: Make, random_adapter: Adapters
) -> None:
    plan = make_plan("fed-sb", adapter={"rank": 4, "alpha": 12.0})  # s = 3
    model = AdapterModel(base, plan)
    tensors = random_adapter(plan)
    model.load(tensors)
    path = next(name for name in tensors if name.endswith("lora_A")).removesuffix(".lora_A")
    layer: Any = base.model.get_submodule(path)
    a, b, r = (tensors[f"{path}.lora_{which}"] for which in "ABR")
    x = torch.randn(3, a.shape[1], generator=torch.manual_seed(0))
    with torch.no_grad():
        added = (layer(x) - layer.base_layer(x)).numpy()
    np.testing.assert_allclose(added, 3 * x.numpy() @ a.T @ r.T @ b.T, rtol=1e-4, atol=1e-4)


def test_a_core_starts_without_effect_and_learns_at_once(
    base: OpenBase, make_plan: Make, encoded: Encoded
) -> None:
    plan = make_plan("fed-sb")
    model = AdapterModel(base, plan)
    start = initial_adapter(model.layout, seed=1, embedding_std=0.02)
    model.load(start)
    before = predict_logits(model, encoded)
    gone = {k: np.zeros_like(v) if ".lora_" in k else v for k, v in start.items()}
    model.load(gone)
    np.testing.assert_array_equal(predict_logits(model, encoded), before)
    model.load(start)
    one_step = plan.local.model_copy(update={"max_steps": 1, "learning_rate": 1e-2})
    train(model, encoded, local=one_step, roles=rule_named("fed-sb").roles(1), seed=0)
    assert all(v.any() for k, v in model.tensors().items() if k.endswith("lora_R"))


def test_an_adapter_with_and_one_without_cores_share_a_base(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, encoded: Encoded
) -> None:
    """Equal settings but for the rule: two adapters, and making one again wraps nothing twice."""
    cored, plain = make_plan("fed-sb"), make_plan("fedit")
    first = AdapterModel(base, cored)
    first.load(random_adapter(cored))
    before = predict_logits(first, encoded)
    second = AdapterModel(base, plain)
    second.load(random_adapter(plain, seed=1))
    roles = frozenset({Role.LORA_A, Role.LORA_B, Role.HEAD})
    train(second, encoded, local=plain.local, roles=roles, seed=0)
    again = AdapterModel(base, cored)
    assert list(again.trained().values()) == list(first.trained().values())
    np.testing.assert_array_equal(predict_logits(again, encoded), before)


def test_what_is_published_of_cores_computes_what_was_trained(
    base: OpenBase, tiny_base: Path, make_plan: Make, encoded: Encoded, tmp_path: Path
) -> None:
    """Through the door a user takes: ``PeftModel.from_pretrained`` on a base of its own."""
    local = {"batch_size": 8, "learning_rate": 0.05}
    plan = make_plan("fed-sb", adapter={"rank": 4, "targets": "all-linear"}, local=local)
    model = AdapterModel(base, plan)
    model.load(initial_adapter(model.layout, seed=1, embedding_std=0.02))
    before = predict_logits(model, encoded)
    train(model, encoded, local=plan.local, roles=rule_named("fed-sb").roles(1), seed=0)
    trained = predict_logits(model, encoded)
    assert np.abs(trained - before).max() > 0.1
    write_peft_folder(
        tmp_path / "adapter",
        as_plain_lora(model.tensors()),
        plan=plan,
        manifest=base.manifest,
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
            batch = collate(encoded, index)
            logits = opened(input_ids=batch.ids, attention_mask=batch.mask).logits
            published[index] = logits.numpy()
    assert np.abs(published - trained).max() <= 1e-5 * np.abs(trained).max()


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(
    base: OpenBase, make_plan: Make, random_adapter: Adapters
) -> None:
    plan = make_plan()
    model = AdapterModel(base, plan)
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
        ("fedit", 1),
        ("alternating", 1),
        ("alternating", 2),
        ("ffa-lora", 1),
        ("fed-sb", 1),
        ("prompt-mean", 1),
    ],
)
def test_only_the_roles_of_the_round_move_and_the_base_stays(
    base: OpenBase,
    make_plan: Make,
    random_adapter: Adapters,
    encoded: Encoded,
    frozen_hash: Callable[[torch.nn.Module], dict[str, str]],
    rule: str,
    round_number: int,
) -> None:
    plan = make_plan(rule)
    untouched = frozen_hash(base.model)
    untouched = {k: v for k, v in untouched.items() if not k.startswith("classifier.")}
    model = AdapterModel(base, plan)
    start = random_adapter(plan)
    model.load(start)
    roles = rule_named(rule).roles(round_number)
    train(model, encoded, local=plan.local, roles=roles, seed=0)
    after = model.tensors()
    moved = {name for name in after if not np.array_equal(after[name], start[name])}
    assert moved == {spec.name for spec in model.layout.only(roles).specs}
    trainable = {id(p) for p in base.model.parameters() if p.requires_grad}
    if rule == "prompt-mean":  # the prompt lies beside the base, not in it
        trainable |= {id(model.trained()["soft_prompt"])}
    assert trainable == {id(p) for p in model.trained().values()}
    now = frozen_hash(base.model)
    assert {name: now[name] for name in untouched} == untouched


def test_adapters_share_one_base_and_do_not_disturb_each_other(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, encoded: Encoded
) -> None:
    narrow = make_plan("fedit", adapter={"rank": 2, "alpha": 4.0})
    wide = make_plan("fedit", adapter={"rank": 4, "alpha": 8.0})
    size = sum(p.numel() for p in base.model.parameters())
    small, large = AdapterModel(base, narrow), AdapterModel(base, wide)
    small.load(random_adapter(narrow))
    large.load(random_adapter(wide))
    of_small = predict_logits(small, encoded)
    train(large, encoded, local=wide.local, roles=frozenset(Role) - {Role.PROMPT}, seed=0)
    assert np.array_equal(predict_logits(small, encoded), of_small)
    added = sum(p.numel() for p in base.model.parameters()) - size
    assert added == small.layout.size + large.layout.size  # and no second base


def test_an_equal_model_made_again_uses_the_same_parameters(
    base: OpenBase, make_plan: Make, random_adapter: Adapters
) -> None:
    plan = make_plan()
    first = AdapterModel(base, plan)
    count = len(list(base.model.parameters()))
    again = AdapterModel(base, make_plan(rounds=3))
    first.load(random_adapter(plan, seed=5))
    assert (
        again.layout.flatten(again.tensors()).tobytes()
        == first.layout.flatten(first.tensors()).tobytes()
    )
    assert len(list(base.model.parameters())) == count


def test_a_base_is_wrapped_for_one_method(base: OpenBase, make_plan: Make) -> None:
    AdapterModel(base, make_plan())
    with pytest.raises(ValueError, match="another PEFT method"):
        AdapterModel(base, make_plan("prompt-mean"))


def test_a_base_opened_for_other_labels_is_refused(base: OpenBase, make_plan: Make) -> None:
    plan = make_plan(task={"labels": ["a", "b"], "max_length": 16})
    with pytest.raises(TypeError, match="number of labels"):
        AdapterModel(base, plan)


def test_a_soft_prompt_attends_to_the_text(
    base: OpenBase, make_plan: Make, random_adapter: Adapters, encoded: Encoded
) -> None:
    """Padding must not reach the logits, with a prompt in front of it."""
    plan = make_plan("prompt-mean")
    model = AdapterModel(base, plan)
    model.load(random_adapter(plan))
    batch = collate(encoded, np.arange(4))
    with torch.no_grad():
        together = model.forward(batch.ids, batch.mask)
        for row in range(4):
            one = collate(encoded, np.array([row]))
            alone = model.forward(one.ids, one.mask)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
