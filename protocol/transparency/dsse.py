"""DSSE envelopes around in-toto statements: what everybody but a client writes into the log. (P-8.5)

Source: DSSE v1.0.2 and in-toto Attestation Framework v1, in canonical JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding import base64_bytes, base64_text, canonical_json, parse_canonical
from protocol.errors import ProofError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
KEY_ID = 16  # hex digits
REMEDY = "the log is faulty or dishonest, or the copy is damaged: keep it as evidence"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Signature(_Strict):
    """Whose it is, by the start of a digest of its key; a hint, never a check."""

    keyid: str
    sig: str


class Envelope(_Strict):
    """A payload (base64) with one signature."""

    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: list[Signature] = Field(min_length=1, max_length=1)


class Subject(_Strict):
    """A file, or what else a statement speaks about, by SHA-256."""

    name: str
    digest: dict[str, str]


class Statement(_Strict):
    """in-toto's Statement, version 1."""

    type: str = Field(alias="_type")
    subject: list[Subject] = Field(min_length=1)
    predicate_type: str = Field(alias="predicateType")
    predicate: dict[str, Any]


def key_id(public: bytes) -> str:
    """16 hex digits that find a raw Ed25519 public key."""
    return hashlib.sha256(public).hexdigest()[:KEY_ID]


def sign_statement(
    predicate_type: str,
    predicate: Mapping[str, Any],
    subjects: Mapping[str, str],
    key: Ed25519PrivateKey,
) -> bytes:
    """An envelope in canonical JSON; ``subjects`` are SHA-256 digests in hex by name."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subjects.items())],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }
    payload = canonical_json(statement)
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    public = key.public_key().public_bytes_raw()
    return canonical_json(
        {
            "payload": base64_text(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": key_id(public), "sig": base64_text(signature)}],
        }
    )


def parse_envelope(value: Any) -> tuple[Envelope, Statement]:
    """Both, unverified, from parsed canonical JSON. Raises ProofError for anything else."""
    try:
        envelope = Envelope.model_validate(value)
        payload = base64_bytes(envelope.payload)
        statement = Statement.model_validate(parse_canonical(payload))
    except (ValidationError, ValueError):
        raise _bad("not an in-toto statement in a DSSE envelope") from None
    if (envelope.payload_type, statement.type) != (PAYLOAD_TYPE, STATEMENT_TYPE):
        raise _bad("a payload or statement of another type")
    if any(set(subject.digest) != {"sha256"} for subject in statement.subject):
        raise _bad("a subject without its SHA-256")
    return envelope, statement


def verify_envelope(envelope: Envelope, public: bytes) -> None:
    """The signature is that of the raw Ed25519 key ``public``. Raises ProofError."""
    signature = envelope.signatures[0]
    payload = base64_bytes(envelope.payload)
    try:
        raw = base64_bytes(signature.sig)
        if signature.keyid != key_id(public):
            raise ValueError
        statement = pae(envelope.payload_type, payload)
        Ed25519PublicKey.from_public_bytes(public).verify(raw, statement)
    except (InvalidSignature, ValueError):
        raise _bad(f"not signed by {key_id(public)}") from None


def pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed of an envelope."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
