"""Small whole runs: the real coordinator over sites that keep the protocol and send random updates.

No model is trained, so a run takes less than a second; everything that is published is the real thing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from audit.continued import start_of
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from client.kept_file import FileKept
from client.kept_updates import KeptUpdates
from client.late_updates import LateUpdates, usable
from client.ledger import FileLedger
from client.openings import FileOpenings
from client.receipts import Receipts
from client.secret import Member, first_digest
from protocol import PROTOCOL_VERSION, wire
from protocol.decoder_manifest import (
    DECODER,
)
from protocol.encoding import seed_from
from protocol.errors import FedgeError
from protocol.exchange import Contribution, Phase
from protocol.exchange.plain import PlainClient
from protocol.manifest import (
    DOCUMENTS,
)
from protocol.manifests import AnyManifest
from protocol.media import MEDIA
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rows.measured import MeasuredRows
from protocol.secagg.primitives import client_id
from protocol.secagg.session import Session
from protocol.seq2seq_manifest import SEQ2SEQ
from protocol.transparency.leaf_codec import sha256
from server.coordinator import run_rounds
from server.store import RunStore
from server.witnessing import Witness
from simulations.clock import VirtualClock
from simulations.faults import Speeds
from simulations.grid import InProcessGrid
from tests.unit.audit.small_bases import (
    small_documents,
    small_layered,
    small_manifest,
    small_media,
    small_writing,
)

ONE_ROW = MeasuredRows(count=1, digest=sha256(b"\n"))  # that releases were measured on

Lost = Callable[[int, int, Phase, int], bool]  # round, attempt, phase, site
PLAN: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "rounds": 2,
    "task": {"labels": ["a", "b", "c"]},
    "adapter": {"rank": 2, "alpha": 4.0, "targets": ["query"]},
    "cohort": {"size": 6, "quorum": 3, "deadline_s": 30.0},
}


def nobody(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """Whom this run loses."""
    return False


class Sites:
    """Named sites with keys; each has its own ledger and memory in ``folder``."""

    def __init__(
        self,
        plan: Plan,
        manifest: AnyManifest,
        folder: Path,
        count: int,
        keys: Sequence[Ed25519PrivateKey] | None = None,
    ) -> None:
        self.plan, self.manifest, self.folder = plan, manifest, folder
        self.keys = list(keys or [Ed25519PrivateKey.generate() for _ in range(count)])
        self.roster = {
            _name(site): key.public_key().public_bytes_raw() for site, key in enumerate(self.keys)
        }
        self.lost: Lost = nobody
        self.member: type[Member] = Member
        self.sessions: dict[int, Session | None] = {}
        self.trained: list[tuple[int, int]] = []  # site and round
        folder.mkdir(parents=True, exist_ok=True)

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("hello")
        def hello(message: Message, context: Context) -> Message:
            said = wire.Hello(
                client=_name(int(context.node_config["partition-id"])),
                base=self.manifest.fingerprint,
                protocol=PROTOCOL_VERSION,
            )
            content = {wire.REPLY: ConfigRecord(wire.to_record(said))}
            return Message(RecordDict(content), reply_to=message)

        for phase in Phase:
            app.train(phase.value)(self._answerer(phase))
        return app

    def _answerer(self, phase: Phase) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            site = int(context.node_config["partition-id"])
            content = message.content
            told = wire.from_record(
                wire.Instruction, dict(content.config_records[wire.INSTRUCTION])
            )
            if self.lost(told.round, told.attempt, phase, site):
                raise RuntimeError("gone")
            if wire.SECAGG in content.array_records:
                try:
                    reply = self._secret(phase, site, told, content)
                except FedgeError as error:  # as the product's client: a refusal is a reply
                    return refused(message, error)
            else:
                reply = PlainClient().mask(self._contribution(site, told.round))
            made = ArrayRecord({"masked": Array(np.frombuffer(reply, np.uint8))})
            given = RecordDict({wire.MASKED: made})
            if phase in (Phase.ADVERTISE, Phase.UNMASK):
                session = self.sessions[site]
                assert session is not None
                text = wire.LogText(text=self._made(site, told).told(session.sid).encode())
                given[wire.LOG] = ConfigRecord(wire.to_record(text))
            return Message(given, reply_to=message)

        return answer

    def receipts(self, site: int) -> Receipts:
        return Receipts(self.folder / f"{site}.receipts.jsonl")

    def _secret(
        self, phase: Phase, site: int, told: wire.Instruction, content: RecordDict
    ) -> bytes:
        data = content.array_records[wire.SECAGG]["message"].numpy().tobytes()
        log_text = content.config_records.get(wire.LOG)
        self.sessions[site], reply = self._made(site, told).answer(
            phase,
            data,
            told,
            self.sessions.get(site),
            lambda: self._contribution(site, told.round),
            None if log_text is None else str(log_text["text"]),
        )
        return reply

    def _made(self, site: int, told: wire.Instruction) -> Member:
        return self.member(
            name=_name(site),
            key=self.keys[site],
            roster=self.roster,
            plan=self.plan,
            size=self._size(told.round),
            random=os.urandom,
            ledger=FileLedger(self.folder / f"{site}.jsonl"),
            openings=FileOpenings(self.folder / f"{site}.openings.jsonl"),
            receipts=self.receipts(site),
            first=lambda: first_digest(Recipe(plan=self.plan, manifest=self.manifest)),
            kept=self.kept(site, told.round),
        )

    def kept(self, site: int, number: int) -> KeptUpdates:
        """What a site masked last."""
        recipe, name = Recipe(plan=self.plan, manifest=self.manifest), _name(site)
        parts = recipe.parts(number)
        folder = self.folder / f"{site}.kept"
        store = FileKept(folder, self.plan.digest, name, parts, self._size(number))
        if not self.plan.cohort.late_rounds:
            return KeptUpdates(self.plan, store, recipe.parts)
        return LateUpdates(self.plan, store, recipe.parts, client_id(self.roster[name]).hex())

    def ready(self, site: int, number: int) -> bool:
        """Whether it need not train for a round."""
        if not self.plan.cohort.late_rounds:
            return False
        kept = self.kept(site, number).store.load()
        return kept is not None and usable(kept, self.plan, sid=kept.sid, number=number)

    def _size(self, number: int) -> int:
        return Recipe(plan=self.plan, manifest=self.manifest).round_layout(number).size

    def _contribution(self, site: int, number: int) -> Contribution:
        self.trained.append((site, number))
        rng = np.random.default_rng(seed_from(site, self.plan.turn(number)))
        update = rng.normal(0, 0.1, self._size(number)).astype(np.float32)
        metrics = {name: float(1 + site) for name in self.plan.task.METRICS}
        return Contribution(update=update, weight=1, metrics=metrics)


def small_plan(
    linears: int = 2, *, samples: bool = False, **sections: Any
) -> tuple[Plan, AnyManifest]:
    """A plan and its base, of sounds one that hears ``samples``; ``sections`` beside :data:`PLAN`."""
    task = sections.get("task", {}).get("kind", "")
    writes = task in (DECODER, SEQ2SEQ)
    manifest: AnyManifest = small_writing(linears, task=task) if writes else small_manifest(linears)
    if task in MEDIA:
        manifest = small_media(task, linears, samples=samples)
    if task == DOCUMENTS:
        manifest = small_documents(linears)
    if sections.get("adapter", {}).get("method") == "bottleneck":
        manifest = small_layered()
    named = sections.get("base", {}) | {"fingerprint": manifest.fingerprint}
    document = PLAN | sections | {"base": named}
    return plan_from(document, source="test"), manifest


def make_run(
    folder: Path,
    *,
    count: int = 6,
    lost: Lost = nobody,
    linears: int = 2,
    samples: bool = False,
    sites: Sites | None = None,
    log_key: Ed25519PrivateKey | None = None,
    witnesses: Sequence[Witness] = (),
    begin: Path | None = None,
    speeds: Speeds | None = None,
    **sections: Any,
) -> Path:
    """A whole run in ``folder``; ``sections`` are the plan's, beside :data:`PLAN`.

    ``speeds``: of the sites, by the names that simulated clients have.
    """
    plan, manifest = small_plan(linears, samples=samples, **sections)
    sites = sites or Sites(plan, manifest, folder.parent / f"{folder.name}-sites", count)
    sites.lost = lost
    clock = VirtualClock()
    store = RunStore(folder)
    try:
        run_rounds(
            plan=plan,
            manifest=manifest,
            grid=InProcessGrid(
                sites.app(),
                count,
                clock=clock,
                deadline_s=30.0,
                speeds=speeds,
                ready=sites.ready,
            ),
            store=store,
            clock=clock,
            roster_keys=sites.roster if plan.secrecy.exchange == "secagg" else None,
            log_key=log_key,
            witnesses=witnesses,
            start=begin,
        )
    finally:
        store.close()
    return folder


def go_on(
    before: Path, folder: Path, *, number: int | None = None, count: int = 6, **sections: Any
) -> Path:
    """A run in ``folder`` from the adapter of round ``number`` (the last) of ``before``, at new sites."""
    run = load_run(Folder(before), Trust())
    number = run.log.rounds[-1].number if number is None else number
    start = start_of(run, number).model_dump(mode="json")
    place = before / "rounds" / f"{number:04d}" / "adapter"
    return make_run(folder, count=count, begin=place, **(sections | {"start": start}))


def refused(message: Message, error: FedgeError) -> Message:
    kind = type(error).__name__
    refusal = wire.Refusal(kind=kind, cause=error.cause, remedy=error.remedy)
    content = {wire.REPLY: ConfigRecord(wire.to_record(refusal))}
    return Message(RecordDict(content), reply_to=message)


def _name(site: int) -> str:
    return f"site-{site}"
