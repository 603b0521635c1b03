"""Sealing to a key pair of X25519 and ML-KEM-768: open to whoever breaks both. (P-6.15)

The key of a box hangs on the Diffie-Hellman secret of the two parties' X25519 keys and on a fresh
encapsulation to the receiver's ML-KEM key. The encapsulation draws its randomness inside the
cryptography package, which offers no other way; every other random byte is an argument.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)

from protocol.errors import SecrecyError
from protocol.secagg.primitives import RandomBytes, agree, kdf, opened_secret, seal, unseal

KEM_KEY_BYTES, KEM_SEED_BYTES, CIPHERTEXT_BYTES = 1184, 64, 1088
X25519_BYTES = 32


class HybridKey:
    """A key pair of 96 secret bytes: X25519, then the ML-KEM seed. The public key likewise."""

    def __init__(self, secret: bytes) -> None:
        self._x25519 = opened_secret(secret[:X25519_BYTES])
        self._kem = MLKEM768PrivateKey.from_seed_bytes(secret[X25519_BYTES:])
        own = self._x25519.public_key().public_bytes_raw()
        self.public = own + self._kem.public_key().public_bytes_raw()

    def seal_to(
        self,
        receiver: bytes,
        label: str,
        way: bytes,
        extra: bytes,
        plain: bytes,
        random: RandomBytes,
    ) -> bytes:
        """Encapsulation, nonce, ciphertext, tag. ``way`` and ``extra`` are bound, not sent.

        ``receiver`` is the whole public key. Raises SecrecyError for one that is unusable.
        """
        secret, encapsulation = _kem_key(receiver[X25519_BYTES:]).encapsulate()
        secret += agree(self._x25519, receiver[:X25519_BYTES])
        info = way + self.public[:X25519_BYTES] + receiver + encapsulation
        return encapsulation + seal(kdf(secret, label, info), plain, way + extra, random)

    def open_from(
        self, sender: bytes, label: str, way: bytes, extra: bytes, box: bytes
    ) -> bytes | None:
        """The plaintext, or None. Of the sender's public key only the X25519 part is used."""
        encapsulation, sealed = box[:CIPHERTEXT_BYTES], box[CIPHERTEXT_BYTES:]
        if len(encapsulation) != CIPHERTEXT_BYTES:
            return None
        secret = self._kem.decapsulate(encapsulation) + agree(self._x25519, sender[:X25519_BYTES])
        info = way + sender[:X25519_BYTES] + self.public + encapsulation
        return unseal(kdf(secret, label, info), sealed, way + extra)


def check_public(key: bytes) -> None:
    """Raises SecrecyError for bytes that are no ML-KEM-768 public key."""
    _kem_key(key)


def _kem_key(key: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(key)
    except ValueError:
        raise SecrecyError(
            "key.malformed", "a public key is not one of ML-KEM-768", "leave that client out"
        ) from None
