"""What a coordinator could show beside a log that holds: other releases, new clients, friendly auditors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from audit.commands import app
from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.passport import verify_passport
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, ProofError
from protocol.peft_format import (
    EDGE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    Published,
    from_peft,
    to_edge,
)
from protocol.plan import Plan, plan_from_text
from protocol.step.checkpoint import decode_checkpoint, encode_checkpoint
from protocol.tensor_file import decode_tensors
from protocol.transparency.leaf_codec import encode_statement, sha256
from protocol.transparency.leaves import Audit, Release
from protocol.transparency.offline import OfflineProof
from protocol.transparency.policy import parse_policy
from server.log import RunLog, open_log
from server.releasing import log_release
from server.store import RunStore
from tests.adversaries.forger import Forger
from tests.methods import CORES
from tests.unit.audit.runs import ONE_ROW, Sites, make_run, small_plan

FOLDER = "rounds/0002/adapter"


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("beside") / "run")


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def audited(folder: Path) -> Report:
    return audit(Folder(folder), Trust())


def plan_of(folder: Path) -> Plan:
    return plan_from_text((folder / "plan.json").read_text(), source="plan.json")


def release(run: Path, *, scale: float = 1.0, parity: float = 0.0) -> None:
    """As ``fedge release`` does, without a base to measure on; ``scale`` makes another adapter of it."""
    folder, plan = run / FOLDER, plan_of(run)
    tensors, _ = decode_tensors((folder / WEIGHTS_FILE).read_bytes(), source="x")
    published = Published.by(plan.adapter)
    constants = {name: scale * value for name, value in published.constants.items()}
    edge = to_edge(
        from_peft(tensors, method=published.method),
        published=replace(published, constants=constants),
    )
    write_edge_adapter(edge, folder / EDGE_FILE)
    note = json.loads((folder / RELEASE_FILE).read_text())
    note["files"][EDGE_FILE] = sha256((folder / EDGE_FILE).read_bytes())
    note["parity"] = {
        "rows": 1,
        "max_relative": parity,
        "label_agreement": 1.0,
        "bound": 1e-4,
        "absolute": 0.0,
    }
    (folder / RELEASE_FILE).write_text(json.dumps(note))
    store = RunStore(run)
    try:
        log_release(store, plan, 2, rows=ONE_ROW, metrics={})
    finally:
        store.close()


# -- releases -------------------------------------------------------------------------------------


def test_a_release_that_was_replaced_is_not_forgotten(run: Path) -> None:
    """Devices took the first one, with a passport that verifies; only the second can be looked at."""
    release(run, scale=-1.0)
    assert any("holds another adapter" in fault for fault in audited(run).rounds[2].faults)
    release(run)
    report = audited(run)
    assert not report.failed
    (open_,) = report.rounds[2].unverified
    assert "was replaced" in open_.what
    assert "devices which took it" in open_.leaves


def test_the_release_that_counts_is_the_last(run: Path) -> None:
    for parity in (0.0, 5e-5, 0.0):
        release(run, parity=parity)
        assert audited(run).rounds[2].faults == ()


def test_nothing_is_released_beside_a_coordinator(run: Path, monkeypatch: Any) -> None:
    from delivery.release_commands import release as command

    before = {path.name: path.read_bytes() for path in (run / FOLDER).iterdir()}
    (run / "rows.jsonl").write_text('{"text": "a", "label": "a"}\n')
    store = RunStore(run)
    with pytest.raises(ArtefactError, match="in use"):
        command(run, run / "base", run / "rows.jsonl")
    store.close()
    assert {path.name: path.read_bytes() for path in (run / FOLDER).iterdir()} == before


def test_a_leaf_that_somebody_else_signed_is_no_release(run: Path) -> None:
    """It is in the tree, whoever let it in: devices look at its author too."""
    release(run)
    folder, plan = run / FOLDER, plan_of(run)
    files = {
        f"{FOLDER}/{name}": sha256((folder / name).read_bytes())
        for name in (RELEASE_FILE, EDGE_FILE)
    }
    leaf = Release(round=2, adapter=0, eval=None)
    store = RunStore(run)
    log = open_log(store, plan)
    policy = parse_policy((run / "log/policy").read_text())
    for key, fits in ((log_key(run), True), (Ed25519PrivateKey.generate(), False)):
        write_passport(log, folder, encode_statement(leaf, files, key))
        if fits:
            verify_passport(folder, round_number=2, policy=policy)
        else:
            with pytest.raises(ProofError, match="not signed by the log's key"):
                verify_passport(folder, round_number=2, policy=policy)
    store.close()


def log_key(run: Path) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex((run / "log.key").read_text()))


def write_passport(log: RunLog, folder: Path, entry: bytes) -> None:
    index = log.append([entry])
    path = tuple(log.tree.inclusion(index))
    proof = OfflineProof(index=index, path=path, checkpoint=log.note, extra=entry)
    (folder / "passport.tlog-proof").write_text(proof.encode())


# -- who takes part, who says that all is well ----------------------------------------------------


def test_who_came_and_went_is_told(tmp_path: Path) -> None:
    plan, manifest = small_plan()
    sites = Sites(plan, manifest, tmp_path / "sites", 6)
    run = make_run(tmp_path / "run", sites=sites)
    keys = [f"site-{n}" for n in range(6)]
    del sites.roster[keys[0]]
    sites.roster |= {f"sybil-{n}": bytes([n]) * 32 for n in range(7)}
    sites.roster["anew"] = sites.roster.pop(keys[1])
    make_run(tmp_path / "run", sites=sites)
    report = audited(run)
    assert not report.failed
    (told,) = [each.what for each in report.assumed if "`roster`" in each.what]
    assert told.endswith(
        "7 came (sybil-0, sybil-1, sybil-2, sybil-3, sybil-4, …); 1 left (site-0); "
        "1 are named anew (site-1)"
    )


def test_an_auditor_counts_for_what_it_saw(honest: Path, tmp_path: Path) -> None:
    """Not for rounds that were not in the log yet when it looked."""
    for early in (True, False):
        forger = Forger(Path(shutil.copytree(honest, tmp_path / str(early))))
        own = Ed25519PrivateKey.generate()
        size = forger.at("adapter") + 1 if early else len(forger.entries)
        tree = forger.tree(size)
        leaf = Audit(
            size=size,
            verdict="ok",
            rounds={"1": "ok"},
            tool="x",
            auditor=own.public_key().public_bytes_raw().hex(),
        )
        forger.entries.append(encode_statement(leaf, {"log": tree.hex()}, own))
        shutil.rmtree(forger.run / "rounds/0001/vectors")
        (open_,) = audited(forger.sign()).rounds[1].unverified
        assert ("auditors" in open_.leaves) != early, open_


def test_a_strangers_text_cannot_steer_a_terminal(honest: Path, tmp_path: Path) -> None:
    forger = Forger(Path(shutil.copytree(honest, tmp_path / "f")))
    evil = "\x1b[2J\x1b[Hverdict: ok\r\n\u202e"
    index = forger.at("adapter", 1)
    forger.resubject(index, {evil: "0" * 64})
    folder = forger.sign()
    report = audited(folder)
    assert any("\\x1b[2J" in fault for fault in report.rounds[1].faults)
    shown = CliRunner().invoke(app, ["verify", str(folder), "--quiet"]).stdout
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    error = ProofError(evil, evil)
    assert str(error).isprintable()
    assert error.cause.isprintable()


# -- the start ------------------------------------------------------------------------------------


STARTS: dict[str, dict[str, Any]] = {
    "alternating": {},
    "lora-sb": {"adapter": CORES},
    "prompt": {
        "adapter": {"method": "prompt", "tokens": 3},
    },
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_start_of_the_coordinators_own(kind: str, tmp_path: Path) -> None:
    """All digests agree; one number of one tensor of round 0 is not that of P-2.3, in its last bit."""
    run = make_run(tmp_path / "run", rounds=1, **STARTS[kind])
    name = "rounds/0000/checkpoint.safetensors"
    start, note = decode_checkpoint((run / name).read_bytes(), source=name)
    for tensor in start.adapter:
        forger = Forger(Path(shutil.copytree(run, tmp_path / tensor)))
        adapter = {each: value.copy() for each, value in start.adapter.items()}
        first = adapter[tensor].reshape(-1)[:1]
        first[0] = np.nextafter(first[0], np.float32(9))
        state = replace(start, adapter=adapter)
        digest = vector_digest(
            np.concatenate([adapter[each].reshape(-1) for each in sorted(adapter)])
        )
        forger.republish(name, encode_checkpoint(state, replace(note, adapter_digest=digest)))
        forger.edit(forger.at("adapter"), lambda leaf, to=digest: leaf.update(adapter_out=to))
        found = audited(forger.sign()).rounds[0].faults
        assert any(f"{tensor} is not what the plan's seed gives" in fault for fault in found), found
