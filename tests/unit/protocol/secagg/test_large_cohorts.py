"""Above 128 clients each draws its own holders: sums are as exact, and nobody can choose them for it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import replace
from math import exp, lgamma, log, log2
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from client.sessions import MOST_SESSION
from protocol.documents import json_as
from protocol.errors import ProofError, SecrecyError
from protocol.exchange import Phase
from protocol.legality_of_secrecy import MOST_LOGGED, MOST_SIGNED
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
    Advert,
    advert_bytes,
    decode_advert,
    decode_cohort,
    decode_ids,
    decode_round,
    encode_ids,
    encode_members,
    encode_round,
    encode_signatures,
    split_senders,
)
from protocol.secagg.messages import Cohort as MessageOfAll
from protocol.secagg.openings import alive_digest
from protocol.secagg.primitives import client_id, sign
from protocol.secagg.session import Session
from protocol.secagg.transcript import Transcript
from protocol.secagg.verification import verify_transcript
from protocol.secagg.witnessed import encode_by_log
from protocol.transparency.lists import Lists
from protocol.transparency.sum_leaves import alive_leaf
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


@pytest.mark.slow
def test_a_sum_of_more_than_may_sign_is_exact_and_anybody_repeats_it() -> None:
    """By its place in a log, which is :mod:`tests.unit.protocol.secagg.test_witnessed`'s."""
    lost = {"share": (3,), "mask": tuple(range(20, 60)), "unmask": tuple(range(100, 140))}
    cohort = Cohort(MOST_SIGNED + 1, count=40, minimum=3, lost=lost)
    cohort.policy = cohort.policy.model_copy(update={"log_policy": "its own tests have one"})
    cohort.advertise()
    place = 30_000
    rounds = cohort.share(cohort.attempt.close_adverts(cohort.ids, alive_index=place))
    vectors: dict[bytes, bytes] = {}
    receive = cohort.attempt.receive_masked

    def keeping(one: bytes, message: bytes) -> None:
        receive(one, message)
        vectors[one] = message[: cohort.packed_bytes]

    cohort.attempt.receive_masked = keeping  # type: ignore[method-assign,assignment]
    alive = decode_ids(cohort.mask(rounds), "alive")
    cohort.attempt.agreed_by_log()
    for one in cohort.here("unmask", alive):
        state = cohort.states[one]
        assert isinstance(state, client.Masked)
        client.check_alive(state, alive, cohort.policy)
        reply = client.reveal(client.Agreed(before=state, alive=alive))
        cohort.attempt.receive_unmask(one, reply)
    words = cohort.attempt.unmask()
    assert (words == cohort.total.astype(np.uint16)).all()
    transcript = cohort.attempt.transcript()
    again = verify_transcript(
        transcript, cohort.roster, vectors.__getitem__, minimum=3, alive_at=place
    )
    assert (again == words).all()
    with pytest.raises(ProofError, match="not at the place"):
        verify_transcript(transcript, cohort.roster, vectors.__getitem__, minimum=3)


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


def binomial_tail(draws: int, share: float, least: int) -> float:
    """Probability of ``least`` or more of so many."""
    return sum(
        exp(choose(draws, at) + at * log(share) + (draws - at) * log(1 - share))
        for at in range(least, draws + 1)
    )


def choose(total: int, part: int) -> float:
    """Logarithm of the binomial coefficient."""
    return lgamma(total + 1) - lgamma(part + 1) - lgamma(total - part + 1)


@pytest.mark.parametrize("clients", [129, 500, 1000, 2000, 5000, MOST_LOGGED])
def test_with_a_fifth_corrupt_no_sum_is_of_fewer_than_half_of_the_honest(clients: int) -> None:
    """What ADR 0088 claims of the rule's numbers.

    A part of s honest clients can be summed alone only where each has a threshold of its holders inside it or
    among the corrupt; over all parts of up to half of the honest that happens with less than 2^-40. And no
    client among all draws a threshold of corrupt holders.
    """
    corrupt, needed = 0.2, threshold(CHOSEN_HOLDERS)
    honest = int(clients * (1 - corrupt))
    parts = 0.0
    for size in range(1, honest // 2 + 1):
        inside = min(0.999, (size - 1) / (clients - 1) + corrupt)
        tail = binomial_tail(CHOSEN_HOLDERS, inside, needed)
        if tail:
            parts += exp(choose(honest, size) + size * log(tail))
    assert log2(parts) < -50  # it grows with the number of clients: 2^-57 of 129, 2^-51 of 10,000
    assert log2(clients * binomial_tail(CHOSEN_HOLDERS, corrupt, needed)) < -50


def test_messages_of_the_largest_sum_are_read() -> None:
    """Of 10,000 clients: nothing that one of them sends grows, what it is sent does by 16 and by 216 bytes."""
    ids = sorted(client_id(number.to_bytes(2, "big")) for number in range(MOST_LOGGED))
    adverts = tuple(
        Advert(
            sid=bytes(32),
            seq=1,
            client=one,
            channel_key=bytes(32),
            mask_key=bytes(32),
            commitment=bytes(32),
            signature=bytes(64),
        )
        for one in ids
    )
    k = degree(MOST_LOGGED)
    cohort = MessageOfAll(
        degree=k, threshold=threshold(k), alive_index=7, graph_seed=bytes(32), adverts=adverts
    )
    to_share = cohort.encode()
    assert len(to_share) < 2.2e6
    assert decode_cohort(to_share).ids == tuple(ids)
    with refused("cohort.malformed"):
        decode_cohort(to_share[:-216])
    boxes = dict.fromkeys(ids[:CHOSEN_HOLDERS], bytes(92))
    to_mask = encode_round(encode_members(ids), boxes, adverts[:CHOSEN_HOLDERS])
    assert len(to_mask) < 190_000
    members, rest = decode_round(to_mask)
    assert members == tuple(ids)
    assert split_senders(rest, Keys.X25519)[0] == adverts[:CHOSEN_HOLDERS]
    with refused("round.malformed"):
        decode_round(to_mask[: 2 + 16 * MOST_LOGGED - 1])
    with refused("round.order"):
        decode_round(encode_members([*ids[:-1], ids[0]]))
    opening = encode_by_log(b"proof", ids, complete=False)
    assert len(opening) == 4 + 5 + 16 * MOST_LOGGED
    listed = [one.hex() for one in ids]
    files: dict[str, bytes] = {}

    def keep(data: bytes) -> str:
        files[digest := hashlib.sha256(data).hexdigest()] = data
        return digest

    leaf = alive_leaf(seq=1, group=0, rid=bytes(32), alive=ids, signatures={}, keep=keep)
    assert isinstance(leaf.clients, str)
    assert Lists(files.__getitem__).whole(leaf).ids == listed


def test_a_session_in_the_largest_sum_is_kept() -> None:
    """What a client keeps between two messages: it can be read back, and is a megabyte."""
    ids = tuple(sorted(client_id(number.to_bytes(2, "big")) for number in range(MOST_LOGGED)))
    near = ids[: 2 * CHOSEN_HOLDERS]
    masked = client.Masked(
        client=ids[0],
        clients=ids,
        members=ids,
        threshold=54,
        alive_index=7,
        rid=bytes(32),
        held=dict.fromkeys(near, (2**254, 2**254)),
        holders=near,
    )
    session = Session(
        plan="0" * 64,
        run=bytes(16),
        sid=bytes(32),
        seq=1,
        phase=Phase.AGREE,
        seen={},
        asked=bytes(32),
        reply=bytes(64),
        agreed=client.Agreed(before=masked, alive=ids),
    )
    text = session.model_dump_json()
    assert len(text) < 1.5e6 < MOST_SESSION
    assert json_as(Session, text, most=MOST_SESSION, digits=80) == session
