"""A cohort that runs the protocol in one process, with losses at every phase."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.secagg import client
from protocol.secagg.agreement import Keys
from protocol.secagg.coordinator import Attempt, Parameters
from protocol.secagg.packing import packed_size
from protocol.secagg.primitives import Suite, client_id, word_type

TERMS = {"round": 1}


@dataclass
class Cohort:
    """``lost`` maps a phase's name to the clients (by number) that leave before it."""

    size: int
    count: int = 50
    bits: int = 16
    minimum: int = 2
    suite: Suite = Suite.AES_256_CTR
    keys_form: Keys = Keys.X25519
    lost: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        made = [Ed25519PrivateKey.generate() for _ in range(self.size)]
        named = {client_id(key.public_key().public_bytes_raw()): key for key in made}
        self.keys = dict(sorted(named.items()))
        self.ids = list(self.keys)
        self.roster = {i: key.public_key().public_bytes_raw() for i, key in self.keys.items()}
        self.policy = client.Policy(roster=self.roster, minimum=self.minimum)
        self.attempt = Attempt(
            Parameters(
                sid=bytes(range(32)),
                seq=1,
                roster=self.roster,
                minimum=self.minimum,
                bits=self.bits,
                suite=self.suite,
                keys=self.keys_form,
            )
        )
        self.states: dict[bytes, client.State] = {}
        self.drawn: dict[bytes, client.Advertised] = {}
        self.total = np.zeros(self.count, np.uint64)

    def here(self, phase: str, among: object = None) -> list[bytes]:
        """Members of ``among`` that have not left by ``phase``."""
        order = ("advertise", "share", "mask", "alive", "unmask")
        gone = {
            self.ids[number]
            for earlier in order[: order.index(phase) + 1]
            for number in self.lost.get(earlier, ())
        }
        return [i for i in (self.ids if among is None else among) if i not in gone]  # type: ignore[attr-defined]

    @property
    def packed_bytes(self) -> int:
        """Of a masked vector."""
        return packed_size(self.count, self.bits)

    def secrets(self) -> list[client.Advertised]:
        """What every client drew."""
        return list(self.drawn.values())

    def advertise(self) -> bytes:
        for i in self.here("advertise"):
            state, message = client.advertise(
                self.keys[i],
                sid=bytes(range(32)),
                seq=1,
                random=os.urandom,
                keys=self.keys_form,
            )
            self.states[i] = self.drawn[i] = state
            self.attempt.receive_advert(i, message)
        return self.attempt.close_adverts(self.ids)

    def share(self, message: bytes) -> dict[bytes, bytes]:
        for i in self.here("share"):
            state = self.states[i]
            assert isinstance(state, client.Advertised)
            self.states[i], reply = client.share(
                state, message, key=self.keys[i], policy=self.policy, random=os.urandom
            )
            self.attempt.receive_shares(i, reply)
        self.attempt.fix_members()
        return self.attempt.close_shares(TERMS, count=self.count)

    def mask(self, messages: dict[bytes, bytes]) -> bytes:
        rng = np.random.default_rng(0)
        for i in self.here("mask", messages):
            state = self.states[i]
            assert isinstance(state, client.Shared)
            opened = client.open_shares(state, messages[i], TERMS, policy=self.policy)
            words = rng.integers(0, 2**self.bits, self.count, np.uint64)
            self.total += words
            self.states[i], reply = client.mask(
                opened,
                words.astype(word_type(self.bits)),
                bits=self.bits,
                suite=self.suite,
                key=self.keys[i],
            )
            self.attempt.receive_masked(i, reply)
        return self.attempt.close_masked()

    def agree(self, message: bytes) -> bytes:
        for i in self.here("alive", self.attempt.alive):
            state = self.states[i]
            assert isinstance(state, client.Masked)
            self.states[i], reply = client.agree_on_alive(
                state, message, key=self.keys[i], policy=self.policy
            )
            self.attempt.receive_alive(i, reply)
        return self.attempt.close_alive()

    def unmask(self, message: bytes) -> np.ndarray:  # type: ignore[type-arg]
        for i in self.here("unmask", self.attempt.alive):
            state = self.states[i]
            assert isinstance(state, client.Agreed)
            self.attempt.receive_unmask(i, client.unmask(state, message, policy=self.policy))
        return self.attempt.unmask()

    def run(self) -> np.ndarray:  # type: ignore[type-arg]
        """All phases; the sum."""
        return self.unmask(self.agree(self.mask(self.share(self.advertise()))))


@pytest.fixture(scope="session")
def cohort() -> Callable[..., Cohort]:
    """Makes a cohort of its arguments."""
    return Cohort
