from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from protocol.errors import ArtefactError, PlanError
from simulations.alike import verify_alike
from simulations.identity import Identities
from simulations.prepare import IDENTITY, MARKER
from simulations.seeds import seed_runs, seeds_of

EXPERIMENT = """
name = "x"
base.source = "s"
data.generator = "home-commands"
plan.name = "x"
"""


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1,2,3", [1, 2, 3]), ("1-5", [1, 2, 3, 4, 5]), ("7", [7]), ("3, 1-2", [3, 1, 2])],
)
def test_seeds_are_listed_or_a_range(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "1,", "5-1", "1-", "-1", "1,1", "1-3,2", "0-999999999999"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="--seeds"):
        seeds_of(text)


def test_each_has_a_folder_and_its_seed(tmp_path: Path) -> None:
    file, out = tmp_path / "x.toml", tmp_path / "out"
    file.write_text(EXPERIMENT)
    folder, runs = seed_runs(file, ["plan.rounds=2"], [4, 7], out, resume=False)
    assert folder == out
    assert [run.folder.name for run in runs] == ["seed-4", "seed-7"]
    assert [run.experiment.plan["seed"] for run in runs] == [4, 7]
    assert not out.exists()
    with pytest.raises(PlanError, match="contradict"):
        seed_runs(file, ["plan.seed=1"], [1], out, resume=False)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    file, out = tmp_path / "x.toml", tmp_path / "out"
    file.write_text(EXPERIMENT)
    (out / "seed-1").mkdir(parents=True)
    with pytest.raises(ArtefactError, match="--resume"):
        seed_runs(file, [], [1], out, resume=False)
    seed_runs(file, [], [1, 2], out, resume=True)
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(ArtefactError, match=r"thesis\.tex"):
        seed_runs(file, [], [1], out, resume=True)


def test_seeds_that_begin_later_read_what_the_others_have_read(
    tmp_path: Path, tiny_source: Path
) -> None:
    file, out = tmp_path / "x.toml", tmp_path / "out"
    shutil.copytree(tiny_source, tmp_path / "s")
    file.write_text(EXPERIMENT)
    _, runs = seed_runs(file, [], [1, 2], out, resume=False)
    verify_alike(runs)
    marker = {IDENTITY: Identities().of(runs[0].experiment)}
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / MARKER).write_text(json.dumps(marker))
    verify_alike(runs)
    weights = next((tmp_path / "s").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    verify_alike(runs[:1])  # what has begun has what it needs
    with pytest.raises(ArtefactError, match="seed-1 was run on other rows, or on another base"):
        verify_alike(runs)
