"""Work that is begun before anybody asks for its result, in threads: clients that train side by side.

ONNX Runtime and numpy release the interpreter while they compute. What a client computes hangs on nobody
else, and results are handed out in the order in which they are asked for, so the number of threads changes
nothing but the time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from client.leaving import Leaving

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """Runs at most ``jobs`` pieces of work at a time; what is finished and not asked for is as much again.

    With one job nothing runs before it is asked for, and no thread is started. Pieces with the same ``owner``
    run one after the other, in the order in which they were begun: nobody may ask for the first of them.
    """

    def __init__(
        self,
        jobs: int,
        owner: Callable[[str], Hashable] = str,
        at_once: Callable[[], int] | None = None,
    ) -> None:
        """``at_once``: how many of the jobs are worth it now; all without it.

        Raises ValueError for fewer than one job.
        """
        if jobs < 1:
            raise ValueError(f"{jobs} jobs")
        self._jobs, self._owner, self._at_once = jobs, owner, at_once
        self._pool = ThreadPoolExecutor(jobs, "client") if jobs > 1 else None
        self._begun: dict[str, Future[Result]] = {}
        self._leaving = Leaving()

    @property
    def most(self) -> int:
        """Pieces that are begun and not asked for, at the moment."""
        jobs = self._jobs if self._at_once is None else self._at_once()
        return 2 * jobs if self._jobs > 1 else 1

    def first(self, names: Sequence[str], work: Callable[[str], Result]) -> Result:
        """The result of ``work`` for the first of ``names``; for up to ``most`` of them it is begun."""
        if self._pool is None:
            return work(names[0])
        for name in names[: self.most]:
            if name not in self._begun:
                self._begun[name] = self._submitted(self._pool, work, name)
        return self._begun.pop(names[0]).result()

    def _submitted(
        self, pool: ThreadPoolExecutor, work: Callable[[str], Result], name: str
    ) -> Future[Result]:
        owner = self._owner(name)
        before = [each for other, each in self._begun.items() if self._owner(other) == owner]

        def in_turn(name: str) -> Result:
            wait(before)  # threads take work in order: each of these has one, or has had it
            return work(name)

        return pool.submit(self._leaving.heeded, in_turn, name)

    def forget(self, name: str) -> None:
        """Nobody will ask for it any more; what runs already has ended when this returns."""
        begun = self._begun.pop(name, None)
        if begun and not begun.cancel():
            wait([begun])

    def close(self) -> None:
        """Begin nothing more; what is training ends at its next step."""
        if self._pool is not None:
            self._leaving.now()
            self._pool.shutdown(cancel_futures=True)
            self._begun.clear()
