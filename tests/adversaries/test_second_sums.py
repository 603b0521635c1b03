"""A coordinator that wants a second sum of an adapter: whose difference is one client's update."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import RoundError
from protocol.exchange import Phase
from tests.adversaries.world import MODES, RUNS, World, adapter_of


@pytest.fixture(params=list(MODES))
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, mode=request.param)


def refused(world: World, attempt: object, code: str, **options: object) -> None:
    """Nobody gives a share; whoever was asked last says why."""
    with pytest.raises(RoundError):
        world.whole(attempt, **options)  # type: ignore[arg-type]
    assert world.refusals[-1] == code, world.refusals
    world.verify_sums()


def test_another_adapter_under_the_same_numbers(world: World) -> None:
    """Five hidden sums of one round were had in this way, and the audit said ok."""
    assert world.whole(world.begin(seq=1)) is not None
    world.log_abort(world.tries[0], revealed=True)
    world.logs[RUNS[0]].add_adapter(0, adapter_of(9))
    second = world.begin(seq=2, adapter_digest=adapter_of(9))
    refused(world, second, "round.revealed")


def test_another_run_of_the_plan(world: World) -> None:
    assert world.whole(world.begin(seq=1)) is not None
    refused(world, world.begin(seq=1, run=RUNS[1]), "run.other")
    world.logs[RUNS[1]].add_adapter(1, adapter_of(1))
    refused(
        world,
        world.begin(seq=2, run=RUNS[1], round=2, adapter_digest=adapter_of(1)),
        "run.other",
    )


def test_last_rounds_adapter_without_one_member(world: World) -> None:
    """A hidden sum, then the ordinary round: the difference was one update, with cosine 0.9993."""
    victim = world.ids[3]
    everybody = world.whole(world.begin(seq=1))
    assert everybody is not None
    world.log_abort(world.tries[0], revealed=True)
    for one in world.ids:
        world.forget(one)
    hidden = world.begin(seq=2)
    refused(world, hidden, "round.revealed", without=frozenset({victim}))
    assert hidden.opened() is None


def test_a_void_round_and_the_next_one_without_a_member(world: World) -> None:
    """The model stays, so the next round's sum is of the same adapter."""
    victim = world.ids[3]
    everybody = world.whole(world.begin(seq=1))
    assert everybody is not None
    world.log_abort(world.tries[0], revealed=True)
    world.logs[RUNS[0]].add_adapter(1, adapter_of(0))
    second = world.begin(seq=2, round=2)
    refused(world, second, "adapter.revealed", without=frozenset({victim}))
    third = world.begin(
        seq=3, round=2
    )  # the very same clients may: nothing new is learnt of anybody
    world.log_abort(second, revealed=False)
    again = world.whole(third)
    assert again is not None
    world.verify_sums()
    if world.mode != "noisy":
        assert np.allclose(again, everybody, atol=0.05)


def test_clients_that_opened_nothing_may_open_a_sum_of_it(world: World) -> None:
    first = world.begin(seq=1)
    world.advertise(first, world.ids[:3])
    for step in (world.share, world.mask, world.agree, world.unmask):
        step(first)
    assert first.opened() == tuple(world.ids[:3])
    world.log_abort(first, revealed=True)
    world.logs[RUNS[0]].add_adapter(1, adapter_of(0))
    second = world.begin(seq=2, round=2)
    world.advertise(second, world.ids[3:])
    for step in (world.share, world.mask, world.agree, world.unmask):
        step(second)
    assert second.opened() == tuple(world.ids[3:])
    world.verify_sums()


def test_a_client_counts_void_rounds(world: World) -> None:
    """The plan allows three; the coordinator may hold each of their sums."""
    for number in range(1, 5):
        attempt = world.begin(seq=number, round=number)
        assert world.whole(attempt) is not None
        world.log_abort(attempt, revealed=True)
        world.logs[RUNS[0]].add_adapter(number, adapter_of(0))
    refused(world, world.begin(seq=5, round=5), "round.voids")


def test_void_rounds_that_an_earlier_fedge_remembered_count(world: World) -> None:
    """Its lines did not say which sums were in vain: they are read from the proofs."""
    for number in range(1, 5):
        attempt = world.begin(seq=number, round=number)
        assert world.whole(attempt) is not None
        world.log_abort(attempt, revealed=True)
        world.logs[RUNS[0]].add_adapter(number, adapter_of(0))
        files = [*world.folder.glob("*.receipts.jsonl")]
        assert len(files) == len(world.ids)
        for path in files if number == 3 else ():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert any(line.pop("vain", None) for line in lines)
            path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    refused(world, world.begin(seq=5, round=5), "round.voids")


@pytest.mark.parametrize("told", ["nothing", "an abort"])
def test_a_reveal_that_the_log_does_not_tell_of(world: World, told: str) -> None:
    """An abort was the coordinator's word: it said that nobody had been asked."""
    first = world.begin(seq=1)
    assert world.whole(first) is not None
    world.log_vectors(first)
    if told == "an abort":
        world.log_abort(first, revealed=False)
    world.logs[RUNS[0]].add_adapter(1, adapter_of(1))
    refused(world, world.begin(seq=2, round=2, adapter_digest=adapter_of(1)), "log.unrevealed")
    world.log_abort(first, revealed=True)
    world.logs[RUNS[0]].add_adapter(1, adapter_of(1))
    assert world.whole(world.begin(seq=3, round=2, adapter_digest=adapter_of(1))) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter_digest": adapter_of(9)},  # crafted, nowhere in the log
        {"round": 2},  # ahead of the log
        {"round": 2, "adapter_digest": adapter_of(9)},
    ],
)
def test_an_adapter_that_the_log_does_not_end_with(
    world: World, changes: dict[str, object]
) -> None:
    refused(world, world.begin(seq=1, **changes), "log.adapter")


def test_a_first_adapter_that_the_plan_does_not_give(world: World) -> None:
    """The log says so, signed by its key: round 0 is nobody's choice."""
    world.logs[RUNS[0]].add_adapter(0, adapter_of(9))
    refused(world, world.begin(seq=1, adapter_digest=adapter_of(9)), "log.adapter")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 7}, "attempt.round"),
        ({"attempt": 41}, "attempt.attempt"),
        ({"attempt": 0}, "attempt.attempt"),
        ({"seq": 241}, "attempt.number"),
    ],
)
def test_numbers_beyond_the_plan(world: World, changes: dict[str, int], code: str) -> None:
    refused(world, world.begin(**({"seq": 1} | changes)), code)


def test_killed_between_remembering_and_revealing(world: World) -> None:
    """The same request gets the same shares; any other, none."""
    first, everybody = world.begin(seq=1), frozenset(world.ids)
    world.advertise(first, world.ids)
    world.share(first)
    world.mask(first)
    world.agree(first)
    world.unmask(first, killed=everybody)
    assert first.opened() is None
    world.unmask(first)  # asked again, as nothing had come
    assert first.opened() == tuple(world.ids)
    for one in world.ids:
        world.forget(one)
    world.log_abort(first, revealed=True)
    refused(world, world.begin(seq=2, evaluate=True), "round.revealed")
    assert world.refusals.count("round.revealed") == len(world.ids)


@pytest.mark.parametrize("lost", [False, True])
def test_the_very_same_sum_again_shows_nothing_new(world: World, lost: bool) -> None:
    """No two trainings are alike; the victim's first vector is in a sum that it may have heard nothing of."""
    victim, first = world.ids[3], world.begin(seq=1)
    world.advertise(first, world.ids)
    for step in (world.share, world.mask, world.agree):
        step(first)
    world.unmask(first, without=frozenset({victim} if lost else ()))
    assert first.opened() == tuple(world.ids)
    for one in world.ids:
        world.forget(one)
    world.log_abort(first, revealed=True)
    second = world.begin(seq=2)
    assert world.whole(second) is not None
    assert second.masked == first.masked
    assert world.trained == len(world.ids)
    world.verify_sums()


def test_each_phase_is_of_the_instruction_that_was_shared(world: World) -> None:
    made = world.begin(seq=1)
    world.advertise(made, world.ids)
    world.share(made)
    with pytest.raises(RoundError):
        world.mask(made, adapter_digest=adapter_of(9))
    assert {*world.refusals} == {"instruction.changed"}
    assert made.stage is Phase.SHARE
