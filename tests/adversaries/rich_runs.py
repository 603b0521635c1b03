"""Runs in which everything happens that a log and a folder can tell of, of every kind of plan."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.edge_adapter import write_edge_adapter
from protocol.bitmap_form import sent_size
from protocol.exchange import Phase
from protocol.peft_format import (
    EDGE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    Published,
    from_peft,
    to_edge,
)
from protocol.plan import plan_from_text
from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import client_id
from protocol.tensor_file import decode_tensors
from protocol.transparency.leaf_codec import encode_message, encode_statement, sha256
from protocol.transparency.leaves import Audit
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.submissions import encode_request, sign_complaint, sign_request
from server.inbox import request_leaf
from server.log import open_log
from server.publishing import DAY_S, retire_vectors
from server.releasing import log_release
from server.rounds import deal_groups
from server.store import RunStore
from tests.methods import CORES
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import ONE_ROW, Sites, make_run, small_plan
from tests.unit.audit.test_order import Local

MONTH = 31 * DAY_S


def eventful(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """Losses in every round; round 2 fails once, round 3 is void."""
    if (number, attempt) == (2, 1):
        return phase is Phase.MASK and site < 6
    if number == 3:
        return phase is Phase.UNMASK and site < 7
    return some_are_lost(number, attempt, phase, site)


def release(run: Path, number: int, metrics: dict[str, float]) -> None:
    """As ``fedge release`` does, without a base to measure on."""
    folder = run / f"rounds/{number:04d}/adapter"
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    tensors, _ = decode_tensors((folder / WEIGHTS_FILE).read_bytes(), source="x")
    published = Published.by(plan.adapter)
    named = from_peft(tensors, method=published.method)
    write_edge_adapter(to_edge(named, published=published), folder / EDGE_FILE)
    note = json.loads((folder / RELEASE_FILE).read_text())
    note["files"][EDGE_FILE] = sha256((folder / EDGE_FILE).read_bytes())
    bound = plan.release.parity_max_relative
    note["parity"] = {
        "rows": 1,
        "max_relative": 0.0,
        "label_agreement": 1.0,
        "bound": bound,
        "absolute": 0.0,
    }
    shares = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.5)
    note["calibration"] = {"temperature": 1.5, "rows": 1} | shares
    (folder / RELEASE_FILE).write_text(json.dumps(note, indent=1) + "\n")
    store = RunStore(run)
    try:
        log_release(store, plan, number, rows=ONE_ROW, metrics=metrics)
    finally:
        store.close()


def submit(run: Path, key: Ed25519PrivateKey) -> None:
    """A verdict of an auditor, a complaint and a withdrawal of a client; the vectors of round 1 expire."""
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    store = RunStore(run)
    try:
        log = open_log(store, plan)
        own = Ed25519PrivateKey.generate()
        auditor = own.public_key().public_bytes_raw().hex()
        # Of nothing yet: an auditor's leaf about more would show every change of what it saw.
        verdict = Audit(size=0, verdict="ok", rounds={"0": "ok"}, tool="x", auditor=auditor)
        leaves = [encode_statement(verdict, {"log": log.tree.root(0).hex()}, own)]
        if plan.secrecy.exchange == "secagg":
            one = client_id(key.public_key().public_bytes_raw())
            said = sign_complaint(client=one, about="turned away", receipt="", key=key)
            leaves.append(encode_message(said))
            sid = session_id(plan.digest, store.run_id).hex()
            request = sign_request(origin=log.origin, sid=sid, key=key)
            leaves.append(request_leaf(encode_request(request), log, store))
        log.append(leaves)
        if (vectors := run / "rounds/0001/vectors").is_dir():
            os.utime(vectors, (0, 0))
            retire_vectors(log, store, plan, now=MONTH)
    finally:
        store.close()


PRIVATE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
CENTRAL = {"mechanism": "central", "noise_multiplier": 2.0, "sampling": 0.9, "epsilon": 20.0}
KINDS: dict[str, dict[str, Any]] = {
    "secret": {"rounds": 3, "lost": eventful},
    "groups": {
        "count": 9,
        "cohort": EIGHT | {"size": 9, "quorum": 9},
        "secrecy": {"groups": 3},
        "rounds": 1,
    },
    "hybrid": {"rounds": 1, "lost": some_are_lost, "secrecy": {"keys": "x25519+ml-kem-768"}},
    "private": {
        "adapter": CORES,
        "privacy": PRIVATE,
        "rounds": 3,
        "lost": eventful,
    },
    "plain": {
        "secrecy": {"exchange": "plain"},
        "lost": lambda n, a, phase, site: site == 5 or ((n, a) == (2, 1) and site < 6),
    },
    "central": {
        "rule": {"name": "first"},
        "privacy": CENTRAL,
        "secrecy": {"exchange": "plain"},
        "cohort": {"size": 8, "quorum": 1, "deadline_s": 30.0},
    },
    "witnessed": {},
}


def make_witnessed(folder: Path) -> Path:
    """Three groups under a witness; one fails in round 1, so that there are a `pad` and its `abort`."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    log = VerifierKey(name="log.example/run", type=KeyType.ED25519, public=public)
    witness = Local(folder.parent / "witness", log)
    names = [f"site-{n}" for n in range(15)]
    dealt = deal_groups(names, groups=3, seed=5, round_number=1, attempt=1)
    gone = [int(name.removeprefix("site-")) for name in dealt[1][:4]]
    run = make_run(
        folder,
        count=15,
        lost=lambda n, a, phase, site: n == 1 and phase is Phase.MASK and site in gone,
        cohort={"size": 15, "quorum": 9, "deadline_s": 30.0},
        secrecy={"groups": 3},
        audit={"log": log.encode(), "witnesses": [witness.key.encode()], "witness_quorum": 1},
        log_key=key,
        witnesses=[witness],
    )
    (run / "log.key").write_text(key.private_bytes_raw().hex())
    return run


def make_kind(kind: str, folder: Path) -> Path:
    """A run of ``kind`` in ``folder``, with a release, submissions and a roster that has changed."""
    if kind == "witnessed":
        return make_witnessed(folder)
    sections = {"count": 8, "cohort": EIGHT, **KINDS[kind]}
    asked: dict[str, Any] = {k: v for k, v in sections.items() if k not in ("count", "lost")}
    plan, manifest = small_plan(**asked)
    sites = Sites(plan, manifest, folder.parent / "sites", sections["count"])
    run = make_run(folder, sites=sites, **sections)
    release(run, plan.rounds if kind != "secret" else 2, {"accuracy": 0.75})
    submit(run, sites.keys[0])
    del sites.roster["site-7"]
    make_run(folder, sites=sites, **sections)
    tell(run)
    return run


def tell(run: Path) -> None:
    """What a simulation writes beside a run."""
    records = [json.loads(path.read_text()) for path in sorted(run.glob("rounds/*/record.json"))]
    rounds, last = records[1:], records[-1]
    privacy = last["privacy"] or {}
    released = min(run.glob("rounds/*/adapter/adapter.onnx_adapter")).parent
    number = int(released.parent.name)
    note = json.loads((released / RELEASE_FILE).read_text())
    accuracy = 0.75 if number == last["round"] else 0.5
    evaluations = [{"round": n, "accuracy": 0.75, "loss": 0.5} for n in (number, number + 1)]
    summary = {
        "name": "small",
        "rounds": last["round"],
        "accuracy_federated": accuracy,
        "seconds": 3.5,
        "exchange": last["exchange"],
        "adapter_digest": last["adapter_published"],
        "epsilon": privacy.get("epsilon"),
        "delta": privacy.get("delta"),
        "dropped": sum(len(each["dropped"]) for each in rounds),
        "unawaited": 0,
        "upload_bytes_per_client_round": mean_of(rounds, "bytes_up_per_client"),
        "download_bytes_per_client_round": mean_of(rounds, "bytes_down_per_client"),
    }
    if number == last["round"]:
        summary["parity_max_relative"] = note["parity"]["max_relative"]
        summary["parity_label_agreement"] = note["parity"]["label_agreement"]
        adapter = (released / EDGE_FILE).read_bytes()
        summary["adapter_bytes"], summary["adapter_sent_bytes"] = len(adapter), sent_size(adapter)
    (run / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (run / "evaluations.json").write_text(json.dumps({"test": evaluations}, indent=1) + "\n")


def mean_of(records: list[dict[str, Any]], key: str) -> int:
    return round(sum(each[key] for each in records) / len(records))
