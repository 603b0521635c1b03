"""Random `kill -9` of everything a consortium is made of, while a run goes on. A command of its own.

    python benchmarks/faults.py [--rounds 20] [--kills 50] [--seed 0] [--out runs/faults] [--json]

A coordinator and four sites on one machine (MiniLM int4, one training step a round). Killed are: the
SuperLink, the process that starts its app, the app itself, the coordinator's supervisor, `fedge run`; at a
site the SuperNode, the process of its messages, one message's fork, the supervisor. A
supervisor and `fedge run` are started again by this script, as a service manager would; everything else by fedge.

Reported: rounds finished; whether after every kill the last round's adapter lay on disk and was valid;
the audit's verdict at the end; and per kind the seconds from the kill until it was up again: it accepts
connections; the two that only ask are there as processes; the app is at work on the run; a supervisor has all that it keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from operations.coordinator import Coordinator
from operations.loopback import Consortium, command, environment, fedge
from operations.site import Site
from operations.supervisor import LOCK, processes_of
from protocol.encoding import vector_digest
from protocol.errors import FedgeError
from protocol.peft_format import from_peft
from protocol.step.checkpoint import decode_checkpoint
from simulations.experiment import experiment_path, load_experiment
from simulations.prepare import prepare
from simulations.progress import NoProgress
from storage.locks import holder, is_held

KINDS = (
    "superlink",
    "superexec",
    "app",
    "coordinator",
    "run",
    "supernode",
    "apps",
    "message",
    "site",
)
UP_S, SITES = 120.0, 4


@dataclass
class Campaign:
    stage: Consortium
    out: Path
    rng: random.Random
    watcher: subprocess.Popen[str] | None = None
    recovered: dict[str, list[float]] = field(default_factory=dict)
    kills: int = 0
    invalid: int = 0

    def watch(self, *, resume: bool) -> None:
        """`fedge run`, in the background."""
        self.watcher = subprocess.Popen(
            self.stage.run_command(self.out, resume=resume),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def rounds(self) -> int:
        numbers = [int(p.name) for p in (self.out / "rounds").glob("[0-9]*") if p.name.isdecimal()]
        return max(numbers, default=-1)

    def strike(self) -> str | None:
        """Kill one process of a random kind and wait until it is up again; its kind."""
        kind = self.rng.choice(KINDS)
        target = self._target(kind)
        if target is None:
            return None
        process, back = target
        began = time.monotonic()
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return None
        self.kills += 1
        self._serve_again(kind)
        while not back():
            if time.monotonic() - began > UP_S:
                raise SystemExit(f"{kind} did not come back")
            time.sleep(0.05)
        self.recovered.setdefault(kind, []).append(time.monotonic() - began)
        return kind

    def _target(self, kind: str) -> tuple[int, Callable[[], bool]] | None:
        """A process of this kind, and how to tell that it is up again."""
        coordinator = self.stage.coordinator / "state"
        site = self.stage.site(self.rng.choice(self.stage.names)) / "state"
        if kind == "run":
            assert self.watcher is not None
            if self.watcher.poll() is not None:
                return None
            return self.watcher.pid, lambda: True
        if kind in ("coordinator", "site"):
            state = coordinator if kind == "coordinator" else site
            self._fallen = state
            first = holder(state / LOCK)
            return (first, lambda: _whole(state, not_by=first)) if first else None
        if kind == "app":
            return self._app()
        if kind == "message":
            parent = _pid(site, "apps")
            children = _children(parent) if parent else []
            return (children[0], lambda: True) if children else None
        state = coordinator if kind in ("superlink", "superexec") else site
        first = _pid(state, kind)
        if not first:
            return None
        return first, lambda: _pid(state, kind) not in (None, first) and _serves(state, kind)

    def _app(self) -> tuple[int, Callable[[], bool]] | None:
        parent = _pid(self.stage.coordinator / "state", "superexec")
        children = _children(parent) if parent else []
        if not children or not is_held(self.out / ".lock"):
            return None
        return children[0], lambda: _app_at_work(self, children[0])

    def _serve_again(self, kind: str) -> None:
        """What a service manager does."""
        if kind == "run":
            assert self.watcher is not None
            self.watcher.wait()
            self.watch(resume=True)
        elif kind in ("coordinator", "site"):
            which = "coordinator" if kind == "coordinator" else "client"
            for _ in range(10):
                done = subprocess.run(
                    command(which, "start", self._fallen.parent),
                    env=environment(),
                    capture_output=True,
                    text=True,
                )
                if done.returncode == 0:
                    return
                time.sleep(0.5)  # a port of what was killed may still be closing
            raise SystemExit(f"{which} did not start again: {done.stderr}")

    def check(self) -> None:
        """The last round's adapter is on disk, whole and the recorded one."""
        try:
            _verify_last(self.out, self.rounds())
        except (FedgeError, OSError, KeyError, ValueError, AssertionError) as error:
            self.invalid += 1
            print(f"invalid after {self.kills} kills: {error!r}", file=sys.stderr)


def _pid(state: Path, name: str) -> int | None:
    return next((p.pid for p in processes_of(state) if p.name == name), None)


def _serves(state: Path, kind: str) -> bool:
    """Whether somebody accepts connections there; two kinds only ask, and have nothing to connect to."""
    if kind == "supernode":
        port = Site.open(state.parent).settings.port
    elif kind == "superlink":
        port = Coordinator.open(state.parent).settings.private.port
    else:
        return True
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _whole(state: Path, *, not_by: int | None) -> bool:
    processes = processes_of(state)
    up = holder(state / LOCK) not in (None, not_by) and all(p.pid for p in processes)
    return bool(processes) and up and all(_serves(state, p.name) for p in processes)


def _children(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except OSError:
        return []


def _app_at_work(campaign: Campaign, killed: int) -> bool:
    app = campaign._app()
    return (app is not None and app[0] != killed) or (
        campaign.watcher is not None and campaign.watcher.poll() is not None
    )


def _verify_last(run: Path, number: int) -> None:
    if number < 0:
        return
    folder = run / "rounds" / f"{number:04d}"
    record = json.loads((folder / "record.json").read_text())
    data = (folder / "checkpoint.safetensors").read_bytes()
    _, note = decode_checkpoint(data, source=str(folder))
    assert note.adapter_digest == record["adapter_out"]
    published = _published(run, folder)
    assert published == record["adapter_published"]


def _published(run: Path, folder: Path) -> str:
    """The digest of the PEFT folder's tensors."""
    from safetensors.numpy import load_file

    from protocol.manifest import parse_manifest
    from protocol.plan import plan_from_text
    from protocol.recipe import Recipe

    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    manifest = parse_manifest((run / "manifest.json").read_text(), source="manifest.json")
    recipe = Recipe(plan=plan, manifest=manifest)
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    tensors = from_peft(dict(saved), method=recipe.method)
    return vector_digest(recipe.published_layout.flatten(tensors))


def run_campaign(rounds: int, kills: int, seed: int, out: Path) -> dict[str, Any]:
    settings = [
        "name=faults",
        "plan.name=faults",
        f"plan.rounds={rounds}",
        f"population.clients={SITES}",
        "plan.local.max_steps=1",
        "plan.cohort.deadline_s=20.0",
        "plan.cohort.attempts=100",
        f"plan.evaluation.every={rounds}",
    ]
    experiment = load_experiment(experiment_path("devices"), settings)
    prepared = prepare(experiment, out / "prepared", resume=False, progress=NoProgress())
    stage = Consortium(out=out, simulated=prepared.out, base=prepared.base)
    run, began = out / "run", time.monotonic()
    with stage.running(lambda text: print(text, file=sys.stderr)):
        campaign = Campaign(stage=stage, out=run, rng=random.Random(seed))
        campaign.watch(resume=False)
        started = time.monotonic()
        while (code := campaign.watcher.poll() if campaign.watcher else None) is None:
            _pause(campaign, rounds, kills, started)
            if campaign.kills < kills and (kind := campaign.strike()):
                print(
                    f"{time.monotonic() - started:6.0f} s  round {campaign.rounds()}, killed {kind}",
                    file=sys.stderr,
                )
            campaign.check()
        seconds = time.monotonic() - started
        campaign.check()
    audited = fedge("audit", "verify", run, "--json", "--quiet")
    every = [value for values in campaign.recovered.values() for value in values]
    records = [
        json.loads(p.read_text()) for p in sorted((run / "rounds").glob("[0-9]*/record.json"))
    ]
    return {
        "exit_code": code,
        "rounds_finished": campaign.rounds(),
        "kills": campaign.kills,
        "adapter_always_valid": campaign.invalid == 0,
        "audit": audited["verdict"],
        "void_rounds": sum(1 for record in records if record["void"]),
        "failed_attempts": len(list((run / "rounds").glob("*.attempt*.json"))),
        "seconds": round(seconds, 1),
        "seconds_in_all": round(time.monotonic() - began, 1),
        "recovery_s": {
            kind: {
                "kills": len(values),
                "median": round(statistics.median(values), 2),
                "longest": round(max(values), 2),
            }
            for kind, values in sorted(campaign.recovered.items())
        },
        "recovery_median_s": round(statistics.median(every), 2) if every else None,
        "recovery_longest_s": round(max(every), 2) if every else None,
        "load": os.getloadavg()[0],
    }


def _pause(campaign: Campaign, rounds: int, kills: int, started: float) -> None:
    """Spread the kills over the rounds: wait while they are ahead of them, a little otherwise."""
    while campaign.watcher and campaign.watcher.poll() is None:
        due = (campaign.rounds() + 1.5) / rounds * kills  # by the middle of the next round
        if campaign.kills < due or campaign.kills >= kills:
            time.sleep(campaign.rng.uniform(0.2, 4.0))
            return
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = run_campaign(
        arguments.rounds, arguments.kills, arguments.seed, arguments.out.resolve()
    )
    if arguments.json:
        print(json.dumps(results))
        return
    for key, value in results.items():
        if key != "recovery_s":
            print(f"{key.replace('_', ' '):28} {value}")
    for kind, row in results["recovery_s"].items():
        print(
            f"  {kind:26} {row['kills']} kills, up again after {row['median']} s, longest {row['longest']} s"
        )


if __name__ == "__main__":
    main()
