from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from base_model.verify import read_manifest
from fedge.forecast import forecast
from protocol.errors import PlanError
from protocol.exchange.plain import HEADER
from protocol.legality import check, verify_legal, warnings_of
from protocol.manifest import Manifest
from protocol.methods import METHODS
from protocol.plan import Plan, plan_from
from protocol.privacy.planned import round_sizes
from protocol.recipe import Recipe
from protocol.rules import RULES, rule_named

PLAIN = {"secrecy": {"exchange": "plain"}}


def plan_of(manifest: Manifest, **sections: Any) -> Plan:
    document = {
        "name": "p",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"labels": ["a", "b", "c"], "max_length": 16},
        "adapter": {"rank": 4},
    }
    return plan_from(document | sections, source="test")


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"rank": 400}, "rank 400 exceeds"),
        ({"method": "loha", "rank": 6}, "rank 6 squared, 36, exceeds"),
        ({"method": "ravan", "rank": 16, "heads": 5}, "rank 16 in 5 heads, 80, exceeds"),
    ],
)
def test_a_rank_that_is_too_high_is_the_one_that_was_written(
    tiny_base: Path, adapter: dict[str, Any], says: str
) -> None:
    manifest = read_manifest(tiny_base)
    said = {f.cause for f in check(plan_of(manifest, adapter=adapter), manifest)}
    assert any(cause.startswith(f"{says} a layer's") for cause in said)


def test_what_the_default_targets_are_on_a_base_is_said(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest)
    assert [f.line for f in check(plan, manifest) if f.field == "adapter.targets"] == [
        "note `adapter.targets`: query-value is here: query, value"
    ]
    named = plan_of(manifest, adapter={"rank": 4, "targets": ["query", "value"]})
    assert (
        Recipe(plan=plan, manifest=manifest).layout == Recipe(plan=named, manifest=manifest).layout
    )
    dense = [linear for linear in manifest.linears if linear.path.endswith("dense")]
    odd = manifest.model_copy(update={"linears": dense})
    (error,) = [f for f in check(plan, odd) if f.severity == "error"]
    assert error.line == (
        "error `adapter.targets`: no linear of the base is named as queries or values are "
        '(linears end in: dense; or use targets = "all-linear")'
    )


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"rule": {"name": "nonsense"}}, "rule.name"),
        ({"adapter": {"rank": 4, "targets": ["qeury"]}}, "adapter.targets"),
        ({"adapter": {"rank": 400}}, "adapter.rank"),
        ({"adapter": {"method": "loha", "rank": 6}}, "adapter.rank"),
        ({"task": {"labels": ["a", "b"], "max_length": 4000}}, "task.max_length"),
        ({"base": {"fingerprint": "f" * 64}}, "base.fingerprint"),
        ({"rule": {"name": "flora"}}, "rule.name"),
        ({"secrecy": {"groups": 2}}, "secrecy.groups"),
        ({"secrecy": {"exchange": "plain", "groups": 3}}, "secrecy.groups"),
        ({"secrecy": {"groups": 3}}, "cohort.quorum"),
        ({"secrecy": {"combination": "trimmed-mean"}}, "secrecy.trim"),
        (
            {"secrecy": {"groups": 5, "trim": 2}, "cohort": {"size": 20, "quorum": 15}},
            "secrecy.trim",
        ),
        (
            {
                "secrecy": {"groups": 4, "combination": "trimmed-mean", "trim": 2},
                "cohort": {"size": 12, "quorum": 12},
            },
            "secrecy.trim",
        ),
        ({"cohort": {"size": 5000, "quorum": 4000}}, "cohort.size"),
        *(
            ({"release": {"keep": 0.5}, "adapter": adapter}, "release.keep")
            for adapter in (
                {"method": "norm"},
                {"method": "head"},
                {"method": "hybrid", "members": [{"method": "bias"}, {"method": "norm"}]},
            )
        ),
        ({"local": {"scaffold": 1.0}, "server": {"optimizer": "fedavgm"}}, "local.scaffold"),
        ({"local": {"scaffold": 1.0}, "adapter": {"method": "dylora"}}, "local.scaffold"),
        (
            {"local": {"scaffold": 1.0}, "adapter": {"method": "prompt", "encoder": "mlp"}},
            "local.scaffold",
        ),
        *(
            ({"local": {"orthogonality": 1.0}, "adapter": adapter}, "local.orthogonality")
            for adapter in (
                {"method": "lora-sb"},
                {"method": "vera", "rank": 4},
                {"method": "bias"},
                {"method": "prompt"},
                {"method": "head"},
            )
        ),
    ],
)
def test_an_illegal_plan_names_the_field(
    tiny_base: Path, sections: dict[str, Any], field: str
) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest, **sections)
    errors = [finding for finding in check(plan, manifest) if finding.severity == "error"]
    assert [finding.field for finding in errors] == [field]
    assert errors[0].remedy
    with pytest.raises(PlanError, match=field.replace(".", r"\.")):
        verify_legal(plan, manifest)


def test_a_legal_plan_still_says_what_is_insecure(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    findings = check(plan_of(manifest, **PLAIN), manifest)
    assert not [finding for finding in findings if finding.severity == "error"]
    assert any("INSECURE" in finding.cause for finding in findings)


@pytest.mark.parametrize(("size", "warned"), [(3, False), (4, True)])
def test_a_round_of_more_clients_than_are_named_is_warned_of(
    tiny_base: Path, size: int, warned: bool
) -> None:
    manifest = read_manifest(tiny_base)
    cohort = {"size": size, "quorum": 3, "clients": ["a", "b", "c"]}
    said = [f.cause for f in check(plan_of(manifest, cohort=cohort)) if f.field == "cohort.size"]
    assert said == [f"no round has {size} clients: `cohort.clients` names 3"] * warned


@pytest.mark.parametrize(("absolute", "warned"), [(0.0, 0), (0.01, 0), (0.02, 1), (1e3, 1)])
def test_a_parity_that_passes_anything_is_warned_of(
    tiny_base: Path, absolute: float, warned: int
) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest, release={"parity_max_absolute": absolute})
    fields = [finding.field for finding in warnings_of(plan, manifest)]
    assert fields.count("release.parity_max_absolute") == warned


@pytest.mark.parametrize(("keep", "said"), [(1.0, 0), (0.5, 1)])
def test_what_is_measured_between_rounds_is_said_to_be_whole(
    tiny_base: Path, keep: float, said: int
) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest, release={"keep": keep})
    notes = [f for f in check(plan, manifest) if f.field == "release.keep"]
    assert [f.severity for f in notes] == ["note"] * said


def test_secrecy_is_the_default(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest)
    assert plan.secrecy.exchange == "secagg"
    findings = check(plan, manifest)
    assert not any(f.severity == "error" or "INSECURE" in f.cause for f in findings)


PRIVATE = {"mechanism": "distributed"}
CENTRAL = {"mechanism": "central", "sampling": 0.1}
ONE = {"size": 10, "quorum": 1}


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        (PLAIN | {"privacy": PRIVATE}, "privacy.mechanism"),
        ({"privacy": CENTRAL, "cohort": {"quorum": 1}}, "privacy.mechanism"),
        (PLAIN | {"privacy": CENTRAL}, "cohort.quorum"),
        (PLAIN | {"privacy": {"mechanism": "central"}, "cohort": ONE}, "privacy.sampling"),
        (
            PLAIN | {"privacy": CENTRAL | {"rounds_per_client": 2}, "cohort": ONE},
            "privacy.rounds_per_client",
        ),
        ({"privacy": PRIVATE | {"sampling": 0.5}}, "privacy.sampling"),
        (
            {"privacy": PRIVATE, "secrecy": {"groups": 3}, "cohort": {"size": 30, "quorum": 24}},
            "secrecy.groups",
        ),
        ({"privacy": PRIVATE | {"corrupt": 7}}, "privacy.corrupt"),
        ({"privacy": PRIVATE, "evaluation": {"holdout": 0.1}}, "evaluation.holdout"),
        ({"privacy": PRIVATE, "rule": {"name": "mean"}}, "rule.name"),
        ({"privacy": PRIVATE, "rounds": 200}, "privacy.epsilon"),
        ({"privacy": PRIVATE | {"epsilon": 1.0}}, "privacy.epsilon"),
        ({"privacy": PRIVATE | {"noise_multiplier": 900.0}}, "privacy.noise_multiplier"),
        (PLAIN | {"privacy": CENTRAL, "cohort": ONE, "rounds": 5000}, "privacy.epsilon"),
    ],
)
def test_privacy_noise_refuses_what_it_does_not_cover(
    tiny_base: Path, sections: dict[str, Any], field: str
) -> None:
    manifest = read_manifest(tiny_base)
    found = [f for f in check(plan_of(manifest, **sections), manifest) if f.severity == "error"]
    assert field in [finding.field for finding in found]


def test_noise_that_drowns_the_update_is_warned_of(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    few = plan_of(manifest, privacy=PRIVATE)
    assert not [f for f in check(few, manifest) if f.severity == "error"]
    warned = [f for f in check(few, manifest) if f.field == "privacy.noise_multiplier"]
    ratio = 4.0 * max(round_sizes(few, manifest)) ** 0.5 / 10
    assert warned[0].severity == "warning"
    assert f"{ratio:.1f} times" in warned[0].cause
    many = plan_of(manifest, privacy=PRIVATE, cohort={"size": 128, "quorum": 100})
    noted = [f for f in check(many, manifest) if f.field == "privacy.noise_multiplier"]
    assert noted[0].severity == "note"
    assert forecast(many, manifest).epsilon == pytest.approx(4.07, abs=0.02)


def test_the_forecast_counts_what_is_sent(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest, **PLAIN)
    cost = forecast(plan, manifest)
    layout = Recipe(plan=plan, manifest=manifest).layout
    assert cost.adapter_parameters == layout.size
    upload = cost.upload_bytes_per_client_round
    assert upload["lora_B"] == HEADER.size + 4 * layout.only({"lora_B", "head"}).size
    assert cost.download_bytes_per_client_round == 4 * layout.size


def test_contracts_are_consistent() -> None:
    for rule in RULES.values():
        for number in range(1, 5):
            assert "head" in rule.parts(METHODS["lora"], number)
    first, second = (RULES["alternating"].parts(METHODS["lora"], turn) for turn in (1, 2))
    assert "lora_B" in first  # with B = 0 an A round would do nothing
    assert "lora_A" in second


@pytest.mark.parametrize(("key", "why"), [("dropout", "no dropout"), ("client_ranks", "the same")])
def test_a_key_of_an_earlier_format_is_refused_with_the_reason(
    tiny_base: Path, key: str, why: str
) -> None:
    """Not sent to the table of another meaning (an experiment has `faults.dropout`)."""
    with pytest.raises(PlanError, match=rf"unknown key `adapter\.{key}`") as caught:
        plan_of(read_manifest(tiny_base), adapter={"rank": 4, key: 0})
    assert why in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("flora", "use `alternating`"),
        ("flexlora", "use `alternating`"),
        ("fedit", "`mean`"),
        ("ffa-lora", "`first`"),
        ("fed-sb", "lora-sb"),
        ("prompt-mean", "leave the rule out"),
        ("men", "`mean`"),
    ],
)
def test_a_rule_that_there_is_not_is_told_the_nearest_or_why(name: str, remedy: str) -> None:
    with pytest.raises(PlanError, match=f"`{name}`") as refused:
        rule_named(name)
    assert remedy in refused.value.remedy


@pytest.mark.parametrize(("key", "value"), [("rank", 8), ("scaling", 2.0)])
def test_a_start_of_an_earlier_format_is_written_again(
    tiny_base: Path, key: str, value: object
) -> None:
    with pytest.raises(PlanError, match=rf"unknown key `start\.{key}`") as refused:
        plan_of(read_manifest(tiny_base), start={key: value})
    assert "fedge plan continue" in refused.value.remedy


@pytest.mark.parametrize(("engine", "notes"), [("auto", 1), ("onnx", 1), ("torch", 0)])
def test_a_precision_that_nothing_computes_in_is_noted(
    tiny_base: Path, engine: str, notes: int
) -> None:
    manifest = read_manifest(tiny_base)
    plan = plan_of(manifest, local={"engine": engine, "precision": "bf16"})
    assert [f.field for f in check(plan, manifest)].count("local.precision") == notes


START: dict[str, Any] = {"adapter": "a" * 64, "round": 2, "rounds": 2, "plans": ["b" * 64]}
START |= {"origin": "fedge/p/1", "size": 9, "root": "c" * 64}


@pytest.mark.parametrize(
    ("strength", "rounds", "sends"),
    [(0.0, 3, [False] * 3), (1.0, 1, [False]), (1.0, 3, [False, True, True])],
)
def test_clients_are_sent_what_they_are_pulled_to(
    tiny_base: Path, strength: float, rounds: int, sends: list[bool]
) -> None:
    """In round 1 it is what they train; what a seed gives they derive."""
    manifest = read_manifest(tiny_base)
    start = START | {"settings": plan_of(manifest).adapter_settings}
    plan = plan_of(manifest, local={"l2_sp": strength}, start=start, rounds=rounds)
    anew = plan_of(manifest, local={"l2_sp": strength}, rounds=rounds)
    recipe = Recipe(plan=plan, manifest=manifest)
    verify_legal(plan, manifest)
    numbers = range(1, rounds + 1)
    assert [recipe.sends_round_0(number) for number in numbers] == sends
    assert [recipe.sent_in(n) for n in numbers] == [recipe.layout.size * (1 + s) for s in sends]
    assert not any(map(Recipe(plan=anew, manifest=manifest).sends_round_0, numbers))
    noted = [f.severity for f in check(plan, manifest) if f.field == "local.l2_sp"]
    assert noted == ["note"] * any(sends)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["lora", "adalora", "loha", "lokr"])
def test_factors_with_a_rank_may_be_orthogonal(tiny_base: Path, name: str, rule: str) -> None:
    """Of `adalora` the first turn has none, the vector E alone."""
    manifest = read_manifest(tiny_base)
    adapter = {"method": name, "rank": 4}
    plan = plan_of(manifest, local={"orthogonality": 1.0}, adapter=adapter, rule={"name": rule})
    fields = [f.field for f in check(plan, manifest) if f.severity == "error"]
    assert ("local.orthogonality" in fields) == (name == "adalora" and rule == "first")


def test_a_combination_of_groups_is_said_where_it_is_another(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    groups: dict[str, Any] = {"groups": 5}
    plans = [
        plan_of(manifest, cohort={"size": 20, "quorum": 15}, secrecy=groups | secrecy)
        for secrecy in (
            {},
            {"combination": "geometric-median", "trim": 1},
            {"combination": "trimmed-mean"},
            {"combination": "trimmed-mean", "trim": 2},
        )
    ]
    assert plans[0].digest == plans[1].digest
    assert len({plan.digest for plan in plans}) == 3
    for plan in plans:
        verify_legal(plan, manifest)
        said = json.loads(plan.render())["secrecy"]
        assert ("combination" in said) == ("trim" in said) == (plan not in plans[:2])
        assert plan_from(json.loads(plan.render()), source="again").digest == plan.digest


@pytest.mark.parametrize(
    ("key", "value"), [("l2_sp", 3.0), ("orthogonality", 3.0), ("memory", 3), ("scaffold", 0.5)]
)
def test_keys_of_local_that_came_later_are_said_where_they_say_something(
    tiny_base: Path, key: str, value: float
) -> None:
    manifest = read_manifest(tiny_base)
    before, zero = plan_of(manifest), plan_of(manifest, local={key: 0})
    assert key not in before.render()
    assert zero.digest == before.digest
    said = plan_of(manifest, local={key: value})
    assert said.digest != before.digest
    assert plan_from(json.loads(said.render()), source="again").digest == said.digest
