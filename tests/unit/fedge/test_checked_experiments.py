"""`fedge plan check` refuses of an experiment what `fedge simulate` refuses before it builds a base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedge.main import COMMANDS
from protocol.errors import FedgeError


@pytest.mark.parametrize(
    "population",
    [
        {"clients": 500},
        {"clients": 20, "partition": "shards", "shards_per_client": 1000},
        {"clients": 5, "partition": "column", "column": "room"},
    ],
    ids=["too few rows", "too few for shards", "fewer values"],
)
def test_devices_that_the_rows_cannot_fill(tmp_path: Path, population: dict[str, object]) -> None:
    rows = [{"text": f"t {n}", "label": "ab"[n % 2], "room": "xyz"[n % 3]} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in population.items())
    file = tmp_path / "e.toml"
    file.write_text(
        'name = "e"\n[base]\nsource = "nowhere"\n[data]\ntrain = "rows.jsonl"\nholdout = 0.2\n'
        f"[population]\n{settings}[plan.cohort]\nsize = 3\nquorum = 3\n"
    )
    said = []
    for name, arguments in (("plan", ["check", str(file)]), ("simulate", [str(file)])):
        more = ["--out", str(tmp_path / "run")] if name == "simulate" else []
        with pytest.raises(FedgeError) as caught:
            CliRunner().invoke(COMMANDS[name].load(), [*arguments, *more], catch_exceptions=False)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not (tmp_path / "run" / "plan.json").exists()
