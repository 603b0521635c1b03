"""A sum's transcript as leaves of the log, and back. (P-8.8)

Both directions hold the same facts: what the coordinator publishes is exactly what an auditor's
:func:`protocol.secagg.verification.verify_transcript` starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from protocol.encoding import parse_canonical
from protocol.errors import ProofError, SecrecyError
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import attempt_context, round_id, share_context
from protocol.secagg.messages import NO_INDEX, decode_advert
from protocol.secagg.messages import Cohort as CohortMessage
from protocol.secagg.packing import packed_size
from protocol.secagg.transcript import PairBox, Party, Transcript
from protocol.transparency.dsse import REMEDY
from protocol.transparency.leaf_codec import encode_message
from protocol.transparency.leaves import (
    Advert,
    Aggregate,
    Alive,
    Cohort,
    Leaf,
    Reveal,
    RoundOpen,
    Shares,
    Vector,
)
from protocol.transparency.lists import Keep, by_client, of_clients

# Of one sum's boxes: 2,000 clients of which so many are lost that it just opens. (P-6.3, P-8.4)
MOST_BOXES_BYTES, MOST_BOXES_VALUES = 2**28, 2**20
T = TypeVar("T", Shares, Vector)
Sign = Callable[[Leaf, Mapping[str, str]], bytes]


@dataclass(frozen=True, kw_only=True)
class SumPlace:
    """Where a sum belongs: its round and attempt, and the digest of the code that made it."""

    group: int
    round: int
    attempt: int
    code: str
    boxes: str = ""  # SHA-256 of the file with the boxes, if there is one


def sum_path(number: int, group: int) -> str:
    """The file of a sum's words."""
    return f"rounds/{number:04d}/sums/{group}.sum"


def boxes_path(number: int, group: int) -> str:
    """The file of the boxes of lost pairs."""
    return f"rounds/{number:04d}/sums/{group}.boxes.json"


def parse_boxes(data: bytes) -> list[PairBox]:
    """The boxes in such a file. Raises ProofError for anything else."""
    try:
        listed = parse_canonical(data, most=MOST_BOXES_BYTES, values=MOST_BOXES_VALUES)
        if not isinstance(listed, list):
            raise ValueError
        return [PairBox.model_validate(entry) for entry in listed]
    except ValueError:  # a ValidationError is one
        raise _bad("it holds no boxes") from None


def vector_path(number: int, group: int, client: str) -> str:
    """The file of a masked vector; ``.chunks`` beside it."""
    return f"rounds/{number:04d}/vectors/{group}/{client}"


def before_alive(transcript: Transcript, place: SumPlace, write: Sign, keep: Keep) -> list[bytes]:
    """Adverts, cohort, shares, round-open and vectors; ``keep`` puts away what has no room in a leaf."""
    message = _cohort_of(transcript)
    ids = [advert.client.hex() for advert in message.adverts]
    context = attempt_context(bytes.fromhex(transcript.sid), transcript.seq)
    xid = share_context(context, message)
    parties = dict(zip(ids, transcript.parties, strict=True))
    members = [client for client in ids if parties[client].shares_root]
    rid = round_id(xid, bytes.fromhex("".join(members)), transcript.terms).hex()
    cohort = Cohort(
        seq=transcript.seq,
        group=place.group,
        u1_root=message.root.hex(),
        graph_seed=transcript.graph_seed,
        degree=transcript.degree,
        threshold=transcript.threshold,
        alive_index=None if transcript.alive_index == NO_INDEX else transcript.alive_index,
        xid=xid.hex(),
    )
    opened = RoundOpen(
        seq=transcript.seq,
        group=place.group,
        round=place.round,
        attempt=place.attempt,
        rid=rid,
        xid=xid.hex(),
        members=of_clients(members, keep),
        terms=transcript.terms,
        count=transcript.count,
        code=place.code,
    )
    return [
        *(
            encode_message(Advert(group=place.group, advert=parties[client].advert))
            for client in ids
        ),
        write(cohort, {"attempt": xid.hex()}),
        *(_shares_leaf(client, parties[client], xid.hex()) for client in members),
        write(opened, {"round": rid}),
        *_vector_leaves(transcript, {client: parties[client] for client in members}, rid),
    ]


def _shares_leaf(client: str, party: Party, xid: str) -> bytes:
    shares = Shares(
        client=client,
        xid=xid,
        root=party.shares_root,
        signature=party.shares_signature,
        choice=party.choice,
    )
    return encode_message(shares)


def _vector_leaves(
    transcript: Transcript, members: Mapping[str, Party], rid: str
) -> Iterator[bytes]:
    """Of those members whose vectors are in the sum."""
    length = packed_size(transcript.count, transcript.bits)
    for client, party in members.items():
        if party.vector_root:
            vector = Vector(
                client=client,
                rid=rid,
                root=party.vector_root,
                length=length,
                signature=party.vector_signature,
            )
            yield encode_message(vector)


def alive_leaf(
    *,
    seq: int,
    group: int,
    rid: bytes,
    alive: Sequence[bytes],
    signatures: Mapping[bytes, bytes],
    keep: Keep,
) -> Alive:
    """The alive set of a sum; without signatures under witnesses."""
    return Alive(
        seq=seq,
        group=group,
        rid=rid.hex(),
        clients=of_clients([client.hex() for client in alive], keep),
        signatures=by_client(
            {client.hex(): signature.hex() for client, signature in signatures.items()}, keep
        ),
    )


def after_alive(
    transcript: Transcript, place: SumPlace, rid: str, write: Sign, keep: Keep
) -> list[bytes]:
    """Reveal and aggregate."""
    ids = [advert.client.hex() for advert in _cohort_of(transcript).adverts]
    parties = dict(zip(ids, transcript.parties, strict=True))
    reveal = Reveal(
        seq=transcript.seq,
        group=place.group,
        rid=rid,
        seeds=by_client(
            {client: party.seed for client, party in parties.items() if party.seed}, keep
        ),
        boxes=place.boxes,
    )
    aggregate = Aggregate(
        seq=transcript.seq,
        group=place.group,
        rid=rid,
        round=place.round,
        summands=sum(bool(party.vector_root) for party in transcript.parties),
        sum=transcript.sum,
    )
    path = sum_path(place.round, place.group)
    return [write(reveal, {"round": rid}), write(aggregate, {path: transcript.sum})]


@dataclass(frozen=True, kw_only=True)
class SumLeaves:
    """The leaves of one sum, whole, as an auditor collected them."""

    adverts: tuple[Advert, ...]
    cohort: Cohort
    shares: tuple[Shares, ...]
    opened: RoundOpen
    vectors: tuple[Vector, ...]
    alive: Alive
    reveal: Reveal
    aggregate: Aggregate


def transcript_of(
    leaves: SumLeaves, *, sid: str, keys: Keys, suite: str, bits: int, boxes: Sequence[PairBox]
) -> Transcript:
    """What ``verify_transcript`` checks. Raises ProofError for leaves that contradict each other."""
    shares = _once(leaves.shares, "shares")
    vectors = _once(leaves.vectors, "vector")
    try:
        adverts = [decode_advert(bytes.fromhex(leaf.advert), keys) for leaf in leaves.adverts]
    except SecrecyError as error:
        raise _bad(f"an `advert`: {error.cause}") from None
    ids = [advert.client.hex() for advert in adverts]
    _check_clients(leaves, ids)
    parties = [
        Party(
            advert=leaf.advert,
            shares_root=shares[client].root if client in shares else "",
            shares_signature=shares[client].signature if client in shares else "",
            vector_root=vectors[client].root if client in vectors else "",
            vector_signature=vectors[client].signature if client in vectors else "",
            alive_signature=leaves.alive.signed.get(client, ""),
            seed=leaves.reveal.by_id.get(client, ""),
            choice=shares[client].choice if client in shares else "",
        )
        for client, leaf in zip(ids, leaves.adverts, strict=True)
    ]
    index = leaves.cohort.alive_index
    try:
        transcript = Transcript(
            sid=sid,
            seq=leaves.cohort.seq,
            keys=keys.value,
            suite=suite,  # type: ignore[arg-type]
            bits=bits,
            count=leaves.opened.count,
            degree=leaves.cohort.degree,
            threshold=leaves.cohort.threshold,
            alive_index=NO_INDEX if index is None else index,
            graph_seed=leaves.cohort.graph_seed,
            terms=leaves.opened.terms,
            parties=parties,
            boxes=list(boxes),
            sum=leaves.aggregate.sum,
        )
    except ValidationError as error:
        raise _bad(f"`{error.errors()[0]['loc'][0]}`: {error.errors()[0]['msg']}") from None
    message = _cohort_of(transcript)
    context = attempt_context(bytes.fromhex(sid), transcript.seq)
    xid = share_context(context, message)
    if (message.root.hex(), xid.hex()) != (leaves.cohort.u1_root, leaves.cohort.xid):
        raise _bad("`cohort` does not name its adverts")
    members = bytes.fromhex("".join(leaves.opened.ids))
    if round_id(xid, members, transcript.terms).hex() != leaves.opened.rid:
        raise _bad("`round-open` does not name its members and terms")
    if any(
        leaf.length != packed_size(transcript.count, transcript.bits) for leaf in leaves.vectors
    ):
        raise _bad("a `vector` of another length than `round-open` and the ring give")
    if leaves.aggregate.summands != len(vectors):
        raise _bad("`aggregate` is of other summands")
    return transcript


def _check_clients(leaves: SumLeaves, ids: Sequence[str]) -> None:
    """All leaves are of one cohort and one round, and of the very clients these list."""
    for name, clients, listed in (
        ("shares", [leaf.client for leaf in leaves.shares], leaves.opened.ids),
        ("vector", [leaf.client for leaf in leaves.vectors], leaves.alive.ids),
        ("reveal", leaves.reveal.by_id, leaves.opened.ids),
    ):
        if sorted(clients) != listed:
            raise _bad(f"`{name}` is not of the very clients that the sum lists")
    if not set(ids) >= {*leaves.opened.ids, *leaves.alive.signed}:
        raise _bad("a member, or a signer of the alive set, without an advert")
    if {leaves.opened.xid, *(leaf.xid for leaf in leaves.shares)} != {leaves.cohort.xid}:
        raise _bad("`shares` or `round-open` of another cohort")
    rids = {leaf.rid for leaf in leaves.vectors}
    rids |= {leaves.alive.rid, leaves.reveal.rid, leaves.aggregate.rid}
    if rids != {leaves.opened.rid}:
        raise _bad("`vector`, `alive`, `reveal` or `aggregate` of another round-open")


def _cohort_of(transcript: Transcript) -> CohortMessage:
    keys = Keys(transcript.keys)
    return CohortMessage(
        degree=transcript.degree,
        threshold=transcript.threshold,
        alive_index=transcript.alive_index,
        graph_seed=bytes.fromhex(transcript.graph_seed),
        adverts=tuple(
            decode_advert(bytes.fromhex(party.advert), keys) for party in transcript.parties
        ),
    )


def _once(leaves: Sequence[T], what: str) -> dict[str, T]:
    by = {leaf.client: leaf for leaf in leaves}
    if len(by) != len(leaves):
        raise _bad(f"two `{what}` leaves of one client")
    return by


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
