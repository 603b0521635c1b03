"""Messages that wait for an actor, and how many of them one takes at a time.

To call an actor costs some milliseconds, whatever it does. Of messages that take less than that (all phases
of a secret sum but training) an actor is sent several; of those that take long one, so that no actor has a
line of them while another has nothing to do.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message

from simulations.ray_actor import Answer, Call

MOST = 16  # messages of a batch
BATCH_S = 0.05  # that a batch may take
Actor = TypeVar("Actor")


@dataclass(eq=False)
class Task:
    """A message for a client, and what came of it: an answer or an error.

    ``woken``: for whoever waits for it: it has ended, or it is the first to wait and an actor is idle.
    """

    message: Message
    call: Call
    losses: int = 0  # of actors that it was sent to
    answer: Answer | None = None
    error: BaseException | None = None
    woken: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether something came of it."""
        return self.answer is not None or self.error is not None


class Batches(Generic[Actor]):
    """Tasks that wait, in the order in which they came, and actors that are idle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._idle: list[Actor] = []
        self._seconds: dict[str, float] = {}  # of a message, by kind, as the last batch took them
        self._kind = ""

    def put(self, task: Task, *, first: bool = False) -> None:
        """Let it wait; ``first`` before all others."""
        with self._lock:
            self._kind = task.call.kind
            if first:
                self._waiting.appendleft(task)
            else:
                self._waiting.append(task)
            self._wake()

    def free(self, actor: Actor) -> None:
        """It is idle."""
        with self._lock:
            self._idle.append(actor)
            self._wake()

    def take(self) -> tuple[Actor, list[Task]] | None:
        """An idle actor, and for it the first that waits and more of its kind, where there are both.

        A task that has lost an actor is alone: it may be what ends them.
        """
        with self._lock:
            if not self._waiting or not self._idle:
                return None
            batch = [self._waiting.popleft()]
            size = 1 if batch[0].losses else self.size(batch[0].call.kind)
            while len(batch) < size and self._waiting and self._fits(batch[0], self._waiting[0]):
                batch.append(self._waiting.popleft())
            actor = self._idle.pop()
            self._wake()
            return actor, batch

    def _wake(self) -> None:
        """Whoever waits for the first task may take it and those behind it."""
        if self._waiting and self._idle:
            self._waiting[0].woken.set()

    def _fits(self, first: Task, other: Task) -> bool:
        return other.call.kind == first.call.kind and not other.losses

    def size(self, kind: str = "") -> int:
        """Messages of a kind that a batch has room for; without one, of the last that came."""
        seconds = self._seconds.get(kind or self._kind)
        return 1 if seconds is None else max(1, min(MOST, int(BATCH_S / max(seconds, 1e-6))))

    def answered(self, batch: list[Task], answers: list[Answer], seconds: float) -> None:
        """What came of a batch, and the seconds that it took."""
        self._seconds[batch[0].call.kind] = seconds / len(batch)
        for task, answer in zip(batch, answers, strict=True):
            task.answer = answer
            task.woken.set()

    def failed(self, tasks: list[Task], error: BaseException) -> None:
        """These come to nothing."""
        for task in tasks:
            task.error = error
            task.woken.set()
