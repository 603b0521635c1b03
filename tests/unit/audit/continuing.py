"""What tests of runs that go on from another run have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audit.continued import start_of
from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit, load_run
from protocol.exchange import Phase
from protocol.layout import Vector
from protocol.legality import verify_legal
from protocol.plan import Plan, plan_from_text
from protocol.recipe import Recipe
from protocol.rules import RULES
from protocol.step.checkpoint import decode_checkpoint
from tests.methods import adapter_of
from tests.unit.audit.runs import small_plan
from tests.unit.audit.small_bases import small_manifest

FOUR = {"size": 4, "quorum": 3, "deadline_s": 30.0}


PLAIN: dict[str, Any] = {"secrecy": {"exchange": "plain"}}


NOISE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}


CENTRAL = {"mechanism": "central", "noise_multiplier": 2.0, "epsilon": 40.0, "sampling": 0.9}


PROMPT: dict[str, Any] = {
    "adapter": {"method": "prompt", "tokens": 3},
}


def of_rule(name: str) -> dict[str, Any]:
    """A rule on LoRA, or a method under the default rule."""
    return {"rule": {"name": name}} if name in RULES else {"adapter": adapter_of(name)}


def vector(run: Path, number: int) -> Vector:
    """The adapter of a round, as it is in its checkpoint."""
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    folder = run / "rounds" / f"{number:04d}"
    data = (folder / "checkpoint.safetensors").read_bytes()
    state, _ = decode_checkpoint(data, source="test")
    return Recipe(plan=plan, manifest=small_manifest()).layout.flatten(state.adapter)


def audited(run: Path, *before: Path) -> Report:
    return audit(Folder(run), Trust(), before=[Folder(each) for each in before])


def _document(sections: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sections.items() if name != "count"}


def _plan_after(first: Path, number: int = 3, **sections: Any) -> Plan:
    start = start_of(load_run(Folder(first), Trust()), number).model_dump(mode="json")
    return small_plan(**(sections | {"start": sections.get("start", start)}))[0]


def _legal(first: Path, number: int = 3, **sections: Any) -> None:
    verify_legal(_plan_after(first, number, **sections), small_manifest())


def one_is_away(number: int, attempt: int, phase: Phase, site: int) -> bool:
    return phase is Phase.ADVERTISE and site == 3
