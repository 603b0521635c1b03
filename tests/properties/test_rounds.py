"""Laws of a round: everybody expected ends in exactly one place, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.plan_sections import Cohort
from server.rounds import (
    Collecting,
    Complete,
    Failed,
    Reason,
    deal_groups,
    draw_cohort,
)

names = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=8, unique=True)


@given(names, st.data())
def test_used_and_dropped_are_exactly_expected(cohort: list[str], data: st.DataObject) -> None:
    quorum = data.draw(st.integers(1, len(cohort)))
    state = Collecting(sorted(cohort), quorum=quorum)
    late, unawaited = set(), set()
    for client in data.draw(st.permutations(sorted(cohort))):
        match data.draw(
            st.sampled_from(["accept", "error", "invalid", "silent", "late", "unawaited"])
        ):
            case "accept":
                state.accept(client)
            case "error":
                state.drop(client, Reason.ERROR, "x")
            case "invalid":
                state.drop(client, Reason.INVALID, "x")
            case "late":
                late.add(client)
            case "unawaited":
                unawaited.add(client)
    closed = state.close(late=late, unawaited=unawaited)
    gone = [dropped.client for dropped in closed.dropped]
    assert sorted([*closed.used, *gone]) == sorted(cohort)
    assert isinstance(closed, Complete if len(closed.used) >= quorum else Failed)
    assert {d.client for d in closed.dropped if d.reason is Reason.LATE} == late
    assert {d.client for d in closed.dropped if d.reason is Reason.UNAWAITED} == unawaited


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 120), st.integers(1, 9))
def test_groups_wait_for_as_many_as_the_round_does(
    size: int, spare: int, asked: int, groups: int
) -> None:
    """A group at most one more than its part; without clients to spare for everybody, however many are drawn."""
    cohort = Cohort(size=size, spare=spare, quorum=1)
    everybody = [f"c{number:03d}" for number in range(asked)]
    dealt = deal_groups(everybody, groups=groups, seed=1, round_number=1, attempt=1)
    waited = [cohort.awaited(len(group), asked) for group in dealt]
    needed = min(asked, size) if spare else asked
    assert needed <= sum(waited) < needed + groups
    assert all(count <= len(group) for count, group in zip(waited, dealt, strict=True))


@given(names, st.integers(1, 9), st.integers(0, 99), st.integers(1, 50))
def test_a_cohort_depends_on_names_and_seed_alone(
    all_names: list[str], size: int, seed: int, n: int
) -> None:
    drawn = draw_cohort(all_names, size=size, seed=seed, round_number=n, attempt=1)
    assert drawn == draw_cohort(all_names[::-1], size=size, seed=seed, round_number=n, attempt=1)
    assert len(drawn) == min(size, len(all_names))
    assert set(drawn) <= set(all_names)


def test_nobody_answers_twice_or_uninvited() -> None:
    state = Collecting(("a", "b"), quorum=1)
    state.accept("a")
    with pytest.raises(ValueError, match="answered already"):
        state.accept("a")
    with pytest.raises(ValueError, match="not expected"):
        state.drop("z", Reason.ERROR, "")


@pytest.mark.parametrize(("names", "groups"), [(12, 3), (13, 4), (5, 5)])
def test_groups_are_disjoint_whole_and_drawn_anew(names: int, groups: int) -> None:
    everybody = [f"c{number:02d}" for number in range(names)]
    dealt = deal_groups(everybody, groups=groups, seed=1, round_number=1, attempt=1)
    assert sorted(name for group in dealt for name in group) == everybody
    sizes = {len(group) for group in dealt}
    assert max(sizes) - min(sizes) <= 1
    again = deal_groups(everybody, groups=groups, seed=1, round_number=1, attempt=1)
    other = deal_groups(everybody, groups=groups, seed=1, round_number=2, attempt=1)
    assert dealt == again != other
