"""The adapter of a plan with a core: its tensors, where it starts, and the plain form of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.verify import read_manifest
from edge_runtime.edge_adapter import write_edge_adapter
from fedge.forecast import forecast
from protocol.draws import normal, orthonormal_columns, uniform
from protocol.errors import ArtefactError, PlanError
from protocol.exchange.plain import HEADER
from protocol.forms import SOFT_PROMPT
from protocol.layout import Tensors, Vector
from protocol.legality import check, verify_legal
from protocol.manifest import Linear, Manifest
from protocol.methods.lora_sb import LORA_A, LORA_B, LORA_R
from protocol.methods.targets import TargetSettings, target_linears
from protocol.peft_format import Published, to_edge, to_peft
from protocol.plan import Plan, plan_from, plan_from_text
from protocol.plan_sections import Secrecy
from protocol.recipe import Recipe, initial_adapter, verify_magnitude
from protocol.rules import RULES
from protocol.tensor_file import encode_tensors
from tests.methods import SORTING, adapter_of, sections_of

RANK = 4


@pytest.fixture
def manifest(tiny_base: Path) -> Manifest:
    return read_manifest(tiny_base)


def plan_of(manifest: Manifest, name: str = "lora-sb", **adapter: Any) -> Plan:
    """``name`` is a rule's, or a method's under the default rule."""
    sections = sections_of(name)
    document = {
        "name": "p",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"labels": ["a", "b", "c"], "max_length": 16},
        "rule": sections["rule"],
        "adapter": adapter_of(sections["adapter"]["method"], **{"targets": "all-linear"} | adapter),
    }
    return plan_from(document, source="test")


def filled(plan: Plan, manifest: Manifest) -> Tensors:
    layout, rng = Recipe(plan=plan, manifest=manifest).layout, np.random.default_rng(0)
    start = initial_adapter(layout, seed=1)
    cores = layout.only({"lora_R"}).specs
    return start | {s.name: rng.normal(0, 0.3, s.shape).astype(np.float32) for s in cores}


def linears_of(plan: Plan, manifest: Manifest) -> tuple[Linear, ...]:
    assert isinstance(plan.adapter, TargetSettings)
    return target_linears(plan.adapter, manifest)


def test_a_round_sends_cores_and_head_and_nothing_else(manifest: Manifest) -> None:
    plan = plan_of(manifest)
    layout = Recipe(plan=plan, manifest=manifest).layout
    count = len(linears_of(plan, manifest))
    head = sum(spec.size for spec in layout.specs if spec.part == "head")
    for number in (1, 2, 3):
        sent = Recipe(plan=plan, manifest=manifest).round_layout(number)
        assert {spec.part for spec in sent.specs} == {"lora_R", "head"}
        assert sent.size == count * RANK**2 + head
    plain = plan.model_copy(update={"secrecy": Secrecy(exchange="plain")})
    cost = forecast(plain, manifest)
    assert cost.upload_bytes_per_client_round == {"lora_R": HEADER.size + 4 * sent.size}
    assert cost.download_bytes_per_client_round == 4 * sent.size


def test_a_plan_with_a_core_is_legal_under_the_defaults(manifest: Manifest) -> None:
    plan = plan_of(manifest)
    assert plan.secrecy.exchange == "secagg"
    assert not [found for found in check(plan, manifest) if found.severity == "error"]


def test_fixed_factors_are_orthonormal_seeded_and_all_different(manifest: Manifest) -> None:
    layout = Recipe(plan=plan_of(manifest), manifest=manifest).layout
    start, again, other = (initial_adapter(layout, seed=seed) for seed in (1, 1, 2))
    factors = [spec for spec in layout.specs if spec.part in {"lora_A", "lora_B"}]
    for spec in factors:
        value = start[spec.name]
        gram = value @ value.T if spec.part == "lora_A" else value.T @ value
        np.testing.assert_allclose(gram, np.eye(RANK), atol=1e-6)
        assert value.tobytes() == again[spec.name].tobytes() != other[spec.name].tobytes()
        assert value.dtype == np.float32
    assert len({start[spec.name].tobytes() for spec in factors}) == len(factors)
    for spec in layout.only({"lora_R"}).specs:
        assert not start[spec.name].any()


def test_the_change_is_as_large_as_the_core(manifest: Manifest) -> None:
    """What the constant 1 is for: |B R A| = |R| in every layer, whatever its width."""
    tensors = filled(plan_of(manifest), manifest)
    for name in (name for name in tensors if name.endswith(LORA_R)):
        path = name.removesuffix(LORA_R)
        change = tensors[path + LORA_B] @ tensors[name] @ tensors[path + LORA_A]
        assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(tensors[name]), rel=1e-5)


def test_rules_without_a_core_start_as_ever(manifest: Manifest) -> None:
    layout = Recipe(plan=plan_of(manifest, "mean"), manifest=manifest).layout
    start = initial_adapter(layout, seed=1)
    for spec in layout.specs:
        if spec.part == "lora_A":
            assert np.abs(start[spec.name]).max() <= spec.shape[1] ** -0.5
        if spec.part == "lora_B":
            assert not start[spec.name].any()


def test_the_plain_form_is_the_same_product_without_a_core(manifest: Manifest) -> None:
    plan = plan_of(manifest)
    layout, tensors = Recipe(plan=plan, manifest=manifest).layout, filled(plan, manifest)
    plain = Recipe(plan=plan, manifest=manifest).published(tensors)
    assert sorted(plain) == [s.name for s in layout.specs if s.part != "lora_R"]
    for linear in linears_of(plan, manifest):
        a, b, r = (tensors[linear.path + end] for end in (LORA_A, LORA_B, LORA_R))
        np.testing.assert_array_equal(plain[linear.path + LORA_A], a)
        np.testing.assert_allclose(
            plain[linear.path + LORA_B] @ plain[linear.path + LORA_A], b @ r @ a, atol=1e-6
        )
        exact = np.array([[_dot(row, column) for column in r.T] for row in b])
        assert plain[linear.path + LORA_B].tobytes() == exact.astype(np.float32).tobytes()
    recipe = Recipe(plan=plan, manifest=manifest)
    again = recipe.published(recipe.resumed(plain))
    assert layout.flatten(recipe.resumed(plain)).shape == (layout.size,)
    assert all(np.array_equal(again[name], value) for name, value in plain.items())


def _dot(row: Vector, column: Vector) -> float:
    """P-5.1's order, with Python's floats."""
    total = 0.0
    for x, y in zip(row, column, strict=True):
        total += float(x) * float(y)
    return total


def test_round_0_is_spread_as_it_should_be() -> None:
    """Deviates have mean 0 and deviation 1, uniform numbers fill -1 to 1; a longer draw begins alike."""
    deviates, numbers = normal(7, (40_000,)), uniform(7, (40_000,))
    assert abs(deviates.mean()) < 0.02
    assert deviates.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(deviates).max() < 6
    share = np.mean(np.abs(deviates) < 1)
    assert share == pytest.approx(0.683, abs=0.01)
    assert abs(numbers.mean()) < 0.02
    assert numbers.std() == pytest.approx(3**-0.5, abs=0.01)
    assert numbers.all()
    assert uniform(7, (2, 3)).tobytes() == numbers[:6].tobytes()
    assert normal(8, (1,)) != deviates[0]


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (6, 1), (64, 7), (96, 96)])
def test_columns_are_orthonormal_at_every_rank(rows: int, columns: int) -> None:
    made = orthonormal_columns(3, rows, columns)
    np.testing.assert_allclose(made.T @ made, np.eye(columns), atol=1e-14)


def test_more_columns_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no more orthonormal columns"):
        orthonormal_columns(3, 4, 5)


def test_a_last_bit_of_the_embeddings_deviation_changes_nothing(manifest: Manifest) -> None:
    plan = plan_of(manifest, "prompt")
    prompts = [
        Recipe(plan=plan, manifest=manifest.model_copy(update={"embedding_std": std})).start()
        for std in (0.047, float(np.nextafter(0.047, 1)))
    ]
    assert prompts[0][SOFT_PROMPT].tobytes() == prompts[1][SOFT_PROMPT].tobytes()


@pytest.mark.parametrize("value", [64.5, -65.0, 3e38, np.inf, -np.inf, np.nan])
def test_an_adapter_that_nobody_trains_on(value: float) -> None:
    """A crafted one would tell by its effects who holds what: it is refused before any row is read."""
    vector = np.full(5, 64.0, np.float32)
    verify_magnitude(vector)
    verify_magnitude(-vector)
    vector[3] = value
    with pytest.raises(ArtefactError, match=r"magnitude|NaN"):
        verify_magnitude(vector)


@pytest.mark.parametrize("secrecy", ["plain", "secagg"])
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("name", [*RULES, "lora-sb"])
def test_no_rule_downloads_or_publishes_more_than_lora(
    name: str, rank: int, secrecy: str, manifest: Manifest, tmp_path: Path
) -> None:
    """At one rank: what goes to clients, the PEFT folder's weights and the device's file."""

    def sizes(name: str) -> list[int]:
        plan = plan_of(manifest, name, rank=rank)
        plan = plan.model_copy(update={"secrecy": Secrecy(exchange=secrecy)})
        recipe, published = Recipe(plan=plan, manifest=manifest), Published.by(plan.adapter)
        plain = recipe.published(filled(plan, manifest))
        write_edge_adapter(to_edge(plain, published=published), tmp_path / name)
        return [
            forecast(plan, manifest).download_bytes_per_client_round,
            len(encode_tensors(to_peft(plain, method=recipe.method), {"format": "pt"})),
            (tmp_path / name).stat().st_size,
        ]

    assert [a <= b for a, b in zip(sizes(name), sizes("mean"), strict=True)] == [True] * 3


def test_layers_choose_among_the_targets(manifest: Manifest) -> None:
    """And a plan without them says nothing of them."""
    every = [linear.path for linear in linears_of(plan_of(manifest), manifest)]
    last = plan_of(manifest, layers=[1])
    chosen = [linear.path for linear in linears_of(last, manifest)]
    assert chosen == [path for path in every if ".layer.1." in path]
    assert 0 < len(chosen) < len(every)
    named = plan_of(manifest, targets=["query"], layers=[0, 1])
    assert len(linears_of(named, manifest)) == 2
    assert '"layers"' not in plan_of(manifest).render()
    assert plan_of(manifest, layers=[]).digest == plan_of(manifest).digest != last.digest
    assert last.adapter_settings != plan_of(manifest).adapter_settings
    assert plan_from_text(last.render(), source="p.json").digest == last.digest


@pytest.mark.parametrize(
    ("layers", "cause"),
    [([2], "the base has no layer 2"), ([1, 0], "in order"), ([0, 0], "once"), ([-1], "layers")],
)
def test_layers_that_are_not_there_are_said(
    manifest: Manifest, layers: list[int], cause: str
) -> None:
    with pytest.raises(PlanError, match=cause):
        verify_legal(plan_of(manifest, layers=layers), manifest)


@pytest.mark.parametrize("name", [*RULES, *SORTING])
def test_clients_complete_what_they_are_sent(name: str, manifest: Manifest) -> None:
    """(P-2.6) Whatever rounds have trained; what none trains is round 0's, from the plan's seed."""
    recipe = Recipe(plan=plan_of(manifest, name), manifest=manifest)
    layout, sent = recipe.layout, recipe.sent_layout
    rng = np.random.default_rng(0)
    full = initial_adapter(layout, seed=recipe.plan.seed)
    full |= {s.name: rng.normal(size=s.shape).astype(np.float32) for s in sent.specs}
    vector = sent.flatten({spec.name: full[spec.name] for spec in sent.specs})
    for _ in range(2):  # what one caller does to its tensors is no other's
        received = recipe.completed(vector)
        assert layout.flatten(received).tobytes() == layout.flatten(full).tobytes()
        for value in received.values():
            value += 1
    rounds = {part for number in (1, 2, 3, 4) for part in recipe.parts(number)}
    assert {spec.part for spec in sent.specs} == rounds
    stays = recipe.method.free.keys() - frozenset().union(*recipe.method.turns)
    assert (sent.size < layout.size) == (name == "first" or bool(stays))
    for wrong in (vector[:-1], layout.flatten(full) if sent.size < layout.size else vector[1:]):
        with pytest.raises(ArtefactError, match="does not fit a layout"):
            recipe.completed(wrong)
