"""What a coordinator shows each client of the log, and what the client insists on. (P-8.9, P-8.10)

Three short texts travel beside the messages of secure aggregation: a client tells what it knows of the
log, the coordinator shows that the log grew from there and what became of the client's vectors, and gives
a receipt for each. A client that is not shown this refuses, and has revealed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding import (
    MOST_CANONICAL,
    base64_bytes,
    base64_text,
    canonical_json,
    parse_canonical,
)
from protocol.errors import ProofError, SecrecyError
from protocol.merkle import EMPTY, leaf_hash
from protocol.plan import Plan
from protocol.secagg.openings import alive_digest
from protocol.transparency.leaf_codec import decode_leaf, verify_author
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    AskedSum,
    Count,
    Leaf,
)
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    parse_checkpoint,
    parse_key,
    verify_note,
)
from protocol.transparency.offline import OfflineProof
from protocol.transparency.proofs import root_after, verify_consistency, verify_inclusion
from protocol.transparency.receipts import Receipt, verify_receipt

MOST_OPEN, MOST_NODES = 64, 128
MOST_CHARACTERS = (
    MOST_CANONICAL  # under witnesses a failed attempt adds up to 6 kB a client to the tail
)
STOP = "keep the file of receipts and ask the coordinator's operator; nothing was revealed"
T = TypeVar("T", bound="_Text")
D = TypeVar("D")


def _nodes(text: str) -> str:
    if len(nodes_of(text)) > MOST_NODES or nodes_text(nodes_of(text)) != text:
        raise ValueError("not base64 of SHA-256 hashes")
    return text


def nodes_text(nodes: Sequence[bytes]) -> str:
    """Hashes (32 bytes each), one behind the other, in base64."""
    return base64_text(b"".join(nodes))


def nodes_of(text: str) -> list[bytes]:
    """The reverse. Raises ValueError."""
    data = base64_bytes(text)
    if len(data) % 32:
        raise ValueError("not whole hashes")
    return [data[at : at + 32] for at in range(0, len(data), 32)]


Nodes = Annotated[str, AfterValidator(_nodes)]


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


class Proven(_Text):
    """A leaf, its index, and its inclusion path in the tree of the checkpoint beside it."""

    index: Count
    path: Nodes
    leaf: str


class Tail(_Text):
    """The log's last leaves, from leaf ``start`` on; ``peaks`` are those of the tree before them.

    The first is the log's last `adapter`: what stands behind it shows that there is no later one.
    """

    start: Count
    peaks: Nodes
    leaves: Annotated[list[str], Field(min_length=1)]


class Shown(_Text):
    """The coordinator: the log as it is, that it only grew, and leaves that the client waits for.

    ``consistency`` goes from the size that the client told.
    """

    key: str
    checkpoint: str
    consistency: Nodes
    tail: Tail
    proven: list[Proven]


def encode_shown(
    *, key: str, checkpoint: str, consistency: str, tail: str, proven: Sequence[Proven]
) -> str:
    """What :class:`Shown` of these encodes to. ``tail`` is a :class:`Tail`, encoded once for all clients."""
    others = {
        "key": key,
        "checkpoint": checkpoint,
        "consistency": consistency,
        "proven": [each.model_dump() for each in proven],
    }
    assert max(others) < "tail"  # the last by name
    return f'{canonical_json(others).decode()[:-1]},"tail":{tail}}}'


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
class Incoming:
    """The adapter that an instruction names, as the input of ``round``.

    ``first`` gives the digest of round 0's, which follows from the plan. (P-2.3)
    """

    round: int
    digest: str
    first: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A client's memory of one run's log; ``open`` are receipts whose attempts it has not seen there.

    ``opened`` has the rids of the sums that it gave shares for, with the digest of their alive sets.
    """

    key: str = ""
    size: int = 0
    root: bytes = EMPTY
    open: tuple[Receipt, ...] = ()
    opened: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def told(self) -> Told:
        """What the coordinator has to know of it."""
        numbers = dict.fromkeys(receipt.seq for receipt in self.open)
        return Told(size=self.size, open=list(numbers)[:MOST_OPEN])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A later state of the log; ``accounts`` are proofs by the rid that each accounts for."""

    checkpoint: Checkpoint
    accounts: Mapping[str, str] = field(default_factory=dict)


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
        receipt = verify_receipt(given.receipt, key.public)
    except ProofError as error:
        raise SecrecyError("receipt.signature", error.cause, STOP) from None
    if receipt != expected:
        field = next(n for n in Receipt.model_fields if getattr(receipt, n) != getattr(expected, n))
        raise SecrecyError("receipt.other", f"its `{field}` is not that of what was sent", STOP)


def verify_shown(shown: Shown, known: Known, place: Place, incoming: Incoming) -> Seen:
    """The log only grew since ``known``, accounts for every open receipt, and ends with ``incoming``.

    Raises SecrecyError ``log.signature``, ``log.shrunk``, ``log.forked``, ``log.missing``,
    ``log.unrevealed`` or ``log.adapter``.
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
    path = nodes_of(shown.consistency)
    try:
        verify_consistency(known.size, checkpoint.size, known.root, checkpoint.root, path)
    except ProofError as error:
        raise SecrecyError("log.forked", error.cause, STOP) from None
    adapter = _last_adapter(shown.tail, checkpoint, key)
    _verify_incoming(adapter, incoming)
    proofs = _proven(shown, checkpoint, key)
    leaves = [*(leaf for leaf, _ in proofs), adapter]
    for receipt in known.open:
        _verify_revealed(receipt, known.opened.get(receipt.rid), leaves)
    accounts = {
        receipt.rid: _account(receipt, known.opened.get(receipt.rid), proofs)
        for receipt in known.open
    }
    return Seen(checkpoint=checkpoint, accounts=accounts)


def _last_adapter(tail: Tail, checkpoint: Checkpoint, key: VerifierKey) -> Adapter:
    """The log's last `adapter`: the first of its last leaves, and no other of them is one."""
    data = [leaf.encode() for leaf in tail.leaves]
    try:
        if tail.start + len(data) != checkpoint.size:
            raise ProofError(f"leaves up to {tail.start + len(data)} of {checkpoint.size}", STOP)
        root = root_after(tail.start, nodes_of(tail.peaks), map(leaf_hash, data))
        if root != checkpoint.root:
            raise ProofError("they are not the log's last leaves", STOP)
        leaves = [_read(leaf, key) for leaf in data]
    except ProofError as error:
        raise SecrecyError("log.missing", error.cause, STOP) from None
    first, later = leaves[0], leaves[1:]
    if not isinstance(first, Adapter) or any(isinstance(leaf, Adapter) for leaf in later):
        raise SecrecyError("log.missing", "the last `adapter` leaf is not shown", STOP)
    return first


def _verify_incoming(adapter: Adapter, incoming: Incoming) -> None:
    """(P-4.2) Training starts from what the log says the round before made."""
    if (adapter.round, adapter.adapter_out) != (incoming.round - 1, incoming.digest):
        raise SecrecyError(
            "log.adapter",
            f"round {incoming.round} is to start from another adapter than the log's last, of round "
            f"{adapter.round}",
            STOP,
        )
    if adapter.round == 0 and incoming.first() != incoming.digest:
        raise SecrecyError(
            "log.adapter", "round 0's adapter is not the one that the plan gives", STOP
        )


def _verify_revealed(receipt: Receipt, alive: bytes | None, leaves: Sequence[Leaf]) -> None:
    """What this client helped to open is in the log: as a sum, or as what was asked for in vain."""
    if alive is None:
        return
    for leaf in leaves:
        if isinstance(leaf, Adapter) and receipt.rid in {summed.rid for summed in leaf.sums}:
            return
        if _in_vain(leaf, receipt, alive):
            return
    raise SecrecyError(
        "log.unrevealed",
        f"this client gave shares in attempt {receipt.seq} (round {receipt.round}), and the log tells "
        "of no sum that was asked for",
        STOP,
    )


def _in_vain(leaf: Leaf, receipt: Receipt, alive: bytes) -> bool:
    """Whether ``leaf`` says that the sum over ``alive`` was asked for and is not there."""
    return isinstance(leaf, Abort) and any(
        (asked.rid, _alive_of(asked)) == (receipt.rid, alive) for asked in leaf.revealed
    )


def _alive_of(asked: AskedSum) -> bytes:
    if isinstance(asked.clients, str):
        return bytes.fromhex(asked.clients)  # of a list, which is this very digest (P-8.19)
    return alive_digest([bytes.fromhex(client) for client in asked.clients])


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


def leaves_of(shown: Shown) -> list[Leaf]:
    """Those that it brings. Of one that :func:`verify_shown` has accepted all are in the log."""
    texts = [*(each.leaf for each in shown.proven), *shown.tail.leaves]
    return [decode_leaf(text.encode()).leaf for text in texts]


def _proven(
    shown: Shown, checkpoint: Checkpoint, key: VerifierKey
) -> Sequence[tuple[Leaf, OfflineProof]]:
    proofs = []
    try:
        for entry in shown.proven:
            data, path = entry.leaf.encode(), nodes_of(entry.path)
            verify_inclusion(leaf_hash(data), entry.index, checkpoint.size, path, checkpoint.root)
            proof = OfflineProof(
                index=entry.index, path=tuple(path), checkpoint=shown.checkpoint, extra=data
            )
            proofs.append((_read(data, key), proof))
    except ProofError as error:
        raise SecrecyError("log.missing", error.cause, STOP) from None
    return proofs


def _read(data: bytes, key: VerifierKey) -> Leaf:
    read = decode_leaf(data)
    verify_author(read, key.public)
    return read.leaf


def _account(
    receipt: Receipt, alive: bytes | None, proofs: Sequence[tuple[Leaf, OfflineProof]]
) -> str:
    """What is kept: of a sum that was asked for in vain that, though its vectors be in the log as well."""
    if alive is not None:
        for leaf, proof in proofs:
            if _in_vain(leaf, receipt, alive):
                return proof.encode()
    for leaf, proof in proofs:
        if receipt.accounted_by(leaf):
            return proof.encode()
    raise SecrecyError(
        "log.missing",
        f"attempt {receipt.seq} (round {receipt.round}) is neither logged with this client's vector nor "
        "aborted, and the client has its receipt",
        STOP,
    )
