"""`fedge init` on a base of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedge.main import cli
from protocol.errors import PlanError


@pytest.mark.parametrize("also", [[], ["--data", "x.jsonl"], ["--experiment", "x.jsonl"]])
def test_no_plan_is_proposed_for_images(tiny_images: Path, tmp_path: Path, also: list[str]) -> None:
    """Whatever is asked for: the same reason, and nothing is written."""
    out = tmp_path / "out.toml"
    arguments = ["init", "--base", str(tiny_images), "--out", str(out), *also]
    with pytest.raises(PlanError, match="not proposed for images") as refused:
        cli.main(args=arguments, prog_name="fedge", standalone_mode=False)
    assert 'kind = "image-classification"' in refused.value.remedy
    assert not out.exists()
