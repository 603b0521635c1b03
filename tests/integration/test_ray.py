"""Clients on a Ray cluster: the same adapter as in one process, also when actors and nodes are lost. Needs ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

import simulations.ray_clients
from protocol.errors import MachineError
from simulations.ahead import Ahead
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.ray_clients import RayClients
from simulations.reruns import load_reruns
from simulations.run import simulate
from simulations.summary import Summary
from tests.integration.test_secret_rounds import SECRET

pytestmark = pytest.mark.slow
SHORT = ["plan.rounds=3", "yardsticks.pooled=false", "yardsticks.alone=0"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ray() -> Any:
    return pytest.importorskip("ray")


def run(file: Path, name: str, overrides: list[str], **options: Any) -> Summary:
    experiment, out = load_experiment(file, overrides), file.parent / name
    options = {"progress": NoProgress()} | options
    return simulate(experiment, out, resume=False, **options)


@pytest.fixture(scope="module")
def here(experiment_file: Path, ray: Any) -> Summary:
    return run(experiment_file, "one-process", SHORT, jobs=2)


def test_a_cluster_of_this_machine_gives_the_same_adapter(
    experiment_file: Path, here: Summary
) -> None:
    there = run(experiment_file, "ray-local", SHORT, jobs=2, ray="local")
    assert there.adapter_digest == here.adapter_digest
    assert there.reruns == 0


def test_secret_sums_over_a_cluster(experiment_file: Path, ray: Any) -> None:
    there = run(experiment_file, "ray-secret", [*SECRET, "plan.rounds=3"], jobs=2, ray="local")
    assert there.exchange == "secagg"
    records = [
        json.loads(path.read_text())
        for path in sorted(experiment_file.parent.glob("ray-secret/rounds/*/record.json"))
    ]
    assert [len(record["used"]) for record in records[1:]] == [6, 6, 6]


class Losses(NoProgress):
    """Kills an actor in the middle of the first round that it sees, a node in that of the next."""

    def __init__(self, cluster: Any, node: Any) -> None:
        self._cluster, self._node, self.lost = cluster, node, list[str]()

    def update(self, task: str, done: float, total: float) -> None:
        if task != "clients in the round" or done != 1 or len(self.lost) == 2:
            return
        if not self.lost:
            os.kill(next(actors_of(os.getpid())), signal.SIGKILL)
            self.lost.append("actor")
        else:
            self._cluster.remove_node(self._node, allow_graceful=False)
            self.lost.append("node")


def actors_of(me: int) -> Any:
    """Processes of actors that run clients; Ray names them so."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::ClientActor"):
                yield int(entry.name)


def test_an_actor_and_a_node_are_killed_in_the_middle_of_rounds(
    experiment_file: Path, here: Summary
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        losses = Losses(cluster, node)
        there = run(experiment_file, "ray-losses", SHORT, ray=str(cluster.address), progress=losses)
    finally:
        cluster.shutdown()
    assert losses.lost == ["actor", "node"]
    assert there.adapter_digest == here.adapter_digest
    reruns = load_reruns(experiment_file.parent / "ray-losses")
    assert there.reruns == sum(map(len, reruns.values())) >= 1
    assert set(reruns) <= {"1", "2", "3"}


def test_who_waits_for_an_actor_waits_also_while_one_starts_in_the_place_of_the_last(
    tmp_path: Path, ray: Any
) -> None:
    reruns = list[str]()
    clients = RayClients(
        "local", actors=1, app="tests.lost_actor:app", rerun=lambda *what: reruns.append(what[1])
    )

    def answered(node: int) -> bool:
        context = Context(1, node, {"been": str(tmp_path / "been")}, RecordDict(), {})
        return not clients(Message(RecordDict(), node, "train.mask"), context).has_error()

    with closing(clients), ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answered, [1000, 1001, 1002])) == [True] * 3
    assert len(reruns) == 1


def test_a_process_that_leaves_waits_for_no_training_on_the_cluster(
    tmp_path: Path, ray: Any
) -> None:
    done = tmp_path / "done"
    clients = RayClients("local", actors=2, app="tests.lost_actor:app", rerun=lambda *_: None)
    ahead: Ahead[Message] = Ahead(2)

    def work(name: str) -> Message:
        context = Context(1, 1000, {name: str(done)} if name == "done" else {}, RecordDict(), {})
        return clients(Message(RecordDict(), 1000, "train.mask"), context)

    with closing(clients):
        assert not ahead.first(["quick", "done"], work).has_error()
        ahead.close()
        assert not done.exists()


class Waits(RayClients):
    """Keeps how long each actor was waited for."""

    def _take_on(self, actor: Any, **options: Any) -> bool:
        self.__dict__.setdefault("waits", []).append(options["seconds"])
        return super()._take_on(actor, **options)


def test_actors_without_room_are_waited_for_together(
    ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setattr(simulations.ray_clients, "PATIENCE_S", 15.0)
    try:
        with closing(Waits(str(cluster.address), actors=4, rerun=lambda *_: None)) as clients:
            assert [wait > 0 for wait in clients.__dict__["waits"]] == [True, True, False, False]
    finally:
        cluster.shutdown()


def test_an_address_where_no_cluster_is(experiment_file: Path, ray: Any) -> None:
    with pytest.raises(MachineError, match="--ray"):
        run(experiment_file, "ray-nowhere", SHORT, ray="127.0.0.1:1")


def test_without_ray_the_extra_is_named(experiment_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nspec = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'ray' else spec(name, *more)\n"
    )
    command = ["simulate", str(experiment_file), "--out", str(tmp_path / "run"), "--ray", "local"]
    done = subprocess.run(
        [sys.executable, "-m", "fedge", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.returncode
    assert "extra `ray`" in done.stderr
