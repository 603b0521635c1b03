"""Which device trains, and in which type matrices are multiplied: found out, not configured."""

from __future__ import annotations

from typing import Literal

import torch


def choose_device() -> torch.device:
    """CUDA when there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matmul_dtype(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> torch.dtype | None:
    """The type of the frozen base's matrix products; None keeps float32.

    ``auto`` takes bf16 where the hardware multiplies it. mkldnn reports bf16 support on CPUs that
    only emulate it, about three times slower than float32, so the instruction sets decide.
    """
    if precision == "bf16" or (precision == "auto" and _multiplies_bf16(device)):
        return torch.bfloat16
    return None


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
