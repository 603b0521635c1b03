"""Witnesses in this process: what the project's own decide and sign, asked without a network."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.witness import (
    Cosigned,
    Witnessed,
    consider,
    parse_add_checkpoint,
    witness_key,
)
from server.witnessing import Answer

LOG = "log.example/run"


def named_key(name: str) -> Ed25519PrivateKey:
    """The same of a name each time."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def log_verifier() -> VerifierKey:
    public = named_key(LOG).public_key().public_bytes_raw()
    return VerifierKey(name=LOG, type=KeyType.ED25519, public=public)


def witnessed_by(*names: str) -> dict[str, Any]:
    """The `audit` table of a plan whose alive sets all of these have to confirm."""
    return {
        "log": log_verifier().encode(),
        "witnesses": [witness_key(name, named_key(name)).encode() for name in names],
        "witness_quorum": len(names),
    }


class NearWitness:
    """Cosigns the test log as it grows; ``up`` is whether it answers."""

    def __init__(self, name: str) -> None:
        self.name, self.up = name, True
        self._latest = Witnessed()

    def post(self, body: bytes) -> Answer:
        if not self.up:
            raise ConnectionRefusedError
        decided = consider(
            parse_add_checkpoint(body),
            self._latest,
            [log_verifier()],
            self.name,
            named_key(self.name),
            time=1_800_000_000,
        )
        if not isinstance(decided, Cosigned):
            size = f"{decided.size}\n" if decided.size is not None else decided.why
            return Answer(status=decided.status, body=size)
        self._latest = decided.latest
        return Answer(status=200, body=decided.line)


def witnessing(*names: str) -> dict[str, Any]:
    """What :func:`tests.unit.audit.runs.make_run` takes for a run under these witnesses."""
    return {
        "audit": witnessed_by(*names),
        "log_key": named_key(LOG),
        "witnesses": [NearWitness(name) for name in names],
    }
