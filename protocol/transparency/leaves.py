"""The leaves of a run's log: what each kind holds, how it is written and read. (P-8.5 to P-8.7)

Clients' messages are bare objects with the client's signature inside; everything else is a signed
statement. Reading is strict: an unknown kind, field or spelling is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ProofError
from protocol.privacy.ledger import Entry
from protocol.transparency.dsse import (
    REMEDY,
    Envelope,
    parse_envelope,
    sign_statement,
    verify_envelope,
)

MOST_BYTES = 65_535
Void = Literal["", "its sum could not be opened", "its sum is impossible"]  # why a round has none
UNOPENED: Void = "its sum could not be opened"
IMPOSSIBLE: Void = "its sum is impossible"
PREDICATE = "urn:fedge:leaf:{}:1"
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ClientId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Leaf(BaseModel):
    """What one leaf says. ``kind`` is its name in the log."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    kind: ClassVar[str]


class Advert(Leaf):
    """A client's signed keys for one attempt."""

    kind: ClassVar[str] = "advert"
    group: Count
    advert: Hex


class Shares(Leaf):
    """A client's signed root over the shares it sealed."""

    kind: ClassVar[str] = "shares"
    client: ClientId
    xid: Sha256
    root: Sha256
    signature: Hex


class Vector(Leaf):
    """A client's signed root over its masked vector of ``length`` bytes."""

    kind: ClassVar[str] = "vector"
    client: ClientId
    rid: Sha256
    root: Sha256
    length: Count
    signature: Hex


class Complaint(Leaf):
    """A client says that it was wronged; ``receipt`` is what it holds, if anything."""

    kind: ClassVar[str] = "complaint"
    client: ClientId
    about: Annotated[str, Field(max_length=500)]
    receipt: Annotated[str, Field(max_length=4000)]
    signature: Hex


class PlanLeaf(Leaf):
    """What the run is about."""

    kind: ClassVar[str] = "plan"
    origin: str
    run: ClientId
    plan: Sha256
    base: Sha256
    retention_days: Count


class Roster(Leaf):
    """Who may take part from here on."""

    kind: ClassVar[str] = "roster"
    root: Sha256
    clients: Count


class Cohort(Leaf):
    """Who advertised in an attempt (or one group of it), and their graph."""

    kind: ClassVar[str] = "cohort"
    seq: Count
    group: Count
    u1_root: Sha256
    graph_seed: Sha256
    degree: Count
    threshold: Count
    alive_index: Count | None
    xid: Sha256


class RoundOpen(Leaf):
    """Who shared, and the terms that all masks are bound to."""

    kind: ClassVar[str] = "round-open"
    seq: Count
    group: Count
    round: Count
    attempt: Count
    rid: Sha256
    xid: Sha256
    members: Annotated[list[ClientId], Field(min_length=1)]
    terms: dict[str, Any]
    count: Count
    code: Sha256


class Alive(Leaf):
    """Whose vectors are in the sum, with their signatures where there is no witness."""

    kind: ClassVar[str] = "alive"
    seq: Count
    group: Count
    rid: Sha256
    clients: list[ClientId]
    signatures: dict[ClientId, Hex]


class Reveal(Leaf):
    """One seed per member."""

    kind: ClassVar[str] = "reveal"
    seq: Count
    group: Count
    rid: Sha256
    seeds: dict[ClientId, Sha256]
    boxes: Hex  # SHA-256 of the file, or empty


class Aggregate(Leaf):
    """The sum."""

    kind: ClassVar[str] = "aggregate"
    seq: Count
    group: Count
    rid: Sha256
    round: Count
    summands: Count
    sum: Sha256


class Spent(Leaf):
    """A line of the privacy ledger."""

    kind: ClassVar[str] = "dp"
    entry: Entry


class OpenedSum(Leaf):
    """A group's part in a round's adapter; ``rid`` is what its members know it by."""

    kind: ClassVar[str] = ""
    group: Count
    rid: Sha256
    summands: Count
    kept: bool


class Adapter(Leaf):
    """What a round made of its sums. Digests of adapters are P-2.4's; files are the subjects.

    ``void`` is empty or why the round has no sum.
    """

    kind: ClassVar[str] = "adapter"
    round: Count
    attempt: Count
    seq: Count
    adapter_in: Hex
    adapter_out: Sha256
    published: Sha256
    exchange: Literal["secagg", "plain"]
    sums: list[OpenedSum]
    void: Void


class AskedSum(Leaf):
    """A sum that clients were asked to open, of ``clients`` (U3): whoever asked may hold it."""

    kind: ClassVar[str] = ""
    group: Count
    rid: Sha256
    clients: Annotated[list[ClientId], Field(min_length=1)]


class Abort(Leaf):
    """An attempt that gave no sum; ``revealed``: what clients had been asked to open all the same.

    With a ``group``, only that group's sum is missing: others of the attempt were opened.
    """

    kind: ClassVar[str] = "abort"
    seq: Count
    group: Count | None
    round: Count
    attempt: Count
    revealed: list[AskedSum]


class Evaluation(Leaf):
    """How good a round's adapter is on some rows, in thousandths."""

    kind: ClassVar[str] = "eval"
    round: Count
    rows: Count
    metrics: dict[str, int]


class Release(Leaf):
    """A round's adapter became an artefact for devices."""

    kind: ClassVar[str] = "release"
    round: Count
    adapter: Count
    eval: Count | None


class Retention(Leaf):
    """A round's masked vectors were deleted."""

    kind: ClassVar[str] = "retention"
    round: Count
    vectors: Count


class Audit(Leaf):
    """An auditor's verdict on the log's first ``size`` leaves."""

    kind: ClassVar[str] = "audit"
    size: Count
    verdict: Literal["ok", "unverifiable", "failed"]
    rounds: dict[Annotated[str, Field(pattern=r"^[0-9]+$")], str]
    tool: str
    auditor: Sha256  # its raw Ed25519 public key


class Request(Leaf):
    """A client of run ``sid``, whose log is ``origin``, withdraws its consent. (P-8.18)"""

    kind: ClassVar[str] = ""
    client: ClientId
    origin: Annotated[str, Field(max_length=400)]
    sid: Sha256
    signature: Hex


class RoundAdapter(Leaf):
    """A round with its adapter's digest."""

    kind: ClassVar[str] = ""
    round: Count
    adapter: Sha256


class Withdrawal(Leaf):
    """A client's request and its effect: how many rounds, sums, adapters, releases hold its update.

    ``first`` is the first such round, ``before`` the last adapter without it.
    """

    kind: ClassVar[str] = "withdrawal"
    request: Request
    first: Count | None
    rounds: Count
    asked: Count
    adapters: Count
    releases: Count
    before: RoundAdapter


class Pad(Leaf):
    """Nothing, so that the next leaf lands on its index."""

    kind: ClassVar[str] = "pad"


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
