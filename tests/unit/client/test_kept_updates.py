"""Of one incoming adapter a client masks one contribution, whatever its training gives the next time. (P-6.10)"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import DataError, MachineError, SecrecyError
from protocol.exchange import Contribution, Phase
from tests.unit.client.secret_cohort import Coordinator, adapter_of


class Changing(Coordinator):
    """Of which one client's training gives something else each time, and fails while it is ``failing``."""

    failing = False

    def contribution(self, one: bytes) -> Contribution:
        given = super().contribution(one)
        if one != self.ids[0]:
            return given
        if self.failing:
            raise DataError(
                "rows.jsonl: line 3: not valid JSON", "mend it", "its rows cannot be read"
            )
        self.updates[one] = self.updates[one] * np.float32(1.5)
        return Contribution(update=self.updates[one], weight=1, metrics=given.metrics)


@pytest.fixture
def coordinator(tmp_path: Path) -> Changing:
    return Changing(tmp_path)


@pytest.mark.parametrize("failing", [True, False], ids=["failed at first", "rows changed"])
def test_the_same_sum_opened_twice_is_the_same_sum(coordinator: Changing, failing: bool) -> None:
    """As a coordinator that was killed behind `unmask` asks for it: their difference shows nobody."""
    coordinator.failing = failing
    mean, metrics = coordinator.whole()
    trained, coordinator.failing = coordinator.trained, False
    coordinator.begin(2)
    again, figures = coordinator.whole()
    assert again.tobytes() == mean.tobytes()
    assert figures == metrics
    assert figures["failures"] == failing
    assert coordinator.trained == trained  # nobody trains a second time


def test_with_the_next_adapter_it_trains_again(coordinator: Changing) -> None:
    coordinator.failing = True
    coordinator.whole()
    coordinator.failing = False
    coordinator.at_round(2)
    coordinator.begin(2)
    assert coordinator.whole()[1]["failures"] == 0
    assert coordinator.trained == 10


@pytest.mark.parametrize("failing", [True, False], ids=["failed at first", "rows changed"])
def test_behind_a_void_round_the_same_adapter_gets_the_same(
    coordinator: Changing, failing: bool
) -> None:
    """A void round moves nothing: sums of both would show who gave something else to the second."""
    coordinator.failing = failing
    mean, metrics = coordinator.whole()
    coordinator.failing = False
    coordinator.at_round(2)
    coordinator.instruction = replace(coordinator.instruction, adapter_digest=adapter_of(1))
    coordinator.begin(2)
    again, figures = coordinator.whole()
    assert coordinator.trained == 5
    assert figures == metrics
    # Rounding is of the round.
    assert np.abs(again - mean).max() < 0.01 < np.abs(mean).max()


def test_it_goes_back_to_no_round_of_which_it_keeps_nothing(coordinator: Changing) -> None:
    """A first sum of round 1 may be out, of which this client does not know; then round 2 came between."""
    coordinator.share()
    boxes, one = coordinator.boxes(), coordinator.ids[0]
    coordinator.ask(one, Phase.MASK, boxes[one])
    coordinator.at_round(2)
    coordinator.begin(2)
    coordinator.share()
    boxes = coordinator.boxes()
    coordinator.ask(one, Phase.MASK, boxes[one])
    coordinator.at_round(1)
    coordinator.begin(3)
    coordinator.share()
    with pytest.raises(SecrecyError, match=r"^round\.passed"):
        coordinator.ask(one, Phase.MASK, coordinator.boxes()[one])
    assert coordinator.trained == 2


def test_who_has_lost_what_it_gave_to_an_opened_sum_helps_with_no_other(
    coordinator: Changing, tmp_path: Path
) -> None:
    coordinator.whole()
    one = coordinator.ids[0]
    (tmp_path / f"{coordinator.members[one].name}.kept").rename(tmp_path / "lost")
    coordinator.begin(2)
    cohort = coordinator.advertise()
    with pytest.raises(SecrecyError, match=r"^update\.lost"):
        coordinator.ask(one, Phase.SHARE, cohort)


def test_where_it_cannot_be_kept_nothing_is_masked(coordinator: Changing, tmp_path: Path) -> None:
    """Zeros in its place would be what it has not kept either. That hangs on the machine, and is refused."""
    coordinator.share()
    one = coordinator.ids[0]
    folder = tmp_path / f"{coordinator.members[one].name}.kept"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    before = coordinator.sessions[one]
    with pytest.raises(MachineError, match="open to other users"):
        coordinator.ask(one, Phase.MASK, coordinator.boxes()[one])
    assert coordinator.sessions[one] == before
