"""A coordinator and its clients together may overspend; the auditor adds up for itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import client.budget
import server.budget
from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import MachineError
from protocol.exchange import Phase
from protocol.privacy import accounting
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import encode_message
from protocol.transparency.submissions import sign_complaint
from tests.adversaries.forger import Forger
from tests.methods import CORES
from tests.unit.audit.runs import Sites, make_run, small_plan

NOISE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 20.0}


def verified(run: Path) -> Report:
    return audit(Folder(run), Trust())


@pytest.mark.parametrize(
    ("privacy", "fault"),
    [
        ({"epsilon": 1.5, "rounds_per_client": 1}, "spent epsilon"),
        ({"rounds_per_client": 1}, "took part in 3 sums"),
    ],
)
def test_nobody_refused_and_too_much_was_spent(
    privacy: dict[str, Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (client.budget, server.budget):
        monkeypatch.setattr(module, "verify_affordable", lambda *_: None)
    run = make_run(tmp_path / "run", rounds=3, adapter=CORES, privacy=NOISE | privacy)
    report = verified(run)
    assert report.verdict == "failed"
    assert any(fault in each for each in report.faults), report.faults
    assert [one.verdict for one in report.rounds] == ["ok"] * 4


def test_spent_in_vain_is_spent(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run",
        rounds=3,
        adapter=CORES,
        privacy=NOISE,
        lost=lambda n, a, phase, site: n == 2 and phase is Phase.UNMASK and site < 4,
    )
    report = verified(run)
    assert [(one.verdict, one.faults) for one in report.rounds][2] == ("void", ())
    assert report.privacy is not None
    assert report.privacy.sums == 3
    forger = Forger(Path(shutil.copytree(run, tmp_path / "forged")))
    del forger.entries[forger.at("dp", 1)]
    faults = verified(forger.sign()).rounds[2].faults
    assert any("was opened and is not in the ledger" in fault for fault in faults), faults


def test_without_the_accountant_epsilon_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", rounds=1, adapter=CORES, privacy=NOISE)

    def missing(*_: object) -> None:
        raise MachineError("dp-accounting is not installed", "install it")

    monkeypatch.setattr(accounting, "_accountant", missing)
    accounting.epsilon.cache_clear()
    report = verified(run)
    assert report.faults == ()
    assert report.unverified[0].what == "dp-accounting is not installed"
    assert report.privacy is not None
    assert report.privacy.epsilon is None
    assert report.open


def test_a_plan_without_noise_spends_nothing(lossy_run: Path, tmp_path: Path) -> None:
    private = make_run(tmp_path / "private", rounds=1, adapter=CORES, privacy=NOISE)
    other = Forger(private)
    forger = Forger(Path(shutil.copytree(lossy_run, tmp_path / "forged")))
    entry = verified(private) and other.entries[other.at("dp")]
    index = forger.at("adapter", 1)
    forger.entries.insert(index, entry)
    forger.edit(index, lambda leaf: None)  # signed by this log
    assert any("without any" in fault for fault in verified(forger.sign()).rounds[1].faults)


def test_complaints_are_shown_when_they_are_signed(tmp_path: Path) -> None:
    sites = Sites(*small_plan(), tmp_path / "sites", 6)
    run = make_run(tmp_path / "run", sites=sites)
    key = sites.keys[2]
    one = client_id(key.public_key().public_bytes_raw())
    complaint = sign_complaint(client=one, about="turned away", receipt="", key=key)
    forger = Forger(run)
    forger.entries.append(encode_message(complaint))
    report = verified(forger.sign())
    assert report.faults == ()
    assert report.complaints == (
        f"leaf {len(forger.entries) - 1}: {one.hex()} about 'turned away'",
    )
    forger.edit(len(forger.entries) - 1, lambda leaf: leaf.update(about="thanked"))
    assert any("did not sign" in fault for fault in verified(forger.sign()).faults)
    assert json.dumps(verified(run).to_dict())
