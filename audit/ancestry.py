"""Withdrawals that touch an adapter: in its run's log, and in those of the runs before. (P-8.18)

By the logs as they are now; whether their sums hold is for :mod:`audit.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from audit.continued import check_start
from audit.published import Run
from audit.report import Withdrawn
from audit.withdrawals import withdrawn
from protocol.errors import ProofError


@dataclass(frozen=True, kw_only=True)
class Touching:
    """A client's withdrawal in the log ``origin``, of whose run round ``number`` holds its updates."""

    origin: str
    number: int
    withdrawn: Withdrawn

    def __str__(self) -> str:
        """For people, and for evidence."""
        return f"{self.withdrawn.client} (leaf {self.withdrawn.leaf} of {self.origin})"


def touching(run: Run, number: int, before: Sequence[Run] = ()) -> list[Touching]:
    """The withdrawals whose updates are in the adapter of round ``number``.

    ``before`` are the runs that this one goes on from, the latest first. Raises ProofError for one that is
    not; how many are not given is :func:`not_named`.
    """
    return [
        Touching(origin=each.copy.checkpoint.origin, number=taken, withdrawn=one)
        for each, taken in _line(run, number, before)
        for one in withdrawn(each)
        if one.first is not None and one.first <= taken
    ]


def not_named(run: Run, before: Sequence[Run]) -> int:
    """How many runs the plan goes on from beside those ``before``."""
    start = run.plan.start
    return (0 if start is None else len(start.plans)) - len(before)


def _line(run: Run, number: int, before: Sequence[Run]) -> Iterator[tuple[Run, int]]:
    """Each run with the round whose adapter is descended from. Raises ProofError."""
    yield run, number
    for earlier in before:
        start = run.plan.start
        if start is None or start.plans[-1] != earlier.plan_digest:
            raise ProofError(
                f"{earlier.source.where} is not the run that {run.source.where} goes on from",
                "name that one, and after it those before: --before",
            )
        check_start(run, earlier, start)
        yield earlier, start.round
        run = earlier
