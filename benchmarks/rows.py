"""Whether the rows that `sparse` finds are better than others: rows drawn at random, and the least of the found.

    python benchmarks/rows.py [--out runs/rows] [--seeds 3] [--json]

Each cell is a run of `fedge simulate demo` in a process of its own, which chooses rows of linears in one of three ways;
everything else, the first round too, is the same. A finished cell is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cells import ONE_THREAD, ROOT

from protocol.methods import sparse

LARGEST = sparse.selection


def _random(scout: Any) -> Any:
    """Rows drawn by the numbers' own digest: whoever has the sum draws the same."""
    seed = int.from_bytes(hashlib.sha256(scout.tobytes()).digest()[:8], "big")
    rows = np.random.default_rng(seed).permutation(len(scout))[: scout.shape[1]]
    return np.eye(len(scout), dtype=scout.dtype)[np.sort(rows)].T


def _least(scout: Any) -> Any:
    """The rows of the smallest norms."""
    rows = np.argsort(np.linalg.norm(scout, axis=1), kind="stable")[: scout.shape[1]]
    return np.eye(len(scout), dtype=scout.dtype)[np.sort(rows)].T


CHOICES: dict[str, Callable[[Any], Any]] = {"found": LARGEST, "random": _random, "least": _least}


def run(choice: str, seed: int, out: Path) -> None:
    """A run whose rows are chosen so, in this process; what is a selection already stays one."""
    sys.path.remove(str(Path(__file__).resolve().parent))  # its `audit` is none of the package
    from fedge.main import main as fedge

    def chosen(scout: Any) -> Any:
        largest = LARGEST(scout)
        return largest if np.array_equal(scout, largest) else CHOICES[choice](scout)

    sparse.selection = chosen
    sys.argv = ["fedge", "simulate", "demo", "--out", str(out), "--json"]
    for setting in (
        "plan.adapter.method=sparse",
        f"plan.seed={seed}",
        "yardsticks.pooled=false",
        "yardsticks.alone=0",
    ):
        sys.argv += ["--set", setting]
    fedge()


def accuracy(choice: str, seed: int, out: Path) -> float:
    """Of a cell, which is run unless it is there."""
    summary = out / "summary.json"
    if not summary.exists():
        command = [sys.executable, __file__, "--run", choice, "--seed", str(seed)]
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)}
        subprocess.run(
            [*command, "--out", str(out)], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    return float(json.loads(summary.read_text())["accuracy_federated"])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", choices=CHOICES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.seed, arguments.out)
        return
    table = {
        choice: [
            accuracy(choice, seed, arguments.out.absolute() / f"{choice}-{seed}")
            for seed in range(arguments.seeds)
        ]
        for choice in CHOICES
    }
    if arguments.json:
        print(json.dumps(table))
        return
    for choice, values in table.items():
        print(
            f"{choice:8s} {statistics.mean(values):.3f}  ({', '.join(f'{v:.3f}' for v in values)})"
        )


if __name__ == "__main__":
    main()
