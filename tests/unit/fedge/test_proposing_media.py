"""`fedge init` and `fedge plan check` on a base of images or sounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedge.checks import Assumed, check_experiment
from fedge.main import cli
from protocol.errors import DataError
from protocol.media import DRAWN, IMAGE, MEDIA, SOUND, Medium
from protocol.plan import parse_plan
from tests.denoiser_models import write_drawings
from tests.image_models import write_images
from tests.sound_models import write_sounds

WRITERS: dict[Medium, Callable[..., list[Path]]] = {
    IMAGE: write_images,
    SOUND: write_sounds,
    DRAWN: write_drawings,
}
BASES = {IMAGE: "tiny_images", SOUND: "tiny_sounds", DRAWN: "tiny_denoiser"}
Base = Callable[[Medium], Path]


@pytest.fixture
def base_of(request: pytest.FixtureRequest) -> Base:
    return lambda medium: Path(request.getfixturevalue(BASES[medium]))


def ran(*arguments: object) -> None:
    cli.main(args=list(map(str, arguments)), prog_name="fedge", standalone_mode=False)


def write_rows(folder: Path, medium: Medium, column: str) -> Path:
    """Thirty files of five owners and two labels."""
    files = WRITERS[medium](folder / "files", 30)
    rows: list[dict[str, Any]] = [
        {
            "note": f"row {n}",
            column: f"files/{path.name}",
            "class": "ab"[n % 2],
            "ward": f"w{n % 5}",
        }
        for n, path in enumerate(files)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA)
@pytest.mark.parametrize("column", ["path", "scan of the day"])
def test_a_plan_is_proposed_for_a_sites_files(
    base_of: Base, tmp_path: Path, medium: Medium, column: str
) -> None:
    rows, out = write_rows(tmp_path, medium, column), tmp_path / "plan.toml"
    ran("init", "--base", base_of(medium), "--data", rows, "--out", out)
    task = parse_plan(out.read_text(), source="plan.toml").task
    assert task.model_dump() == {
        "kind": medium.task,
        medium.column: column,
        "label": "class",
        "labels": ["a", "b"],
    }
    assert list(task.rows(rows).targets[:3]) == ["a", "b", "a"]


@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA)
def test_a_plan_to_fill_in_is_of_the_bases_medium(
    base_of: Base, tmp_path: Path, medium: Medium, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.toml"
    ran("init", "--base", base_of(medium), "--out", out)
    assert parse_plan(out.read_text(), source="plan.toml").task.kind == medium.task
    assert f"labels, {medium.column} and label of [task]" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA)
def test_a_proposed_experiment_is_legal_until_one_of_its_files_cannot_be_read(
    base_of: Base, tmp_path: Path, medium: Medium
) -> None:
    rows, out = write_rows(tmp_path, medium, "recorded"), tmp_path / "experiment.toml"
    ran("init", "--experiment", rows, "--base", base_of(medium), "--out", out)
    assumed = Assumed(rows=10, tokens=10, speed=100)
    checked = check_experiment(str(out), [], assumed, None, measure=False)
    assert checked.legal
    assert (checked.plan.task.kind, checked.experiment is not None) == (medium.task, True)
    damaged = sorted((tmp_path / "files").iterdir())[-1]
    damaged.write_bytes(damaged.read_bytes()[:30])
    line = next(
        n
        for n, text in enumerate(rows.read_text().splitlines(), 1)
        if f"files/{damaged.name}" in text
    )
    with pytest.raises(DataError, match=rf"rows\.jsonl: line {line}: "):
        check_experiment(str(out), [], assumed, None, measure=False)


def test_rows_that_name_no_files_are_refused(base_of: Base, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "plan.toml"
    rows.write_text('{"text": "a scan", "label": "a"}\n{"text": "another", "label": "b"}\n')
    with pytest.raises(DataError, match="no column names images in every row"):
        ran("init", "--base", base_of(IMAGE), "--data", rows, "--out", out)
    assert not out.exists()
