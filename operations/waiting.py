"""What a run waits for, in words: an app that does not begin, sites that are away, missing replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from operations.coordinator import Coordinator
from operations.supervisor import processes_of
from protocol.documents import parse_json
from protocol.errors import MachineError, PlanError
from protocol.plan_sections import Cohort
from server.control import Control
from server.rounds import missing
from storage.regular import read_regular

MOST_NAMED = 8
AGAIN_S, LONGEST_S = 10.0, 160.0  # between two words about the same thing
PATIENCE_S = 300.0  # for an app that a SuperLink answers about and nobody starts


class Words:
    """Says something after ten seconds, then ever more rarely; ``now`` is seconds of any clock."""

    def __init__(self, now: float) -> None:
        self._since, self._next, self._wait = now, now + AGAIN_S, AGAIN_S

    def due(self, now: float) -> float | None:
        """Seconds waited so far when it is time to say so."""
        if now < self._next:
            return None
        self._wait = min(2 * self._wait, LONGEST_S)
        self._next = now + self._wait
        return now - self._since


def not_begun(coordinator: Coordinator, control: Control, run: int, seconds: float) -> str:
    """Why a submitted run has no app yet. Raises MachineError when it has had none for five minutes."""
    try:
        status = control.run_state(run).status
    except MachineError as error:
        if seconds > PATIENCE_S:
            raise
        return f"waiting for the coordinator for {seconds:.0f} s: {error.cause}"
    starter = next((p for p in processes_of(coordinator.state) if p.name == "superexec"), None)
    if starter is None or not starter.pid:
        who = "the process `superexec`, which starts it, is not up"
    else:
        who = f"the process `superexec`, which starts it, is up with {starter.restarts} restarts"
    cause = f"the run is {status} for {seconds:.0f} s and its app has not begun: {who}"
    if seconds > PATIENCE_S:
        raise MachineError(cause, f"see the log in {coordinator.state}; then add --resume")
    return cause


def verify_enough(cohort: Cohort, enrolled: Sequence[str]) -> None:
    """Raises PlanError where fewer sites are enrolled that a plan takes than its quorum. (P-4.1)"""
    taken = [name for name in enrolled if cohort.takes(name)]
    if len(taken) >= cohort.quorum:
        return
    if not cohort.clients:
        raise PlanError(
            f"{len(taken)} sites are enrolled, the plan's quorum is {cohort.quorum}",
            "admit more sites, or lower the quorum",
        )
    absent = sorted(set(cohort.clients).difference(taken))
    raise PlanError(
        f"{len(taken)} of the {len(cohort.clients)} sites in the plan's `cohort.clients` are enrolled, its "
        f"quorum is {cohort.quorum}; missing: {listed(absent)}",
        "admit them, or correct the names in the plan",
    )


def away(coordinator: Coordinator, control: Control, cohort: Cohort) -> tuple[int, str]:
    """How many sites that a plan takes are on line, and who of them in the roster is not.

    Raises MachineError without an answer.
    """
    status = {node.key: node.status for node in control.nodes()}
    names = {
        site.name: status.get(site.node_key_pem)
        for site in coordinator.roster().sites
        if cohort.takes(site.name)
    }
    missing = [name for name, state in names.items() if state != "online"]
    return len(names) - len(missing), listed(missing)


def doubled(coordinator: Coordinator, control: Control, cohort: Cohort) -> list[str]:
    """Names of sites that a plan takes and that are on line twice, as far as the SuperLink can be asked."""
    try:
        keys = set(control.doubled())
    except MachineError:
        return []
    taken = [site for site in coordinator.roster().sites if cohort.takes(site.name)]
    return [site.name for site in taken if site.node_key_pem in keys]


def said_of_doubled(names: list[str]) -> str:
    """One sentence about sites that run twice."""
    verb = "is" if len(names) == 1 else "are"
    return f"{listed(names)} {verb} on line twice (a copied folder?): stop one of the two"


def failures(folder: Path, known: set[str]) -> Iterator[str]:
    """A line for each failed attempt in a run's folder that is not in ``known``, which is added to."""
    for path in sorted((folder / "rounds").glob("[0-9]*.attempt*.json")):
        if path.name in known:
            continue
        known.add(path.name)
        if record := _record(path):
            yield f"round {record.get('round')}, an attempt failed: {missed(record) or 'no reason noted'}"


def missed_in(folder: Path, number: int) -> str:
    """Who was expected in a published round and is not in it; empty for nobody."""
    record = _record(folder / "rounds" / f"{number:04d}" / "record.json")
    return missed(record) if record else ""


def missed(record: dict[str, Any]) -> str:
    """The clients that a round had waited for and dropped, each with why."""
    try:
        return listed([f"{d['client']} ({d['detail'] or d['reason']})" for d in missing(record)])
    except (KeyError, TypeError):
        return ""


def listed(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _record(path: Path) -> dict[str, Any] | None:
    try:
        found = parse_json(read_regular(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
