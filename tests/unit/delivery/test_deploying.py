"""What `fedge deploy publish` takes of a run: its newest released round, an epsilon that is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delivery.gate import Audited, _check_audit, _check_budget
from delivery.publish_command import _bounds, _round
from protocol.errors import ArtefactError, PlanError
from protocol.peft_format import PASSPORT_FILE

REPORT = {"verdict": "ok", "origin": "o", "size": 1, "root": "r", "rounds": [], "faults": []}


def test_folders_beside_the_rounds_are_no_rounds(tmp_path: Path) -> None:
    for name in ("0002", "0010", "0010.bak", "copy"):
        path = tmp_path / "rounds" / name / "adapter" / PASSPORT_FILE
        path.parent.mkdir(parents=True)
        path.write_text("x")
    assert (_round(tmp_path, None), _round(tmp_path, 2)) == (10, 2)


@pytest.mark.parametrize(("epsilon", "passes"), [("2.5", True), ("3.5", False), ("NaN", False)])
def test_an_epsilon_that_is_no_number_is_above_every_budget(epsilon: str, passes: bool) -> None:
    text = str(REPORT).replace("'", '"')[:-1]
    found = Audited.model_validate_json(
        f'{text}, "privacy": {{"epsilon": {epsilon}, "budget": 3.0}}}}'
    )
    case: Any = SimpleNamespace(plan=SimpleNamespace(private=True), audited=lambda: found)
    if passes:
        assert "2.5" in _check_budget(case)
    else:
        with pytest.raises(ArtefactError):
            _check_budget(case)


@pytest.mark.parametrize(("known", "passes"), [(0, False), (1, False), (2, True)])
def test_every_run_that_a_plan_goes_on_from_is_audited(known: int, passes: bool) -> None:
    """Whatever the verdict says: a saved report may be of a version that thought better of it."""
    found: dict[str, Any] = REPORT | {"privacy": None, "rounds": [{"round": 0, "verdict": "ok"}]}
    for _ in range(known):
        found = found | {"before": found}
    start = SimpleNamespace(plans=["1" * 64, "2" * 64], origin="fedge/first/1")
    tree = SimpleNamespace(root=lambda size: SimpleNamespace(hex=lambda: "r"))
    copy = SimpleNamespace(checkpoint=SimpleNamespace(origin="o", size=1), tree=tree)
    case: Any = SimpleNamespace(
        plan=SimpleNamespace(start=start),
        audited=lambda: Audited.model_validate(found),
        line=lambda: [SimpleNamespace(copy=copy)],
        copy=copy,
        index=0,
        leaf=SimpleNamespace(adapter=0),
        note=SimpleNamespace(round=0),
    )
    if passes:
        assert "verdict ok" in _check_audit(case)
    else:
        with pytest.raises(ArtefactError, match="--before RUN"):
            _check_audit(case)


def test_bounds_are_metrics_with_numbers() -> None:
    assert _bounds(["exposure=2", "membership_auc=0.6"]) == {
        "exposure": 2000,
        "membership_auc": 600,
    }
    for odd in ("exposure", "=2", "exposure=", "exposure=nan", "exposure=inf", "exposure=-1"):
        with pytest.raises(PlanError, match="is no METRIC=VALUE"):
            _bounds([odd])
