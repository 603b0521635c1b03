"""Every method beside full fine-tuning: quality, bytes, processor time and memory, three seeds, one table a data set.

    python benchmarks/methods.py [--data trec sst2] [--methods lora bias full] [--seeds 0 1 2] [--out runs/methods] [--no-pooled] [--jobs 2] [--json]

A cell is a run of `fedge simulate DATA` in a process of its own, federated in secret and pooled, or of
`benchmarks/full_tuning.py` on the rows of that data's first run. A finished cell is not run again, so the command can be
stopped and repeated. Processor time and peak memory are the whole process's: federated, pooled and measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cells import ONE_THREAD, ROOT

from protocol.methods import METHODS as KNOWN

FULL = "full"
# Settings of the plan; rates were not searched: few numbers, or such as scale others, take larger steps.
METHODS = {name: dict(method.measured) for name, method in KNOWN.items() if not method.writes}
Cell = dict[str, Any]


def measured(command: Sequence[str]) -> tuple[str, float, int]:
    """Output, processor seconds and peak bytes of a process."""
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}: {said[-600:]}")
    return said, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def trained_numbers(run: Path, base: Path) -> int:
    """Numbers that some round of the run trains."""
    from base_model.verify import read_manifest
    from protocol.plan import plan_from_text
    from protocol.recipe import Recipe

    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    recipe = Recipe(plan=plan, manifest=read_manifest(base))
    return recipe.layout.only(recipe.trained).size


def method_cell(data: str, method: str, seed: int, out: Path, *, pooled: bool) -> Cell:
    """Federated, and where it is asked for pooled, under a method."""
    folder = out / f"{data}-{method}-{seed}"
    command = [sys.executable, "-m", "fedge", "simulate", data, "--out", str(folder), "--json"]
    settings = {"adapter.method": method, "seed": str(seed), **METHODS[method]}
    for key, value in settings.items():
        command += ["--set", f"plan.{key}={value}"]
    if not pooled:
        command += ["--set", "yardsticks.pooled=false"]
    if folder.exists():
        command.append("--resume")
    said, seconds, peak = measured(command)
    summary = json.loads(said)
    return {
        "federated": summary["accuracy_federated"],
        "pooled": summary.get("accuracy_pooled"),
        "numbers": trained_numbers(folder, Path(summary["base"])),
        "bytes": summary["upload_bytes_per_client_round"],
        "cpu_seconds": seconds,
        "peak_bytes": peak,
        "audit": summary["audit"],
    }


def build_base(data: str, out: Path) -> None:
    """The base of all cells, in a round that is no cell: its memory would be the first one's."""
    if not (folder := out / f"{data}-base").exists():
        command = [sys.executable, "-m", "fedge", "simulate", data, "--out", str(folder), "--json"]
        for setting in ("plan.rounds=1", "plan.adapter.method=head", "yardsticks.pooled=false"):
            command += ["--set", setting]
        measured(command)


def full_cell(data: str, seed: int, out: Path, *, pooled: bool) -> Cell:
    """All weights, on the same devices' rows."""
    run = out / f"{data}-lora-{seed}"
    command = [sys.executable, str(ROOT / "benchmarks" / "full_tuning.py"), str(run)]
    federated, seconds, peak = measured([*command, "--federated"])
    cell, together = json.loads(federated), None
    if pooled:
        said, more, _ = measured(command)
        together, seconds = json.loads(said)["accuracy"], seconds + more
    return {
        "federated": cell["accuracy"],
        "pooled": together,
        "numbers": cell["numbers"],
        "bytes": 4 * cell["numbers"],
        "cpu_seconds": seconds,
        "peak_bytes": peak,
        "audit": None,
    }


def kept(path: Path, make: Callable[[], Cell]) -> Cell:
    """A cell from its file, or made and written there."""
    if not path.exists():
        cell = make()
        path.write_text(json.dumps(cell, indent=1) + "\n")
        print(f"done: {path.stem}", file=sys.stderr, flush=True)
    return dict(json.loads(path.read_text()))


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation, nothing of what was not measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return _spread(known)


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def row(method: str, cells: Sequence[Cell], lora: Sequence[Cell]) -> str:
    """A line of the table; time and memory are over LoRA's, both in this run."""

    def mean(key: str, of: Sequence[Cell] = cells) -> float:
        return statistics.mean(cell[key] for cell in of)

    ratios = [mean(key) / mean(key, lora) for key in ("cpu_seconds", "peak_bytes")]
    return (
        f"| `{method}` | {spread([c['federated'] for c in cells])} | {spread([c['pooled'] for c in cells])} "
        f"| {mean('numbers'):,.0f} | {mean('bytes'):,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["trec", "sst2"])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, FULL])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods")
    parser.add_argument("--pooled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    methods = ["lora", *(name for name in arguments.methods if name != "lora")]
    everything: dict[str, dict[str, list[Cell]]] = {}
    for data in arguments.data:
        build_base(data, out)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = {}
            for method in methods:
                for seed in arguments.seeds:
                    make = (
                        partial(full_cell, data, seed, out, pooled=arguments.pooled)
                        if method == FULL
                        else partial(method_cell, data, method, seed, out, pooled=arguments.pooled)
                    )
                    path = out / f"{data}-{method}-{seed}.json"
                    jobs[method, seed] = pool.submit(kept, path, make)
                if method == "lora":  # whose runs have the base, and the rows of the full one
                    for seed in arguments.seeds:
                        jobs[method, seed].result()
            everything[data] = {
                method: [jobs[method, seed].result() for seed in arguments.seeds]
                for method in methods
            }
    (out / "table.json").write_text(json.dumps(everything, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(everything))
        return
    for data, table in everything.items():
        print(f"\n{data}, seeds {arguments.seeds}")
        print(
            "| method | federated | pooled | trained numbers | bytes up a round | CPU / LoRA's | peak / LoRA's |"
        )
        print("|---|---|---|---|---|---|---|")
        for method in methods:
            print(row(method, table[method], table["lora"]))


if __name__ == "__main__":
    main()
