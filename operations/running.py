"""A run over real machines: submitted, watched, submitted again when its app died, and how it ended.

Flower says neither how an app ended nor starts one again. The run folder does both: its lock says
that an app is at work, ``outcome.json`` how it ended, the rounds how far it came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operations.coordinator import Coordinator
from operations.overview import control_of, known_runs, note_run, read_outcome
from operations.supervisor import LOCK
from operations.waiting import (
    Words,
    away,
    doubled,
    failures,
    missed_in,
    not_begun,
    said_of_doubled,
    verify_enough,
)
from protocol.errors import ArtefactError, FedgeError, MachineError, RoundError
from protocol.legality import verify_legal
from protocol.plan import Plan
from protocol.tasks import quality_in
from server.app import OUTCOME, read_manifest, read_plan
from server.control import Control, RunState
from server.starting import verify_start
from simulations.progress import duration
from storage.locks import is_held

POLL_S, LOOK_S, GONE_S, RESTART_S = 0.5, 3.0, 3.0, 60.0
ATTEMPTS = 20  # to start the app again without a new round in between
RAISED = 3  # of these, when the app itself raised something
Report = Callable[[int, str], None]  # rounds that are published, and a line about what happened


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run, checked: all paths are full."""

    plan_file: Path
    plan: Plan
    base: Path
    folder: Path
    start: Path | None  # the adapter that the plan goes on from
    resume: bool


def order(
    coordinator: Coordinator,
    plan_file: Path,
    base: Path,
    folder: Path | None,
    *,
    start: Path | None = None,
    resume: bool,
) -> Order:
    """Check what the app would refuse, before anything is started.

    Raises PlanError for an illegal plan or too small a roster, ArtefactError for a base or a run folder.
    """
    plan, manifest = read_plan(plan_file), read_manifest(base)
    verify_legal(plan, manifest)
    out = (folder or coordinator.folder / "runs" / plan.name).resolve()
    if plan.secrecy.exchange == "secagg":
        verify_enough(plan.cohort, coordinator.write_roster())
    if published(out) and not resume:
        raise ArtefactError(f"{out} holds a run already", "add --resume, or name another folder")
    if not published(out):
        verify_start(start, plan, manifest)
    return Order(
        plan_file=plan_file.resolve(),
        plan=plan,
        base=base.resolve(),
        folder=out,
        start=start.resolve() if start else None,
        resume=resume,
    )


def run_to_the_end(coordinator: Coordinator, order: Order, report: Report) -> dict[str, Any]:
    """Submit the run and wait; how it ended. Raises the error with which the app ended."""
    control = control_of(coordinator)
    try:
        outcome = _Watch(coordinator, control, order, report).until_it_ends()
        twice = [] if outcome["finished"] else doubled(coordinator, control, order.plan.cohort)
    finally:
        control.close()
    if twice:  # others are blamed for what two sites of one name did
        outcome = outcome | {"cause": f"{said_of_doubled(twice)}. {outcome.get('cause')}"}
    if not outcome["finished"]:
        raise _error(outcome)
    return outcome


def published(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    return (folder / "rounds").is_dir() and any((folder / "rounds").iterdir())


def published_rounds(folder: Path) -> int:
    """The number of the last published round."""
    numbers = [int(p.name) for p in (folder / "rounds").glob("[0-9]*") if p.name.isdecimal()]
    return max(numbers, default=0)


def round_line(folder: Path, number: int, *, seconds: float, left: int) -> str:
    """A line on a published round: what its sites measured, where the plan lets them say, and the time."""
    try:
        text = (folder / "rounds" / f"{number:04d}" / "record.json").read_text("utf-8")
        measured = json.loads(text).get("metrics") or {}
    except (OSError, ValueError):
        measured = {}
    measures = []
    if quality := quality_in(measured):
        measures.append(f"{quality} of the round before on the sites' held-out rows")
    if trained := measured.get("examples"):
        measures.append(f"loss in training {measured['loss_sum'] / trained:.3f}")
    figures = f": {', '.join(measures)}" if measures else ""
    rest = f", about {duration(left * seconds)} left" if left else ""
    return f"round {number} is published{figures}; {duration(seconds)}{rest}"


class _Watch:
    """One run from its submission to its outcome."""

    def __init__(
        self, coordinator: Coordinator, control: Control, order: Order, report: Report
    ) -> None:
        self._coordinator, self._control = coordinator, control
        self._order, self._report = order, report
        self._folder = order.folder
        self._run, self._tries, self._raised, self._reached = 0, 0, 0, 0
        self._seen = False  # the app of the present submission at work
        self._gone_since: float | None = None
        self._next_look, self._short = 0.0, False
        self._words = Words(time.monotonic())
        self._failed: set[str] = set()
        self._twice: list[str] = []
        self._since = time.monotonic()  # of the last round

    def until_it_ends(self) -> dict[str, Any]:
        self._reached = published_rounds(self._folder)
        if self._at_work():
            self._run = self._number()
            self._report(self._reached, "the run is at work already; watching it")
        else:
            (self._folder / OUTCOME).unlink(missing_ok=True)
            list(failures(self._folder, self._failed))  # of an earlier start: reported already
            self._submit_first()
        while True:
            if (outcome := self._step()) is not None:
                return outcome
            time.sleep(POLL_S)

    def _step(self) -> dict[str, Any] | None:
        rounds = published_rounds(self._folder)
        if rounds > self._reached:
            now = time.monotonic()
            seconds_per_round = (now - self._since) / (rounds - self._reached)
            self._since = now
            self._reached, self._tries, self._raised = rounds, 0, 0
            left = self._order.plan.rounds - rounds
            line = round_line(self._folder, rounds, seconds=seconds_per_round, left=left)
            missing = missed_in(self._folder, rounds)
            self._report(rounds, f"{line}; without {missing}" if missing else line)
        for line in failures(self._folder, self._failed):
            self._report(rounds, line)
        if self._at_work():
            self._seen, self._gone_since = True, None
            self._words = Words(time.monotonic())
            self._tell_of_sites()
            return None
        if (outcome := read_outcome(self._folder)) is not None:
            return outcome
        if self._dead():
            self._submit_again()
        elif (seconds := self._words.due(time.monotonic())) is not None:
            self._report(rounds, not_begun(self._coordinator, self._control, self._run, seconds))
        return None

    def _tell_of_sites(self) -> None:
        """Say when too few sites are on line for the quorum, who is missing, and when they are back."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        cohort = self._order.plan.cohort
        with suppress(MachineError):  # the SuperLink is being started again
            online, missing = away(self._coordinator, self._control, cohort)
            if (online < cohort.quorum) != self._short:
                self._short = not self._short
                then = f"waiting up to {cohort.deadline_s:g} s" if self._short else "going on"
                names = f" for {missing}" if self._short and missing else ""
                self._report(
                    self._reached,
                    f"{online} sites are on line, the quorum is {cohort.quorum}: {then}{names}",
                )
        twice = doubled(self._coordinator, self._control, cohort)
        if twice and twice != self._twice:
            self._report(self._reached, said_of_doubled(twice))
        self._twice = twice

    def _at_work(self) -> bool:
        return is_held(self._folder / ".lock")

    def _dead(self) -> bool:
        """The app is gone without a word, for as long as a restart of anything else may take."""
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if now - self._gone_since < GONE_S:
            return False
        state = self._state()
        return self._seen or (state is not None and state.finished)

    def _state(self) -> RunState | None:
        try:
            return self._control.run_state(self._run)
        except MachineError:  # the SuperLink is being started again
            return None

    def _submit_again(self) -> None:
        self._tries += 1
        state = self._state()
        if state is not None and state.failed_by_itself:
            self._raised += 1
        if self._tries > ATTEMPTS or self._raised > RAISED:
            raise RoundError(
                f"the app ended {self._tries} times in a row without publishing a round",
                f"see the log in {self._coordinator.state}, then add --resume",
            )
        self._report(self._reached, "the app is gone; started again")
        with suppress(MachineError):  # it has ended by itself, or the SuperLink is not back yet
            self._control.stop_run(self._run)
        try:
            self._submit(resume=True)
        except MachineError:
            self._gone_since = time.monotonic()  # later

    def _submit_first(self) -> None:
        """A SuperLink that is being started is waited for; one that nobody keeps is not."""
        until, reported = time.monotonic() + RESTART_S, False
        while True:
            try:
                self._submit(resume=self._order.resume)
                return
            except MachineError:
                supervised = is_held(self._coordinator.state / LOCK)
                if not supervised or time.monotonic() > until:
                    raise
                if not reported:
                    self._report(
                        self._reached,
                        f"the SuperLink does not answer: waiting up to {RESTART_S:g} s",
                    )
                reported = True
                time.sleep(POLL_S)

    def _submit(self, *, resume: bool) -> None:
        order = self._order
        config: dict[str, str | bool | int] = {
            "plan": str(order.plan_file),
            "base": str(order.base),
            "run": str(order.folder),
            "resume": resume,
        }
        if order.start is not None:
            config["start"] = str(order.start)
        if order.plan.secrecy.exchange == "secagg":
            config["roster"] = str(self._coordinator.roster_file)
        self._run = self._control.start_run(config)
        self._seen, self._gone_since = False, None
        self._words = Words(time.monotonic())
        note_run(
            self._coordinator,
            order.folder,
            name=order.plan.name,
            planned=order.plan.rounds,
            run=self._run,
        )

    def _number(self) -> int:
        entries = known_runs(self._coordinator)
        numbers = [entry["run"] for entry in entries if entry["folder"] == str(self._folder)]
        if not numbers:
            raise ArtefactError(
                f"{self._folder} is in use, but not by a run of this coordinator",
                "wait for it, or name another folder",
            )
        return int(numbers[0])


def _error(outcome: dict[str, Any]) -> FedgeError:
    """The app's error once more, with the exit code of its kind."""
    error = FedgeError(str(outcome.get("cause")), str(outcome.get("remedy")))
    code = outcome.get("exit_code")
    error.exit_code = code if isinstance(code, int) and 0 < code < 128 else 1
    return error
