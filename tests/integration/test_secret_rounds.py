"""Groups, and rounds whose sum could not be opened, through the real apps in a simulation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.exchange import Phase
from server.rounds import deal_groups
from simulations.experiment import load_experiment
from simulations.faults import Fault, Faults
from simulations.grid import InProcessGrid
from simulations.progress import NoProgress
from simulations.run import simulate

SECRET = [
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=6",
    "plan.cohort.quorum=3",
    "plan.rounds=3",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]


def run(file: Path, name: str, settings: list[str]) -> None:
    simulate(
        load_experiment(file, settings), file.parent / name, resume=False, progress=NoProgress()
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_groups_are_summed_apart_and_a_far_one_is_left_out(experiment_file: Path) -> None:
    settings = [*SECRET, "population.clients=12", "plan.cohort.size=12", "plan.cohort.quorum=9"]
    run(experiment_file, "groups", [*settings, "plan.secrecy.groups=3"])
    records = [
        read(path)
        for path in sorted(experiment_file.parent.glob("groups/rounds/*/record.json"))[1:]
    ]
    for record in records:
        groups = record["groups"]
        assert len(groups) == 3
        members = [name for group in groups for name in group["clients"]]
        assert sorted(members) == record["expected"]
        assert [len(group["used"]) for group in groups] == [4, 4, 4]
        assert any(group["kept"] for group in groups)
        assert record["weight"] == 12
    drawn = [tuple(map(tuple, (g["clients"] for g in record["groups"]))) for record in records]
    assert len(set(drawn)) == 3  # anew in every round


def test_a_groups_failure_costs_that_group_only(experiment_file: Path) -> None:
    settings = [*SECRET, "population.clients=18", "plan.cohort.size=18", "plan.cohort.quorum=10"]
    faults = ["faults.dropout=0.12", "plan.cohort.attempts=30", "plan.rounds=5"]
    run(experiment_file, "lossy-groups", [*settings, "plan.secrecy.groups=3", *faults])
    paths = sorted(experiment_file.parent.glob("lossy-groups/rounds/*.json"))
    paths += sorted(experiment_file.parent.glob("lossy-groups/rounds/*/record.json"))[1:]
    failed = [g for path in paths for g in read(path)["groups"] if g["failure"]]
    assert failed
    for group in failed:
        assert not group["used"]


def lost_in(
    monkeypatch: pytest.MonkeyPatch, phase: Phase, when: Callable[[int, int, str], bool]
) -> None:
    """Devices for which ``when(round, attempt, name)`` holds leave before ``phase``."""

    def of(self: Faults, *, round_number: int, attempt: int, client: str) -> Fault:
        return Fault.DROPOUT if when(round_number, attempt, client) else Fault.NONE

    monkeypatch.setattr(Faults, "of", of)
    monkeypatch.setattr(InProcessGrid, "_leaves_at", lambda *_, **__: list(Phase).index(phase))


def test_a_sum_that_was_asked_for_and_did_not_open_costs_its_round_and_not_the_run(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients open one sum of a round: to ask again would be refused for ever."""
    gone = {f"client-{number:04d}" for number in range(4)}
    lost_in(monkeypatch, Phase.UNMASK, lambda number, _, name: number == 2 and name in gone)
    run(experiment_file, "void", SECRET)
    paths = sorted(experiment_file.parent.glob("void/rounds/*/record.json"))[1:]
    first, second, third = (read(path) for path in paths)
    assert [r["void"] for r in (first, third)] == [None, None]
    assert second["void"]
    assert second["adapter_out"] == first["adapter_out"] != third["adapter_out"]
    assert not second["used"]
    assert {d["client"] for d in second["dropped"]} == set(second["expected"])
    report = (experiment_file.parent / "void" / "report.html").read_text()
    assert "could not be opened" in report


def test_when_groups_fail_below_the_quorum_the_others_are_not_opened(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened sums of an attempt that fails would use up the round for their clients."""
    gone: list[str] = []

    def first_group(number: int, attempt: int, name: str) -> bool:
        if (number, attempt) != (2, 1):
            return False
        names = [f"client-{each:04d}" for each in range(18)]
        dealt = deal_groups(names, groups=3, seed=3, round_number=2, attempt=1)
        gone[:] = dealt[0]
        return name in dealt[0]

    lost_in(monkeypatch, Phase.MASK, first_group)
    sizes = ["population.clients=18", "plan.cohort.size=18", "plan.cohort.quorum=15"]
    run(experiment_file, "too-few", [*SECRET, *sizes, "plan.secrecy.groups=3"])
    folder = experiment_file.parent / "too-few" / "rounds"
    failed = read(folder / "0002.attempt1.json")
    assert not failed["used"]
    assert sorted(gone) == sorted(d["client"] for d in failed["dropped"] if "mask" in d["detail"])
    record = read(folder / "0002" / "record.json")
    assert (record["attempt"], record["void"], len(record["used"])) == (2, None, 18)
