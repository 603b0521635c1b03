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
from simulations.grid import InProcessGrid
from tests.unit.simulations.test_grid import push


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
