"""P-6.2, P-6.4, P-6.7, P-6.15: streams, packing, and the masks that a lost client leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR

from .basics import Words, derived, named_hash
from .log import leaf_hash, path_root

HYBRID = "x25519+ml-kem-768"
BLOCK, LANES = 32_768, 32
SHARES_BOX, PAIR_BOX = 1180, 1180  # of the hybrid form
PRIME = 2**255 - 19


def word_type(bits: int) -> np.dtype[Any]:
    return np.dtype("<u2" if bits <= 16 else "<u4")


def stream(key: bytes, suite: str, size: int) -> bytes:
    """PRG of P-6.2."""
    if suite == "aes-256-ctr":
        return Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(size))
    assert suite == "chacha20"
    return Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(size))


def mask(key: bytes, suite: str, count: int, bits: int) -> Words:
    kind = word_type(bits)
    return np.frombuffer(stream(key, suite, count * kind.itemsize), kind)


def unpack(data: bytes, count: int, bits: int) -> Words:
    """P-6.4, one number of 32 values at a time."""
    if bits in (16, 32):
        assert len(data) == count * bits // 8
        return np.frombuffer(data, word_type(bits))
    values = np.zeros(count, np.uint32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        m = -(-size // LANES)
        words, data = (
            np.frombuffer(data[: 4 * bits * m], "<u4").reshape(bits, m),
            data[4 * bits * m :],
        )
        block = np.zeros(LANES * m, np.uint32)
        for p in range(m):
            number = int.from_bytes(words[:, p].tobytes(), "little")
            for lane in range(LANES):
                block[lane * m + p] = number >> bits * lane & 2**bits - 1
        values[first : first + size] = block[:size]
    assert not data
    return values


class Lost:
    """A client whose mask seed was revealed: what it added to others' vectors, and they to its. (P-6.8)"""

    def __init__(self, client: bytes, seed: bytes, actx: bytes, hybrid: bool) -> None:
        assert int.from_bytes(seed, "big") < PRIME
        self.client, self._seed, self._actx, self._hybrid = client, seed, actx, hybrid
        label = "x25519" if hybrid else "mask-sk"
        self._secret = X25519PrivateKey.from_private_bytes(derived(seed, label, actx))
        self.public = self._secret.public_key().public_bytes_raw()
        if hybrid:
            self._kem = MLKEM768PrivateKey.from_seed_bytes(derived(seed, "mlkem", actx, 64))
            self.public += self._kem.public_key().public_bytes_raw()

    def secret_with(self, other: bytes, mask_key: bytes) -> bytes:
        """Of the classic form."""
        assert not self._hybrid
        return self._secret.exchange(X25519PublicKey.from_public_bytes(mask_key))

    def pair_seed(
        self, other: bytes, mask_key: bytes, xid: bytes, box: bytes, *, own: bool
    ) -> bytes:
        """r of P-6.15; ``box`` is this client's for the other where it is ``own``."""
        sealed, commit = box[SHARES_BOX:-32], box[-32:]
        assert len(sealed) == PAIR_BOX - 32
        way = xid + (self.client + other if own else other + self.client)
        if own:
            r = derived(self._seed, "pair-seed", self._actx + other)
        else:
            r = self._opened(sealed, mask_key, way, commit)
        assert named_hash("pair-commit", way + r) == commit
        return r

    def _opened(self, sealed: bytes, sender: bytes, way: bytes, commit: bytes) -> bytes:
        """SEAL backwards."""
        encapsulation, nonce, text = sealed[:1088], sealed[1088:1100], sealed[1100:]
        shared = self._kem.decapsulate(encapsulation)
        shared += self._secret.exchange(X25519PublicKey.from_public_bytes(sender[:32]))
        key = derived(shared, "pair-box", way + sender[:32] + self.public + encapsulation)
        return ChaCha20Poly1305(key).decrypt(nonce, text, way + commit)


def checked_box(entry: dict[str, Any], near: list[bytes], shares_root: str) -> bytes:
    """A box of P-8.4, which the sender's signed root covers; ``near`` are the sender's sorted holders."""
    assert sorted(entry) == ["box", "path", "receiver", "sender"]
    box, path = bytes.fromhex(entry["box"]), [bytes.fromhex(node) for node in entry["path"]]
    assert len(box) == SHARES_BOX + PAIR_BOX
    place = near.index(bytes.fromhex(entry["receiver"]))
    assert path_root(leaf_hash(box), place, len(near), path).hex() == shares_root
    return box
