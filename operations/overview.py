"""How a coordinator stands, from its folder and its SuperLink: processes, sites, runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operations.coordinator import Coordinator
from operations.supervisor import LOCK, Process, processes_of
from protocol.documents import parse_json
from protocol.errors import MachineError
from server.control import Control, NodeState
from server.rounds import missing
from storage.locks import is_held
from storage.regular import read_regular
from storage.whole import write_whole

RUN_LIST = "runs.json"


@dataclass(frozen=True, kw_only=True)
class SiteView:
    """An enrolled site; ``status`` is ``online``, ``offline``, ``registered`` or ``unknown``.

    ``twice``: its folder and a copy of it run at the same time; one of the two is refused.
    """

    name: str
    status: str
    last_activated_at: str
    twice: bool = False


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run by what its folder says. ``epsilon`` is the largest of a client so far.

    ``failures``: how often a client of a secret sum contributed zeros; ``clipped``: the share of updates that
    were cut in the last round; ``refused``: sums that no honest clients can have sent. None: not counted.
    """

    name: str
    folder: str
    rounds: int
    planned: int
    state: str  # running, finished, failed, or stopped
    cause: str
    replies: int
    drops: int
    failed_attempts: int
    void_rounds: int
    failures: int | None
    clipped: float | None
    refused: int
    epsilon: float | None
    last_round_at: float | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Everything that an operator looks at."""

    running: bool
    processes: list[Process] = field(default_factory=list)
    sites: list[SiteView] = field(default_factory=list)
    roster_version: int = 0
    runs: list[RunView] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether every process is up."""
        return self.running and all(process.pid for process in self.processes)


def look(coordinator: Coordinator) -> Overview:
    """The overview of this moment; what cannot be asked is ``unknown``."""
    roster = coordinator.roster()
    nodes, doubled = _nodes(coordinator)
    status = {node.key: node for node in nodes}
    sites = []
    for site in roster.sites:
        node = status.get(site.node_key_pem)
        sites.append(
            SiteView(
                name=site.name,
                status=node.status if node else "unknown",
                last_activated_at=node.last_activated_at if node else "",
                twice=site.node_key_pem in doubled,
            )
        )
    return Overview(
        running=is_held(coordinator.state / LOCK),
        processes=processes_of(coordinator.state),
        sites=sites,
        roster_version=roster.version,
        runs=[run_view(Path(entry["folder"]), entry) for entry in known_runs(coordinator)],
    )


def control_of(coordinator: Coordinator) -> Control:
    """A connection to the coordinator's Control API."""
    port = coordinator.settings.private.port
    return Control(port, authority=coordinator.authority, token=coordinator.token)


def _nodes(coordinator: Coordinator) -> tuple[list[NodeState], list[bytes]]:
    """Nodes, and the keys of those that run twice; nothing from a SuperLink that does not answer."""
    if not is_held(coordinator.state / LOCK):
        return [], []
    control = control_of(coordinator)
    try:
        return control.nodes(), control.doubled()
    except MachineError:
        return [], []
    finally:
        control.close()


def known_runs(coordinator: Coordinator) -> list[dict[str, Any]]:
    """Runs that were started here: ``folder``, ``name``, ``planned`` rounds, Flower's number ``run``."""
    try:
        document = parse_json((coordinator.state / RUN_LIST).read_bytes())
        return list(document["runs"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        raise MachineError(
            f"{coordinator.state / RUN_LIST} is damaged",
            "remove it; the runs themselves are intact",
        ) from None


def note_run(coordinator: Coordinator, folder: Path, *, name: str, planned: int, run: int) -> None:
    """Remember a run that was submitted; it takes the place of an earlier one in the same folder."""
    with coordinator.turn():
        others = [entry for entry in known_runs(coordinator) if entry["folder"] != str(folder)]
        entry = {"folder": str(folder), "name": name, "planned": planned, "run": run}
        content = json.dumps({"runs": [*others, entry]}, indent=1) + "\n"
        write_whole(coordinator.state / RUN_LIST, content.encode())


def run_view(folder: Path, entry: dict[str, Any]) -> RunView:
    """A run by its records and its outcome."""
    rounds = _rounds(folder)
    outcome = read_outcome(folder)
    if is_held(folder / ".lock"):
        state = "running"
    elif outcome is None:
        state = "stopped"
    else:
        state = "finished" if outcome["finished"] else "failed"
    failures = [each.failures for each in rounds if each.failures is not None]
    clipped = [each.clipped for each in rounds if each.clipped is not None]
    return RunView(
        name=str(entry["name"]),
        folder=str(folder),
        rounds=len(rounds),
        planned=int(entry["planned"]),
        state=state,
        cause=str((outcome or {}).get("cause", "")),
        replies=sum(each.used for each in rounds),
        drops=sum(each.missing for each in rounds),
        failed_attempts=len(list((folder / "rounds").glob("[0-9]*.attempt*.json"))),
        void_rounds=sum(each.void for each in rounds),
        failures=sum(failures) if failures else None,
        clipped=clipped[-1] if clipped else None,
        refused=sum(each.refused for each in rounds),
        epsilon=max((each.epsilon for each in rounds if each.epsilon is not None), default=None),
        last_round_at=rounds[-1].ended_at if rounds else None,
    )


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """How the run's app ended, None when it has not said."""
    try:
        outcome = parse_json(read_regular(folder / "outcome.json"))
        return outcome if isinstance(outcome.get("finished"), bool) else None
    except (OSError, ValueError, AttributeError):
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """What an overview has of a round's record."""

    number: int
    used: int
    missing: int
    void: bool
    refused: int
    failures: int | None
    clipped: float | None
    epsilon: float | None
    ended_at: float


# By file, with its inode and time: a published record stays, and an overview is made every two seconds.
_read: dict[Path, tuple[tuple[int, int], _Round]] = {}


def _rounds(folder: Path) -> list[_Round]:
    """Of published rounds from 1 on; one that cannot be read ends the list."""
    rounds = []
    paths = (folder / "rounds").glob("[0-9]*/record.json")
    numbered = [
        path for path in paths if path.parent.name.isdecimal()
    ]  # no copy of a round beside it
    for path in sorted(numbered, key=lambda each: int(each.parent.name)):
        try:
            status = path.stat()
            stamp = status.st_ino, status.st_mtime_ns
            stamped = _read.get(path)
            if stamped is None or stamped[0] != stamp:
                stamped = _read[path] = stamp, _round(parse_json(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):  # damaged, or no record at all
            break
        if stamped[1].number > 0:
            rounds.append(stamped[1])
    return rounds


def _round(record: dict[str, Any]) -> _Round:
    return _Round(
        number=int(record["round"]),
        used=len(record["used"]),
        missing=len(missing(record)),
        void=bool(record.get("void")),
        refused=len(record.get("refused", [])),
        failures=record.get("failures"),
        clipped=record.get("clipped_share"),
        epsilon=record["privacy"]["epsilon"] if record.get("privacy") else None,
        ended_at=record["ended_at"],
    )
