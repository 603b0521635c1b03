"""One small run, made for real, of whose documents the decoders' seeds are."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust, read_log
from audit.sources import Folder
from protocol.plan import plan_from_text
from protocol.transparency.note import (
    parse_key,
)
from tests.unit.audit.runs import make_run

SID = bytes(32)


REAL = (1.0).hex()


ENTRY = {
    "plan": "0" * 64,
    "run": "",
    "sequence": 1,
    "round": 1,
    "attempt": 1,
    "participants": ["a"],
    "mechanism": "distributed",
    "clip": REAL,
    "noise_multiplier": REAL,
    "honest": 3,
    "grid": REAL,
    "noise": REAL,
    "size": 5,
    "rho": REAL,
    "xi": REAL,
}


class World:
    """One small run, its keys, and documents about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = Ed25519PrivateKey.generate()
        self.public = self.key.public_key().public_bytes_raw()
        self.run = make_run(folder / "run", privacy={"rounds_per_client": 3})
        self.log_key = parse_key((self.run / "log/key").read_text().strip())
        self.note = (self.run / "log/checkpoint").read_text()
        self.plan = plan_from_text((self.run / "plan.json").read_text(), source="plan.json")
        self.entries = read_log(Folder(self.run), Trust()).entries

    def bytes(self, name: str) -> bytes:
        return (self.run / name).read_bytes()
