"""`fedge deploy` on a real audited run: what passes the gate, what does not, and what the evidence says."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from delivery.evidence import verify_evidence
from delivery.gate import Audited
from delivery.releases import read_current
from delivery.repository import Repository
from edge_runtime.settings import read_device
from fedge.main import cli
from protocol.errors import ArtefactError, DeliveryError, FedgeError, PlanError
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from tests.delivery_world import refused, update
from tests.unit.audit.withdrawing import withdraw

SETTINGS = [
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=6",
    "plan.cohort.quorum=3",
    "plan.rounds=2",
    "plan.release.every=1",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]
ROUND = Path("rounds/0002")


def fedge(*arguments: object) -> None:
    cli.main(args=["deploy", *map(str, arguments)], prog_name="fedge", standalone_mode=False)


@pytest.fixture(scope="module")
def run(experiment_file: Path) -> Path:
    out = experiment_file.parent / "gated"
    simulate(load_experiment(experiment_file, SETTINGS), out, resume=False, progress=NoProgress())
    return out


@pytest.fixture(scope="module")
def base(run: Path) -> Path:
    return Path(json.loads((run / "summary.json").read_text())["base"])


class Publisher:
    def __init__(self, folder: Path, run: Path, base: Path) -> None:
        self.repo, self.keys, self.run, self.base = folder / "repo", folder / "keys", run, base
        fedge("init", self.repo, "--keys", self.keys)

    def publish(self, *more: object, run: Path | None = None, base: Path | None = None) -> None:
        where = ["--repo", self.repo, "--keys", self.keys, "--base", base or self.base]
        fedge("publish", run or self.run, *where, "--floor", 0.1, *more)

    def refused_evidence(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.repo / "evidence").glob("*.refused-*.json")):
            envelope = json.loads(path.read_text())
            found.append(json.loads(base64.b64decode(envelope["payload"]))["predicate"])
        return found


@pytest.fixture
def publisher(tmp_path: Path, run: Path, base: Path) -> Publisher:
    return Publisher(tmp_path, run, base)


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
    fedge("promote", "tiny-r0001", "--repo", publisher.repo, *keys)
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
    from delivery import commands as deploy
    from delivery import gate

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
    with pytest.raises(PlanError, match="an audit made now"):
        publisher.publish(*saved, *before, run=more)
    publisher.publish(*before, run=more)


def test_what_holds_an_update_of_a_site_that_withdrew_is_published_only_in_spite_of_it(
    publisher: Publisher, run: Path, copied: Path, tmp_path: Path
) -> None:
    """Refused with evidence; what the publisher does in spite of it is in the evidence too."""
    used = json.loads((copied / "rounds/0002/record.json").read_text())["used"]
    report = tmp_path / "audit.json"
    report.write_text(json.dumps(audit(Folder(copied), Trust()).to_dict()))
    secret = (run / f"clients/{used[0]}.key").read_text().strip()
    withdraw(copied, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    with pytest.raises(DeliveryError, match="holds updates of") as error:
        publisher.publish(run=copied)
    assert error.value.code == "gate.withdrawals"
    (evidence,) = publisher.refused_evidence()
    assert {check["name"]: check["passed"] for check in evidence["checks"]}["withdrawals"] is False
    with pytest.raises(DeliveryError, match="withdrew after the"):
        publisher.publish("--audit", report, run=copied)
    publisher.publish("--despite-withdrawal", run=copied)
    statement = (publisher.repo / "evidence/tiny-r0001.canary.json").read_text()
    assert "in spite of it" in base64.b64decode(json.loads(statement)["payload"]).decode()


def test_a_withdrawal_of_a_run_before_counts_from_the_adapter_that_was_taken() -> None:
    def audited(**fields: object) -> Audited:
        same = {"verdict": "ok", "size": 9, "root": "", "rounds": [], "privacy": None, "faults": []}
        return Audited.model_validate({"origin": "second", "from_round": 3} | same | fields)

    gone = [{"leaf": 7, "client": "ward", "first": 2}]
    for first, touched in ((2, ["ward (leaf 7 of first)"]), (4, []), (None, [])):
        withdrawals = [gone[0] | {"first": first}]
        before = audited(origin="first", from_round=0, withdrawals=withdrawals)
        report = audited(withdrawals=[], before=before.model_dump())
        assert list(report.touching(0)) == touched
        assert list(before.touching(3)) == touched
    assert list(audited(withdrawals=gone).touching(1)) == []


def test_what_failed_on_a_device_is_not_promoted(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish()
    probe = {
        "rows": [{"text": "x", "label": "no such label"}],
        "least_correct": 1,
        "most_latency_ms": 9999,
        "most_memory_mb": 999,
    }
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    settings = {
        "id": "kiosk",
        "name": "tiny",
        "channel": "canary",
        "repository": "repo",
        "root": "repo/root.json",
        "trust": str(publisher.run / "log/policy"),
        "base": str(publisher.base),
        "store": "store",
        "probe": "probe.json",
        "report": "reports/kiosk.json",
    }
    file = tmp_path / "device.toml"
    file.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    with refused("probe.labels"):
        update(read_device(file))
    reports = ["--reports", tmp_path / "reports"]
    (tmp_path / "reports/cut.json").write_text("{")  # it might have been the one that says so
    promote = ["promote", "tiny-r0001", "--repo", publisher.repo, "--keys", publisher.keys]
    with pytest.raises(DeliveryError, match=r"gate\.devices: .*cut\.json"):
        fedge(*promote, *reports)
    with refused("reports.missing"):
        fedge(*promote, "--reports", tmp_path / "reprots")
    with refused("gate.devices"):
        fedge("promote", "tiny-r0001", "--repo", publisher.repo, "--keys", publisher.keys, *reports)
    shutil.rmtree(publisher.repo / "evidence")
    with refused("gate.canary"):
        fedge("promote", "tiny-r0001", "--repo", publisher.repo, "--keys", publisher.keys)


def test_a_gate_with_a_new_key_checks_again_what_it_has_published(
    publisher: Publisher, tmp_path: Path
) -> None:
    """Else no release of before could be promoted, and none published again."""
    publisher.publish()
    with refused("release.known"):
        publisher.publish()
    repo, keys, new = ["--repo", publisher.repo], ["--keys", publisher.keys], tmp_path / "new"
    fedge("rotate", "canary", "stable", *repo, *keys, "--new-keys", new)
    for name in ("gate", "stable-1", "stable-2"):
        (publisher.keys / f"{name}.key").unlink()
    both = [*keys, "--keys", new]
    with refused("gate.canary"):
        fedge("promote", "tiny-r0001", *repo, *both)
    publisher.publish("--keys", new)
    fedge("promote", "tiny-r0001", *repo, *both)
    offers = read_current(Repository(publisher.repo), "stable", "tiny").releases
    assert [offer.seq for offer in offers] == [1]


def test_keys_are_kept_apart(publisher: Publisher, tmp_path: Path) -> None:
    with refused("keys.folder"):
        fedge("init", tmp_path / "other", "--keys", tmp_path / "other/keys")
    with refused("keys.exist"):
        fedge("init", tmp_path / "other", "--keys", publisher.keys)
    assert {path.stat().st_mode & 0o777 for path in publisher.keys.iterdir()} == {0o600}
    publisher.publish()
    few = tmp_path / "few"
    few.mkdir()
    for name in ("gate", "snapshot", "timestamp"):
        shutil.copy(publisher.keys / f"{name}.key", few)
    with refused("keys.missing"):
        fedge("promote", "tiny-r0001", "--repo", publisher.repo, "--keys", few)
    os.chmod(few / "gate.key", 0o640)
    with refused("keys.open"):
        fedge("refresh", publisher.repo, "--keys", few)
    (few / "gate.key").write_text("nonsense")
    os.chmod(few / "gate.key", 0o600)
    with pytest.raises(DeliveryError) as caught:
        fedge("refresh", publisher.repo, "--keys", few)
    assert "nonsense" not in str(caught.value)
    with pytest.raises(FedgeError):
        fedge("status", tmp_path / "nowhere")
