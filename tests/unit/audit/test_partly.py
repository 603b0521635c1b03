"""Audits of a part: some blocks of every sum, vectors that were deleted as planned."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.sums import Effort
from audit.verify import audit
from protocol.plan import plan_from_text
from server.log import open_log
from server.publishing import retire_vectors
from server.store import RunStore
from tests.unit.audit.runs import make_run

BLOCK_BYTES = 65_536  # of 32,768 coordinates in 16 bits


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three blocks in every sum of its first round."""
    return make_run(
        tmp_path_factory.mktemp("large") / "run",
        count=3,
        linears=2560,
        rounds=1,
        adapter={"rank": 5, "targets": ["query"]},
        rule={"name": "first"},
        cohort={"size": 3, "quorum": 3, "deadline_s": 30.0},
    )


class Drawn(random.Random):
    """An auditor's randomness that falls on these blocks."""

    def __init__(self, *blocks: int) -> None:
        super().__init__(0)
        self.blocks = blocks

    def sample(self, population: object, k: int) -> list[int]:  # type: ignore[override]
        assert len(self.blocks) == k
        return list(self.blocks)


def sampled(run: Path, *blocks: int, vectors: bool = True) -> Report:
    effort = Effort(spot=len(blocks) / 3, random=Drawn(*blocks), vectors=vectors)
    return audit(Folder(run), Trust(), effort=effort)


@pytest.mark.slow
def test_a_sample_says_that_it_is_one(large: Path) -> None:
    report = sampled(large, 0, 2)
    assert [one.verdict for one in report.rounds] == ["ok", "ok-sampled"]
    assert (report.verdict, report.open, report.failed) == ("unverifiable", True, False)
    (open_,) = report.rounds[1].unverified
    assert open_.what == "2 of 3 blocks of group 0 were added up again"
    whole = audit(Folder(large), Trust(), effort=Effort(spot=1.0))
    assert [one.verdict for one in whole.rounds] == ["ok", "ok"]
    again = audit(Folder(large), Trust(), effort=Effort(workers=3))
    assert [one.verdict for one in again.rounds] == ["ok", "ok"]


@pytest.mark.slow
def test_a_sample_finds_what_it_meets_and_nothing_else(large: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(large, tmp_path / "copy"))
    vector = min((run / "rounds/0001/vectors/0").glob("?" * 32))
    data = bytearray(vector.read_bytes())
    data[2 * BLOCK_BYTES + 17] ^= 1
    vector.write_bytes(data)
    assert sampled(run, 0, 1).rounds[1].verdict == "ok-sampled"
    (fault,) = sampled(run, 2).rounds[1].faults
    assert "piece 2 of its vector is not the one it signed" in fault
    (fault,) = audit(Folder(run), Trust()).rounds[1].faults
    assert vector.name in fault


@pytest.mark.slow
def test_a_list_of_pieces_that_nobody_signed(large: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(large, tmp_path / "copy"))
    chunks = min((run / "rounds/0001/vectors/0").glob("*.chunks"))
    data = bytearray(chunks.read_bytes())
    data[5] ^= 1
    chunks.write_bytes(data)
    for report in (sampled(run, 2), audit(Folder(run), Trust())):
        assert report.rounds[1].verdict == "failed"
    chunks.write_bytes(bytes(data)[:-1])
    for report in (sampled(run, 2), audit(Folder(run), Trust())):
        assert report.rounds[1].verdict == "failed"


@pytest.mark.slow
def test_without_vectors_a_sample_is_no_better(large: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(large, tmp_path / "copy"))
    shutil.rmtree(run / "rounds/0001/vectors")
    assert sampled(run, 2, vectors=False).rounds[1].verdict == "unverifiable"
    assert sampled(run, 2).rounds[1].verdict == "failed"


def test_vectors_that_expired_leave_a_leaf(lossy_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lossy_run, tmp_path / "copy"))
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    store = RunStore(run)
    try:
        gone = retire_vectors(open_log(store, plan), store, plan, now=4e9)
    finally:
        store.close()
    assert gone == [1, 2]
    report = audit(Folder(run), Trust())
    assert report.faults == ()
    assert [one.verdict for one in report.rounds] == ["ok", "unverifiable", "unverifiable"]
    assert "deleted, says leaf" in report.rounds[1].unverified[0].what
    assert sum("`retention`" in line for line in report.verified) == 2


def test_some_vectors_are_missing_and_one_is_false(lossy_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(lossy_run, tmp_path / "copy"))
    first, second, *_ = sorted((run / "rounds/0001/vectors/0").glob("?" * 32))
    first.unlink()
    smaller = Effort(vectors=False)
    assert audit(Folder(run), Trust(), effort=smaller).rounds[1].verdict == "unverifiable"
    data = bytearray(second.read_bytes())
    data[0] ^= 1
    second.write_bytes(data)
    (fault,) = audit(Folder(run), Trust(), effort=smaller).rounds[1].faults
    assert second.name in fault
