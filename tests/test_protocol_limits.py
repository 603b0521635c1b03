"""The protocol's limits are the code's: a second implementation refuses the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocol import documents, head, joined, recipe, section
from protocol.decoder_manifest import DecoderManifest
from protocol.documents import MOST_BYTES
from protocol.encoding import canonical_json, digest
from protocol.errors import PlanError
from protocol.manifest import Linear
from protocol.plan import Plan, plan_from
from storage.regular import SMALL
from tests.plan_bounds import model_bounds, table_bounds

PROTOCOL = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
DOCUMENT = {"name": "p", "base": {"fingerprint": "0" * 64}, "task": {"labels": ["a", "b"]}}


def step(number: str) -> str:
    """The text of a step, its lines as one."""
    rest = PROTOCOL.read_text("utf-8").partition(f"**{number} ")[2]
    return " ".join(rest.partition("\n- **P-")[0].partition("\n## ")[0].split())


def plan_of(**tables: Any) -> Plan:
    return plan_from(DOCUMENT | tables, source="t")


def test_the_table_has_every_bound_of_a_plans_keys_and_no_other() -> None:
    assert table_bounds(PROTOCOL) == model_bounds()


@pytest.mark.parametrize(
    ("key", "within", "beyond"),
    [
        ("cohort.deadline_s", 2_592_000.0, 2_592_001.0),
        ("adapter.layers", [0, 1023], [1024]),
        ("adapter.layers", list(range(256)), list(range(257))),
        ("adapter.layers", [1, 2], [2, 1]),
        ("adapter.layers", [1, 2], [1, 1]),
        ("adapter.rank", 4096, 4097),
        ("privacy.delta", 0.0099, 0.01),
        ("local.learning_rate", 1e-12, 9e-13),
        ("seed", 2**63 - 1, 2**63),
    ],
)
def test_bounds_of_the_table_are_in_force(key: str, within: Any, beyond: Any) -> None:
    table, _, name = key.rpartition(".")

    def tables(value: Any) -> dict[str, Any]:
        return {table: {name: value}} if table else {name: value}

    plan_of(**tables(within))
    with pytest.raises(PlanError, match=key):
        plan_of(**tables(beyond))


@pytest.mark.parametrize(("width", "legal"), [(4096, True), (4097, False)])
def test_a_bottleneck_has_up_to_4096_features(width: int, legal: bool) -> None:
    adapter = {"method": "bottleneck", "width": width}
    if legal:
        plan_of(adapter=adapter)
    else:
        with pytest.raises(PlanError, match=r"adapter.width"):
            plan_of(adapter=adapter)


@pytest.mark.parametrize(("rank", "legal"), [(4096, True), (4097, False)])
def test_bounds_hold_of_a_hybrids_members(rank: int, legal: bool) -> None:
    members = [{"method": "lora", "rank": rank}, {"method": "prompt"}]
    adapter = {"method": "hybrid", "members": members}
    if legal:
        plan_of(adapter=adapter)
    else:
        with pytest.raises(PlanError, match=r"adapter.members.0.rank"):
            plan_of(adapter=adapter)


def test_numbers_in_the_text_are_the_constants() -> None:
    assert f"{head.MOST_WIDTH:,}" in step("P-2.7")
    assert f"beyond {recipe.LARGEST:g} in magnitude" in step("P-2.3")
    assert f"at most {recipe.LARGEST:g} in magnitude" in step("P-4.2")
    assert documents.MOST_BYTES == 2**24
    assert documents.MOST_TOML == 2**20
    assert "2^24 bytes (2^20 of TOML" in step("P-1.7")
    assert f"{section.MOST_LAYER + 1} layers" in step("P-1.7")
    rows = head.HeadStart.model_json_schema()["properties"]["rows"]["items"]
    assert rows["maxLength"] == 4 * -(-head.MOST_WIDTH // 3)


@pytest.mark.parametrize("layers", [[], [0, 2]])
def test_settings_are_the_table_as_plan_json_has_it(layers: list[int]) -> None:
    """(P-4.11) Without `layers` where there are none, as the second verifier has it too."""
    plan = plan_of(adapter={"layers": layers})
    written = json.loads(plan.render())["adapter"]
    assert ("layers" in written) == bool(layers)
    assert plan.adapter_settings == digest("adapter-settings", canonical_json(written))


def linears(*widths: int) -> list[Linear]:
    return [
        Linear(path=f"l{number}", in_features=width, out_features=2)
        for number, width in enumerate(widths)
    ]


@pytest.mark.parametrize(
    ("widths", "products"),
    [
        ((3, 3), {"p": ["l0"]}),
        ((3, 3), {"p": []}),
        ((3, 4), {"p": ["l0", "l1"]}),
        ((3, 3), {"p": ["l0", "l0"]}),
        ((3, 3, 3), {"p": ["l0", "l1"], "q": ["l1", "l2"]}),
        ((3, 3, 3), {"l2": ["l0", "l1"]}),
        ((3, 3), {"p": ["l0", "l9"]}),
    ],
)
def test_products_are_of_linears_that_read_the_same(
    widths: tuple[int, ...], products: dict[str, list[str]]
) -> None:
    joined.verify_joined(linears(3, 3, 3), {"p": ["l0", "l1"]})
    with pytest.raises(ValueError, match="linear"):
        joined.verify_joined(linears(*widths), products)
    assert "2 to 8 linears of the base" in step("P-1.13")
    products_of = DecoderManifest.model_json_schema()["properties"]["joined"]["patternProperties"]
    assert [each["maxItems"] for each in products_of.values()] == [8]


def test_a_document_is_bounded_alike_where_it_is_read_and_where_it_is_parsed() -> None:
    assert SMALL == MOST_BYTES
