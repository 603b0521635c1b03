"""The same work by fedge, plain peft, and the simulations of Flower, NVFlare and pfl, each in processes of its own.

    python benchmarks/peers/compare.py [--experiment demo] [--set KEY=VALUE ...] [--own KEY=VALUE ...] [--to 0.85]
        [--only NAME ...] [--cores 2] [--out FOLDER] [--json]

fedge prepares devices and rows and trains with ONNX Runtime, on int4 and on a base of 32 bits; the peers read
the first run's folder: the same model, rows, partition, batches a round, learning rates, in float32. Measured is the
whole process tree: CPU seconds, peak memory (shared pages counted once), wall seconds; accuracy by round; bytes
that a client sends; seconds and the whole tree's CPU seconds until the accuracy ``--to`` was first seen. What
``--out`` has is not run again. ``--own KEY=VALUE`` adds a run of fedge on int4 with these settings as well, which the
peers have no words for (`head.start=labels`), on the same rows. ``--only`` names what is measured by words of the table.
Flower needs Ray (`pip install -e '.[ray]'`); NVFlare and pfl get environments of their own under ``--out``, which a
registry must be reached for; who has none is left out. ``--cores`` are as many clients as fedge trains at a time,
actors that Flower has, threads of NVFlare's simulator, threads of torch in peft's and pfl's one process: 1 where
other work holds the second core, for two threads of torch wait for each other then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.environments import NoEnvironmentError, python_of
from benchmarks.process_tree import cpu_of_tree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
POLL_S, FIRST = 0.2, "run-4"
QUIET = {"HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
PLAN = [
    "plan.rule.name=mean",
    "plan.secrecy.exchange=plain",
    "plan.evaluation.every=1",
    "plan.server.optimizer=fedavg",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]


class Tree:
    """A process with all that it starts: CPU seconds and memory, looked at while it runs."""

    def __init__(self, pid: int) -> None:
        self._pid, self.peak = pid, 0
        self._used: dict[int, float] = {}
        self._course: list[tuple[float, float]] = []  # time of day, CPU seconds by then

    def look(self) -> None:
        used = cpu_of_tree(self._pid)
        self._used |= used
        self.peak = max(self.peak, sum(map(_pss, used)))
        self._course.append((time.time(), self.cpu))

    def cpu_at(self, moment: float) -> float:
        """CPU seconds by a time of day, as they were seen last before it."""
        return max((cpu for at, cpu in self._course if at <= moment), default=0.0)

    @property
    def cpu(self) -> float:
        return sum(self._used.values())


def _pss(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def watched(command: list[str], log: Path, cores: int) -> tuple[dict[str, float], Tree]:
    """Run it; what it took, and its course. Raises SystemExit with the end of its log when it fails."""
    environment = {**os.environ, **QUIET}
    environment |= {"OMP_NUM_THREADS": str(cores), "PEER_CORES": str(cores)}
    if command[0] != sys.executable:
        environment.pop("PYTHONPATH", None)  # it names packages of this environment
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        tree = Tree(process.pid)
        while process.poll() is None:
            tree.look()
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"{command[1:4]}: {log.read_text()[-2000:]}")
    wall = time.perf_counter() - started
    return {"wall_s": wall, "cpu_s": tree.cpu, "peak_bytes": tree.peak}, tree


def fedge(
    experiment: str, settings: list[str], bits: int, out: Path, cores: int, name: str = ""
) -> dict[str, Any]:
    """A run behind one of a round, which builds the base. ``name``: of its folders, else the bits."""
    run, warm = out / f"run-{name or bits}", out / f"warm-{name or bits}"
    command = [
        sys.executable,
        "-m",
        "fedge",
        "simulate",
        experiment,
        "--jobs",
        str(cores),
        "--json",
    ]
    command += [p for s in [*PLAN, f"base.bits={bits}", *settings] for p in ("--set", s)]
    for folder in (warm, run):
        shutil.rmtree(folder, ignore_errors=True)  # of a measurement that was cut off
    watched(
        [*command, "--set", "plan.rounds=1", "--out", str(warm)], warm.with_suffix(".log"), cores
    )
    measured, tree = watched([*command, "--out", str(run)], run.with_suffix(".log"), cores)
    summary = json.loads((run / "summary.json").read_text())
    seconds = json.loads((run / "timings.json").read_text())["rounds"]
    shares = {
        e["round"]: e["accuracy"]
        for e in json.loads((run / "evaluations.json").read_text())["test"]
    }
    moments = _evaluated(run / "metrics.jsonl")
    rounds, total = [], 0.0
    for number in sorted(map(int, seconds)):
        total += seconds[str(number)]
        cpu = tree.cpu_at(moments[number])
        rounds.append({"seconds": total, "accuracy": shares[number], "cpu_s": cpu})
    return measured | {
        "rounds": rounds,
        "bytes_up": summary["upload_bytes_per_client_round"],
        "bytes_down": summary["download_bytes_per_client_round"],
    }


def _evaluated(metrics: Path) -> dict[int, float]:
    """By round, the time of day at which its evaluation was written."""
    events = map(json.loads, metrics.read_text("utf-8").splitlines())
    return {e["round"]: e["time"] for e in events if e["event"] == "evaluation"}


def peer(name: str, out: Path, cores: int, pins: str = "") -> dict[str, Any]:
    """``<name>.py`` on the rows of fedge's first run; in the environment of ``<pins>.txt`` where that is named."""
    python = str(python_of(pins, out)) if pins else sys.executable
    if not (out / FIRST / "summary.json").exists():
        raise SystemExit(f"{out / FIRST} has no rows yet: measure `int4` first, or all")
    result = out / f"{name}.rounds.json"
    result.unlink(missing_ok=True)  # of a measurement that was cut off
    command = [python, str(HERE / f"{name}.py"), str(out / FIRST), str(result)]
    measured, tree = watched(command, out / f"{name}.log", cores)
    found: dict[str, Any] = json.loads(result.read_text())
    for each in found["rounds"]:
        each["cpu_s"] = tree.cpu_at(each.pop("at"))
    return measured | found


def reached(result: dict[str, Any], share: float, what: str) -> float | None:
    return next((r[what] for r in result["rounds"] if r["accuracy"] >= share), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiment", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--own", action="append", default=[])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--to", type=float, default=0.85)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench-peers"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    systems = {
        name: measure
        for name, measure in systems_of(arguments, out).items()
        if not arguments.only or any(word in name for word in arguments.only)
    }
    results = measured_once(systems, out)
    for result in results.values():
        result["to_s"] = reached(result, arguments.to, "seconds")
        result["to_cpu_s"] = reached(result, arguments.to, "cpu_s")
    if arguments.json:
        print(json.dumps(results))
    else:
        table(results)


def systems_of(arguments: argparse.Namespace, out: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """By name, what measures it. The first is before the others, which read its run."""
    cores, settings = arguments.cores, arguments.settings
    systems: dict[str, Callable[[], dict[str, Any]]] = {
        "fedge, int4": lambda: fedge(arguments.experiment, settings, 4, out, cores),
        "fedge, 32 bits": lambda: fedge(arguments.experiment, settings, 32, out, cores),
    }
    if own := arguments.own:
        systems["fedge, settings of its own"] = lambda: fedge(
            arguments.experiment, [*settings, *own], 4, out, cores, "own"
        )
    systems["peft, one after the other"] = lambda: peer("sequential", out, cores)
    if find_spec("ray") is not None:
        systems["Flower's simulation with peft"] = lambda: peer("flower", out, cores)
    systems["NVFlare's simulator with peft"] = lambda: peer("nvflare_peer", out, cores, "nvflare")
    systems["pfl's simulation with peft"] = lambda: peer("pfl_peer", out, cores, "pfl")
    return systems


def measured_once(systems: dict[str, Callable[[], dict[str, Any]]], out: Path) -> dict[str, Any]:
    """By name; what ``out`` keeps is read, and who has no environment is left out with a word on stderr."""
    results = {}
    for name, measure in systems.items():
        kept = out / f"{name.replace(' ', '-')}.json"
        try:
            if not kept.exists():
                kept.write_text(json.dumps(measure()))
        except NoEnvironmentError as error:
            print(f"{name} is left out, it could not be installed: {error}", file=sys.stderr)
            continue
        results[name] = json.loads(kept.read_text())
    return results


def table(results: dict[str, Any]) -> None:
    print(
        f"{'':30} {'CPU s':>7} {'wall s':>7} {'peak MB':>8} {'up kB':>6} {'last':>6} {'to: s':>7} {'CPU s':>7}"
    )
    for name, found in results.items():
        to, cpu = ("-" if v is None else f"{v:.0f}" for v in (found["to_s"], found["to_cpu_s"]))
        print(
            f"{name:30} {found['cpu_s']:7.0f} {found['wall_s']:7.0f} {found['peak_bytes'] / 1e6:8.0f} "
            f"{found['bytes_up'] / 1e3:6.0f} {found['rounds'][-1]['accuracy']:6.3f} {to:>7} {cpu:>7}"
        )


if __name__ == "__main__":
    main()
