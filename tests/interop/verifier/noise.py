"""P-7.2 to P-7.5: the numbers of the noise, what is spent, and the ledger's entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import numpy as np

from .basics import Vector, Words, largest_sum, real
from .documents import Documents
from .ring import blocks, padded, turned_back

ORDERS = [1.25, 1.5, 1.75, *range(2, 129), 160, 192, 256, 512]
PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923078164")


class Noise:
    """Of rounds with ``size`` coordinates; ``honest`` and ``summands`` are n_h and n."""

    def __init__(self, *, size: int, clip: float, z: float, honest: int, summands: int) -> None:
        self.size, self.clip, self.z = size, clip, z
        self.honest, self.summands = honest, summands
        self.length = padded(size)
        low, high = 0.0, self.clip
        for _ in range(80):
            middle = (low + high) / 2
            if middle * self._bound(middle) <= 1.01 * self.clip:
                low = middle
            else:
                high = middle
        self.grid = math.floor(low * 2**40) / 2**40
        self.s = (self.z * self.clip) / math.sqrt(self.honest)
        ratio = Decimal(self.s / self.grid)
        with localcontext() as context:
            context.prec = 60
            self.sigma = ratio.quantize(Decimal("1e-12"), rounding=ROUND_HALF_EVEN)
        most = self.clip * self.summands
        spread = (most * most) / self.length
        spread += (((self.grid * self.grid) / 4) + self.s * self.s) * self.summands
        needed = (8 * math.sqrt(spread)) / self.grid
        self.bits = next(b for b in (16, 20, 24, 32) if needed <= 2**b)

    @classmethod
    def planned(cls, documents: Documents, number: int) -> Noise:
        """That of a round."""
        privacy = documents.plan["privacy"]
        return cls(
            size=documents.size(number),
            clip=privacy["clip"],
            z=privacy["noise_multiplier"],
            honest=documents.least - privacy["corrupt"],
            summands=largest_sum(documents.plan),
        )

    def _bound(self, grid: float) -> float:
        """B of P-7.2."""
        r, w = self.clip / grid, math.sqrt(self.length)
        return min(r + w, math.sqrt((r * r + self.length / 4) + (r + w / 2)))

    def mean(self, words: Words, n: int, rotation: bytes) -> Vector:
        half = 2 ** (self.bits - 1)
        values = words.astype(np.int64)
        values = np.where(values >= half, values - 2**self.bits, values)
        flat = turned_back(values, self.size, rotation)
        scale = self.grid / (blocks(self.size)[0] * n)
        mean: Vector = (flat.astype(np.float64) * scale).astype(np.float32)
        return mean

    def terms(self) -> dict[str, Any]:
        """Those that P-7.4 adds."""
        return {
            "honest": self.honest,
            "noise_multiplier": self.z,
            "grid": self.grid,
            "sigma": str(self.sigma),
            "summands": self.summands,
        }

    def spent(self) -> tuple[float, float]:
        """(rho, xi) of P-7.3."""
        s = self.grid * self._bound(self.grid)
        n = float(self.sigma) * self.grid
        rho = (s * s) / ((2 * self.honest) * (n * n))
        with localcontext() as context:
            context.prec = 60
            xi = Decimal(0)
            for k in range(1, self.honest):
                xi += (-2 * PI * PI * self.sigma * self.sigma * k / (k + 1)).exp()
            return rho, float(10 * xi * self.length)


def check_entry(documents: Documents, entry: dict[str, Any], participants: Sequence[str]) -> None:
    """An entry of P-7.5 has the plan's numbers, and is of these clients."""
    noise = Noise.planned(documents, entry["round"])
    rho, xi = noise.spent()
    assert entry == {
        "format": 1,
        "plan": documents.digest,
        "run": documents.sid.hex(),
        "sequence": entry["sequence"],
        "group": entry["group"],
        "round": entry["round"],
        "attempt": entry["attempt"],
        "participants": sorted(participants),
        "mechanism": "distributed",
        "clip": real(noise.clip),
        "noise_multiplier": real(noise.z),
        "honest": noise.honest,
        "grid": real(noise.grid),
        "noise": real(noise.s),
        "size": noise.size,
        "rho": real(rho),
        "xi": real(xi),
    }


def epsilon(entries: Sequence[dict[str, Any]], delta: float, before: dict[str, Any]) -> float:
    """What dp-accounting says of these entries, and what was spent before."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    rho, xi = (
        before[name] + sum(float.fromhex(entry[name]) for entry in entries)
        for name in ("rho", "xi")
    )
    accountant = RdpAccountant(orders=ORDERS)
    accountant.compose(dp_event.ZCDpEvent(rho=rho, xi=xi))
    return float(accountant.get_epsilon(delta))


def check_budget(documents: Documents, entries: Sequence[dict[str, Any]]) -> None:
    """Nobody took part more often, or spent more, than the plan allows."""
    privacy, start = documents.plan["privacy"], documents.plan.get("start")
    before = start["spent"] if start else {"mechanism": privacy["mechanism"], "rho": 0.0, "xi": 0.0}
    assert before["mechanism"] == privacy["mechanism"]
    for name in sorted({name for entry in entries for name in entry["participants"]}):
        own = [entry for entry in entries if name in entry["participants"]]
        assert not privacy["rounds_per_client"] or len(own) <= privacy["rounds_per_client"]
        assert epsilon(own, privacy["delta"], before) <= privacy["epsilon"]
