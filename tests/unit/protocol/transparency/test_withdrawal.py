"""Withdrawals: the request that a client signs, and what its updates are in by the leaves alone."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProofError
from protocol.transparency.leaf_codec import Read, decode_leaf, encode_statement
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Alive,
    AskedSum,
    Leaf,
    OpenedSum,
    Release,
    Request,
    RoundAdapter,
)
from protocol.transparency.submissions import (
    encode_request,
    parse_request,
    sign_request,
    verify_request,
)
from protocol.transparency.withdrawal import (
    HeldSum,
    TouchedRelease,
    effect_of,
    takes_part,
    withdrawal_of,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
CLIENT = "56475aa75463474c0285df5dbf2bcab7"  # SHA-256 of PUBLIC, by hand
OTHERS = [f"{n:032x}" for n in range(4)]
FIELDS = {"client": CLIENT, "origin": "fedge/ward/00", "sid": "ab" * 32}


def request(**changes: str) -> Request:
    signed = sign_request(origin=FIELDS["origin"], sid=FIELDS["sid"], key=KEY)
    return signed.model_copy(update=changes)


def test_a_request_is_signed_over_these_very_bytes() -> None:
    message = (
        b'fedge/withdrawal/v1\x00{"client":"56475aa75463474c0285df5dbf2bcab7",'
        b'"origin":"fedge/ward/00","sid":"' + b"ab" * 32 + b'"}'
    )
    assert request().signature == KEY.sign(message).hex()
    assert json.loads(encode_request(request())) == {
        "kind": "withdrawal",
        "signature": KEY.sign(message).hex(),
        **FIELDS,
    }
    assert parse_request(encode_request(request())) == request()
    verify_request(request(), PUBLIC)


@pytest.mark.parametrize(
    "changes",
    [
        {"client": OTHERS[0]},
        {"origin": "fedge/other/00"},
        {"sid": "cd" * 32},
        {"signature": "00" * 64},
        {"signature": ""},
    ],
)
def test_a_request_that_its_client_did_not_sign_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ProofError, match="did not sign"):
        verify_request(request(**changes), PUBLIC)
    with pytest.raises(ProofError, match="did not sign"):
        verify_request(request(), OTHER_PUBLIC)


OTHER_PUBLIC = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"withdrawal", b"complaint"),
        lambda text: text.replace(b'"sid"', b'"Sid"'),
        lambda text: text.replace(b"{", b"{ ", 1),
        lambda text: text.replace(b"56475aa", b"56475AA"),
        lambda text: text + b"\n",
        lambda text: text[:-9],
        lambda text: b"[]\n",
        lambda text: b"\xff",
        lambda text: text.replace(b"ward", b"w" * 5000),
    ],
)
def test_another_form_is_no_request(change: Any) -> None:
    with pytest.raises(ProofError):
        parse_request(change(encode_request(request())))


# -- what follows from the leaves -------------------------------------------------------------------


def alive(rid: str, clients: list[str]) -> Alive:
    return Alive(seq=1, group=0, rid=rid, clients=clients, signatures={})


def adapter(number: int, *rids: str, seq: int = 1) -> Adapter:
    sums = [OpenedSum(group=g, rid=rid, summands=3, kept=True) for g, rid in enumerate(rids)]
    digest = f"{number:064x}"
    return Adapter(
        round=number,
        attempt=1,
        seq=seq,
        adapter_in=digest,
        adapter_out=digest,
        published=digest,
        exchange="secagg",
        sums=sums,
        void="",
    )


def rid(number: int) -> str:
    return f"{number:064x}"


def placed(leaves: list[Leaf], subjects: dict[int, dict[str, str]]) -> list[tuple[int, Read]]:
    return [
        (index, Read(leaf=leaf, subjects=subjects.get(index, {})))
        for index, leaf in enumerate(leaves)
    ]


def test_the_effect_of_a_small_log() -> None:
    asked = AskedSum(group=0, rid=rid(7), clients=[CLIENT, OTHERS[0]])
    leaves: list[Leaf] = [
        adapter(0),
        alive(rid(1), OTHERS),
        adapter(1, rid(1)),
        Abort(seq=2, group=None, round=2, attempt=1, revealed=[asked]),
        alive(rid(2), OTHERS),
        alive(rid(3), [CLIENT]),
        adapter(2, rid(2), rid(3), seq=3),
        Release(round=1, adapter=2, eval=None),
        Release(round=2, adapter=6, eval=None),
        alive(rid(4), OTHERS),
        adapter(3, rid(4)),
    ]
    effect = effect_of(
        placed(leaves, {8: {"rounds/0002/adapter/release.json": "cc" * 32}}), {CLIENT}
    )
    assert effect.sums == (HeldSum(round=2, seq=3, group=1, rid=rid(3)),)
    assert effect.asked == (HeldSum(round=2, seq=2, group=0, rid=rid(7)),)
    assert [each.round for each in effect.adapters] == [2, 3]
    assert effect.releases == (TouchedRelease(leaf=8, round=2, release="cc" * 32),)
    assert effect.before == RoundAdapter(round=1, adapter=f"{1:064x}")
    assert [effect.touches(number) for number in range(4)] == [False, False, True, True]
    # By `sha256sum` of the text of P-8.18.
    assert effect.digest == DIGEST
    leaf, subjects = withdrawal_of(request(), effect)
    assert (leaf.first, leaf.rounds, leaf.asked, leaf.adapters, leaf.releases) == (2, 1, 1, 2, 1)
    read = decode_leaf(encode_statement(leaf, subjects, KEY))
    assert (read.leaf, read.subjects) == (leaf, {"lineage": DIGEST})


def text_of_lineage() -> bytes:
    """The lineage of that log, written by hand."""
    n = [f"{number:064x}".encode() for number in range(8)]
    parts = [
        b'{"adapters":[{"adapter":"'
        + n[2]
        + b'","round":2},{"adapter":"'
        + n[3]
        + b'","round":3}]',
        b'"asked":[{"group":0,"rid":"' + n[7] + b'","round":2,"seq":2}]',
        b'"before":{"adapter":"' + n[1] + b'","round":1}',
        b'"clients":["' + CLIENT.encode() + b'"]',
        b'"releases":[{"leaf":8,"release":"' + b"cc" * 32 + b'","round":2}]',
        b'"sums":[{"group":1,"rid":"' + n[3] + b'","round":2,"seq":3}]}',
    ]
    return b",".join(parts)


DIGEST = sha256(text_of_lineage()).hexdigest()

SETS = st.lists(
    st.lists(st.lists(st.sampled_from([CLIENT, *OTHERS]), min_size=1, unique=True), max_size=3),
    max_size=8,
)


@given(SETS)
def test_an_adapter_is_touched_exactly_when_a_sum_on_its_way_holds_the_client(
    rounds: list[list[list[str]]],
) -> None:
    """Of every log, and of each of its beginnings; `before` and the touched adapters are all of them."""
    leaves: list[Leaf] = [adapter(0)]
    holds = [False]
    for number, groups in enumerate(rounds, start=1):
        rids = [rid(10 * number + group) for group in range(len(groups))]
        leaves += [alive(one, clients) for one, clients in zip(rids, groups, strict=True)]
        leaves.append(adapter(number, *rids))
        holds.append(any(CLIENT in clients for clients in groups))
        effect = effect_of(placed(leaves, {}), {CLIENT})
        descends = [any(holds[: each + 1]) for each in range(number + 1)]
        assert [effect.touches(each) for each in range(number + 1)] == descends
        assert [each.round for each in effect.adapters] == [n for n, d in enumerate(descends) if d]
        assert effect.rounds == tuple(n for n, held in enumerate(holds) if held)
        assert effect.before is not None
        assert effect.before.round == descends.count(False) - 1


def test_who_takes_part() -> None:
    """In each kind of leaf that a request for a sum leaves behind."""
    asked = AskedSum(group=0, rid=rid(7), clients=[CLIENT])
    for leaf in (
        alive(rid(1), [CLIENT]),
        Abort(seq=2, group=None, round=2, attempt=1, revealed=[asked]),
    ):
        assert takes_part(Read(leaf=leaf), CLIENT)
        assert not takes_part(Read(leaf=leaf), OTHERS[0])
    assert not takes_part(Read(leaf=adapter(1, rid(1))), CLIENT)
