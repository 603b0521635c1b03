"""One site twice at once, or its session lost: Flower's state is new in every Flower run, its own files stay.

A coordinator starts as many Flower runs as it likes. Whatever it does with their sessions, each reveal is in the
log that the site accepts later, and rounds that ended in vain are counted. (P-6.10, P-8.10)
"""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import RoundError
from protocol.exchange import Phase
from tests.adversaries.world import MODES, RUNS, World, adapter_of


@pytest.fixture(params=list(MODES))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, mode=request.param)


def refused(world: World, attempt: object, code: str) -> None:
    with pytest.raises(RoundError):
        world.whole(attempt)  # type: ignore[arg-type]
    assert world.refusals[-1] == code, world.refusals


def test_the_second_reveal_under_one_number_is_told_too(world: World) -> None:
    """The first one's `abort` accounted for both: of the second nobody heard, nor of its noise."""
    first = world.begin(seq=1)
    assert world.whole(first) is not None
    world.log_abort(first, revealed=True)
    for one in world.ids:
        world.forget(one)
    second = world.begin(seq=1)
    assert world.whole(second) is not None
    assert first.core.rid != second.core.rid
    world.logs[RUNS[0]].add_adapter(1, adapter_of(1))
    refused(world, world.begin(seq=2, round=2, adapter_digest=adapter_of(1)), "log.unrevealed")
    world.log_abort(second, revealed=True)
    world.logs[RUNS[0]].add_adapter(1, adapter_of(1))
    assert world.whole(world.begin(seq=3, round=2, adapter_digest=adapter_of(1))) is not None


def test_two_sessions_under_one_number_at_once(world: World) -> None:
    """Of two receipts with one number the first was forgotten."""
    # Receipts come with `agree`, under witnesses with `unmask`: until then nothing is to be accounted for.
    late = [world.unmask] if world.mode == "witnessed" else [world.agree, world.unmask]
    pairs = []
    for _ in range(2):
        made = world.begin(seq=1)
        world.advertise(made, world.ids)
        for step in (world.share, world.mask, world.agree):
            if step not in late:
                step(made)
        pairs.append((made, dict(world.sessions)))
        for one in world.ids:
            world.forget(one)
    tries = [made for made, _ in pairs]
    for step in late:
        for made, sessions in pairs:
            world.sessions = sessions  # which it changes
            step(made)
    assert all(made.opened() for made in tries)
    for one in world.ids:
        world.forget(one)
    world.log_sum(tries[-1], 1, adapter_of(1))
    last = world.begin(seq=2, round=2, adapter_digest=adapter_of(1))
    refused(world, last, "log.unrevealed")
    world.log_abort(tries[0], revealed=True)
    world.log_sum(tries[-1], 1, adapter_of(1))
    assert world.whole(world.begin(seq=3, round=2, adapter_digest=adapter_of(1))) is not None


def test_an_attempt_that_the_log_has_ended_is_opened_no_more(world: World) -> None:
    """The other session accepted an `abort` without a word of a reveal; then this one revealed."""
    first = world.begin(seq=1)
    world.advertise(first, world.ids)
    for step in (world.share, world.mask, world.agree):
        step(first)
    if world.mode == "witnessed":  # the receipt is there before the shares are
        _receipts_without_shares(world, first)
    kept = dict(world.sessions)
    world.log_abort(first, revealed=False)
    for one in world.ids:
        world.forget(one)
    second = world.begin(seq=2)
    world.advertise(second, world.ids)
    world.share(second)
    world.sessions = kept
    world.unmask(first)
    assert not first.revealed
    assert {*world.refusals[-len(world.ids) :]} == {"attempt.ended"}
    world.verify_told(world.ids[0], RUNS[0])


def _receipts_without_shares(world: World, made: object) -> None:
    """Every client keeps its receipt, and refuses the alive set that comes with it."""
    cohort, made.cohort = made.cohort, b"no proof"  # type: ignore[attr-defined]
    world.unmask(made)  # type: ignore[arg-type]
    assert {*world.refusals} == {"alive.proof"}
    made.cohort, made.stage = cohort, Phase.AGREE  # type: ignore[attr-defined]


def test_void_rounds_count_where_the_vectors_are_in_the_log_as_well(world: World) -> None:
    """As they are under witnesses: the vector accounted for the receipt, and no void was counted."""
    for number in range(1, 5):
        attempt = world.begin(seq=number, round=number)
        assert world.whole(attempt) is not None
        world.log_vectors(attempt)
        world.log_abort(attempt, revealed=True)
        world.logs[RUNS[0]].add_adapter(number, adapter_of(0))
    refused(world, world.begin(seq=5, round=5), "round.voids")
