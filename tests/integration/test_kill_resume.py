"""``kill -9`` at random moments, ``--resume`` each time: the adapter is the uninterrupted run's.

One helper process imports everything once and forks a process per attempt; each attempt is killed
with SIGKILL after a seeded delay, counted from its first round, so that the kills fall into
training, storing, publishing and measuring alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HELPER = """
import json, os, random, signal, sys, time
from pathlib import Path
import onnxruntime, torch  # here, not in every fork
torch.set_num_threads(1)
import client.worker, simulations.report
from simulations.experiment import load_experiment
from simulations.run import simulate

experiment, kills = load_experiment(Path(sys.argv[1])), int(sys.argv[3])
whole, killed_run = Path(f"{sys.argv[2]}-whole"), Path(f"{sys.argv[2]}-killed")


class Signal:
    def __init__(self, pipe):
        self.pipe = pipe

    def update(self, task, done, total):
        if self.pipe is not None and task == "clients in the round":
            os.write(self.pipe, b"x")
            self.pipe = None

    def line(self, text):
        pass

    def warn(self, text):
        pass


def start(out):
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, reading
    try:
        simulate(experiment, out, resume=True, progress=Signal(writing))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def finish(out):
    pid, pipe = start(out)
    os.read(pipe, 1)
    began = time.monotonic()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    return time.monotonic() - began


seconds = finish(whole)
federated = json.loads((whole / "timings.json").read_text())["parts"]["federated"]
rng, killed, reached = random.Random(20), 0, []
for _ in range(kills):
    pid, pipe = start(killed_run)
    os.read(pipe, 1)
    os.close(pipe)
    time.sleep(rng.uniform(0.0, federated / kills))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    killed += os.WIFSIGNALED(status)
    rounds = killed_run / "rounds"
    reached.append(sum(1 for p in rounds.iterdir() if (p / "record.json").exists()))
finish(killed_run)
print(json.dumps({"killed": killed, "reached": reached, "seconds": seconds}))
"""


def run_with_kills(experiment_file: Path, folder: Path, kills: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", HELPER, str(experiment_file), str(folder), str(kills)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def assert_equal_runs(folder: Path) -> None:
    whole, killed = Path(f"{folder}-whole"), Path(f"{folder}-killed")
    for name in ("evaluations.json", "rounds/0010/adapter/adapter_model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, killed)]
    for key in ("adapter_digest", "accuracy_federated", "accuracy_pooled", "accuracy_alone_mean"):
        assert summaries[0][key] == summaries[1][key], key


@pytest.mark.slow
def test_three_kills_change_no_bit(experiment_file: Path) -> None:
    folder = experiment_file.parent / "three-kills"
    result = run_with_kills(experiment_file, folder, 3)
    assert result["killed"] >= 2  # a machine that is freer by then may end before the third
    assert_equal_runs(folder)


@pytest.mark.slow
def test_kills_under_secure_aggregation_change_no_bit(experiment_file: Path) -> None:
    """Killed in any phase, the round is asked again under a new number: the sum is the same."""
    secret = experiment_file.with_name("secret.toml")
    text = experiment_file.read_text().replace("size = 4\nquorum = 2", "size = 5\nquorum = 3")
    for given in ('weighting = "examples"\n', '[plan.secrecy]\nexchange = "plain"\n'):
        text = text.replace(given, "")  # the default
    secret.write_text(text)
    folder = experiment_file.parent / "secret-kills"
    result = run_with_kills(secret, folder, 3)
    assert result["killed"] >= 2  # a machine that is freer by then may end before the third
    assert_equal_runs(folder)
    record = json.loads(Path(f"{folder}-killed/rounds/0010/record.json").read_text())
    assert record["secure"]
    assert record["sequence"] > 10


@pytest.mark.slow
def test_kills_of_rounds_that_close_early_count_nobody_twice(experiment_file: Path) -> None:
    """Who was slow before the kill is not known behind it: other clients may be asked, each is counted once."""
    spare = experiment_file.with_name("spare.toml")
    cohort = "size = 5\nspare = 1\nquorum = 3\ndeadline_s = 900.0"
    text = experiment_file.read_text().replace("size = 4\nquorum = 2", cohort)
    for given in ('weighting = "examples"\n', '[plan.secrecy]\nexchange = "plain"\n'):
        text = text.replace(given, "")  # the default
    speeds = "[faults]\ntraining_s = 60.0\nslow = 0.17\n"
    spare.write_text(text.replace("[yardsticks]\n", speeds + "[yardsticks]\n"))
    folder = experiment_file.parent / "spare-kills"
    assert run_with_kills(spare, folder, 3)["killed"] >= 2
    for run in (Path(f"{folder}-{which}") for which in ("whole", "killed")):
        records = [
            json.loads((run / f"rounds/{number:04d}/record.json").read_text())
            for number in range(1, 11)
        ]
        for record in records:
            dropped = [drop["client"] for drop in record["dropped"]]
            assert sorted(record["used"] + dropped) == record["expected"]
            assert record["weight"] == len(record["used"]) == 5
            assert record["seconds"] == 60.0
        reasons = {drop["reason"] for record in records for drop in record["dropped"]}
        assert reasons == {"unawaited"}
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["audit"], summary["rounds_verified"]) == ("ok", 10)
        assert summary["unawaited"] == summary["dropped"] > 0


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ten_kills_change_no_bit(experiment_file: Path) -> None:
    folder = experiment_file.parent / "ten-kills"
    result = run_with_kills(experiment_file, folder, 10)
    assert result["killed"] >= 8
    assert len(set(result["reached"])) > 3, result
    assert_equal_runs(folder)
