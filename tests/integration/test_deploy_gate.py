"""`fedge deploy` on a real audited run: what passes the gate, what does not, and what the evidence says."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust, read_log
from audit.releases import UNREAD
from audit.sources import Folder
from audit.verify import audit
from delivery.evidence import verify_evidence
from delivery.repository import Repository
from edge_runtime.adapter import read_tensors
from edge_runtime.edge_adapter import write_edge_adapter
from fedge.main import cli
from protocol.errors import ArtefactError, DeliveryError, PlanError
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from protocol.plan import plan_from_text
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Evaluation
from server.releasing import log_release
from server.store import RunStore
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from tests.adversaries.forger import Forger
from tests.delivery_world import refused
from tests.gate_world import ROUND, SETTINGS, Publisher, fedge
from tests.unit.audit.runs import ONE_ROW
from tests.unit.audit.withdrawing import withdraw


@pytest.fixture
def run(gated_run: Path) -> Path:
    return gated_run


@pytest.fixture
def base(gated_base: Path) -> Path:
    return gated_base


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("clients"))


def test_a_run_becomes_a_release_with_evidence_and_is_promoted(
    publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher.publish("--json")
    keys = ["--keys", publisher.keys]
    repository = Repository(publisher.repo)
    evidence = publisher.repo / "evidence/tiny-r0001.canary.json"
    folder = publisher.run / ROUND / "adapter"
    files = {digest(folder / name) for name in (EDGE_FILE, RELEASE_FILE, PASSPORT_FILE)}
    verify_evidence(evidence.read_bytes(), files, repository.public_keys("canary"))
    with pytest.raises(ArtefactError, match="other files"):
        verify_evidence(evidence.read_bytes(), set(), repository.public_keys("canary"))
    with pytest.raises(ArtefactError, match="not signed"):
        verify_evidence(evidence.read_bytes(), files, [b"\x01" * 32])
    fedge("promote", "tiny-r0001", "--repo", publisher.repo, *keys, "--run", publisher.run)
    capsys.readouterr()
    fedge("status", publisher.repo, "--json")
    rows = json.loads(capsys.readouterr().out)["releases"]
    assert [(row["channel"], row["state"]) for row in rows] == [
        ("canary", "offered"),
        ("stable", "offered"),
    ]
    assert rows[1]["evidence"] == "evidence/tiny-r0001.stable.json"
    assert rows[0]["metrics"]["accuracy"] > 100
    fedge("status", publisher.repo)
    assert "tiny-r0001" in capsys.readouterr().out
    fedge("refresh", publisher.repo, "--keys", publisher.keys)
    fedge(
        "rotate",
        "timestamp",
        "--repo",
        publisher.repo,
        *keys,
        "--new-keys",
        publisher.repo.parent / "new",
    )
    fedge(
        "revoke",
        "tiny-r0001",
        "--repo",
        publisher.repo,
        *keys,
        "--keys",
        publisher.repo.parent / "new",
        "--reason",
        "x",
    )


def digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def flipped(name: str, at: int = -9) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[at] ^= 1
        (run / name).write_bytes(data)

    return change


def gone(pattern: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for path in run.glob(pattern):
            path.unlink()

    return change


def swapped_with_round_1(name: str) -> Callable[[Path], None]:
    return lambda run: (
        shutil.copy(run / "rounds/0001/adapter" / name, run / ROUND / "adapter" / name) and None
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (flipped(f"{ROUND}/adapter/{EDGE_FILE}"), "gate.log"),
        (flipped(f"{ROUND}/adapter/{RELEASE_FILE}", 30), "gate.log"),
        (flipped(f"{ROUND}/adapter/{PASSPORT_FILE}"), "gate.log"),
        (swapped_with_round_1(PASSPORT_FILE), "gate.log"),
        (flipped("log/checkpoint", 60), "gate.log"),
        (flipped(f"{ROUND}/checkpoint.safetensors"), "gate.audit"),
        (flipped("rounds/0001/sums/0.sum"), "gate.audit"),
        (gone("rounds/0001/vectors/*/*"), "gate.audit"),
    ],
)
def test_a_run_that_does_not_hold_is_not_published(
    publisher: Publisher, copied: Path, change: Callable[[Path], None], code: str
) -> None:
    before = sorted(path.name for path in (publisher.repo / "metadata").iterdir())
    change(copied)
    with refused(code):
        publisher.publish(run=copied)
    assert sorted(path.name for path in (publisher.repo / "metadata").iterdir()) == before
    (found,) = publisher.refused_evidence()
    assert found["passed"] is False
    assert str(copied) not in json.dumps(found)  # evidence is published


def test_a_release_below_the_bar_is_not_published(publisher: Publisher) -> None:
    with refused("gate.quality"):
        publisher.publish("--floor", 0.999)
    with refused("gate.quality"):
        publisher.publish("--round", 1)  # nobody measured it: a missing metric is a failure
    with pytest.raises(PlanError, match="published to stable"):
        publisher.publish("--channel", "stable")
    with pytest.raises(ArtefactError, match="no released round 9"):
        publisher.publish("--round", 9)
    checks = {c["name"]: c["passed"] for c in publisher.refused_evidence()[0]["checks"]}
    assert checks == {
        "device": True,
        "parity": True,
        "quality": False,
        "audit": True,
        "budget": True,
        "withdrawals": True,
    }


def test_a_round_that_was_measured_later_passes(
    publisher: Publisher, copied: Path, experiment_file: Path
) -> None:
    with refused("gate.quality"):
        publisher.publish("--round", 1, run=copied)
    rows = ["--rows", experiment_file.parent / "test.jsonl"]
    command = ["release", copied, "--base", publisher.base, "--round", 1, *rows]
    for _ in range(2):  # the second time nothing is logged anew
        cli.main(args=list(map(str, command)), prog_name="fedge", standalone_mode=False)
    publisher.publish("--round", 1, "--floor", 0.01, run=copied)


def test_a_release_worse_than_the_one_before_is_not_published(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from delivery import gate
    from delivery import publish_command as deploy

    real = deploy._bar

    def after_a_better_one(*arguments: Any) -> gate.Bar:
        bar = real(*arguments)
        return gate.Bar(floor=bar.floor, margin=bar.margin, previous=1100)

    monkeypatch.setattr(deploy, "_bar", after_a_better_one)
    with refused("gate.quality"):
        publisher.publish()
    publisher.publish("--margin", 1.0)


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, True),
        ({"verdict": "unverifiable"}, False),
        ({"verdict": "failed", "faults": ["x"]}, False),
        ({"origin": "another"}, False),
        ({"root": "0" * 64}, False),
        ({"size": 3}, False),
        ({"size": 10**6}, False),
        ({"rounds": []}, False),
    ],
)
def test_a_saved_audit_has_to_be_of_this_log(
    publisher: Publisher, tmp_path: Path, change: dict[str, Any], passes: bool
) -> None:
    report = audit(Folder(publisher.run), Trust()).to_dict() | change
    (tmp_path / "audit.json").write_text(json.dumps(report))
    if passes:
        publisher.publish("--audit", tmp_path / "audit.json")
    else:
        with refused("gate.audit"):
            publisher.publish("--audit", tmp_path / "audit.json")


@pytest.mark.parametrize(("leaves", "passes"), [(UNREAD, False), ("something else", True)])
def test_an_audit_that_did_not_see_what_devices_run_is_not_enough(
    publisher: Publisher, tmp_path: Path, leaves: str, passes: bool
) -> None:
    """As one without a base, of a method that hangs on weights of it, or without ONNX Runtime."""
    report = audit(Folder(publisher.run), Trust()).to_dict()
    report["rounds"][-1]["unverified"] = [
        {"what": "adapter.onnx_adapter: no base", "leaves": leaves}
    ]
    (tmp_path / "audit.json").write_text(json.dumps(report))
    if passes:
        publisher.publish("--audit", tmp_path / "audit.json")
    else:
        with refused("gate.audit"):
            publisher.publish("--audit", tmp_path / "audit.json")


def log_again(run: Path, factor: float) -> None:
    """The round's release once more, its slots times ``factor``, with a passport of its own."""
    folder = run / ROUND / "adapter"
    slots = read_tensors(folder / EDGE_FILE)
    scaled = {name: value * np.float32(factor) for name, value in slots.items()}
    write_edge_adapter(scaled, folder / EDGE_FILE)
    note = json.loads((folder / RELEASE_FILE).read_text())
    note["files"][EDGE_FILE] = digest(folder / EDGE_FILE)
    (folder / RELEASE_FILE).write_text(json.dumps(note, indent=1) + "\n")
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    leaves = [decode_leaf(entry).leaf for entry in read_log(Folder(run), Trust()).entries]
    measured = [leaf for leaf in leaves if isinstance(leaf, Evaluation)][-1]
    metrics = {name: value / 1000 for name, value in measured.metrics.items()}
    store = RunStore(run)
    try:
        log_release(store, plan, 2, rows=ONE_ROW, metrics=metrics)
    finally:
        store.close()


def test_an_audit_of_before_the_release_is_not_enough(
    publisher: Publisher, copied: Path, tmp_path: Path
) -> None:
    """It compared what devices run with another release, whatever came behind."""
    early, late = tmp_path / "early.json", tmp_path / "late.json"
    early.write_text(json.dumps(audit(Folder(copied), Trust()).to_dict()))
    log_again(copied, 4.0)
    with refused("gate.audit"):
        publisher.publish("--audit", early, run=copied)
    other = shutil.copytree(copied / ROUND / "adapter", tmp_path / "other")
    log_again(copied, 0.25)
    report = audit(Folder(copied), Trust()).to_dict()
    assert report["verdict"] == "ok", report["faults"]
    late.write_text(json.dumps(report))
    publisher.publish("--audit", late, run=copied)
    shutil.rmtree(copied / ROUND / "adapter")
    shutil.copytree(other, copied / ROUND / "adapter")
    with refused("gate.audit"):
        publisher.publish("--audit", late, run=copied)


@pytest.mark.slow
def test_a_run_that_goes_on_is_published_beside_the_runs_before(
    publisher: Publisher, experiment_file: Path, tmp_path: Path
) -> None:
    """Whether it is audited now or was, and by a version that thought better of it."""
    more, before = tmp_path / "more", ["--before", publisher.run]
    settings = [*SETTINGS, "plan.rounds=1", f"start={publisher.run}", "plan.name=more"]
    simulate(load_experiment(experiment_file, settings), more, resume=False, progress=NoProgress())
    own = json.loads((more / "audit.json").read_text())
    assert (own["verdict"], own["before"]["verdict"]) == ("ok", "ok")  # it knows where that run is
    alone = audit(Folder(more), Trust()).to_dict()
    assert alone["verdict"] == "unverifiable"
    saved = ["--audit", tmp_path / "audit.json"]
    rounds = [each | {"verdict": "ok"} for each in alone["rounds"]]
    for report in (alone, alone | {"verdict": "ok", "rounds": rounds}):
        saved[1].write_text(json.dumps(report))
        with refused("gate.audit"):
            publisher.publish(*saved, run=more)
    with pytest.raises(DeliveryError, match="--before RUN"):
        publisher.publish(run=more)
    saved[1].write_text(json.dumps(own))
    with refused("gate.withdrawals"):  # the report does not say what was logged since
        publisher.publish(*saved, run=more)
    first = shutil.copytree(publisher.run, tmp_path / "first")
    used = json.loads((first / "rounds/0002/record.json").read_text())["used"]
    withdraw(first, key_of(publisher.run, used[0]))
    for audited in (saved, []):
        with pytest.raises(DeliveryError, match="holds updates of") as error:
            publisher.publish(*audited, "--before", first, run=more)
        assert error.value.code == "gate.withdrawals"
    publisher.publish(*saved, *before, run=more)
    promote = ["promote", "more-r0001", "--repo", publisher.repo, "--keys", publisher.keys]
    with pytest.raises(DeliveryError, match="--before RUN"):
        fedge(*promote, "--run", more)
    with pytest.raises(DeliveryError, match="holds updates of"):
        fedge(*promote, "--run", more, "--before", first)
    fedge(*promote, "--run", more, *before)


def test_what_holds_an_update_of_a_site_that_withdrew_is_published_only_in_spite_of_it(
    publisher: Publisher, run: Path, copied: Path, tmp_path: Path
) -> None:
    """Refused with evidence; what the publisher does in spite of it is in the evidence too."""
    used = json.loads((copied / "rounds/0002/record.json").read_text())["used"]
    report = tmp_path / "audit.json"
    report.write_text(json.dumps(audit(Folder(copied), Trust()).to_dict()))
    withdraw(copied, key_of(run, used[0]))
    with pytest.raises(DeliveryError, match="holds updates of") as error:
        publisher.publish(run=copied)
    assert error.value.code == "gate.withdrawals"
    (evidence,) = publisher.refused_evidence()
    assert {check["name"]: check["passed"] for check in evidence["checks"]}["withdrawals"] is False
    with pytest.raises(DeliveryError, match="holds updates of"):  # also of an audit from before
        publisher.publish("--audit", report, run=copied)
    publisher.publish("--despite-withdrawal", run=copied)
    statement = (publisher.repo / "evidence/tiny-r0001.canary.json").read_text()
    assert "in spite of it" in base64.b64decode(json.loads(statement)["payload"]).decode()


def test_what_a_site_has_withdrawn_from_since_is_promoted_only_in_spite_of_it(
    publisher: Publisher, run: Path, copied: Path, tmp_path: Path
) -> None:
    """By the log of the very run that the release is of, whoever names another."""
    publisher.publish(run=copied)
    promote = ["promote", "tiny-r0001", "--repo", publisher.repo, "--keys", publisher.keys]
    for where, why in (
        ([], "--run"),
        (["--run", tmp_path / "nowhere"], "is no folder"),
        (
            ["--run", other_log(copied, tmp_path / "other")],
            "not the one that the release's passport",
        ),
    ):
        with pytest.raises(DeliveryError, match=why) as error:
            fedge(*promote, *where)
        assert error.value.code == "gate.withdrawals"
        assert str(tmp_path) not in str(error.value)
    fedge(*promote, "--rollout", 1, "--run", copied)  # nobody has withdrawn yet
    used = json.loads((copied / "rounds/0002/record.json").read_text())["used"]
    withdraw(copied, key_of(run, used[0]))
    with pytest.raises(DeliveryError, match="holds updates of"):
        fedge(*promote, "--run", copied)
    fedge(*promote, "--rollout", 10, "--run", copied, "--despite-withdrawal")
    assert "holds updates of" in stable_evidence(publisher)
    fedge(*promote, "--despite-withdrawal")
    assert "nobody has looked" in stable_evidence(publisher)


def stable_evidence(publisher: Publisher) -> str:
    statement = (publisher.repo / "evidence/tiny-r0001.stable.json").read_text()
    return base64.b64decode(json.loads(statement)["payload"]).decode()


def other_log(run: Path, folder: Path) -> Path:
    """The same run with another history of its log, signed by the same key."""
    shutil.copytree(run, folder)
    forger = Forger(folder)
    forger.edit(forger.at("eval"), lambda leaf: leaf.update(rows=leaf["rows"] + 1))
    return forger.sign()


def key_of(run: Path, name: str) -> Ed25519PrivateKey:
    secret = (run / f"clients/{name}.key").read_text().strip()
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
