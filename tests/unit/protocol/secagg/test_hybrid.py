"""X25519 with ML-KEM-768: the same sum, the same recoveries, and neither half opens anything alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocol.errors import RoundError, SecrecyError
from protocol.merkle import merkle_root
from protocol.secagg import client, shamir
from protocol.secagg.agreement import Keys, pair_label
from protocol.secagg.kem import HybridKey
from protocol.secagg.messages import (
    COHORT_HEAD,
    Advert,
    advert_bytes,
    decode_advert,
    decode_cohort,
    split_boxes,
)
from protocol.secagg.primitives import sign, tagged_hash

Make = Callable[..., Any]
SHARES, SEED = 1088 + 92, 1088 + 12 + 32 + 16 + 32


@pytest.fixture
def hybrid(cohort: Make) -> Make:
    def make(**given: Any) -> Any:
        return cohort(keys_form=Keys.HYBRID, **given)

    return make


def refused(code: str, naming: bytes | None = None) -> Any:
    return pytest.raises(SecrecyError, match=f"^{code}.*{naming.hex() if naming else ''}")


@pytest.mark.parametrize(
    ("size", "lost"),
    [
        (3, {}),
        (20, {"advertise": (0,), "share": (1,), "mask": (2,), "alive": (3,), "unmask": (4,)}),
        (20, {"advertise": (19,), "share": (18,), "mask": (17,), "alive": (16,), "unmask": (15,)}),
        (10, {"mask": (0,)}),  # the lowest id: every pair's secret is derived from its seed
        (10, {"mask": (9,)}),  # the highest: every one is opened with its rebuilt key
        (10, {"mask": (4, 5)}),  # both of a pair
    ],
)
def test_the_sum_is_exact_whoever_is_lost(hybrid: Make, size: int, lost: Any) -> None:
    made = hybrid(size=size, lost=lost)
    assert (made.run() == made.total.astype(np.uint16)).all()
    named = {made.ids.index(i): phase.name.lower() for i, phase in made.attempt.lost.items()}
    assert named == {number: phase for phase, numbers in lost.items() for number in numbers}
    assert not made.attempt.liars


def test_sizes(hybrid: Make) -> None:
    made = hybrid(size=4)
    message = made.advertise()
    assert [len(made.states[one].advert) for one in made.ids] == [2584] * 4
    assert (advert_bytes(Keys.X25519), advert_bytes(Keys.HYBRID)) == (216, 2584)
    assert len(message) == COHORT_HEAD.size + 4 * 2584
    for number, one in enumerate(made.ids):
        _, reply = client.share(
            made.states[one], message, key=made.keys[one], policy=made.policy, random=os.urandom
        )
        assert len(reply) == 3 * SHARES + (3 - number) * SEED + 64  # a seed to every higher id
    for cut in (message[:-1], message + b"x", message[: COHORT_HEAD.size]):
        with refused(r"cohort\.malformed"):
            decode_cohort(cut, Keys.HYBRID)
    with refused(r"advert\.malformed"):
        decode_advert(made.states[made.ids[0]].advert[:-1], Keys.HYBRID)


def test_an_advert_of_the_other_form_is_refused_by_name(cohort: Make, hybrid: Make) -> None:
    classic, other = cohort(size=3), hybrid(size=3)
    for mine, theirs in ((classic, other), (other, classic)):
        one = theirs.ids[0]
        state, advert = client.advertise(
            theirs.keys[one], sid=bytes(32), seq=1, random=os.urandom, keys=theirs.keys_form
        )
        with refused(r"advert\.other-form"):
            mine.attempt.receive_advert(mine.ids[0], advert)
        message = mine.advertise()
        with refused(r"advert\.other-form: 3 of 3"):
            client.share(
                state, message, key=theirs.keys[one], policy=theirs.policy, random=os.urandom
            )
        size = advert_bytes(mine.keys_form)
        mixed = message[:-size] + advert
        with refused(r"advert\.other-form: 1 of 3"):
            client.share(
                mine.states[mine.ids[0]],
                mixed,
                key=mine.keys[mine.ids[0]],
                policy=mine.policy,
                random=os.urandom,
            )


@pytest.mark.parametrize(
    ("half", "code"), [(slice(0, 32), r"key\.low-order"), (slice(32, 1216), r"key\.malformed")]
)
def test_a_public_key_that_is_none_is_refused_at_the_door(
    hybrid: Make, half: slice, code: str
) -> None:
    made = hybrid(size=3)
    one = made.ids[0]
    _, advert = client.advertise(
        made.keys[one], sid=bytes(range(32)), seq=1, random=os.urandom, keys=Keys.HYBRID
    )
    decoded = decode_advert(advert, Keys.HYBRID)
    for field in ("channel_key", "mask_key"):
        key = bytearray(getattr(decoded, field))
        key[half] = (b"\x00" if half.start == 0 else b"\xff") * (half.stop - half.start)
        with refused(code):
            made.attempt.receive_advert(
                one, signed(made, one, replace(decoded, **{field: bytes(key)}))
            )


def signed(made: Any, one: bytes, advert: Advert) -> bytes:
    return advert.body + sign(made.keys[one], "advert", advert.body)


PARTS = {  # place in the box of the lowest id for the highest -> what the highest refuses it with
    "encapsulation to the channel key": (5, r"share\.unreadable"),
    "sealed shares": (SHARES - 1, r"share\.unreadable"),
    "encapsulation to the mask key": (SHARES + 5, r"pair\.unreadable"),
    "sealed seed": (SHARES + 1088 + 20, r"pair\.unreadable"),
    "commitment": (SHARES + SEED - 1, r"pair\.unreadable"),
}


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_box_that_is_altered_on_its_way_is_refused_and_named(hybrid: Make, part: str) -> None:
    made = hybrid(size=4)
    at, code = PARTS[part]
    message = bytearray(made.share(made.advertise())[made.ids[3]])
    message[2 + 4 * 16 + at] ^= 1
    with refused(code, made.ids[0]):
        client.open_shares(made.states[made.ids[3]], bytes(message), {}, policy=made.policy)


def test_boxes_are_covered_by_the_signature_of_their_sender(hybrid: Make) -> None:
    made = hybrid(size=4)
    message = made.advertise()
    one = made.ids[0]
    _, reply = client.share(
        made.states[one], message, key=made.keys[one], policy=made.policy, random=os.urandom
    )
    for at, _ in PARTS.values():
        with refused(r"shares\.signature", one):
            made.attempt.receive_shares(one, reply[:at] + bytes([reply[at] ^ 1]) + reply[at + 1 :])
    for wrong in (b"", reply[1:], reply + b"x"):
        with refused(r"shares\.malformed", one):
            made.attempt.receive_shares(one, wrong)
    made.attempt.receive_shares(one, reply)


def dishonest(made: Any, change: Callable[[bytes, Any], bytes]) -> bytes:
    """Runs up to the masks; the lowest id signs what ``change`` makes of its box for the highest."""
    receive, liar, victim = made.attempt.receive_shares, made.ids[0], made.ids[-1]

    def lying(one: bytes, reply: bytes) -> None:
        if one == liar:
            near = [other for other in made.ids if other != liar]
            sizes = [Keys.HYBRID.box_bytes(seed=liar < other) for other in near]
            boxes = split_boxes(reply[:-64], sizes)
            assert boxes is not None
            boxes[-1] = change(boxes[-1], made.states[victim])
            statement = made.states[liar].xid + liar + merkle_root(boxes)
            reply = b"".join(boxes) + sign(made.keys[liar], "shares", statement)
        receive(one, reply)

    made.attempt.receive_shares = lying
    return bytes(made.ids[0])


def test_a_seed_that_nobody_can_open_is_blamed_on_its_sender(hybrid: Make) -> None:
    """Its receiver refuses and is lost; then the coordinator cannot open it either: no sum."""
    made = hybrid(size=10, lost={"mask": (9,)})
    liar = dishonest(made, lambda box, _: box[:SHARES] + os.urandom(SEED))
    messages = made.share(made.advertise())
    with refused(r"pair\.unreadable", liar):
        client.open_shares(made.states[made.ids[9]], messages[made.ids[9]], {}, policy=made.policy)
    signatures = made.agree(made.mask(messages))
    with pytest.raises(RoundError, match=liar.hex()):
        made.unmask(signatures)
    assert made.attempt.liars == {liar}


def test_a_seed_that_is_not_the_senders_own_is_found_when_the_sender_is_lost(
    hybrid: Make,
) -> None:
    """Sealed and committed to in good form: the receiver cannot know, the rebuilt seed tells."""
    made = hybrid(size=10, lost={"mask": (0,)})

    def other_seed(box: bytes, victim: Any) -> bytes:
        state = made.states[made.ids[0]]
        way = state.xid + made.ids[0] + made.ids[-1]
        seed = os.urandom(32)
        commit = tagged_hash("pair-commit", way + seed)
        actx = state.before.sid + state.before.seq.to_bytes(8, "big")
        key = HybridKey(Keys.HYBRID.mask_secret(state.before.mask_seed, actx))
        to = decode_advert(victim.advert, Keys.HYBRID).mask_key
        sealed = key.seal_to(to, "pair-box", way, commit, seed, os.urandom)
        return box[:SHARES] + sealed + commit

    liar = dishonest(made, other_seed)
    signatures = made.agree(made.mask(made.share(made.advertise())))
    before = made.attempt._sum.copy()
    with pytest.raises(RoundError, match=liar.hex()):
        made.unmask(signatures)
    assert made.attempt.liars == {liar}
    assert (made.attempt._sum == before).all()  # a sum is opened whole or not at all


def test_a_wrong_share_is_found_and_its_sender_named(hybrid: Make) -> None:
    made = hybrid(size=10, lost={"mask": (9,)})
    message = made.agree(made.mask(made.share(made.advertise())))
    receive, liar = made.attempt.receive_unmask, made.ids[0]

    def tampered(one: bytes, reply: bytes) -> None:
        if one == liar:  # the last entry is of the lost client's mask seed
            reply = reply[:-32] + shamir.to_bytes(5)
        receive(one, reply)

    made.attempt.receive_unmask = tampered
    assert (made.unmask(message) == made.total.astype(np.uint16)).all()
    assert made.attempt.liars == {liar}


@pytest.mark.parametrize("half", [slice(0, 32), slice(32, 1216)], ids=["x25519", "ml-kem"])
def test_a_rebuilt_key_has_to_fit_in_both_halves(hybrid: Make, half: slice) -> None:
    made = hybrid(size=6, lost={"mask": (5,)})
    receive, one = made.attempt.receive_advert, made.ids[5]

    def lying(who: bytes, advert: bytes) -> None:
        if who == one:
            decoded = decode_advert(advert, Keys.HYBRID)
            mask_key = bytearray(decoded.mask_key)
            mask_key[half] = HybridKey(os.urandom(96)).public[half]
            advert = signed(made, one, replace(decoded, mask_key=bytes(mask_key)))
            made.states[one] = made.states[one].model_copy(update={"advert": advert})
        receive(who, advert)

    made.attempt.receive_advert = lying
    messages = made.share(made.advertise())
    signatures = made.agree(made.mask(messages))
    with pytest.raises(RoundError, match=f"{one.hex()} contradict its advert"):
        made.unmask(signatures)


@pytest.mark.parametrize("known", ["x25519", "ml-kem"])
def test_one_broken_half_opens_neither_shares_nor_seeds(hybrid: Make, known: str) -> None:
    """Who recorded everything and has all secrets of one half is as far as before."""
    made = hybrid(size=3)
    messages = made.share(made.advertise())
    low, high = made.ids[0], made.ids[2]
    states = {one: made.states[one].before for one in (low, high)}
    actx = states[low].sid + states[low].seq.to_bytes(8, "big")
    box = messages[high][2 + 3 * 16 :][: SHARES + SEED]
    shares, seed, commit = box[:SHARES], box[SHARES:-32], box[-32:]
    way = made.states[high].xid + pair_label(low, high)
    adverts = {one: decode_advert(states[one].advert, Keys.HYBRID) for one in states}

    def halved(secret: bytes) -> HybridKey:
        """Half of the secret, and the public key as everybody knows it."""
        x25519, kem = secret[:32], secret[32:]
        key = HybridKey(x25519 + os.urandom(64) if known == "x25519" else os.urandom(32) + kem)
        key.public = HybridKey(secret).public
        return key

    for secret, label, extra, sealed, public in (
        (states[high].channel_secret, "chan-hybrid", b"", shares, adverts[low].channel_key),
        (
            Keys.HYBRID.mask_secret(states[high].mask_seed, actx),
            "pair-box",
            commit,
            seed,
            adverts[low].mask_key,
        ),
    ):
        assert HybridKey(secret).open_from(public, label, way, extra, sealed) is not None
        assert halved(secret).open_from(public, label, way, extra, sealed) is None


def test_a_pairs_secret_is_not_the_shared_x25519_secret(hybrid: Make) -> None:
    made = hybrid(size=3)
    messages = made.share(made.advertise())
    opened = {
        one: client.open_shares(made.states[one], messages[one], {}, policy=made.policy)
        for one in made.ids
    }
    secrets = set()
    for one in made.ids:
        for other in made.ids:
            if one < other:
                assert opened[one].pairs[other] == opened[other].pairs[one]
                secrets.add(opened[one].pairs[other])
    assert len(secrets) == 3


def test_states_come_back_whole_and_show_nothing(hybrid: Make) -> None:
    made = hybrid(size=3)
    made.share(made.advertise())
    state = made.states[made.ids[0]]
    assert client.Shared.model_validate_json(state.model_dump_json()) == state
    assert str(state) == "<Shared>"
    end = Keys.HYBRID.end(client=made.ids[0], attempt=b"", xid=b"", mask_seed=7)
    assert repr(end) == f"<HybridEnd of {made.ids[0].hex()}>"
