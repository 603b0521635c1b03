"""The keys of an encoder: in a plan's digest only where there is one, and refused where they say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from base_model.verify import read_manifest
from fedge.forecast import forecast
from protocol.errors import PlanError
from protocol.legality import check
from protocol.methods import METHODS, refusal
from protocol.methods.encoder import WIDTH
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe

# Of plans before there were encoders.
DIGESTS = {
    "prompt": "74ade78aa92150a5ed7e981cb0a2494c8885fc9bf1518806a307115e20ad6d89",
    "prefix": "2950f786fb3a9b52b28e0cc3d210e116918985c540bffa5d9ac048db56da6e8a",
}
SETTINGS = {
    "prompt": "11d27c88a3f4ec8154d9cdc649d0a83d5ba08f37299c9d6647721aa9dfe7d54c",
    "prefix": "74da46f0c4397fa6cb67446edd8974640180ef7b65d755f20439e794cae51f12",
}
ENCODER = {"encoder": "mlp"}


def plan_of(method: str, *, fingerprint: str = "ab" * 32, **adapter: Any) -> Plan:
    document = {
        "name": "t",
        "seed": 3,
        "base": {"fingerprint": fingerprint},
        "task": {"kind": "causal-lm"},
        "adapter": {"method": method, "tokens": 5} | adapter,
    }
    return plan_from(document, source="test")


@pytest.mark.parametrize("method", DIGESTS)
def test_plans_without_an_encoder_are_what_they_were(method: str) -> None:
    for adapter in ({}, {"encoder": "none"}, {"encoder_width": WIDTH}):
        plan = plan_of(method, **adapter)
        assert (plan.digest, plan.adapter_settings) == (DIGESTS[method], SETTINGS[method])
        assert plan.adapter.unsaid.isdisjoint(json.loads(plan.render())["adapter"])


@pytest.mark.parametrize("method", DIGESTS)
def test_plans_with_an_encoder_say_so(method: str) -> None:
    digests = {DIGESTS[method]}
    for adapter in (ENCODER, ENCODER | {"encoder_width": 8}):
        plan = plan_of(method, **adapter)
        written = json.loads(plan.render())
        assert written["adapter"]["encoder"] == "mlp"
        assert plan_from(written, source="again").digest == plan.digest
        assert plan.digest not in digests
        digests.add(plan.digest)


@pytest.mark.parametrize("method", DIGESTS)
@pytest.mark.parametrize(
    ("adapter", "cause"),
    [
        ({"encoder_width": 8}, "`adapter.encoder_width`: it is the width of an encoder, and"),
        ({"encoder": "lstm"}, "`adapter.encoder`"),
        (ENCODER | {"encoder_width": 0}, "`adapter.encoder_width`"),
        (ENCODER | {"encoder_width": 4097}, "`adapter.encoder_width`"),
    ],
)
def test_what_is_no_encoder_is_refused(method: str, adapter: dict[str, Any], cause: str) -> None:
    with pytest.raises(PlanError) as refused:
        plan_of(method, **adapter)
    assert cause in refused.value.cause


@pytest.mark.parametrize("name", ["p-tuning", "p_tuning", "P-Tuning", "prefix-tuning"])
def test_the_papers_names_lead_there(name: str) -> None:
    said = refusal(name)
    assert 'encoder = "mlp"' in said
    assert any(f"`{method}`" in said or f'"{method}"' in said for method in ("prompt", "prefix"))


def test_no_other_method_has_one(tiny_base: Path) -> None:
    for name, method in METHODS.items():
        assert ("encoder" in method.settings.model_fields) == (name in DIGESTS)


def test_its_numbers_are_named_and_counted(tiny_base: Path) -> None:
    """A network of (tokens, n), n to 6 and 6 to columns, with biases; no tensor of the adapter is its."""
    manifest = read_manifest(tiny_base)
    fingerprint = manifest.fingerprint
    labels = {"kind": "classification", "labels": ["a", "b"], "max_length": 16}
    plans = [
        plan_from(
            json.loads(plan_of("prompt", fingerprint=fingerprint, **adapter).render())
            | {"task": labels},
            source="test",
        )
        for adapter in ({}, ENCODER | {"encoder_width": 6})
    ]
    plain, encoded = (Recipe(plan=plan, manifest=manifest) for plan in plans)
    n, columns = manifest.hidden_size, manifest.embedding_size
    expected = 5 * n + 6 * n + 6 + 6 * columns + columns
    assert (plain.encoder_size, encoded.encoder_size) == (0, expected)
    assert plain.layout == encoded.layout
    said = [finding for finding in check(plans[1], manifest) if finding.field == "adapter.encoder"]
    assert [finding.severity for finding in said] == ["note"]
    assert f"{expected:,}" in said[0].cause
    assert not [finding for finding in check(plans[0], manifest) if "encoder" in finding.field]
    before, after = (forecast(plan, manifest).client_memory_bytes_estimate for plan in plans)
    assert after - before == 16 * expected
