"""A client of the product with files of its own, for tests that send it whatever they choose."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.kept_file import FileKept
from client.kept_updates import KeptUpdates
from client.ledger import FileLedger
from client.openings import FileOpenings
from client.receipts import Receipts
from client.secret import Member
from protocol.plan import Plan
from protocol.rules import Parts

PARTS: Parts = frozenset({"A", "B"})


def member_in(
    folder: Path,
    name: str,
    key: Ed25519PrivateKey,
    *,
    roster: dict[str, bytes],
    plan: Plan,
    size: int,
    first: str,
) -> Member:
    """``first``: the digest of round 0's adapter. Every round trains the same parts."""
    store = FileKept(folder / f"{name}.kept", plan.digest, name, PARTS, size)
    return Member(
        name=name,
        key=key,
        roster=roster,
        plan=plan,
        size=size,
        random=os.urandom,
        ledger=FileLedger(folder / f"{name}.jsonl"),
        openings=FileOpenings(folder / f"{name}.openings.jsonl"),
        receipts=Receipts(folder / f"{name}.receipts.jsonl"),
        first=lambda: first,
        kept=KeptUpdates(plan, store, lambda number: PARTS),
    )
