"""A low-rank adapter as llama.cpp loads it beside the GGUF file of its base.

llama.cpp adds ``alpha / r * B A x`` to a linear, r being that linear's own rank. Where it keeps rows of
queries and keys in ggml's rotary order, B's rows go there with them; A's columns are inputs, which nothing
reorders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base_model.decoder.source import Floats
from base_model.gguf.architecture import ARCHITECTURES, Place
from base_model.gguf.writing import container_bytes
from protocol.errors import ArtefactError
from storage.whole import write_whole

MODULE = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)")
TURNED = ("attn_q", "attn_k")
OTHER = "export an adapter of the linears of a decoder's layers, such as LoRA's"


@dataclass(frozen=True, eq=False, kw_only=True)
class Factors:
    """Of a linear's low-rank branch, float32: ``down`` (r, in), which is A, and ``up`` (out, r), B."""

    down: Floats
    up: Floats


def write_gguf_lora(
    path: Path,
    factors: Mapping[str, Factors],
    *,
    architecture: str,
    alpha: float,
    heads: int,
    kv_heads: int,
) -> None:
    """Write a file for llama.cpp; it appears whole or not at all.

    Args:
        path: of the new file; one that is there is replaced.
        factors: by the linears' paths (``model.layers.0.self_attn.q_proj``).
        architecture: the base's ``general.architecture``; Hugging Face's model type is the same word.
        alpha: factors' products are multiplied by alpha / r.
        heads: of the base's queries; ``kv_heads``: of its keys.

    Raises ArtefactError for what llama.cpp would refuse, or compute otherwise; OSError of the file.
    """
    data = gguf_lora(
        factors, architecture=architecture, alpha=alpha, heads=heads, kv_heads=kv_heads
    )
    write_whole(path, data)


def gguf_lora(
    factors: Mapping[str, Factors],
    *,
    architecture: str,
    alpha: float,
    heads: int,
    kv_heads: int,
) -> bytes:
    """The bytes of :func:`write_gguf_lora`, the same for the same numbers. Raises ArtefactError."""
    if architecture not in ARCHITECTURES:
        raise ArtefactError(
            f"llama.cpp's adapters of {architecture[:60]} cannot be written",
            f"these can: {', '.join(ARCHITECTURES)}",
        )
    if not (math.isfinite(alpha) and alpha > 0):  # llama.cpp takes 0 for alpha = r
        raise ArtefactError(f"alpha is {alpha}, not above 0", "take the adapter's own alpha")
    if not factors:
        raise ArtefactError("the adapter is empty, so that it adapts nothing", OTHER)
    names = {
        theirs.removesuffix(".weight"): part.removesuffix(".weight")
        for part, theirs in ARCHITECTURES[architecture].parts.items()
        if theirs.endswith("_proj.weight")
    }
    turned = dict(zip(TURNED, (heads, kv_heads), strict=True))
    tensors: dict[str, Floats] = {}
    for module, pair in sorted(factors.items(), key=_in_order):
        layer, part = _place(module, names)
        _verify(module, pair)
        up = pair.up
        if ARCHITECTURES[architecture].permuted and part in turned:
            up = up[_ggml_order(module, len(up), turned[part])]
        tensors[f"blk.{layer}.{part}.weight.lora_a"] = pair.down
        tensors[f"blk.{layer}.{part}.weight.lora_b"] = up
    keys: dict[str, str | float] = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    return container_bytes(keys, tensors)


def _in_order(item: tuple[str, Factors]) -> tuple[int, str]:
    match = MODULE.fullmatch(item[0])
    return (int(match[1]) if match else -1), item[0]


def _place(module: str, names: Mapping[str, str]) -> tuple[str, str]:
    """(layer, llama.cpp's name of the linear). Raises ArtefactError."""
    match = MODULE.fullmatch(module)
    if match is None or match[2] not in names:
        raise ArtefactError(f"{module[:100]} is no linear that llama.cpp adapts", OTHER)
    return match[1], names[match[2]]


def _verify(module: str, pair: Factors) -> None:
    down, up = pair.down, pair.up
    if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not down.size or not up.size:
        raise ArtefactError(
            f"{module}: factors of shapes {down.shape} and {up.shape} are not (r, in) and (out, r)",
            OTHER,
        )
    if any(factor.dtype != np.float32 for factor in (down, up)):
        raise ArtefactError(f"{module}: its factors are not float32", OTHER)
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ArtefactError(f"{module}: its factors hold NaN or infinity", "train it again")


def _ggml_order(module: str, rows: int, heads: int) -> list[int]:
    """Which row of Hugging Face's becomes row 0, 1, ... of the file's. Raises ArtefactError."""
    if heads < 1 or rows % (2 * heads):
        raise ArtefactError(
            f"{module}: {rows} rows are not those of {heads} heads", "name the base's own heads"
        )
    order = Place(name=module, shape=(rows,), heads=heads).rows()
    assert order is not None
    return [int(row) for row in np.argsort(order)]
