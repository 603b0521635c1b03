"""The coordinator's side of secure aggregation: one attempt, phase by phase. (P-6.8)

It relays what it cannot read and ends with a sum. Every ``receive_*`` checks one client's message
and raises SecrecyError without a change when it is unusable; every ``close_*`` fixes who is in and
gives what the next phase sends. Whoever is missing is named in :attr:`Attempt.lost`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import numpy as np

from protocol.errors import RoundError, SecrecyError
from protocol.secagg import shamir
from protocol.secagg.agreement import Keys, pair_key
from protocol.secagg.client import pair_sign, vector_root, vector_statement
from protocol.secagg.contexts import attempt_context, round_id, share_context
from protocol.secagg.graph import (
    CHOICE_BYTES,
    NO_SEED,
    Graph,
    alive_quorum,
    carries_seed,
    chosen_holders,
    complete_graph,
    degree,
    is_complete,
    threshold,
)
from protocol.secagg.messages import (
    NO_INDEX,
    REMEDY,
    SELF_MASK,
    SIGNATURE_BYTES,
    Advert,
    Cohort,
    RoundMessages,
    decode_advert,
    decode_masked_tail,
    decode_reveals,
    encode_ids,
    encode_members,
    encode_round,
    encode_signatures,
)
from protocol.secagg.openings import alive_digest
from protocol.secagg.packing import packed_size, unpack
from protocol.secagg.pair_boxes import pair_boxes
from protocol.secagg.primitives import (
    Suite,
    Word,
    add_mask,
    kdf,
    signature_is_valid,
    word_type,
)
from protocol.secagg.rebuilding import RETRY, Rebuilder
from protocol.secagg.relayed import Reveals, Sealed, sealed_boxes
from protocol.secagg.transcript import PairBox, Party, Transcript, sum_digest


class Phase(IntEnum):
    """Where an attempt stands; it only moves forward."""

    ADVERTISE, SHARE, MASK, ALIVE, UNMASK = range(5)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What an attempt is about: words of ``bits``; ``minimum`` summands at least."""

    sid: bytes
    seq: int
    roster: Mapping[bytes, bytes]
    minimum: int
    bits: int
    suite: Suite = Suite.AES_256_CTR
    keys: Keys = Keys.X25519


class Attempt:
    """One attempt at a sum. Holds no vector of a client: each is added and forgotten."""

    def __init__(self, parameters: Parameters) -> None:
        self._p = parameters
        self._context = attempt_context(parameters.sid, parameters.seq)
        self.phase = Phase.ADVERTISE
        self.lost: dict[bytes, Phase] = {}
        self._adverts: dict[bytes, Advert] = {}
        self._cohort: Cohort | None = None
        self._graph = Graph({})
        self._choices: dict[bytes, bytes] = {}  # of a large cohort
        self._sealed: dict[bytes, Sealed] = {}  # by sender
        self.rid = b""
        self.members: tuple[bytes, ...] = ()  # U2
        self._sum: Word = np.zeros(0, word_type(parameters.bits))
        self.masked: set[bytes] = set()
        self.alive: tuple[bytes, ...] = ()  # U3
        self.signatures: dict[bytes, bytes] = {}
        self._shares_signed: dict[bytes, bytes] = {}
        self.vectors_signed: dict[bytes, tuple[bytes, bytes]] = {}  # root, signature
        self._terms: dict[str, Any] = {}
        self._seeds: dict[bytes, int] = {}
        self._reveals = Reveals(self._graph)
        self.liars: set[bytes] = set()

    def receive_advert(self, client: bytes, message: bytes) -> None:
        """An advert of a client of the roster, for this attempt."""
        self._expect(Phase.ADVERTISE, client, self._p.roster, self._adverts)
        advert = decode_advert(message, self._p.keys)
        if (advert.client, advert.sid, advert.seq) != (client, self._p.sid, self._p.seq):
            raise _bad("advert.other-attempt", client, "an advert of somebody or something else")
        public = self._p.roster[client]
        if not signature_is_valid(public, "advert", advert.body, advert.signature):
            raise _bad("advert.signature", client, "its signature is not valid")
        for key in (advert.channel_key, advert.mask_key):
            self._p.keys.check_public(key)
        self._adverts[client] = advert

    def has_advert(self, client: bytes) -> bool:
        """Whether the client's advert is here."""
        return client in self._adverts

    def close_adverts(self, asked: Iterable[bytes], *, alive_index: int = NO_INDEX) -> bytes:
        """Fix U1; the message every member of it gets.

        ``alive_index``: under witnesses, the place in the log that the alive set will have.
        """
        self._lose(asked, self._adverts)
        ids = sorted(self._adverts)
        self._enough(len(ids), "advertised")
        k = degree(len(ids))
        self._cohort = Cohort(
            degree=k,
            threshold=threshold(k),
            alive_index=alive_index,
            graph_seed=NO_SEED,
            adverts=tuple(self._adverts[client] for client in ids),
        )
        self._graph = complete_graph(ids) if self.is_complete else Graph({})
        self._xid = share_context(self._context, self._cohort)
        self.phase = Phase.SHARE
        return self._cohort.encode()

    @property
    def is_complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return is_complete(len(self._known_cohort().ids))

    def receive_shares(self, client: bytes, message: bytes) -> None:
        """Sealed shares for every holder of the client: in a large cohort, for those that it drew."""
        self._expect(Phase.SHARE, client, self._adverts, self._sealed)
        complete, ids = self.is_complete, self._known_cohort().ids
        choice = b"" if complete else message[:CHOICE_BYTES]
        holders = (
            self._graph.holders[client]
            if complete
            else chosen_holders(ids, client, self._xid, choice)
        )
        sizes = [
            self._p.keys.box_bytes(seed=carries_seed(client, holder, complete=complete))
            for holder in holders
        ]
        sealed = sealed_boxes(holders, sizes, message[len(choice) : -SIGNATURE_BYTES])
        if sealed is None:
            raise _bad("shares.malformed", client, f"{len(message)} bytes of shares")
        signature = message[-SIGNATURE_BYTES:]
        statement = self._xid + client + sealed.root + choice
        if not signature_is_valid(self._p.roster[client], "shares", statement, signature):
            raise _bad("shares.signature", client, "its signature is not valid")
        self._sealed[client] = sealed
        self._choices[client], self._shares_signed[client] = choice, signature

    def fix_members(self) -> tuple[bytes, ...]:
        """Fix U2: those who shared and have enough holders that did."""
        self._lose(self._adverts, self._sealed)
        members, needed = set(self._sealed), self._known_cohort().threshold
        # Whoever has too few holders left would refuse; leaving it out may starve others.
        while starved := {
            client
            for client in members
            if len(members.intersection(self._sealed[client].holders)) < needed
        }:
            members -= starved
            self.lost.update(dict.fromkeys(starved, Phase.SHARE))
        self._enough(len(members), "shared")
        self.members = tuple(sorted(members))
        self._graph = Graph({client: self._sealed[client].holders for client in self.members})
        self._reveals = Reveals(self._graph)
        return self.members

    def close_shares(self, terms: dict[str, Any], *, count: int) -> Mapping[bytes, bytes]:
        """What each member gets, made when it is asked for. ``terms`` are those every client computes itself.

        ``count`` is the number of words of a masked vector, fixed by the ring, hence by U2.
        """
        self._sum = np.zeros(count, word_type(self._p.bits))
        self.rid = round_id(self._xid, b"".join(self.members), terms)
        self._terms = dict(terms)
        self.phase = Phase.MASK
        return RoundMessages(self.members, partial(self._round_for, encode_members(self.members)))

    def _round_for(self, head: bytes, client: bytes) -> bytes:
        senders = self._graph.owners.get(client, ())
        adverts = None if self.is_complete else [self._adverts[sender] for sender in senders]
        sealed = {sender: self._sealed[sender][client] for sender in senders}
        return encode_round(head, sealed, adverts)

    def receive_masked(self, client: bytes, message: bytes | memoryview) -> None:
        """Add a masked vector to the sum. A late one is refused: the phase is over."""
        self._expect(Phase.MASK, client, self._graph.holders, self.masked)
        size = self.vector_bytes
        packed, tail = memoryview(message)[:size], bytes(message[size:])
        try:
            root, proof, signature = decode_masked_tail(tail)
        except SecrecyError as error:
            raise _bad("masked.malformed", client, error.cause) from None
        if proof:
            raise _bad("masked.proof", client, "a proof of a kind that is not known")
        statement = vector_statement(self.rid, client, root, proof)
        if not signature_is_valid(self._p.roster[client], "vector", statement, signature):
            raise _bad("masked.signature", client, "not signed for this round by it")
        if vector_root(packed) != root:
            raise _bad("masked.root", client, "its root is not that of its vector")
        self._sum += unpack(packed, len(self._sum), self._p.bits)
        self.vectors_signed[client] = root, signature
        self.masked.add(client)

    @property
    def seq(self) -> int:
        """The attempt's number."""
        return self._p.seq

    @property
    def vector_bytes(self) -> int:
        """How long a packed vector is: a masked message begins with it."""
        return packed_size(len(self._sum), self._p.bits)

    @property
    def can_open(self) -> bool:
        """Whether a sum over those who have masked so far opens, if none of them is lost."""
        return self._graph.can_open(self.masked, advertised=len(self._adverts))

    def close_masked(self) -> bytes:
        """Fix U3: the alive set that every one of them is asked to sign."""
        self._lose(self.members, self.masked)
        self._enough(len(self.masked), "sent a vector")
        self.alive = tuple(sorted(self.masked))
        self.phase = Phase.ALIVE
        return encode_ids(self.alive)

    def receive_alive(self, client: bytes, signature: bytes) -> None:
        """A signature on the alive set."""
        self._expect(Phase.ALIVE, client, self.masked, self.signatures)
        statement = self.rid + alive_digest(self.alive)
        if not signature_is_valid(self._p.roster[client], "alive", statement, signature):
            raise _bad("alive.signature", client, "not a signature on the alive set")
        self.signatures[client] = signature

    def agreed_by_log(self) -> None:
        """The alive set lies in a witnessed log: no signatures are asked for."""
        self.phase = Phase.UNMASK

    def close_alive(self) -> bytes:
        """The signatures, for everybody alive. Raises RoundError without a quorum."""
        self._lose(self.alive, self.signatures)
        count, needed = len(self.signatures), alive_quorum(len(self._adverts))
        if count < needed:
            raise RoundError(f"{count} clients signed the alive set, needed {needed}", RETRY)
        self.phase = Phase.UNMASK
        return encode_signatures(self.signatures)

    def receive_unmask(self, client: bytes, message: bytes) -> None:
        """One share per member that gave it some, of the kind that its state allows."""
        self._expect(Phase.UNMASK, client, self.masked, self._reveals.replied)
        owners = self._graph.owners.get(client, ())
        pairs = decode_reveals(message, len(owners))
        for owner, (kind, data) in zip(owners, pairs, strict=True):
            if (kind == SELF_MASK) != (owner in self.masked) or shamir.from_bytes(data) is None:
                fault = f"a share of {owner.hex()} that was not asked for"
                raise _bad("unmask.kind", client, fault)
        self._reveals.add(client, message)

    def unmask(self) -> Word:
        """The sum over U3, mod 2^bits. Raises RoundError below a threshold: then there is none."""
        self._lose(self.alive, self._reveals.replied)
        alive = set(self.alive)
        # All secrets first: a sum is computed from all of them or not at all.
        rebuilder = Rebuilder(
            adverts=self._adverts,
            holders=self._graph.holders,
            threshold=self._known_cohort().threshold,
            keys=self._p.keys,
            context=self._context,
            reveals=self._reveals,
            liars=self.liars,
        )
        seeds = {client: rebuilder.seed(client, alive=client in alive) for client in self.members}
        lost = [client for client in self.members if client not in alive]
        pairs = [pair for client in lost for pair in self._pairs(client, seeds[client])]
        for client in self.alive:
            key = kdf(shamir.to_bytes(seeds[client]), "self", self.rid)
            add_mask(self._sum, key, sign=-1, suite=self._p.suite)
        for key, sign in pairs:
            add_mask(self._sum, key, sign=sign, suite=self._p.suite)
        if self._p.bits not in (16, 32):
            self._sum &= self._sum.dtype.type(2**self._p.bits - 1)
        self._seeds = seeds
        return self._sum

    def transcript(self) -> Transcript:
        """What may be published: before the sum is open, without seeds. (P-8.3)"""
        cohort, members, alive = self._known_cohort(), set(self.members), set(self.alive)
        return Transcript(
            sid=self._p.sid.hex(),
            seq=self._p.seq,
            keys=self._p.keys.value,
            suite=self._p.suite.value,
            bits=self._p.bits,
            count=len(self._sum),
            degree=cohort.degree,
            threshold=cohort.threshold,
            alive_index=cohort.alive_index,
            graph_seed=cohort.graph_seed.hex(),
            terms=self._terms,
            parties=[
                self._party(client, member=client in members, alive=client in alive)
                for client in sorted(self._adverts)
            ],
            boxes=self.boxes(),
            sum=sum_digest(self._sum),
        )

    def _party(self, client: bytes, *, member: bool, alive: bool) -> Party:
        root, signature = self.vectors_signed[client] if alive else (b"", b"")
        return Party(
            advert=self._adverts[client].encode().hex(),
            shares_root=self._sealed[client].root.hex() if member else "",
            shares_signature=self._shares_signed[client].hex() if member else "",
            vector_root=root.hex(),
            vector_signature=signature.hex(),
            alive_signature=self.signatures.get(client, b"").hex(),
            seed=shamir.to_bytes(self._seeds[client]).hex() if client in self._seeds else "",
            choice=self._choices[client].hex() if member else "",
        )

    def boxes(self) -> list[PairBox]:
        """Of a sum that is open, in the hybrid form: those of lost pairs. (P-8.4)"""
        if self._p.keys is not Keys.HYBRID or not self._seeds:
            return []
        return pair_boxes(self.members, self.alive, graph=self._graph, sealed=self._sealed)

    def _pairs(self, lost: bytes, seed: int) -> list[tuple[bytes, int]]:
        """The masks that were meant to cancel with those of ``lost``: their keys and signs."""
        end = self._p.keys.end(client=lost, attempt=self._context, xid=self._xid, mask_seed=seed)
        masks = []
        for neighbour in (client for client in self._graph.near(lost) if client in self.masked):
            source = self._graph.source(lost, neighbour)
            other = neighbour if source == lost else lost
            box, public = self._sealed[source][other], self._adverts[neighbour].mask_key
            if (secret := end.pair_secret(neighbour, public, box, own=source == lost)) is None:
                self.liars.add(source)
                sealed = f"what {source.hex()} sealed for {other.hex()}"
                raise RoundError(f"{sealed} is not the secret of their pair", RETRY)
            key = pair_key(secret, self.rid, lost, neighbour)
            masks.append((key, pair_sign(lost, neighbour)))
        return masks

    def _expect(
        self, phase: Phase, client: bytes, allowed: Container[bytes], answered: Container[bytes]
    ) -> None:
        if self.phase is not phase:
            raise _bad("phase.late", client, f"a message of {phase.name.lower()}, which is over")
        if client not in allowed:
            raise _bad("phase.stranger", client, f"not asked in {phase.name.lower()}")
        if client in answered:
            raise _bad("phase.repeated", client, f"a second message in {phase.name.lower()}")

    def _lose(self, asked: Iterable[bytes], answered: Iterable[bytes]) -> None:
        for client in set(asked) - set(answered) - set(self.lost):
            self.lost[client] = self.phase

    def _enough(self, count: int, did: str) -> None:
        if count < self._p.minimum:
            raise RoundError(f"{count} clients {did}, the minimum is {self._p.minimum}", RETRY)

    def _known_cohort(self) -> Cohort:
        assert self._cohort is not None
        return self._cohort


def _bad(code: str, client: bytes, fault: str) -> SecrecyError:
    return SecrecyError(code, f"{client.hex()}: {fault}", REMEDY)
