"""A site that runs twice, as a table of who is heard when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.doubles import FORGET_S, Doubles

KEY = b"key"


def heard(*requests: tuple[float, str]) -> tuple[list[bool], Doubles]:
    doubles = Doubles()
    return [doubles.admits(KEY, name.encode(), at) for at, name in requests], doubles


def test_the_second_of_two_is_refused_once_the_first_is_heard_again() -> None:
    admitted, doubles = heard((0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a"), (5, "b"))
    assert admitted == [True, True, True, False, True, False]
    assert doubles.keys(6) == [KEY]
    assert doubles.keys(5 + FORGET_S + 1) == []


def test_when_the_first_ends_the_other_takes_its_place() -> None:
    admitted, doubles = heard((0, "a"), (1, "b"), (2, "a"), (3, "b"), (3 + FORGET_S, "b"))
    assert admitted == [True, True, True, False, True]
    assert doubles.keys(4 + FORGET_S) == []


def test_a_copy_that_was_stopped_is_forgotten() -> None:
    end = 3 + FORGET_S + 1
    beats = [(float(at), "a") for at in range(4, int(end) + 1, 10)]
    admitted, doubles = heard(
        (0, "a"), (1, "b"), (2, "a"), (3, "b"), *beats, (end, "a"), (end + 1, "c")
    )
    assert admitted[-1]
    assert doubles.keys(end + 1) == []


@given(st.lists(st.tuples(st.floats(0, 200), st.sampled_from("abcdef")), max_size=40))
def test_a_site_that_only_starts_again_is_never_refused(steps: list[tuple[float, str]]) -> None:
    """However often and at whatever moments: an instance that has ended is not heard again."""
    times = sorted(at for at, _ in steps)
    names = sorted(name for _, name in steps)
    admitted, doubles = heard(*zip(times, names, strict=True))
    assert all(admitted)
    assert all(doubles.keys(at) == [] for at in times)


def test_sites_of_other_keys_and_without_an_instance_are_let_through() -> None:
    doubles = Doubles()
    for at in range(6):
        assert doubles.admits(KEY, b"", at)
        assert doubles.admits(b"x", b"a", at)
        assert doubles.admits(b"y", b"b", at)
