"""Sites whose SuperNode is killed after every message, through the real apps in a simulation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

import client.worker
from protocol.encoding import vector_digest
from protocol.errors import RoundError
from server.secret_attempt import SecretAttempt
from simulations.experiment import load_experiment
from simulations.grid import InProcessGrid
from simulations.progress import NoProgress
from simulations.run import simulate

SETTINGS = [
    "population.clients=4",
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=4",
    "plan.cohort.quorum=3",
    "plan.cohort.attempts=1",
    "plan.rounds=2",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]


def run(file: Path, name: str) -> str:
    """The digest of the last adapter."""
    out = file.parent / name
    simulate(load_experiment(file, SETTINGS), out, resume=False, progress=NoProgress())
    record = json.loads((out / "rounds" / "0002" / "record.json").read_text())
    assert len(record["used"]) == 4
    return str(record["adapter_out"])


def test_with_files_of_their_own_they_lose_nothing(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undisturbed = run(experiment_file, "undisturbed")
    folder = experiment_file.parent
    assert not [*folder.glob("undisturbed/clients/*.kept")]  # simulated clients keep nothing
    whole = InProcessGrid._context

    def restarted(self: InProcessGrid, node: int) -> Context:
        context = whole(self, node)
        context.state = RecordDict()
        return context

    monkeypatch.setattr(InProcessGrid, "_context", restarted)
    with pytest.raises(RoundError):
        run(experiment_file, "restarted")

    def remembering(self: InProcessGrid, node: int) -> Context:
        context = restarted(self, node)
        context.node_config["sessions"] = str(tmp_path / f"{node}")
        return context

    monkeypatch.setattr(InProcessGrid, "_context", remembering)
    assert run(experiment_file, "remembering") == undisturbed
    assert len([*folder.glob("remembering/clients/*.kept/*.safetensors")]) >= 4


class Watched:
    """A run with its rounds' sums; one site's rows are away at first in round 2, behind which it is killed."""

    def __init__(self, patch: pytest.MonkeyPatch, out: Path, sessions: Path) -> None:
        self.rows, self.away = out / "clients/client-0001.jsonl", sessions / "away"
        self.clients = out / "clients"
        self.attempts: list[tuple[int, int, int]] = []  # round, attempt, number
        self.sums: list[
            tuple[str, dict[str, float]]
        ] = []  # of each: its mean's digest, its metrics
        self.controls: list[dict[Path, bytes]] = []  # of all sites, behind it
        self.trained: Counter[tuple[str, int]] = Counter()
        self._watch_coordinator(patch)
        self._watch_sites(patch, sessions)

    def _watch_coordinator(self, patch: pytest.MonkeyPatch) -> None:
        collect, aggregate = SecretAttempt.collect, SecretAttempt.aggregate

        def collected(attempt: SecretAttempt) -> Any:
            first = attempt._number == 2 and len(self.sums) == 1
            if first:
                self.rows.rename(self.away)
            try:
                return collect(attempt)
            finally:
                if first:
                    self.away.rename(self.rows)

        def aggregated(attempt: SecretAttempt, closed: Any) -> Any:
            after, given, norm = aggregate(attempt, closed)
            self.attempts.append((attempt._number, attempt._attempt, attempt._seq))
            self.sums.append((vector_digest(given.mean), dict(given.metrics)))
            files = self.clients.glob("*.controls/*")
            self.controls.append({path: path.read_bytes() for path in files})
            if len(self.sums) == 2:
                raise KeyboardInterrupt
            return after, given, norm

        patch.setattr(SecretAttempt, "collect", collected)
        patch.setattr(SecretAttempt, "aggregate", aggregated)

    def _watch_sites(self, patch: pytest.MonkeyPatch, sessions: Path) -> None:
        contribute, context_of = client.worker.Worker.contribute, InProcessGrid._context

        def contributed(worker: client.worker.Worker, **named: Any) -> Any:
            self.trained[named["client"], named["instruction"].round] += 1
            given = contribute(worker, **named)
            # No two trainings are alike, as on engines that add in any order.
            unlike = np.float32(1 + self.trained.total() / 64)
            return replace(given, update=given.update * unlike)

        def remembering(grid: InProcessGrid, node: int) -> Context:
            context = context_of(grid, node)
            context.node_config["sessions"] = str(sessions / f"{node}")
            return context

        patch.setattr(client.worker.Worker, "contribute", contributed)
        patch.setattr(InProcessGrid, "_context", remembering)


def test_a_sum_that_is_asked_for_again_has_what_each_site_gave_first(
    experiment_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who could not train then contributes nothing now; who could does not train again."""
    out = experiment_file.parent / "asked-again"
    settings = [*SETTINGS, "plan.rounds=3", "plan.rule.name=mean", "plan.cohort.quorum=4"]
    settings += ["plan.local.scaffold=0.5"]
    watched = Watched(monkeypatch, out, tmp_path)
    experiment = load_experiment(experiment_file, settings)
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, out, resume=False, progress=NoProgress())
    simulate(experiment, out, resume=True, progress=NoProgress())
    _, first, again, last = watched.attempts
    assert first[:2] == again[:2] == (2, 1)
    assert first[2] < again[2] < last[2]
    assert watched.sums[1] == watched.sums[2]
    assert watched.sums[2][1]["failures"] == 1.0
    assert watched.sums[3][1]["failures"] == 0.0
    assert watched.controls[1]
    assert watched.controls[1] == watched.controls[2] != watched.controls[3]
    sites = [f"client-{number:04d}" for number in range(4)]
    rounds = [(site, number) for site in sites for number in (1, 2, 3)]
    assert watched.trained == Counter(rounds) - Counter([("client-0001", 2)])
