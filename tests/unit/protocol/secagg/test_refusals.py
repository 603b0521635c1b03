"""What a coordinator that lies gets from a client: an error of its own kind, and no share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import SecrecyError
from protocol.secagg import client
from protocol.secagg.messages import (
    Advert,
    Cohort,
    decode_advert,
    decode_cohort,
    encode_ids,
    encode_signatures,
)
from protocol.secagg.primitives import sign

Make = Callable[..., Any]


def refused(code: str) -> Any:
    return pytest.raises(SecrecyError, match=f"^{code}")


def forged(cohort: Cohort, at: int, **changes: Any) -> Cohort:
    adverts = list(cohort.adverts)
    adverts[at] = replace(adverts[at], **changes)
    return replace(cohort, adverts=tuple(adverts))


def without(cohort: Cohort, *keep: int) -> Cohort:
    return replace(cohort, adverts=tuple(cohort.adverts[at] for at in keep))


def stranger(cohort: Cohort) -> Cohort:
    changed = replace(cohort.adverts[-1], client=b"\xff" * 16)
    return replace(cohort, adverts=(*cohort.adverts[:-1], changed))


LIES: dict[str, Callable[[Cohort], Cohort]] = {
    "cohort.duplicate": lambda c: replace(c, adverts=(*c.adverts, c.adverts[-1])),
    "cohort.too-small": lambda c: without(c, 0, 1),
    "cohort.own-advert": lambda c: without(c, 1, 2, 3, 4),
    "cohort.unknown-client": stranger,
    "advert.signature": lambda c: forged(c, 3, mask_key=os.urandom(32)),
    "advert.other-attempt": lambda c: forged(c, 3, seq=2),
    "cohort.graph": lambda c: replace(c, graph_seed=b"\x01" * 32),
    "cohort.threshold": lambda c: replace(c, threshold=1),
    "cohort.mode": lambda c: replace(c, alive_index=7),
}


@pytest.mark.parametrize("code", sorted(LIES))
def test_a_cohort_that_lies_gets_no_share(cohort: Make, code: str) -> None:
    made = cohort(size=6, minimum=3)
    message = LIES[code](decode_cohort(made.advertise())).encode()
    own = made.ids[0]
    with refused(code):
        client.share(
            made.states[own],
            message,
            key=made.keys[own],
            policy=made.policy,
            random=os.urandom,
        )


def test_a_cohort_of_more_clients_than_planned_gets_no_share(cohort: Make) -> None:
    """What a plan rests on, its noise above all, is reckoned for its own size."""
    made = cohort(size=6, minimum=3)
    message, own = made.advertise(), made.ids[0]
    for maximum in (5, 6):
        policy = made.policy.model_copy(update={"maximum": maximum})
        arguments = {"key": made.keys[own], "policy": policy, "random": os.urandom}
        if maximum == 6:
            assert client.share(made.states[own], message, **arguments)
            continue
        with refused("cohort.too-large"):
            client.share(made.states[own], message, **arguments)


def test_an_own_advert_that_is_altered(cohort: Make) -> None:
    made = cohort(size=6)
    message = forged(decode_cohort(made.advertise()), 0, channel_key=os.urandom(32)).encode()
    own = made.ids[0]
    with refused("cohort.own-advert"):
        client.share(
            made.states[own], message, key=made.keys[own], policy=made.policy, random=os.urandom
        )


@pytest.mark.parametrize(
    ("members", "code"),
    [
        (lambda ids: ids[1:], "round.own-missing"),
        (lambda ids: ids[:3], "round.too-few-neighbours"),
        (lambda ids: [*ids[:-1], b"\xff" * 16], "round.unknown-client"),
        (lambda ids: ids[:-1], "round.shares"),
    ],
)
def test_members_that_lie(cohort: Make, members: Any, code: str) -> None:
    made = cohort(size=6)
    message = made.share(made.advertise())[made.ids[0]]
    ids = members(made.ids)
    changed = len(ids).to_bytes(2, "big") + encode_ids(ids) + message[2 + 6 * 16 :]
    with refused(code):
        client.open_shares(made.states[made.ids[0]], changed, {}, policy=made.policy)


def test_shares_of_another_pair_or_cohort_do_not_open(cohort: Make) -> None:
    made = cohort(size=6)
    messages = made.share(made.advertise())
    own, other = made.ids[:2]
    with refused("share.unreadable"):  # what was sealed for somebody else
        client.open_shares(made.states[own], messages[other], {}, policy=made.policy)
    message = messages[own]
    at = 2 + 6 * 16
    swapped = (
        message[:at] + message[at + 92 : at + 184] + message[at : at + 92] + message[at + 184 :]
    )
    with refused("share.unreadable"):
        client.open_shares(made.states[own], swapped, {}, policy=made.policy)


def test_other_terms_give_other_masks(cohort: Make) -> None:
    """Another base or adapter under the same round: the masks do not cancel, nothing is revealed."""
    made = cohort(size=4)
    messages = made.share(made.advertise())
    own = made.ids[0]
    here = client.open_shares(made.states[own], messages[own], {"adapter": "a"}, policy=made.policy)
    there = client.open_shares(
        made.states[own], messages[own], {"adapter": "b"}, policy=made.policy
    )
    assert here.rid != there.rid


@pytest.mark.parametrize(
    ("alive", "code"),
    [
        (lambda ids: ids[1:], "alive.own-missing"),
        (lambda ids: [*ids[:-1], b"\xff" * 16], "alive.unknown-client"),
        (lambda ids: ids[:2], "alive.too-small"),
        (lambda ids: ids[:4], "alive.too-few-neighbours"),
    ],
)
def test_alive_sets_that_lie(cohort: Make, alive: Any, code: str) -> None:
    made = cohort(size=6, minimum=3)
    made.mask(made.share(made.advertise()))
    with refused(code):
        client.agree_on_alive(
            made.states[made.ids[0]],
            encode_ids(alive(made.ids)),
            key=made.keys[made.ids[0]],
            policy=made.policy,
        )


def test_an_alive_set_in_disorder(cohort: Make) -> None:
    made = cohort(size=4)
    made.mask(made.share(made.advertise()))
    own = made.ids[0]
    for message in (b"".join(reversed(made.ids)), made.ids[0] * 2):
        with refused("alive.order"):
            client.agree_on_alive(made.states[own], message, key=made.keys[own], policy=made.policy)


def test_without_a_quorum_on_one_set_nothing_is_unmasked(cohort: Make) -> None:
    made = cohort(size=6)
    message = made.mask(made.share(made.advertise()))
    signatures, states = {}, {}
    for one in made.ids:
        states[one], signatures[one] = client.agree_on_alive(
            made.states[one], message, key=made.keys[one], policy=made.policy
        )
    own = made.ids[0]
    few = {one: signatures[one] for one in made.ids[:3]}
    with refused("alive.quorum"):
        client.unmask(states[own], encode_signatures(few), policy=made.policy)
    # Signatures on another set of the same members: the split view.
    other = encode_ids(made.ids[:5])
    for one in made.ids[1:5]:
        _, signatures[one] = client.agree_on_alive(
            made.states[one], other, key=made.keys[one], policy=made.policy
        )
    with refused("alive.signature"):
        client.unmask(states[own], encode_signatures(signatures), policy=made.policy)


def test_one_kind_of_share_per_neighbour(cohort: Make) -> None:
    made = cohort(size=6, lost={"mask": (5,)})
    message = made.agree(made.mask(made.share(made.advertise())))
    state = made.states[made.ids[0]]
    reply = client.unmask(state, message, policy=made.policy)
    kinds = [reply[at] for at in range(0, len(reply), 33)]
    assert kinds == [0, 0, 0, 0, 1]
    assert len(reply) == 5 * 33


def test_a_coordinator_refuses_what_is_late_repeated_or_forged(cohort: Make) -> None:
    made = cohort(size=5, lost={"mask": (4,)})
    messages = made.share(made.advertise())
    with refused("phase.late"):
        made.attempt.receive_shares(made.ids[0], b"")
    late = client.open_shares(
        made.states[made.ids[4]], messages[made.ids[4]], {"round": 1}, policy=made.policy
    )
    with refused("masked.malformed"):
        made.attempt.receive_masked(made.ids[0], b"")
    forged_vector = bytes(2 * made.count + 32 + 4 + 64)
    with refused("masked.signature"):
        made.attempt.receive_masked(made.ids[0], forged_vector)
    size = 2 * made.count + 32
    with refused("masked.malformed"):  # a proof that is announced and not there
        made.attempt.receive_masked(made.ids[0], bytes(size) + b"\0\0\0\x05" + bytes(64))
    with refused("masked.proof"):  # no kind of proof is defined yet
        made.attempt.receive_masked(made.ids[0], bytes(size) + b"\0\0\0\x05" + bytes(64 + 5))
    made.mask(messages)
    with refused("phase.late"):
        made.attempt.receive_masked(made.ids[4], forged_vector)
    assert late.rid


def test_states_and_refusals_show_no_secret(cohort: Make) -> None:
    made = cohort(size=4)
    made.advertise()
    state = made.states[made.ids[0]]
    assert repr(state) == str(state) == "<Advertised>"
    again = client.Advertised.model_validate_json(state.model_dump_json())
    assert again == state


def test_an_advert_has_216_bytes(cohort: Make) -> None:
    made = cohort(size=3)
    made.advertise()
    state = made.states[made.ids[0]]
    assert len(state.advert) == 216
    assert isinstance(decode_cohort(made.attempt._cohort.encode()).adverts[0], Advert)


def test_a_key_of_low_order_is_refused_at_the_door(cohort: Make) -> None:
    made = cohort(size=3)
    one = made.ids[0]
    state, _ = client.advertise(made.keys[one], sid=bytes(range(32)), seq=1, random=os.urandom)
    advert = replace(decode_advert(state.advert), channel_key=bytes(32))
    signed = advert.body + sign(made.keys[one], "advert", advert.body)
    with refused("key.low-order"):
        made.attempt.receive_advert(one, signed)
