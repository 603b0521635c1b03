"""A proof that a leaf is in a log, in one text that needs nothing else: C2SP tlog-proof. (P-8.13)"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol.encoding import base64_bytes, base64_text
from protocol.errors import ProofError
from protocol.merkle import leaf_hash
from protocol.transparency.policy import Policy
from protocol.transparency.proofs import verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
MOST_BYTES, MOST_NODES = 200_000, 63
REMEDY = "get the proof again from who runs the log"


@dataclass(frozen=True, kw_only=True)
class OfflineProof:
    """``checkpoint`` is a signed note; ``extra`` here is the leaf itself: it is checked by its hash."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def encode(self) -> str:
        """The text."""
        extra = [] if self.extra is None else [f"extra {base64_text(self.extra)}"]
        lines = [HEADER, *extra, f"index {self.index}", *map(base64_text, self.path), ""]
        return "\n".join(lines) + "\n" + self.checkpoint

    def verify(self, leaf: bytes, policy: Policy) -> None:
        """``leaf`` is in the log that ``policy`` trusts. Raises ProofError."""
        found = policy.verify_checkpoint(self.checkpoint)
        verify_inclusion(leaf_hash(leaf), self.index, found.size, self.path, found.root)


def parse_offline_proof(text: str) -> OfflineProof:
    """Read the text. Raises ProofError."""
    head, empty, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    if len(text) > MOST_BYTES or lines[0] != HEADER or not empty:
        raise _bad("its first line or the empty line before the checkpoint is missing")
    extra = None
    if len(lines) > 1 and lines[1].startswith("extra "):
        extra = _bytes(lines.pop(1).removeprefix("extra "))
    if len(lines) < 2 or not re.fullmatch(r"index (0|[1-9][0-9]{0,17})", lines[1]):
        raise _bad("its index is missing")
    path = tuple(_bytes(line) for line in lines[2:])
    if len(path) > MOST_NODES or any(len(node) != 32 for node in path):
        raise _bad("its path does not consist of SHA-256 hashes")
    index = int(lines[1].removeprefix("index "))
    return OfflineProof(index=index, path=path, checkpoint=checkpoint, extra=extra)


def _bytes(text: str) -> bytes:
    try:
        return base64_bytes(text)
    except ValueError as error:
        raise _bad(f"a line {error}") from None


def _bad(fault: str) -> ProofError:
    return ProofError(f"not a proof of inclusion: {fault}", REMEDY)
