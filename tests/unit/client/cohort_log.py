"""A log for a cohort's coordinator: what it shows, built by hand; a test changes what it says."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.merkle import leaf_hash
from protocol.transparency.leaf_codec import decode_leaf, encode_message, encode_statement
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Leaf,
    OpenedSum,
    Pad,
    Vector,
)
from protocol.transparency.note import Checkpoint, KeyType, VerifierKey, sign_note
from protocol.transparency.receipts import Receipt, sign_receipt
from protocol.transparency.shown import Given, Proven, Shown, Tail, Told, nodes_text
from protocol.transparency.tree import Tree


class CohortLog:
    """Entries, a tree and a key."""

    def __init__(
        self,
        origin: str,
        entries: list[bytes] | None = None,
        key: Ed25519PrivateKey | None = None,
    ) -> None:
        self.key, self.origin = key or Ed25519PrivateKey.generate(), origin
        self.entries: list[bytes] = []
        self.tree = Tree()
        self.last_adapter = 0
        for data in [self.statement(Pad())] * 3 if entries is None else entries:
            self.add(data)

    def statement(self, leaf: Leaf) -> bytes:
        return encode_statement(leaf, {"plan": "0" * 64}, self.key)

    def add(self, data: bytes) -> None:
        if isinstance(decode_leaf(data).leaf, Adapter):
            self.last_adapter = len(self.entries)
        self.entries.append(data)
        self.tree.append(leaf_hash(data))

    def add_adapter(self, number: int, digest: str, rids: Sequence[str] = ()) -> None:
        """The outcome of a round: the next one's incoming adapter."""
        leaf = Adapter(
            round=number,
            attempt=1,
            seq=number,
            adapter_in="",
            adapter_out=digest,
            published=digest,
            exchange="secagg",
            sums=[OpenedSum(group=0, rid=rid, summands=5, kept=True) for rid in rids],
            void="",
        )
        self.add(self.statement(leaf))

    @property
    def adapter(self) -> Adapter | None:
        """The last one."""
        leaf = decode_leaf(self.entries[self.last_adapter]).leaf
        return leaf if isinstance(leaf, Adapter) else None

    def copied(self, entries: list[bytes]) -> CohortLog:
        """Another log of the same key and name."""
        return CohortLog(self.origin, entries, self.key)

    @property
    def verifier(self) -> str:
        public = self.key.public_key().public_bytes_raw()
        return VerifierKey(name=self.origin, type=KeyType.ED25519, public=public).encode()

    @property
    def note(self) -> str:
        text = Checkpoint(origin=self.origin, size=len(self.entries), root=self.tree.root()).text
        return f"{text}\n{sign_note(text, self.origin, self.key)}"

    def shown(self, client: bytes, told: Told) -> Shown:
        """Honestly: the way from the size told, every vector of the client and every end since."""
        since = min(told.size, len(self.entries))
        wanted = []
        for at, data in enumerate(self.entries[since:], start=since):
            leaf = decode_leaf(data).leaf
            if isinstance(leaf, Abort | Adapter) or (
                isinstance(leaf, Vector) and leaf.client == client.hex()
            ):
                wanted.append(at)
        return Shown(
            key=self.verifier,
            checkpoint=self.note,
            consistency=nodes_text(self.tree.consistency(since)),
            tail=self.tail(),
            proven=[self.proven(at) for at in wanted if at != self.last_adapter]
            if told.size
            else [],
        )

    def tail(self, start: int | None = None) -> Tail:
        start = self.last_adapter if start is None else start
        return Tail(
            start=start,
            peaks=nodes_text(self.tree.peaks(start)),
            leaves=[data.decode() for data in self.entries[start:]],
        )

    def proven(self, at: int) -> Proven:
        path = nodes_text(self.tree.inclusion(at))
        return Proven(index=at, path=path, leaf=self.entries[at].decode())

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
