"""The rounds of a run over any Flower grid: the shell around the pure parts. (P-4)

Order within a round is what makes it resumable: the cohort is on disk before anybody is asked, an
update is on disk before it is counted, and a round is published by one rename.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, RoundError
from protocol.manifests import AnyManifest
from protocol.plan import Plan
from protocol.privacy.ledger import Tally
from protocol.privacy.record import privacy_record
from protocol.recipe import Recipe
from protocol.step.state import State, initial_state
from protocol.transparency.leaves import IMPOSSIBLE, UNOPENED, Abort, AskedSum
from server.asked import asked_before
from server.attempt import Attempt
from server.clock import Clock
from server.counted import warnings_of
from server.history import append_events, catch_up, events_of
from server.log import open_log
from server.owing import Owing
from server.peft_folder import write_peft_folder
from server.publishing import (
    Published,
    abort_leaf,
    adapter_leaf,
    spent_leaves,
    start_leaves,
)
from server.roster import Roster, call_roll, without_unnamed
from server.rounds import NO_SUM, Complete, choose_among, missing, naming
from server.secret_attempt import SecretAttempt
from server.setting import Listener, Setting
from server.starting import Beginning, verify_start
from server.store import RESTORE, Number, Record, RunStore
from server.tending import tend
from server.withdrawing import without_withdrawn
from server.witnessing import Witness

logger = logging.getLogger("flwr.fedge")  # Flower's handler writes it
LOOK_S, ANEW_S = 1.0, 15.0  # while clients are missing: at who is connected; all are asked anew


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: last round and the digest of its adapter."""

    rounds: int
    adapter_digest: str


def run_rounds(
    *,
    plan: Plan,
    manifest: AnyManifest,
    grid: Grid,
    store: RunStore,
    clock: Clock,
    listener: Listener | None = None,
    roster_keys: Mapping[str, bytes] | None = None,
    log_key: Ed25519PrivateKey | None = None,
    witnesses: Sequence[Witness] = (),
    start: Path | None = None,
) -> Outcome:
    """Run what is left of the plan's rounds; a fresh folder starts with round 0.

    ``start`` is where the adapter lies that the plan goes on from; once there is a round 0, nobody reads it.
    The log is signed with ``log_key``, without one with a key of the run's own (``log.key``). Raises
    ArtefactError when the folder belongs to another plan or base, RoundError when a round failed as
    often as the plan allows; the last published round then stands.
    """
    roster = dict(roster_keys or {})
    begun = store.last_round() is not None
    beginning = None if begun else verify_start(start, plan, manifest)
    store.keep_plan(plan)
    store.keep_manifest(manifest)
    log = open_log(store, plan, log_key)
    setting = Setting(
        recipe=Recipe(plan=plan, manifest=manifest),
        plan_digest=plan.digest,
        grid=grid,
        store=store,
        log=log,
        clock=clock,
        listener=listener,
        roster_keys=roster,
        witnesses=witnesses,
        random=os.urandom,
        adverts={},
        told={},
        owing=Owing(),
    )
    return _Run(setting, beginning).to_the_end()


class _Run:
    def __init__(self, setting: Setting, beginning: Beginning | None) -> None:
        self._setting, self._plan = setting, setting.plan
        self._beginning = beginning
        self._manifest, self._store = setting.recipe.manifest, setting.store
        self._roster: Roster | None = None
        self._called: frozenset[int] = frozenset()
        self._called_at = 0.0

    def to_the_end(self) -> Outcome:
        state, record = self._current()
        numbers = range(1, record["round"] + 1)
        catch_up(self._store.folder, map(self._store.record, numbers), self._plan, now=time.time())
        self._tend()
        self._verify_voids(record["round"])
        for number in range(record["round"] + 1, self._plan.rounds + 1):
            state, record = self._round(number, state, record["adapter_out"])
            append_events(self._store.folder, events_of(record, self._plan, now=time.time()))
            self._tend()
            if self._setting.listener:
                self._setting.listener.on_round(record, state.adapter)
        return Outcome(rounds=self._plan.rounds, adapter_digest=record["adapter_out"])

    def _tend(self) -> None:
        setting = self._setting
        # The machine's time, not the run's clock: vectors are kept for days of the calendar.
        tend(setting.log, self._store, self._plan, setting.roster_keys, now=time.time())

    def _current(self) -> tuple[State, Record]:
        last = self._store.last_round()
        if last is None:
            state = (
                self._beginning.state
                if self._beginning
                else initial_state(self._plan, self._manifest)
            )
            record = self._nothing_happened() | self._identity(0, state)
            if self._beginning:
                record["asked_before"] = self._beginning.asked
            setting = self._setting
            first = start_leaves(setting.log, self._store, self._plan, setting.roster_keys)
            self._publish(0, state, record, {}, Published(leaves=first))
            return state, record
        state, record = self._store.load(last)
        for key, mine, what in (
            ("plan_digest", self._setting.plan_digest, "plan"),
            ("base_fingerprint", self._manifest.fingerprint, "base"),
        ):
            if record[key] != mine:
                raise ArtefactError(
                    f"{self._store.folder} belongs to another {what} ({record[key][:12]}…)",
                    f"resume with the {what} it was started with, or name another run folder",
                )
        try:
            self._setting.layout.flatten(state.adapter)  # a digest does not cover names and shapes
        except ArtefactError as error:
            where = f"{self._store.folder}: the checkpoint of round {last}"
            raise ArtefactError(f"{where} is damaged: {error.cause}", RESTORE) from None
        return state, record

    def _present(self, number: int, digest: str) -> Roster:
        """The roster; while a round needs more, sites that restart are waited for, up to a deadline."""
        clock, cohort = self._setting.clock, self._plan.cohort
        asked = asked_before(self._store, number, digest) if self._setting.secure else []

        def enough(nodes: Collection[str]) -> bool:
            choice = choose_among(nodes, asked, size=cohort.size, quorum=cohort.quorum)
            return choice is not None and len(choice.names) >= cohort.quorum

        roster, began = self._called_roll(), clock.now()
        if not enough(roster.nodes):
            there = f"{len(roster.nodes)} clients are there, the quorum is {cohort.quorum}"
            logger.warning("%s: waiting up to %g s", there, cohort.deadline_s)
        while not enough(roster.nodes) and clock.now() < began + cohort.deadline_s:
            clock.sleep(LOOK_S)
            if clock.now() >= self._called_at + ANEW_S:  # what was answered may have been mended
                self._roster = None
            roster = self._called_roll()
        return roster

    def _called_roll(self) -> Roster:
        """The roster; called again when other nodes are there: one that restarts has another id.

        Who has withdrawn is not in it, whatever a node says.
        """
        nodes = frozenset(self._setting.grid.get_node_ids())
        if self._roster is None or nodes != self._called:
            self._called, self._called_at = nodes, self._setting.clock.now()
            there = call_roll(
                self._setting.grid, self._setting.clock, base=self._manifest.fingerprint
            )
            self._roster = without_unnamed(there, self._plan.cohort)
        return without_withdrawn(self._roster, self._setting.log, self._setting.roster_keys)

    def _round(self, number: int, state: State, digest: str) -> tuple[State, Record]:
        """Attempts at one round until one is complete; who resumes a run may try as often again."""
        failed = self._store.failed_attempts(number)
        most = min(failed + self._plan.cohort.attempts, self._plan.most_attempts)
        while failed < most:
            kind = SecretAttempt if self._setting.secure else Attempt
            roster = self._present(number, digest)
            attempt = kind(self._setting, number, failed + 1, state, digest, roster)
            closed = attempt.collect()
            if isinstance(closed, Complete):
                after, aggregate, norm = attempt.aggregate(closed)
                record = attempt.record(closed, aggregate, norm) | self._identity(number, after)
                if self._setting.secure:
                    for line in warnings_of(record):
                        logger.warning("round %d: %s", number, line)
                self._publish(number, after, record, aggregate.metrics, attempt.published())
                return after, record
            if attempt.revealed:
                return self._void(number, state, attempt.record(closed))
            failed += 1
            record = attempt.record(closed)
            log = self._setting.log
            # First the leaf: an attempt may be logged and tried again, never forgotten. One in clear
            # has no number of its own: tried again, it is told once.
            told = not self._setting.secure and log.find(Abort, round=number, attempt=failed)
            abort = [] if told else [self._abort(record, revealed=[])]
            if leaves := [*spent_leaves(log, self._store), *abort]:
                log.append(leaves)
            self._store.fail_attempt(number, failed, record)
        why = _why(self._store.last_failure(number) or {})
        raise RoundError(
            f"round {number} missed its quorum of {self._plan.cohort.quorum} in {failed} attempts{why}",
            f"mend what is named, and resume; rounds/{number:04d}.attempt*.json tell of every attempt",
        )

    def _void(self, number: int, state: State, record: Record) -> tuple[State, Record]:
        """A sum was asked for and did not open, or is impossible: clients open no other of this round.

        The round is published with the model as it was, and says so; the next one starts. (P-4.6)
        """
        record = record | self._identity(number, state) | {"void": _void_because(record)}
        self._store.forget_vectors(number)
        revealed = self._store.revealing(number).get(record["sequence"], [])
        leaf = self._abort(record, revealed=revealed)
        self._publish(number, state, record, {}, Published(aborts=[leaf]))
        self._verify_voids(number)
        return state, record

    def _verify_voids(self, last: int) -> None:
        """Clients go on after as many void rounds as the plan says, and no more. (P-6.10)"""
        most = self._plan.secrecy.voids
        voids = [n for n in range(1, last + 1) if self._store.record(n)["void"]]
        if len(voids) > most:
            raise RoundError(
                f"rounds {', '.join(map(str, voids))} are void: sums that were asked for did not open, and "
                f"the plan's clients go on after {most}",
                f"the adapter of round {last} stands; mend what is named, and agree on another plan",
            )

    def _abort(self, record: Record, *, revealed: Sequence[AskedSum]) -> bytes:
        number = Number(
            run=self._store.run_id,
            seq=record.get("sequence", 0),
            round=record["round"],
            attempt=record["attempt"],
        )
        return abort_leaf(self._setting.log, self._setting.plan_digest, number, revealed=revealed)

    def _identity(self, number: int, state: State) -> Record:
        recipe = self._setting.recipe
        published = recipe.published(state.adapter)
        return {
            "round": number,
            "plan_digest": self._setting.plan_digest,
            "base_fingerprint": self._manifest.fingerprint,
            "void": None,
            "adapter_out": vector_digest(recipe.layout.flatten(state.adapter)),
            "adapter_published": vector_digest(recipe.published_layout.flatten(published)),
        }

    def _nothing_happened(self) -> Record:
        """The record of round 0, with every key that others have."""
        now = self._setting.clock.now()
        empty: Record = {key: [] for key in ("parts", "expected", "used", "dropped")}
        zero = ("attempt", "quorum", "weight", "bytes_down_per_client", "bytes_up_per_client")
        return {
            **empty,
            **dict.fromkeys(zero, 0),
            "kept_out": {},
            "metrics": {},
            "update_norm": 0.0,
            "privacy": privacy_record(self._plan, Tally()) if self._plan.private else None,
            "exchange": self._plan.secrecy.exchange,
            "secure": self._setting.secure,
            "seconds": 0.0,
            "started_at": now,
            "ended_at": now,
            "adapter_in": "",
        }

    def _publish(
        self,
        number: int,
        state: State,
        record: Record,
        metrics: dict[str, float],
        published: Published,
    ) -> None:
        log = self._setting.log

        def batch(files: dict[str, str]) -> bytes:
            return log.prepare(
                [
                    *published.leaves,
                    *spent_leaves(log, self._store),
                    *published.aborts,
                    adapter_leaf(log, record, published, files),
                ]
            )

        path = self._store.publish(
            number,
            state,
            record,
            lambda folder: write_peft_folder(
                folder,
                state.adapter,
                recipe=self._setting.recipe,
                round_number=number,
                adapter_digest=record["adapter_published"],
                exchange=self._plan.secrecy.exchange,
                secure=self._setting.secure,
                metrics=metrics,
                privacy=record["privacy"],
            ),
            batch,
        )
        log.take(path)


def _void_because(record: Record) -> str:
    return IMPOSSIBLE if record["refused"] else UNOPENED


def _why(record: Record) -> str:
    """Who was missing in an attempt, and why; without those whom only the others' absence stopped."""
    entries = missing(record) if record else []
    dropped = {entry["client"]: str(entry["detail"] or entry["reason"]) for entry in entries}
    own = {name: why for name, why in dropped.items() if not why.startswith(NO_SUM)}
    return naming(own or dropped)
