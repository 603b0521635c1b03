"""Whether round 1,000 costs what round 100 did: time, memory, bytes and files of a long run whose clients do nothing.

    python benchmarks/long_run.py [--rounds 1000] [--clients 4] [--exchange plain secagg] [--private] [--keep DIR] [--json]

The real coordinator (store, log, records, state, metrics) and, under secure aggregation, the real client over the
in-process grid: its keys, masks, sessions and memories on disk; in the place of training it gives a constant update
of 3,072 coordinates. Each exchange is a process of its own. Compared are the 256 rounds behind the first hundred and
the last 256, as many as fill a tile of a log in clear: the median of CPU seconds and of resident memory, the mean of
bytes written and of new files. Aim: 1.05 each. `--keep`: the run folders stay there, for `fedge report`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.grid import echo_app, no_op_manifest

SPAN, FIRST = 256, 100  # rounds that are compared, and those before them
PRIVATE = """[privacy]
mechanism = "distributed"
epsilon = 1000.0
noise_multiplier = 20.0
"""


def counter(path: str, name: str) -> int:
    """A number of /proc/self: kB of memory, bytes written."""
    for line in Path("/proc/self", path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise SystemExit("this benchmark reads /proc and runs on Linux only")


def folders(root: Path) -> dict[str, int]:
    """Files below ``root``, and the entries of its largest folder."""
    every = [(name, len(below) + len(files), len(files)) for name, below, files in os.walk(root)]
    largest = max(every, key=lambda each: each[1])
    return {"files": sum(files for *_, files in every), "largest": largest[1]}


class Marks:
    """The coordinator's listener: what has been used up to the end of each round."""

    def __init__(self, root: Path, rounds: int) -> None:
        self._root = root
        self._looks = {FIRST, FIRST + SPAN, rounds - SPAN, rounds}
        self.cpu: list[float] = []
        self.written: list[int] = []
        self.resident: list[int] = []
        self.folders: dict[int, dict[str, int]] = {}
        self._own = 0.0  # this listener's own seconds

    def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
        pass

    def on_round(self, record: dict[str, Any], tensors: Any) -> None:
        begun = time.process_time()
        self.cpu.append(begun - self._own)
        self.written.append(counter("io", "wchar"))
        self.resident.append(counter("status", "VmRSS"))
        if (number := int(record["round"])) in self._looks:
            self.folders[number] = folders(self._root)
        self._own += time.process_time() - begun


def plan_text(exchange: str, rounds: int, clients: int, *, private: bool) -> str:
    rule = "alternating" if private else "mean"  # noise asks for a rule that is linear
    return (
        f'name = "long"\nrounds = {rounds}\n[base]\nfingerprint = "{long_manifest().fingerprint}"\n'
        f'[task]\nlabels = ["a", "b"]\n[adapter]\ntargets = ["query"]\nrank = 4\n[rule]\nname = "{rule}"\n'
        f"[cohort]\nsize = {clients}\nquorum = {max(3, clients - 1)}\n"
        f'[secrecy]\nexchange = "{exchange}"\n' + (PRIVATE if private else "")
    )


def long_manifest() -> Any:
    """The base of `benchmarks/grid.py` with one linear."""
    return no_op_manifest(pairs=1)


def secret_app(plan: Any) -> Any:
    """The real ClientApp, whose training is a constant of the numbers that the round trains."""
    import numpy as np

    import client.app
    from protocol import wire
    from protocol.exchange import Contribution
    from protocol.recipe import Recipe

    recipe, metrics = Recipe(plan=plan, manifest=long_manifest()), plan.task.METRICS

    def trained(message: Any, context: Any) -> Contribution:
        told = wire.from_record(wire.Instruction, message.content[wire.INSTRUCTION])
        update = np.full(recipe.round_layout(told.round).size, 1e-4, np.float32)
        return Contribution(update=update, weight=1, metrics=dict.fromkeys(metrics, 1.0))

    # What opens a base and what reads rows: there are none.
    setattr(client.app, "_verify_ready", lambda message, context, recipe: None)  # noqa: B010
    setattr(client.app, "_contribution", trained)  # noqa: B010
    return client.app.app


def enrolled(folder: Path, clients: int) -> dict[int, str]:
    """Keys of all clients and their roster; the files of the keys."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from protocol.secagg.roster import render_roster

    (folder / "clients").mkdir()
    roster, paths = {}, {}
    for number in range(clients):
        key = Ed25519PrivateKey.generate()
        path = folder / "clients" / f"client-{number:04d}.key"
        path.write_text(key.private_bytes_raw().hex() + "\n", "ascii")
        roster[f"client-{number:04d}"] = key.public_key().public_bytes_raw()
        paths[number] = str(path)
    (folder / "roster.json").write_text(render_roster(roster))
    return paths


def run(exchange: str, rounds: int, clients: int, folder: Path, *, private: bool) -> Marks:
    """The run, in this process."""
    from protocol.plan import plan_from_text
    from server.app import make_app
    from simulations.clock import VirtualClock
    from simulations.grid import InProcessGrid, server_context

    (folder / "base").mkdir()
    (folder / "base" / "manifest.json").write_text(long_manifest().to_json())
    text = plan_text(exchange, rounds, clients, private=private)
    (folder / "plan.toml").write_text(text)
    config = {"plan": str(folder / "plan.toml"), "base": str(folder / "base")}
    own: Callable[[int], dict[str, Any]] | None = None
    app = echo_app(long_manifest())
    if exchange == "secagg":
        config["roster"] = str(folder / "roster.json")
        paths = enrolled(folder, clients)
        app = secret_app(plan_from_text(text, source="plan"))
        own = lambda partition: {**config, "identity": paths[partition]}  # noqa: E731
    clock, marks = VirtualClock(), Marks(folder, rounds)
    grid = InProcessGrid(app, clients, run_config=config, own=own, clock=clock)
    make_app(clock=clock, listener=marks)(
        grid, server_context({**config, "run": str(folder / "run")})
    )
    return marks


def slopes(marks: Marks, rounds: int) -> dict[str, Any]:
    """The last rounds over those behind the first hundred."""
    spans = [slice(FIRST, FIRST + SPAN), slice(rounds - SPAN, rounds)]

    def each(values: list[Any], span: slice) -> list[float]:
        return [
            b - a for a, b in zip(values[span.start - 1 : span.stop - 1], values[span], strict=True)
        ]

    cpu = [1e3 * statistics.median(each(marks.cpu, span)) for span in spans]
    written = [statistics.mean(each(marks.written, span)) for span in spans]
    resident = [1024.0 * statistics.median(marks.resident[span]) for span in spans]
    (a, b), (c, d) = ((span.start, span.stop) for span in spans)
    files = [
        (marks.folders[z]["files"] - marks.folders[y]["files"]) / SPAN for y, z in ((a, b), (c, d))
    ]
    measured = {
        "cpu_ms": cpu,
        "written_bytes": written,
        "resident_bytes": resident,
        "new_files": files,
    }
    return {
        **{
            name: {"then": one, "last": two, "ratio": two / one}
            for name, (one, two) in measured.items()
        },
        "largest_folder": marks.folders[rounds]["largest"],
        "mean_cpu_ms": 1e3 * (marks.cpu[-1] - marks.cpu[FIRST - 1]) / (rounds - FIRST),
    }


def measured(exchange: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One exchange in a fresh process."""
    command = [sys.executable, __file__, "--only", exchange]
    command += ["--rounds", str(arguments.rounds), "--clients", str(arguments.clients)]
    command += ["--private"] if arguments.private else []
    command += ["--keep", str(arguments.keep / exchange)] if arguments.keep else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{exchange}: {done.stderr.strip()[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--exchange", nargs="+", default=["plain", "secagg"])
    parser.add_argument(
        "--private", action="store_true", help="clients add noise, and keep ledgers"
    )
    parser.add_argument("--keep", type=Path, help="folder for the run folders; must not have them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < FIRST + 2 * SPAN:
        parser.error(f"at least {FIRST + 2 * SPAN} rounds")
    if arguments.only:
        with ExitStack() as held:
            folder = arguments.keep or Path(held.enter_context(tempfile.TemporaryDirectory()))
            folder.mkdir(parents=True, exist_ok=True)
            marks = run(
                arguments.only,
                arguments.rounds,
                arguments.clients,
                folder,
                private=arguments.private,
            )
        print(json.dumps(slopes(marks, arguments.rounds)))
        return
    results = {exchange: measured(exchange, arguments) for exchange in arguments.exchange}
    if arguments.json:
        print(json.dumps(results))
        return
    for exchange, found in results.items():
        print(
            f"{exchange}, {arguments.clients} clients: rounds 101-356, the last 256, ratio (aim 1.05)"
        )
        for name in ("cpu_ms", "written_bytes", "resident_bytes", "new_files"):
            row = found[name]
            print(f"  {name:15} {row['then']:14,.1f} {row['last']:14,.1f} {row['ratio']:8.3f}")
        print(f"  entries of the largest folder {found['largest_folder']}")


if __name__ == "__main__":
    main()
