"""A coordinator that lies about what was spent: lines that are cheap, missing, late, or no numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from protocol.encoding import canonical_json
from protocol.errors import ProofError
from protocol.transparency.leaf_codec import decode_leaf, sha256
from tests.adversaries.forger import Forger
from tests.methods import CORES
from tests.unit.audit.runs import make_run

PRIVACY = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 20.0}
REALS = ("clip", "noise_multiplier", "grid", "noise", "rho", "xi")


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger") / "run"
    return make_run(folder, adapter=CORES, privacy=PRIVACY)


@pytest.fixture
def forge(tmp_path: Path, private: Path) -> Callable[[], Forger]:
    def make() -> Forger:
        folder = tmp_path / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        return Forger(Path(shutil.copytree(private, folder)))

    return make


def line(forger: Forger, **changes: Any) -> bytes:
    entry = decode_leaf(forger.entries[forger.at("dp")]).leaf.entry.model_dump() | changes  # type: ignore[attr-defined]
    subjects = {"privacy.jsonl": sha256(canonical_json(entry))}
    return forger.statement("dp", {"entry": entry}, subjects)


def audited(forger: Forger) -> Report:
    return audit(Folder(forger.sign()), Trust())


def told(report: Report) -> list[str]:
    return [*report.faults, *(fault for one in report.rounds for fault in one.faults)]


@pytest.mark.parametrize("name", REALS)
@pytest.mark.parametrize(
    "text", ["x", "nan", "inf", "-0x1.0p+3", "0.5", "0X1.0p+0", "0x1p+99999", ""]
)
def test_a_line_holds_real_numbers(name: str, text: str, forge: Callable[[], Forger]) -> None:
    with pytest.raises(ProofError, match=f"entry.{name}"):
        decode_leaf(line(forge(), **{name: text}))


def test_an_audit_ends_where_a_line_is_no_line(forge: Callable[[], Forger]) -> None:
    forger = forge()
    forger.entries[forger.at("dp")] = line(forger, rho="x")
    assert any("entry.rho" in fault for fault in told(audited(forger)))


@pytest.mark.parametrize(
    "changes",
    [
        {"rho": (0.0).hex()},
        {"rho": (1e308).hex()},
        {"round": 1},
        {"round": 3},
        {"participants": ["site-1", "site-0"]},
    ],
)
def test_lines_after_the_last_round_are_checked(
    changes: dict[str, Any], forge: Callable[[], Forger]
) -> None:
    """Such a line is what a coordinator that was killed leaves; no round's check meets it."""
    forger = forge()
    forger.entries.append(line(forger, **({"sequence": 3, "round": 3} | changes)))
    report = audited(forger)
    assert any("after the last round" in fault for fault in report.faults), report.faults


def test_false_numbers_give_no_epsilon(forge: Callable[[], Forger]) -> None:
    forger = forge()
    forger.entries[forger.at("dp")] = line(forger, rho=(0.0).hex())
    report = audited(forger)
    assert any("`rho` is not what" in fault for fault in told(report))
    assert report.privacy is not None
    assert report.privacy.epsilon is None


def test_a_line_is_of_the_round_it_stands_in(forge: Callable[[], Forger]) -> None:
    forger = forge()
    forger.entries.insert(forger.at("dp"), line(forger, sequence=7, round=2))
    assert any("`dp` is of round 2" in fault for fault in told(audited(forger)))
