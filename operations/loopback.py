"""A consortium on one machine, made and started by the commands of the guide: for rehearsals and tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operations.flower import ROOT
from operations.folders import free_port
from operations.proxies import spare_loopback
from protocol.errors import FedgeError, MachineError
from simulations.jobs import EXPAND_MIB

COMMAND_S, ONLINE_S = 1800.0, 180.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Consortium:
    """A coordinator and sites in ``out``; plan, data and base are those of a prepared simulation.

    ``simulated`` is that run's folder: its plan.json, and clients/NAME.jsonl for every site. ``hosts`` are in
    the coordinator's certificate.
    """

    out: Path
    simulated: Path
    base: Path
    hosts: tuple[str, ...] = ("127.0.0.1",)

    @property
    def names(self) -> list[str]:
        """The sites, named as the simulation's clients."""
        files = (self.simulated / "clients").glob("*.jsonl")
        return sorted(path.stem for path in files if "." not in path.stem)

    @property
    def plan(self) -> Path:
        """What every site agrees to."""
        return self.simulated / "plan.json"

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.out / "coordinator"

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.out / "sites" / name

    @contextmanager
    def running(self, say: Say) -> Iterator[None]:
        """All of it made, started and on line; stopped at the end, whatever happened."""
        with ExitStack() as stack:
            say("a coordinator")
            ports = [str(free_port()) for _ in range(3)]
            fedge(
                *("coordinator", "init", self.coordinator, "--json", "--name", "rehearsal"),
                *(part for host in self.hosts for part in ("--host", host)),
                *("--address", "127.0.0.1", "--port", ports[0]),
                *("--private-port", ports[1], "--metrics-port", ports[2]),
            )
            stack.callback(_stop, "coordinator", self.coordinator)
            fedge("coordinator", "start", self.coordinator)
            for name in self.names:
                say(f"site {name}")
                self.enrol(name)
                stack.callback(_stop, "client", self.site(name))
                fedge("client", "start", self.site(name))
            self._wait_until_online()
            yield

    def run_command(self, out: Path, *, resume: bool) -> list[str]:
        """The command that runs the plan into ``out``."""
        return command(
            *("run", self.plan, "--coordinator", self.coordinator, "--base", self.base),
            *("--out", out, "--json", *(["--resume"] if resume else [])),
        )

    def enrol(self, name: str) -> None:
        """A site's keys and settings, and its admission."""
        folder = self.site(name)
        folder.parent.mkdir(exist_ok=True)
        fedge(
            *("client", "enrol", folder, "--name", name, "--threads", "1", "--json"),
            *("--expand-mib", str(EXPAND_MIB)),  # as in a simulation: its adapter is compared with
            *("--invitation", self.coordinator / "invitation.json"),
            *("--data", self.simulated / "clients" / f"{name}.jsonl"),
            *("--plan", self.plan, "--base", self.base),
        )
        fedge("coordinator", "admit", self.coordinator, folder / "request.json", "--json")

    def _wait_until_online(self) -> None:
        """All sites, each with the newest roster: with an older one it would refuse the others."""
        until = time.monotonic() + ONLINE_S
        while time.monotonic() < until:
            status = fedge("status", self.coordinator, "--json")
            online = [site for site in status["sites"] if site["status"] == "online"]
            version = status["roster_version"]
            contacts = [self.site(name) / "state" / "contact.json" for name in self.names]
            known = [json.loads(path.read_text("utf-8")) for path in contacts if path.exists()]
            newest = [contact for contact in known if contact["roster_version"] == version]
            if len(online) == len(newest) == len(self.names):
                return
            time.sleep(1)
        raise MachineError("not every site came on line", f"see the logs in {self.out / 'sites'}")


def command(*arguments: object) -> list[str]:
    """A command of ours, for a process of its own."""
    return [sys.executable, "-P", "-m", "fedge", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Where that process finds us."""
    inherited = dict(os.environ)
    spare_loopback(inherited)
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def fedge(*arguments: object, show: bool = False) -> Any:
    """Run one command of ours; its JSON, if that was asked for. Raises its error."""
    return finish(command(*arguments), show=show)


def finish(arguments: list[str], *, show: bool = False) -> Any:
    """Run a command to its end; its JSON, if that was asked for. Raises its error."""
    done = subprocess.run(  # noqa: S603 - ours
        arguments,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        encoding="utf-8",
        timeout=COMMAND_S,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        error = FedgeError(
            f"`fedge {' '.join(arguments[4:7])} …` ended with {done.returncode}: {said}",
            "see above",
        )
        error.exit_code = done.returncode if 0 < done.returncode < 128 else 1
        raise error
    return json.loads(done.stdout) if "--json" in arguments else None


def _stop(kind: str, folder: Path) -> None:
    subprocess.run(  # noqa: S603 - ours
        command(kind, "stop", folder), env=environment(), capture_output=True, timeout=120
    )
