"""P-1.18: what a base that draws says of its noise."""

from __future__ import annotations

from math import cos, pi
from typing import Any


def left_at_last(schedule: dict[str, Any]) -> float:
    """P-1.18: a(T - 1)."""
    steps, kind, start, end = (schedule[key] for key in ("steps", "betas", "start", "end"))
    left = 1.0
    for t in range(steps):
        if kind == "squaredcos_cap_v2":
            ends = [cos(((t + i) / steps + 0.008) / 1.008 * pi / 2) ** 2 for i in (0, 1)]
            beta = min(0.999, 1 - ends[1] / ends[0])
        else:
            power = {"linear": 1, "scaled_linear": 2}[kind]
            first, last = start ** (1 / power), end ** (1 / power)
            beta = (first + (last - first) * t / (steps - 1)) ** power
        left *= 1 - beta
    return left
