"""Simulated runs with real training and real releases, audited from what they publish."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from audit.attest import attestation
from audit.commands import app
from audit.log_copy import Trust
from audit.releases import read_edge_adapter
from audit.report import Report
from audit.sources import Folder
from audit.sums import Effort
from audit.verify import audit
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from protocol.transparency.leaf_codec import decode_leaf, sha256
from protocol.transparency.leaves import Release
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from tests.adversaries.forger import Forger

SMALL = ["plan.rounds=2", "yardsticks.pooled=false", "yardsticks.alone=0", "plan.release.every=1"]
SECRET = [
    *SMALL,
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=6",
    "plan.cohort.quorum=3",
]


def simulated(file: Path, name: str, settings: list[str]) -> Path:
    out = file.parent / name
    simulate(load_experiment(file, settings), out, resume=False, progress=NoProgress())
    return out


@pytest.fixture(scope="module")
def run(experiment_file: Path) -> Path:
    return simulated(experiment_file, "audited", SECRET)


@pytest.fixture
def forger(run: Path, tmp_path: Path) -> Forger:
    return Forger(Path(shutil.copytree(run, tmp_path / "forged")))


def verified(folder: Path) -> Report:
    return audit(Folder(folder), Trust())


def test_a_secret_run_is_proven_down_to_its_releases(run: Path) -> None:
    report = verified(run)
    assert report.faults == ()
    assert [(one.verdict, one.faults, one.unverified) for one in report.rounds] == [
        ("ok", (), ())
    ] * 3
    assert report.verdict == "ok"


def test_against_a_base_of_ones_own(run: Path) -> None:
    base = run / json.loads((run / "experiment.json").read_text())["base_folder"]
    report = audit(Folder(run), Trust(), base=base)
    assert (report.faults, report.verdict) == ((), "ok")
    named = {each.name: each.parts for each in report.not_covered}
    assert "manifest.json" not in named
    assert "manifest.json" in {each.name for each in verified(run).not_covered}
    assert "report.html" in named
    assert {"seconds", "tokens_per_second"} <= set(named["summary.json"])
    assert not {"epsilon", "adapter_digest", "accuracy_federated"} & set(named["summary.json"])


def test_the_lineage_of_a_release(run: Path) -> None:
    adapter = str(run / "rounds/0002/adapter")
    found = json.loads(CliRunner().invoke(app, ["lineage", adapter, "--json"]).stdout)
    assert [step["clients"] for step in found["steps"]] == [0, 6, 6]
    assert set(found["release"]["files"]) == {
        f"rounds/0002/adapter/{name}" for name in (RELEASE_FILE, EDGE_FILE)
    }
    assert 0 <= found["release"]["metrics"]["accuracy"] <= 1000


def test_a_bundle_of_it_verifies(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), "--out", str(tmp_path / "bundle"), "--json"]
    assert json.loads(CliRunner().invoke(app, arguments).stdout)["missing"] == []
    assert verified(tmp_path / "bundle").verdict == "ok"


@pytest.mark.parametrize("name", [EDGE_FILE, RELEASE_FILE, PASSPORT_FILE])
def test_a_changed_release_is_found(run: Path, name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    path = folder / "rounds/0001/adapter" / name
    whole = path.read_bytes()
    for place in (0, len(whole) // 3, len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        (fault,) = verified(folder).rounds[1].faults
        assert name in fault
        assert verified(folder).rounds[2].verdict == "ok"


def other_tensors(forger: Forger) -> None:
    """An artefact with other numbers, listed and signed as if it were the release."""
    name = f"rounds/0002/adapter/{EDGE_FILE}"
    tensors = read_edge_adapter((forger.run / name).read_bytes(), name)
    tensors[min(tensors)] = tensors[min(tensors)] + np.float32(0.01)
    write_edge_adapter(tensors, forger.run / name)
    data = (forger.run / name).read_bytes()
    note = json.loads((forger.run / f"rounds/0002/adapter/{RELEASE_FILE}").read_text())
    note["files"][EDGE_FILE] = sha256(data)
    forger.republish(name, data)
    forger.republish(f"rounds/0002/adapter/{RELEASE_FILE}", json.dumps(note).encode())


def other_round(forger: Forger) -> None:
    forger.edit(forger.at("release", 1), lambda leaf: leaf.update(adapter=forger.at("adapter", 1)))


def other_evaluation(forger: Forger) -> None:
    wrong = forger.at("adapter", 1)
    forger.edit(forger.at("release", 1), lambda leaf: leaf.update(eval=wrong))


def other_note(forger: Forger, **fields: object) -> None:
    name = f"rounds/0002/adapter/{RELEASE_FILE}"
    note = json.loads((forger.run / name).read_text())
    forger.republish(name, json.dumps(note | fields).encode())


def some_program(forger: Forger) -> None:
    """Of a plan that names none."""
    other_note(forger, program="6" * 64)


def ranks_that_answer(forger: Forger) -> None:
    """Of a method that does not train them to."""
    other_note(forger, nested=True)


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        (some_program, "`program` of release.json is not that of the round"),
        (ranks_that_answer, "`nested` of release.json is not that of the round"),
        (other_tensors, "holds another adapter than the one published"),
        (other_round, "points to leaf"),
        (other_evaluation, "points to no evaluation"),
    ],
)
def test_a_signed_lie_about_a_release_is_found(
    lie: Callable[[Forger], None], fault: str, forger: Forger
) -> None:
    lie(forger)
    faults = verified(forger.sign()).rounds[2].faults
    assert any(fault in each for each in faults), faults


def test_an_audit_in_the_log_stands_for_vectors_that_are_gone(run: Path, forger: Forger) -> None:
    key = Ed25519PrivateKey.generate()
    forger.entries.append(attestation(verified(run), key, tool="test"))
    folder = forger.sign()
    assert verified(folder).verdict == "ok"
    shutil.rmtree(folder / "rounds/0001/vectors")
    assert (
        verified(folder).rounds[1].verdict == "failed"
    )  # no `retention` leaf says that they may be
    report = audit(Folder(folder), Trust(), effort=Effort(vectors=False))
    (open_,) = report.rounds[1].unverified
    assert "auditors of leaves" in open_.leaves
    assert report.rounds[1].verdict == "unverifiable"
    forger.edit(len(forger.entries) - 1, lambda leaf: leaf.update(size=leaf["size"] - 1))
    assert any("`audit` not signed by" in each for each in verified(forger.sign()).faults)


@pytest.mark.parametrize(
    ("name", "settings", "verdicts"),
    [
        ("audited-plain", SMALL, ["ok", "unverifiable", "unverifiable"]),
        (
            "audited-private",
            [
                *SECRET,
                "plan.adapter.method=lora-sb",
                "plan.privacy.mechanism=distributed",
                "plan.privacy.epsilon=50.0",
            ],
            ["ok", "ok", "ok"],
        ),
        (
            "audited-hybrid",
            [
                *SECRET,
                "plan.secrecy.keys=x25519+ml-kem-768",
                "population.clients=10",
                "plan.cohort.size=10",
                "faults.dropout=0.15",
                "plan.cohort.attempts=20",
            ],
            ["ok", "ok", "ok"],
        ),
    ],
)
def test_other_runs(
    name: str, settings: list[str], verdicts: list[Any], experiment_file: Path
) -> None:
    report = verified(simulated(experiment_file, name, settings))
    assert report.faults == ()
    assert [(one.verdict, one.faults) for one in report.rounds] == [(v, ()) for v in verdicts]


def test_the_releases_leaf_is_about_the_rounds_files(forger: Forger) -> None:
    leaf = decode_leaf(forger.entries[forger.at("release")]).leaf
    assert isinstance(leaf, Release)
    assert leaf.adapter == forger.at("adapter", leaf.round)
