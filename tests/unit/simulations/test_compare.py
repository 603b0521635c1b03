from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedge.main import COMMANDS
from protocol.errors import ArtefactError
from simulations.compare import comparison, differences, grouped, run_files, shown_figure
from simulations.compare_page import compare_page
from tests.unit.simulations.test_report import EVIL, Balance


def write(
    folder: Path, accuracy: float, *, seed: int = 0, pooled: float | None = None, **server: Any
) -> Path:
    folder.mkdir(parents=True)
    plan = {"name": EVIL, "seed": seed, "rounds": 3, "server": {"optimizer": "fedavg"} | server}
    rounds = [
        {"round": n, "accuracy": accuracy - 0.1 * (3 - n), "loss": 1.0 - accuracy + (3 - n)}
        for n in (1, 2, 3)
    ]
    files: dict[str, Any] = {
        "plan.json": plan,
        "experiment.json": {
            "name": "x",
            "data": {"train": "a"},
            "yardsticks": {"pooled": pooled is not None},
        },
        "summary.json": {
            "accuracy_federated": accuracy,
            "accuracy_pooled": pooled,
            "seconds": 100.0,
        },
        "evaluations.json": {"test": rounds},
        "yardsticks.json": {} if pooled is None else {"pooled": {"accuracy": pooled, "loss": 0.1}},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / "a", 0.915, seed=1, pooled=0.93),
        write(tmp_path / "b", 0.918, seed=2),
        write(tmp_path / "c", 0.95, seed=1, optimizer="fedavgm", note=EVIL),
    ]


def test_seeds_of_one_plan_are_a_group_with_its_spread(runs: list[Path]) -> None:
    groups = grouped([files for run in runs for files in run_files(run)])
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 2], [1]]
    first, second = comparison(groups)["groups"]
    figure = first["figures"]["accuracy_federated"]
    assert figure["mean"] == pytest.approx(0.9165)
    assert figure["spread"] == pytest.approx(0.003 / 2**0.5)
    assert second["figures"]["accuracy_federated"]["spread"] is None
    assert shown_figure("accuracy_federated", figure) == "91.65 ± 0.21 %"
    assert first["figures"]["accuracy_pooled"]["values"] == [0.93]
    assert first["rounds"]["accuracy"][-1] == (3.0, pytest.approx(0.9165))


def test_only_settings_that_differ_are_shown(runs: list[Path]) -> None:
    groups = grouped([files for run in runs for files in run_files(run)])
    assert differences(groups) == {
        "plan.server.optimizer": ["fedavg", "fedavgm"],
        "plan.server.note": [None, EVIL],
        "yardsticks.pooled": [True, False],
    }
    assert differences(groups[:1]) == {}


def test_a_folder_of_seeds_stands_for_its_runs(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path / "all" / f"seed-{seed}", 0.9, seed=seed)
    (tmp_path / "all" / "seeds.json").write_text("{}")
    assert [run.seed for run in run_files(tmp_path / "all")] == [1, 2]


def test_the_page_is_whole_and_safe_and_tells_close_runs_apart(runs: list[Path]) -> None:
    page = compare_page(grouped([files for run in runs for files in run_files(run)]))
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert EVIL not in page
    for text in ("91.65 ± 0.21 %", "95.00 %", "server.optimizer", "not at 0", "Test loss"):
        assert text in page, text


def test_the_command_prints_a_table_json_or_writes_a_page(runs: list[Path], tmp_path: Path) -> None:
    command, names = COMMANDS["compare"].load(), [str(run) for run in runs]
    page = tmp_path / "page.html"
    said = CliRunner().invoke(command, [*names, "--html", str(page)], catch_exceptions=False)
    assert "91.65" in said.stdout
    assert page.is_file()
    told = CliRunner().invoke(command, [*names, "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["differences"]["plan.server.optimizer"] == ["fedavg", "fedavgm"]
    with pytest.raises(ArtefactError, match="not a run"):
        CliRunner().invoke(command, [str(tmp_path)], catch_exceptions=False)
    nowhere = ["--html", str(tmp_path / "no" / "x.html")]
    with pytest.raises(ArtefactError, match="cannot be written"):
        CliRunner().invoke(command, [*names, *nowhere], catch_exceptions=False)
