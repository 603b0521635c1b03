"""A secret sum of thousands of clients: right to the last bit, and what it costs the coordinator and a client.

    python benchmarks/many_clients.py [--clients 1000 10000] [--coordinates 100000] [--lost 0.05] [--by log] [--audit] [--json]

A whole round of the coordinator as it runs a plan, its phases, its log and its files, in this process, so that processor
time and peak memory are its own: through the in-process grid to clients in another process that keep the protocol,
train nothing and hold what a client keeps between phases. A share of the clients is lost after it has shared,
another that size after it has masked. Who is in the sum is agreed on `--by log`, under a witness, or `--by signatures`
(up to 2,000 clients). The published words are compared with those that the clients know. With `--audit` masked vectors
are kept, and an auditor, in a process of its own, checks every signature and adds all of them again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol import PROTOCOL_VERSION, wire
from protocol.exchange import Contribution, Phase
from protocol.manifest import FileEntry, Graph, Head, Linear, Manifest, TensorEntry, fingerprint_of
from protocol.plan import Plan, plan_from
from protocol.secagg import client
from protocol.secagg.contexts import session_id
from protocol.secagg.messages import decode_round
from protocol.secagg.primitives import Suite, client_id
from protocol.secagg.task import encoding_for, roster_root, terms_for
from protocol.secagg.witnessed import agree_by_log
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.policy import policy_of
from protocol.transparency.shown import Told
from protocol.transparency.witness import (
    Cosigned,
    Witnessed,
    consider,
    parse_add_checkpoint,
    witness_key,
)
from server.coordinator import run_rounds
from server.store import RunStore
from server.witnessing import Answer
from simulations.clock import VirtualClock
from simulations.grid import InProcessGrid

LOG, WITNESS = "log.example/run", "w.example"
UPDATES = 16  # different ones; clients share them
SOON_S = 3600.0


def manifest_of(coordinates: int) -> Manifest:
    """A base that nobody opens: one linear, with which a plan of :func:`plan_of` has so many coordinates."""
    width = coordinates // 10
    graph = Graph(file="g", opset=20, accuracy_level=0, inputs=["i"], output="logits", slots=[])
    listed = Manifest(
        **dict.fromkeys(("layers", "parameters"), 1),
        fingerprint="a" * 64,
        source="none",
        task="sequence-classification",
        family="bert",
        pooling="mean",
        bits=4,
        block=32,
        hidden_size=width,
        embedding_size=width,
        vocab_size=9,
        max_positions=128,
        embedding_std=0.05,
        linears=[Linear(path="m.0.query", in_features=width, out_features=width)],
        head=Head(path="classifier", in_features=width, labels=2),
        graph=graph,
        tensors={"w": TensorEntry(dtype="float32", shape=[1], sha256="0" * 64)},
        files={
            name: FileEntry(sha256="0" * 64, bytes=1)
            for name in ("g", "config.json", "tokenizer.json")
        },
        made_with={},
    )
    return listed.model_copy(update={"fingerprint": fingerprint_of(listed)})


class Witness:
    """Cosigns the log of this run."""

    name = WITNESS

    def __init__(self, log: VerifierKey) -> None:
        self.log, self._latest = log, Witnessed()
        self._key = Ed25519PrivateKey.generate()
        self.verifier = witness_key(WITNESS, self._key)

    def post(self, body: bytes) -> Answer:
        """``add-checkpoint``."""
        request, now = parse_add_checkpoint(body), int(time.time())
        decided = consider(request, self._latest, [self.log], WITNESS, self._key, time=now)
        assert isinstance(decided, Cosigned)
        self._latest = decided.latest
        return Answer(status=200, body=decided.line)


def plan_of(clients: int, lost: float, manifest: Manifest, trust: Mapping[str, Any]) -> Plan:
    """One round of all."""
    document = {
        "name": "many",
        "rounds": 1,
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"labels": ["a", "b"]},
        "adapter": {"rank": 4, "alpha": 4.0, "targets": ["query"]},
        "rule": {"name": "mean"},
        "cohort": {
            "size": clients,
            "quorum": math.floor(clients * (1 - 1.5 * lost)),
            "deadline_s": SOON_S,
            "attempts": 1,
        },
        "audit": dict(trust),
    }
    return plan_from(document, source="the benchmark")


class Clients:
    """All clients of the round: keys, states, and the words that each of them masked."""

    def __init__(self, plan: Plan, count: int, size: int) -> None:
        self.plan, self.size = plan, size
        self.keys = [Ed25519PrivateKey.generate() for _ in range(count)]
        public = [key.public_key().public_bytes_raw() for key in self.keys]
        self.roster = {f"site-{number}": key for number, key in enumerate(public)}
        policy = policy_of(plan.audit).render() if plan.witnessed else ""
        self.policy = client.Policy(
            roster={client_id(key): key for key in public},
            minimum=plan.least_sum,
            maximum=plan.largest_sum,
            log_policy=policy,
        )
        self.states: dict[int, Any] = {}
        self.masked: dict[bytes, int] = {}
        self._terms: tuple[Any, list[Any], dict[str, Any]] | None = None

    def answer(self, phase: Phase, number: int, message: bytes, told: wire.Instruction) -> bytes:
        """What the client says, as :mod:`client.secret` would let it."""
        return bytes(getattr(self, f"_{phase.value}")(number, message, told))

    def _advertise(self, number: int, message: bytes, told: wire.Instruction) -> bytes:
        self._sid = session_id(told.plan_digest, message[:16])
        self._seq = int.from_bytes(message[16:], "big")
        self.states[number], reply = client.advertise(
            self.keys[number], sid=self._sid, seq=self._seq, random=os.urandom
        )
        return reply

    def _share(self, number: int, message: bytes, told: wire.Instruction) -> bytes:
        self.states[number], reply = client.share(
            self.states[number],
            message,
            key=self.keys[number],
            policy=self.policy,
            random=os.urandom,
        )
        return reply

    def _mask(self, number: int, message: bytes, told: wire.Instruction) -> bytes:
        encoding, words, terms = self._of_all(len(decode_round(message)[0]), told)
        opened = client.open_shares(self.states[number], message, terms, policy=self.policy)
        self.masked[opened.before.before.client] = number % UPDATES
        self.states[number], reply = client.mask(
            opened,
            words[number % UPDATES].copy(),
            bits=encoding.bits,
            suite=Suite(self.plan.secrecy.suite),
            key=self.keys[number],
        )
        return reply

    def _of_all(
        self, members: int, told: wire.Instruction
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        """What all compute alike, once; words of each of the updates."""
        if self._terms is None:
            encoding = encoding_for(self.plan, told, size=self.size, clients=members)
            terms = terms_for(self.plan, told, encoding, roster_root(self.roster))
            rng = np.random.default_rng(0)
            metrics = dict.fromkeys(self.plan.task.METRICS, 1.0)
            words = [
                encoding.words(
                    Contribution(
                        update=rng.normal(0, 0.01, self.size).astype(np.float32),
                        weight=1,
                        metrics=metrics,
                    ),
                    rng,
                    os.urandom,
                )
                for _ in range(UPDATES)
            ]
            self._terms = encoding, words, terms
        return self._terms

    def _agree(self, number: int, message: bytes, told: wire.Instruction) -> bytes:
        self.states[number], reply = client.agree_on_alive(
            self.states[number], message, key=self.keys[number], policy=self.policy
        )
        return reply

    def _unmask(self, number: int, message: bytes, told: wire.Instruction) -> bytes:
        state = self.states.pop(number)
        if self.plan.witnessed:
            shares = client.reveal(agree_by_log(state, message, policy=self.policy))
        else:
            shares = client.unmask(state, message, policy=self.policy)
        _, advert = client.advertise(
            self.keys[number], sid=self._sid, seq=self._seq + 1, random=os.urandom
        )
        return advert + shares

    def total(self, alive: list[bytes]) -> Any:
        """The sum of what these clients masked."""
        assert self._terms is not None
        counts = np.bincount([self.masked[one] for one in alive], minlength=UPDATES)
        words = np.stack(self._terms[1]).astype(np.uint64)
        return (counts.astype(np.uint64) @ words).astype(np.uint16)


def serve(pipe: Connection, document: dict[str, Any], count: int, size: int) -> None:
    """The clients' process: (phase, client, message or None for the one before, instruction) to replies."""
    clients = Clients(Plan.model_validate(document), count, size)
    pipe.send(clients.roster)
    common = b""
    while request := pipe.recv():
        phase, number, message, told = request
        if phase == "total":
            pipe.send(clients.total(message))
            continue
        common = common if message is None else message
        pipe.send(clients.answer(phase, number, common, told))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))


@dataclass
class Traffic:
    """Bytes each way of one client."""

    up: int = 0
    down: int = 0


class Asked:
    """Clients behind a pipe, as an app; who is lost, and how many bytes went each way."""

    def __init__(self, plan: Plan, count: int, size: int, lost: float) -> None:
        self.plan = plan
        self.pipe, other = multiprocessing.Pipe()
        arguments = (other, plan.model_dump(), count, size)
        multiprocessing.get_context("spawn").Process(
            target=serve, args=arguments, daemon=True
        ).start()
        self.roster: dict[str, bytes] = self.pipe.recv()
        each = round(1 / lost) if lost else count + 2
        self.gone = {Phase.MASK: range(0, count, each), Phase.UNMASK: range(1, count, each)}
        self.traffic = [Traffic() for _ in range(count)]
        self._last: bytes | None = None

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("hello")
        def hello(message: Message, context: Context) -> Message:
            said = wire.Hello(
                client=f"site-{context.node_config['partition-id']}",
                base=self.plan.base.fingerprint,
                protocol=PROTOCOL_VERSION,
            )
            content = {wire.REPLY: ConfigRecord(wire.to_record(said))}
            return Message(RecordDict(content), reply_to=message)

        for phase in Phase:
            app.train(phase.value)(lambda m, c, phase=phase: self._answer(phase, m, c))
        return app

    def _answer(self, phase: Phase, message: Message, context: Context) -> Message:
        number, content = int(context.node_config["partition-id"]), message.content
        if number in self.gone.get(phase, ()):
            raise ConnectionError("gone")
        told = wire.from_record(wire.Instruction, dict(content.config_records[wire.INSTRUCTION]))
        array = content.array_records[wire.SECAGG]["message"]
        again, self._last = array.data is self._last, array.data
        request = None if again else array.numpy().tobytes()
        self.pipe.send((phase, number, request, told))
        reply: bytes = self.pipe.recv()
        text = content.config_records.get(wire.LOG, {}).get("text", "")
        self.traffic[number].down += len(array.data) + len(str(text))
        self.traffic[number].up += len(reply)
        masked = ArrayRecord({"masked": Array(np.frombuffer(reply, np.uint8))})
        answer = RecordDict({wire.MASKED: masked})
        if phase in (Phase.ADVERTISE, Phase.UNMASK):
            known = wire.LogText(text=Told(size=0, open=[]).encode())
            answer[wire.LOG] = ConfigRecord(wire.to_record(known))
        return Message(answer, reply_to=message)


def audited(run: Path, pipe: Connection) -> None:
    """An auditor's process: (verdict of the round, CPU seconds, peak bytes)."""
    report = audit(Folder(run), Trust())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    pipe.send((report.rounds[1].verdict, round(seconds, 2), usage.ru_maxrss * 1024))


def audit_of(run: Path) -> dict[str, Any]:
    """Figures of :func:`audited`."""
    pipe, other = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=audited, args=(run, other)).start()
    verdict, seconds, peak = pipe.recv()
    assert verdict == "ok", verdict
    return {"auditor_cpu_s": seconds, "auditor_peak_bytes": peak}


def summed(
    count: int, coordinates: int, lost: float, by: str, *, with_audit: bool
) -> dict[str, Any]:
    """One round; figures of it."""
    manifest, key = manifest_of(coordinates), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    witness = Witness(VerifierKey(name=LOG, type=KeyType.ED25519, public=public))
    named = {
        "log": witness.log.encode(),
        "witnesses": [witness.verifier.encode()],
        "witness_quorum": 1,
    }
    kept = {"retention_days": 30 if with_audit else 0}
    plan = plan_of(count, lost, manifest, kept | (named if by == "log" else {}))
    size = 10 * (coordinates // 10) + 2
    asked, clock = Asked(plan, count, size, lost), VirtualClock()
    grid = InProcessGrid(asked.app(), count, clock=clock, deadline_s=SOON_S)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "run")
        start = time.process_time()
        run_rounds(
            plan=plan,
            manifest=manifest,
            grid=grid,
            store=store,
            clock=clock,
            roster_keys=asked.roster,
            log_key=key if by == "log" else None,
            witnesses=[witness],
        )
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        record = store.record(1)
        words = np.frombuffer((store.folder / "rounds/0001/sums/0.sum").read_bytes(), "<u2")
        store.close()
        figures = audit_of(store.folder) if with_audit else {}
    alive = [client_id(asked.roster[name]) for name in record["used"]]
    asked.pipe.send(("total", 0, alive, None))
    assert (words == asked.pipe.recv()).all(), "the sum is another"
    asked.pipe.send(None)
    clients_seconds, clients_peak = asked.pipe.recv()
    traffic = max(asked.traffic, key=lambda each: each.up)  # of one that was there to the end
    return {
        "clients": count,
        "by": by,
        "coordinates": coordinates,
        "in_sum": len(record["used"]),
        "lost": len(record["lost"]),
        "coordinator_cpu_s": round(seconds, 2),
        "coordinator_peak_bytes": peak,
        "client_cpu_s": round(clients_seconds / count, 4),
        "clients_peak_bytes": clients_peak,
        "up_bytes": traffic.up,
        "up_beyond_vector_bytes": traffic.up - words.nbytes,
        "down_bytes": traffic.down,
    } | figures


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """How the coordinator's time grew from each number of clients to the next, and how n log n did."""
    grown = []
    for few, many in pairwise(rows):
        n, more = few["clients"], many["clients"]
        grown.append(
            {
                "from": n,
                "to": more,
                "cpu": round(many["coordinator_cpu_s"] / few["coordinator_cpu_s"], 2),
                "n_log_n": round(more * math.log(more) / (n * math.log(n)), 2),
            }
        )
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--coordinates", type=int, default=100_000)
    parser.add_argument("--lost", type=float, default=0.05)
    parser.add_argument("--by", choices=("signatures", "log"), default="log")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts, rows = arguments.clients, []
    if len(counts) == 1:
        rows.append(
            summed(
                counts[0],
                arguments.coordinates,
                arguments.lost,
                arguments.by,
                with_audit=arguments.audit,
            )
        )
    else:  # a process each: a peak is of one round
        rest = (
            "--coordinates",
            arguments.coordinates,
            "--lost",
            arguments.lost,
            "--by",
            arguments.by,
            "--json",
            *(["--audit"] if arguments.audit else []),
        )
        for count in counts:
            command = [sys.executable, __file__, "--clients", count, *rest]
            output = subprocess.run(
                [str(part) for part in command], check=True, stdout=subprocess.PIPE
            ).stdout
            rows += json.loads(output)["sums"]
    figures = {"sums": rows, "grown": ratios(rows)}
    print(json.dumps(figures, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
