"""The in-process grid: laziness, faults, errors, cost."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from protocol.wire import INSTRUCTION
from simulations.clients import client_name
from simulations.clock import VirtualClock
from simulations.faults import Fault, Faults, Speeds
from simulations.grid import InProcessGrid

TRAIN = f"{MessageType.TRAIN}.mask"
HELLO = f"{MessageType.QUERY}.hello"


def recording_app() -> tuple[ClientApp, list[int]]:
    app, ran = ClientApp(), []

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    @app.train("mask")
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        ran.append(partition)
        if partition == 3:
            raise ValueError("partition three is broken")
        answer = ConfigRecord({"partition": partition, "path": context.node_config["data-path"]})
        return Message(RecordDict({"answer": answer}), reply_to=message)

    return app, ran


def content(round_number: int = 1) -> RecordDict:
    return RecordDict({INSTRUCTION: ConfigRecord({"round": round_number, "attempt": 1})})


def grid_of(clients: int, **options: object) -> tuple[InProcessGrid, list[int]]:
    app, ran = recording_app()
    grid = InProcessGrid(app, clients, data_path=lambda p: f"rows-{p}", **options)  # type: ignore[arg-type]
    return grid, ran


def push(grid: InProcessGrid, kind: str = TRAIN, round_number: int = 1) -> list[str]:
    shared = content(round_number)
    return list(grid.push_messages(Message(shared, n, kind) for n in grid.get_node_ids()))


def test_a_client_runs_only_when_its_reply_is_pulled_one_at_a_time() -> None:
    grid, ran = grid_of(3)
    ids = push(grid)
    assert ran == []
    for done in range(1, 4):
        replies = list(grid.pull_messages(ids))
        assert len(replies) == 1
        assert len(ran) == done
    assert list(grid.pull_messages(ids)) == []


def test_a_reply_names_its_message_and_its_sender() -> None:
    grid, _ = grid_of(2)
    ids = push(grid)
    first, second = (next(iter(grid.pull_messages(ids))) for _ in range(2))
    assert [first.metadata.reply_to_message_id, second.metadata.reply_to_message_id] == ids
    assert first.content["answer"]["path"] == "rows-0"
    assert second.metadata.src_node_id == list(grid.get_node_ids())[1]


def test_an_exception_in_a_client_becomes_an_error_reply() -> None:
    grid, _ = grid_of(4)
    replies = list(grid.send_and_receive([Message(content(), list(grid.get_node_ids())[3], TRAIN)]))
    assert replies[0].has_error()
    assert "partition three is broken" in replies[0].error.reason


def test_an_unknown_node_becomes_an_error_reply() -> None:
    grid, _ = grid_of(1)
    (reply,) = grid.send_and_receive([Message(content(), 999_999, TRAIN)])
    assert reply.has_error()


def test_the_content_is_not_copied() -> None:
    app, seen = ClientApp(), []

    @app.train("mask")
    def train(message: Message, context: Context) -> Message:
        seen.append(message.content)
        return Message(RecordDict(), reply_to=message)

    grid, shared = InProcessGrid(app, 1), content()
    list(grid.send_and_receive([Message(shared, 1000, TRAIN)]))
    assert seen[0] is shared


def test_state_is_kept_per_client_and_only_when_there_is_some() -> None:
    app = ClientApp()

    @app.train("mask")
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            count = int(context.state["seen"]["n"]) if "seen" in context.state else 0
            context.state["seen"] = ConfigRecord({"n": count + 1})
            return Message(RecordDict({"answer": ConfigRecord({"n": count})}), reply_to=message)
        assert len(context.state) == 0
        return Message(RecordDict({"answer": ConfigRecord({"n": -1})}), reply_to=message)

    grid = InProcessGrid(app, 2)
    counts = [
        sorted(
            int(r.content["answer"]["n"])
            for r in grid.send_and_receive(
                [Message(content(), node, TRAIN) for node in grid.get_node_ids()]
            )
        )
        for _ in range(2)
    ]
    assert counts == [[-1, 0], [-1, 1]]
    assert list(grid._states) == [1000]


def test_a_dropout_never_answers_and_the_clock_jumps_to_the_deadline() -> None:
    clock = VirtualClock()
    grid, ran = grid_of(3, faults=Faults(dropout=1.0), clock=clock, deadline_s=600.0)
    ids = push(grid)
    waits = 0
    while clock.now() < 600.0:
        assert list(grid.pull_messages(ids)) == []
        clock.sleep(0.1)
        waits += 1
    assert ran == []
    assert waits == 1


def test_a_straggler_answers_after_the_deadline() -> None:
    clock = VirtualClock()
    grid, ran = grid_of(1, faults=Faults(straggler=1.0), clock=clock, deadline_s=10.0)
    ids = push(grid)
    assert list(grid.pull_messages(ids)) == []
    clock.sleep(0.1)
    assert clock.now() == 10.0  # the deadline: whoever answers now is late
    assert len(list(grid.pull_messages(ids))) == 1
    assert ran == [0]


def test_questions_are_answered_whatever_the_faults() -> None:
    grid, _ = grid_of(5, faults=Faults(dropout=1.0))
    hello = [Message(RecordDict(), node, HELLO) for node in grid.get_node_ids()]
    assert len(list(grid.send_and_receive(hello))) == 5


def test_the_faults_met_are_those_of_the_hash() -> None:
    faults = Faults(seed=7, dropout=0.5)
    grid, ran = grid_of(40, faults=faults)
    nodes = [node for node in grid.get_node_ids() if node != 1003]
    list(grid.send_and_receive([Message(content(9), node, TRAIN) for node in nodes]))
    names = [client_name(node - 1000) for node in nodes]
    expected = [n for n in names if faults.of(round_number=9, attempt=1, client=n) is Fault.NONE]
    assert [client_name(partition) for partition in ran] == expected
    assert 0 < len(expected) < len(nodes)


@pytest.mark.parametrize(
    ("faults", "kept"), [({"straggler": 1.0}, True), ({"dropout": 1.0}, False)]
)
def test_a_round_that_is_over_does_not_keep_its_adapter_alive(
    faults: dict[str, float], kept: bool
) -> None:
    """Nor does what nobody will ever answer."""
    clock = VirtualClock()
    grid, _ = grid_of(2, faults=Faults(**faults), clock=clock, deadline_s=10.0)
    shared = content()
    list(grid.push_messages([Message(shared, 1000, TRAIN)]))
    held = weakref.ref(shared)
    del shared
    gc.collect()
    assert (held() is not None) == kept
    clock.sleep(31.0)
    push(grid)
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_slow_client_answers_later_and_the_next_message_after_it(jobs: int) -> None:
    """A node does one thing at a time, in order, whether anybody comes for it or not."""
    clock = VirtualClock()
    speeds = Speeds(training_s=1.0, slowness=10.0, slow=frozenset({client_name(1)}))
    grid, ran = grid_of(2, clock=clock, deadline_s=100.0, speeds=speeds, jobs=jobs)
    first = push(grid)
    assert list(grid.pull_messages(first)) == []
    clock.sleep(0.1)
    assert clock.now() == 1.0
    assert len(list(grid.pull_messages(first))) == 1
    second = push(grid, round_number=2)
    answered = []
    while ran.count(1) < 2:
        answered += [reply.metadata.reply_to_message_id for reply in grid.pull_messages(second)]
        clock.sleep(0.1)
    assert (ran, answered) == ([0, 0, 1, 1], second)
    assert clock.now() == pytest.approx(20.1)
    (late,) = grid.pull_messages(first)  # what it had done before was kept for whoever comes
    assert late.metadata.reply_to_message_id == first[1]
    assert ran == [0, 0, 1, 1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_was_worked_off_is_not_done_again(jobs: int) -> None:
    """Also where its reply is asked for behind another that is there."""
    clock = VirtualClock()
    speeds = Speeds(training_s=1.0, slowness=10.0, slow=frozenset({client_name(1)}))
    grid, ran = grid_of(2, clock=clock, deadline_s=100.0, speeds=speeds, jobs=jobs)
    first, second = push(grid), push(grid, round_number=2)
    clock.sleep(30.0)
    assert len(list(grid.pull_messages([second[1]]))) == 1
    assert ran == [1, 1]
    for _ in first:
        assert len(list(grid.pull_messages(first))) == 1
    third = push(grid, round_number=3)
    clock.sleep(30.0)
    for _ in third:
        assert len(list(grid.pull_messages(third))) == 1
    grid.close()
    assert sorted(ran) == [0, 0, 0, 1, 1, 1]


@pytest.mark.slow
def test_a_thousand_clients_take_the_memory_of_a_hundred() -> None:
    script = Path(__file__).resolve().parents[3] / "benchmarks" / "grid.py"
    done = subprocess.run(
        [sys.executable, str(script), "--no-ray", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["memory_growth"] <= 1.1
