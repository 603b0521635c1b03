"""Files of a run that reports are written from, with a name in them that must never be markup."""

from __future__ import annotations

from typing import Any

EVIL = "<script>alert('x')</script>"


def record(number: int, dropped: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "round": number,
        "attempt": 1,
        "parts": ["head", "lora_B"],
        "expected": ["a", "b", "c"],
        "used": ["a", "b"],
        "dropped": dropped,
        "quorum": 2,
        "exchange": "plain",
        "secure": False,
        "weight": 5,
        "metrics": {"train_seconds": 1.5},
        "update_norm": 0.25,
        "bytes_down_per_client": 4000,
        "bytes_up_per_client": 2000,
        "seconds": 2.0,
        "plan_digest": "d" * 64,
        "base_fingerprint": "f" * 64,
        "adapter_in": "1" * 64,
        "adapter_out": "2" * 64,
    }
