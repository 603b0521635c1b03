"""Receipts: the coordinator says, signed, that it has a client's masked vector. (P-8.9)

A receipt without its leaf in the log, or an `abort` of its attempt, is evidence against the coordinator.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.encoding import parse_canonical
from protocol.errors import ProofError
from protocol.transparency.dsse import Envelope, parse_envelope, sign_statement, verify_envelope
from protocol.transparency.leaves import (
    Abort,
    ClientId,
    Count,
    Leaf,
    Sha256,
    Vector,
)

PREDICATE, SUBJECT = "urn:fedge:receipt:1", "vector"
MOST_CHARACTERS = 4000  # a complaint takes no longer one
REMEDY = "the coordinator is faulty or dishonest: keep what you have as evidence"


class Receipt(BaseModel):
    """Whose vector (by its signed ``root``) arrived in which attempt of which run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    origin: str  # of the log
    client: ClientId
    sid: Sha256
    seq: Count
    rid: Sha256
    root: Sha256
    round: Count
    attempt: Count

    def accounted_by(self, leaf: Leaf) -> bool:
        """Whether ``leaf`` says what became of the vector: it is in the log, or its attempt failed."""
        if isinstance(leaf, Vector):
            return (leaf.client, leaf.rid, leaf.root) == (self.client, self.rid, self.root)
        if isinstance(leaf, Abort):
            # A client does not know its group's number: the abort of any of its attempt will do.
            return (leaf.seq, leaf.round, leaf.attempt) == (self.seq, self.round, self.attempt)
        return False


def sign_receipt(receipt: Receipt, key: Ed25519PrivateKey) -> str:
    """An envelope in canonical JSON."""
    subjects = {SUBJECT: receipt.root}
    text = sign_statement(PREDICATE, receipt.model_dump(), subjects, key).decode()
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a receipt of {len(text)} characters")
    return text


def unverified_receipt(text: str) -> Receipt:
    """What the envelope says, whoever signed it. Raises ProofError for another form."""
    return _parsed(text)[0]


def verify_receipt(text: str, public: bytes) -> Receipt:
    """The receipt, signed by the log's raw key ``public``. Raises ProofError."""
    receipt, envelope = _parsed(text)
    verify_envelope(envelope, public)
    return receipt


def _parsed(text: str) -> tuple[Receipt, Envelope]:
    try:
        if len(text) > MOST_CHARACTERS:
            raise ValueError
        envelope, statement = parse_envelope(parse_canonical(text.encode()))
        receipt = Receipt.model_validate(statement.predicate)
    except (ValidationError, ValueError):
        raise ProofError("not a receipt", REMEDY) from None
    subjects = [(one.name, one.digest["sha256"]) for one in statement.subject]
    if statement.predicate_type != PREDICATE or subjects != [(SUBJECT, receipt.root)]:
        raise ProofError("a receipt of another kind, or about something else than its root", REMEDY)
    return receipt, envelope
