"""Deadlines, grids that fail to send, strange names and strange bytes: the round goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from protocol import wire
from protocol.errors import RoundError
from protocol.manifest import Manifest
from protocol.plan import Plan
from server.coordinator import Outcome, run_rounds
from server.rounds import naming
from server.store import RunStore
from simulations.clock import VirtualClock
from simulations.grid import InProcessGrid

MakePlan = Callable[..., Plan]
ALL = {"size": 6, "quorum": 4, "deadline_s": 30.0}


class EagerGrid(InProcessGrid):
    """Runs nobody twice, holds replies back for seconds or for ever, and may fail to send."""

    def __init__(self, population: Any, clock: VirtualClock) -> None:
        super().__init__(population.app(), len(population.names), clock=clock, deadline_s=30.0)
        self._virtual = clock
        self.delay: dict[str, float] = {}
        self.unsent: set[str] = set()
        self.refuse_all = False
        self.names = {1000 + i: name for i, name in enumerate(population.names)}
        self.ready: dict[str, float] = {}
        self.asked_for: list[list[str]] = []
        self.contents: set[int] = set()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[Any]:
        messages = list(messages)
        if messages[0].metadata.message_type == wire.HELLO:
            return super().push_messages(messages)
        if self.refuse_all:
            return []
        self.contents |= {id(message.content) for message in messages}
        ids: list[Any] = []
        for message in messages:
            name = self.names[message.metadata.dst_node_id]
            if name in self.unsent:
                ids.append(None)
                continue
            (pushed,) = super().push_messages([message])
            self.ready[pushed] = self._virtual.now() + self.delay.get(name, 0.0)
            ids.append(pushed)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        assert None not in ids  # Flower's HTTP grid cannot take it
        self.asked_for.append(ids)
        now = self._virtual.now()
        return super().pull_messages([i for i in ids if self.ready.get(i, 0.0) <= now])


@pytest.fixture
def go(manifest: Manifest, tmp_path: Path) -> Callable[..., Outcome]:
    def run(population: Any, grid: EagerGrid, clock: VirtualClock) -> Outcome:
        store = RunStore(tmp_path / "r")
        try:
            return run_rounds(
                plan=population.plan,
                manifest=manifest,
                grid=grid,
                store=store,
                clock=clock,
                listener=None,
            )
        finally:
            store.close()

    return run


def record(folder: Path, name: str = "0001/record.json") -> dict[str, Any]:
    return dict(json.loads((folder / "r" / "rounds" / name).read_text()))


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {drop["client"]: drop["reason"] for drop in found["dropped"]}


def test_silent_and_late_clients_are_told_apart_at_the_deadline(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population, clock = populate(make_plan(cohort=ALL, rounds=1)), VirtualClock()
    grid = EagerGrid(population, clock)
    grid.delay = {"bo": 1e9, "dora": 30.0, "eve": 29.0}
    go(population, grid, clock)
    found = record(tmp_path)
    assert reasons(found) == {"bo": "no-reply", "dora": "late"}
    assert found["used"] == ["ann", "cyd", "eve", "flo"]
    assert found["seconds"] == pytest.approx(30.0, abs=0.5)


def test_a_reply_that_a_slow_pull_brings_after_the_deadline_is_late(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population, clock = populate(make_plan(cohort=ALL, rounds=1)), VirtualClock()

    def slow(message: Message, data: bytes) -> Message:
        clock.sleep(31.0)
        array = Array(np.frombuffer(data, np.uint8))
        return Message(RecordDict({wire.MASKED: ArrayRecord({"masked": array})}), reply_to=message)

    population.odd["flo"] = slow  # the last one asked
    go(population, EagerGrid(population, clock), clock)
    assert reasons(record(tmp_path)) == {"flo": "late"}


def test_a_round_closes_at_once_when_all_have_answered(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population, clock = populate(make_plan(cohort=ALL, rounds=1)), VirtualClock()
    grid = EagerGrid(population, clock)
    go(population, grid, clock)
    assert record(tmp_path)["seconds"] == 0.0
    trained = grid.asked_for[-6:]
    assert [len(ids) for ids in trained] == [6, 5, 4, 3, 2, 1]  # only who is still waited for
    assert len(grid.contents) == 1  # one shared content for everybody


def test_a_request_that_cannot_be_sent_costs_that_client_only(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population, clock = populate(make_plan(cohort=ALL, rounds=1)), VirtualClock()
    grid = EagerGrid(population, clock)
    grid.unsent = {"cyd"}
    go(population, grid, clock)
    assert reasons(record(tmp_path)) == {"cyd": "no-reply"}


def test_a_grid_that_refuses_every_message_fails_the_round(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population, clock = populate(make_plan(cohort=ALL | {"attempts": 1}, rounds=1)), VirtualClock()
    grid = EagerGrid(population, clock)
    grid.refuse_all = True
    with pytest.raises(RoundError, match="quorum of 4"):
        go(population, grid, clock)
    failed = record(tmp_path, "0001.attempt1.json")
    assert set(reasons(failed).values()) == {"no-reply"}
    assert (
        failed["adapter_out"]
        == failed["adapter_in"]
        == record(tmp_path, "0000/record.json")["adapter_out"]
    )


def test_a_second_attempt_asks_another_cohort_and_its_record_says_so(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    cohort = {"size": 3, "quorum": 3, "deadline_s": 30.0, "attempts": 9}
    population, clock = populate(make_plan(cohort=cohort, rounds=1)), VirtualClock()
    grid = EagerGrid(population, clock)
    first = _drawn(population.plan, attempt=1)
    grid.delay = {first[0]: 1e9}
    go(population, grid, clock)
    found = record(tmp_path)
    assert found["attempt"] > 1
    assert tuple(found["expected"]) == _drawn(population.plan, attempt=found["attempt"]) != first
    assert reasons(record(tmp_path, "0001.attempt1.json")) == {first[0]: "no-reply"}


def test_a_line_for_the_operator_is_short_and_clean() -> None:
    line = naming({f"c{i}": "\x1b[2J" + "x" * 900 for i in range(9)})
    assert line.startswith(" (c0: ?[2Jx")
    assert line.endswith("; and 4 more)")
    assert len(line) < 700
    assert line.isprintable()
    assert naming({}) == ""


def _drawn(plan: Plan, *, attempt: int) -> tuple[str, ...]:
    from server.rounds import draw_cohort

    names = ["ann", "bo", "cyd", "dora", "eve", "flo"]
    return draw_cohort(
        names, size=plan.cohort.size, seed=plan.seed, round_number=1, attempt=attempt
    )


def test_too_few_clients_stop_the_run_before_anybody_trains(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population, clock = populate(make_plan(cohort=ALL), ["ann", "bo", "cyd"]), VirtualClock()
    with pytest.raises(RoundError, match="3 clients are there, the quorum is 4"):
        go(population, EagerGrid(population, clock), clock)
    assert population.asked == []
    assert [path.name for path in (tmp_path / "r" / "rounds").iterdir()] == ["0000"]
    assert clock.now() >= population.plan.cohort.deadline_s  # it waited for them


def test_a_client_that_restarts_is_waited_for(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path
) -> None:
    population = populate(make_plan(cohort=ALL, rounds=1), ["ann", "bo", "cyd", "dora"])
    clock = VirtualClock()

    class Restarting(EagerGrid):
        """One node is not connected for a while."""

        def get_node_ids(self) -> list[int]:
            nodes = list(super().get_node_ids())
            return nodes if clock.now() >= 20.0 else nodes[:-1]

        def get_nodes(self) -> list[Any]:
            there = self.get_node_ids()
            return [node for node in super().get_nodes() if node.node_id in there]

    go(population, Restarting(population, clock), clock)
    found = record(tmp_path)
    assert sorted(found["used"]) == ["ann", "bo", "cyd", "dora"]
    assert (found["attempt"], found["started_at"]) == (1, pytest.approx(20, abs=1))


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_a_name_that_no_file_could_have_is_kept_out(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path, name: str
) -> None:
    population = populate(make_plan(rounds=1), ["ann", "bo", name])
    clock = VirtualClock()
    go(population, EagerGrid(population, clock), clock)
    found = record(tmp_path)
    assert found["expected"] == ["ann", "bo"]
    assert "its name is" in found["kept_out"]["node 1002"]


def _npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _as_array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=data)


FLOATS = io.BytesIO()
np.save(FLOATS, np.zeros(3, np.float32))
HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, ), }"
PICKLE = "{'descr': '|O', 'fortran_order': False, 'shape': (1, ), }"


@pytest.mark.parametrize(
    "data",
    [b"", b"no npy", _npy(HUGE), _npy(PICKLE), _npy("{'descr'"), FLOATS.getvalue()],
    ids=["empty", "text", "huge", "pickle", "broken", "floats"],
)
def test_a_strangers_array_is_invalid_and_nothing_more(
    make_plan: MakePlan, populate: Any, go: Any, tmp_path: Path, data: bytes
) -> None:
    population, clock = populate(make_plan(cohort=ALL, rounds=1)), VirtualClock()
    population.odd["flo"] = lambda message, _: Message(
        RecordDict({wire.MASKED: ArrayRecord({"masked": _as_array(data)})}), reply_to=message
    )
    go(population, EagerGrid(population, clock), clock)
    assert reasons(record(tmp_path)) == {"flo": "invalid"}


@pytest.mark.parametrize(("every", "expected"), [(1, [True, True, True]), (2, [False, True, True])])
def test_rounds_that_are_due_and_the_last_are_evaluated(
    make_plan: MakePlan, populate: Any, go: Any, every: int, expected: list[bool]
) -> None:
    population, clock = populate(make_plan(evaluation={"every": every})), VirtualClock()
    told: dict[int, bool] = {}

    def remember(message: Message, data: bytes) -> Message:
        instruction = message.content.config_records[wire.INSTRUCTION]
        told[int(instruction["round"])] = bool(instruction["evaluate"])  # type: ignore[arg-type]
        array = Array(np.frombuffer(data, np.uint8))
        return Message(RecordDict({wire.MASKED: ArrayRecord({"masked": array})}), reply_to=message)

    population.odd = dict.fromkeys(population.names, remember)
    go(population, EagerGrid(population, clock), clock)
    assert [told[n] for n in (1, 2, 3)] == expected
