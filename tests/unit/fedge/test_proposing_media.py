"""`fedge init` on a base of images or sounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedge.main import cli
from protocol.errors import PlanError
from protocol.media import MEDIA, Medium


@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA)
@pytest.mark.parametrize("also", [[], ["--data", "x.jsonl"], ["--experiment", "x.jsonl"]])
def test_no_plan_is_proposed_for_files(
    request: pytest.FixtureRequest, tmp_path: Path, also: list[str], medium: Medium
) -> None:
    """Whatever is asked for: the same reason, and nothing is written."""
    base: Path = request.getfixturevalue(f"tiny_{medium.plural}")
    out = tmp_path / "out.toml"
    arguments = ["init", "--base", str(base), "--out", str(out), *also]
    with pytest.raises(PlanError, match=f"not proposed for {medium.plural}") as refused:
        cli.main(args=arguments, prog_name="fedge", standalone_mode=False)
    assert f'kind = "{medium.task}", {medium.column}, label' in refused.value.remedy
    assert not out.exists()
