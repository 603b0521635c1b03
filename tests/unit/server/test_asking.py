"""Requests go out and replies come in batch by batch: none is lost, and memory is a batch's."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from protocol import wire
from server import asking
from server.asking import BATCH, ask
from simulations.clock import VirtualClock
from simulations.grid import FIRST_NODE, InProcessGrid
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import make_run

SECONDS = 30.0


def echo() -> ClientApp:
    app = ClientApp()

    @app.train("mask")
    def mask(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return app


class SlowGrid(InProcessGrid):
    """Replies come so many virtual seconds after their request; those that are there come at once."""

    def __init__(self, count: int, clock: VirtualClock, delays: Mapping[int, float]) -> None:
        super().__init__(echo(), count, clock=clock, deadline_s=SECONDS)
        self._virtual, self._delays = clock, delays
        self.pushed: list[int] = []  # nodes, in order
        self.at_once: list[int] = []
        self.pulled: list[int] = []
        self._ready: dict[str, float] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.at_once.append(len(messages))
        ids = list(super().push_messages(messages))
        for name, message in zip(ids, messages, strict=True):
            client = message.metadata.dst_node_id - FIRST_NODE
            self.pushed.append(client)
            self._ready[name] = self._virtual.now() + self._delays.get(client, 0.0)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = list(message_ids)
        self.pulled.append(len(names))
        now, replies = self._virtual.now(), []
        for name in names:
            if self._ready.get(name, np.inf) <= now:
                replies += super().pull_messages([name])
        return replies


class Live:
    """Contents that are made when they are asked for, and how many are still there."""

    def __init__(self, count: int, size: int = 8) -> None:
        self.count, self.size, self.most = count, size, 0
        self._alive: weakref.WeakValueDictionary[int, RecordDict] = weakref.WeakValueDictionary()

    def __iter__(self) -> Iterator[tuple[str, RecordDict]]:
        for client in range(self.count):
            data = Array(np.full(self.size, client % 256, np.uint8))
            content = RecordDict({wire.SECAGG: ArrayRecord({"message": data})})
            self._alive[client] = content
            self.most = max(self.most, len(self._alive))
            yield str(client), content
            del content


def asked(
    contents: Iterable[tuple[str, RecordDict]],
    grid: InProcessGrid,
    clock: VirtualClock,
    count: int,
    **more: Any,
) -> tuple[dict[str, bytes], frozenset[str], list[str]]:
    """What each answered, who was late, whose request could not be sent."""
    replies: dict[str, bytes] = {}
    unsent: list[str] = []

    def take(client: str, reply: Message) -> None:
        assert client not in replies
        replies[client] = reply.content.array_records[wire.SECAGG]["message"].numpy().tobytes()

    missing = ask(
        grid,
        clock,
        contents,
        nodes={str(client): FIRST_NODE + client for client in range(count)},
        kind="train.mask",
        group="1",
        seconds=SECONDS,
        take=take,
        unsent=unsent.append,
        **more,
    )
    assert not missing.unawaited
    return replies, missing.late, unsent


def test_memory_holds_a_batch_of_thousands() -> None:
    """In the project's own grid, which keeps a request until its client has run."""
    clock, contents = VirtualClock(), Live(1000)
    grid = InProcessGrid(echo(), 1000, clock=clock, deadline_s=SECONDS)
    replies, late, unsent = asked(contents, grid, clock, 1000)
    assert list(replies) == [str(client) for client in range(1000)]
    assert (late, unsent) == (frozenset(), [])
    assert replies["999"] == bytes([999 % 256] * 8)
    assert contents.most < 2 * BATCH  # some that cycles keep until they are collected


def test_a_batch_ends_where_its_bytes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BATCH_BYTES", 10_000)
    clock, contents = VirtualClock(), Live(50, size=3000)
    grid = SlowGrid(50, clock, {})
    replies, _, _ = asked(contents, grid, clock, 50)
    assert len(replies) == 50
    assert set(grid.at_once) == {
        4,
        2,
    }  # three are within it, with the header of each array four are not


def test_what_all_have_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter, a cohort's adverts, or a text: one object in every content."""
    monkeypatch.setattr(asking, "BATCH_BYTES", 10_000)
    clock, data, text = VirtualClock(), Array(np.zeros(8000, np.uint8)), "x" * 1000
    contents = [
        (
            str(client),
            RecordDict(
                {
                    wire.SECAGG: ArrayRecord({"message": data}),
                    wire.LOG: ConfigRecord({"text": text}),
                }
            ),
        )
        for client in range(BATCH + 1)
    ]
    grid = SlowGrid(BATCH + 1, clock, {})
    asked(contents, grid, clock, BATCH + 1)
    assert grid.at_once == [BATCH, 1]


@given(
    clients=st.integers(0, 12),
    batch=st.integers(1, 7),
    delays=st.dictionaries(
        st.integers(0, 11), st.sampled_from([0.0, 0.1, 5.0, 29.9, 30.0, 31.0, 1e9])
    ),
)
def test_nobody_is_lost_doubled_or_taken_late(
    clients: int, batch: int, delays: dict[int, float]
) -> None:
    """Whatever comes when: what earlier batches answer while later ones are sent is taken as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "BATCH", batch)
        clock = VirtualClock()
        grid = SlowGrid(clients, clock, delays)
        replies, late, _ = asked(Live(clients), grid, clock, clients)
    in_time = {str(client) for client in range(clients) if delays.get(client, 0.0) < SECONDS}
    assert set(replies) == in_time
    assert late <= {str(client) for client in range(clients)} - in_time
    assert late >= {str(c) for c in range(clients) if delays.get(c) == SECONDS}
    assert grid.pushed == list(range(clients))
    assert all(replies[client] == bytes([int(client)] * 8) for client in replies)
    assert max([*grid.at_once, *grid.pulled], default=0) <= batch


@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_it_closes_when_it_is_enough_and_turns_away_nobody_who_has_answered(delay: float) -> None:
    """All are asked; those of other batches that have answered as well are taken."""
    count, clock, taken = 3 * BATCH, VirtualClock(), set[str]()
    grid = SlowGrid(count, clock, {**dict.fromkeys(range(count), delay), 3: 1e9, count - 1: 1e9})
    missing = ask(
        grid,
        clock,
        Live(count),
        nodes={str(client): FIRST_NODE + client for client in range(count)},
        kind="train.mask",
        group="1",
        seconds=SECONDS,
        take=lambda client, reply: taken.add(client),
        unsent=lambda client: None,
        enough=lambda: len(taken) >= 2,
    )
    assert grid.pushed == list(range(count))
    first = {str(client) for client in range(BATCH)} - {"3"}
    assert taken == (first if not delay else {str(c) for c in range(count - 1)} - {"3"})
    assert taken | missing.unawaited.keys() == {str(client) for client in range(count)}
    assert (missing.late, missing.deadline) == (frozenset(), SECONDS)


def test_the_deadline_counts_from_the_last_request() -> None:
    """Sending takes half a minute: who was asked last has as long as everybody."""
    clock = VirtualClock()
    grid = SlowGrid(2 * BATCH, clock, {0: 40.0, 1: 61.0, 2 * BATCH - 1: 29.0})

    def slowly() -> Iterator[tuple[str, RecordDict]]:
        for client, content in Live(2 * BATCH):
            if int(client) == BATCH:
                clock.sleep(30.0)
            yield client, content

    replies, late, _ = asked(slowly(), grid, clock, 2 * BATCH)
    assert {"0", str(2 * BATCH - 1)} <= set(replies)
    assert set(map(str, range(2 * BATCH))) - set(replies) == {"1"}
    grid = SlowGrid(2 * BATCH, VirtualClock(), {})
    clock = VirtualClock(100.0)
    replies, late, _ = asked(Live(BATCH), SlowGrid(BATCH, clock, {}), clock, BATCH, since=60.0)
    assert (len(replies), len(late)) == (0, BATCH)  # time was up before


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """What was there before is not looked at by the collector."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collections")
def test_a_run_in_small_batches_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters, checkpoints, who is lost and why: as if all had been asked at once."""
    outcomes = []
    for batch in (BATCH, 3):
        monkeypatch.setattr(asking, "BATCH", batch)
        most = live_messages(monkeypatch)
        run = make_run(tmp_path / str(batch), count=8, cohort=EIGHT, lost=some_are_lost, rounds=1)
        assert most() == min(batch, 8)
        outcomes.append(outcome(run))
    assert outcomes[0] == outcomes[1]
    assert any(dropped for _, dropped, _, _ in outcomes[0])


def outcome(run: Path) -> list[tuple[Any, Any, Any, bytes]]:
    """Of each round who is in it, who is not and why, and the checkpoint."""
    found = []
    for folder in sorted((run / "rounds").glob("[0-9]*[0-9]")):
        record = json.loads((folder / "record.json").read_text())
        checkpoint = (folder / "checkpoint.safetensors").read_bytes()
        found.append((record["used"], record["dropped"], record.get("lost"), checkpoint))
    return found


def live_messages(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the secret sum's requests that are there at once; the most so far."""
    alive: weakref.WeakValueDictionary[int, RecordDict] = weakref.WeakValueDictionary()
    number, most = count(), 0
    push = InProcessGrid.push_messages

    def counting(self: InProcessGrid, messages: Iterable[Message]) -> Iterable[str]:
        nonlocal most
        messages = list(messages)
        alive.update({next(number): m.content for m in messages if wire.SECAGG in m.content})
        if len(alive) > most:
            gc.collect()  # what the frames of an exception hold is garbage
            most = max(most, len(alive))
        return push(self, messages)

    monkeypatch.setattr(InProcessGrid, "push_messages", counting)
    return lambda: most
