"""What a client submits to a run's log, signed by its identity: complaints, withdrawals. (P-8.6, P-8.18)"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ProofError
from protocol.secagg.primitives import client_id, sign, signature_is_valid
from protocol.transparency.dsse import REMEDY
from protocol.transparency.leaves import Complaint, Request

WITHDRAWAL = "withdrawal"  # the tag of its signature, and the `kind` of the request's file
MOST_REQUEST = 4096  # bytes of a request
AGAIN = "ask the site to run `fedge client withdraw` and send the file again"


def sign_complaint(*, client: bytes, about: str, receipt: str, key: Ed25519PrivateKey) -> Complaint:
    """A complaint of ``client`` (its id, 16 bytes), signed. (P-8.6)"""
    body = {"client": client.hex(), "about": about, "receipt": receipt}
    return Complaint(**body, signature=sign(key, "complaint", canonical_json(body)).hex())


def verify_complaint(complaint: Complaint, public: bytes) -> None:
    """It is signed by the client's raw key ``public``. Raises ProofError."""
    body = complaint.model_dump(mode="json", exclude={"signature"})
    signature = bytes.fromhex(complaint.signature)
    if not signature_is_valid(public, "complaint", canonical_json(body), signature):
        raise ProofError(f"a complaint that {complaint.client} did not sign", REMEDY)


def sign_request(*, origin: str, sid: str, key: Ed25519PrivateKey) -> Request:
    """The owner of ``key`` withdraws from run ``sid`` (32 bytes in hex), whose log is ``origin``. (P-8.18)"""
    client = client_id(key.public_key().public_bytes_raw()).hex()
    body = {"client": client, "origin": origin, "sid": sid}
    return Request(**body, signature=sign(key, WITHDRAWAL, canonical_json(body)).hex())


def verify_request(request: Request, public: bytes) -> None:
    """It is signed by the client's raw key ``public``. Raises ProofError."""
    body = request.model_dump(mode="json", exclude={"signature"})
    signature = bytes.fromhex(request.signature)
    if not signature_is_valid(public, WITHDRAWAL, canonical_json(body), signature):
        raise ProofError(f"a withdrawal that {request.client} did not sign", AGAIN)


def encode_request(request: Request) -> bytes:
    """The request's file."""
    return canonical_json({"kind": WITHDRAWAL, **request.model_dump(mode="json")}) + b"\n"


def parse_request(data: bytes) -> Request:
    """A request's file, whoever signed it. Raises ProofError for another form or spelling."""
    value = request_value(data)
    if value is None:
        raise ProofError("not a request of withdrawal", AGAIN)
    try:
        return Request.model_validate(value)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "it"
        raise ProofError(f"a request of withdrawal: `{where}` is odd", AGAIN) from None


def request_value(data: bytes) -> dict[str, Any] | None:
    """The fields of a file that means to be a request; None of any other."""
    try:
        value = parse_canonical(data.removesuffix(b"\n")) if len(data) <= MOST_REQUEST else None
    except ValueError:
        return None
    if not isinstance(value, dict) or value.pop("kind", None) != WITHDRAWAL:
        return None
    return value
