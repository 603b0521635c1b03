"""Wrong shares are found by those that agree, or by what the secret's owner committed to."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import RoundError
from protocol.secagg import shamir
from protocol.secagg.agreement import Keys
from protocol.secagg.client import commitment
from protocol.secagg.graph import CHOSEN_HOLDERS, threshold
from protocol.secagg.messages import Advert
from protocol.secagg.rebuilding import Rebuilder
from protocol.secagg.wrong_shares import wrong_places

OWNER, CONTEXT = b"o" * 16, b"c" * 32


@given(st.data())
@settings(max_examples=50)
def test_the_wrong_ones_are_found_up_to_half_of_those_to_spare(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    needed = data.draw(st.integers(1, count))
    element = st.integers(0, shamir.PRIME - 1)
    secret, most = data.draw(element), (count - needed) // 2
    places = data.draw(st.lists(st.integers(1, 2**16), min_size=count, max_size=count, unique=True))
    shares = dict(zip(places, shamir.split(secret, places, needed, os.urandom), strict=True))
    wrong = data.draw(st.sets(st.sampled_from(places), max_size=most)) if most else set()
    changed = shares | {
        place: (shares[place] + data.draw(st.integers(1, shamir.PRIME - 1))) % shamir.PRIME
        for place in wrong
    }
    assert wrong_places(changed, needed) == wrong


@pytest.mark.parametrize("values", [[0, 0, 0], [5, 5, 5], [0, 7, 0]])
def test_polynomials_of_low_degree(values: list[int]) -> None:
    expected = {place for place, value in enumerate(values, 1) if value == 7}
    assert wrong_places(dict(enumerate(values, 1)), 1) == expected


def rebuilt(
    *,
    holders: int,
    there: int,
    wrong: Collection[int],
    by: Callable[[int], int] = lambda at: at + 1,
    named: Collection[int] = (),
) -> set[int]:
    """Of ``there`` shares those at ``wrong`` are false by so much: ranks of the holders that are named."""
    needed, secret = threshold(holders), shamir.random_element(os.urandom)
    ids = tuple(bytes([number]) * 16 for number in range(holders))
    shares = shamir.split(secret, range(1, holders + 1), needed, os.urandom)
    reveals = {
        ids[at]: (shares[at] + (by(at) if at in wrong else 0)) % shamir.PRIME for at in range(there)
    }
    advert = Advert(
        sid=bytes(32),
        seq=1,
        client=OWNER,
        channel_key=b"",
        mask_key=b"",
        commitment=commitment(secret, CONTEXT, OWNER),
    )
    liars = {ids[at] for at in named}
    rebuilder = Rebuilder(
        adverts={OWNER: advert},
        holders={OWNER: ids},
        threshold=needed,
        keys=Keys.X25519,
        context=CONTEXT,
        reveals={OWNER: reveals},
        liars=liars,
    )
    assert rebuilder.seed(OWNER, alive=True) == secret
    return {ids.index(liar) for liar in liars}


@pytest.mark.parametrize(
    ("holders", "there", "wrong"),
    [
        (4, 4, [1]),
        (10, 10, [0, 6]),
        (CHOSEN_HOLDERS, 80, [40, 50]),
        (CHOSEN_HOLDERS, 80, range(13)),
        (CHOSEN_HOLDERS, 57, [52, 56]),
        (127, 127, [80, 100]),
    ],
)
def test_who_sent_a_wrong_share_is_named(holders: int, there: int, wrong: Collection[int]) -> None:
    assert rebuilt(holders=holders, there=there, wrong=wrong) == set(wrong)


def test_whom_a_secrets_owner_had_named_is_not_left_out() -> None:
    """Three owners give 13 honest holders each a wrong share: all their secrets, and others', are found."""
    named: set[int] = set()
    for owner in range(3):
        wrong = range(13 * owner, 13 * owner + 13)
        named = rebuilt(holders=80, there=80, wrong=wrong, named=named)
    assert named == set(range(39))
    assert rebuilt(holders=80, there=80, wrong=[], named=named) == named


def test_two_who_agree_name_nobody_else() -> None:
    """Their shares and five honest ones give the right secret as well: two honest ones would look false."""
    assert rebuilt(holders=9, there=9, wrong=[0, 6], by=lambda _: 1) == set()


def test_without_enough_right_ones_there_is_no_seed() -> None:
    with pytest.raises(RoundError, match="contradict its advert"):
        rebuilt(holders=9, there=9, wrong=range(3))
