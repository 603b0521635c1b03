"""What `fedge deploy publish` takes of a run: its newest released round, an epsilon that is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedge.deploy import _round
from fedge.gate import Audited, _check_budget
from protocol.errors import ArtefactError
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
