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
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from benchmarks.protocol_clients import Asked
from protocol.manifest import FileEntry, Graph, Head, Linear, Manifest, TensorEntry, fingerprint_of
from protocol.plan import Plan, plan_from
from protocol.secagg.primitives import client_id
from protocol.transparency.note import KeyType, VerifierKey
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
    trust: dict[str, Any] = {"retention_days": 30 if with_audit else 0}
    if by == "log":
        trust |= {"log": witness.log.encode(), "witnesses": [witness.verifier.encode()]}
        trust["witness_quorum"] = 1
    plan = plan_of(count, lost, manifest, trust)
    asked = Asked(plan, count, 10 * (coordinates // 10) + 2, lost)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "run")
        own = key if by == "log" else None
        figures = coordinated(asked, store, manifest, log_key=own, witnesses=[witness])
        record = store.record(1)
        words = np.frombuffer((store.folder / "rounds/0001/sums/0.sum").read_bytes(), "<u2")
        store.close()
        if with_audit:
            figures |= audit_of(store.folder)
    alive = [client_id(asked.roster[name]) for name in record["used"]]
    assert (words == asked.total(alive)).all(), "the sum is another"
    seconds, peak = asked.ended()
    traffic = max(asked.traffic, key=lambda each: each.up)  # of one that was there to the end
    return {
        "clients": count,
        "by": by,
        "coordinates": coordinates,
        "in_sum": len(record["used"]),
        "lost": len(record["lost"]),
        **figures,
        "client_cpu_s": round(seconds / count, 4),
        "clients_peak_bytes": peak,
        "up_bytes": traffic.up,
        "up_beyond_vector_bytes": traffic.up - words.nbytes,
        "down_bytes": traffic.down,
    }


def coordinated(asked: Asked, store: RunStore, manifest: Manifest, **trust: Any) -> dict[str, Any]:
    """The run of ``asked``'s plan; what it took this process."""
    clock, count = VirtualClock(), len(asked.roster)
    start = time.process_time()
    run_rounds(
        plan=asked.plan,
        manifest=manifest,
        grid=InProcessGrid(asked.app(), count, clock=clock, deadline_s=SOON_S),
        store=store,
        clock=clock,
        roster_keys=asked.roster,
        **trust,
    )
    return {
        "coordinator_cpu_s": round(time.process_time() - start, 2),
        "coordinator_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


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
    asked = parser.parse_args()
    common = (asked.coordinates, asked.lost, asked.by)
    if len(asked.clients) == 1:
        rows = [summed(asked.clients[0], *common, with_audit=asked.audit)]
    else:  # a process each: a peak is of one round
        names = ("--coordinates", "--lost", "--by")
        rest = [str(part) for pair in zip(names, common, strict=True) for part in pair]
        rest += ["--json", *(["--audit"] if asked.audit else [])]
        rows = []
        for count in asked.clients:
            command = [sys.executable, __file__, "--clients", str(count), *rest]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            rows += json.loads(output)["sums"]
    figures = {"sums": rows, "grown": ratios(rows)}
    print(json.dumps(figures, indent=None if asked.json else 1))


if __name__ == "__main__":
    main()
