"""What a coordinator receives tells it nothing about one update.

An adversary who holds every byte a coordinator gets, and two updates of which one was sent, has to
say which. It looks for structure in the masks that each candidate leaves over. Against our masks it
guesses; against masks of a generator that is deliberately weakened here it is always right, so the
test can fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from protocol.secagg import client, primitives
from protocol.secagg.primitives import Suite, add_mask, word_type
from tests.adversaries.linear_complexity import linear_complexity
from tests.unit.protocol.secagg.conftest import TERMS, Cohort

BITS, COUNT = 16, 1200
Generator = Callable[[bytes, Suite, int], Any]


class Xorshift:
    """A stream that is linear over GF(2) and has 64 bits of state: what masks must not be."""

    def __init__(self, key: bytes, _suite: Suite, _offset: int) -> None:
        self._state = int.from_bytes(key[:8], "little") | 1

    def update_into(self, zeros: memoryview, buffer: bytearray) -> None:
        out = bytearray()
        while len(out) < len(zeros):
            x = self._state
            x ^= (x << 13) & (2**64 - 1)
            x ^= x >> 7
            x ^= (x << 17) & (2**64 - 1)
            self._state = x
            out += (x & 0xFFFF).to_bytes(2, "little")
        buffer[: len(zeros)] = out[: len(zeros)]


def transcripts(trials: int) -> Iterator[tuple[np.ndarray[Any, Any], list[Any], int]]:
    """(masked vector, the two candidates, which was sent) of one client in whole runs."""
    rng = np.random.default_rng(int.from_bytes(os.urandom(8), "big"))
    for _ in range(trials):
        cohort = Cohort(3, count=COUNT, bits=BITS)
        messages = cohort.share(cohort.advertise())
        one = cohort.ids[0]
        candidates = [rng.integers(0, 1000, COUNT).astype(np.uint16) for _ in range(2)]
        sent = int(rng.integers(2))
        state = cohort.states[one]
        assert isinstance(state, client.Shared)
        opened = client.open_shares(state, messages[one], TERMS, policy=cohort.policy)
        _, reply = client.mask(
            opened,
            candidates[sent].copy(),
            bits=BITS,
            suite=Suite.AES_256_CTR,
            key=cohort.keys[one],
        )
        yield np.frombuffer(reply[: 2 * COUNT], np.uint16), candidates, sent


def guess(masked: np.ndarray[Any, Any], candidates: list[Any]) -> int:
    """The candidate that leaves the mask with the shorter linear recurrence in its lowest bits."""
    planes = [((masked - candidate) & 1).astype(np.uint8) for candidate in candidates]
    found = [linear_complexity(plane) for plane in planes]
    if found[0] == found[1]:
        return int.from_bytes(os.urandom(1), "big") & 1
    return int(found[1] < found[0])


def test_two_candidates_cannot_be_told_apart() -> None:
    trials = 120
    right = sum(guess(masked, both) == sent for masked, both, sent in transcripts(trials))
    assert abs(right - trials / 2) < 5 * np.sqrt(trials) / 2  # once in two million runs by chance


def test_the_same_adversary_wins_against_a_weak_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primitives, "_stream", Xorshift)
    assert all(guess(masked, both) == sent for masked, both, sent in transcripts(6))


@pytest.mark.parametrize("suite", list(Suite))
def test_no_bit_plane_of_a_mask_obeys_a_recurrence(suite: Suite) -> None:
    """A random sequence of n bits has a linear complexity within a few of n/2."""
    count = 40_000  # twice the degree of a Mersenne twister's recurrence, and more
    words = np.zeros(count, word_type(BITS))
    add_mask(words, os.urandom(32), sign=1, suite=suite)
    for plane in (0, 15):
        assert abs(linear_complexity((words >> plane) & 1) - count / 2) < 40


def test_the_same_test_finds_a_mersenne_twister() -> None:
    twister = np.random.RandomState(1).randint(0, 2**32, 40_000, dtype=np.uint32)
    assert linear_complexity(twister & 1) <= 19_937


def test_mask_words_are_uniform_and_reach_both_ends() -> None:
    words = np.zeros(2_000_000, np.uint16)
    add_mask(words, os.urandom(32), sign=1, suite=Suite.AES_256_CTR)
    counts = np.bincount(words, minlength=2**BITS)
    expected = len(words) / 2**BITS
    chi = float(((counts - expected) ** 2 / expected).sum())
    freedom = 2**BITS - 1
    assert abs(chi - freedom) < 6 * np.sqrt(2 * freedom)
    assert counts[0] > 0
    assert counts[-1] > 0


def test_every_bit_of_a_key_counts() -> None:
    """No folding of the seed: 2^256 keys, 2^256 masks, and words in another order are another key."""
    key = bytes(range(32))
    streams = set()
    for changed in [key, key[4:] + key[:4], *(_flipped(key, bit) for bit in range(256))]:
        words = np.zeros(16, np.uint16)
        add_mask(words, changed, sign=1, suite=Suite.AES_256_CTR)
        streams.add(words.tobytes())
    assert len(streams) == 258


def test_a_clients_messages_have_exactly_the_bytes_of_the_protocol() -> None:
    """No per-client number travels beside the masked vector."""
    cohort = Cohort(5, count=COUNT, bits=BITS)
    seen: dict[str, set[int]] = {}
    for name in ("advert", "shares", "masked", "alive", "unmask"):
        receive = getattr(cohort.attempt, f"receive_{name}")

        def record(one: bytes, message: bytes, receive: Any = receive, name: str = name) -> None:
            seen.setdefault(name, set()).add(len(message))
            receive(one, message)

        setattr(cohort.attempt, f"receive_{name}", record)
    cohort.run()
    assert seen == {
        "advert": {216},
        "shares": {4 * 92 + 64},
        "masked": {COUNT * BITS // 8 + 32 + 4 + 64},
        "alive": {64},
        "unmask": {4 * 33},
    }


def _flipped(key: bytes, bit: int) -> bytes:
    changed = bytearray(key)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)
