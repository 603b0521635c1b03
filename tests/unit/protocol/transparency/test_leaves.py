"""Leaves are read strictly: one spelling, known kinds and fields, signed by who must have signed."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ProofError
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import (
    decode_leaf,
    encode_message,
    encode_statement,
    verify_author,
)
from protocol.transparency.leaves import Abort, Advert, Audit
from protocol.transparency.submissions import sign_complaint, verify_complaint

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
ABORT = Abort(seq=3, group=None, round=1, attempt=2, revealed=[])
SUBJECT = {"plan": "0" * 64}


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_a_statement_is_an_in_toto_statement_in_dsse() -> None:
    data = encode_statement(ABORT, SUBJECT, KEY)
    envelope = json.loads(data)
    payload = base64.b64decode(envelope["payload"])
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:fedge:leaf:abort:1"
    assert statement["subject"] == [{"name": "plan", "digest": {"sha256": "0" * 64}}]
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload) + payload
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    KEY.public_key().verify(signature, signed)
    read = decode_leaf(data)
    assert read.leaf == ABORT
    assert read.subjects == SUBJECT
    verify_author(read, public(KEY))
    with pytest.raises(ProofError, match="not signed by the log's key"):
        verify_author(read, public(OTHER))


def test_an_auditor_signs_its_own_verdict() -> None:
    verdict = Audit(size=3, verdict="ok", rounds={"1": "ok"}, tool="t", auditor=public(OTHER).hex())
    verify_author(decode_leaf(encode_statement(verdict, SUBJECT, OTHER)), public(KEY))
    with pytest.raises(ProofError, match="its auditor"):
        verify_author(decode_leaf(encode_statement(verdict, SUBJECT, KEY)), public(KEY))


def test_a_complaint_is_its_clients() -> None:
    one = client_id(public(KEY))
    complaint = sign_complaint(client=one, about="refused", receipt="", key=KEY)
    assert decode_leaf(encode_message(complaint)).leaf == complaint
    verify_complaint(complaint, public(KEY))
    with pytest.raises(ProofError, match="did not sign"):
        verify_complaint(complaint.model_copy(update={"about": "lost"}), public(KEY))


def spelled(change: Any) -> bytes:
    value = json.loads(encode_message(Advert(group=0, advert="00")))
    return change(value) if callable(change) else bytes(change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"kind":"advert","group":0,"advert":"00"}',  # keys out of order
        b'{"advert": "00","group":0,"kind":"advert"}',
        b'{"advert":"00","group":0,"kind":"advert"}\n',
        b'{"advert":"00","group":0,"group":0,"kind":"advert"}',
        b'{"advert":"00","group":0.0,"kind":"advert"}',
        b'{"advert":"00","group":1e0,"kind":"advert"}',
        b'{"advert":"00","group":NaN,"kind":"advert"}',
        b'{"advert":"00","group":9007199254740992,"kind":"advert"}',
        b'{"advert":"00","group":true,"kind":"advert"}',
        b'{"advert":"0","group":0,"kind":"advert"}',
        b'{"advert":"AB","group":0,"kind":"advert"}',
        b'{"advert":"00","group":0,"kind":"adverts"}',
        b'{"advert":"00","group":0,"kind":["advert"]}',
        b'{"advert":"00","extra":1,"group":0,"kind":"advert"}',
        b'{"advert":"00","kind":"advert"}',
        b'{"advert":"' + b"0" * 65_600 + b'","group":0,"kind":"advert"}',
        b'{"advert":"\xff","group":0,"kind":"advert"}',
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_another_spelling_or_kind_is_refused(data: bytes) -> None:
    assert decode_leaf(b'{"advert":"00","group":0,"kind":"advert"}')
    with pytest.raises(ProofError):
        decode_leaf(data)


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/plain"},
        {"signatures": []},
        {"extra": 1},
        {"payload": "!"},
        {"payload": base64.b64encode(b"{}").decode()},
    ],
)
def test_another_envelope_is_refused(change: dict[str, Any]) -> None:
    envelope = json.loads(encode_statement(ABORT, SUBJECT, KEY)) | change
    with pytest.raises(ProofError):
        decode_leaf(canonical_json(envelope))


def test_every_flipped_bit_of_a_statement_is_noticed() -> None:
    data = encode_statement(ABORT, SUBJECT, KEY)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ProofError):
            verify_author(decode_leaf(changed), public(KEY))


def test_a_leaf_too_large_is_not_written() -> None:
    with pytest.raises(ValueError, match="the log takes"):
        encode_message(Advert(group=0, advert="00" * 40_000))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_canonical_bytes_are_read_back(value: Any) -> None:
    try:
        data = canonical_json(value)
    except UnicodeEncodeError:
        return  # lone surrogates have no UTF-8
    assert parse_canonical(data) == value
