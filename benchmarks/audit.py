"""What an audit of a secret sum costs: everything again, and a few blocks of it.

    python benchmarks/audit.py [--clients N] [--coordinates N] [--lost N,N] [--repeats N] [--json]

A cohort runs the protocol in one process; its masked vectors and the hashes of their pieces lie in a
temporary folder. Timed is what an auditor does with the transcript and these files: every signature,
root, commitment and mask, and the sum; or, as a spot check, the same of three blocks at random.
Target: 100 clients with a million coordinates of 16 bits in 1.5 s on two cores. Reported are medians;
files come from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.merkle import leaf_hash
from protocol.secagg import client, primitives
from protocol.secagg.coordinator import Attempt, Parameters
from protocol.secagg.packing import block_count, packed_size
from protocol.secagg.primitives import Suite, Word, client_id, word_type
from protocol.secagg.transcript import Transcript
from protocol.secagg.verification import verify_transcript, verify_transcript_part

SID, SEQ, SPOT = bytes(range(32)), 1, 3


class Published:
    """One sum of ``clients``, the last ``lost`` of which never send a vector; files in ``folder``."""

    def __init__(self, folder: Path, *, clients: int, lost: int, count: int, bits: int) -> None:
        self.folder, self.minimum = folder, clients // 2
        secrets = [Ed25519PrivateKey.generate() for _ in range(clients)]
        self._keys = dict(
            sorted((client_id(k.public_key().public_bytes_raw()), k) for k in secrets)
        )
        self.roster = {i: k.public_key().public_bytes_raw() for i, k in self._keys.items()}
        self._ids, self._bits, self._count = list(self._keys), bits, count
        self._policy = client.Policy(roster=self.roster, minimum=self.minimum)
        parameters = Parameters(
            sid=SID, seq=SEQ, roster=self.roster, minimum=self.minimum, bits=bits
        )
        self._attempt = Attempt(parameters)
        self.words = self._run(self._ids[: clients - lost])
        self.transcript: Transcript = self._attempt.transcript()

    def _run(self, alive: list[bytes]) -> Word:
        attempt, states = self._attempt, {}
        for member in self._ids:
            states[member], advert = client.advertise(
                self._keys[member], sid=SID, seq=SEQ, random=os.urandom
            )
            attempt.receive_advert(member, advert)
        cohort = attempt.close_adverts(self._ids)
        shared = {}
        for member, state in states.items():
            shared[member], shares = client.share(
                state, cohort, key=self._keys[member], policy=self._policy, random=os.urandom
            )
            attempt.receive_shares(member, shares)
        attempt.fix_members()
        rounds = attempt.close_shares({"round": 1}, count=self._count)
        masked = {
            member: self._mask(shared.pop(member), rounds[member], member) for member in alive
        }
        message = attempt.close_masked()
        agreed = {}
        for member, state in masked.items():
            agreed[member], signed = client.agree_on_alive(
                state, message, key=self._keys[member], policy=self._policy
            )
            attempt.receive_alive(member, signed)
        signatures = attempt.close_alive()
        for member, state in agreed.items():
            attempt.receive_unmask(member, client.unmask(state, signatures, policy=self._policy))
        return attempt.unmask()

    def _mask(self, state: Any, message: bytes, member: bytes) -> Any:
        words = np.full(self._count, 7, word_type(self._bits))
        opened = client.open_shares(state, message, {"round": 1}, policy=self._policy)
        masked, reply = client.mask(
            opened, words, bits=self._bits, suite=Suite.AES_256_CTR, key=self._keys[member]
        )
        self._attempt.receive_masked(member, reply)
        packed = reply[: packed_size(self._count, self._bits)]
        (self.folder / member.hex()).write_bytes(packed)
        pieces = (packed[at : at + client.CHUNK] for at in range(0, len(packed), client.CHUNK))
        (self.folder / f"{member.hex()}.chunks").write_bytes(b"".join(map(leaf_hash, pieces)))
        return masked

    def vector(self, member: bytes) -> bytes:
        return (self.folder / member.hex()).read_bytes()

    def hashes(self, member: bytes) -> list[bytes]:
        data = (self.folder / f"{member.hex()}.chunks").read_bytes()
        return [data[at : at + 32] for at in range(0, len(data), 32)]

    def piece(self, member: bytes, number: int) -> bytes:
        with (self.folder / member.hex()).open("rb") as file:
            file.seek(number * client.CHUNK)
            return file.read(client.CHUNK)

    def whole(self, workers: int) -> None:
        verify_transcript(
            self.transcript, self.roster, self.vector, minimum=self.minimum, workers=workers
        )

    def spot(self) -> None:
        rng = np.random.default_rng()
        blocks = rng.choice(block_count(self._count), SPOT, replace=False).tolist()
        verify_transcript_part(
            self.transcript,
            self.roster,
            self.words,
            self.hashes,
            self.piece,
            blocks=blocks,
            minimum=self.minimum,
        )


def median(run: Callable[[], None], repeats: int) -> float:
    """Seconds; an auditor has not seen the signatures before."""
    times = []
    for _ in range(repeats):
        primitives._checked.clear()
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measured(arguments: argparse.Namespace, lost: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        published = Published(
            Path(folder),
            clients=arguments.clients,
            lost=lost,
            count=arguments.coordinates,
            bits=arguments.bits,
        )
        alive = arguments.clients - lost
        row: dict[str, Any] = {
            "clients": arguments.clients,
            "lost": lost,
            "masks": alive + alive * lost,
            "vector_bytes": alive * packed_size(arguments.coordinates, arguments.bits),
        }
        for workers in (1, 2):
            row[f"whole_{workers}"] = median(
                lambda w=workers: published.whole(w), arguments.repeats
            )  # type: ignore[misc]
        row["spot"] = median(published.spot, arguments.repeats)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--lost", default="0,10")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measured(arguments, int(lost)) for lost in arguments.lost.split(",")]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{arguments.coordinates:,} coordinates of {arguments.bits} bits; seconds")
    print(
        f"clients  lost  masks  vectors  1 thread  2 threads  {SPOT} blocks of {block_count(arguments.coordinates)}"
    )
    for row in rows:
        print(
            f"{row['clients']:7}  {row['lost']:4}  {row['masks']:5}  {row['vector_bytes'] / 1e6:4.0f} MB"
            f"  {row['whole_1']:8.2f}  {row['whole_2']:9.2f}  {row['spot']:.2f}"
        )


if __name__ == "__main__":
    main()
