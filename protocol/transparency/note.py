"""Signed notes, checkpoints and cosignatures, as C2SP specifies them. (P-8.2)

A note is text that ends in a newline, an empty line, and signature lines. One verifier serves every
role: signatures by unknown keys are ignored, a known key whose signature fails rejects the note.
Sources: C2SP signed-note, tlog-checkpoint and tlog-cosignature.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from protocol.encoding import base64_bytes, base64_text
from protocol.errors import ProofError

DASH = "\u2014 "
MOST_BYTES, MOST_SIGNATURES = 1_000_000, 100
NAME = re.compile(r"[^\s+]{1,128}")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")  # and what UTF-8 cannot hold
STAMP = struct.Struct(">Q")
REMEDY = "fetch it again; if that does not help, whoever signed it is faulty or dishonest"


class KeyType(IntEnum):
    """The byte in front of a public key."""

    ED25519 = 0x01
    COSIGNATURE = 0x04  # Ed25519 over a time and the note


@dataclass(frozen=True, kw_only=True)
class VerifierKey:
    """Who may sign: a name without spaces or plus, a type, a raw Ed25519 public key."""

    name: str
    type: KeyType
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that find the key; a hint, never a check."""
        data = self.name.encode() + b"\n" + bytes([self.type]) + self.public
        return hashlib.sha256(data).digest()[:4]

    def encode(self) -> str:
        """``name+id+base64(type key)``."""
        key = base64_text(bytes([self.type]) + self.public)
        return f"{self.name}+{self.id.hex()}+{key}"


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A note that was verified: its text, and whose signatures it bore, cosignatures with their time."""

    text: str
    by: Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A log's size and root at some moment."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The note's text."""
        return f"{self.origin}\n{self.size}\n{base64_text(self.root)}\n"


def parse_key(text: str) -> VerifierKey:
    """The reverse of :meth:`VerifierKey.encode`. Raises ProofError."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        raw = base64_bytes(encoded)
        key = VerifierKey(name=name, type=KeyType(raw[0]), public=raw[1:])
        agrees = key.id.hex() == key_id
    except (ValueError, IndexError):
        raise ProofError(f"not a verifier key: {text[:80]!r}", "name+id+base64") from None
    # It is shown wherever its log is spoken of.
    named = NAME.fullmatch(name) and name.isprintable()
    if not named or len(key.public) != 32 or not agrees:
        raise ProofError(f"not a verifier key: {text[:80]!r}", "its name, id and key do not agree")
    return key


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """A signature line, with its newline. Raises ValueError for text that is no note's."""
    _check_text(text)
    verifier = _verifier(name, KeyType.ED25519, key)
    return _line(name, verifier.id + key.sign(text.encode()))


def cosign(text: str, name: str, key: Ed25519PrivateKey, *, time: int) -> str:
    """A witness's line: it saw this checkpoint at ``time`` (seconds) and the log had only grown."""
    _check_text(text)
    verifier = _verifier(name, KeyType.COSIGNATURE, key)
    return _line(name, verifier.id + STAMP.pack(time) + key.sign(_cosigned(text, time)))


def verify_note(note: str, keys: Sequence[VerifierKey]) -> Signed:
    """The note's text and signers among ``keys``. Raises ProofError for none, a false one, a bad form."""
    if CONTROL.search(note) or len(note.encode()) > MOST_BYTES:
        raise _bad("it is too long or holds control characters")
    text, separator, lines = note.rpartition("\n\n")
    if not separator or not lines.endswith("\n"):
        raise _bad("there is no empty line before its signatures")
    text += "\n"
    signers: dict[str, int | None] = {}
    split = lines[:-1].split("\n")
    if len(split) > MOST_SIGNATURES:
        raise _bad(f"{len(split)} signatures")
    for line in split:
        name, data = _parsed(line)
        for key in keys:
            if (key.name, key.id) == (name, data[:4]):
                time = _verified(text, key, data[4:])
                signers.setdefault(key.encode(), time)
    if not signers:
        raise _bad("nobody known has signed it")
    return Signed(text=text, by=signers)


def lines_naming(note: str, key: VerifierKey) -> list[str]:
    """The signature lines, with their newlines, that name ``key``; whether they are valid is not said."""
    naming = []
    for line in note.rpartition("\n\n")[2].removesuffix("\n").split("\n"):
        name, data = _parsed(line)
        if (name, data[:4]) == (key.name, key.id):
            naming.append(line + "\n")
    return naming


def parse_checkpoint(text: str, *, origin: str) -> Checkpoint:
    """A checkpoint's text of this very log. Raises ProofError; extension lines are refused."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3]:
        raise _bad("a checkpoint has three lines")
    if lines[0] != origin:
        raise _bad(f"it is of {lines[0][:80]!r}, not of {origin!r}")
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
        raise _bad("its size is no number")
    try:
        root = base64_bytes(lines[2])
    except ValueError:
        root = b""
    if len(root) != 32:
        raise _bad("its root is no SHA-256")
    return Checkpoint(origin=origin, size=int(lines[1]), root=root)


def _verified(text: str, key: VerifierKey, data: bytes) -> int | None:
    time, signature, statement = None, data, text.encode()
    if key.type is KeyType.COSIGNATURE:
        if len(data) != STAMP.size + 64:
            raise _bad(f"the cosignature of {key.name} has {len(data)} bytes")
        time = STAMP.unpack_from(data)[0]
        signature, statement = data[STAMP.size :], _cosigned(text, time)
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, statement)
    except (InvalidSignature, ValueError):
        raise _bad(f"the signature of {key.name} is not valid") from None
    return time


def _cosigned(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n".encode() + text.encode()


def _parsed(line: str) -> tuple[str, bytes]:
    name, space, data = line.removeprefix(DASH).partition(" ")
    try:
        decoded = base64_bytes(data)
    except ValueError:
        decoded = b""
    if not (line.startswith(DASH) and space) or not NAME.fullmatch(name) or len(decoded) < 5:
        raise _bad(f"not a signature line: {line[:80]!r}")
    return name, decoded


def _line(name: str, data: bytes) -> str:
    return f"{DASH}{name} {base64_text(data)}\n"


def _verifier(name: str, kind: KeyType, key: Ed25519PrivateKey) -> VerifierKey:
    if not NAME.fullmatch(name):
        raise ValueError("a signer's name has no spaces and no plus")
    return VerifierKey(name=name, type=kind, public=key.public_key().public_bytes_raw())


def _check_text(text: str) -> None:
    if not text.endswith("\n") or CONTROL.search(text) or "\n\n" in text:
        raise ValueError("a note's text ends in a newline and has no empty lines or controls")


def _bad(fault: str) -> ProofError:
    return ProofError(f"the signed note is not usable: {fault}", REMEDY)
