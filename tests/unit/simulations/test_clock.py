"""The virtual clock."""

import pytest

from simulations.clock import VirtualClock


def test_only_sleep_advances_it() -> None:
    clock = VirtualClock(5.0)
    assert clock.now() == clock.now() == 5.0
    clock.sleep(2.5)
    assert clock.now() == 7.5


def test_a_sleep_jumps_to_the_announced_event_once() -> None:
    clock = VirtualClock()
    clock.idle_until(100.0)
    clock.sleep(0.5)
    assert clock.now() == 100.0
    clock.sleep(0.5)
    assert clock.now() == 100.5


def test_of_several_events_the_first_is_waited_for() -> None:
    clock = VirtualClock()
    for moment in (100.0, 30.0, 60.0):
        clock.idle_until(moment)
    clock.sleep(0.5)
    assert clock.now() == 30.0


def test_an_event_in_the_past_does_not_turn_time_back() -> None:
    clock = VirtualClock(50.0)
    clock.idle_until(10.0)
    clock.sleep(1.0)
    assert clock.now() == 51.0


def test_time_is_not_slept_backwards() -> None:
    with pytest.raises(ValueError, match="cannot sleep"):
        VirtualClock().sleep(-1.0)
