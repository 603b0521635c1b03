"""How leaves are written and read: the bytes of each kind. (P-8.5 to P-8.7)

Clients' messages are bare objects with the client's signature inside; everything else is a signed
statement. Reading is strict: an unknown kind, field or spelling is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, ValidationError

from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ProofError
from protocol.transparency.dsse import (
    REMEDY,
    Envelope,
    parse_envelope,
    sign_statement,
    verify_envelope,
)
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Advert,
    Aggregate,
    Alive,
    Audit,
    Cohort,
    Complaint,
    Evaluation,
    Leaf,
    Pad,
    PlanLeaf,
    Release,
    Retention,
    Reveal,
    Roster,
    RoundOpen,
    Shares,
    Spent,
    Vector,
    Withdrawal,
)

MOST_BYTES = 65_535
PREDICATE = "urn:fedge:leaf:{}:1"
MESSAGES: dict[str, type[Leaf]] = {c.kind: c for c in (Advert, Shares, Vector, Complaint)}
STATEMENTS: dict[str, type[Leaf]] = {
    PREDICATE.format(c.kind): c
    for c in (
        PlanLeaf,
        Roster,
        Cohort,
        RoundOpen,
        Alive,
        Reveal,
        Aggregate,
        Spent,
        Adapter,
        Abort,
        Evaluation,
        Release,
        Retention,
        Audit,
        Withdrawal,
        Pad,
    )
}


class Read(BaseModel):
    """A leaf as it was read: ``envelope`` and ``subjects`` (SHA-256 by name) of a statement."""

    model_config = ConfigDict(frozen=True)
    leaf: Leaf
    envelope: Envelope | None = None
    subjects: dict[str, str] = {}


def encode_message(leaf: Leaf) -> bytes:
    """A client's message as a leaf."""
    return _fitting(canonical_json({"kind": leaf.kind, **leaf.model_dump(mode="json")}))


def encode_statement(leaf: Leaf, subjects: Mapping[str, str], key: Ed25519PrivateKey) -> bytes:
    """A statement about ``subjects`` (SHA-256 in hex by name), signed by ``key``."""
    predicate = leaf.model_dump(mode="json")
    return _fitting(sign_statement(PREDICATE.format(leaf.kind), predicate, subjects, key))


def decode_leaf(data: bytes) -> Read:
    """Read a leaf strictly; its signature is not checked here. Raises ProofError."""
    if len(data) > MOST_BYTES:
        raise ProofError(f"a leaf of {len(data)} bytes", REMEDY)
    try:
        value = parse_canonical(data)
    except ValueError:
        raise ProofError("a leaf that is not canonical JSON", REMEDY) from None
    if isinstance(value, dict) and "kind" in value:
        kind = value.pop("kind")
        return Read(leaf=_validated(MESSAGES.get(kind) if isinstance(kind, str) else None, value))
    envelope, statement = parse_envelope(value)
    leaf = _validated(STATEMENTS.get(statement.predicate_type), statement.predicate)
    subjects = {subject.name: subject.digest["sha256"] for subject in statement.subject}
    if list(subjects) != sorted(subjects) or len(subjects) != len(statement.subject):
        raise ProofError("a statement names a subject twice, or not in the order of names", REMEDY)
    return Read(leaf=leaf, envelope=envelope, subjects=subjects)


def verify_author(read: Read, *log_keys: bytes) -> None:
    """A statement is signed by one of the log's keys, an auditor's by its own. Raises ProofError."""
    if read.envelope is None:
        return
    who, keys = "the log's key", log_keys
    if isinstance(read.leaf, Audit):
        who, keys = "its auditor", (bytes.fromhex(read.leaf.auditor),)
    for public in keys:
        with suppress(ProofError):
            return verify_envelope(read.envelope, public)
    raise ProofError(f"a leaf `{read.leaf.kind}` not signed by {who}", REMEDY)


def sha256(data: bytes | memoryview) -> str:
    """What subjects and files are named by."""
    return hashlib.sha256(data).hexdigest()


def _validated(model: type[Leaf] | None, value: dict[str, Any]) -> Leaf:
    if model is None:
        raise ProofError("a leaf of an unknown kind", REMEDY)
    try:
        leaf = model.model_validate(value)
        if leaf.model_dump(mode="json") != value:
            raise ProofError(f"a leaf `{model.kind}` without all of its fields", REMEDY)
        return leaf
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "it"
        fault = error.errors()[0]["msg"]
        raise ProofError(f"a leaf `{model.kind}`: `{where}`: {fault}", REMEDY) from None


def _fitting(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise ValueError(f"a leaf of {len(data)} bytes; the log takes {MOST_BYTES}")
    return data
