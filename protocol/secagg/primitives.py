"""The primitives of secure aggregation and their domain separation. (P-6.1, P-6.2)"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.errors import SecrecyError

RandomBytes = Callable[[int], bytes]  # os.urandom in production
Word = npt.NDArray[Any]  # uint16 or uint32: :func:`word_type`

ID_BYTES, NONCE_BYTES, PIECE = 16, 12, 256 * 1024  # a piece stays in a core's cache
_ZEROS = memoryview(bytes(PIECE))


class Suite(StrEnum):
    """Which stream cipher expands a mask: ChaCha20 is for cores without AES instructions."""

    AES_256_CTR = "aes-256-ctr"
    CHACHA20 = "chacha20"


def tagged(tag: str, message: bytes) -> bytes:
    """``"fedge/" tag "/v1" 0x00 message``: what is hashed or signed, so that no two uses collide."""
    return b"fedge/" + tag.encode() + b"/v1\x00" + message


def tagged_hash(tag: str, message: bytes) -> bytes:
    """SHA-256 of the tagged message, 32 bytes."""
    return hashlib.sha256(tagged(tag, message)).digest()


def kdf(secret: bytes, label: str, context: bytes, length: int = 32) -> bytes:
    """HKDF-SHA-256 with empty salt and the tagged context as info."""
    return HKDF(SHA256(), length, None, tagged(label, context)).derive(secret)


def client_id(public_key: bytes) -> bytes:
    """The first 16 bytes of SHA-256 of a raw Ed25519 public key."""
    return hashlib.sha256(public_key).digest()[:ID_BYTES]


def sign(key: Ed25519PrivateKey, tag: str, message: bytes) -> bytes:
    """Ed25519 over the tagged message, 64 bytes."""
    return key.sign(tagged(tag, message))


MOST_CHECKED = 8192
# Of public data, by its digest, for a long run has much: a process that serves many clients checks each once.
_checked: dict[bytes, bool] = {}


def signature_is_valid(public_key: bytes, tag: str, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is that key's over the tagged message."""
    signed = tagged(tag, message)
    parts = (public_key, signature, signed)
    digest = hashlib.sha256(
        b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    ).digest()
    if (known := _checked.get(digest)) is not None:
        return known
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
        valid = True
    except (InvalidSignature, ValueError):
        valid = False
    if len(_checked) >= MOST_CHECKED:
        _checked.clear()  # in one step: clients may be side by side in threads
    _checked[digest] = valid
    return valid


def public_of(secret: bytes) -> bytes:
    """The X25519 public key of a 32-byte secret."""
    return opened_secret(secret).public_key().public_bytes_raw()


def opened_secret(secret: bytes) -> X25519PrivateKey:
    """An X25519 secret of 32 bytes, to agree with."""
    return X25519PrivateKey.from_private_bytes(secret)


def agree(secret: X25519PrivateKey, public: bytes) -> bytes:
    """X25519. Raises SecrecyError for a public key of low order, whose result would be zero.

    A secret is opened once for many pairs: to open it costs as much as to agree.
    """
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecrecyError(
            "key.low-order", "a public key gives an all-zero secret", "leave that client out"
        ) from None


def seal(key: bytes, plain: bytes, associated: bytes, random: RandomBytes) -> bytes:
    """ChaCha20-Poly1305: nonce (12), ciphertext, tag (16)."""
    nonce = random(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The plaintext, or None when key, context or a byte is not what was sealed."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        return None


def word_type(bits: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Little-endian mask words: 2 bytes up to 16 bits, 4 up to 32."""
    return np.dtype("<u2") if bits <= 16 else np.dtype("<u4")


def add_mask(words: Word, key: bytes, *, sign: int, suite: Suite, start: int = 0) -> None:
    """Add (``sign`` 1) or subtract (-1) the stream of ``key`` in place, with wrap-around.

    ``words`` (n,) of :func:`word_type`; ``start`` is the coordinate of the first word: streams are
    seekable, so that a part of a vector can be unmasked alone. A key is used for one stream only.
    """
    width = words.dtype.itemsize
    stream = _stream(key, suite, start * width)
    buffer = bytearray(PIECE + 16)
    mask = np.frombuffer(buffer, words.dtype)
    step = PIECE // width
    for first in range(0, len(words), step):
        piece = words[first : first + step]
        stream.update_into(_ZEROS[: len(piece) * width], buffer)
        if sign > 0:
            piece += mask[: len(piece)]
        else:
            piece -= mask[: len(piece)]


def _stream(key: bytes, suite: Suite, offset: int) -> CipherContext:
    """An encryptor at byte ``offset`` of the stream: zero initial block or nonce."""
    if suite is Suite.AES_256_CTR:
        block, rest = divmod(offset, 16)
        stream = Cipher(AES(key), CTR(block.to_bytes(16, "big"))).encryptor()
    else:
        block, rest = divmod(offset, 64)
        nonce = block.to_bytes(8, "little") + bytes(8)
        stream = Cipher(ChaCha20(key, nonce), None).encryptor()
    stream.update(bytes(rest))
    return stream
