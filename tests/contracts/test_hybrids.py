"""What compositions of methods promise beside what each method does (``test_methods.py``)."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.release import edge_session, release_adapter
from base_model.store import open_base
from base_model.verify import read_manifest
from client.worker import Worker
from protocol.errors import ArtefactError, PlanError
from protocol.layout import HEAD_PART
from protocol.legality import check
from protocol.methods import METHODS, method_of
from protocol.methods.hybrid import HybridSettings
from protocol.methods.single import MEMBERS, SINGLE
from protocol.peft_format import CONFIG_FILE, EDGE_FILE, published_as
from protocol.peft_opener import OPENER_FILE
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rules import RULES
from tests.methods import adapter_of
from tests.tiny_model import TEXTS
from tests.unit.client.test_programs import agree

Members = list[dict[str, Any]]
EVERYWHERE = {"targets": "all-linear"}
COMPOSED: dict[str, Members] = {
    "on one linear a shift, factors and a bottleneck, before them a prompt": [
        adapter_of("prompt"),
        adapter_of("lora", **EVERYWHERE),
        adapter_of("bottleneck"),
        adapter_of("bias"),
    ],
    "factors of features inside low-rank ones": [
        adapter_of("lora", **EVERYWHERE),
        adapter_of("ia3"),
        adapter_of("norm"),
    ],
    "two of one method on other linears": [
        adapter_of("lora", targets=["query"]),
        adapter_of("lora", targets=["value"]) | {"rank": 2},
    ],
    "cores and vectors": [
        adapter_of("lora-sb", targets=["query"]),
        adapter_of("vera", targets=["value"]),
        adapter_of("adalora", targets=["key"]),
        adapter_of("ravan", targets=["intermediate.dense"]),
    ],
    "products and biases": [
        adapter_of("loha", targets=["query"]),
        adapter_of("lokr", targets=["value"]),
        adapter_of("bias"),
        adapter_of("norm"),
    ],
}
_NAMED = {member["method"] for members in COMPOSED.values() for member in members}
COMPOSED |= {  # a member that is in none of them, behind a prompt
    f"{name} and a prompt": [adapter_of("prompt"), adapter_of(name)]
    for name, method in MEMBERS.items()
    if name not in _NAMED and not method.writes
}


def plan_of(base: Path, members: Members, **sections: Any) -> Plan:
    document = {
        "name": "hybrid",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"labels": ["light", "music", "timer"], "max_length": 16},
        "adapter": {"method": "hybrid", "members": members},
    }
    return plan_from(document | sections, source="test")


def refusals(base: Path, members: Members) -> list[tuple[str, str]]:
    findings = check(plan_of(base, members), read_manifest(base))
    return [(each.field, each.cause) for each in findings if each.severity == "error"]


def test_every_method_is_a_member_but_for_those_that_cannot_be() -> None:
    assert METHODS.keys() - MEMBERS.keys() == {"dora", "dylora", "sparse", "head", "hybrid"}
    assert SINGLE.keys() == METHODS.keys() - {"hybrid"}
    composed = {member["method"] for members in COMPOSED.values() for member in members}
    assert composed == {name for name, method in MEMBERS.items() if not method.writes}


@pytest.mark.parametrize("name", COMPOSED)
def test_programs_have_torchs_gradients(tiny_base: Path, name: str) -> None:
    agree(tiny_base, plan_of(tiny_base, COMPOSED[name]))


@pytest.mark.parametrize("name", COMPOSED)
def test_torch_a_device_and_the_folders_own_module_answer_alike(
    tiny_base: Path, tmp_path: Path, write_adapter: Callable[..., Path], name: str
) -> None:
    adapter = {"method": "hybrid", "members": COMPOSED[name]}
    folder = write_adapter(tmp_path / "adapter", adapter=adapter)
    note = release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    assert note.parity is not None
    opener = runpy.run_path(str(folder / OPENER_FILE))
    model = opener["load"](folder, tiny_base)
    encoded = opener["tokenizer"](tiny_base)(
        TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**encoded).logits.numpy()
    session, options, _keep = edge_session(tiny_base, folder / EDGE_FILE)
    opened = open_base(tiny_base, labels=3, verify=False)
    opened.tokenizer.enable_truncation(16)
    rows = opened.tokenizer.encode_batch(TEXTS)
    feeds = {
        "input_ids": np.array([row.ids for row in rows], np.int64),
        "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
    }
    answers = session.run(["logits"], feeds, options)[0]
    assert np.ptp(answers, axis=0).max() > 0.03
    assert np.abs(answers - expected).max() <= 1e-4 * np.abs(answers).max()


def test_a_turn_is_one_of_every_member(tiny_base: Path) -> None:
    members = COMPOSED["cores and vectors"]  # with one, two and three turns
    recipe = Recipe(plan=plan_of(tiny_base, members), manifest=read_manifest(tiny_base))
    alternating = RULES["alternating"].phases(recipe.method)
    assert [sorted(parts - {HEAD_PART}) for parts in alternating] == [
        ["0.lora_R", f"1.vera_{vector}", f"2.lora_{factor}", "3.lora_R"]
        for vector, factor in zip("bdbdbd", "EBAEBA", strict=True)
    ]
    assert RULES["first"].exact(recipe.method)
    assert RULES["alternating"].exact(recipe.method)
    assert not RULES["mean"].exact(recipe.method)
    bent = COMPOSED["on one linear a shift, factors and a bottleneck, before them a prompt"]
    of_all = Recipe(plan=plan_of(tiny_base, bent), manifest=read_manifest(tiny_base)).method
    assert RULES["first"].exact(of_all)
    assert not RULES["alternating"].exact(of_all)


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ([adapter_of("lora"), adapter_of("loha")], "query.lora_A"),
        ([adapter_of("lora"), adapter_of("lora", targets=["query"])], "query.lora_A"),
        ([adapter_of("bias"), adapter_of("ia3")], "dense.scale"),
        ([adapter_of("prompt"), adapter_of("lora"), adapter_of("prompt")], "soft_prompt"),
        ([adapter_of("bottleneck"), adapter_of("bottleneck")], "bottleneck_bias"),
        (
            [adapter_of("bottleneck") | {"places": "embeddings"}, adapter_of("prompt")],
            "soft_prompt",
        ),
    ],
)
def test_two_that_act_at_one_place_are_refused(
    tiny_base: Path, members: Members, place: str
) -> None:
    ((field, cause),) = refusals(tiny_base, members)
    assert field == "adapter.members"
    first, last = members[0]["method"], members[-1]["method"]
    assert cause.startswith(f"`{first}` and `{last}` both act at ")
    assert place in cause
    with pytest.raises(PlanError, match="both act at"):
        Worker(plan_of(tiny_base, members), tiny_base)


def test_what_is_wrong_with_a_member_names_its_place(tiny_base: Path) -> None:
    lora, prompt = adapter_of("lora"), adapter_of("prompt")
    wide = refusals(tiny_base, [prompt, lora | {"rank": 4000}])
    assert [field for field, _ in wide] == ["adapter.members.1.rank"]
    nowhere = refusals(tiny_base, [lora | {"targets": ["nothing"]}, prompt])
    assert nowhere == [("adapter.members.0.targets", "the base has no linear `nothing`")]
    long = refusals(tiny_base, [lora, prompt | {"tokens": 4000}])
    assert [field for field, _ in long] == ["task.max_length"]
    for members, cause in (
        ([lora], "at least 2"),
        ([lora] * 5, "at most 4"),
        ([lora, prompt | {"rank": 3}], "unknown key `adapter.members.1.rank`"),
        ([lora, prompt | {"tokenz": 3}], "unknown key `adapter.members.1.tokenz`"),
        ([lora, {"method": "dylora"}], "`adapter.members.1.method`: 'dylora' is none of what"),
        ([lora, {"method": "hybrid"}], "`adapter.members.1.method`: 'hybrid' is none of what"),
        ([lora, 3], "`adapter.members.1` is no table"),
    ):
        with pytest.raises(PlanError) as refused:
            plan_of(tiny_base, members)
        assert cause in refused.value.cause
    assert "did you mean `tokens`?" in _remedy(tiny_base, [lora, prompt | {"tokenz": 3}])
    assert f"members are of {', '.join(MEMBERS)}" in _remedy(
        tiny_base, [lora, {"method": "dylora"}]
    )
    assert "[[adapter.members]]" in _remedy(tiny_base, [lora, 3])


def _remedy(base: Path, members: Members) -> str:
    with pytest.raises(PlanError) as refused:
        plan_of(base, members)
    return refused.value.remedy


def test_members_are_part_of_a_plans_digest_in_their_order(tiny_base: Path) -> None:
    """And what came later, and says nothing, is not."""
    lora, prompt = adapter_of("lora"), adapter_of("prompt")
    plan = plan_of(tiny_base, [lora, prompt])
    assert plan.digest != plan_of(tiny_base, [prompt, lora]).digest
    assert plan.digest == plan_of(tiny_base, [lora | {"layers": []}, prompt]).digest
    assert "layers" not in plan.render()
    assert plan_from(plan.model_dump(mode="json"), source="again").digest == plan.digest


@pytest.mark.parametrize(
    "members",
    [
        None,
        [],
        [{"peft_type": "IA3"}],
        [{"peft_type": "IA3"}, "IA3"],
        [{"peft_type": "IA3"}] * 5,
        [{"peft_type": "IA3"}, {"peft_type": "HYBRID", "members": []}],
        [{"peft_type": "IA3"}, {"peft_type": "OTHER"}],
        [{"peft_type": "IA3"}, {"peft_type": "LORA", "r": 0, "lora_alpha": 1}],
        [{"peft_type": "IA3"}, {"peft_type": "LORA", "r": 4, "lora_alpha": 1, "use_dora": True}],
    ],
)
def test_a_folder_that_is_no_hybrid_is_refused(members: Any) -> None:
    config: dict[str, Any] = {"peft_type": "HYBRID", "members": members}
    with pytest.raises(ArtefactError):
        published_as(_json(config), source=CONFIG_FILE)


def _json(config: dict[str, Any]) -> str:
    import json

    return json.dumps(config)


def test_defaults_are_the_composition_that_the_guide_names() -> None:
    method = method_of(HybridSettings())
    assert [member.name for member in method.members] == ["lora", "prompt"]  # type: ignore[attr-defined]
