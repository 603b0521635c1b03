"""Above 128 clients each draws its own holders: sums are as exact, and nobody can choose them for it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProofError, SecrecyError
from protocol.secagg import client
from protocol.secagg.agreement import Keys
from protocol.secagg.graph import (
    CHOICE_BYTES,
    CHOSEN_HOLDERS,
    alive_quorum,
    chosen_holders,
    degree,
    drawn,
    threshold,
)
from protocol.secagg.messages import (
    advert_bytes,
    decode_advert,
    decode_cohort,
    decode_round,
    encode_ids,
    encode_signatures,
)
from protocol.secagg.openings import alive_digest
from protocol.secagg.primitives import client_id, sign
from protocol.secagg.transcript import Transcript
from protocol.secagg.verification import verify_transcript
from tests.unit.protocol.secagg.conftest import TERMS, Cohort

SIZE = 130
LOST = {"advertise": (1,), "share": (3,), "mask": (10, 11), "alive": (5,), "unmask": (7,)}


class Kept(Cohort):
    """A large cohort that keeps its masked vectors."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(size=SIZE + 1, count=40, minimum=3, lost=LOST, keys_form=keys)
        self.vectors: dict[bytes, bytes] = {}
        receive = self.attempt.receive_masked

        def keeping(one: bytes, message: bytes) -> None:
            receive(one, message)
            self.vectors[one] = message[: self.packed_bytes]

        self.attempt.receive_masked = keeping  # type: ignore[method-assign,assignment]
        self.rounds = self.share(self.advertise())
        self.shared = dict(self.states)
        self.sum = self.unmask(self.agree(self.mask(self.rounds)))

    def shared_with(self, own: bytes) -> list[bytes]:
        """Members that hold shares of ``own``."""
        state = self.shared[own]
        assert isinstance(state, client.Shared)
        return [one for one in state.neighbours if one in self.attempt.members]


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept(Keys.X25519)


def refused(code: str) -> Any:
    return pytest.raises(SecrecyError, match=f"^{code}")


def repeated(transcript: Transcript, cohort: Kept) -> np.ndarray[Any, Any]:
    return verify_transcript(transcript, cohort.roster, cohort.vectors.__getitem__, minimum=3)


def test_the_sum_is_exact_and_anybody_repeats_it(kept: Kept) -> None:
    assert (kept.sum == kept.total.astype(np.uint16)).all()
    assert (repeated(kept.attempt.transcript(), kept) == kept.sum).all()
    held = [len(state.held) for state in kept.shared.values() if isinstance(state, client.Opened)]
    assert all(number > 0 for number in held)


@pytest.mark.slow
def test_the_sum_is_exact_in_the_hybrid_form() -> None:
    cohort = Kept(Keys.HYBRID)
    transcript = cohort.attempt.transcript()
    assert (repeated(transcript, cohort) == cohort.sum).all()
    assert len(transcript.boxes) > 2 * CHOSEN_HOLDERS  # of two lost members, either way
    with pytest.raises(ProofError, match=r"boxes|missing"):
        repeated(transcript.model_copy(update={"boxes": transcript.boxes[1:]}), cohort)


def test_a_transcript_with_another_choice_is_refused(kept: Kept) -> None:
    transcript = kept.attempt.transcript()
    at = next(n for n, party in enumerate(transcript.parties) if party.choice)
    for choice, cause in ((os.urandom(32).hex(), "signature on its shares"), ("", "its choice")):
        parties = list(transcript.parties)
        parties[at] = parties[at].model_copy(update={"choice": choice})
        with pytest.raises(ProofError, match=cause):
            repeated(transcript.model_copy(update={"parties": parties}), kept)


@pytest.fixture(scope="module")
def advertised() -> tuple[Cohort, bytes]:
    made = Cohort(SIZE, minimum=3)
    return made, made.advertise()


def shares(made: Cohort, own: bytes, message: bytes) -> tuple[client.Shared, bytes]:
    state = made.states[own]
    assert isinstance(state, client.Advertised)
    key = made.keys[own]
    return client.share(state, message, key=key, policy=made.policy, random=os.urandom)


def test_a_client_draws_once_for_a_cohort(advertised: tuple[Cohort, bytes]) -> None:
    """Asked again after a refusal it draws the very same: nobody waits until it draws what suits them."""
    made, message = advertised
    own = made.ids[0]
    (first, reply), (second, again) = (shares(made, own, message) for _ in range(2))
    assert first.neighbours == second.neighbours
    assert reply[:CHOICE_BYTES] == again[:CHOICE_BYTES] != bytes(CHOICE_BYTES)
    cohort = decode_cohort(message)
    _, elsewhere = shares(made, own, replace(cohort, adverts=cohort.adverts[:-1]).encode())
    assert elsewhere[:CHOICE_BYTES] != reply[:CHOICE_BYTES]
    _, beside = shares(made, made.ids[1], message)
    assert beside[:CHOICE_BYTES] != reply[:CHOICE_BYTES]
    assert first.neighbours == chosen_holders(tuple(made.ids), own, first.xid, reply[:CHOICE_BYTES])
    assert len(set(first.neighbours) - {own}) == CHOSEN_HOLDERS == degree(SIZE)
    made.attempt.receive_shares(own, reply)
    with refused("shares.signature"):  # its choice is signed with its shares
        made.attempt.receive_shares(
            made.ids[1], os.urandom(32) + shares(made, made.ids[1], message)[1][32:]
        )
    with refused("shares.malformed"):
        made.attempt.receive_shares(made.ids[1], reply[:50])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"graph_seed": b"\x01" * 32}, "cohort.graph"),
        ({"degree": 10, "threshold": threshold(10)}, "cohort.graph"),
        ({"threshold": 2}, "cohort.threshold"),
    ],
)
def test_a_graph_that_the_coordinator_would_choose_is_refused(
    advertised: tuple[Cohort, bytes], change: dict[str, Any], code: str
) -> None:
    made, message = advertised
    with refused(code):
        shares(made, made.ids[0], replace(decode_cohort(message), **change).encode())


def test_a_forged_advert_is_noticed_by_those_who_draw_it(advertised: tuple[Cohort, bytes]) -> None:
    made, message = advertised
    cohort = decode_cohort(message)
    adverts = [
        advert if advert.client == made.ids[0] else replace(advert, mask_key=os.urandom(32))
        for advert in cohort.adverts
    ]
    with refused("advert.signature"):
        shares(made, made.ids[0], replace(cohort, adverts=tuple(adverts)).encode())


def lies(kept: Kept, own: bytes) -> dict[str, tuple[bytes, str]]:
    """A round message with something false in it, and what it is refused with."""
    message = kept.rounds[own]
    members, rest = decode_round(message)
    head, size = message[: len(message) - len(rest)], advert_bytes(Keys.X25519)
    count = int.from_bytes(rest[:2], "big")
    parts = [rest[2 + at * size :][:size] for at in range(count)]
    boxes = rest[2 + count * size :]

    def with_senders(adverts: list[bytes], sealed: bytes = boxes) -> bytes:
        return head + len(adverts).to_bytes(2, "big") + b"".join(adverts) + sealed

    forged = replace(decode_advert(parts[0]), channel_key=os.urandom(32)).encode()
    others = [one for one in kept.ids if one not in members]
    stranger = kept.drawn.get(others[0]) or kept.drawn[others[1]]
    among = sorted([*parts[1:], stranger.advert], key=lambda advert: advert[40:56])
    return {
        "forged": (with_senders([forged, *parts[1:]]), "advert.signature"),
        "no member": (with_senders(among), "round.unknown-client"),
        "twice": (with_senders([parts[0], *parts[:-1]]), "round.order"),
        "one less": (with_senders(parts[1:]), "round.shares"),
        "a box less": (with_senders(parts, boxes[92:]), "round.shares"),
        "boxes in turn": (with_senders(parts, boxes[92:184] + boxes[:92] + boxes[184:]), "share"),
        "cut": (head + rest[: size - 5], "round.malformed"),
        "nothing": (head, "round.malformed"),
        "few members": (
            (50).to_bytes(2, "big") + encode_ids([own, *kept.shared_with(own)[:49]]) + rest,
            "round.too-few-neighbours",
        ),
    }


def test_senders_that_lie_get_no_vector(kept: Kept) -> None:
    own = kept.attempt.alive[20]
    state = kept.shared[own]
    assert isinstance(state, client.Shared)
    assert client.open_shares(state, kept.rounds[own], TERMS, policy=kept.policy).members
    for message, code in lies(kept, own).values():
        with refused(code):
            client.open_shares(state, message, TERMS, policy=kept.policy)


def test_every_signature_of_a_large_quorum_is_checked() -> None:
    """A refused coordinator asks again: of a sample the very same false ones would slip past one day."""
    keys = [Ed25519PrivateKey.generate() for _ in range(150)]
    named = {client_id(key.public_key().public_bytes_raw()): key for key in keys}
    ids, rid = tuple(sorted(named)), os.urandom(32)
    roster = {one: named[one].public_key().public_bytes_raw() for one in ids}
    masked = client.Masked(
        client=ids[0], clients=ids, members=ids, threshold=54, alive_index=0, rid=rid, held={}
    )
    state = client.Agreed(before=masked, alive=ids)
    signers = ids[: alive_quorum(len(ids))]
    signatures = {one: sign(named[one], "alive", rid + alive_digest(ids)) for one in signers}

    def unmask(changed: dict[bytes, bytes]) -> bytes:
        policy = client.Policy(roster=roster, minimum=3)
        return client.unmask(state, encode_signatures(changed), policy=policy)

    assert unmask(signatures) == b""  # it holds nobody's shares
    with refused("alive.quorum"):
        unmask({one: signatures[one] for one in signers[1:-1]})
    for signer in (signers[0], signers[len(signers) // 2], signers[-1]):
        with refused("alive.signature"):
            unmask(signatures | {signer: bytes(64)})


@given(st.binary(max_size=40), st.integers(1, 2000), st.integers(0, 200))
def test_numbers_drawn_are_distinct_in_range_and_begin_alike(
    seed: bytes, among: int, count: int
) -> None:
    if count > among:
        with pytest.raises(ValueError, match=f"{count} of {among}"):
            drawn(seed, among, count)
        return
    numbers = drawn(seed, among, count)
    assert len(set(numbers)) == count
    assert all(0 <= number < among for number in numbers)
    assert drawn(seed, among, count // 2) == numbers[: count // 2]


def test_everybody_is_drawn_as_often() -> None:
    ids = sorted(client_id(bytes([number])) for number in range(200))
    times: Counter[bytes] = Counter()
    for number in range(1000):
        holders = chosen_holders(ids, ids[3], b"x" * 32, number.to_bytes(32, "big"))
        assert holders == tuple(sorted(holders))
        times.update(holders)
    assert ids[3] not in times
    expected = 1000 * CHOSEN_HOLDERS / 199
    chi = sum((times[one] - expected) ** 2 / expected for one in ids if one != ids[3])
    assert chi < 300  # 198 degrees of freedom, drawn without return: 119 on average
