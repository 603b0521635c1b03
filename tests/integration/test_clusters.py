"""Two clusters of sites with one roster and one coordinator, as processes: each has its own plan and run."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from operations.loopback import Consortium, command, environment, fedge
from tests.integration.test_consortium import staged

MEMBERS = {"odd": [1, 3, 5], "even": [0, 2, 4]}
SETTINGS = ["population.clients=6", "plan.cohort.size=3", "plan.cohort.clients=[]"]


@dataclass(frozen=True, kw_only=True)
class Clusters(Consortium):
    """Every site agrees to the plan of its cluster."""

    def names_of(self, cluster: str) -> list[str]:
        return [self.names[number] for number in MEMBERS[cluster]]

    def plan_of(self, cluster: str) -> Path:
        path = self.out / f"{cluster}.json"
        if not path.exists():
            plan = json.loads(self.plan.read_text())
            plan["cohort"]["clients"] = self.names_of(cluster)
            path.write_text(json.dumps(plan | {"name": cluster}))
        return path

    def enrol(self, name: str) -> None:
        super().enrol(name)
        cluster = next(cluster for cluster in MEMBERS if name in self.names_of(cluster))
        fedge("client", "agree", self.site(name), self.plan_of(cluster))


@pytest.mark.slow
def test_two_clusters_train_at_once_and_neither_asks_the_other(
    experiment_file: Path, tmp_path: Path
) -> None:
    stage = staged(Clusters, experiment_file, tmp_path, SETTINGS)
    with stage.running(lambda text: None):
        runs = {
            cluster: subprocess.Popen(
                command(
                    *("run", stage.plan_of(cluster), "--coordinator", stage.coordinator),
                    *("--base", stage.base, "--out", tmp_path / "runs" / cluster),
                ),
                env=environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            for cluster in MEMBERS
        }
        for run in runs.values():
            said = run.communicate(timeout=600)[1]
            assert run.returncode == 0, said
    for cluster in MEMBERS:
        folder = tmp_path / "runs" / cluster
        records = [json.loads(path.read_text()) for path in folder.glob("rounds/*/record.json")]
        asked = {tuple(record["expected"]) for record in records if record["round"]}
        assert asked == {tuple(stage.names_of(cluster))}
        assert not any(record["dropped"] for record in records)
        assert fedge("audit", "verify", folder, "--json")["verdict"] == "ok"
