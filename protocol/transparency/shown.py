"""What a coordinator shows each client of the log, and what the client insists on. (P-8.9, P-8.10)

Three short texts travel beside the messages of secure aggregation: a client tells what it knows of the
log, the coordinator shows that the log grew from there and what became of the client's vectors, and gives
a receipt for each. A client that is not shown this refuses, and has revealed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ProofError, SecrecyError
from protocol.merkle import EMPTY, leaf_hash
from protocol.plan import Plan
from protocol.transparency.leaves import Count, Leaf, Sha256, decode_leaf, verify_author
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    parse_checkpoint,
    parse_key,
    verify_note,
)
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.proofs import verify_consistency, verify_inclusion
from protocol.transparency.receipts import Receipt, verify_receipt

MOST_CHARACTERS, MOST_OPEN = 2_000_000, 64
STOP = "keep the file of receipts and ask the coordinator's operator; nothing was revealed"
T = TypeVar("T", bound="_Text")
D = TypeVar("D")


class _Text(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def encode(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.model_dump()).decode()


class Told(_Text):
    """A client: the log's size as it was shown last, attempts with a receipt that it has not seen since."""

    size: Count
    open: Annotated[list[Count], Field(max_length=MOST_OPEN)]


class Given(_Text):
    """The coordinator: a receipt, and the log's verifier key."""

    key: str
    receipt: str


class Shown(_Text):
    """The coordinator: the log as it is, that it only grew, and leaves that the client waits for.

    ``consistency`` goes from the size that the client told; ``proofs`` are P-8.13's, each with its leaf and
    the very ``checkpoint``.
    """

    key: str
    checkpoint: str
    consistency: Annotated[list[Sha256], Field(max_length=128)]
    proofs: list[str]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which log a client expects: its origin, and its verifier key where the plan names one."""

    origin: str
    named: str = ""


def place_of(plan: Plan, run: bytes) -> Place:
    """The log of run ``run`` (its id, 16 bytes) of a plan. (P-8.2)"""
    if plan.witnessed:
        return Place(origin=parse_key(plan.audit.log).name, named=plan.audit.log)
    return Place(origin=f"fedge/{plan.name}/{run.hex()}")


@dataclass(frozen=True, kw_only=True)
class Known:
    """A client's memory of one run's log; ``open`` are receipts whose attempts it has not seen there."""

    key: str = ""
    size: int = 0
    root: bytes = EMPTY
    open: tuple[Receipt, ...] = ()

    @property
    def told(self) -> Told:
        """What the coordinator has to know of it."""
        return Told(size=self.size, open=[receipt.seq for receipt in self.open][:MOST_OPEN])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A later state of the log; ``accounts`` are proofs by the attempt that each accounts for."""

    checkpoint: Checkpoint
    accounts: Mapping[int, str] = field(default_factory=dict)


def decode_text(kind: type[T], text: str | None, what: str) -> T:
    """One of the three. Raises SecrecyError ``<what>.missing`` for none, ``<what>.malformed``."""
    if text is None:
        raise SecrecyError(f"{what}.missing", "it did not come with the request", STOP)
    try:
        if len(text) > MOST_CHARACTERS:
            raise ValueError
        return kind.model_validate(parse_canonical(text.encode()))
    except (ValidationError, ValueError):
        raise SecrecyError(f"{what}.malformed", f"{len(text)} characters", STOP) from None


def verify_given(given: Given, known: Known, place: Place, expected: Receipt) -> None:
    """The receipt says exactly what is ``expected``, signed by the log's key.

    Raises SecrecyError ``receipt.signature`` or ``receipt.other``.
    """
    key = _trusted(given.key, known, place, "receipt")
    try:
        found = verify_receipt(given.receipt, key.public)
    except ProofError as error:
        raise SecrecyError("receipt.signature", error.cause, STOP) from None
    if found != expected:
        odd = next(n for n in Receipt.model_fields if getattr(found, n) != getattr(expected, n))
        raise SecrecyError("receipt.other", f"its `{odd}` is not that of what was sent", STOP)


def verify_shown(shown: Shown, known: Known, place: Place) -> Seen:
    """The log only grew since ``known``, and accounts for every open receipt.

    Raises SecrecyError ``log.signature``, ``log.shrunk``, ``log.forked`` or ``log.missing``.
    """
    key = _trusted(shown.key, known, place, "log")
    try:
        text = verify_note(shown.checkpoint, [key]).text
        checkpoint = parse_checkpoint(text, origin=key.name)
    except ProofError as error:
        raise SecrecyError("log.signature", error.cause, STOP) from None
    if checkpoint.size < known.size:
        raise SecrecyError(
            "log.shrunk", f"{checkpoint.size} leaves, {known.size} were shown before", STOP
        )
    path = [bytes.fromhex(node) for node in shown.consistency]
    try:
        verify_consistency(known.size, checkpoint.size, known.root, checkpoint.root, path)
    except ProofError as error:
        raise SecrecyError("log.forked", error.cause, STOP) from None
    leaves = _proven(shown, checkpoint, key)
    accounts = {receipt.seq: _account(receipt, leaves) for receipt in known.open}
    return Seen(checkpoint=checkpoint, accounts=accounts)


def _trusted(brought: str, known: Known, place: Place, what: str) -> VerifierKey:
    """The plan's key; else the first that was brought, for ever."""
    pinned = place.named or known.key
    if pinned and brought != pinned:
        raise SecrecyError(f"{what}.signature", "another key of the log than before", STOP)
    try:
        key = parse_key(brought)
    except ProofError as error:
        raise SecrecyError(f"{what}.signature", error.cause, STOP) from None
    if key.type is not KeyType.ED25519 or key.name != place.origin:
        raise SecrecyError(f"{what}.signature", f"not a key of the log {place.origin}", STOP)
    return key


def _proven(shown: Shown, checkpoint: Checkpoint, key: VerifierKey) -> Sequence[tuple[Leaf, str]]:
    found = []
    try:
        for text in shown.proofs:
            proof = parse_offline_proof(text)
            if proof.extra is None or proof.checkpoint != shown.checkpoint:
                raise ProofError("a proof without its leaf, or of another checkpoint", STOP)
            verify_inclusion(
                leaf_hash(proof.extra), proof.index, checkpoint.size, proof.path, checkpoint.root
            )
            read = decode_leaf(proof.extra)
            verify_author(read, key.public)
            found.append((read.leaf, text))
    except ProofError as error:
        raise SecrecyError("log.missing", error.cause, STOP) from None
    return found


def _account(receipt: Receipt, leaves: Sequence[tuple[Leaf, str]]) -> str:
    for leaf, text in leaves:
        if receipt.accounted_by(leaf):
            return text
    raise SecrecyError(
        "log.missing",
        f"attempt {receipt.seq} (round {receipt.round}) is neither logged with this client's vector nor "
        "aborted, and the client has its receipt",
        STOP,
    )
