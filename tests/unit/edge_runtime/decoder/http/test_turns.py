"""Turns: who writes when, who waits, and what becomes of a text that nobody wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from edge_runtime.decoder.generation import Step
from edge_runtime.decoder.http.turns import EndedError, FullError, Turn, Turns
from tests.text_server import until


class Text:
    """Steps that are written down with their name, behind a gate."""

    def __init__(self, name: str, log: list[str], count: int = 3) -> None:
        self.name, self.log, self.count = name, log, count
        self.heard: list[Step | Exception] = []
        self.gate, self.over = threading.Event(), threading.Event()

    def steps(self) -> Iterator[Step]:
        try:
            self.gate.wait(10)
            for index in range(1, self.count + 1):
                self.log.append(f"{self.name}{index}")
                yield Step(token=index, text="", finish="length" if index == self.count else "")
        finally:
            self.log.append(f"{self.name}.")
            self.over.set()

    def begin(self, turns: Turns, turn: Turn, *, wait: bool = False) -> None:
        if not wait:
            self.gate.set()
        turns.begin(turn, self.steps(), self.heard.append)


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns(queue=2, at_once=2)
    yield turns
    turns.end()


def test_texts_take_turns_and_others_wait_in_order(turns: Turns) -> None:
    log: list[str] = []
    texts = [Text(name, log) for name in "abcd"]
    with ExitStack() as stack:
        for text in texts:
            text.begin(turns, stack.enter_context(turns.place()), wait=text is texts[0])
        with pytest.raises(FullError), turns.place():
            pass
        texts[0].gate.set()
        assert until(lambda: turns.places == 0)
        # A place that becomes free goes to who waits longest, behind those who write.
        assert "".join(log) == "a1b1a2b2a3a.b3b.c1d1c2d2c3c.d3d."
        assert [len(text.heard) for text in texts] == [3] * 4
    assert turns.places == 0


def test_who_leaves_is_not_written(turns: Turns) -> None:
    log: list[str] = []
    first, second, third = (Text(name, log, 10**9) for name in "abc")
    with turns.place() as a, turns.place() as b:
        first.begin(turns, a)
        second.begin(turns, b)
        with turns.place() as c, turns.place():
            third.begin(turns, c)  # waits
            assert turns.places == 4
        assert turns.places == 2
        assert until(lambda: len(first.heard) > 5)
        turns.leave(a)
        turns.leave(a)
        assert until(lambda: turns.places == 1)
        count = len(first.heard)
        assert until(lambda: len(second.heard) > count + 5)
        assert len(first.heard) == count
        assert log.count("a.") == 1
    assert until(lambda: turns.places == 0)
    assert third.heard == []
    assert until(lambda: log.count("b.") == 1)


def test_an_error_ends_its_own_text(turns: Turns) -> None:
    def fails() -> Iterator[Step]:
        yield Step(token=1, text="")
        raise ZeroDivisionError

    def deaf(item: Step | Exception) -> None:
        raise RuntimeError("the event loop is closed")

    heard: list[Step | Exception] = []
    log: list[str] = []
    with turns.place() as a, turns.place() as b, turns.place() as c:
        turns.begin(a, fails(), heard.append)
        text = Text("b", log, 50)
        text.begin(turns, b)
        unheard = Text("c", log, 50)
        unheard.gate.set()
        turns.begin(c, unheard.steps(), deaf)
        assert until(lambda: turns.places == 0)
    assert [type(item) for item in heard] == [Step, ZeroDivisionError]
    assert len(text.heard) == 50
    assert [entry for entry in log if entry[0] == "c"] == ["c1", "c."]


def test_the_end_ends_every_text(turns: Turns) -> None:
    log: list[str] = []
    with ExitStack() as stack:
        texts = [Text(name, log, 10**9) for name in "abc"]
        for text in texts:
            text.begin(turns, stack.enter_context(turns.place()))
        assert until(lambda: len(texts[0].heard) > 3)
        late = stack.enter_context(turns.place())
        turns.end()
        for text in texts:
            assert isinstance(text.heard[-1], EndedError)
        with pytest.raises(EndedError):
            Text("d", log).begin(turns, late)
        with pytest.raises(FullError), turns.place():
            pass


def test_places_hold_with_many_threads() -> None:
    turns = Turns(queue=3, at_once=2)
    most: list[int] = []
    log: list[str] = []

    def ask(number: int) -> None:
        for round_ in range(30):
            try:
                with turns.place() as turn:
                    text = Text("x", log, 4)
                    text.begin(turns, turn)
                    most.append(turns.places)
                    if (number + round_) % 3:
                        text.over.wait(10)
            except FullError:
                time.sleep(0.001)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert until(lambda: turns.places == 0)
    assert max(most) <= 5
    turns.end()
