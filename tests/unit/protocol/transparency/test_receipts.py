"""Receipts are read strictly, and account for what they are about only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.encoding import canonical_json
from protocol.errors import ProofError
from protocol.transparency.dsse import sign_statement
from protocol.transparency.leaves import Abort, Pad, Vector
from protocol.transparency.receipts import (
    PREDICATE,
    Receipt,
    sign_receipt,
    unverified_receipt,
    verify_receipt,
)

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
RECEIPT = Receipt(
    origin="fedge/t/00",
    client="1" * 32,
    sid="2" * 64,
    seq=3,
    rid="4" * 64,
    root="5" * 64,
    round=6,
    attempt=1,
)
VECTOR = Vector(client="1" * 32, rid="4" * 64, root="5" * 64, length=8, signature="")
ABORT = Abort(seq=3, group=2, round=6, attempt=1, revealed=[])


def test_there_and_back() -> None:
    text = sign_receipt(RECEIPT, KEY)
    assert verify_receipt(text, PUBLIC) == unverified_receipt(text) == RECEIPT
    assert len(text) < 1500


def test_every_flipped_bit_is_noticed() -> None:
    data = sign_receipt(RECEIPT, KEY).encode()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ProofError):
            verify_receipt(changed.decode(), PUBLIC)


BODY = RECEIPT.model_dump()


@pytest.mark.parametrize(
    ("kind", "predicate", "subjects"),
    [
        ("urn:fedge:leaf:abort:1", BODY, {"vector": RECEIPT.root}),
        (PREDICATE, BODY, {"vector": "0" * 64}),
        (PREDICATE, BODY, {"message": RECEIPT.root}),
        (PREDICATE, BODY, {"vector": RECEIPT.root, "other": RECEIPT.root}),
        (PREDICATE, BODY | {"group": 1}, {"vector": RECEIPT.root}),
        (PREDICATE, BODY | {"seq": True}, {"vector": RECEIPT.root}),
        (PREDICATE, {"seq": 1}, {"vector": RECEIPT.root}),
        (PREDICATE, BODY | {"origin": "x" * 4000}, {"vector": RECEIPT.root}),
    ],
)
def test_another_statement_is_no_receipt(
    kind: str, predicate: dict[str, Any], subjects: dict[str, str]
) -> None:
    with pytest.raises(ProofError):
        verify_receipt(sign_statement(kind, predicate, subjects, KEY).decode(), PUBLIC)


@pytest.mark.parametrize("text", ["", "{}", "[" * 3000, "x", "\ud800"])
def test_another_form_is_no_receipt(text: str) -> None:
    with pytest.raises(ProofError):
        unverified_receipt(text)


def test_another_spelling_is_no_receipt() -> None:
    value = json.loads(sign_receipt(RECEIPT, KEY))
    assert canonical_json(value).decode() == sign_receipt(RECEIPT, KEY)
    with pytest.raises(ProofError):
        unverified_receipt(json.dumps(value))


def test_a_receipt_that_fits_nowhere_is_not_signed() -> None:
    with pytest.raises(ValueError, match="characters"):
        sign_receipt(RECEIPT.model_copy(update={"origin": "x" * 4000}), KEY)


def test_what_accounts_for_a_receipt() -> None:
    assert RECEIPT.accounted_by(VECTOR)
    assert RECEIPT.accounted_by(ABORT)
    assert RECEIPT.accounted_by(ABORT.model_copy(update={"group": None}))
    assert not RECEIPT.accounted_by(Pad())
    for name in ("client", "rid", "root"):
        other = "0" * len(getattr(VECTOR, name))
        assert not RECEIPT.accounted_by(VECTOR.model_copy(update={name: other}))
    for name in ("seq", "round", "attempt"):
        assert not RECEIPT.accounted_by(ABORT.model_copy(update={name: 9}))
