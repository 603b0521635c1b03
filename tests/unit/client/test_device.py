"""Precision follows the hardware unless the plan says otherwise."""

from __future__ import annotations

import pytest
import torch

from client.engine.device import choose_device, matmul_dtype

CPU = torch.device("cpu")


def test_the_plan_may_fix_the_precision() -> None:
    assert matmul_dtype("fp32", CPU) is None
    assert matmul_dtype("bf16", CPU) is torch.bfloat16


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, None), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_asks_for_the_instructions_not_for_emulation(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert matmul_dtype("auto", CPU) is expected


def test_the_device_is_one_that_works() -> None:
    assert torch.ones(1, device=choose_device()).item() == 1
