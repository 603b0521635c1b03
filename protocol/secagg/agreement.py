"""How two clients agree on a secret: over X25519, or over X25519 and ML-KEM-768. (P-6.7, P-6.15)

An :class:`End` is one client's side of all its agreements in an attempt: it seals boxes with Shamir
shares to its neighbours, opens theirs, and knows the secret that the masks of a pair come from. The
coordinator has the end of a lost client whose mask seed was rebuilt: its pairs, never its boxes.

In the hybrid form one of a pair derives the pair's secret from its own mask seed and seals it to the other's
mask key, so that either one's seed is enough to find it again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocol.secagg import shamir
from protocol.secagg.kem import CIPHERTEXT_BYTES, KEM_KEY_BYTES, KEM_SEED_BYTES, HybridKey
from protocol.secagg.kem import check_public as check_hybrid
from protocol.secagg.primitives import (
    NONCE_BYTES,
    RandomBytes,
    agree,
    kdf,
    opened_secret,
    public_of,
    seal,
    tagged_hash,
    unseal,
)

X25519_BYTES = 32
TAG_BYTES, COMMIT_BYTES, SEED_BYTES = 16, 32, 32
SHARES_BYTES = NONCE_BYTES + 2 * shamir.ELEMENT_BYTES + TAG_BYTES
HYBRID_SHARES_BYTES = CIPHERTEXT_BYTES + SHARES_BYTES
HYBRID_SEED_BYTES = CIPHERTEXT_BYTES + NONCE_BYTES + SEED_BYTES + TAG_BYTES + COMMIT_BYTES
PROBE = bytes(range(32))  # any secret: whether a public key is usable does not depend on it


class Keys(StrEnum):
    """What channels and pair masks rest on; the plan says which."""

    X25519 = "x25519"
    HYBRID = "x25519+ml-kem-768"

    @property
    def secret_bytes(self) -> int:
        """Of a channel secret."""
        return X25519_BYTES + (KEM_SEED_BYTES if self is Keys.HYBRID else 0)

    @property
    def public_bytes(self) -> int:
        """Of each public key in an advert: X25519 first."""
        return X25519_BYTES + (KEM_KEY_BYTES if self is Keys.HYBRID else 0)

    def box_bytes(self, *, seed: bool) -> int:
        """Of a box: sealed shares, and with ``seed`` that of the pair."""
        if self is Keys.X25519:
            return SHARES_BYTES
        return HYBRID_SHARES_BYTES + (HYBRID_SEED_BYTES if seed else 0)

    def public_of(self, secret: bytes) -> bytes:
        """The public key of a channel or mask secret."""
        return HybridKey(secret).public if self is Keys.HYBRID else public_of(secret)

    def mask_secret(self, mask_seed: int, context: bytes) -> bytes:
        """The secret mask key of a client in an attempt, from the seed that it shares."""
        seed = shamir.to_bytes(mask_seed)
        if self is Keys.X25519:
            return kdf(seed, "mask-sk", context)
        return kdf(seed, "x25519", context) + kdf(seed, "mlkem", context, KEM_SEED_BYTES)

    def check_public(self, key: bytes) -> None:
        """Raises SecrecyError for a key that would make everybody else refuse."""
        agree(opened_secret(PROBE), key[:X25519_BYTES])
        if self is Keys.HYBRID:
            check_hybrid(key[X25519_BYTES:])

    def end(
        self,
        *,
        client: bytes,
        attempt: bytes,
        xid: bytes,
        mask_seed: int,
        channel_secret: bytes = b"",
    ) -> End:
        """That client's end of its agreements."""
        kind = HybridEnd if self is Keys.HYBRID else X25519End
        return kind(client, attempt, xid, mask_seed, channel_secret)


def pair_label(one: bytes, other: bytes) -> bytes:
    """The two ids, lower first."""
    return min(one, other) + max(one, other)


def pair_key(secret: bytes, rid: bytes, one: bytes, other: bytes) -> bytes:
    """The mask key of a pair in a round, from the pair's secret: the same from either side."""
    return kdf(secret, "pair", rid + pair_label(one, other))


@dataclass(frozen=True, eq=False)
class End(ABC):
    """One client's side, from the secrets it drew in an attempt."""

    client: bytes
    attempt: bytes  # actx
    xid: bytes
    mask_seed: int
    channel_secret: bytes

    def __repr__(self) -> str:
        """Nothing but whose it is."""
        return f"<{type(self).__name__} of {self.client.hex()}>"

    @abstractmethod
    def seal_to(
        self,
        other: bytes,
        channel_key: bytes,
        mask_key: bytes,
        plain: bytes,
        random: RandomBytes,
        *,
        seed: bool,
    ) -> tuple[bytes, bytes]:
        """The box for ``other`` with ``plain`` in it, and with ``seed`` that of their pair; its opener."""

    @abstractmethod
    def opener(self, other: bytes, channel_key: bytes) -> bytes:
        """What to keep for opening boxes of ``other``."""

    @abstractmethod
    def open_from(self, other: bytes, opener: bytes, box: bytes) -> bytes | None:
        """What ``other`` sealed, or None. ``opener`` is what :meth:`opener` gave."""

    @abstractmethod
    def pair_secret(
        self, other: bytes, mask_key: bytes, box: bytes | None, *, own: bool
    ) -> bytes | None:
        """What this pair's masks come from; None when ``box`` is not that of this pair.

        ``own``: this client's seed it is, and ``box`` its own to the other: a client needs none for itself, a
        coordinator that rebuilt its seed gives it, to see that the other one was told the same. Otherwise it
        is the other's, in its box. Of the other's key the X25519 part is enough.
        """


class X25519End(End):
    """One Diffie-Hellman secret for a pair's channel, one for its masks."""

    def seal_to(
        self,
        other: bytes,
        channel_key: bytes,
        mask_key: bytes,
        plain: bytes,
        random: RandomBytes,
        *,
        seed: bool,
    ) -> tuple[bytes, bytes]:
        """Under the channel of the pair."""
        channel = self.opener(other, channel_key)
        return seal(channel, plain, self.xid + self.client + other, random), channel

    def opener(self, other: bytes, channel_key: bytes) -> bytes:
        """The channel's key."""
        secret = agree(self._channel, channel_key)
        return kdf(secret, "chan", self.xid + pair_label(self.client, other))

    def open_from(self, other: bytes, opener: bytes, box: bytes) -> bytes | None:
        """Under the same channel."""
        return unseal(opener, box, self.xid + other + self.client)

    def pair_secret(
        self, other: bytes, mask_key: bytes, box: bytes | None, *, own: bool
    ) -> bytes | None:
        """The Diffie-Hellman secret of the mask keys."""
        return agree(self._mask, mask_key)

    @cached_property
    def _channel(self) -> X25519PrivateKey:
        return opened_secret(self.channel_secret)

    @cached_property
    def _mask(self) -> X25519PrivateKey:
        return opened_secret(Keys.X25519.mask_secret(self.mask_seed, self.attempt))


class HybridEnd(End):
    """A fresh encapsulation for every box; one of a pair chooses the pair's secret. (P-6.15)"""

    def seal_to(
        self,
        other: bytes,
        channel_key: bytes,
        mask_key: bytes,
        plain: bytes,
        random: RandomBytes,
        *,
        seed: bool,
    ) -> tuple[bytes, bytes]:
        """The shares to the channel key; behind them the pair's seed to the mask key."""
        way = self.xid + self.client + other
        box = self._channel_key.seal_to(channel_key, "chan-hybrid", way, b"", plain, random)
        opener = self.opener(other, channel_key)
        if not seed:
            return box, opener
        pair_seed = self._pair_seed(other)
        commit = tagged_hash("pair-commit", way + pair_seed)
        sealed = self._mask_key.seal_to(mask_key, "pair-box", way, commit, pair_seed, random)
        return box + sealed + commit, opener

    def opener(self, other: bytes, channel_key: bytes) -> bytes:
        """The X25519 part of its channel key."""
        return channel_key[:X25519_BYTES]

    def open_from(self, other: bytes, opener: bytes, box: bytes) -> bytes | None:
        """The shares; a pair's seed behind them is left alone."""
        way = self.xid + other + self.client
        shares = box[:HYBRID_SHARES_BYTES]
        return self._channel_key.open_from(opener, "chan-hybrid", way, b"", shares)

    def pair_secret(
        self, other: bytes, mask_key: bytes, box: bytes | None, *, own: bool
    ) -> bytes | None:
        """Derived by whose it is, unsealed by the other; the box's commitment has to fit."""
        way = self.xid + (self.client + other if own else other + self.client)
        seed = self._pair_seed(other) if own else None
        if box is None:
            return seed
        sealed, commit = box[HYBRID_SHARES_BYTES:-COMMIT_BYTES], box[-COMMIT_BYTES:]
        if not own:
            seed = self._mask_key.open_from(mask_key, "pair-box", way, commit, sealed)
        fits = seed is not None and commit == tagged_hash("pair-commit", way + seed)
        return seed if fits else None

    def _pair_seed(self, other: bytes) -> bytes:
        return kdf(shamir.to_bytes(self.mask_seed), "pair-seed", self.attempt + other)

    @cached_property
    def _channel_key(self) -> HybridKey:
        return HybridKey(self.channel_secret)

    @cached_property
    def _mask_key(self) -> HybridKey:
        return HybridKey(Keys.HYBRID.mask_secret(self.mask_seed, self.attempt))
