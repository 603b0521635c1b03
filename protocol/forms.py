"""Forms: how an adapter may act on the answering graph, whatever method it is of. (P-1.11)

Each is an optional input of the graph, a *slot*, named by a module path and one of these ends. A linear with
all of them computes ``scale * (x W^T + bias + shift) + (x down) up``, one that narrows scales ``x``
instead, a norm ``scale * (norm(x) + shift)``; unfilled ones change nothing. A bottleneck adds
``relu(y down + bias) up`` to what a linear gives, or to what a feed-forward gives, y being its input
(``protocol.bottlenecks``). The soft prompt and the head have
slots of their own name, and so has a prefix, which is no input of a graph that answers: it is what a
decoder's cache holds at first. (P-1.13)
"""

from __future__ import annotations

from typing import Any

import numpy as np

SCALE, SHIFT = ".scale", ".shift"
DOWN, UP = ".lora_A", ".lora_B"  # (in, r), (r, out)
BOTTLENECK_DOWN, BOTTLENECK_BIAS = ".bottleneck_down", ".bottleneck_bias"  # (hidden, w), (w,)
BOTTLENECK_UP = ".bottleneck_up"  # (w, hidden)
BOTTLENECK = (BOTTLENECK_DOWN, BOTTLENECK_BIAS, BOTTLENECK_UP)
SOFT_PROMPT = "soft_prompt"
# (tokens, layers * 2 * kv_heads * head_size): of every layer keys, then values, head by head
PREFIX = "prefix"
HEAD = "classifier"  # path of a base's head


def ordered_product(left: Any, right: Any) -> Any:
    """``left @ right`` (n, r) by (r, m), the same bits for whoever computes it. (P-5.1)

    In float64, the terms of a sum in the order of r, rounded to float32 once; ``@`` would leave the order to
    a library. A program's symbols are multiplied as its engine does.
    """
    if not isinstance(left, np.ndarray):
        return left @ right
    product = np.zeros((len(left), right.shape[1]))
    for column, row in zip(left.astype(np.float64).T, right.astype(np.float64), strict=True):
        product += column[:, None] * row
    return product.astype(np.float32)


def reshaped(value: Any, *sizes: int) -> Any:
    """``value``, an array or a symbol, row-major in other sizes: 0 is that of its place, one -1 the rest."""
    if isinstance(value, np.ndarray):
        return value.reshape([size or value.shape[place] for place, size in enumerate(sizes)])
    return value.reshape(*sizes)


def widened(value: Any, *axes: int) -> Any:
    """``value``, an array or a symbol, with dimensions of 1 that are ``axes`` of what comes out."""
    return np.expand_dims(value, axes) if isinstance(value, np.ndarray) else value.unsqueeze(*axes)
