"""A coordinator that chooses its steps at random from the protocol's messages, against honest clients.

Two things hold after every step: no two opened sums of one incoming adapter differ by fewer clients than the
least sum, and every sum that a client gave shares for is in the log that it accepts. (P-6.10, P-8.10)
"""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol.errors import RoundError, SecrecyError
from protocol.exchange import Phase
from tests.adversaries.attempts import Try
from tests.adversaries.world import MODES, RUNS, World, adapter_of
from tests.tiers import one_by_default

MEMORY = Path("/dev/shm")  # its files are forgotten with the machine, and need no disk
SEEN: Counter[str] = Counter()
EXAMPLES, STEPS = 80, 50  # of each mode; in all modes together over 10,000 steps


class RandomCoordinator(RuleBasedStateMachine):
    """Begins attempts, goes on with any of them, forks, forgets, logs true and false things."""

    mode = "signatures"

    def __init__(self) -> None:
        super().__init__()
        parent = MEMORY if MEMORY.is_dir() else None
        self.folder = tempfile.TemporaryDirectory(dir=parent)
        self.world = World(Path(self.folder.name), mode=self.mode, count=6)
        self.last_seq = dict.fromkeys(RUNS, 0)

    def teardown(self) -> None:
        for made in self.world.tries:
            SEEN["opened"] += made.opened() is not None
        SEEN.update(self.world.refusals)
        self.folder.cleanup()

    # -- attempts -----------------------------------------------------------------------------------

    @rule(
        run=st.sampled_from([RUNS[0]] * 4 + [RUNS[1]]),
        number=st.integers(1, 4),
        attempt=st.integers(1, 2),
        adapter=st.sampled_from([2] * 6 + [0, 1]),
        evaluate=st.sampled_from([False] * 4 + [True]),
        back=st.sampled_from([0] * 5 + [1]),
        phases=st.sampled_from([4, 4, 4, 4, 0, 1, 2, 3]),
        out=st.frozensets(st.integers(0, 5), max_size=2),
        late=st.frozensets(st.integers(0, 5), max_size=1),
    )
    def begin(
        self,
        run: bytes,
        number: int,
        attempt: int,
        adapter: int,
        evaluate: bool,
        back: int,
        phases: int,
        out: frozenset[int],
        late: frozenset[int],
    ) -> None:
        """An attempt with whatever numbers, among most clients, and some of its phases."""
        SEEN["steps"] += 1
        last = self.world.logs[run].adapter
        if adapter == 2 and last is not None:  # what an honest one would ask
            number, digest = last.round + 1, last.adapter_out
        else:
            digest = adapter_of(adapter)
        if not 1 <= number <= 6:
            return
        self.last_seq[run] += 1
        made = self.world.begin(
            seq=max(1, self.last_seq[run] - back),
            run=run,
            round=number,
            attempt=attempt,
            adapter_digest=digest,
            evaluate=evaluate,
        )
        ids = self.world.ids
        with suppress(RoundError, SecrecyError):
            self.world.advertise(made, [one for at, one in enumerate(ids) if at not in out])
            for _ in range(phases):
                self._advance(made, frozenset(ids[at] for at in late))

    def _advance(self, made: Try, late: frozenset[bytes] = frozenset(), **changes: Any) -> None:
        world = self.world
        if made.stage is Phase.ADVERTISE:
            world.share(made, **changes)
        elif made.stage is Phase.SHARE:
            world.mask(made, without=late, **changes)
        elif made.stage is Phase.MASK:
            world.agree(made, **changes)
        elif made.stage in (Phase.AGREE, Phase.UNMASK):
            world.unmask(made, killed=late, **changes)

    @precondition(lambda self: self.world.tries)
    @rule(
        at=st.integers(0, 30),
        phases=st.integers(1, 5),
        late=st.frozensets(st.integers(0, 5), max_size=2),
        changes=st.sampled_from(
            [{}] * 6 + [{"attempt": 2}, {"adapter_digest": adapter_of(1)}, {"round": 2}]
        ),
    )
    def go_on(self, at: int, phases: int, late: frozenset[int], changes: dict[str, Any]) -> None:
        """With any attempt, also one that was left behind; perhaps with another instruction."""
        SEEN["steps"] += 1
        made = self.world.tries[at % len(self.world.tries)]
        with suppress(RoundError, SecrecyError):
            for _ in range(phases):
                self._advance(made, frozenset(self.world.ids[each] for each in late), **changes)

    @rule(at=st.integers(0, 5))
    def forget(self, at: int) -> None:
        SEEN["steps"] += 1
        self.world.forget(self.world.ids[at])

    # -- the log ------------------------------------------------------------------------------------

    def _logged(self, at: int, since: Phase) -> Try | None:
        reached = [made for made in self.world.tries if made.stage in since_of(since)]
        return reached[at % len(reached)] if reached else None

    @rule(at=st.integers(0, 30), adapter=st.integers(0, 2))
    def log_sum(self, at: int, adapter: int) -> None:
        """The outcome of a round, with a sum that may have been asked for or not."""
        SEEN["steps"] += 1
        if (made := self._logged(at, Phase.MASK)) is None:
            return
        last = self.world.logs[made.run].adapter
        assert last is not None
        self.world.log_sum(made, last.round + 1, adapter_of(adapter))

    @rule(run=st.sampled_from(RUNS), number=st.integers(0, 4), adapter=st.integers(0, 2))
    def log_adapter(self, run: bytes, number: int, adapter: int) -> None:
        SEEN["steps"] += 1
        self.world.logs[run].add_adapter(number, adapter_of(adapter))

    @rule(at=st.integers(0, 30), revealed=st.booleans(), void=st.booleans())
    def log_abort(self, at: int, revealed: bool, void: bool) -> None:
        SEEN["steps"] += 1
        if (made := self._logged(at, Phase.MASK)) is None:
            return
        self.world.log_abort(made, revealed=revealed)
        last = self.world.logs[made.run].adapter
        if void and last is not None:
            self.world.logs[made.run].add_adapter(last.round + 1, last.adapter_out)

    @invariant()
    def no_two_sums_show_a_difference(self) -> None:
        self.world.verify_sums()


def since_of(phase: Phase) -> list[Phase]:
    order = [Phase.ADVERTISE, Phase.SHARE, Phase.MASK, Phase.AGREE, Phase.UNMASK]
    return order[order.index(phase) :]


def run_machine(mode: str, examples: int, *, derandomize: bool) -> None:
    SEEN.clear()
    machine = type("Machine", (RandomCoordinator,), {"mode": mode})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("mode", one_by_default("signatures", list(MODES)))
def test_no_order_of_messages_opens_more(mode: str) -> None:
    run_machine(mode, EXAMPLES, derandomize=True)
    # The machine is worth something while it gets far: sums are opened, and second ones refused.
    assert SEEN["steps"] >= 10_000 / len(MODES), SEEN
    assert SEEN["opened"] >= 10, SEEN
    assert {"round.revealed", "run.other", "log.adapter", "log.unrevealed"} <= SEEN.keys(), SEEN


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", list(MODES))
def test_nor_does_any_other(mode: str) -> None:
    """Other steps every time."""
    run_machine(mode, 5 * EXAMPLES, derandomize=False)
