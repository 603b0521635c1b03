"""Sums of words and what they stand for: P-6.9, P-6.17, and P-7.2 under noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocol.privacy.distributed import Mechanism
from protocol.secagg.primitives import Word, word_type
from protocol.secagg.ring import Ring
from tests.vectors.secagg import stream

SEED = bytes(range(100, 132))
COUNTERS = [(2**40 - 1) // 3, 7]


def ring() -> dict[str, Any]:
    """One block, several of them, a wide ring; noise; and sums that honest clients cannot have made."""
    exact = [_exact(5, 16, 3), _exact(300, 16, 2), _exact(300, 32, 3)]
    return {"exact": exact, "noisy": [_noisy(70), _noisy(300)], "refused": _refused()}


def _sum(words: list[Word], bits: int) -> Word:
    total = np.zeros(len(words[0]), np.uint64)
    for each in words:
        total += each
    return (total & np.uint64(2**bits - 1)).astype(word_type(bits))


def _updates(size: int, count: int) -> list[Any]:
    rng = np.random.default_rng(size)
    return [rng.normal(0, 0.2, size).astype(np.float32) for _ in range(count)]


def _ring(size: int, bits: int) -> Ring:
    return Ring(size=size, clip=1.5, clients=3, bits=bits, rotation=SEED, counters=2)


def _exact(size: int, bits: int, summands: int) -> dict[str, Any]:
    made, rng = _ring(size, bits), np.random.default_rng(1)
    words = _sum([made.encode(v, COUNTERS, rng) for v in _updates(size, summands)], bits)
    mean, sums = made.decode(words, summands)
    return {
        "size": size,
        "bits": bits,
        "clip": made.clip.hex(),
        "clients": made.clients,
        "summands": summands,
        "rotation": SEED.hex(),
        "words": _hexed(words),
        "mean": _hexed(mean),
        "counters": sums,
    }


def _mechanism(size: int) -> Mechanism:
    return Mechanism(size=size, clip=1.5, multiplier=0.5, honest=3, summands=4, rotation=SEED)


def _noisy(size: int) -> dict[str, Any]:
    made, rng, random = _mechanism(size), np.random.default_rng(2), stream(f"noise {size}")
    words = _sum([made.encode(v, rng, random) for v in _updates(size, 4)], made.bits)
    return {
        "size": size,
        "bits": made.bits,
        "grid": made.grid.hex(),
        "summands": 4,
        "rotation": SEED.hex(),
        "words": _hexed(words),
        "mean": _hexed(made.decode(words, 4)),
    }


def _refused() -> list[dict[str, Any]]:
    """(P-6.17) Of two clients each, in the rings of the cases above with these sizes."""
    made, rng = _ring(300, 16), np.random.default_rng(1)
    good = _sum([made.encode(v, COUNTERS, rng) for v in _updates(300, 2)], 16)
    long = _mechanism(300)
    far = np.full(long.turn.padded, 2 ** (long.bits - 1), word_type(long.bits))

    def changed(at: int, value: int) -> Word:
        words = good.copy()
        words[at] = value
        return words

    flat = good.copy()
    flat[: made.padded] = np.where(np.arange(made.padded) % 2, 2 * made.levels, 0)
    cases = [
        ("a word above n q", "exact", changed(0, 2 * made.levels + 1), "above what 2 honest"),
        (
            "a digit too large",
            "exact",
            changed(made.padded, 2 * 2**made.digit_bits - 1),
            "above what 2 honest",
        ),
        ("a mean above the clip", "exact", flat, "the mean update has norm"),
        ("a noisy mean above its bound", "noisy", far, "the noisy mean has norm"),
    ]
    return [
        {
            "why": why,
            "form": form,
            "size": 300,
            "summands": 2,
            "words": _hexed(words),
            "error": text,
        }
        for why, form, words, text in cases
    ]


def refuse(case: dict[str, Any]) -> None:
    """Check the sum of a case under `refused`. Raises UpdateError."""
    exact = case["form"] == "exact"
    encoding = _ring(300, 16) if exact else _mechanism(300)
    kind = word_type(16 if exact else encoding.bits)  # type: ignore[union-attr]
    words = np.frombuffer(bytes.fromhex(case["words"]), kind.newbyteorder("<")).astype(kind)
    encoding.verify_sum(words, case["summands"])


def _hexed(array: Any) -> str:
    """Little-endian bytes."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes().hex()
