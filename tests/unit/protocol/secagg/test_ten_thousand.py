"""Sums of up to 10,000 clients, whom a log says to be in it: what they rest on, and that all of it is read."""

from __future__ import annotations

import hashlib
from math import exp, lgamma, log, log2
from typing import Any

import numpy as np
import pytest

from client.sessions import MOST_SESSION
from protocol.documents import json_as
from protocol.errors import ProofError, SecrecyError
from protocol.exchange import Phase
from protocol.legality_of_secrecy import MOST_LOGGED, MOST_SIGNED
from protocol.secagg import client
from protocol.secagg.agreement import Keys
from protocol.secagg.graph import CHOSEN_HOLDERS, degree, threshold
from protocol.secagg.messages import (
    Advert,
    decode_cohort,
    decode_ids,
    decode_round,
    encode_members,
    encode_round,
    split_senders,
)
from protocol.secagg.messages import Cohort as MessageOfAll
from protocol.secagg.primitives import client_id
from protocol.secagg.session import Session
from protocol.secagg.verification import verify_transcript
from protocol.secagg.witnessed import encode_by_log
from protocol.transparency.lists import Lists
from protocol.transparency.sum_leaves import alive_leaf
from tests.unit.protocol.secagg.conftest import Cohort

IDS = tuple(sorted(client_id(number.to_bytes(2, "big")) for number in range(MOST_LOGGED)))


def refused(code: str) -> Any:
    return pytest.raises(SecrecyError, match=f"^{code}")


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


def test_the_cohort_of_the_largest_sum_is_read() -> None:
    """216 bytes a client."""
    k = degree(MOST_LOGGED)
    cohort = MessageOfAll(
        degree=k,
        threshold=threshold(k),
        alive_index=7,
        graph_seed=bytes(32),
        adverts=tuple(map(advert_of, IDS)),
    )
    message = cohort.encode()
    assert len(message) < 2.2e6
    assert decode_cohort(message).ids == IDS
    with refused("cohort.malformed"):
        decode_cohort(message[:-216])


def advert_of(one: bytes) -> Advert:
    return Advert(
        sid=bytes(32),
        seq=1,
        client=one,
        channel_key=bytes(32),
        mask_key=bytes(32),
        commitment=bytes(32),
        signature=bytes(64),
    )


def test_a_round_of_the_largest_sum_is_read() -> None:
    """16 bytes a client, and what its holders' number alone says."""
    adverts = tuple(map(advert_of, IDS[:CHOSEN_HOLDERS]))
    boxes = dict.fromkeys(IDS[:CHOSEN_HOLDERS], bytes(92))
    message = encode_round(encode_members(IDS), boxes, adverts)
    assert len(message) < 190_000
    members, rest = decode_round(message)
    assert members == IDS
    assert split_senders(rest, Keys.X25519)[0] == adverts
    with refused("round.malformed"):
        decode_round(message[: 2 + 16 * MOST_LOGGED - 1])
    with refused("round.order"):
        decode_round(encode_members([*IDS[:-1], IDS[0]]))
    assert len(encode_by_log(b"proof", IDS, complete=False)) == 4 + 5 + 16 * MOST_LOGGED


def test_the_alive_set_of_the_largest_sum_is_a_file() -> None:
    files: dict[str, bytes] = {}

    def keep(data: bytes) -> str:
        files[digest := hashlib.sha256(data).hexdigest()] = data
        return digest

    leaf = alive_leaf(seq=1, group=0, rid=bytes(32), alive=IDS, signatures={}, keep=keep)
    assert isinstance(leaf.clients, str)
    assert Lists(files.__getitem__).whole(leaf).ids == [one.hex() for one in IDS]
    cut = {leaf.clients: files[leaf.clients][:-16]}
    with pytest.raises(ProofError, match="other bytes"):
        Lists(cut.__getitem__).whole(leaf)


def test_a_session_in_the_largest_sum_is_kept() -> None:
    """What a client keeps between two messages: it can be read back, and is a megabyte."""
    near = IDS[: 2 * CHOSEN_HOLDERS]
    masked = client.Masked(
        client=IDS[0],
        clients=IDS,
        members=IDS,
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
        agreed=client.Agreed(before=masked, alive=IDS),
    )
    text = session.model_dump_json()
    assert len(text) < 1.5e6 < MOST_SESSION
    assert json_as(Session, text, most=MOST_SESSION, digits=80) == session
