"""One secret sum of an attempt: a group of clients, the core's state machine, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from protocol.errors import RoundError, UpdateError
from protocol.layout import Vector
from protocol.secagg import coordinator as core
from protocol.secagg.primitives import Word
from protocol.secagg.task import Exact, Noisy

T = TypeVar("T")
Messages = Mapping[bytes, bytes]


class SecretSum:
    """The sum of group ``group``. A failure ends this sum; the attempt goes on with the others.

    ``awaited``: how many masked vectors it waits for, where that is fewer than all.
    """

    def __init__(
        self,
        group: int,
        parameters: core.Parameters,
        names: Mapping[bytes, str],
        *,
        awaited: int,
    ) -> None:
        self.group, self.names, self.awaited = group, dict(names), awaited
        self.core = core.Attempt(parameters)
        self.encoding: Exact | Noisy | None = None
        self.failure: RoundError | None = None
        self.refused = False  # opened, and not what honest clients can have sent
        self.words: Word | None = None
        self.mean: Vector | None = None
        self.metrics: dict[str, float] = {}

    @property
    def alive(self) -> tuple[str, ...]:
        """Whose updates are in the sum, by name."""
        return tuple(sorted(self.names[one] for one in self.core.alive))

    @property
    def lost(self) -> dict[str, str]:
        """Who was lost after the attempt began, and in which phase."""
        return {self.names[one]: phase.name.lower() for one, phase in self.core.lost.items()}

    @property
    def has_enough(self) -> bool:
        """Whether nobody else's masked vector is waited for: the sum opens over those that are here."""
        if self.failure is not None:
            return True
        return len(self.core.masked) >= self.awaited and self.core.can_open

    @property
    def asked(self) -> bool:
        """Whether its members were asked to open it."""
        return self.core.phase is core.Phase.UNMASK

    @property
    def liars(self) -> list[str]:
        """Who sent wrong shares, or was given them."""
        return sorted(self.names[one] for one in self.core.liars)

    def guarded(self, work: Callable[[], T]) -> T | None:
        """``work``'s result; None, and the failure kept, when the sum cannot be."""
        if self.failure is not None:
            return None
        try:
            return work()
        except RoundError as error:
            self.failure = error
            return None

    def open(self) -> None:
        """Take the masks off and decode; a sum that is impossible has failed. (P-6.17)"""
        words = self.guarded(self.core.unmask)
        if words is None or self.encoding is None:
            return
        try:
            self.mean, self.metrics = self.encoding.opened(words, len(self.core.alive))
            self.words = words
        except UpdateError as error:
            self.failure, self.refused = RoundError(error.cause, error.remedy), True
