"""Which messages an actor is sent together. Needs no Ray."""

from __future__ import annotations

from typing import Any, cast

import pytest
from flwr.app import Message, RecordDict

from simulations.ray_actor import Answer, Call
from simulations.ray_batches import BATCH_S, MOST, Batches, Task

TRAIN, SHARE = "train.mask", "train.share"
QUICK, SLOW = BATCH_S / 4.5, 2.0
ANSWER: Answer = (RecordDict(), RecordDict())


def task(kind: str = SHARE) -> Task:
    call = Call(
        records={},
        shared={},
        kind=kind,
        name="",
        node=1,
        node_config={},
        run_config={},
        run_id=1,
        state=RecordDict(),
    )
    return Task(cast(Message, None), call)


def waiting(*tasks: Task, seconds: dict[str, float] | None = None) -> Batches[str]:
    """With these, and with what a message of a kind took before."""
    batches: Batches[str] = Batches()
    for kind, each in (seconds or {}).items():
        batches.answered([task(kind)], [ANSWER], each)
    for one in tasks:
        batches.put(one)
    return batches


def test_a_batch_needs_an_actor_and_a_message() -> None:
    batches = waiting()
    batches.free("a")
    assert batches.take() is None
    first = task()
    batches.put(first)
    assert batches.take() == ("a", [first])
    batches.put(task())
    assert batches.take() is None


@pytest.mark.parametrize(
    ("seconds", "count"), [(None, 1), (SLOW, 1), (BATCH_S, 1), (QUICK, 4), (0.0, MOST)]
)
def test_what_takes_no_time_goes_together_and_what_takes_long_alone(
    seconds: float | None, count: int
) -> None:
    tasks = [task() for _ in range(MOST + 3)]
    batches = waiting(*tasks, seconds=None if seconds is None else {SHARE: seconds})
    batches.free("a")
    assert batches.take() == ("a", tasks[:count])
    assert batches.size(SHARE) == count


def test_a_batch_is_of_one_kind_and_in_order() -> None:
    tasks = [task(SHARE), task(SHARE), task(TRAIN), task(SHARE)]
    batches = waiting(*tasks, seconds={SHARE: QUICK, TRAIN: SLOW})
    taken = []
    for _ in range(3):
        batches.free("a")
        actor_and_batch = batches.take()
        assert actor_and_batch is not None
        taken.append(actor_and_batch[1])
    assert taken == [tasks[:2], tasks[2:3], tasks[3:]]


def test_what_has_lost_an_actor_is_first_and_alone() -> None:
    """It may be what ends them: others must not be lost with it again."""
    lost, others = [task(), task()], [task(), task()]
    batches = waiting(*others, seconds={SHARE: QUICK})
    for one in reversed(lost):
        one.losses += 1
        batches.put(one, first=True)
    taken = []
    for _ in range(3):
        batches.free("a")
        actor_and_batch = batches.take()
        assert actor_and_batch is not None
        taken.append(actor_and_batch[1])
    assert taken == [lost[:1], lost[1:], others]


def test_whoever_waits_for_the_first_message_is_woken_for_an_idle_actor() -> None:
    first, second = task(), task()
    batches = waiting(first, second)
    assert not first.woken.is_set()
    batches.free("a")
    assert first.woken.is_set()
    assert not second.woken.is_set()
    batches.free("b")
    assert batches.take() == ("b", [first])
    assert second.woken.is_set()


@pytest.mark.parametrize("error", [None, RuntimeError("lost")])
def test_all_of_a_batch_end_with_it(error: Any) -> None:
    tasks, batches = [task(), task()], waiting()
    if error is None:
        batches.answered(tasks, [ANSWER, ANSWER], 0.1)
    else:
        batches.failed(tasks, error)
    for one in tasks:
        assert one.ended
        assert one.woken.is_set()
        assert one.error is error
