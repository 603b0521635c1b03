"""P-6, P-8.3: one sum from its leaves and vectors: who is in it, its words, what they decode to."""

from __future__ import annotations

import hashlib
import json
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .basics import (
    Vector,
    Words,
    canonical,
    check_signature,
    derived,
    largest_sum,
    named_hash,
    sha256,
)
from .documents import Documents, Roster
from .log import Leaf, leaf_hash, tree_root
from .masks import HYBRID, PRIME, Lost, checked_box, mask, unpack, word_type
from .noise import Noise
from .ring import Exact, padded

OF_TOKENS = ["eval_tokens", "eval_right", "eval_loss"]
MEASURED = {  # P-3.2
    "classification": ["eval_correct"],
    "regression": ["eval_error"],
    "image-classification": ["eval_correct"],
    "audio-classification": ["eval_correct"],
    "document-classification": ["eval_correct"],
    "causal-lm": OF_TOKENS,
    "seq2seq-lm": OF_TOKENS,
    "image-generation": ["eval_noise"],
}
SCALES = {  # of the others 1
    "loss_sum": 2**12,
    "eval_error": 2**16,
    "eval_loss": 2**10,
    "eval_noise": 2**16,
    "train_seconds": 1000,
}


def counters(kind: str) -> list[str]:
    return ["examples", "loss_sum", "eval_examples", *MEASURED[kind], "train_seconds"]


STAGES = ("advert", "cohort", "shares", "round-open", "vector", "alive", "reveal", "aggregate")


def part_of_attempt(kind: str) -> int:
    """P-8.8: under witnesses `alive` of all groups stands first, what is opened last."""
    return 0 if kind == "alive" else 2 if kind in ("reveal", "aggregate") else 1


@dataclass
class Opened:
    """A sum that holds."""

    group: int
    seq: int
    attempt: int
    rid: str
    ids: set[str]  # in the sum
    advertised: set[bytes]
    clients: list[str]
    mean: Vector
    metrics: dict[str, float]


@dataclass
class Sum:
    """The leaves of one group of an attempt, in the order of P-8.8."""

    documents: Documents
    roster: Roster
    group: int
    leaves: dict[str, list[Leaf]] = field(default_factory=dict)

    def add(self, leaf: Leaf) -> None:
        self.leaves.setdefault(leaf.kind, []).append(leaf)

    def only(self, kind: str) -> Leaf:
        (leaf,) = self.leaves[kind]
        return leaf

    def check(self, number: int, adapter_in: str) -> None:
        """What is signed of a sum of round ``number``, up to its alive set."""
        self._check_adverts()
        self._check_members()
        self._check_terms(number, adapter_in)
        self._check_alive()

    def open(self, number: int, adapter_in: str) -> Opened:
        """Everything of it."""
        self.check(number, adapter_in)
        self._check_opened()
        words = self._words()
        n = len(self.alive)
        metrics = {}
        if isinstance(self.ring, Exact):
            named = zip(self.terms["counters"], self.ring.counters(words), strict=True)
            metrics = {name: total / SCALES.get(name, 1) for name, total in named}
        return Opened(
            group=self.only("cohort")["group"],
            seq=self.only("cohort")["seq"],
            attempt=self.only("round-open")["attempt"],
            rid=self.rid.hex(),
            ids={one.hex() for one in self.alive},
            advertised=set(self.adverts),
            clients=sorted(self.roster.names[one] for one in self.alive),
            mean=self.ring.mean(words, n, bytes.fromhex(self.terms["rotation"])),
            metrics=metrics,
        )

    # -- who --------------------------------------------------------------------------------------

    def _check_adverts(self) -> None:
        """P-6.3, P-6.5, P-6.6: the adverts and the cohort that they make."""
        cohort = self.only("cohort")
        self.hybrid = self.documents.plan["secrecy"]["keys"] == HYBRID
        width = 1216 if self.hybrid else 32
        self.actx = self.documents.sid + cohort["seq"].to_bytes(8, "big")
        self.adverts: dict[bytes, tuple[bytes, bytes]] = {}  # mask key, commitment
        bodies, last = [], b""
        for leaf in self.leaves["advert"]:
            data, end = bytes.fromhex(leaf["advert"]), 56 + 2 * width + 32
            assert len(data) == end + 64
            assert leaf["group"] == cohort["group"]
            body, one = data[:end], data[40:56]
            assert body[:40] == self.actx
            assert one > last
            last = one
            named = self.documents.plan["cohort"].get("clients")
            assert named is None or self.roster.names[one] in named  # P-4.1
            check_signature(self.roster.keys[one], "advert", body, data[end:])
            self.adverts[one] = body[56 + width : end - 32], body[end - 32 :]
            bodies.append(body)
        assert len(self.adverts) <= largest_sum(self.documents.plan) <= self._most()
        self.ids = list(self.adverts)
        k = len(self.adverts) - 1 if len(self.adverts) <= 128 else 80
        t = 2 * k // 3 + 1
        root = named_hash("u1", b"".join(bodies))
        names = ("u1_root", "degree", "threshold", "graph_seed", "alive_index")
        place = self.only("alive").index if self.documents.witnessed else None  # P-6.16
        assert [cohort[name] for name in names] == [root.hex(), k, t, "00" * 32, place]
        shape = struct.pack(">HHQ", k, t, 2**64 - 1 if place is None else place)
        self.xid = named_hash("share-ctx", self.actx + root + bytes(32) + shape)
        assert self.xid.hex() == cohort["xid"]
        assert cohort.about == {"attempt": cohort["xid"]}

    def _most(self) -> int:
        """P-6.3."""
        if len(self.adverts) > 128:
            assert self.documents.plan["privacy"]["mechanism"] == "none"
        return 10_000 if self.documents.witnessed and not self.hybrid else 2000

    def _check_members(self) -> None:
        """U2, each of whom signed the root of the shares it sealed; what all masks are bound to."""
        opened = self.only("round-open")
        self.roots = {}
        self.holders: dict[bytes, list[bytes]] = {}
        for leaf in self.leaves["shares"]:
            one, choice = bytes.fromhex(leaf["client"]), leaf.fields.get("choice", "")
            assert leaf["xid"] == opened["xid"] == self.xid.hex()
            self.holders[one] = self._holders(one, bytes.fromhex(choice))
            message = self.xid + one + bytes.fromhex(leaf["root"] + choice)
            check_signature(self.roster.keys[one], "shares", message, _signature(leaf))
            self.roots[one] = leaf["root"]
        self.members = [bytes.fromhex(one) for one in opened["members"]]
        assert self.members == sorted(set(self.members)) == list(self.roots)
        assert len(self.roots) == len(self.leaves["shares"])
        assert set(self.members) <= set(self.adverts)
        self.terms = opened["terms"]
        members = named_hash("u2", b"".join(self.members))
        self.rid = named_hash("round", self.xid + members + canonical(self.terms))
        assert self.rid.hex() == opened["rid"]
        assert opened.about == {"round": opened["rid"]}

    def _holders(self, one: bytes, choice: bytes) -> list[bytes]:
        """P-6.3: everybody else, or the eighty that a client draws."""
        rank, others = bisect_left(self.ids, one), len(self.ids) - 1
        assert self.ids[rank] == one
        if others < 128:
            assert not choice
            return self.ids[:rank] + self.ids[rank + 1 :]
        assert len(choice) == 32
        seed = named_hash("holders", self.xid + one + choice)
        drawn: dict[int, None] = {}
        for (word,) in struct.iter_unpack(">Q", hashlib.shake_256(seed).digest(8 * 2000)):
            drawn[word * others >> 64] = None
            if len(drawn) == 80:
                break
        return [self.ids[number + (number >= rank)] for number in sorted(drawn)]

    def _check_terms(self, number: int, adapter_in: str) -> None:
        """P-6.11, P-7.4: nothing of them is the coordinator's to choose."""
        documents, opened = self.documents, self.only("round-open")
        plan, secrecy, size = documents.plan, documents.plan["secrecy"], documents.size(number)
        assert opened["round"] == number
        assert opened["attempt"] >= 1
        numbers = struct.pack(">QQ", number, opened["attempt"])
        terms: dict[str, Any] = {
            "instruction": {
                "round": number,
                "attempt": opened["attempt"],
                "plan_digest": documents.digest,
                "base": documents.manifest["fingerprint"],
                "adapter_digest": adapter_in,
                "evaluate": number % plan["evaluation"]["every"] == 0 or number == plan["rounds"],
            },
            "suite": secrecy["suite"],
            "minimum": documents.least,
            "size": size,
            "rotation": named_hash("rotation", bytes.fromhex(documents.digest) + numbers).hex(),
            "roster": self.roster.root,
        }
        self.ring: Exact | Noise
        if plan["privacy"]["mechanism"] == "distributed":
            self.ring = Noise.planned(documents, number)
            self.count = padded(size)
            terms["privacy"] = self.ring.terms()
        else:
            assert plan["privacy"]["mechanism"] == "none"
            names = self.terms["counters"]
            expected = counters(plan["task"]["kind"])
            assert names[: len(expected)] == expected
            members = len(self.members)
            bits, clip = secrecy["bits"], secrecy["clip"]
            self.ring = Exact(size=size, bits=bits, clip=clip, members=members)
            self.count = self.ring.count(len(names))
            terms |= {"levels": self.ring.q, "counters": names}
        terms |= {"bits": self.ring.bits, "clip": self.ring.clip}
        if self.hybrid:
            terms["keys"] = HYBRID
        assert canonical(terms) == canonical(self.terms)
        assert opened["count"] == self.count

    def _check_alive(self) -> None:
        """U3 is a quorum's, or stands where it was planned; its vectors are signed. (P-6.3, P-6.5, P-6.16)"""
        alive, opened = self.only("alive"), self.only("round-open")
        assert {leaf["rid"] for leaf in (alive, *self.leaves["vector"])} == {self.rid.hex()}
        assert alive.about == {"round": self.rid.hex()}
        self.alive = [bytes.fromhex(one) for one in alive["clients"]]
        self.summed = set(self.alive)
        assert self.alive == sorted(self.summed)
        assert [leaf["client"] for leaf in self.leaves["vector"]] == alive["clients"]
        assert self.summed <= set(self.members)
        assert self.documents.least <= len(self.alive)
        statement = self.rid + bytes.fromhex(sha256(b"".join(self.alive)))
        for client, signature in alive["signatures"].items():
            one = bytes.fromhex(client)
            assert one in self.adverts
            check_signature(self.roster.keys[one], "alive", statement, bytes.fromhex(signature))
        signed = len(alive["signatures"])
        assert not signed if self.documents.witnessed else signed >= 2 * len(self.ids) // 3 + 1
        for leaf in (alive, opened):
            self._check_place(leaf)

    def _check_opened(self) -> None:
        """What was revealed, and the sum, are of this very round."""
        reveal, aggregate = self.only("reveal"), self.only("aggregate")
        assert reveal["rid"] == aggregate["rid"] == self.rid.hex()
        assert reveal.about == {"round": self.rid.hex()}
        for leaf in (reveal, aggregate):
            self._check_place(leaf)
        assert aggregate["round"] == self.only("round-open")["round"]
        assert aggregate["summands"] == len(self.alive)

    def _check_place(self, leaf: Leaf) -> None:
        cohort = self.only("cohort")
        assert (leaf["seq"], leaf["group"]) == (cohort["seq"], cohort["group"])

    # -- what -------------------------------------------------------------------------------------

    def _words(self) -> Words:
        """P-6.8: vectors without masks, equal to the published sum."""
        bits, suite = self.terms["bits"], self.terms["suite"]
        total: Words = np.zeros(self.count, word_type(bits))
        for leaf in self.leaves["vector"]:
            total = total + unpack(self._vector(leaf), self.count, bits).astype(total.dtype)
        for key, sign in self._masks():
            stream = mask(key, suite, self.count, bits)
            total = total + stream if sign > 0 else total - stream
        total = total & total.dtype.type(2**bits - 1)
        aggregate, opened = self.only("aggregate"), self.only("round-open")
        name = f"rounds/{opened['round']:04d}/sums/{opened['group']}.sum"
        data = total.astype(word_type(bits)).tobytes()
        assert sha256(data) == aggregate["sum"]
        assert aggregate.about == {name: aggregate["sum"]}
        assert (self.documents.run / name).read_bytes() == data
        return total

    def _vector(self, leaf: Leaf) -> bytes:
        """The packed vector that its client signed."""
        opened, one = self.only("round-open"), bytes.fromhex(leaf["client"])
        folder = f"rounds/{opened['round']:04d}/vectors/{opened['group']}"
        path = self.documents.run / folder / str(leaf["client"])
        data = path.read_bytes()
        hashes = [leaf_hash(data[at : at + 65_536]) for at in range(0, len(data), 65_536)]
        assert path.with_suffix(".chunks").read_bytes() == b"".join(hashes)
        assert (tree_root(hashes).hex(), len(data)) == (leaf["root"], leaf["length"])
        message = self.rid + one + tree_root(hashes) + named_hash("proof", b"")
        check_signature(self.roster.keys[one], "vector", message, _signature(leaf))
        return data

    def _masks(self) -> Iterator[tuple[bytes, int]]:
        """(key, sign): self masks of those in the sum, pair masks of those that were lost."""
        seeds = self.only("reveal")["seeds"]
        assert sorted(seeds) == [one.hex() for one in self.members]
        boxes = self._boxes()
        drew: dict[bytes, set[bytes]] = {}  # a holder, and who drew it
        for owner, holders in self.holders.items():
            for holder in holders:
                drew.setdefault(holder, set()).add(owner)
        for one in self.members:
            seed = bytes.fromhex(seeds[one.hex()])
            mask_key, commitment = self.adverts[one]
            if one in self.summed:
                assert int.from_bytes(seed, "big") < PRIME
                assert named_hash("bcommit", self.actx + one + seed) == commitment
                yield derived(seed, "self", self.rid), -1
                continue
            lost = Lost(one, seed, self.actx, self.hybrid)
            assert lost.public == mask_key
            own_holders = set(self.holders[one])
            for other in sorted(self.summed & (own_holders | drew.get(one, set()))):
                theirs, lower, higher = self.adverts[other][0], *sorted((one, other))
                pair = lower + higher
                # Of two that drew one another the lower one's seed it is. (P-6.15)
                first = lower if higher in self.holders[lower] else higher
                if self.hybrid:
                    way = pair if first == lower else higher + lower
                    secret = lost.pair_seed(
                        other, theirs, self.xid, boxes.pop(way), own=first == one
                    )
                else:
                    secret = lost.secret_with(other, theirs)
                # What the other one added has to go, what it took away comes back.
                yield derived(secret, "pair", self.rid + pair), 1 if one < other else -1
        assert not boxes

    def _boxes(self) -> dict[bytes, bytes]:
        """The boxes of P-8.4 by sender and receiver."""
        opened, digest = self.only("round-open"), self.only("reveal")["boxes"]
        if not digest:
            return {}
        name = f"rounds/{opened['round']:04d}/sums/{opened['group']}.boxes.json"
        data = (self.documents.run / name).read_bytes()
        assert len(data) <= 2**28
        entries = json.loads(data)
        assert (sha256(data), canonical(entries)) == (digest, data)
        found = {}
        for entry in entries:
            sender, receiver = (bytes.fromhex(entry[name]) for name in ("sender", "receiver"))
            found[sender + receiver] = checked_box(entry, self.holders[sender], self.roots[sender])
        assert len(found) == len(entries)
        return found


def _signature(leaf: Leaf) -> bytes:
    return bytes.fromhex(leaf["signature"])
