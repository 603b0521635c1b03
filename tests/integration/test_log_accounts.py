"""Every attempt's number that was used is accounted for in the log: by sums, or by an `abort` leaf."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.exchange import Phase
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort, Adapter, Aggregate, Leaf
from protocol.transparency.tiles import parse_entries, tiles_needed
from server.rounds import deal_groups
from server.secret_attempt import SecretAttempt
from server.secret_sum import SecretSum
from tests.unit.audit.runs import Sites, make_run, small_plan


class Killed(Exception):
    """The coordinator ends here."""


def leaves(run: Path) -> list[Leaf]:
    size = int((run / "log/checkpoint").read_text().split("\n")[1])
    bundles = [parse_entries((run / "log" / name).read_bytes()) for name, _ in tiles_needed(size)]
    return [decode_leaf(entry).leaf for bundle in bundles for entry in bundle]


def aborts(run: Path) -> list[Abort]:
    return [leaf for leaf in leaves(run) if isinstance(leaf, Abort)]


@pytest.mark.parametrize("phase", [Phase.MASK, Phase.UNMASK])
def test_a_group_that_failed_alone_has_its_own_leaf(tmp_path: Path, phase: Phase) -> None:
    names = [f"site-{number}" for number in range(15)]
    gone = deal_groups(names, groups=3, seed=5, round_number=1, attempt=1)[1]

    def lost(number: int, attempt: int, at: Phase, site: int) -> bool:
        return number == 1 and at is phase and f"site-{site}" in gone

    run = make_run(
        tmp_path / "run",
        count=15,
        lost=lost,
        cohort={"size": 15, "quorum": 9, "deadline_s": 30.0},
        secrecy={"groups": 3},
    )
    (abort,) = aborts(run)
    assert abort == Abort(seq=1, group=1, round=1, attempt=1, revealed=abort.revealed)
    asked = [(each.group, len(each.clients)) for each in abort.revealed]
    assert asked == ([(1, 5)] if phase is Phase.UNMASK else [])
    summed = [leaf.group for leaf in leaves(run) if isinstance(leaf, Aggregate)]
    assert summed == [
        0,
        2,
        0,
        1,
        2,
    ]  # in round 2 nobody refuses: the abort accounts for the receipts


@pytest.mark.parametrize("revealing", [False, True])
def test_a_killed_coordinators_attempt_is_an_abort_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revealing: bool
) -> None:
    sites = Sites(*small_plan(), tmp_path / "sites", 6)

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if revealing:
            patch.setattr(SecretSum, "open", dies)
        else:
            patch.setattr(SecretAttempt, "_by_signatures", dies)
        for _ in range(2):
            with pytest.raises(Killed):
                make_run(tmp_path / "run", sites=sites)
    run = make_run(tmp_path / "run", sites=sites)
    assert [(one.seq, one.group, one.round, one.attempt) for one in aborts(run)] == [
        (1, None, 1, 1),
        (2, None, 1, 1),
    ]
    ids = sorted(client_id(key).hex() for key in sites.roster.values())
    for one in aborts(run):
        assert [each.clients for each in one.revealed] == ([ids] if revealing else [])
    found = leaves(run)
    adapters = [leaf for leaf in found if isinstance(leaf, Adapter)]
    assert [(a.round, a.seq, a.void) for a in adapters] == [(0, 0, ""), (1, 3, ""), (2, 4, "")]
    assert found.index(aborts(run)[1]) < found.index(adapters[1])
    report = audit(Folder(run), Trust())
    assert (report.faults, [(one.verdict, one.faults) for one in report.rounds]) == (
        (),
        [("ok", ())] * 3,
    )
