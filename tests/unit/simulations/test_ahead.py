"""Clients side by side: the order of replies, how many run, what ends them."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.leaving import check_leaving
from simulations.ahead import Ahead
from simulations.clock import VirtualClock
from simulations.faults import Faults
from simulations.grid import InProcessGrid
from tests.unit.simulations.test_grid import TRAIN, content, push


class Crowd:
    """A ClientApp that counts who runs: no client ends before as many others run as the test wants."""

    def __init__(self, together: int) -> None:
        self.app, self.began, self.most = ClientApp(), list[int](), 0
        self._running, self._lock = 0, threading.Lock()
        barrier = threading.Barrier(together)

        @self.app.train("mask")
        def train(message: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            with self._lock:
                self.began.append(partition)
                self._running += 1
                self.most = max(self.most, self._running)
            barrier.wait(timeout=60)
            with self._lock:
                self._running -= 1
            record = ConfigRecord({"partition": partition})
            return Message(RecordDict({"answer": record}), reply_to=message)


def test_so_many_run_at_a_time_and_replies_keep_their_order() -> None:
    crowd = Crowd(together=3)
    grid = InProcessGrid(crowd.app, 12, jobs=3)
    waiting, answers = push(grid), []
    while waiting:
        (reply,) = grid.pull_messages(waiting)
        waiting.remove(reply.metadata.reply_to_message_id)
        answers.append(int(reply.content["answer"]["partition"]))
        assert len(crowd.began) <= len(answers) + 6, "no more wait to be pulled than twice the jobs"
    assert answers == list(range(12))
    assert crowd.most == 3
    grid.close()


def test_with_one_job_nobody_runs_ahead_and_no_thread_starts() -> None:
    crowd, before = Crowd(together=1), threading.active_count()
    grid = InProcessGrid(crowd.app, 3, jobs=1)
    ids = push(grid)
    for done in range(1, 4):
        list(grid.pull_messages(ids))
        assert (len(crowd.began), threading.active_count()) == (done, before)


def test_what_was_begun_is_not_begun_again() -> None:
    begun: list[str] = []

    def work(name: str) -> str:
        begun.append(name)
        return name.upper()

    ahead: Ahead[str] = Ahead(2)
    names = [f"n{number}" for number in range(9)]
    assert [ahead.first(names[at:], work) for at in range(9)] == [name.upper() for name in names]
    assert sorted(begun) == names
    ahead.close()


def test_who_is_no_longer_asked_for_leaves_no_trace_behind() -> None:
    crowd, clock = Crowd(together=1), VirtualClock()
    grid = InProcessGrid(crowd.app, 4, jobs=2, clock=clock, deadline_s=10.0)
    first, *_ = push(grid)
    list(grid.pull_messages([first, "m2", "m3", "m4"]))
    clock.sleep(31.0)
    again = push(grid)
    assert len(list(grid.pull_messages(again))) == 1
    assert not {"m2", "m3", "m4"} & grid._ahead._begun.keys()
    grid.close()


@pytest.mark.parametrize("jobs", [1, 3])
def test_who_is_too_late_trains_only_where_its_reply_is_taken(jobs: int) -> None:
    """What a training leaves behind, as control variates, hangs on the faults and not on the threads."""
    crowd, clock = Crowd(together=1), VirtualClock()
    faults = Faults(straggler=1.0)
    grid = InProcessGrid(crowd.app, 6, jobs=jobs, clock=clock, deadline_s=10.0, faults=faults)
    ids = list(grid.push_messages(Message(content(), node, TRAIN) for node in grid.get_node_ids()))
    clock.sleep(10.0)
    assert len(list(grid.pull_messages(ids))) == 1
    grid.close()
    assert crowd.began == [0]


def test_a_client_does_one_thing_after_the_other_whoever_asks_for_it() -> None:
    """What was begun and nobody took is over, with the state it leaves, before the next begins."""
    began, order = threading.Event(), list[str]()

    def work(name: str) -> str:
        if name == "ann 1":
            began.wait(timeout=0.2)  # in the time of another thread it would be passed
        order.append(name)
        if name == "ann 2":
            began.set()
        return name

    ahead: Ahead[str] = Ahead(2, owner=lambda name: name.split()[0])
    assert ahead.first(["bo 1", "ann 1"], work) == "bo 1"
    assert ahead.first(["ann 2"], work) == "ann 2"
    assert order.index("ann 1") < order.index("ann 2")
    ahead.close()


def test_what_is_forgotten_has_ended() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(name: str) -> str:
        if name == "ann":
            begun.set()
            ended.wait(timeout=0.2)
            ended.set()
        return name

    ahead: Ahead[str] = Ahead(2)
    assert ahead.first(["bo", "ann"], work) == "bo"
    assert begun.wait(timeout=60)
    ahead.forget("ann")
    assert ended.is_set()
    ahead.close()


def test_a_failure_is_its_own_clients() -> None:
    def work(name: str) -> str:
        if name == "b":
            raise ValueError("b is broken")
        return name

    ahead: Ahead[str] = Ahead(3)
    assert ahead.first(["a", "b", "c"], work) == "a"
    with pytest.raises(ValueError, match="b is broken"):
        ahead.first(["b", "c"], work)
    assert ahead.first(["c"], work) == "c"
    ahead.close()


def test_a_training_in_a_thread_ends_at_its_next_step_when_the_process_leaves() -> None:
    trains, ended = threading.Event(), Future[int]()

    def work(name: str) -> str:
        if name == "quick":
            assert trains.wait(timeout=60)
            return name
        for step in range(10**9):
            trains.set()
            try:
                check_leaving(step)
            except KeyboardInterrupt:
                ended.set_result(step)
                raise
        return name

    ahead: Ahead[str] = Ahead(2)
    assert ahead.first(["quick", "long"], work) == "quick"
    ahead.close()
    assert ended.result(timeout=60) >= 0


def test_who_is_in_no_thread_is_left_to_signals() -> None:
    check_leaving()


def test_fewer_than_one_job_is_refused() -> None:
    with pytest.raises(ValueError, match="0 jobs"):
        Ahead(0)
