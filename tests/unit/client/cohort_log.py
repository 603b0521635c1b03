"""A log for a cohort's coordinator: what it shows, built by hand; a test changes what it says."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.merkle import leaf_hash
from protocol.transparency.leaves import (
    Abort,
    Leaf,
    Pad,
    Vector,
    decode_leaf,
    encode_message,
    encode_statement,
)
from protocol.transparency.note import Checkpoint, KeyType, VerifierKey, sign_note
from protocol.transparency.offline import OfflineProof
from protocol.transparency.receipts import Receipt, sign_receipt
from protocol.transparency.shown import Given, Shown, Told
from protocol.transparency.tree import Tree


class CohortLog:
    """Entries, a tree and a key."""

    def __init__(self, origin: str, entries: list[bytes] | None = None) -> None:
        self.key, self.origin = Ed25519PrivateKey.generate(), origin
        self.entries: list[bytes] = []
        self.tree = Tree()
        for data in [self.statement(Pad())] * 3 if entries is None else entries:
            self.add(data)

    def statement(self, leaf: Leaf) -> bytes:
        return encode_statement(leaf, {"plan": "0" * 64}, self.key)

    def add(self, data: bytes) -> None:
        self.entries.append(data)
        self.tree.append(leaf_hash(data))

    def copied(self, entries: list[bytes]) -> CohortLog:
        """Another log of the same key and name."""
        other = CohortLog(self.origin, entries)
        other.key = self.key
        return other

    @property
    def verifier(self) -> str:
        public = self.key.public_key().public_bytes_raw()
        return VerifierKey(name=self.origin, type=KeyType.ED25519, public=public).encode()

    @property
    def note(self) -> str:
        text = Checkpoint(origin=self.origin, size=len(self.entries), root=self.tree.root()).text
        return f"{text}\n{sign_note(text, self.origin, self.key)}"

    def shown(self, client: bytes, told: Told) -> Shown:
        """Honestly: the way from the size told, and every vector of the client and every abort since."""
        since = min(told.size, len(self.entries))
        wanted = []
        for at, data in enumerate(self.entries[since:], start=since):
            leaf = decode_leaf(data).leaf
            if isinstance(leaf, Abort) or (
                isinstance(leaf, Vector) and leaf.client == client.hex()
            ):
                wanted.append(at)
        return Shown(
            key=self.verifier,
            checkpoint=self.note,
            consistency=[node.hex() for node in self.tree.consistency(since)],
            proofs=[self.proof(at).encode() for at in wanted] if told.size else [],
        )

    def proof(self, at: int) -> OfflineProof:
        path = tuple(self.tree.inclusion(at))
        return OfflineProof(index=at, path=path, checkpoint=self.note, extra=self.entries[at])

    def given(self, receipt: Receipt) -> Given:
        return Given(key=self.verifier, receipt=sign_receipt(receipt, self.key))

    def add_vector(self, receipt: Receipt) -> None:
        leaf = Vector(
            client=receipt.client,
            rid=receipt.rid,
            root=receipt.root,
            length=40,
            signature="00" * 64,
        )
        self.add(encode_message(leaf))
