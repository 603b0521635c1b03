"""Anybody repeats a published sum: every signature, commitment and mask, and the words themselves. (P-8.3)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from protocol.errors import ProofError, SecrecyError
from protocol.merkle import leaf_hash
from protocol.secagg import shamir
from protocol.secagg.agreement import Keys, pair_key
from protocol.secagg.client import CHUNK, commitment, pair_sign, vector_root, vector_statement
from protocol.secagg.contexts import attempt_context, round_id, share_context
from protocol.secagg.graph import (
    CHOICE_BYTES,
    NO_SEED,
    Graph,
    alive_quorum,
    chosen_holders,
    complete_graph,
    degree,
    is_complete,
)
from protocol.secagg.messages import (
    HASH_BYTES,
    NO_INDEX,
    NO_PROOF,
    Advert,
    Cohort,
    decode_advert,
)
from protocol.secagg.openings import alive_digest
from protocol.secagg.packing import block_place, packed_size, unpack
from protocol.secagg.primitives import Suite, Word, add_mask, kdf, signature_is_valid, word_type
from protocol.secagg.transcript import Transcript, sum_digest
from protocol.transparency.proofs import tree_root, verify_inclusion

Vectors = Callable[[bytes], bytes | memoryview]
Hashes = Callable[[bytes], Sequence[bytes]]
Pieces = Callable[[bytes, int], bytes | memoryview]
Mask = tuple[bytes, int]  # key, sign
REMEDY = "keep the run as evidence: its coordinator is faulty, dishonest, or the copy is damaged"


def verify_transcript(
    transcript: Transcript,
    roster: Mapping[bytes, bytes],
    vectors: Vectors,
    *,
    minimum: int,
    alive_at: int = NO_INDEX,
    workers: int = 1,
) -> Word:
    """Check every signature and commitment, add everything again; the sum's words (count,).

    ``roster`` maps ids to public keys, ``vectors`` gives a client's packed vector, ``minimum`` is the
    plan's least number of clients in a sum, ``alive_at`` the place of its alive set in a witnessed log:
    without one, a quorum must have signed it. ``workers`` threads share the work and call ``vectors``.
    Raises ProofError that names the client and the thing.
    """
    again = _Again.checked(transcript, roster, minimum, alive_at)
    total = again.added(vectors, again.masks(), workers)
    if sum_digest(total) != transcript.sum:
        raise _bad("the sum", "the vectors and masks add up to something else")
    return total


def verify_transcript_part(
    transcript: Transcript,
    roster: Mapping[bytes, bytes],
    words: Word,
    hashes: Hashes,
    pieces: Pieces,
    *,
    blocks: Iterable[int],
    minimum: int,
    alive_at: int = NO_INDEX,
) -> None:
    """Like :func:`verify_transcript`, but add only ``blocks`` of 32,768 coordinates again.

    ``words`` (count,) is the published sum, ``hashes`` gives the leaf hashes of a client's signed root,
    ``pieces`` one of its pieces of 64 KiB by number. Of other blocks nothing is proven; they are chosen
    at random after all that is signed. Raises ProofError, IndexError for a block that is not there.
    """
    again = _Again.checked(transcript, roster, minimum, alive_at)
    if words.shape != (transcript.count,) or sum_digest(words) != transcript.sum:
        raise _bad("the sum", "its words are not the published ones")
    leaf_hashes = {client: again.checked_hashes(client, hashes(client)) for client in again.alive}
    masks = again.masks()
    for block in blocks:
        place, repeated = again.added_block(block, leaf_hashes, pieces, masks)
        if not np.array_equal(repeated, words[place]):
            raise _bad(f"the sum, block {block}", "vectors and masks add up to something else")


def verify_without_vectors(
    transcript: Transcript,
    roster: Mapping[bytes, bytes],
    *,
    minimum: int,
    alive_at: int = NO_INDEX,
) -> None:
    """Like :func:`verify_transcript`, but for the sum: signatures, members, commitments and seeds."""
    _Again.checked(transcript, roster, minimum, alive_at).masks()


class _Again:
    """The attempt, derived anew from its transcript."""

    @classmethod
    def checked(
        cls, transcript: Transcript, roster: Mapping[bytes, bytes], minimum: int, alive_at: int
    ) -> _Again:
        """With all that is signed checked: parties, alive set and its place."""
        again = cls(transcript, roster)
        again.check_parties()
        if transcript.alive_index != alive_at:
            raise _bad("the alive set", "it is not at the place that was planned")
        again.check_alive(minimum)
        return again

    def __init__(self, transcript: Transcript, roster: Mapping[bytes, bytes]) -> None:
        self._t, self._roster, self._keys = transcript, roster, Keys(transcript.keys)
        try:
            adverts = [
                decode_advert(bytes.fromhex(p.advert), self._keys) for p in transcript.parties
            ]
        except SecrecyError as error:
            raise _bad("an advert", error.cause) from None
        ids = [advert.client for advert in adverts]
        if ids != sorted(set(ids)):
            raise _bad("the adverts", "a client is listed twice or out of order")
        self._adverts: dict[bytes, Advert] = dict(zip(ids, adverts, strict=True))
        self._party = dict(zip(ids, transcript.parties, strict=True))
        self._boxes = {(entry.sender, entry.receiver): entry for entry in transcript.boxes}
        if len(self._boxes) != len(transcript.boxes):
            raise _bad("the boxes", "one is listed twice")
        self._sid = bytes.fromhex(transcript.sid)
        self._context = attempt_context(self._sid, transcript.seq)
        cohort = Cohort(
            degree=transcript.degree,
            threshold=transcript.threshold,
            alive_index=transcript.alive_index,
            graph_seed=bytes.fromhex(transcript.graph_seed),
            adverts=tuple(adverts),
        )
        self._xid = share_context(self._context, cohort)
        self.members = [client for client in ids if self._party[client].shares_root]
        if cohort.degree != degree(len(ids)) or cohort.graph_seed != NO_SEED:
            raise _bad("the graph", f"it is not that of {len(ids)} clients")
        self._graph = self._drawn(ids)
        self.alive = [client for client in ids if self._party[client].vector_root]
        self._among, self._summed = frozenset(self.members), frozenset(self.alive)
        self._rid = round_id(self._xid, b"".join(self.members), transcript.terms)

    def _drawn(self, ids: list[bytes]) -> Graph:
        """Members' neighbours: everybody, or those that its choice draws."""
        complete = is_complete(len(ids))
        for client in ids:
            drew = bool(self._party[client].shares_root) and not complete
            if len(self._party[client].choice) != (2 * CHOICE_BYTES if drew else 0):
                raise _bad(
                    client.hex(),
                    "its choice of holders is missing, or there is one that nobody needs",
                )
        if complete:
            return complete_graph(ids)
        choices = {client: bytes.fromhex(self._party[client].choice) for client in self.members}
        return Graph(
            {
                client: chosen_holders(ids, client, self._xid, choice)
                for client, choice in choices.items()
            }
        )

    def check_parties(self) -> None:
        """Adverts, shares and vectors are signed by those they are of, for this attempt."""
        for client, advert in self._adverts.items():
            party, name = self._party[client], client.hex()
            if (advert.sid, advert.seq) != (self._sid, self._t.seq):
                raise _bad(name, "its advert is of another attempt")
            self._check(client, "advert", advert.body, advert.signature)
            if bool(party.seed) != (client in self._among):
                raise _bad(name, "a seed is missing, or there is one that nobody needs")
            if client in self._among:
                root = bytes.fromhex(party.shares_root)
                signature = bytes.fromhex(party.shares_signature)
                statement = self._xid + client + root + bytes.fromhex(party.choice)
                self._check(client, "shares", statement, signature)
            if client in self._summed:
                root = bytes.fromhex(party.vector_root)
                statement = vector_statement(self._rid, client, root, NO_PROOF)
                self._check(client, "vector", statement, bytes.fromhex(party.vector_signature))

    def check_alive(self, minimum: int) -> None:
        """Enough clients are in the sum, all of them members; a quorum has signed the set, if it must."""
        if not self._summed <= self._among:
            raise _bad("the alive set", "somebody in it is no member")
        if len(self.alive) < minimum:
            raise _bad("the alive set", f"{len(self.alive)} clients, at least {minimum}")
        if self._t.alive_index != NO_INDEX:
            return  # its place in the log is what everybody agreed on
        statement, signers = self._rid + alive_digest(tuple(self.alive)), 0
        for client in self._adverts:
            if signature := bytes.fromhex(self._party[client].alive_signature):
                self._check(client, "alive", statement, signature)
                signers += 1
        if signers < (needed := alive_quorum(len(self._adverts))):
            raise _bad("the alive set", f"{signers} signatures, needed {needed}")

    def added(self, vectors: Vectors, masks: list[Mask], workers: int) -> Word:
        """The masked vectors without the masks, by that many threads."""

        def share(number: int) -> Word:
            total = self._zeros(self._t.count)
            steps: list[Callable[[], None]] = [
                lambda: self._add_vectors(total, self.alive[number::workers], vectors),
                lambda: self._add_masks(total, masks[number::workers]),
            ]
            # The cipher holds the interpreter's lock, hashing does not: they go well side by side.
            for step in steps if number % 2 else reversed(steps):
                step()
            return total

        with ThreadPoolExecutor(workers) as pool:
            total, *others = pool.map(share, range(workers))
        for other in others:
            total += other
        return self._in_ring(total)

    def added_block(
        self,
        block: int,
        leaf_hashes: Mapping[bytes, Sequence[bytes]],
        pieces: Pieces,
        masks: list[Mask],
    ) -> tuple[slice, Word]:
        """(where it is, the same words) of one block, from the pieces that hold it."""
        coordinates, octets = block_place(block, self._t.count, self._t.bits)
        size = coordinates.stop - coordinates.start
        total = self._zeros(size)
        numbers = range(octets.start // CHUNK, -(-octets.stop // CHUNK))
        before = numbers.start * CHUNK
        for client in self.alive:
            data = b"".join(
                self._piece(client, number, leaf_hashes[client], pieces) for number in numbers
            )
            packed = data[octets.start - before : octets.stop - before]
            total += unpack(packed, size, self._t.bits)
        self._add_masks(total, masks, start=coordinates.start)
        return coordinates, self._in_ring(total)

    def checked_hashes(self, client: bytes, hashes: Sequence[bytes]) -> Sequence[bytes]:
        """The leaf hashes of a client's vector, whose root it signed."""
        if len(hashes) != -(-packed_size(self._t.count, self._t.bits) // CHUNK):
            raise _bad(client.hex(), f"{len(hashes)} hashes of its vector's pieces")
        misshapen = any(len(each) != HASH_BYTES for each in hashes)
        if misshapen or tree_root(hashes).hex() != self._party[client].vector_root:
            raise _bad(client.hex(), "the hashes of its vector's pieces are not what it signed")
        return hashes

    def _piece(
        self, client: bytes, number: int, leaf_hashes: Sequence[bytes], pieces: Pieces
    ) -> bytes:
        whole, piece = packed_size(self._t.count, self._t.bits), pieces(client, number)
        if (
            len(piece) != min(CHUNK, whole - number * CHUNK)
            or leaf_hash(piece) != leaf_hashes[number]
        ):
            raise _bad(client.hex(), f"piece {number} of its vector is not the one it signed")
        return bytes(piece)

    def _add_vectors(self, total: Word, clients: Sequence[bytes], vectors: Vectors) -> None:
        for client in clients:
            packed = vectors(client)
            if len(packed) != packed_size(self._t.count, self._t.bits):
                raise _bad(client.hex(), f"its vector has {len(packed)} bytes")
            if vector_root(packed).hex() != self._party[client].vector_root:
                raise _bad(client.hex(), "its vector is not the one it signed")
            total += unpack(packed, self._t.count, self._t.bits)

    def _add_masks(self, total: Word, masks: Sequence[Mask], *, start: int = 0) -> None:
        for key, sign in masks:
            add_mask(total, key, sign=sign, suite=Suite(self._t.suite), start=start)

    def _zeros(self, count: int) -> Word:
        return np.zeros(count, word_type(self._t.bits))

    def _in_ring(self, total: Word) -> Word:
        if self._t.bits not in (16, 32):
            total &= total.dtype.type(2**self._t.bits - 1)
        return total

    def masks(self) -> list[Mask]:
        """(key, sign) of every mask that is taken off the sum."""
        masks = []
        for client in self.members:
            seed = shamir.from_bytes(bytes.fromhex(self._party[client].seed))
            if seed is None:
                raise _bad(client.hex(), "its seed is no field element")
            if client in self._summed:
                if commitment(seed, self._context, client) != self._adverts[client].commitment:
                    raise _bad(client.hex(), "its seed is not the one it committed to")
                masks.append((kdf(shamir.to_bytes(seed), "self", self._rid), -1))
                continue
            secret = self._keys.mask_secret(seed, self._context)
            if self._keys.public_of(secret) != self._adverts[client].mask_key:
                raise _bad(client.hex(), "its seed does not give the key of its advert")
            masks += self._pair_masks(client, seed)
        pairs = self._graph.lost_pairs(self.members, self.alive)
        needed = pairs if self._keys is Keys.HYBRID else []
        if self._boxes.keys() != {(sender.hex(), receiver.hex()) for sender, receiver in needed}:
            raise _bad("the boxes", "there are others than those of lost pairs")
        return masks

    def _pair_masks(self, lost: bytes, seed: int) -> list[Mask]:
        end = self._keys.end(client=lost, attempt=self._context, xid=self._xid, mask_seed=seed)
        masks = []
        for other in self._graph.near(lost):
            if other not in self._summed:
                continue
            source = self._graph.source(lost, other)
            receiver = other if source == lost else lost
            box = self._box(source, receiver) if self._keys is Keys.HYBRID else None
            public = self._adverts[other].mask_key
            secret = end.pair_secret(other, public, box, own=source == lost)
            if secret is None:
                raise _bad(source.hex(), f"its box for {receiver.hex()} is false")
            masks.append((pair_key(secret, self._rid, lost, other), pair_sign(lost, other)))
        return masks

    def _box(self, sender: bytes, receiver: bytes) -> bytes:
        """A box that the sender's signed shares root covers."""
        entry = self._boxes.get((sender.hex(), receiver.hex()))
        if entry is None:
            raise _bad(sender.hex(), f"its box for {receiver.hex()} is missing")
        holders, box = self._graph.holders[sender], bytes.fromhex(entry.box)
        verify_inclusion(
            leaf_hash(box),
            holders.index(receiver),
            len(holders),
            [bytes.fromhex(node) for node in entry.path],
            bytes.fromhex(self._party[sender].shares_root),
        )
        return box

    def _check(self, client: bytes, what: str, statement: bytes, signature: bytes) -> None:
        public = self._roster.get(client)
        if public is None:
            raise _bad(client.hex(), "it is not in the roster")
        if not signature_is_valid(public, what, statement, signature):
            raise _bad(client.hex(), f"its signature on its {what} is not valid")


def _bad(what: str, fault: str) -> ProofError:
    return ProofError(f"{what}: {fault}", REMEDY)
