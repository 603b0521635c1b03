"""`fedge init` on a base of documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedge.checks import Assumed, check_experiment
from fedge.main import cli
from protocol.errors import DataError
from protocol.plan import parse_plan
from tests.page_models import pages, row_of


def ran(*arguments: object) -> None:
    cli.main(args=list(map(str, arguments)), prog_name="fedge", standalone_mode=False)


def write_rows(folder: Path, **renamed: str) -> Path:
    """Thirty pages of five owners and two labels."""
    rows: list[dict[str, Any]] = []
    for n, page in enumerate(pages(30, most=4)):
        row = row_of(page, "ab"[n % 2]) | {"note": f"row {n}", "ward": f"w{n % 5}"}
        rows.append({renamed.get(key, key): value for key, value in row.items()})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("renamed", [{}, {"words": "Tokens", "boxes": "bbox", "label": "class"}])
def test_a_plan_is_proposed_for_a_sites_pages(
    tiny_pages: Path, tmp_path: Path, renamed: dict[str, str]
) -> None:
    rows, out = write_rows(tmp_path, **renamed), tmp_path / "plan.toml"
    ran("init", "--base", tiny_pages, "--data", rows, "--out", out)
    task = parse_plan(out.read_text(), source="plan.toml").task
    assert task.model_dump(exclude={"max_length"}) == {
        "kind": "document-classification",
        **{key: renamed.get(key, key) for key in ("words", "boxes", "label")},
        "labels": ["a", "b"],
    }
    assert list(task.rows(rows).targets[:3]) == ["a", "b", "a"]


def test_a_plan_to_fill_in_is_of_documents(
    tiny_pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.toml"
    ran("init", "--base", tiny_pages, "--out", out)
    assert parse_plan(out.read_text(), source="plan.toml").task.kind == "document-classification"
    said = " ".join(capsys.readouterr().out.split())
    assert "labels, words, boxes and label of [task]" in said


def test_an_experiment_is_proposed_that_is_legal(tiny_pages: Path, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path), tmp_path / "experiment.toml"
    ran("init", "--experiment", rows, "--base", tiny_pages, "--out", out)
    text = out.read_text().replace("[plan.task]", "[plan.task]\nmax_length = 32")
    out.write_text(text)
    assumed = Assumed(rows=10, tokens=10, speed=100)
    checked = check_experiment(str(out), [], assumed, None, measure=False)
    assert checked.legal
    assert checked.experiment is not None
    assert checked.experiment.population.column == "ward"


@pytest.mark.parametrize(
    ("renamed", "reason"),
    [({"words": "said"}, "no column `words` holds a list"), ({"boxes": "x"}, "no column `boxes`")],
)
def test_rows_that_are_no_pages_are_refused(
    tiny_pages: Path, tmp_path: Path, renamed: dict[str, str], reason: str
) -> None:
    rows, out = write_rows(tmp_path, **renamed), tmp_path / "plan.toml"
    with pytest.raises(DataError, match=reason):
        ran("init", "--base", tiny_pages, "--data", rows, "--out", out)
    assert not out.exists()
