"""A secret sum of thousands of clients: right to the last bit, and what it costs the coordinator and a client.

    python benchmarks/many_clients.py [--clients 1000 2000] [--coordinates 100000] [--lost 0.05] [--by signatures] [--json]

The protocol's own two sides in two processes: the coordinator here, so that its processor time and peak memory are
its own, all clients in the other, which keeps what each of them keeps between phases. A share of the clients is lost
after it has shared, another that size after it has masked. `--by log`: the alive set is agreed on as under witnesses,
without the log and its proof, so that no client checks two thirds of all signatures. The sum is compared with the one that the clients know.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.secagg import client
from protocol.secagg.client import check_alive
from protocol.secagg.coordinator import Attempt, Parameters
from protocol.secagg.messages import decode_ids
from protocol.secagg.primitives import Suite, client_id

SID, BITS, TERMS = bytes(32), 16, {"round": 1}


class Clients:
    """All clients of an attempt: keys, states, and the sum of what they masked."""

    def __init__(self, count: int, coordinates: int) -> None:
        keys = [Ed25519PrivateKey.generate() for _ in range(count)]
        self.keys = {client_id(key.public_key().public_bytes_raw()): key for key in keys}
        self.roster = {
            member: key.public_key().public_bytes_raw() for member, key in self.keys.items()
        }
        self.policy = client.Policy(roster=self.roster, minimum=3)
        self.states: dict[bytes, Any] = {}
        self.vectors: dict[bytes, bytes] = {}
        self.rng, self.coordinates = np.random.default_rng(0), coordinates

    def advertise(self, member: bytes, _: bytes) -> bytes:
        self.states[member], reply = client.advertise(
            self.keys[member], sid=SID, seq=1, random=os.urandom
        )
        return reply

    def share(self, member: bytes, message: bytes) -> bytes:
        self.states[member], reply = client.share(
            self.states[member],
            message,
            key=self.keys[member],
            policy=self.policy,
            random=os.urandom,
        )
        return reply

    def mask(self, member: bytes, message: bytes) -> bytes:
        opened = client.open_shares(self.states[member], message, TERMS, policy=self.policy)
        words = np.full(self.coordinates, int(self.rng.integers(2**BITS)), np.uint16)
        words += np.arange(self.coordinates, dtype=np.uint16)
        self.vectors[member] = words[:1].tobytes()
        key, suite = self.keys[member], Suite.AES_256_CTR
        self.states[member], reply = client.mask(opened, words, bits=BITS, suite=suite, key=key)
        return reply

    def reveal(self, member: bytes, message: bytes) -> bytes:
        state, alive = self.states.pop(member), decode_ids(message, "alive")
        check_alive(state, alive, self.policy)
        return client.reveal(client.Agreed(before=state, alive=alive))

    def agree(self, member: bytes, message: bytes) -> bytes:
        self.states[member], reply = client.agree_on_alive(
            self.states[member], message, key=self.keys[member], policy=self.policy
        )
        return reply

    def unmask(self, member: bytes, message: bytes) -> bytes:
        state = self.states.pop(member)
        return client.unmask(state, message, policy=self.policy)

    def total(self, alive: Iterable[bytes]) -> np.ndarray[Any, Any]:
        """The sum of what these clients had."""
        each = np.arange(self.coordinates, dtype=np.uint16)
        total = np.zeros(self.coordinates, np.uint16)
        for member in alive:
            total += each + np.frombuffer(self.vectors[member], np.uint16)
        return total


def serve(pipe: Connection, count: int, coordinates: int) -> None:
    """The clients' process: (phase, client, message or None for the one before) to replies."""
    clients = Clients(count, coordinates)
    pipe.send(clients.roster)
    common = b""
    while request := pipe.recv():
        phase, member, message = request
        if phase == "total":
            pipe.send(clients.total(message))
            continue
        common = common if message is None else message
        pipe.send(getattr(clients, phase)(member, common))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))


class Asked:
    """Clients behind a pipe, and how many bytes went each way per client."""

    def __init__(self, count: int, coordinates: int) -> None:
        self.pipe, other = multiprocessing.Pipe()
        arguments = (other, count, coordinates)
        multiprocessing.get_context("spawn").Process(
            target=serve, args=arguments, daemon=True
        ).start()
        self.roster: dict[bytes, bytes] = self.pipe.recv()
        self.up, self.down = dict.fromkeys(self.roster, 0), dict.fromkeys(self.roster, 0)

    def ask(self, phase: str, member: bytes, message: bytes, *, again: bool = False) -> bytes:
        self.pipe.send((phase, member, None if again else message))
        reply: bytes = self.pipe.recv()
        self.down[member] += len(message)
        self.up[member] += len(reply)
        return reply


def summed(count: int, coordinates: int, lost: float, by: str) -> dict[str, Any]:
    """One attempt; figures of it."""
    asked, start = Asked(count, coordinates), time.process_time()
    parameters = Parameters(sid=SID, seq=1, roster=asked.roster, minimum=3, bits=BITS)
    attempt, ids = Attempt(parameters), sorted(asked.roster)
    for member in ids:
        attempt.receive_advert(member, asked.ask("advertise", member, b""))
    message = attempt.close_adverts(ids)
    for number, member in enumerate(ids):
        attempt.receive_shares(member, asked.ask("share", member, message, again=number > 0))
    attempt.fix_members()
    gone = set(ids[:: round(1 / lost)]) if lost else set()
    for member, message in attempt.close_shares(TERMS, count=coordinates).items():
        if member not in gone:
            attempt.receive_masked(member, asked.ask("mask", member, message))
    message = attempt.close_masked()
    if by == "log":
        attempt.agreed_by_log()
    else:
        for number, member in enumerate(attempt.alive):
            attempt.receive_alive(member, asked.ask("agree", member, message, again=number > 0))
        message = attempt.close_alive()
    late = set(ids[1 :: round(1 / lost)]) if lost else set()
    revealing = [member for member in attempt.alive if member not in late]
    phase = "reveal" if by == "log" else "unmask"
    for number, member in enumerate(revealing):
        attempt.receive_unmask(member, asked.ask(phase, member, message, again=number > 0))
    words = attempt.unmask()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    asked.pipe.send(("total", b"", list(attempt.alive)))
    assert (words == asked.pipe.recv()).all(), "the sum is another"
    asked.pipe.send(None)
    clients_seconds, clients_peak = asked.pipe.recv()
    member = revealing[0]
    return {
        "clients": count,
        "by": by,
        "coordinates": coordinates,
        "in_sum": len(attempt.alive),
        "lost_before_masks": len(attempt.members) - len(attempt.alive),
        "lost_after_masks": len(late - gone),
        "coordinator_cpu_s": round(seconds, 2),
        "coordinator_peak_bytes": peak,
        "client_cpu_s": round(clients_seconds / count, 4),
        "clients_peak_bytes": clients_peak,
        "up_bytes": asked.up[member],
        "up_beyond_vector_bytes": asked.up[member] - 2 * coordinates,
        "down_bytes": asked.down[member],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--coordinates", type=int, default=100_000)
    parser.add_argument("--lost", type=float, default=0.05)
    parser.add_argument("--by", choices=("signatures", "log"), default="signatures")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts, rows = arguments.clients, []
    if len(counts) == 1:
        rows.append(summed(counts[0], arguments.coordinates, arguments.lost, arguments.by))
    else:  # a process each: a peak is of one attempt
        rest = (
            "--coordinates",
            arguments.coordinates,
            "--lost",
            arguments.lost,
            "--by",
            arguments.by,
            "--json",
        )
        for count in counts:
            command = [sys.executable, __file__, "--clients", count, *rest]
            output = subprocess.run(
                [str(part) for part in command], check=True, stdout=subprocess.PIPE
            ).stdout
            rows += json.loads(output)["sums"]
    print(json.dumps({"sums": rows}, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
