"""What a client makes of an update that no sum has: by the log, and in its file. (P-4.14)"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.failures import contribution_or_zeros
from client.kept_file import FileKept
from client.kept_updates import KeptStore, KeptUpdate
from client.late_updates import LateUpdates
from protocol.errors import MachineError, SecrecyError, UpdateError
from protocol.exchange import Contribution
from protocol.plan import Plan, plan_from
from protocol.tensor_file import decode_tensors, encode_tensors
from protocol.transparency.leaves import Abort, Alive, AskedSum, Leaf
from tests.unit.client.members import PARTS

SIZE, PLAN_DIGEST = 7, "ab" * 32
MINE, OTHER = "01" * 16, "02" * 16
SID, RID = "a1" * 32, "b2" * 32
THIRD, FOURTH = "a3" * 32, "a4" * 32  # adapters that come into rounds 3 and 4
METRICS = {"examples": 4.0, "loss_sum": 2.5, "eval_examples": 3.0, "train_seconds": 0.25}


def plan_with(**cohort: Any) -> Plan:
    document = {
        "name": "t",
        "base": {"fingerprint": "0" * 64},
        "task": {"labels": ["a", "b"]},
        "cohort": {"late_rounds": 2} | cohort,
    }
    return plan_from(document, source="test")


def trained(value: float = 1.0) -> Contribution:
    return Contribution(update=np.full(SIZE, value, np.float32), weight=1, metrics=METRICS)


def sent(**changes: Any) -> KeptUpdate:
    """Trained in round 3, sent in attempt 5."""
    update = KeptUpdate(
        contribution=trained(), round=3, sid=SID, seq=5, rid=RID, adapter=THIRD, last=3
    )
    return replace(update, **changes)


def alive(clients: list[str] | str, rid: str = RID) -> Alive:
    return Alive(seq=5, group=0, rid=rid, clients=clients, signatures={})


def abort(group: int | None = None, seq: int = 5, revealed: bool = False) -> Abort:
    asked = [AskedSum(group=0, rid=RID, clients=[MINE, OTHER])] if revealed else []
    return Abort(seq=seq, group=group, round=3, attempt=1, revealed=asked)


def in_next(late: LateUpdates, number: int = 4, adapter: str = FOURTH) -> float:
    """What it gives to another round, where its training gives nines."""
    given = late.contribution(number, (SID, 99, "f9" * 32), adapter, lambda: trained(9.0))
    return float(given.update[0])


@pytest.fixture
def store(tmp_path: Path) -> KeptStore:
    return FileKept(tmp_path / "kept", PLAN_DIGEST, "site-1", PARTS, SIZE)


@pytest.fixture
def late(store: KeptStore) -> LateUpdates:
    return LateUpdates(plan_with(), store, lambda number: PARTS, MINE)


@pytest.mark.parametrize(
    ("leaves", "free"),
    [
        pytest.param([alive([OTHER])], True, id="the sum is without it"),
        pytest.param([alive([OTHER, MINE])], False, id="the sum has it"),
        pytest.param([alive("c3" * 32)], False, id="the list is beside the log"),
        pytest.param([alive([OTHER], rid="d4" * 32)], False, id="another group's sum"),
        pytest.param([abort()], True, id="the attempt failed"),
        pytest.param([abort(seq=4)], False, id="another attempt failed"),
        pytest.param([abort(group=1)], False, id="the sum of some group failed"),
        pytest.param([abort(revealed=True)], False, id="the sum was asked for in vain"),
        pytest.param([abort(), alive([OTHER, MINE])], False, id="announced with it, then failed"),
        pytest.param([], False, id="the log says nothing"),
    ],
)
def test_it_is_free_where_the_log_shows_a_sum_without_it_and_bound_else(
    late: LateUpdates, leaves: list[Leaf], free: bool
) -> None:
    late.store.keep(sent())
    late.settle(SID, 6, leaves)
    kept = late.store.load()
    assert kept is not None
    assert (kept.free, kept.bound) == (free, not free)
    assert kept.contribution.update.tolist() == [1.0] * SIZE
    late.settle(SID, 7, [])  # nothing was sent since
    assert in_next(late) == pytest.approx(2**-0.5 if free else 9.0, rel=1e-6)


@pytest.mark.parametrize("changes", [{"sid": "e5" * 32}, {"seq": 6}, {"seq": 9}])
def test_of_another_run_or_of_this_attempt_it_is_not_used(
    late: LateUpdates, changes: dict[str, Any]
) -> None:
    late.store.keep(sent(**changes))
    late.settle(SID, 6, [alive([OTHER]), abort(seq=changes.get("seq", 5))])
    assert in_next(late) == 9.0


@pytest.mark.parametrize(("number", "value"), [(3, 1.0), (4, 2**-0.5), (5, 3**-0.5), (6, 9.0)])
def test_it_counts_less_the_older_it_is_and_is_trained_anew_beyond(
    late: LateUpdates, number: int, value: float
) -> None:
    late.store.keep(sent(free=True))
    adapter = THIRD if number == 3 else FOURTH
    given = late.contribution(number, (SID, 6, "f6" * 32), adapter, lambda: trained(9.0))
    assert given.update == pytest.approx(np.full(SIZE, value), rel=1e-6)
    assert given.metrics["eval_examples"] == (0.0 if 0 < number - 3 <= 2 else 3.0)
    kept = late.store.load()
    assert kept is not None
    assert (kept.sid, kept.seq, kept.rid, kept.free) == (SID, 6, "f6" * 32, False)
    assert kept.round == (3 if 0 <= number - 3 <= 2 else number)
    assert kept.contribution.update.tolist() == [1.0 if kept.round == 3 else 9.0] * SIZE


def test_of_one_beyond_the_clip_age_takes_as_much(store: KeptStore) -> None:
    plan = plan_with()
    clip, late = plan.secrecy.clip, LateUpdates(plan, store, lambda number: PARTS, MINE)
    late.store.keep(sent(free=True, contribution=trained(100 * clip)))
    given = late.contribution(4, (SID, 6, "f6" * 32), FOURTH, trained)
    assert np.linalg.norm(given.update) == pytest.approx(clip * 2**-0.5, rel=1e-6)


def test_what_is_not_free_or_of_another_run_is_trained_anew(late: LateUpdates) -> None:
    for changes in ({"free": False}, {"free": True, "sid": "e5" * 32}):
        late.store.keep(sent(**changes))
        given = late.contribution(4, (SID, 6, "f6" * 32), FOURTH, lambda: trained(9.0))
        assert given.update.tolist() == [9.0] * SIZE


def test_a_training_that_failed_gives_what_another_gives_when_another_does(
    late: LateUpdates,
) -> None:
    """Who trained well the second time would be what two openings of one sum differ by.

    And who trains for a later sum, where others mask at once what they have kept, would be known by that. (P-4.4)
    """

    def diverged() -> Contribution:
        raise UpdateError("the loss is not finite", "lower the rate")

    nan = Contribution(update=np.full(SIZE, np.nan, np.float32), weight=1, metrics=METRICS)
    unmeasured = replace(trained(), metrics=METRICS | {"loss_sum": np.inf})
    for turn, train in enumerate((diverged, lambda: nan, lambda: unmeasured), 2):
        number = 3 * turn
        adapter, place = f"{number:064x}", (SID, number, RID)
        given = late.contribution(
            number, place, adapter, partial(contribution_or_zeros, train, size=SIZE)
        )
        assert given.failed
        late.settle(SID, number + 1, [abort(seq=number)])
        assert late.contribution(number, (SID, number, "f6" * 32), adapter, trained).failed
        late.settle(SID, number + 2, [abort(seq=number)])
        later = (SID, number + 2, "f7" * 32)
        assert late.contribution(number + 1, later, "a5" * 32, trained).failed
        late.settle(SID, number + 3, [])
        assert not late.contribution(number + 2, (SID, number + 3, RID), "a6" * 32, trained).failed


@pytest.mark.parametrize("kept", [None, sent(), sent(free=True), sent(sid="e5" * 32)])
def test_who_has_helped_to_open_a_sum_and_has_not_what_it_gave_takes_part_in_no_other(
    late: LateUpdates, kept: KeptUpdate | None
) -> None:
    adapter = "a5" * 32
    if kept is not None:
        late.store.keep(kept)
    with pytest.raises(SecrecyError, match=r"^update\.lost"):
        late.verify_there(SID, adapter, number=5, opened=[4])
    late.verify_there(SID, adapter, number=5, opened=[])


def test_where_it_cannot_be_kept_nothing_is_given(late: LateUpdates, tmp_path: Path) -> None:
    """An older one that stays would be given twice."""
    late.store.keep(sent(free=True))
    (tmp_path / "kept").chmod(0o755)
    with pytest.raises(MachineError, match="open to other users"):
        late.contribution(4, (SID, 6, "f6" * 32), FOURTH, lambda: trained(9.0))


def test_shares_for_its_sum_end_it(late: LateUpdates) -> None:
    late.store.keep(sent())
    late.summed("f6" * 32)
    assert late.waiting(SID) == [5]
    assert late.waiting("e5" * 32) == []
    late.summed(RID)
    assert late.waiting(SID) == []
    late.settle(SID, 6, [alive([OTHER]), abort()])
    assert in_next(late) == 9.0


@pytest.mark.parametrize("opened", [True, False])
def test_of_one_adapter_it_gives_the_same_whatever_came_of_its_sum(
    late: LateUpdates, opened: bool
) -> None:
    """Two sums of the same clients would show what one that gives something else has changed. (P-6.10)"""
    late.store.keep(sent(free=True))
    asked = (abort(), abort(seq=6, revealed=True), alive([MINE, OTHER], rid="d6" * 32))
    first = late.contribution(5, (SID, 6, "d6" * 32), FOURTH, lambda: trained(9.0))
    if opened:
        late.summed("d6" * 32)
    for number, seq in ((5, 7), (5, 8), (6, 9)):  # also after a round that was void
        late.settle(SID, seq, asked)
        given = late.contribution(number, (SID, seq, f"{seq:064x}"), FOURTH, lambda: trained(9.0))
        assert given.update.tolist() == first.update.tolist()
        assert given.metrics == first.metrics
    late.settle(SID, 10, [alive([OTHER], rid=f"{9:064x}")])
    assert in_next(late, 7, "a5" * 32) == 9.0  # an earlier sum may have it


def test_of_two_sessions_with_one_adapter_none_frees_what_the_other_sent(late: LateUpdates) -> None:
    late.contribution(4, (SID, 6, "d6" * 32), FOURTH, trained)
    late.contribution(4, (SID, 7, "d7" * 32), FOURTH, lambda: trained(9.0))
    late.settle(SID, 8, [abort(seq=7)])
    assert in_next(late, 5, "a5" * 32) == 9.0


def test_the_file_is_its_owners_and_comes_back_whole(store: KeptStore, tmp_path: Path) -> None:
    update = sent(free=True)
    store.keep(update)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    again = store.load()
    assert again is not None
    assert again.contribution.metrics == update.contribution.metrics
    assert np.array_equal(again.contribution.update, update.contribution.update)
    assert replace(again, contribution=update.contribution) == update


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t, m: ({}, m), "its update is not of the plan's adapter"),
        (lambda t, m: ({"update": t["update"][1:]}, m), "its update is not of the plan's adapter"),
        (lambda t, m: ({"update": t["update"] * np.float32(np.nan)}, m), "not finite"),
        (lambda t, m: (t, {}), "is not whole"),
        (
            lambda t, m: (t, {"fedge": m["fedge"].replace('"free":false', '"free":"no"')}),
            "is not whole",
        ),
        (lambda t, m: (t, {"fedge": m["fedge"].replace("site-1", "site-2")}), "another client"),
        (lambda t, m: (t, {"fedge": m["fedge"].replace(PLAN_DIGEST, "cd" * 32)}), "another client"),
        (
            lambda t, m: (t, {"fedge": m["fedge"].replace("update-1", "update-2")}),
            "another version",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_its_remedy(
    store: KeptStore, tmp_path: Path, change: Any, fault: str
) -> None:
    store.keep(sent())
    (path,) = (tmp_path / "kept").iterdir()
    tensors, about = change(*decode_tensors(path.read_bytes(), source="t"))
    path.write_bytes(encode_tensors(tensors, about))
    with pytest.raises(MachineError, match=fault) as raised:
        store.load()
    assert "delete it" in raised.value.remedy
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MachineError):
        store.load()
