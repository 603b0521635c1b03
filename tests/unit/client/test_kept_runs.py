"""A client gives nothing else to a sum that it has given to before: whatever asks in between. (P-6.10, P-4.14)"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.kept_file import FileKept
from client.kept_updates import MOST_RUNS, KeptUpdates
from client.late_updates import LateUpdates
from protocol.errors import SecrecyError
from protocol.exchange import Contribution, failed_contribution
from protocol.plan import plan_from
from protocol.transparency.leaves import Abort
from tests.unit.client.members import PARTS

SIZE, CLIENT = 5, "01" * 16
ONE, OTHER = "a1" * 32, "a2" * 32  # runs
FIRST, SECOND, THIRD = "b1" * 32, "b2" * 32, "b3" * 32  # adapters


class Site:
    """A client that is asked for rounds; its training fails the first time."""

    def __init__(self, folder: Path, kind: type[KeptUpdates]) -> None:
        late = {"cohort": {"late_rounds": 2}} if kind is LateUpdates else {}
        document = {
            "name": "t",
            "base": {"fingerprint": "0" * 64},
            "task": {"labels": ["a", "b"]},
        }
        plan = plan_from({**document, **late}, source="test")
        store = FileKept(folder / "kept", plan.digest, "site-1", PARTS, SIZE)
        own = (CLIENT,) if kind is LateUpdates else ()
        self.rule = kind(plan, store, lambda number: PARTS, *own)
        self.seq, self.trained = 0, 0

    def train(self) -> Contribution:
        self.trained += 1
        if self.trained == 1:
            return failed_contribution(SIZE)
        return Contribution(
            update=np.full(SIZE, self.trained, np.float32), weight=1, metrics={"loss_sum": 1.0}
        )

    def asked(self, sid: str, number: int, adapter: str) -> list[float]:
        """What it gives: shares to neighbours come before, of an attempt that failed."""
        self.seq += 1
        leaves = [Abort(seq=self.seq - 1, group=None, round=number, attempt=1, revealed=[])]
        self.rule.settle(sid, self.seq, leaves)
        place = sid, self.seq, f"{self.seq:064x}"
        given: list[Any] = self.rule.contribution(
            number, place, adapter, self.train
        ).update.tolist()
        return given

    def asked_or_passed(self, sid: str, number: int, adapter: str) -> list[float] | None:
        """None where it refuses since it has gone on."""
        try:
            return self.asked(sid, number, adapter)
        except SecrecyError as error:
            if not error.cause.startswith("round.passed"):
                raise
            return None


@pytest.fixture(params=[KeptUpdates, LateUpdates])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, request.param)


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([(OTHER, 1, FIRST)], id="another run of the plan"),
        pytest.param([(OTHER, 2, SECOND), (OTHER, 3, THIRD)], id="rounds of another run"),
        pytest.param([(ONE, 2, THIRD)], id="another adapter of the round"),
        pytest.param([(ONE, 3, THIRD)], id="a later round"),
        pytest.param([(ONE, 3, THIRD), (OTHER, 1, FIRST)], id="a later round, another run"),
    ],
)
def test_nothing_between_makes_it_give_something_else_to_a_sum(
    site: Site, between: list[tuple[str, int, str]]
) -> None:
    """The first may be open, with the shares of others: this client knows of no opening."""
    first = site.asked(ONE, 2, SECOND)
    given = [site.asked_or_passed(*each) for each in [*between, (ONE, 2, SECOND)]]
    assert given[-1] in (first, None)


def test_who_is_only_asked_for_shares_of_a_later_round_forgets_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, LateUpdates)
    first = site.asked(ONE, 2, SECOND)
    site.rule.settle(ONE, 2, [])
    site.rule.settle(OTHER, 1, [])
    assert site.asked(ONE, 2, SECOND) == first


def test_a_run_that_is_started_again_begins_with_round_one_and_the_one_before_may_go_on(
    site: Site,
) -> None:
    """Nothing was opened: the coordinator is honest, and so is one that finds its run again."""
    for number, adapter in ((1, FIRST), (2, SECOND)):
        site.asked(ONE, number, adapter)
    for number, adapter in ((1, FIRST), (2, SECOND), (3, THIRD)):
        site.asked(OTHER, number, adapter)
    site.asked(ONE, 3, THIRD)
    site.asked(OTHER, 4, FIRST)
    with pytest.raises(SecrecyError, match=r"^round\.passed"):
        site.asked(ONE, 3, THIRD)


def test_it_takes_part_in_a_bounded_number_of_runs(site: Site) -> None:
    """Each is remembered."""
    site.asked(ONE, 1, FIRST)
    kept = site.rule.store.load()
    assert kept is not None
    others = {f"{number:064x}": 1 for number in range(MOST_RUNS)}
    site.rule.store.keep(replace(kept, passed=others))
    with pytest.raises(SecrecyError, match=r"^run\.many"):
        site.asked(OTHER, 1, FIRST)
    site.asked(ONE, 2, SECOND)
    site.asked(f"{7:064x}", 2, SECOND)


def test_two_sessions_at_once_give_the_same(site: Site) -> None:
    """Two of Flower's runs, or two SuperNodes of one key: the second trains while the first is answered."""
    inside, on, second = threading.Event(), threading.Event(), []

    def slowly() -> Contribution:
        inside.set()
        assert on.wait(20)
        return failed_contribution(SIZE)

    def ask(seq: int, train: Any) -> list[float]:
        place = ONE, seq, f"{seq:064x}"
        given: list[float] = site.rule.contribution(2, place, SECOND, train).update.tolist()
        return given

    thread = threading.Thread(target=lambda: second.append(ask(2, slowly)))
    thread.start()
    assert inside.wait(20)
    first = ask(3, lambda: Contribution(update=np.ones(SIZE, np.float32), weight=1, metrics={}))
    on.set()
    thread.join(20)
    assert second == [first]


def test_parts_that_turn_are_kept_apart_though_they_are_of_one_size(tmp_path: Path) -> None:
    """A and B of a square linear: behind a void round B is no A, and A is what it was."""
    plan, turns = Site(tmp_path, KeptUpdates).rule.plan, (frozenset("A"), frozenset("B"))
    trained = 0

    def rule(number: int) -> KeptUpdates:
        store = FileKept(tmp_path / "kept", plan.digest, "site-1", turns[number % 2], SIZE)
        return KeptUpdates(plan, store, lambda each: turns[each % 2])

    def train() -> Contribution:
        nonlocal trained
        trained += 1
        return Contribution(update=np.full(SIZE, trained, np.float32), weight=1, metrics={})

    given = []
    for number in range(1, 5):
        place = ONE, number, f"{number:064x}"
        rule(number).verify_there(ONE, FIRST, number=number, opened=range(1, number))
        given.append(rule(number).contribution(number, place, FIRST, train).update[0])
    assert given == [1.0, 2.0, 1.0, 2.0]
    (tmp_path / "kept").rename(tmp_path / "lost")
    rule(5).verify_there(ONE, FIRST, number=5, opened=[4])
    with pytest.raises(SecrecyError, match=r"^update\.lost"):
        rule(5).verify_there(ONE, FIRST, number=5, opened=[3, 4])
