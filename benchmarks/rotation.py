"""How flat the rotation of P-6.9 makes vectors, and what it costs, beside one padded to a power of two.

    python benchmarks/rotation.py

Of unit vectors of several kinds: the share of coordinates beyond the range of five deviations, and the energy
that a cut there loses. `padded` is what version 2 of the protocol did: zeros up to a power of two (above 2^16: a
multiple of it), one turn of blocks of 2^16. CPU milliseconds are of one vector to the words and back. (ADR 0030)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from protocol.secagg import rotation
from protocol.secagg.rotation import Rotation

SIZES = (100, 1000, 66_966, 94_614, 300_000, 1_000_000)
RANGE = 5.0
Reals = npt.NDArray[np.float64]


class Padded(Rotation):
    """Version 2: one turn, padded."""

    @property
    def transform(self) -> int:
        return min(2**16, 1 << max(self.size - 1, 0).bit_length())

    def _blocks(self, length: int) -> int:
        return -(-self.size // length)

    def forward(self, vector: Reals) -> Reals:
        turned = np.zeros(self.padded)
        turned[: self.size] = vector
        turned *= self._signs()[0]
        blocks = rotation._hadamard(turned.reshape(self.transform, -1))
        flat: Reals = blocks.T.reshape(-1) / np.sqrt(self.transform)
        return flat

    def backward(self, rotated: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        blocks = rotation._hadamard(rotated.reshape(-1, self.transform).T.copy())
        return (blocks.reshape(-1) * self._signs()[0])[: self.size]


def kinds(size: int, rng: np.random.Generator) -> dict[str, Callable[[], Reals]]:
    """Vectors of the sort that adapters' updates are, and worse."""

    def at(places: Any, values: Any) -> Reals:
        vector = np.zeros(size)
        vector[places] = values
        return vector

    def every(period: int) -> Reals:
        places = np.arange(3 % period, size, period)
        return at(places, rng.normal(size=len(places)))

    head = max(1, size // 20)
    rows = -(-size // 8)
    return {
        "normal": lambda: rng.normal(size=size),
        "one coordinate": lambda: at(int(rng.integers(size)), 1.0),
        "1 % of them": lambda: at(
            rng.choice(size, max(1, size // 100), replace=False),
            rng.normal(size=max(1, size // 100)),
        ),
        "a head of 5 %": lambda: at(slice(-head, None), rng.normal(size=head)),
        "rows of B": lambda: (
            rng.normal(size=size) * np.exp(1.5 * rng.normal(size=rows)).repeat(8)[:size]
        ),
        "a column of B (r 8)": lambda: every(8),
        "a column of A (384)": lambda: every(384),
    }


def measure(kind: type[Rotation], size: int, repeats: int) -> dict[str, Any]:
    """Over ``repeats`` seeds and every kind of vector."""
    rng, found, spent = np.random.default_rng(0), {}, 0.0
    for number in range(repeats):
        turn = kind(size=size, seed=number.to_bytes(32, "big"))
        for name, draw in kinds(size, rng).items():
            vector = draw()
            vector /= np.linalg.norm(vector)
            begun = time.process_time()
            flat = turn.forward(vector)
            turn.backward(np.rint(flat * 2**20).astype(np.int64))
            spent += time.process_time() - begun
            over = np.abs(flat) * np.sqrt(turn.padded) - RANGE
            beyond, lost = found.get(name, (0.0, 0.0))
            beyond += float((over > 0).mean()) / repeats
            lost += float((over[over > 0] ** 2).sum()) / turn.padded / repeats
            found[name] = (beyond, lost)
    return {
        "words": turn.padded,
        "cpu_ms": round(1e3 * spent / repeats / len(found), 2),
        "beyond": {name: float(f"{beyond:.1e}") for name, (beyond, _) in found.items()},
        "energy_lost": {name: float(f"{lost:.1e}") for name, (_, lost) in found.items()},
    }


def main() -> None:
    """Print one line of JSON per size and form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--coordinates", type=int, default=5_000_000, help="to rotate per size and kind"
    )
    arguments = parser.parse_args()
    for size in SIZES:
        for name, kind in (("padded", Padded), ("blocks", Rotation)):
            repeats = min(2000, max(1, arguments.coordinates // size))
            print(
                json.dumps({"size": size, "form": name} | measure(kind, size, repeats)), flush=True
            )


if __name__ == "__main__":
    main()
