"""A simulated run from an experiment to a release: prepare, rounds, measure, compare, release.

The rounds are those of ``server.app`` and ``client.app`` over the in-process grid; nothing here
knows what a round consists of. Every step leaves its result in the run folder before the next one
begins, so a run that was killed at any moment continues with ``resume=True``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from flwr.common.logger import update_console_handler

import client.app
import simulations.ray_clients as ray_clients
from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from base_model.release import release_adapter
from client.data import Rows
from client.kept_file import FileKept
from client.late_updates import usable
from edge_runtime.calibrating import calibrate_release
from protocol.errors import FedgeError
from protocol.layout import Tensors
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE, ReleaseNote, parse_release
from protocol.recipe import Recipe
from protocol.rows.measured import measured_rows
from server.app import make_app
from server.history import append_events, evaluation_event, read_history
from server.releasing import log_release, note_refusal
from server.store import RunStore
from simulations.chain import runs_before
from simulations.clients import client_name
from simulations.clock import VirtualClock
from simulations.evaluation import Evaluator, due, load_evaluations, missing_rounds, save_evaluation
from simulations.experiment import Experiment
from simulations.faults import Faults, Speeds, slow_clients
from simulations.files import SUMMARY, path_text, write_json
from simulations.forecasts import announce, load_forecast
from simulations.forgetting import measure_forgetting
from simulations.grid import App, Config, InProcessGrid, server_context
from simulations.jobs import EXPAND_MIB
from simulations.memorisation import measure_memorisation, metrics_of
from simulations.pace import Outlook
from simulations.prepare import CLIENTS, PLAN, ROSTER, Prepared, prepare
from simulations.progress import Progress
from simulations.prompt_words import explain_prompt
from simulations.records import adapter_folder, published_adapter, round_records
from simulations.report import AUDIT, write_report
from simulations.reruns import Reruns
from simulations.samples import write_samples
from simulations.served import measure_clients
from simulations.summary import Summary, summarise
from simulations.timings import Timings
from simulations.yardstick_training import passes
from simulations.yardsticks import measure_before, run_yardsticks


def simulate(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool,
    progress: Progress,
    cache: Path | None = None,
    jobs: int = 1,
    ray: str = "",
) -> Summary:
    """Run ``experiment`` in the folder ``out``; built bases are kept in ``cache``, or beside it.

    ``jobs``: clients that train at a time, with a thread of the engine each; one takes all it finds.
    ``ray``: address of a Ray cluster on which they do, or ``local``; ``jobs`` may then be 0, one per core.

    Raises:
        ArtefactError: ``out`` is not empty and ``resume`` is false, or it holds something else.
        PlanError, DataError, MachineError: the experiment cannot be run as it stands.
        RoundError: a round failed as often as the plan allows; a report says how far the run came.
        ParityError: what was trained cannot be released; summary and report are written all the same,
            and say why.
    """
    update_console_handler(
        colored=sys.stderr.isatty()
    )  # Flower's lines, in a file as on a terminal
    if ray:
        ray_clients.verify_usable(ray)
    out = out.resolve()
    timings = Timings(out)
    with timings.part("prepare"):
        prepared = prepare(experiment, out, resume=resume, progress=progress, cache=cache)
        evaluator = Evaluator(prepared.plan, prepared.base, prepared.test_file)
    announce(prepared, evaluator, timings, progress)
    try:
        run_federated(prepared, evaluator, timings=timings, progress=progress, jobs=jobs, ray=ray)
    except FedgeError:
        with suppress(FedgeError, OSError):
            write_report(out)
        raise
    yardsticks, beside = _measured(prepared, evaluator, timings, progress)
    with timings.part("release"):
        note, refused = _release(prepared, evaluator.held_out, beside, progress)
    with timings.part("samples"):
        if prepared.plan.task.ANSWERS == "text":
            write_samples(prepared, evaluator.held_out, progress)
        explain_prompt(prepared)
    with timings.part("audit"):
        audited = _audit(prepared, progress)
    # The report reads the summary, and the summary names the report.
    _write_summary(prepared, yardsticks, note, refused, timings, audited, report=None)
    report = path_text(write_report(out))
    summary = _write_summary(prepared, yardsticks, note, refused, timings, audited, report=report)
    if refused is not None:
        raise refused
    return summary


def _measured(
    prepared: Prepared, evaluator: Evaluator, timings: Timings, progress: Progress
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the adapter is measured beside (the yardsticks), and metrics of its memory for the log."""
    if not prepared.plan.task.outputs:
        with timings.part("evaluation"):
            measure_before(prepared, evaluator, progress)
    yardsticks = run_yardsticks(prepared, evaluator, timings=timings, progress=progress)
    with timings.part("evaluation"):
        measure_clients(prepared, evaluator, progress)
        measure_forgetting(prepared, evaluator, progress)
    with timings.part("memorisation"):
        memorised = measure_memorisation(prepared, evaluator, progress)
    return yardsticks, metrics_of(memorised)


def _audit(prepared: Prepared, progress: Progress) -> Report:
    """Verify the run as any auditor would: from what is published of it, those before it, and the base."""
    out, base = prepared.out, prepared.base
    before = [Folder(each) for each, _ in runs_before(out, prepared.plan)]
    found = audit(Folder(out), Trust(), weights=base, before=before, progress=progress.update)
    write_json(out / AUDIT, found.to_dict())
    return found


def _keeps_update(prepared: Prepared, partition: int, number: int) -> bool:
    """Whether a client has an update for round ``number``: then it does not train. (P-4.14)"""
    plan, name = prepared.plan, client_name(partition)
    if not plan.cohort.late_rounds:
        return False
    recipe = Recipe(plan=plan, manifest=prepared.manifest)
    folder = prepared.out / CLIENTS / f"{name}.key.kept"
    size = recipe.round_layout(number).size
    kept = FileKept(folder, plan.digest, name, recipe.parts(number), size).load()
    return kept is not None and usable(kept, plan, sid=kept.sid, number=number)


def run_federated(
    prepared: Prepared,
    evaluator: Evaluator,
    *,
    timings: Timings,
    progress: Progress,
    jobs: int = 1,
    ray: str = "",
) -> None:
    """All rounds that are not finished yet, through the real apps."""
    plan, clock = prepared.plan, VirtualClock()
    watcher = _Watcher(prepared, evaluator, timings, progress)
    watcher.catch_up()
    faults, clients = prepared.experiment.faults, prepared.experiment.population.clients
    config: Config = {
        "plan": str(prepared.out / PLAN),
        "base": str(prepared.base),
        "expand-mib": EXPAND_MIB,
    }
    if jobs > 1 or ray:
        config["threads"] = 1
    secret = plan.secrecy.exchange == "secagg"
    if secret:
        config["roster"] = str(prepared.out / ROSTER)

    def own(partition: int) -> Config:
        key = prepared.out / CLIENTS / f"{client_name(partition)}.key"
        controls = str(prepared.out / CLIENTS / f"{client_name(partition)}.controls")
        return {**config, "identity": str(key)} if secret else {"controls": controls}

    server = make_app(clock=clock, listener=watcher)
    start = str(prepared.experiment.start_folder or "")
    own_config = {"run": str(prepared.out), "resume": True, "start": start}
    with _runner(jobs, ray, Reruns(prepared.out, progress)) as (app, at_a_time, at_once):
        grid = InProcessGrid(
            app,
            clients,
            run_config=config,
            data_path=lambda partition: str(prepared.client_file(partition)),
            own=own,
            faults=Faults(seed=plan.seed, dropout=faults.dropout, straggler=faults.straggler),
            speeds=Speeds(
                training_s=faults.training_s,
                slowness=faults.slowness,
                slow=slow_clients(
                    map(client_name, range(clients)), share=faults.slow, seed=plan.seed
                ),
            ),
            ready=partial(_keeps_update, prepared),
            clock=clock,
            deadline_s=plan.cohort.deadline_s,
            jobs=at_a_time,
            at_once=at_once,
        )
        with closing(grid):
            server(grid, server_context({**config, **own_config}))
    watcher.catch_up()


@contextmanager
def _runner(
    jobs: int, ray: str, reruns: Reruns
) -> Iterator[tuple[App, int, Callable[[], int] | None]]:
    """What runs clients, how many at a time, and how many of these are worth it when."""
    if not ray:
        yield client.app.app, jobs, None
        return
    with closing(ray_clients.RayClients(ray, actors=jobs, rerun=reruns.note)) as clients:
        yield clients, clients.jobs, clients.at_once


class _Watcher:
    """The coordinator's listener: times rounds, measures adapters, moves the bars."""

    def __init__(
        self, prepared: Prepared, evaluator: Evaluator, timings: Timings, progress: Progress
    ) -> None:
        self._prepared, self._evaluator = prepared, evaluator
        self._timings, self._progress = timings, progress
        self._outlook = Outlook(prepared.plan, load_forecast(prepared.out))
        self._since = timings.now()

    def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
        """One client of the round is through."""
        self._progress.update("clients in the round", done, expected)

    def on_round(self, record: dict[str, Any], tensors: Tensors) -> None:
        """A round is published."""
        number, plan = int(record["round"]), self._prepared.plan
        seconds, measured = self._timings.now() - self._since, None
        self._timings.round(number, seconds)
        self._progress.update("rounds", number, plan.rounds)
        if due(plan, number):
            with self._timings.part("evaluation"):
                measured = self._measure(number, tensors)
        self._progress.line(self._outlook.round(number, seconds, measured))
        self._since = self._timings.now()

    def catch_up(self) -> None:
        """Measure rounds that were published by a process that was killed before it measured."""
        plan, out = self._prepared.plan, self._prepared.out
        finished = [int(record["round"]) for record in round_records(out)]
        self._progress.update("rounds", len(finished), plan.rounds)
        missing = missing_rounds(out, plan, finished)
        for done, number in enumerate(missing, 1):
            with self._timings.part("evaluation"):
                self._measure(number, published_adapter(out, number))
            self._progress.update("evaluation", done, len(missing))
        self._make_up()
        self._since = self._timings.now()

    def _make_up(self) -> None:
        """Lines about rounds that were measured by a process that was killed before it wrote them."""
        plan, out = self._prepared.plan, self._prepared.out
        known = {event.round for event in read_history(out) if event.event == "evaluation"}
        unsaid = {e["round"]: e for e in load_evaluations(out) if e["round"] not in known}
        for number, measured in unsaid.items():
            values = {name: value for name, value in measured.items() if name != "round"}
            append_events(out, iter([evaluation_event(plan, number, values, now=time.time())]))

    def _measure(self, number: int, tensors: Tensors) -> tuple[float, float]:
        scores = self._evaluator.measure(tensors)
        save_evaluation(self._prepared.out, number, scores)
        event = evaluation_event(self._prepared.plan, number, scores.figures, now=time.time())
        append_events(self._prepared.out, iter([event]))
        return scores.quality, scores.mean_loss


def _release(
    prepared: Prepared, rows: Rows, beside: Mapping[str, float], progress: Progress
) -> tuple[ReleaseNote, FedgeError | None]:
    """Release the rounds the plan names: the last one's note, and the last refusal of any.

    ``beside``: metrics of the last round's adapter that the log has beside its quality.
    """
    plan = prepared.plan
    every = plan.release.every
    rounds = [n for n in range(1, plan.rounds) if every and n % every == 0] + [plan.rounds]
    refused: dict[int, FedgeError] = {}
    store = RunStore(prepared.out)
    try:
        for done, number in enumerate(rounds):
            progress.update("release", done, len(rounds))
            try:
                last = beside if number == plan.rounds else {}
                _release_round(prepared, store, number, rows, last)
            except FedgeError as error:
                refused[number] = error
    finally:
        store.close()
    for number, refusal in refused.items():
        note_refusal(prepared.out, number, refusal)
    progress.update("release", len(rounds), len(rounds))
    return _note(prepared, plan.rounds), next(reversed(refused.values()), None)


def _note(prepared: Prepared, number: int) -> ReleaseNote:
    folder = adapter_folder(prepared.out, number)
    return parse_release((folder / RELEASE_FILE).read_text("utf-8"), source=str(folder))


def _release_round(
    prepared: Prepared, store: RunStore, number: int, rows: Rows, beside: Mapping[str, float]
) -> None:
    """One round's, with metrics ``beside`` its quality; what a killed process has done is not done again."""
    plan, folder = prepared.plan, adapter_folder(prepared.out, number)
    note = _note(prepared, number)
    if note.parity is None or not (folder / EDGE_FILE).is_file():
        note = release_adapter(
            folder,
            prepared.base,
            texts=rows.questions(),
            bound=plan.release.parity_max_relative,
            absolute=plan.release.parity_max_absolute,
        )
    if not (folder / PASSPORT_FILE).is_file():
        if note.calibration is None and plan.task.outputs:
            note, _ = calibrate_release(folder, prepared.base, rows.questions(), rows.targets)
        name = plan.task.QUALITY.name
        measured = {e["round"]: e[name] for e in load_evaluations(prepared.out)}
        log_release(
            store,
            plan,
            number,
            rows=measured_rows(prepared.test_file, rows.texts),
            metrics={**({name: measured[number]} if number in measured else {}), **beside},
        )


def _write_summary(
    prepared: Prepared,
    yardsticks: dict[str, Any],
    note: ReleaseNote,
    refused: FedgeError | None,
    timings: Timings,
    audited: Report,
    *,
    report: str | None,
) -> Summary:
    summary = summarise(
        prepared,
        records=round_records(prepared.out),
        evaluations=load_evaluations(prepared.out),
        yardsticks=yardsticks,
        note=note,
        refused=refused,
        timings=timings,
        passes=passes(prepared),
        audited=audited,
        report=report,
    )
    write_json(prepared.out / SUMMARY, summary.document())
    return summary
