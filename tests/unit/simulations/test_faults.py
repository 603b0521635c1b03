"""Faults by hash."""

from collections import Counter

import pytest

from simulations.clients import client_name
from simulations.faults import Fault, Faults, Speeds, slow_clients


def test_the_shares_are_the_probabilities() -> None:
    faults = Faults(seed=1, dropout=0.2, straggler=0.3)
    drawn = Counter(
        faults.of(round_number=r, attempt=1, client=client_name(c))
        for r in range(40)
        for c in range(100)
    )
    assert abs(drawn[Fault.DROPOUT] / 4000 - 0.2) < 0.03
    assert abs(drawn[Fault.STRAGGLER] / 4000 - 0.3) < 0.03


@pytest.mark.parametrize("change", [{"round_number": 2}, {"attempt": 2}, {"client": "client-0001"}])
def test_every_argument_counts(change: dict[str, object]) -> None:
    def series(**replaced: object) -> list[Fault]:
        given = {"round_number": 1, "attempt": 1, "client": "client-0000"} | replaced
        return [Faults(seed=s, dropout=0.5).of(**given) for s in range(64)]  # type: ignore[arg-type]

    assert series() == series()
    assert series() != series(**change)


def test_certain_and_impossible_faults() -> None:
    some = {"round_number": 3, "attempt": 1, "client": "x"}
    assert Faults().of(**some) is Fault.NONE  # type: ignore[arg-type]
    assert Faults(dropout=1.0).of(**some) is Fault.DROPOUT  # type: ignore[arg-type]
    assert Faults(straggler=1.0).of(**some) is Fault.STRAGGLER  # type: ignore[arg-type]


@pytest.mark.parametrize("rates", [(-0.1, 0.0), (0.0, -0.1), (0.6, 0.5)])
def test_rates_that_are_no_probabilities_are_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        Faults(dropout=rates[0], straggler=rates[1])


def test_a_share_of_the_clients_is_slow_and_the_same_ones_always() -> None:
    names = [client_name(number) for number in range(30)]
    slow = slow_clients(names, share=1 / 3, seed=4)
    assert len(slow) == 10
    assert slow == slow_clients(reversed(names), share=1 / 3, seed=4)
    assert slow != slow_clients(names, share=1 / 3, seed=5)
    assert slow_clients(names, share=0.0, seed=4) == frozenset()
    speeds = Speeds(training_s=60.0, slowness=10.0, slow=slow)
    assert Counter(map(speeds.seconds, names)) == {60.0: 20, 600.0: 10}
