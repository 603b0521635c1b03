"""Messages of secure aggregation, byte for byte. Decoders accept exactly one form. (P-6.5)"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

from protocol.errors import SecrecyError
from protocol.secagg.agreement import Keys
from protocol.secagg.primitives import ID_BYTES, tagged_hash
from protocol.secagg.shamir import ELEMENT_BYTES

HASH_BYTES, SIGNATURE_BYTES = 32, 64
ADVERT_HEAD = struct.Struct(">32sQ16s")  # sid, seq, id; then the keys
COHORT_HEAD = struct.Struct(">HHQ32sH")  # k, t, alive index, graph seed, adverts
COUNT = struct.Struct(">H")
PROOF_SIZE = struct.Struct(">I")
NO_PROOF = b""  # the place where a proof of a bounded norm will go; none is defined yet
MASKED_TAIL = HASH_BYTES + PROOF_SIZE.size + SIGNATURE_BYTES  # without a proof
REVEAL_BYTES = 1 + ELEMENT_BYTES
SELF_MASK, MASK_KEY = 0, 1  # kinds of revealed share: of b_seed (alive), of s_seed (lost)
NO_INDEX = 2**64 - 1  # there is no log: the alive set is agreed on by signatures
REMEDY = "leave the sender out; run the same version of fedge on both sides"


@dataclass(frozen=True, kw_only=True, slots=True)
class Advert:
    """A client's public keys and its commitment to its self-mask, for one attempt, signed."""

    sid: bytes
    seq: int
    client: bytes
    channel_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes = b""

    @property
    def body(self) -> bytes:
        """What is signed: 152 bytes, in the hybrid form 2520."""
        head = ADVERT_HEAD.pack(self.sid, self.seq, self.client)
        return head + self.channel_key + self.mask_key + self.commitment

    def encode(self) -> bytes:
        """Body and signature: 216 bytes, in the hybrid form 2584."""
        return self.body + self.signature


def advert_bytes(keys: Keys) -> int:
    """Of a signed advert of that form."""
    return ADVERT_HEAD.size + 2 * keys.public_bytes + HASH_BYTES + SIGNATURE_BYTES


def decode_advert(data: bytes, keys: Keys = Keys.X25519) -> Advert:
    """Raises SecrecyError for another length, in its own words for that of another form."""
    _check_adverts(data, 0, 1, keys, "advert")
    sid, seq, client = ADVERT_HEAD.unpack_from(data)
    size, at = keys.public_bytes, ADVERT_HEAD.size
    end = at + 2 * size
    return Advert(
        sid=sid,
        seq=seq,
        client=client,
        channel_key=data[at : at + size],
        mask_key=data[at + size : end],
        commitment=data[end : end + HASH_BYTES],
        signature=data[end + HASH_BYTES :],
    )


def _check_adverts(data: bytes, start: int, count: int, keys: Keys, what: str) -> None:
    """``count`` adverts of one form from ``start`` to the end; one of another is told apart."""
    classic, hybrid = advert_bytes(Keys.X25519), advert_bytes(Keys.HYBRID)
    others, rest = divmod(len(data) - start - count * classic, hybrid - classic)
    expected = count if keys is Keys.HYBRID else 0
    if not rest and 0 <= others <= count and others != expected:
        raise SecrecyError(
            "advert.other-form",
            f"{others if not expected else count - others} of {count} adverts hold other keys than "
            f"{keys}",
            "one plan has one form: compare `secrecy.keys` on both sides",
        )
    _exactly(data, start + count * advert_bytes(keys), what)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """All adverts of an attempt in the order of their ids, and the graph's parameters."""

    degree: int
    threshold: int
    alive_index: int
    graph_seed: bytes
    adverts: tuple[Advert, ...]

    def encode(self) -> bytes:
        """Parameters, then the adverts."""
        head = COHORT_HEAD.pack(
            self.degree, self.threshold, self.alive_index, self.graph_seed, len(self.adverts)
        )
        return head + b"".join(advert.encode() for advert in self.adverts)

    @cached_property
    def ids(self) -> tuple[bytes, ...]:
        """Whose adverts these are, in their order."""
        return tuple(advert.client for advert in self.adverts)

    @cached_property
    def root(self) -> bytes:
        """SHA-256 over the tagged advert bodies: the identity of U1."""
        return tagged_hash("u1", b"".join(advert.body for advert in self.adverts))


@lru_cache(maxsize=2)
def decode_cohort(data: bytes, keys: Keys = Keys.X25519) -> Cohort:
    """Raises SecrecyError for another length than the head announces."""
    if len(data) < COHORT_HEAD.size:
        raise _malformed("cohort", f"{len(data)} bytes")
    degree, threshold, index, seed, count = COHORT_HEAD.unpack_from(data)
    _check_adverts(data, COHORT_HEAD.size, count, keys, "cohort")
    size = advert_bytes(keys)
    starts = range(COHORT_HEAD.size, len(data), size)
    return Cohort(
        degree=degree,
        threshold=threshold,
        alive_index=index,
        graph_seed=seed,
        adverts=tuple(decode_advert(data[at : at + size], keys) for at in starts),
    )


def encode_ids(ids: Sequence[bytes]) -> bytes:
    """Ids sorted bytewise, one behind the other: the canonical form of a set."""
    return b"".join(sorted(ids))


@lru_cache(maxsize=4)  # of public data; a process that serves many clients reads each list once
def decode_ids(data: bytes, what: str) -> tuple[bytes, ...]:
    """Raises SecrecyError unless the ids are whole, sorted and distinct."""
    if len(data) % ID_BYTES:
        raise _malformed(what, f"{len(data)} bytes of ids")
    ids = tuple(data[at : at + ID_BYTES] for at in range(0, len(data), ID_BYTES))
    if list(ids) != sorted(set(ids)):
        raise SecrecyError(f"{what}.order", "ids repeat or are not sorted", REMEDY)
    return ids


def encode_members(members: Sequence[bytes]) -> bytes:
    """U2: the beginning of every member's round."""
    return COUNT.pack(len(members)) + encode_ids(members)


def encode_round(
    members: bytes, sealed: Mapping[bytes, bytes], adverts: Sequence[Advert] | None = None
) -> bytes:
    """U2 as :func:`encode_members` has it, then the sealed shares for one client by sender.

    ``adverts``: in a cohort whose clients draw their holders, those of the senders, in the same order.
    """
    head = members
    if adverts is not None:
        head += COUNT.pack(len(adverts)) + b"".join(advert.encode() for advert in adverts)
    return head + b"".join(sealed[sender] for sender in sorted(sealed))


class RoundMessages(Mapping[bytes, bytes]):
    """A message per member; those of thousands of clients would not fit into memory together."""

    def __init__(self, members: tuple[bytes, ...], message: Callable[[bytes], bytes]) -> None:
        self._members, self._message = members, message

    def __getitem__(self, client: bytes) -> bytes:
        return self._message(client)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def decode_round(data: bytes) -> tuple[tuple[bytes, ...], bytes]:
    """(U2, the boxes in the order of their senders: :func:`split_boxes`).

    In a cohort whose clients draw their holders :func:`split_senders` comes first.
    """
    if len(data) < COUNT.size:
        raise _malformed("round", f"{len(data)} bytes")
    end = COUNT.size + COUNT.unpack_from(data)[0] * ID_BYTES
    if len(data) < end:
        raise _malformed("round", f"{len(data)} bytes")
    return decode_ids(data[COUNT.size : end], "round"), data[end:]


def split_senders(data: bytes, keys: Keys) -> tuple[tuple[Advert, ...], bytes]:
    """(the adverts of those who sent boxes, by id; the boxes). Raises SecrecyError."""
    count = COUNT.unpack_from(data)[0] if len(data) >= COUNT.size else 0
    size = advert_bytes(keys)
    end = COUNT.size + count * size
    if len(data) < end:
        raise _malformed("round", f"{len(data)} bytes of adverts and boxes")
    _check_adverts(data[:end], COUNT.size, count, keys, "round")
    adverts = tuple(
        decode_advert(data[at : at + size], keys) for at in range(COUNT.size, end, size)
    )
    decode_ids(b"".join(advert.client for advert in adverts), "round")
    return adverts, data[end:]


def split_boxes(data: bytes, sizes: Sequence[int]) -> list[bytes] | None:
    """One box behind the other, of these sizes, or None when they do not fill ``data``."""
    ends = list(accumulate(sizes, initial=0))
    if ends[-1] != len(data):
        return None
    return [data[start:end] for start, end in pairwise(ends)]


def encode_masked_tail(root: bytes, proof: bytes, signature: bytes) -> bytes:
    """What follows a packed vector: its root, a proof about it, a signature on both."""
    return root + PROOF_SIZE.pack(len(proof)) + proof + signature


def decode_masked_tail(data: bytes) -> tuple[bytes, bytes, bytes]:
    """(root, proof, signature). Raises SecrecyError for another length than announced."""
    head = HASH_BYTES + PROOF_SIZE.size
    if len(data) < head:
        raise _malformed("masked", f"{len(data)} bytes after the vector")
    size = PROOF_SIZE.unpack_from(data, HASH_BYTES)[0]
    _exactly(data, head + size + SIGNATURE_BYTES, "masked")
    return data[:HASH_BYTES], data[head : head + size], data[head + size :]


def encode_signatures(signatures: Mapping[bytes, bytes]) -> bytes:
    """Id and signature, by id."""
    return b"".join(one + signatures[one] for one in sorted(signatures))


def decode_signatures(data: bytes) -> dict[bytes, bytes]:
    """Raises SecrecyError for a broken length, an unsorted or a repeated signer."""
    size = ID_BYTES + SIGNATURE_BYTES
    if len(data) % size:
        raise _malformed("alive", f"{len(data)} bytes of signatures")
    entries = [data[at : at + size] for at in range(0, len(data), size)]
    decode_ids(b"".join(entry[:ID_BYTES] for entry in entries), "alive")
    return {entry[:ID_BYTES]: entry[ID_BYTES:] for entry in entries}


def decode_reveals(data: bytes, count: int) -> list[tuple[int, bytes]]:
    """``count`` pairs of kind and share. Raises SecrecyError for another form."""
    _exactly(data, count * REVEAL_BYTES, "unmask")
    pairs = [
        (data[at], data[at + 1 : at + REVEAL_BYTES]) for at in range(0, len(data), REVEAL_BYTES)
    ]
    if any(kind not in (SELF_MASK, MASK_KEY) for kind, _ in pairs):
        raise _malformed("unmask", "an unknown kind of share")
    return pairs


def split_unmask(message: bytes, keys: Keys) -> tuple[bytes, bytes]:
    """(the next attempt's advert, the shares) of a reply to unmask. (P-6.13)"""
    size = advert_bytes(keys)
    if len(message) < size:
        raise SecrecyError("unmask.malformed", f"{len(message)} bytes", REMEDY)
    return message[:size], message[size:]


def _exactly(data: bytes, size: int, what: str) -> None:
    if len(data) != size:
        raise _malformed(what, f"{len(data)} bytes, expected {size}")


def _malformed(what: str, fault: str) -> SecrecyError:
    return SecrecyError(f"{what}.malformed", fault, REMEDY)
